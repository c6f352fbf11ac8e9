"""Gated cells with less in a step than an LSTM or GRU: a narrower output, fewer gates, or none but the update's."""

from __future__ import annotations

from typing import Any, ClassVar

from spaces.backend import tf
from spaces.cells.cell import Arrays, Weight, ones_for
from spaces.cells.products import Factored, projection, recurrent
from spaces.cells.recurrent import RecurrentCell
from spaces.scan import State, Tensor

MEMORY = 2
"""How many numbers LSTMP remembers for each unit that it shows."""

MOMENTUM, EPSILON = 0.95, 1e-3
"""How much of a moving average stays at each training step, and what is added to a variance before its root."""


class LSTMP(RecurrentCell):
    """LSTM with a projection (Sak 2014, arXiv 1402.1128): a memory twice as wide as the output, which alone feeds back.

    So R is a quarter of what an LSTM with that memory has. Weights kernel, recurrent kernel and bias, gates i, f, g, o
    of the memory's width; the projection [2 units, units]; the bias of f starts at 1. A step has two products, the
    second of which waits for the first.
    """

    states = 2
    weights: ClassVar[tuple[Weight, ...]] = (
        Weight("kernel", ("features", f"{4 * MEMORY} units")),
        Weight("recurrent_kernel", ("units", f"{4 * MEMORY} units"), "orthogonal"),
        Weight("bias", (f"{4 * MEMORY} units",), lambda shape, dtype=None: ones_for(shape, gates=4, gate=1)),
        Weight("projection_kernel", (f"{MEMORY} units", "units")),
    )

    def state_widths(self, weights: Arrays) -> tuple[int, ...]:
        """The output's and the memory's."""
        memory, units = weights[3].shape
        return units, memory

    def project(self, weights: Arrays, x: Tensor) -> Tensor:
        """W x + b."""
        return projection(x, weights[0], weights[2])

    def step(self, weights: Arrays, projected: Tensor, state: State) -> State:
        """i, f, o = s(Wx + Rh + b); g = tanh(Wx + Rh + b); c = f c + i g; h = P (o tanh(c))."""
        h, c = state
        i, f, g, o = tf.split(recurrent(h, weights[1]) + projected, 4, axis=1)
        c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
        return recurrent(tf.sigmoid(o) * tf.tanh(c), weights[3]), c


class CIFG(RecurrentCell):
    """LSTM with coupled input and forget gate, i = 1 - f (Greff 2015, arXiv 1503.04069): three quarters of the weights.

    Weights kernel, recurrent kernel, bias [3 units], gates f, g, o; the bias of f starts at 1.
    """

    states = 2
    weights: ClassVar[tuple[Weight, ...]] = (
        Weight("kernel", ("features", "3 units")),
        Weight("recurrent_kernel", ("units", "3 units"), "orthogonal"),
        Weight("bias", ("3 units",), lambda shape, dtype=None: ones_for(shape, gates=3, gate=0)),
    )

    def project(self, weights: Arrays, x: Tensor) -> Tensor:
        """W x + b."""
        return projection(x, weights[0], weights[2])

    def step(self, weights: Arrays, projected: Tensor, state: State) -> State:
        """f, o = s(Wx + Rh + b); g = tanh(Wx + Rh + b); c = f c + (1 - f) g; h = o tanh(c)."""
        h, c = state
        f, g, o = tf.split(recurrent(h, weights[1]) + projected, 3, axis=1)
        g = tf.tanh(g)
        c = g + tf.sigmoid(f) * (c - g)
        return tf.sigmoid(o) * tf.tanh(c), c


