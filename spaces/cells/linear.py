"""Cells whose state is linear in itself, so that training and serving scan all steps at once: QRNN and minGRU."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from spaces.backend import keras, tf
from spaces.cells.cell import Arrays, LinearCell, backwards, projection
from spaces.scan import Tensor


class LinearLayer(keras.layers.Layer):  # type: ignore[misc]
    """A linear cell as a Keras layer: one kernel [window x features, gates x units] and one bias [gates x units].

    `call` is a parallel scan of static length, which XLA compiles well (a tf.while_loop it does not). The attributes
    are those that Bidirectional asks of any RNN.
    """

    cell: ClassVar[LinearCell]
    window: ClassVar[int] = 1
    gates: ClassVar[int]

    def __init__(self, units: int, return_sequences: bool = False, go_backwards: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.return_sequences = return_sequences
        self.go_backwards = go_backwards
        self.return_state = self.stateful = False
        self.supports_masking = True
        self.input_spec = [keras.layers.InputSpec(ndim=3)]

    def build(self, input_shape: Any) -> None:
        """Make the weights; raises ValueError where time is not static."""
        if input_shape[1] is None:
            raise ValueError(
                f"{self.name} scans over time, so it needs a static number of steps, but got {input_shape}"
            )
        width = self.gates * self.units
        self.kernel = self.add_weight(name="kernel", shape=(self.window * input_shape[-1], width))
        self.bias = self.add_weight(name="bias", shape=(width,), initializer="zeros")
        self.built = True

    def call(self, inputs: Tensor, mask: Tensor = None) -> Tensor:
        """[batch, time, features] -> [batch, units] or, in the order worked, [batch, time, units]."""
        mask = None if mask is None else tf.cast(mask, inputs.dtype)[:, :, None]
        if self.go_backwards:
            inputs, mask = backwards(inputs), backwards(mask)
        return self.cell.run([self.kernel, self.bias], inputs, mask, return_sequences=self.return_sequences)

    def compute_mask(self, inputs: Tensor, mask: Tensor = None) -> Tensor:
        """The mask goes on where there are steps for it to mark."""
        return mask if self.return_sequences else None

    def compute_output_shape(self, input_shape: Any) -> Any:
        """[batch, time, units] or [batch, units]."""
        shape = tf.TensorShape(input_shape).as_list()
        return tf.TensorShape([*shape[: 2 if self.return_sequences else 1], self.units])

    def get_config(self) -> dict[str, Any]:
        """What makes the layer again."""
        own = {name: getattr(self, name) for name in ("units", "return_sequences", "go_backwards")}
        return {**super().get_config(), **own}


class MinGRU(LinearCell):
    """minGRU (Feng 2024, arXiv 2410.01201): z = s(W_z x + b_z), n = W_n x + b_n, h = (1 - z) h + z n.

    Weights kernel [features, 2 units] (z, n) and bias [2 units]. The bias of z starts spread over -3 .. 1, which gives
    the channels a range of time constants. The candidate is linear, as in the paper's plain form: it trained better on
    digits than with tanh or with the positive g of the paper's log form, and is one operation less.
    """

    def layer(
        self, units: int, *, return_sequences: bool = False, go_backwards: bool = False, name: str | None = None
    ) -> Any:
        """A `MinGRULayer`."""
        return MinGRULayer(units, return_sequences, go_backwards, name=name)

    def initialise(self, weights: list[np.ndarray]) -> list[np.ndarray]:
        """Spread the bias of z."""
        kernel, bias = weights
        units = len(bias) // 2
        return [kernel, np.concatenate([np.linspace(-3.0, 1.0, units, dtype=np.float32), bias[units:]])]

    def coefficients(self, weights: Arrays, x: Tensor) -> tuple[Tensor, Tensor]:
        """A = 1 - z, b = z n."""
        z, n = tf.split(projection(x, weights[0], weights[1]), 2, axis=2)
        z = tf.sigmoid(z)
        return 1.0 - z, z * n


class QRNN(LinearCell):
    """QRNN with fo-pooling over a window of two steps (Bradbury 2017, arXiv 1611.01576).

    z = tanh(.), f, o = s(.) of W [x_(t-1), x_t] + b; c = f c + (1 - f) z; h = o c. Weights kernel [2 features, 3 units]
    (z, f, o) and bias [3 units], that of f started at 1. The window is a concatenation of frames, not a convolution, so
    that the whole projection stays one matrix product; before the first step it sees zeros.
    """

    def layer(
        self, units: int, *, return_sequences: bool = False, go_backwards: bool = False, name: str | None = None
    ) -> Any:
        """A `QRNNLayer`."""
        return QRNNLayer(units, return_sequences, go_backwards, name=name)

    def initialise(self, weights: list[np.ndarray]) -> list[np.ndarray]:
        """The bias of f starts at 1."""
        kernel, bias = weights
        units = len(bias) // 3
        return [kernel, np.concatenate([bias[:units], np.ones(units, np.float32), bias[2 * units :]])]

    def inputs(self, x: Tensor) -> Tensor:
        """[batch, time, 2 features]: the step before and the step itself."""
        return tf.concat([tf.pad(x[:, :-1], [[0, 0], [1, 0], [0, 0]]), x], axis=2)

    def coefficients(self, weights: Arrays, x: Tensor) -> tuple[Tensor, Tensor]:
        """A = f, b = (1 - f) z."""
        width = weights[1].shape[0] // 3 * 2
        z, f = tf.split(projection(x, weights[0][:, :width], weights[1][:width]), 2, axis=2)
        f = tf.sigmoid(f)
        return f, (1.0 - f) * tf.tanh(z)

    def gate(self, weights: Arrays, x: Tensor) -> Tensor:
        """o; a product of its own, so that where only the last state is read only the last row is computed."""
        width = weights[1].shape[0] // 3 * 2
        return tf.sigmoid(projection(x, weights[0][:, width:], weights[1][width:]))


@keras.saving.register_keras_serializable(package="brisk", name="MinGRU")
class MinGRULayer(LinearLayer):
    """The layer that trains a minGRU."""

    cell = MinGRU()
    gates = 2


@keras.saving.register_keras_serializable(package="brisk", name="QRNN")
class QRNNLayer(LinearLayer):
    """The layer that trains a QRNN."""

    cell = QRNN()
    window = 2
    gates = 3
