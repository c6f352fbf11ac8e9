"""Gated cells whose state is linear in itself, so that training and serving scan all steps at once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from spaces.backend import tf
from spaces.cells.cell import Arrays, Weight
from spaces.cells.elementwise import HIGHWAY, blocks
from spaces.cells.parallel import LinearCell
from spaces.cells.products import projection
from spaces.scan import Tensor

LEAST = 1e-15
"""What a sum of gates is kept above before it divides: far under what a trained gate gives, far over what underflows.
"""


class MinGRU(LinearCell):
    """minGRU (Feng 2024, arXiv 2410.01201): z = s(W_z x + b_z), n = W_n x + b_n, h = (1 - z) h + z n.

    Weights kernel [features, 2 units] (z, n) and bias [2 units], that of z started at minus `memories`. The candidate
    is linear, as in the paper's plain form: it trained better on digits than with tanh or with the positive g of the
    paper's log form, and is one operation less.
    """

    weights: ClassVar[tuple[Weight, ...]] = (
        Weight("kernel", ("features", "2 units")),
        Weight("bias", ("2 units",), "zeros"),
    )

    def declared(self, features: int, units: int, time: int | None) -> tuple[Weight, ...]:
        """The start depends on the length."""
        return remembering(self.weights, time, gates=2, signs={0: -1.0})

    def coefficients(self, weights: Arrays, x: Tensor) -> tuple[Tensor, Tensor]:
        """A = 1 - z, b = z n."""
        z, n = tf.split(projection(x, weights[0], weights[1]), 2, axis=2)
        z = tf.sigmoid(z)
        return 1.0 - z, z * n


class SignedMinGRU(LinearCell):
    """A minGRU whose memory may change its sign, so that it can count by two (after Grazzi 2024, arXiv 2411.12537).

    a = tanh(W_a x + b_a); h = a h + (1 - |a|) s(W_z x + b_z) tanh(W_n x + b_n). Weights kernel [features, 3 units] and
    bias [3 units] (a, z, n), and the state before the first step, learned, which starts at 1: where |a| is 1 nothing
    comes in, and it is the signs of that state which remember. |h| stays under 1 or where it started. Half of the
    decays start as other cells' do, at `memories`; the others at 0, undecided about their sign.
    """

    weights: ClassVar[tuple[Weight, ...]] = (
        Weight("kernel", ("features", "3 units")),
        Weight("bias", ("3 units",), "zeros"),
        Weight("first_state", ("units",), "ones"),
    )

    def declared(self, features: int, units: int, time: int | None) -> tuple[Weight, ...]:
        """The start depends on the length."""
        kernel, bias, first = self.weights
        return kernel, replace(bias, start=partial(_both_signs, time or 1)), first

    def start(self, weights: Arrays) -> Tensor:
        """As learned."""
        return weights[2]

    def coefficients(self, weights: Arrays, x: Tensor) -> tuple[Tensor, Tensor]:
        """The decay a in -1 .. 1, and b = (1 - |a|) s(z) tanh(n)."""
        a, z, n = tf.split(projection(x, weights[0], weights[1]), 3, axis=2)
        a = tf.tanh(a)
        return a, (1.0 - tf.abs(a)) * (tf.sigmoid(z) * tf.tanh(n))


class MinLSTM(LinearCell):
    """minLSTM (Feng 2024, arXiv 2410.01201): f, i = s(W x + b), n = W x + b; h = (f h + i n) / (f + i).

    Weights kernel [features, 3 units] and bias [3 units] (f, i, n), that of f started at `memories`, that of i at minus
    them, so that f / (f + i) starts as the decay of a minGRU.
    """

    weights: ClassVar[tuple[Weight, ...]] = (
        Weight("kernel", ("features", "3 units")),
        Weight("bias", ("3 units",), "zeros"),
    )

    def declared(self, features: int, units: int, time: int | None) -> tuple[Weight, ...]:
        """The start depends on the length."""
        return remembering(self.weights, time, gates=3, signs={0: 1.0, 1: -1.0})

    def coefficients(self, weights: Arrays, x: Tensor) -> tuple[Tensor, Tensor]:
        """A = f / (f + i), b = (1 - a) n; where both gates are shut for good, their sum is kept from 0."""
        f, i, n = tf.split(projection(x, weights[0], weights[1]), 3, axis=2)
        f = tf.sigmoid(f)
        a = f / tf.maximum(f + tf.sigmoid(i), LEAST)
        return a, (1.0 - a) * n


class QRNN(LinearCell):
    """QRNN with fo-pooling over a window of two steps (Bradbury 2017, arXiv 1611.01576).

    z = tanh(.), f, o = s(.) of W [x_(t-1), x_t] + b; c = f c + (1 - f) z; h = o c. Weights kernel [2 features, 3 units]
    (z, f, o) and bias [3 units], that of f started at `memories`. The window is a concatenation of frames, not a
    convolution, so that the whole projection stays one matrix product; before the first step it sees zeros.
    """

    window = 2
    reads_inputs = True
    weights: ClassVar[tuple[Weight, ...]] = (
        Weight("kernel", ("2 features", "3 units")),
        Weight("bias", ("3 units",), "zeros"),
    )

    def declared(self, features: int, units: int, time: int | None) -> tuple[Weight, ...]:
        """The start depends on the length."""
        return remembering(self.weights, time, gates=3, signs={1: 1.0})

    def coefficients(self, weights: Arrays, x: Tensor) -> tuple[Tensor, Tensor]:
        """A = f, b = (1 - f) z."""
        width = weights[1].shape[0] // 3 * 2
        z, f = tf.split(projection(x, weights[0][:, :width], weights[1][:width]), 2, axis=2)
        f = tf.sigmoid(f)
        return f, (1.0 - f) * tf.tanh(z)

    def readout(self, weights: Arrays, x: Tensor, state: Tensor) -> Tensor:
        """The gate times the state; a product of its own, so that for the last state only the last row is computed."""
        width = weights[1].shape[0] // 3 * 2
        return tf.sigmoid(projection(x, weights[0][:, width:], weights[1][width:])) * state


class QRNNF(LinearCell):
    """QRNN with f-pooling: z and f as in `QRNN`, and the state itself is the output, h = f h + (1 - f) z.

    Weights kernel [2 features, 2 units] (z, f) and bias [2 units], that of f started at `memories`.
    """

    window = 2
    weights: ClassVar[tuple[Weight, ...]] = (
        Weight("kernel", ("2 features", "2 units")),
        Weight("bias", ("2 units",), "zeros"),
    )

    def declared(self, features: int, units: int, time: int | None) -> tuple[Weight, ...]:
        """The start depends on the length."""
        return remembering(self.weights, time, gates=2, signs={1: 1.0})

    def coefficients(self, weights: Arrays, x: Tensor) -> tuple[Tensor, Tensor]:
        """A = f, b = (1 - f) z."""
        z, f = tf.split(projection(x, weights[0], weights[1]), 2, axis=2)
        f = tf.sigmoid(f)
        return f, (1.0 - f) * tf.tanh(z)


class QRNNIFO(LinearCell):
    """QRNN with ifo-pooling: as `QRNN`, but with a gate of its own for what comes in, c = f c + i z; h = o c.

    Weights kernel [2 features, 4 units] (z, f, i, o) and bias [4 units], that of f started at `memories`.
    """

    window = 2
    reads_inputs = True
    weights: ClassVar[tuple[Weight, ...]] = (
        Weight("kernel", ("2 features", "4 units")),
        Weight("bias", ("4 units",), "zeros"),
    )

    def declared(self, features: int, units: int, time: int | None) -> tuple[Weight, ...]:
        """The start depends on the length."""
        return remembering(self.weights, time, gates=4, signs={1: 1.0})

    def coefficients(self, weights: Arrays, x: Tensor) -> tuple[Tensor, Tensor]:
        """A = f, b = i z."""
        width = weights[1].shape[0] // 4 * 3
        z, f, i = tf.split(projection(x, weights[0][:, :width], weights[1][:width]), 3, axis=2)
        return tf.sigmoid(f), tf.sigmoid(i) * tf.tanh(z)

    def readout(self, weights: Arrays, x: Tensor, state: Tensor) -> Tensor:
        """The gate times the state."""
        width = weights[1].shape[0] // 4 * 3
        return tf.sigmoid(projection(x, weights[0][:, width:], weights[1][width:])) * state


class SRU1(LinearCell):
    """Simple recurrent unit in its first form (Lei 2017, arXiv 1709.02755v1), whose gates do not see the state.

    f, r = s(W x + b); c = f c + (1 - f) W x; h = r c + (1 - r) a x, a = sqrt(3), and a product in place of a x where x
    is not as wide as the output. Weights kernel [features, 3 or 4 units] (candidate, f, r, in place of x) and bias
    [2 units] (f, r), the kernel started as that of `SRU`, the bias of f at `memories`.
    """

    reads_inputs = True
    weights: ClassVar[tuple[Weight, ...]] = (
        Weight("kernel", ("features", "4 units")),
        Weight("bias", ("2 units",), "zeros"),
    )

    def declared(self, features: int, units: int, time: int | None) -> tuple[Weight, ...]:
        """Three products where x is as wide as the output, else four."""
        scales = (1.0, 0.5**0.5, 0.5**0.5, HIGHWAY)[: 3 if features == units else 4]
        kernel, bias = remembering(self.weights, time, gates=2, signs={0: 1.0})
        return replace(kernel, axes=("features", f"{len(scales)} units"), start=blocks(scales)), bias

    def width(self, weights: Arrays) -> int:
        """Half of the two biases."""
        return int(weights[1].shape[0]) // 2

    def coefficients(self, weights: Arrays, x: Tensor) -> tuple[Tensor, Tensor]:
        """A = f, b = (1 - f) W x."""
        kernel, bias = weights
        units = self.width(weights)
        bias = tf.pad(bias[:units], [[units, 0]])
        candidate, f = tf.split(projection(x, kernel[:, : 2 * units], bias), 2, axis=2)
        f = tf.sigmoid(f)
        return f, (1.0 - f) * candidate

    def readout(self, weights: Arrays, x: Tensor, state: Tensor) -> Tensor:
        """With x as it is or as projected: x + r (c - x)."""
        kernel, bias = weights
        units = self.width(weights)
        if kernel.shape[1] > 3 * units:
            bias = tf.pad(bias[units:], [[0, units]])
            r, x = tf.split(projection(x, kernel[:, 2 * units :], bias), 2, axis=2)
        else:
            r, x = projection(x, kernel[:, 2 * units :], bias[units:]), HIGHWAY * x
        return x + tf.sigmoid(r) * (state - x)


def remembering(
    weights: tuple[Weight, ...], time: int | None, *, gates: int, signs: dict[int, float]
) -> tuple[Weight, ...]:
    """A kernel and a bias [gates x units], the bias of each gate in `signs` started at so many times `memories`."""
    kernel, bias = weights

    def start(shape: Any, dtype: Any = None) -> np.ndarray:
        rows = np.zeros((gates, shape[0] // gates), np.float32)
        for gate, sign in signs.items():
            rows[gate] = sign * memories(rows.shape[1], time)
        return rows.reshape(-1)

    return kernel, replace(bias, start=start)


def memories(units: int, time: int | None) -> np.ndarray:
    """The logits of gates that keep a state: time constants from the whole sequence, or 20 steps where that is shorter,
    down to a third of a step, in equal ratios. (Tallec 2018, arXiv 1804.11188, draws them at random.)
    """
    return np.linspace(max(3.0, np.log(time or 1)), -1.0, units, dtype=np.float32)


def _both_signs(time: int, shape: Any, dtype: Any = None) -> np.ndarray:
    """A bias [3 units] (a, z, n) with half of the decays at `memories`, the rest at 0."""
    units = shape[0] // 3
    bias = np.zeros(shape, np.float32)
    keep = 1.0 / (1.0 + np.exp(-memories(units - units // 2, time)))
    bias[: len(keep)] = np.arctanh(keep)
    return bias
