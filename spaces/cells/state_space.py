"""State spaces: cells whose state is linear in itself with a learned decay a unit, the same at every step (LRU) or
stretched by the input (Mamba).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from spaces.backend import keras, tf
from spaces.cells.cell import Arrays, Weight
from spaces.cells.parallel import LinearCell
from spaces.cells.products import projection
from spaces.scan import Tensor, steady_last, steady_sequence

SHORT = 64
"""Up to how many steps LRU starts with memories for short sequences."""

WINDOW = 4
"""How many steps Mamba's convolution sees."""

SMALLEST = 1e-30
"""What is kept from underflow ahead of a logarithm."""


class LRU(LinearCell):
    """Real, diagonal linear recurrent unit (Orvieto 2023, arXiv 2303.06349; S4D-real of Gu 2022, arXiv 2206.11893).

    h = a h + sqrt(1 - a^2) B x, a = exp(-exp(v)); the output is GLU(gelu(h)), W g * s(V g + c). Weights input kernel B
    [features, units], v [units], head kernel [units, 2 units] (W, V), head bias c [units]. a^2 starts uniformly in a
    ring, 0.5 to 0.99 squared, or on long sequences 0.9 to 0.999; the root follows a, where the paper only starts it so.

    As a never changes, nothing but x goes through the scan, and the last state is a sum weighted by constants.
    """

    weights: ClassVar[tuple[Weight, ...]] = (
        Weight("kernel", ("features", "units")),
        Weight("log_rate", ("units",)),
        Weight("head_kernel", ("units", "2 units")),
        Weight("head_bias", ("units",), "zeros"),
    )

    def declared(self, features: int, units: int, time: int | None) -> tuple[Weight, ...]:
        """The ring that a starts in depends on the length."""
        kernel, rate, *head = self.weights
        low, high = (0.5, 0.99) if time and time <= SHORT else (0.9, 0.999)
        return kernel, replace(rate, start=_ring(low, high)), *head

    def coefficients(self, weights: Arrays, x: Tensor) -> tuple[Tensor, Tensor]:
        """The decay at every step, and b = sqrt(1 - a^2) B x."""
        b = self._driven(weights, x)
        return tf.ones_like(b) * _power(weights[1], np.float32(1.0)), b

    def readout(self, weights: Arrays, x: Tensor, state: Tensor) -> Tensor:
        """GLU(gelu(h)), 0 where the state is."""
        _, _, kernel, bias = weights
        bias = tf.pad(bias, [[bias.shape[0], 0]])
        value, gate = tf.split(projection(tf.nn.gelu(state, approximate=True), kernel, bias), 2, axis=2)
        return value * tf.sigmoid(gate)

    def run(
        self, weights: Arrays, x: Tensor, mask: Tensor, *, return_sequences: bool, steps: int | None = None
    ) -> Tensor:
        """By constants, unless a mask makes a change or a loop is asked for."""
        if mask is not None or steps is not None:
            return super().run(weights, x, mask, return_sequences=return_sequences, steps=steps)
        power, b = partial(_power, weights[1]), self._driven(weights, x)
        if return_sequences:
            return self.readout(weights, x, steady_sequence(power, b))
        return self.readout(weights, x, steady_last(power, b)[:, None])[:, 0]

    def _driven(self, weights: Arrays, x: Tensor) -> Tensor:
        """What comes in: sqrt(1 - a^2) B x, the root folded into B."""
        kernel, rate, *_ = weights
        maths = _maths(rate)
        return projection(x, kernel * maths.sqrt(-maths.expm1(-2.0 * maths.exp(rate))))


