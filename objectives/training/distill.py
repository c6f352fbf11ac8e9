"""The loss a candidate is trained on: its labels, a teacher's soft targets, and hints from inside the teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from objectives.training.accelerator import mean_over_replicas
from spaces.backend import keras, tf
from spaces.errors import CandidateError
from spaces.genotype import Training
from spaces.signature import Signature

if TYPE_CHECKING:
    from objectives.data import Dataset, Split

Array = NDArray[Any]

Loss = Callable[..., Any]
"""(labels, outputs, and of a distilled candidate the teacher's outputs and perhaps states) of a batch -> scalar."""

SPREAD = 1e-6  # a unit of the teacher that varies less than this says nothing


@dataclass(frozen=True)
class Lesson:
    """What a teacher says of the training part's sequences, and then of the `unlabelled` ones, row by row.

    logits: float32 [rows, (time,) outputs], or normalised values for regression. hidden: [rows, (time,) width] of what
    enters its head (`normalised`); None where nobody takes hints.
    """

    logits: Array
    hidden: Array | None = None
    unlabelled: Split | None = None


def loss_of(kind: str, *, alpha: float = 0.0, temperature: float = 2.0, hints: float = 0.0) -> Loss:
    """The mean loss over a batch, or its steps: (1 - alpha) times the labels', alpha times the teacher's, and hints.

    Classification and tagging, on logits [batch, (time,) classes]: cross-entropy with the labels, and
    T^2 KL(teacher at T || student at T) (Hinton, Vinyals, Dean 2015, arXiv 1503.02531). Regression, on normalised
    values [batch, outputs]: both are mean squared errors. With `hints`, outputs are a pair, logits and what `hinted`
    makes of the states, and that weight times its mean squared error to the teacher's states is added (FitNets: Romero
    et al. 2015, arXiv 1412.6550). Steps labelled -1 are padding and count nowhere; where there is no label (another
    number below 0, or NaN) the labels' share is 0.
    """
    hard = _value_error if kind == "regression" else _cross_entropy

    def plain(y: Any, output: Any, *_: Any) -> Any:
        return _mean(hard(y, output), kind, y)

    def distilled(y: Any, output: Any, teacher: Any) -> Any:
        soft = _squared(teacher, output) if kind == "regression" else _divergence(teacher, output, temperature)
        return _mean((1.0 - alpha) * hard(y, output) + alpha * soft, kind, y)

    def with_hints(y: Any, outputs: Any, teacher: Any, hidden: Any) -> Any:
        output, projected = outputs
        each = _squared(tf.cast(hidden, projected.dtype), projected)
        return distilled(y, output, teacher) + hints * _mean(each, kind, y)

    return with_hints if alpha and hints else distilled if alpha else plain


def columns_of(dataset: Dataset, training: Training, lesson: Lesson | None) -> tuple[Array, ...]:
    """What a training step takes rows of: x and targets, where distilled the teacher's outputs, with hints its states.

    Unlabelled sequences follow the labelled ones. Raises CandidateError where the lesson does not fit.
    """
    x, y = dataset.train.x, dataset.train.y
    if not training.distillation:
        return x, targets_of(dataset.signature, y)
    if lesson and lesson.unlabelled:
        x, y = np.concatenate([x, lesson.unlabelled.x]), np.concatenate([y, lesson.unlabelled.y])
    y = targets_of(dataset.signature, y)
    shape = (*y.shape, dataset.signature.outputs) if y.dtype == np.int32 else y.shape
    if lesson is None or lesson.logits.shape != shape:
        got = "none" if lesson is None else f"{lesson.logits.shape}"
        raise CandidateError("train", f"distillation {training.distillation} needs teacher outputs {shape}, got {got}")
    columns = (x, y, lesson.logits.astype(np.float32))
    if not training.hints:
        return columns
    if lesson.hidden is None or lesson.hidden.shape[:-1] != shape[:-1]:
        got = "none" if lesson.hidden is None else f"{lesson.hidden.shape}"
        wanted = f"({', '.join(map(str, shape[:-1]))}, width)"
        raise CandidateError("train", f"hints {training.hints} need the teacher's states {wanted}, got {got}")
    return (*columns, lesson.hidden)


def targets_of(signature: Signature, y: Array) -> Array:
    """Labels as the loss takes them: int32, or values normalised by those of the training part."""
    if signature.kind != "regression":
        return y.astype(np.int32)
    normal: Array = (y - np.array(signature.target_mean or 0.0)) / np.array(signature.target_std or 1.0)
    return normal.astype(np.float32)


def hinted(model: Any, training: Training, lesson: Lesson | None) -> Any:
    """The model as it is trained: with hints, one that also gives its states, projected to the teacher's width.

    It shares the layers of `model`, which stays as it is: the projection ("hint") is learned beside it and forgotten.
    """
    if not (training.hints and training.distillation and lesson and lesson.hidden is not None):
        return model
    projection = keras.layers.Dense(lesson.hidden.shape[-1], name="hint")
    return keras.Model(model.input, [model.output, projection(model.get_layer("head").input)])


def teacher_logits(model: Any, x: NDArray[Any], batch_size: int = 256) -> NDArray[np.float32]:
    """What `model` gives for every row of `x`, in its order: logits, or normalised values for regression."""
    return outputs_of(model, batch_size)(x)


def hidden_states(model: Any, x: Array, batch_size: int = 256) -> NDArray[np.float32]:
    """What enters the head of a model from `build`, for every row of `x`: [rows, (time,) width]."""
    return outputs_of(keras.Model(model.input, model.get_layer("head").input), batch_size)(x)


def normalised(hidden: Array) -> NDArray[np.float16]:
    """States, each unit with mean 0 and deviation 1, so that a hint's weight means the same for every teacher.

    In half precision, for those of every step of every sequence are many.
    """
    axes = tuple(range(hidden.ndim - 1))
    std = hidden.std(axis=axes)
    return np.asarray((hidden - hidden.mean(axis=axes)) / np.where(std < SPREAD, 1.0, std), np.float16)


def mean_of(kind: str, outputs: Sequence[Array]) -> Array:
    """The outputs of several teachers as those of one: log of the mean probability, or the mean value."""
    if len(outputs) == 1:
        return outputs[0]
    if kind == "regression":
        return np.asarray(np.mean(outputs, axis=0), np.float32)
    logs = [logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True) for logits in outputs]
    return np.asarray(np.logaddexp.reduce(logs, axis=0) - np.log(len(logs)), np.float32)


