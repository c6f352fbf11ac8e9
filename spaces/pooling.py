"""Attention pooling: a readout that learns which steps of a sequence to listen to."""

from __future__ import annotations

from typing import Any

from spaces.backend import keras, tf
from spaces.cells.products import dense
from spaces.scan import Tensor


def pooled(x: Tensor, score: Any, mask: Tensor) -> Tensor:
    """The mean over time of x [batch, time, width], weighted by the softmax of x @ score [width, 1]; -> [batch, width].

    `mask` is None or [batch, time, 1], 1.0 where a step counts: the others weigh nothing.
    """
    scores = tf.reshape(dense(x, score), [-1, 1, x.shape[1]])  # softmax over the last axis, and no transposition
    if mask is not None:
        scores += (tf.reshape(mask, [-1, 1, x.shape[1]]) - 1.0) * 1e9
    return tf.matmul(tf.nn.softmax(scores), x)[:, 0]


@keras.saving.register_keras_serializable(package="brisk")
class AttentionPooling(keras.layers.Layer):  # type: ignore[misc]
    """`pooled` as a layer, with `score` [width, 1] as its weight; a query that is learned, as in Yang 2016
    ("Hierarchical Attention Networks"), without the layer before it.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Make the weight; of zeros, so that it starts as the mean."""
        self.score = self.add_weight(name="score", shape=(input_shape[-1], 1), initializer="zeros")
        self.built = True

    def call(self, inputs: Tensor, mask: Tensor = None) -> Tensor:
        """[batch, time, width] -> [batch, width]."""
        return pooled(inputs, self.score, None if mask is None else tf.cast(mask, inputs.dtype)[:, :, None])

    def compute_mask(self, inputs: Tensor, mask: Tensor = None) -> None:
        """None: no steps are left to mark."""
