"""Training one candidate: Adam on a cosine schedule, the best epoch on the validation part kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from objectives.bench import TrainingSpec
from objectives.task import TASKS
from objectives.training.distill import Loss, loss_of, outputs_of
from objectives.training.prune import Sparsity, sparsify
from spaces.backend import keras, tf
from spaces.errors import CandidateError
from spaces.genotype import Training
from spaces.signature import Signature

if TYPE_CHECKING:
    from objectives.data import Dataset

Array = NDArray[Any]

LEARNED = 0.95
"""The share of a constant predictor's loss that validation must come under before patience counts: recurrent models lie
flat at chance for epochs, and then learn."""


def fit(
    model: Any,
    dataset: Dataset,
    training: Training,
    spec: TrainingSpec,
    *,
    seed: int,
    teacher_logits: Array | None = None,
    emit: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train `model` in place and leave it with the weights of its best epoch by validation loss; tell how it went.

    The same seed on the same machine with as many threads gives the same weights. `teacher_logits`: the teacher's
    outputs for `dataset.train.x`, row by row, used where `training.distillation` is not 0. Raises CandidateError where
    the loss is no longer a number. Returns epochs_run, best_epoch (from 1), its loss, validation_loss and
    validation_metric, metric, realised_sparsity, sparsity_by_matrix, train_s, first_epoch_s (tracing included), epoch_s
    (median of the others).
    """
    keras.utils.set_random_seed(seed)
    started = time.perf_counter()
    signature, size = dataset.signature, min(spec.batch_size, len(dataset.train.x))
    steps = -(-len(dataset.train.x) // size)
    loss = loss_of(signature.kind, alpha=training.distillation, temperature=spec.temperature)
    sparsity = sparsify(model, training.sparsity, steps * spec.epochs)
    columns = _columns(dataset, training, teacher_logits)
    train = _epoch(model, columns, loss, sparsity, _optimizer(model, training, spec, steps))
    validate = _validation(model, dataset)
    best = _Best(model, LEARNED * _chance(signature, columns[1]), spec.patience)
    rng, seconds = np.random.default_rng(seed), []
    for epoch in range(1, spec.epochs + 1):
        # The last batch is filled up from the epoch's start: one shape, so one trace, and no sequence is left out.
        order = np.resize(rng.permutation(len(dataset.train.x)), (steps, size)).astype(np.int32)
        began = time.perf_counter()
        told = {"loss": float(train(tf.constant(order))), **validate()}
        seconds.append(time.perf_counter() - began)
        _refuse_nan(epoch, told, training, spec)
        if emit:
            emit({"event": "epoch", "epoch": epoch, "of": spec.epochs, "metric": told["validation_metric"], **told})
        if sparsity.settled and best.enough(epoch, told):
            break
    best.restore()
    return {
        **best.told,
        "best_epoch": best.epoch,
        "epochs_run": len(seconds),
        "metric": TASKS[signature.kind].metric,
        "realised_sparsity": sparsity.realised(),
        "sparsity_by_matrix": sparsity.by_matrix(),
        "first_epoch_s": seconds[0],
        "epoch_s": float(np.median(seconds[1:] or seconds)),
        "train_s": time.perf_counter() - started,
    }


class _Best:
    """The weights of the best epoch so far, and whether it is time to stop."""

    def __init__(self, model: Any, learned: float, patience: int) -> None:
        self._variables = model.variables
        self._learned, self._patience = learned, patience
        self.told: dict[str, float] = {}
        self.epoch = 0

    def enough(self, epoch: int, told: dict[str, float]) -> bool:
        """Take note of an epoch; whether `patience` of them have passed since the best, once anything was learned."""
        if not self.told or told["validation_loss"] < self.told["validation_loss"]:
            self.epoch, self.told = epoch, told
            self._weights = [variable.numpy() for variable in self._variables]
        return epoch - self.epoch >= self._patience and self.told["validation_loss"] < self._learned

    def restore(self) -> None:
        for variable, value in zip(self._variables, self._weights, strict=True):
            variable.assign(value)


def _optimizer(model: Any, training: Training, spec: TrainingSpec, steps: int) -> Any:
    schedule = keras.optimizers.schedules.CosineDecay(training.learning_rate, steps * spec.epochs, alpha=0.01)
    optimizer = keras.optimizers.Adam(schedule, clipnorm=spec.clipnorm)
    optimizer.build(model.trainable_variables)
    return optimizer


def _epoch(
    model: Any, columns: tuple[Array, ...], loss: Loss, sparsity: Sparsity, optimizer: Any
) -> Callable[[Any], Any]:
    """A whole epoch as one graph: row numbers [steps, batch] -> the mean training loss.

    Not compiled with XLA: on a CPU it makes a loop over time a hundred times slower, and our scans no faster for the
    five seconds that compiling them takes.
    """
    weights = model.trainable_variables

    @tf.function
    def step(x: Any, y: Any, teacher: Any) -> Any:
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True), teacher)
        optimizer.apply_gradients(zip(tape.gradient(value, weights), weights, strict=True))
        return value

    data = [tf.constant(column) for column in columns]

    @tf.function
    def epoch(order: Any) -> Any:
        total = 0.0
        for rows in order:
            total += step(*(tf.gather(column, rows) for column in data))
            sparsity.after_step()
        return total / tf.cast(tf.shape(order)[0], tf.float32)

    return epoch  # type: ignore[no-any-return]


