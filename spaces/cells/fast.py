"""FastGRNN: a gated cell with one matrix for gate and candidate alike (Kusupati 2018, arXiv 1901.02358)."""

from __future__ import annotations

from typing import Any

import numpy as np

from spaces.backend import keras, tf
from spaces.cells.cell import Arrays, RecurrentCell, projection, recurrent
from spaces.scan import State, Tensor


@keras.saving.register_keras_serializable(package="brisk")
class FastGRNNCell(keras.layers.Layer):  # type: ignore[misc]
    """One step for `keras.layers.RNN`, started as the paper's code starts it.

    Weights kernel [features, units], recurrent kernel [units, units], bias [2, units] (gate, candidate) and scales [2]
    (zeta, nu, before their sigmoid).
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = self.state_size = self.output_size = units

    def build(self, input_shape: Any) -> None:
        """Make the weights."""
        small = keras.initializers.RandomNormal(stddev=0.1)
        self.kernel = self.add_weight(name="kernel", shape=(input_shape[-1], self.units), initializer=small)
        self.recurrent_kernel = self.add_weight(
            name="recurrent_kernel", shape=(self.units, self.units), initializer=keras.initializers.RandomNormal(0, 0.1)
        )
        self.bias = self.add_weight(name="bias", shape=(2, self.units), initializer="ones")
        self.scales = self.add_weight(name="scales", shape=(2,), initializer=_start_scales)
        self.built = True

    def call(self, inputs: Tensor, states: Any, training: bool | None = None) -> tuple[Tensor, list[Tensor]]:
        """Z = s(p + b_z); n = tanh(p + b_n), p = W x + U h; h = (s(zeta) (1 - z) + s(nu)) n + z h."""
        h = states[0]
        p = tf.matmul(inputs, self.kernel) + tf.matmul(h, self.recurrent_kernel)
        z, n = tf.sigmoid(p + self.bias[0]), tf.tanh(p + self.bias[1])
        zeta, nu = tf.sigmoid(self.scales[0]), tf.sigmoid(self.scales[1])
        h = (zeta * (1.0 - z) + nu) * n + z * h
        return h, [h]

    def get_config(self) -> dict[str, Any]:
        """What makes the cell again."""
        return {**super().get_config(), "units": self.units}


def _start_scales(shape: Any, dtype: Any = None) -> Tensor:
    return tf.constant([1.0, -4.0], dtype=dtype or tf.float32)


class FastGRNN(RecurrentCell):
    """FastGRNN with full-rank matrices: a quarter of an LSTM's recurrent weights."""

    def layer(
        self, units: int, *, return_sequences: bool = False, go_backwards: bool = False, name: str | None = None
    ) -> Any:
        """The cell in keras.layers.RNN."""
        return keras.layers.RNN(
            FastGRNNCell(units), return_sequences=return_sequences, go_backwards=go_backwards, name=name
        )

    def project(self, weights: Arrays, x: Tensor) -> Tensor:
        """W x + b_z; the step adds what the candidate's bias differs by."""
        return projection(x, weights[0], weights[2][0])

    def step(self, weights: Arrays, projected: Tensor, state: State) -> State:
        """As the layer's `call`; the two scales are constants by now: s(zeta) (1 - z) + s(nu) = high - low z."""
        (h,) = state
        _, kernel, bias, scales = weights
        low, nu = 1.0 / (1.0 + np.exp(-np.asarray(scales)))
        p = recurrent(h, kernel) + projected
        z, n = tf.sigmoid(p), tf.tanh(p + (bias[1] - bias[0]))
        return ((float(low + nu) - float(low) * z) * n + z * h,)