class Mamba(LinearCell):
    """Selective state space with one number of state a channel (Gu and Dao 2023, arXiv 2312.00752, there 16).

    u = silu(causal convolution over 4 steps, channel by channel, of W x, + k); D = softplus(U2 U1 u + d); h = exp(-D A)
    h + D (B u) u; y = O ((C u) h + S u) silu(G x + e), A = exp(v); B and C give a number a step. Weights W [features,
    units], convolution [4 units], k [units], U1 [units, rank], U2 [rank, units], d, B [units, 1], v, C [units, 1], S
    [units], G [features, units], e [units], O [units, units]; the rank is units / 16. A starts at 1, softplus(d)
    log-uniformly in 0.001 .. 0.1, S at 1, as the authors' code has them. e, which starts at 1, is not theirs: without
    it the answer after the last step hangs on that step alone, which a block among others has a way round.
    """

    window = WINDOW
    reads_inputs = True
    weights: ClassVar[tuple[Weight, ...]] = (
        Weight("kernel", ("features", "units")),
        Weight("convolution", (f"{WINDOW} units",), lambda shape, dtype=None: _uniform(-0.5, 0.5)(shape, dtype)),
        Weight("convolution_bias", ("units",), lambda shape, dtype=None: _uniform(-0.5, 0.5)(shape, dtype)),
        Weight("step_down_kernel", ("units", "rank")),
        Weight("step_up_kernel", ("rank", "units")),
        Weight("step_bias", ("units",), lambda shape, dtype=None: _steps(shape, dtype)),
        Weight("input_kernel", ("units", "1")),
        Weight("log_rate", ("units",), "zeros"),
        Weight("output_kernel", ("units", "1")),
        Weight("skip", ("units",), "ones"),
        Weight("gate_kernel", ("features", "units")),
        Weight("gate_bias", ("units",), "ones"),
        Weight("mixing_kernel", ("units", "units")),
    )

    def declared(self, features: int, units: int, time: int | None) -> tuple[Weight, ...]:
        """The rank follows the units."""
        rank = str(max(1, units // 16))
        return tuple(
            replace(weight, axes=tuple(rank if name == "rank" else name for name in weight.axes))
            for weight in self.weights
        )

    def coefficients(self, weights: Arrays, x: Tensor) -> tuple[Tensor, Tensor]:
        """A = exp(-D A), b = D (B u) u; -D = log s(-p), for a softplus of p."""
        down, up, bias, into, rate = weights[3:8]
        u = self._convolved(weights, x)
        step = tf.math.log(tf.maximum(tf.sigmoid(projection(projection(u, -down), up, -bias)), SMALLEST))
        return tf.exp(step * _maths(rate).exp(rate)), step * projection(u, -into) * u

    def readout(self, weights: Arrays, x: Tensor, state: Tensor) -> Tensor:
        """O ((C u) h + S u) silu(G x + e)."""
        out, skip, gate, bias, last = weights[8:]
        u = self._convolved(weights, x)
        g = projection(x[:, :, -gate.shape[0] :], gate, bias)
        return projection((projection(u, out) * state + skip * u) * (g * tf.sigmoid(g)), last)

    def _convolved(self, weights: Arrays, x: Tensor) -> Tensor:
        """U: each step projected once, and then the window taken, channel by channel."""
        kernel, convolution, bias = weights[:3]
        (features, units), time = kernel.shape, x.shape[1]
        before = tf.reshape(x[:, :1, :-features], [-1, WINDOW - 1, features])
        rows = projection(tf.concat([before, x[:, :, -features:]], axis=1), kernel)
        taps = (convolution[at * units : (at + 1) * units] * rows[:, at : at + time] for at in range(WINDOW))
        u = sum(taps, start=next(taps) + bias)
        return u * tf.sigmoid(u)


def _maths(array: Any) -> Any:
    """Whose functions to call on a weight: NumPy's, so that what is served is a constant, or TensorFlow's."""
    return np if isinstance(array, np.ndarray) else tf.math


def _power(rate: Any, count: Any) -> Tensor:
    """A^count, for a = exp(-exp(rate))."""
    maths = _maths(rate)
    return maths.exp(-count * maths.exp(rate))


def _uniform(low: float, high: float) -> Callable[..., Any]:
    """A start."""
    return keras.initializers.RandomUniform(low, high)  # type: ignore[no-any-return]


def _ring(low: float, high: float) -> Callable[..., Any]:
    """The start of LRU's log rates."""
    return lambda shape, dtype=None: tf.math.log(-0.5 * tf.math.log(_uniform(low**2, high**2)(shape, dtype)))


def _steps(shape: Any, dtype: Any = None) -> Any:
    """The start of Mamba's step bias: the inverse softplus of what it stands for."""
    step = tf.exp(_uniform(np.log(1e-3), np.log(1e-1))(shape, dtype))
    return step + tf.math.log(-tf.math.expm1(-step))
