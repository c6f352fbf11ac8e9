"""The gated cells that Keras itself trains: LSTM, GRU (reset after the product) and SimpleRNN."""

from __future__ import annotations

from typing import Any

import numpy as np

from spaces.backend import keras, tf
from spaces.cells.cell import Arrays, RecurrentCell, projection, recurrent
from spaces.scan import State, Tensor


class LSTM(RecurrentCell):
    """Long short-term memory (Hochreiter and Schmidhuber 1997, Gers 2000).

    Weights kernel, recurrent kernel, bias [4 units], gates i, f, g, o as in Keras, which starts the bias of f at 1.
    """

    states = 2

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
        c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
        return tf.sigmoid(o) * tf.tanh(c), c


class GRU(RecurrentCell):
    """Gated recurrent unit (Cho 2014) with the reset gate after the product, as cuDNN and Keras have it.

    So a step needs one product instead of two that wait for each other. Weights kernel, recurrent kernel, bias
    [2, 3 units], gates z, r, candidate.
    """

    def layer(
        self, units: int, *, return_sequences: bool = False, go_backwards: bool = False, name: str | None = None
    ) -> Any:
        """tf_keras's own GRU."""
        return keras.layers.GRU(
            units, return_sequences=return_sequences, go_backwards=go_backwards, reset_after=True, name=name
        )

    def initialise(self, weights: list[np.ndarray]) -> list[np.ndarray]:
        """The bias of z starts at 1, so that the state is kept until there is reason to change it."""
        kernel, recurrent_kernel, bias = weights
        bias = bias.copy()
        bias[0, : bias.shape[1] // 3] = 1.0
        return [kernel, recurrent_kernel, bias]

    def project(self, weights: Arrays, x: Tensor) -> Tensor:
        """W x + b."""
        return projection(x, weights[0], weights[2][0])

    def step(self, weights: Arrays, projected: Tensor, state: State) -> State:
        """z, r = s(Wx + Rh + b); n = tanh(Wx + b + r (Rh + b_r)); h = z h + (1 - z) n."""
        (h,) = state
        x_z, x_r, x_n = tf.split(projected, 3, axis=1)
        h_z, h_r, h_n = tf.split(recurrent(h, weights[1], weights[2][1]), 3, axis=1)
        n = tf.tanh(x_n + tf.sigmoid(x_r + h_r) * h_n)
        return (n + tf.sigmoid(x_z + h_z) * (h - n),)


class SimpleRNN(RecurrentCell):
    """The plain recurrence (Elman 1990); weights kernel, recurrent kernel (starts orthogonal), bias [units]."""

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
        return (tf.tanh(recurrent(state[0], weights[1]) + projected),)
