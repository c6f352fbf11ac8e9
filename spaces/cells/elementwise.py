"""Cells whose state meets no matrix, yet goes through a nonlinearity at each step: no scan, but a loop without a
product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from spaces.backend import keras, tf
from spaces.cells.cell import Arrays, Weight
from spaces.cells.products import projection
from spaces.cells.recurrent import RecurrentCell
from spaces.scan import State, Tensor

HIGHWAY = 3.0**0.5
"""An SRU's sqrt(1 + 2 exp(b)), b = 0 the bias that r starts with: its output then starts with the variance of x."""


class IndRNN(RecurrentCell):
    """Independently recurrent network (Li 2018, arXiv 1803.04831): each unit sees its own past alone.

    Weights kernel, recurrent vector u, bias [units]. |u| stays under 2^(1/T), so that T steps at most double the state;
    u starts uniformly between 0 and that, as in the paper. Take two layers or more: one had learned nothing of the
    adding problem when two had solved it.
    """

    weights: ClassVar[tuple[Weight, ...]] = (
        Weight("kernel", ("features", "units")),
        Weight("recurrent_vector", ("units",)),
        Weight("bias", ("units",), "zeros"),
    )

    def declared(self, features: int, units: int, time: int | None) -> tuple[Weight, ...]:
        """The bound depends on the length; it is 1 where that is not known."""
        kernel, vector, bias = self.weights
        most = 2.0 ** (1.0 / time) if time else 1.0
        return kernel, replace(vector, start=_uniform(0.0, most), constraint=_within(most)), bias

    def project(self, weights: Arrays, x: Tensor) -> Tensor:
        """W x + b."""
        return projection(x, weights[0], weights[2])

    def step(self, weights: Arrays, projected: Tensor, state: State) -> State:
        """Now h = relu(W x + u h + b)."""
        return (tf.nn.relu(weights[1] * state[0] + projected),)


class SRU(RecurrentCell):
    """Simple recurrent unit (Lei 2018, arXiv 1709.02755): gates that see the state before, number by number.

    f, r = s(W x + v c + b); c = f c + (1 - f) W x; h = r c + (1 - r) a x, a = sqrt(3). Where x is not as wide as the
    output, a product takes its place. Weights kernel [features, 3 or 4 units] (candidate, f, r, in place of x), v and
    bias [2 units] (f, r), started as the authors' code starts them. They advise two layers or more.
    """

    states = 2
    weights: ClassVar[tuple[Weight, ...]] = (
        Weight("kernel", ("features", "4 units")),
        Weight("recurrent_vectors", ("2 units",)),
        Weight("bias", ("2 units",), "zeros"),
    )

    def declared(self, features: int, units: int, time: int | None) -> tuple[Weight, ...]:
        """Three products where x is as wide as the output, else four."""
        kernel, vectors, bias = self.weights
        scales = (1.0, 0.5**0.5, 0.5**0.5, HIGHWAY)[: 3 if features == units else 4]
        kernel = replace(kernel, axes=("features", f"{len(scales)} units"), start=blocks(scales))
        return kernel, replace(vectors, start=_uniform(-(1.5**0.5), 1.5**0.5)), bias

    def state_widths(self, weights: Arrays) -> tuple[int, ...]:
        """The output's and the memory's."""
        return (weights[1].shape[0] // 2,) * 2

    def project(self, weights: Arrays, x: Tensor) -> Tensor:
        """W x and b, and a x at its side where it has no product."""
        kernel, vectors, bias = weights
        units = vectors.shape[0] // 2
        projected = projection(x, kernel, tf.pad(bias, [[units, kernel.shape[1] - 3 * units]]))
        return projected if kernel.shape[1] > 3 * units else tf.concat([projected, HIGHWAY * x], axis=2)

    def held(self, weights: Arrays) -> Arrays:
        """The vectors v of f and of r."""
        units = weights[1].shape[0] // 2
        return weights[1][:units], weights[1][units:]

    def step(self, weights: Arrays, projected: Tensor, state: State) -> State:
        """f, r = s(W x + v c + b); c = f c + (1 - f) W x; h = x + r (c - x), x as it is or as projected."""
        _, c = state
        candidate, x_f, x_r, x = tf.split(projected, 4, axis=1)
        f = tf.sigmoid(x_f + weights[0] * c)
        r = tf.sigmoid(x_r + weights[1] * c)
        c = candidate + f * (c - candidate)
        return x + r * (c - x), c


def _uniform(low: float, high: float) -> Callable[..., Any]:
    """A start."""
    return keras.initializers.RandomUniform(low, high)  # type: ignore[no-any-return]


def _within(most: float) -> Callable[[Any], Any]:
    """A constraint."""
    return lambda value: tf.clip_by_value(value, -most, most)


def blocks(scales: tuple[float, ...]) -> Callable[..., Any]:
    """A start [features, blocks x units], U(-sqrt(3 / features), sqrt(3 / features)), each block times its scale."""

    def start(shape: Any, dtype: Any = None) -> Any:
        most = (3.0 / shape[0]) ** 0.5
        columns = np.repeat(np.array(scales, np.float32), shape[1] // len(scales))
        return _uniform(-most, most)(shape, dtype) * columns

    return start
