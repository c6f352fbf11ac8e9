"""Training one candidate: Adam on a cosine schedule, the best epoch on the validation part kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from objectives.bench import TrainingSpec
from objectives.task import TASKS
from objectives.training.accelerator import compiled
from objectives.training.distill import Lesson, Loss, Outputs, columns_of, hinted, loss_of, outputs_of, targets_of
from objectives.training.narrow import rounding
from objectives.training.prune import Sparsity, held, sparsify
from objectives.training.rungs import Rungs, packed
from spaces.backend import keras, seed_initializers, tf
from spaces.build import recurrent
from spaces.errors import CandidateError
from spaces.genotype import Training
from spaces.signature import Signature

if TYPE_CHECKING:
    from objectives.data import Dataset

Array = NDArray[Any]
Validate = Callable[[], dict[str, float]]

LEARNED = 0.95
"""The share of a constant predictor's loss that validation must come under before patience counts: recurrent models lie
flat at chance for epochs, and then learn."""

PRUNED, QAT = (1.0, 0.5), (0.3, 0.3)
"""The shares of the learning rate and of the epochs with which training goes on after units were cut out, and when
weights are rounded.
"""


def fit(
    model: Any,
    dataset: Dataset,
    training: Training,
    spec: TrainingSpec,
    *,
    seed: int,
    lesson: Lesson | None = None,
    quantize_head: bool = False,
    emit: Callable[[dict[str, Any]], None] | None = None,
    rungs: Rungs | None = None,
    graphs: Graphs | None = None,
    outputs: Outputs | None = None,
) -> dict[str, Any]:
    """Train `model` in place and leave it with the weights of its best epoch by validation loss; tell how it went.

    Every batch is shared out among the devices of the strategy that the model was made under; one that they cannot
    share evenly is rounded up. Layers that look at a whole batch (batch norm) then see a device's share of it.
    A training that goes on (`Training.before`) takes the model as it comes, and less time. The same seed on the same
    machine with as many threads gives the same weights. `lesson`: what a teacher says, used where
    `training.distillation` is not 0; its unlabelled sequences are then part of every epoch. At its `rungs` a training
    is kept and may be stopped; it is taken up at the last one that an earlier try came to. `graphs`: those of
    earlier trainings of this very model, if it draws no random numbers; `outputs`: its `outputs_of`, where there is
    one. Raises CandidateError where the loss is no longer a number, Stopped where a rung ended it. Returns
    epochs_run, best_epoch (from 1), its loss, validation_loss and validation_metric, metric, learned (the
    validation error at each rung), realised_sparsity, sparsity_by_matrix, train_s, first_epoch_s (tracing
    included), epoch_s (median of the others), sequences_per_s (of such an epoch), replicas, and `graph`, how it
    ran: "plain", "xla", or "plain, for XLA cannot compile it: ...".
    """
    training, spec = shorter(training, spec)
    started = time.perf_counter()
    signature, columns = dataset.signature, columns_of(dataset, training, lesson)
    replicas = model.distribute_strategy.num_replicas_in_sync
    rows = len(columns[0])
    size = -(-min(spec.batch_size, rows) // replicas) * replicas
    steps = -(-rows // size)
    if training.before is not None or training.sparsity or training.distillation:
        graphs = None
    traced = graphs.again(dataset, spec, training.learning_rate) if graphs else None
    if traced is None:
        if any(isinstance(layer, keras.layers.Dropout) for layer in model.submodules):
            keras.utils.set_random_seed(seed)  # what was compiled of other models is lost with that
        else:
            seed_initializers(seed)
        validate = _validation(outputs or outputs_of(model), dataset)
        traced = _traced(model, dataset, columns, training, spec, steps, lesson, validate, quantize_head=quantize_head)
        if graphs:
            graphs.keep(dataset, spec, traced)
    best = _Best(model, LEARNED * _chance(signature, targets_of(signature, dataset.train.y)), spec.patience)
    begun = rungs.taken_up(lambda: traced.variables) if rungs else {}
    seconds: list[float] = begun.get("seconds", [])
    if rungs and begun:
        best.take_up(begun)
        rungs.asked_again(begun["epoch"], _left_s(begun["epoch"], spec, seconds))
    rng = np.random.default_rng(seed)
    for epoch in range(1, spec.epochs + 1):
        # The last batch is filled up from the epoch's start: one shape, so one trace, and no sequence is left out.
        order = np.resize(rng.permutation(rows), (steps, size)).astype(np.int32)
        if epoch <= begun.get("epoch", 0):
            continue
        began = time.perf_counter()
        told = {"loss": float(traced.epoch(tf.constant(order))), **traced.validate()}
        seconds.append(time.perf_counter() - began)
        _refuse_nan(epoch, told, training, spec)
        if emit:
            work = {"sequences": rows, "seconds": seconds[-1]}
            shown = {**told, **work, "metric": told["validation_metric"]}
            emit({"event": "epoch", "epoch": epoch, "of": spec.epochs, **shown})
        if traced.sparsity.settled and best.enough(epoch, told):
            break
        if rungs:
            left_s = _left_s(epoch, spec, seconds)
            rungs.reached(
                epoch, best.told or told, left_s, lambda: (packed(traced.variables, best.weights), best.notes(seconds))
            )
    best.restore()
    epoch_s = _epoch_s(seconds)
    return {
        **best.told,
        "best_epoch": best.epoch,
        "learned": rungs.learned if rungs else [],
        "epochs_run": len(seconds),
        "metric": TASKS[signature.kind].metric,
        "realised_sparsity": traced.sparsity.realised(),
        "sparsity_by_matrix": traced.sparsity.by_matrix(),
        "first_epoch_s": seconds[0],
        "epoch_s": epoch_s,
        "sequences_per_s": rows / epoch_s,
        "replicas": replicas,
        "graph": traced.epoch.graph,
        "train_s": time.perf_counter() - started,
    }


@dataclass(frozen=True)
class _Traced:
    """What a training of one model is traced to; the graphs read the learning rate that it begins with."""

    variables: list[Any]  # all that it changes
    sparsity: Sparsity
    optimizer: Any
    rate: Any
    epoch: _Epoch
    validate: Validate


def _traced(
    model: Any,
    dataset: Dataset,
    columns: tuple[Array, ...],
    training: Training,
    spec: TrainingSpec,
    steps: int,
    lesson: Lesson | None,
    validate: Validate,
    *,
    quantize_head: bool,
) -> _Traced:
    kind, going_on = dataset.signature.kind, training.before is not None
    loss = loss_of(kind, alpha=training.distillation, temperature=spec.temperature, hints=training.hints)
    with model.distribute_strategy.scope():
        narrow = rounding(model, training.qat, head=quantize_head)
        if going_on and training.sparsity:
            sparsity = held(model, narrow.moved)
        else:
            sparsity = sparsify(model, training.sparsity, steps * spec.epochs, training.block)
        pupil = hinted(model, training, lesson)
        moved = narrow.moved(pupil.trainable_variables)
        rate = tf.Variable(training.learning_rate, trainable=False)
        optimizer = _optimizer(moved, rate, spec, steps)
    after_step = (sparsity.after_step, narrow.after_step)
    epoch = _Epoch(pupil, columns, loss, moved, after_step, optimizer, steps * spec.epochs)
    variables = [*pupil.variables, *optimizer.variables, *sparsity.variables, *narrow.variables]
    return _Traced(variables, sparsity, optimizer, rate, epoch, validate)


class Graphs:
    """What trainings of one model are traced to, so that the next one from the same start traces nothing.

    Those that learn from labels alone differ in their learning rate. The weights of the start are put back by whoever
    keeps the model.
    """

    def __init__(self) -> None:
        self._of: tuple[Dataset, TrainingSpec] | None = None
        self._start: list[Array] = []  # of the optimiser's variables
        self.traced: _Traced | None = None

    def again(self, dataset: Dataset, spec: TrainingSpec, learning_rate: float) -> _Traced | None:
        """What was kept, for another training at this rate; None where nothing is, of these data and this budget."""
        if self.traced is None or self._of is None or self._of[0] is not dataset or self._of[1] != spec:
            return None
        self.traced.rate.assign(learning_rate)
        for variable, value in zip(self.traced.optimizer.variables, self._start, strict=True):
            variable.assign(value)
        return self.traced

    def keep(self, dataset: Dataset, spec: TrainingSpec, traced: _Traced) -> None:
        """Take it, before the first step is made."""
        self._of, self.traced = (dataset, spec), traced
        self._start = [variable.numpy() for variable in traced.optimizer.variables]


class _Best:
    """The weights of the best epoch so far, and whether it is time to stop."""

    def __init__(self, model: Any, learned: float, patience: int) -> None:
        self._variables = model.variables
        self._learned, self._patience = learned, patience
        self.told: dict[str, float] = {}
        self.weights: list[Array] = []
        self.epoch = 0

    def enough(self, epoch: int, told: dict[str, float]) -> bool:
        """Take note of an epoch; whether `patience` of them have passed since the best, once anything was learned."""
        if not self.told or told["validation_loss"] < self.told["validation_loss"]:
            self.epoch, self.told = epoch, told
            self.weights = [variable.numpy() for variable in self._variables]
        return epoch - self.epoch >= self._patience and self.told["validation_loss"] < self._learned

    def restore(self) -> None:
        for variable, value in zip(self._variables, self.weights, strict=True):
            variable.assign(value)

    def notes(self, seconds: list[float]) -> dict[str, Any]:
        """What must be kept beside the weights for another process to go on."""
        return {"told": self.told, "best_epoch": self.epoch, "seconds": seconds}

    def take_up(self, begun: dict[str, Any]) -> None:
        """Go on from such notes."""
        self.told, self.epoch, self.weights = begun["told"], begun["best_epoch"], begun["best"]


def shorter(training: Training, spec: TrainingSpec) -> tuple[Training, TrainingSpec]:
    """What is left of rate and epochs for a training that goes on from another; all of them for one that begins."""
    if training.before is None:
        return training, spec
    rate, share = QAT if training.qat else PRUNED
    epochs = math.ceil(spec.epochs * share)
    return replace(training, learning_rate=training.learning_rate * rate), replace(spec, epochs=epochs)


def _epoch_s(seconds: list[float]) -> float:
    """Of an epoch, but for the first, which is traced."""
    return float(np.median(seconds[1:] or seconds))


def _left_s(epoch: int, spec: TrainingSpec, seconds: list[float]) -> float:
    """What the epochs after this one take at most."""
    return (spec.epochs - epoch) * _epoch_s(seconds)


def _optimizer(moved: list[Any], rate: Any, spec: TrainingSpec, steps: int) -> Any:
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps * spec.epochs, alpha=0.01)
    optimizer = _Adam(schedule, clipnorm=spec.clipnorm)
    optimizer.build(moved)
    return optimizer


class _Adam(keras.optimizers.Adam):  # type: ignore[misc]
    """Keras's Adam with an update of one operation in place of some fifteen, for the graph is made for each model."""

    def update_step(self, gradient: Any, variable: Any) -> None:
        """The same update, but for rounding."""
        if isinstance(gradient, tf.IndexedSlices):  # of an embedding
            super().update_step(gradient, variable)
            return
        place, step = self._index_dict[self._var_key(variable)], tf.cast(self.iterations + 1, variable.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[place].handle,
            v=self._velocities[place].handle,
            beta1_power=tf.pow(self.beta_1, step),
            beta2_power=tf.pow(self.beta_2, step),
            lr=tf.cast(self.learning_rate, variable.dtype),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


class _Epoch:
    """A whole epoch as one graph: row numbers [steps, batch] -> the mean training loss.

    `moved` are the variables that the optimiser moves by the gradients of the model's. On one device the step of a
    training of `steps` steps may be compiled, unless time steps in it wait for each other, where XLA gains nothing; one
    that XLA turns out not to know is run as it is.
    """

    def __init__(
        self,
        model: Any,
        columns: tuple[Array, ...],
        loss: Loss,
        moved: list[Any],
        after_step: tuple[Callable[[], None], ...],
        optimizer: Any,
        steps: int,
    ) -> None:
        self._strategy, self._steps, self._after_step = model.distribute_strategy, steps, after_step
        self._recurrent = recurrent(model)
        self._data = _constants(columns)
        self._run: Callable[[Any], Any] | None = None
        self.graph = "plain"
        weights, replicas = model.trainable_variables, self._strategy.num_replicas_in_sync

        def step(x: Any, y: Any, *taught: Any) -> Any:
            with tf.GradientTape() as tape:
                value = loss(y, model(x, training=True), *taught)
                mine = value / replicas  # the replicas' gradients are summed
            optimizer.apply_gradients(zip(tape.gradient(mine, weights), moved, strict=True))
            return value

        self._step = step

    def __call__(self, order: Any) -> Any:
        if self._run is None:
            return self._first(order)
        return self._run(order)

    def _first(self, order: Any) -> Any:
        """Choose how epochs are run, and run one."""
        several = self._strategy.num_replicas_in_sync > 1  # gradients cannot be summed within a graph of its own
        batch = [tf.TensorSpec([order.shape[1], *column.shape[1:]], column.dtype) for column in self._data]
        alone = not several and not self._recurrent
        if alone and (fast := compiled(tf.function(self._step, autograph=False), batch, self._steps)):
            self.graph, self._run = "xla", self._over(fast)
            try:
                return self._run(order)
            except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, tf.errors.InternalError) as error:
                self.graph = f"plain, for XLA cannot compile it: {str(error).strip().splitlines()[0][:200]}"
        self._run = self._over(self._step)
        return self._run(order)

    def _over(self, step: Callable[..., Any]) -> Callable[[Any], Any]:
        """The graph of an epoch of such steps, each replica taking its share of a batch."""
        strategy = self._strategy

        def work(rows: Any) -> Any:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            mine = tf.reshape(rows, [strategy.num_replicas_in_sync, -1])[replica]
            return step(*(tf.gather(column, mine) for column in self._data))

        def turn(place: Any, total: Any, order: Any) -> Any:
            loss = strategy.reduce("MEAN", strategy.run(work, (order[place],)), axis=None)
            with strategy.scope():
                for settle in self._after_step:
                    settle()
            return place + 1, total + loss, order

        def epoch(order: Any) -> Any:
            steps = tf.shape(order)[0]
            _, total, _ = tf.while_loop(lambda place, *_: place < steps, turn, (0, 0.0, order), parallel_iterations=1)
            return total / tf.cast(steps, tf.float32)

        return tf.function(epoch, autograph=False)  # type: ignore[no-any-return]


