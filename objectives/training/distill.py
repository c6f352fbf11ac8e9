"""The loss a candidate is trained on: its labels, and the soft targets of a teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces.backend import tf

Loss = Callable[[Any, Any, Any], Any]
"""(labels, outputs, teacher's outputs) of a batch -> scalar; the third is ignored where the teacher has no share."""


def loss_of(kind: str, *, alpha: float = 0.0, temperature: float = 2.0) -> Loss:
    """The mean loss over a batch, or its labelled steps: (1 - alpha) times the labels', alpha times the teacher's.

    Classification and tagging, on logits [batch, (time,) classes]: cross-entropy with the labels, and
    T^2 KL(teacher at T || student at T) (Hinton, Vinyals, Dean 2015, arXiv 1503.02531). Regression, on normalised
    values [batch, outputs]: both are mean squared errors. Steps labelled -1 are padding and count nowhere.
    """
    hard = _squared if kind == "regression" else _cross_entropy

    def plain(y: Any, output: Any, teacher: Any) -> Any:
        return _mean(hard(y, output), kind, y)

    def distilled(y: Any, output: Any, teacher: Any) -> Any:
        soft = _squared(teacher, output) if kind == "regression" else _divergence(teacher, output, temperature)
        return _mean((1.0 - alpha) * hard(y, output) + alpha * soft, kind, y)

    return distilled if alpha else plain


def teacher_logits(model: Any, x: NDArray[Any], batch_size: int = 256) -> NDArray[np.float32]:
    """What `model` gives for every row of `x`, in its order: logits, or normalised values for regression."""
    return outputs_of(model, batch_size)(x)


def outputs_of(model: Any, batch_size: int = 256) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """A function of raw x [N, time(, features)] that gives the model's outputs; one trace serves every N."""
    shape = tf.TensorSpec([None, *model.inputs[0].shape[1:]], model.inputs[0].dtype)
    forward = tf.function(lambda batch: model(batch, training=False), input_signature=[shape])

    def outputs(x: NDArray[Any]) -> NDArray[np.float32]:
        starts = range(0, len(x), batch_size)
        return np.concatenate([forward(tf.constant(x[at : at + batch_size])).numpy() for at in starts])

    return outputs


def _mean(each: Any, kind: str, y: Any) -> Any:
    if kind != "tagging":
        return tf.reduce_mean(each)
    labelled = tf.cast(y >= 0, each.dtype)
    return tf.reduce_sum(each * labelled) / tf.maximum(tf.reduce_sum(labelled), 1.0)


def _cross_entropy(y: Any, logits: Any) -> Any:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.maximum(y, 0), logits=logits)


def _divergence(teacher: Any, logits: Any, temperature: float) -> Any:
    told, said = tf.nn.log_softmax(teacher / temperature), tf.nn.log_softmax(logits / temperature)
    return temperature**2 * tf.reduce_sum(tf.exp(told) * (told - said), axis=-1)


def _squared(wanted: Any, values: Any) -> Any:
    return tf.reduce_mean(tf.square(wanted - values), axis=-1)