class MGU(RecurrentCell):
    """Minimal gated unit (Zhou 2016, arXiv 1603.09420): one gate, which forgets in the state and in the candidate.

    It acts after the product, as in our GRU, so that a step needs one; the paper has it before. Weights kernel,
    recurrent kernel, bias [2 units], f and the candidate.
    """

    weights: ClassVar[tuple[Weight, ...]] = (
        Weight("kernel", ("features", "2 units")),
        Weight("recurrent_kernel", ("units", "2 units"), "orthogonal"),
        Weight("bias", ("2 units",), "zeros"),
    )

    def project(self, weights: Arrays, x: Tensor) -> Tensor:
        """W x + b."""
        return projection(x, weights[0], weights[2])

    def step(self, weights: Arrays, projected: Tensor, state: State) -> State:
        """With f = s(Wx + Rh + b) and n = tanh(Wx + b + f Rh): h = (1 - f) h + f n."""
        (h,) = state
        x_f, x_n = tf.split(projected, 2, axis=1)
        h_f, h_n = tf.split(recurrent(h, weights[1]), 2, axis=1)
        f = tf.sigmoid(x_f + h_f)
        return (h + f * (tf.tanh(x_n + f * h_n) - h),)


class LiGRU(RecurrentCell):
    """Light GRU (Ravanelli 2018, arXiv 1803.10225): no reset gate, relu for tanh, the inputs' share batch-normalised.

    Training normalises by the batch's own mean and variance over all steps that count; serving by their moving
    averages, which are folded into kernel and bias, so that nothing of it is left in the graph. Weights kernel and
    recurrent kernel (z, candidate), scale, shift, which starts at 1 for z as a GRU's bias does, and the moving mean and
    variance, which no gradient reaches. Nothing bounds the relu but the normalised inputs: on very long data it may
    explode.
    """

    weights: ClassVar[tuple[Weight, ...]] = (
        Weight("kernel", ("features", "2 units")),
        Weight("recurrent_kernel", ("units", "2 units"), "orthogonal"),
        Weight("scale", ("2 units",), "ones"),
        Weight("shift", ("2 units",), lambda shape, dtype=None: ones_for(shape, gates=2, gate=0)),
        Weight("moving_mean", ("2 units",), "zeros", trainable=False),
        Weight("moving_variance", ("2 units",), "ones", trainable=False, constraint=tf.nn.relu),
    )

    def project(self, weights: Arrays, x: Tensor) -> Tensor:
        """Scale (W x - mean) / sqrt(variance) + shift, as W' x + b'."""
        kernel, _, scale, shift, mean, variance = weights
        factor = scale * (variance + EPSILON) ** -0.5
        return projection(x, _times(kernel, factor), shift - mean * factor)

    def project_batch(self, weights: Arrays, x: Tensor, mask: Tensor) -> Tensor:
        """With the mean and variance of the batch, which are noted."""
        kernel, _, scale, shift, *moving = weights
        projected = projection(x, kernel)
        counted = tf.ones_like(projected[:, :, :1]) if mask is None else mask
        total = tf.maximum(tf.reduce_sum(counted), 1.0)
        mean = tf.reduce_sum(counted * projected, [0, 1]) / total
        variance = tf.reduce_sum(counted * tf.square(projected - mean), [0, 1]) / total
        for average, now in zip(moving, (mean, variance), strict=True):
            average.assign_add((1.0 - MOMENTUM) * (now - average))
        return scale * (projected - mean) * (variance + EPSILON) ** -0.5 + shift

    def step(self, weights: Arrays, projected: Tensor, state: State) -> State:
        """With z = s(BN(Wx) + Rh) and n = relu(BN(Wx) + Rh): h = z h + (1 - z) n."""
        (h,) = state
        z, n = tf.split(recurrent(h, weights[1]) + projected, 2, axis=1)
        n = tf.nn.relu(n)
        return (n + tf.sigmoid(z) * (h - n),)


def _times(kernel: Any, columns: Any) -> Any:
    """A matrix, or the product of two, with each of its columns times a number."""
    if isinstance(kernel, Factored):
        return Factored(kernel.left, kernel.right * columns)
    return kernel * columns