TAKEN = 8  # columns: those of two trainings, one of them distilled, with hints
_TAKEN: list[tuple[Array, Any]] = []  # what was made a constant for the last trainings, the newest first


def _constants(columns: tuple[Array, ...]) -> list[Any]:
    """The columns as tensors; trainings on the same sequences share those, for they may be large, and a model that is
    kept keeps its own.
    """
    found = [next((one for one in _TAKEN if _same(one[0], column)), None) for column in columns]
    mine = [one or (column, tf.constant(column)) for one, column in zip(found, columns, strict=True)]
    _TAKEN[:] = [*mine, *(one for one in _TAKEN if not any(one[1] is tensor for _, tensor in mine))][:TAKEN]
    return [tensor for _, tensor in mine]


def _same(one: Array, other: Array) -> bool:
    return one is other or (one.dtype == other.dtype and np.array_equal(one, other))


def _validation(outputs: Outputs, dataset: Dataset) -> Validate:
    """The loss on labels alone and the task's metric, both of the validation part."""
    signature, (x, y) = dataset.signature, (dataset.validation.x, dataset.validation.y)
    loss, targets = loss_of(signature.kind), targets_of(signature, y)

    def validate() -> dict[str, float]:
        output = outputs(x)
        score = TASKS[signature.kind].score(y, served_outputs(signature, output))
        return {"validation_loss": float(loss(targets, output)), "validation_metric": score}

    return validate


def served_outputs(signature: Signature, output: Array) -> Array:
    """What the model gives as it is served (`spaces.build.serving_model`): probabilities, or values in raw units."""
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