def _columns(dataset: Dataset, training: Training, teacher: Array | None) -> tuple[Array, ...]:
    """Inputs, targets and the teacher's outputs of the training part; without a teacher the last stands unused."""
    x, y = dataset.train.x, _targets(dataset.signature, dataset.train.y)
    if not training.distillation:
        return x, y, np.zeros(len(x), np.float32)
    shape = (*y.shape, dataset.signature.outputs) if y.dtype == np.int32 else y.shape
    if teacher is None or teacher.shape != shape:
        got = "none" if teacher is None else f"{teacher.shape}"
        raise CandidateError("train", f"distillation {training.distillation} needs teacher outputs {shape}, got {got}")
    return x, y, teacher.astype(np.float32)


def _targets(signature: Signature, y: Array) -> Array:
    if signature.kind != "regression":
        return y.astype(np.int32)
    normalised: Array = (y - np.array(signature.target_mean or 0.0)) / np.array(signature.target_std or 1.0)
    return normalised.astype(np.float32)


def _validation(model: Any, dataset: Dataset) -> Callable[[], dict[str, float]]:
    """The loss on labels alone and the task's metric, both of the validation part."""
    signature, (x, y) = dataset.signature, (dataset.validation.x, dataset.validation.y)
    loss, outputs, targets = loss_of(signature.kind), outputs_of(model), _targets(signature, y)

    def validate() -> dict[str, float]:
        output = outputs(x)
        score = TASKS[signature.kind].score(y, _served(signature, output))
        return {"validation_loss": float(loss(targets, output, None)), "validation_metric": score}

    return validate


def _served(signature: Signature, output: Array) -> Array:
    """What the deployed model would give: probabilities, or values in raw units."""
    if signature.kind == "regression":
        return np.asarray(output * np.array(signature.target_std or 1.0) + np.array(signature.target_mean or 0.0))
    exponential = np.exp(output - output.max(axis=-1, keepdims=True))
    return np.asarray(exponential / exponential.sum(axis=-1, keepdims=True))


def _chance(signature: Signature, targets: Array) -> float:
    """The loss of the best constant prediction: the labels' entropy in nats, or the targets' variance."""
    if signature.kind == "regression":
        return float(np.mean(np.var(targets, axis=0)))
    counts = np.unique(targets[targets >= 0], return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-np.sum(shares * np.log(shares)))


def _refuse_nan(epoch: int, told: dict[str, float], training: Training, spec: TrainingSpec) -> None:
    for name in ("loss", "validation_loss"):
        if not np.isfinite(told[name]):
            raise CandidateError(
                "train",
                f"the {name.replace('_', ' ')} became {told[name]} at epoch {epoch}; lower learning_rate (it is "
                f"{training.learning_rate}) or clipnorm (it is {spec.clipnorm}), or look for extreme data values",
            )
