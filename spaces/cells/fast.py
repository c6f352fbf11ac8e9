"""FastRNN, a plain recurrence that leaks, and FastGRNN, gated by one matrix for gate and candidate alike (Kusupati
2018, arXiv 1901.02358).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from spaces.backend import keras, tf
from spaces.cells.cell import Arrays, Weight
from spaces.cells.products import projection, recurrent
from spaces.cells.recurrent import RecurrentCell
from spaces.scan import State, Tensor


def _small(shape: Any, dtype: Any = None) -> Any:
    """N(0, 0.1), as the paper's code starts its matrices."""
    return keras.initializers.RandomNormal(stddev=0.1)(shape, dtype)


class FastRNN(RecurrentCell):
    """FastRNN: a plain recurrence with a learned leak, two numbers for the whole layer.

    n = tanh(W x + U h + b); h = s(alpha) n + s(beta) h. Weights kernel, recurrent kernel, bias [units] and scales [2]
    (alpha, beta, before their sigmoid), which start at -3 and 3: at 0.05 and 0.95.
    """

    weights: ClassVar[tuple[Weight, ...]] = (
        Weight("kernel", ("features", "units"), _small),
        Weight("recurrent_kernel", ("units", "units"), _small),
        Weight("bias", ("units",), "ones"),
        Weight("scales", ("2",), lambda shape, dtype=None: np.array([-3.0, 3.0], np.float32)),
    )

    def project(self, weights: Arrays, x: Tensor) -> Tensor:
        """W x + b."""
        return projection(x, weights[0], weights[2])

    def held(self, weights: Arrays) -> Arrays:
        """U, s(alpha) and s(beta)."""
        _, kernel, _, scales = weights
        return kernel, _sigmoid(scales[0]), _sigmoid(scales[1])

    def step(self, weights: Arrays, projected: Tensor, state: State) -> State:
        """With n = tanh(W x + U h + b): h = s(alpha) n + s(beta) h."""
        (h,) = state
        kernel, alpha, beta = weights
        n = tf.tanh(recurrent(h, kernel) + projected)
        return (alpha * n + beta * h,)


class FastGRNN(RecurrentCell):
    """FastGRNN: a quarter of an LSTM's recurrent weights, started as the paper's code starts it.

    p = W x + U h; z = s(p + b_z); n = tanh(p + b_n); h = (s(zeta) (1 - z) + s(nu)) n + z h. Weights kernel, recurrent
    kernel, bias [2, units] (z, n) and scales [2] (zeta, nu, before their sigmoid).
    """

    weights: ClassVar[tuple[Weight, ...]] = (
        Weight("kernel", ("features", "units"), _small),
        Weight("recurrent_kernel", ("units", "units"), _small),
        Weight("bias", ("2", "units"), "ones"),
        Weight("scales", ("2",), lambda shape, dtype=None: np.array([1.0, -4.0], np.float32)),
    )

    def project(self, weights: Arrays, x: Tensor) -> Tensor:
        """W x + b_z; the step adds what the candidate's bias differs by."""
        return projection(x, weights[0], weights[2][0])

    def held(self, weights: Arrays) -> Arrays:
        """U, b_n - b_z, s(zeta) and s(zeta) + s(nu)."""
        _, kernel, bias, scales = weights
        low = _sigmoid(scales[0])
        return kernel, bias[1] - bias[0], low, low + _sigmoid(scales[1])

    def step(self, weights: Arrays, projected: Tensor, state: State) -> State:
        """With low = s(zeta) and high = s(zeta) + s(nu): s(zeta) (1 - z) + s(nu) = high - low z."""
        (h,) = state
        kernel, shift, low, high = weights
        p = recurrent(h, kernel) + projected
        z, n = tf.sigmoid(p), tf.tanh(p + shift)
        return ((high - low * z) * n + z * h,)


def _sigmoid(x: Any) -> Any:
    """Of a number that is constant by now in a graph that is served, and learned in one that trains."""
    return tf.sigmoid(x) if tf.is_tensor(x) else np.float32(1.0 / (1.0 + np.exp(-x)))
