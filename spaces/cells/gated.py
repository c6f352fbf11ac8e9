"""The gated cells that Keras itself trains: LSTM, GRU and SimpleRNN, with Keras's usual activations or others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from spaces.backend import keras, tf
from spaces.cells.cell import Arrays, Weight, ones_for
from spaces.cells.products import projection, recurrent
from spaces.cells.recurrent import RecurrentCell
from spaces.scan import State, Tensor

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LSTM(RecurrentCell):
    """Long short-term memory (Hochreiter and Schmidhuber 1997, Gers 2000).

    Weights kernel, recurrent kernel, bias [4 units], gates i, f, g, o as in Keras, which starts the bias of f at 1.
    """

    activation: Activation = tf.tanh
    recurrent_activation: Activation = tf.sigmoid
    states = 2
    weights: ClassVar[tuple[Weight, ...]] = (
        Weight("kernel", ("features", "4 units")),
        Weight("recurrent_kernel", ("units", "4 units"), "orthogonal"),
        Weight("bias", ("4 units",), lambda shape, dtype=None: ones_for(shape, gates=4, gate=1)),
    )

    def layer(
        self, units: int, *, return_sequences: bool = False, go_backwards: bool = False, name: str | None = None
    ) -> Any:
        """tf_keras's own LSTM."""
        return keras.layers.LSTM(units, return_sequences=return_sequences, go_backwards=go_backwards, name=name)

    def project(self, weights: Arrays, x: Tensor) -> Tensor:
        """W x + b."""
        return projection(x, weights[0], weights[2])

    def step(self, weights: Arrays, projected: Tensor, state: State) -> State:
        """i, f, o = s(Wx + Rh + b); g = tanh(Wx + Rh + b); c = f c + i g; h = o tanh(c)."""
        h, c = state
        i, f, g, o = tf.split(recurrent(h, weights[1]) + projected, 4, axis=1)
        c = self.recurrent_activation(f) * c + self.recurrent_activation(i) * self.activation(g)
        return self.recurrent_activation(o) * self.activation(c), c


@dataclass(frozen=True)
class GRU(RecurrentCell):
    """Gated recurrent unit (Cho 2014) with the reset gate after the product, as cuDNN and Keras have it.

    So a step needs one product instead of two that wait for each other. Weights kernel, recurrent kernel, bias
    [2, 3 units], gates z, r, candidate.
    """

    activation: Activation = tf.tanh
    recurrent_activation: Activation = tf.sigmoid
    reset_after = True
    weights: ClassVar[tuple[Weight, ...]] = (
        Weight("kernel", ("features", "3 units")),
        Weight("recurrent_kernel", ("units", "3 units"), "orthogonal"),
        Weight("bias", ("2", "3 units"), lambda shape, dtype=None: _keeping(shape)),
    )

    def layer(
        self, units: int, *, return_sequences: bool = False, go_backwards: bool = False, name: str | None = None
    ) -> Any:
        """tf_keras's own GRU."""
        sides = {"return_sequences": return_sequences, "go_backwards": go_backwards}
        return keras.layers.GRU(units, **sides, reset_after=self.reset_after, name=name)

    def initialise(self, weights: list[np.ndarray]) -> list[np.ndarray]:
        """The bias of z starts at 1, so that the state is kept until there is reason to change it."""
        kernel, recurrent_kernel, bias = weights
        return [kernel, recurrent_kernel, _keeping(bias.shape)]

    def project(self, weights: Arrays, x: Tensor) -> Tensor:
        """W x + b."""
        return projection(x, weights[0], weights[2][0])

    def step(self, weights: Arrays, projected: Tensor, state: State) -> State:
        """z, r = s(Wx + Rh + b); n = tanh(Wx + b + r (Rh + b_r)); h = z h + (1 - z) n."""
        (h,) = state
        x_z, x_r, x_n = tf.split(projected, 3, axis=1)
        h_z, h_r, h_n = tf.split(recurrent(h, weights[1], weights[2][1]), 3, axis=1)
        n = self.activation(x_n + self.recurrent_activation(x_r + h_r) * h_n)
        return (n + self.recurrent_activation(x_z + h_z) * (h - n),)


@dataclass(frozen=True)
class ResetBeforeGRU(GRU):
    """The gated recurrent unit as first published (Cho 2014), the reset gate before the product; bias [3 units].

    A step needs two products, the second of which waits for the first: slower, so nobody should train it anew. It is
    here for models that exist.
    """

    reset_after = False
    weights: ClassVar[tuple[Weight, ...]] = (*GRU.weights[:2], Weight("bias", ("3 units",)))

    def project(self, weights: Arrays, x: Tensor) -> Tensor:
        """W x + b."""
        return projection(x, weights[0], weights[2])

    def step(self, weights: Arrays, projected: Tensor, state: State) -> State:
        """z, r = s(Wx + Rh + b); n = tanh(Wx + b + R (r h)); h = z h + (1 - z) n."""
        (h,) = state
        units = h.shape[-1]
        x_z, x_r, x_n = tf.split(projected, 3, axis=1)
        h_z, h_r = tf.split(recurrent(h, weights[1][:, : 2 * units]), 2, axis=1)
        reset = self.recurrent_activation(x_r + h_r) * h
        n = self.activation(x_n + recurrent(reset, weights[1][:, 2 * units :]))
        return (n + self.recurrent_activation(x_z + h_z) * (h - n),)


@dataclass(frozen=True)
class SimpleRNN(RecurrentCell):
    """The plain recurrence (Elman 1990); weights kernel, recurrent kernel (starts orthogonal), bias [units]."""

    activation: Activation = tf.tanh
    weights: ClassVar[tuple[Weight, ...]] = (
        Weight("kernel", ("features", "units")),
        Weight("recurrent_kernel", ("units", "units"), "orthogonal"),
        Weight("bias", ("units",), "zeros"),
    )

    def layer(
        self, units: int, *, return_sequences: bool = False, go_backwards: bool = False, name: str | None = None
    ) -> Any:
        """tf_keras's own SimpleRNN."""
        return keras.layers.SimpleRNN(units, return_sequences=return_sequences, go_backwards=go_backwards, name=name)

    def project(self, weights: Arrays, x: Tensor) -> Tensor:
        """W x + b."""
        return projection(x, weights[0], weights[2])

    def step(self, weights: Arrays, projected: Tensor, state: State) -> State:
        """H = tanh(W x + R h + b)."""
        return (self.activation(recurrent(state[0], weights[1]) + projected),)


def _keeping(shape: Any) -> np.ndarray:
    """A bias [(2,) 3 units] of a GRU with ones for z, in the first row."""
    bias = np.zeros(shape, np.float32)
    of_inputs = bias[0] if len(shape) == 2 else bias
    of_inputs[: len(of_inputs) // 3] = 1.0
    return bias