Outputs = Callable[[NDArray[Any]], NDArray[np.float32]]


def outputs_of(model: Any, batch_size: int = 256) -> Outputs:
    """A function of raw x [N, time(, features)] that gives the model's outputs; one trace serves every N."""
    shape = tf.TensorSpec([None, *model.inputs[0].shape[1:]], model.inputs[0].dtype)
    strategy = model.distribute_strategy  # a TPU's weights can be read only where they are, so each device answers all

    @tf.function(input_signature=[shape], autograph=False)
    def forward(batch: Any) -> Any:
        answers = strategy.run(lambda x: model(x, training=False), (batch,))
        return strategy.experimental_local_results(answers)[0]

    def outputs(x: NDArray[Any]) -> NDArray[np.float32]:
        starts = range(0, len(x), batch_size)
        return np.concatenate([forward(tf.constant(x[at : at + batch_size])).numpy() for at in starts])

    return outputs


def _mean(each: Any, kind: str, y: Any) -> Any:
    if kind != "tagging":
        return tf.reduce_mean(each)
    counted = tf.cast(y != -1, each.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(each * counted), mean_over_replicas(tf.reduce_sum(counted)))


def _cross_entropy(y: Any, logits: Any) -> Any:
    each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.maximum(y, 0), logits=logits)
    return each * tf.cast(y >= 0, each.dtype)


def _value_error(y: Any, values: Any) -> Any:
    return _squared(tf.where(tf.math.is_nan(y), values, y), values)  # no error, and no gradient, without a target


def _divergence(teacher: Any, logits: Any, temperature: float) -> Any:
    told, said = tf.nn.log_softmax(teacher / temperature), tf.nn.log_softmax(logits / temperature)
    return temperature**2 * tf.reduce_sum(tf.exp(told) * (told - said), axis=-1)


def _squared(wanted: Any, values: Any) -> Any:
    return tf.reduce_mean(tf.square(wanted - values), axis=-1)
