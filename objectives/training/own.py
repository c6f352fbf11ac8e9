"""Training a model that the user's code built, as that code says: with its own optimizer, loss and `fit`, where it has
them; else by brisk's loss for the task, Adam on a cosine schedule. The best epoch on the validation part is kept.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.bench import Emit, TrainingSpec
from objectives.cache import Arrays
from objectives.data import Dataset, Split
from objectives.sources import PARTS
from objectives.training.distill import targets_of
from objectives.training.rungs import Rungs, packed
from spaces.backend import keras, keras3
from spaces.errors import CandidateError
from spaces.genotype import Training
from spaces.signature import Signature

Array = NDArray[Any]
Fit = Callable[..., Any]
"""KerasTuner's `fit(hp, model, x, y, validation_data=, epochs=, batch_size=, callbacks=, verbose=)`."""

ROWS = 16  # on which a `fit` is called only to learn which hyperparameters it asks for
ONE_HOT = {
    *("categoricalcrossentropy", "categoricalfocalcrossentropy", "categoricalhinge", "kldivergence", "kld"),
    *("binarycrossentropy", "binaryfocalcrossentropy", "meansquarederror", "mse", "meanabsoluteerror", "mae"),
    *("hinge", "squaredhinge", "poisson", "cosinesimilarity"),
}
"""Keras's losses that compare all classes: they are given one-hot rows, every other loss the numbers of classes."""


@dataclass(frozen=True)
class Trainee:
    """A model as the user's code built it, the Keras that it lives in, and how many columns its answers have.

    `plain`: brisk trains it, for it came uncompiled and without a `fit` of its own; it then gives normalised values.
    """

    model: Any
    keras: Any
    columns: int
    plain: bool


def compiled(model: Any) -> bool:
    """Whether the user's code has set an optimizer and a loss."""
    return bool(getattr(model, "compiled", False) or getattr(model, "_is_compiled", False))


def resumable(trainee: Trainee) -> bool:
    """Whether the compiled model trains as Keras would have it, which can begin at any epoch, with an optimizer all of
    whose state is known.
    """
    model, optimizer = type(trainee.model), trainee.model.optimizer
    if any(getattr(model, name) is not getattr(trainee.keras.Model, name) for name in ("fit", "train_step")):
        return False
    # The oldest optimizers of Keras 2 are built when they are first used; its Nadam tells nobody of one variable, and
    # what scales losses not of those within.
    hidden = isinstance(optimizer, keras.optimizers.Nadam) or "LossScale" in type(optimizer).__name__
    return hasattr(optimizer, "build") and not hidden


def compile_plainly(trainee: Trainee, data: Dataset, training: Training, spec: TrainingSpec) -> None:
    """Compile a model that the user's code left to brisk."""
    losses, optimizers = trainee.keras.losses, trainee.keras.optimizers
    if data.signature.kind == "regression":
        loss: Any = losses.MeanSquaredError()
    else:
        kind = losses.BinaryCrossentropy if trainee.columns == 1 else losses.SparseCategoricalCrossentropy
        loss = kind(from_logits=not _gives_probabilities(trainee, data))
    steps = -(-len(data.train.x) // spec.batch_size)
    rate = training.learning_rate or Training().learning_rate
    schedule = optimizers.schedules.CosineDecay(rate, steps * spec.epochs, alpha=0.01)
    optimizer = optimizers.Adam(schedule, clipnorm=spec.clipnorm)
    # Keras 3 would choose XLA by itself, which makes a loop over time far slower on a CPU.
    trainee.model.compile(optimizer=optimizer, loss=loss, jit_compile=False)


def fit(
    run: Fit,
    hp: Any,
    trainee: Trainee,
    data: Dataset,
    spec: TrainingSpec,
    *,
    seed: int,
    emit: Emit,
    rungs: Rungs,
    lasting: bool = False,
) -> dict[str, Any]:
    """Train the compiled model in place and leave it with the weights of its best epoch; tell how it went.

    `run` is the hypermodel's own `fit`. At the `rungs`, as far as `run` tells its callbacks of epochs, they are asked
    while the model has the weights of its best epoch; where `lasting` (`resumable`), the training is kept there and
    taken up at the last rung that an earlier try came to, with other orders of the rows from there. Raises
    CandidateError where a loss is no longer a number, and Stopped where a rung ended it, whatever `run` makes of that.
    Returns epochs_run, train_s, and where `run` tells of epochs best_epoch (from 1), with its loss and validation_loss.
    """
    reseed(seed)
    started, epochs = time.perf_counter(), _Epochs(trainee.model, spec, emit, len(data.train.x), rungs, lasting)
    hearing = {"on_epoch_end": lambda watch, epoch, logs=None: epochs.hear(epoch + 1, logs or {}, watch)}
    watch = type("Watch", (trainee.keras.callbacks.Callback,), hearing)()
    options = {"epochs": spec.epochs, "batch_size": spec.batch_size, "callbacks": [watch], "verbose": 0}
    if lasting:
        options["initial_epoch"] = epochs.taken_up()
        reseed(seed + epochs.run)  # or it would meet the orders of its first epochs again
    _called(run, hp, trainee, data, options)
    epochs.end()
    return {**epochs.told, "epochs_run": epochs.run, "train_s": time.perf_counter() - started}


def reseed(seed: int) -> None:
    """The same seed for both Kerases, NumPy and Python."""
    keras.utils.set_random_seed(seed)
    keras3().utils.set_random_seed(seed)


def meet(run: Fit, hp: Any, trainee: Trainee, data: Dataset) -> None:
    """Have `run` ask for its hyperparameters, without training: `model.fit` does nothing but end it."""

    def end(*_: Any, **__: Any) -> None:
        raise _Met

    parts: dict[str, Any] = {part: Split(getattr(data, part).x[:ROWS], getattr(data, part).y[:ROWS]) for part in PARTS}
    options: dict[str, Any] = {"epochs": 1, "batch_size": ROWS, "callbacks": [], "verbose": 0}
    object.__setattr__(trainee.model, "fit", end)
    try:
        _called(run, hp, trainee, replace(data, **parts), options)
    except Exception:
        return  # it has asked by now, or will fail in training and say so
    finally:
        object.__delattr__(trainee.model, "fit")


class _Met(Exception):
    """Everything was asked for."""


class _Epochs:
    """The weights of the best epoch so far by validation loss, and whether it is time to stop."""

    def __init__(self, model: Any, spec: TrainingSpec, emit: Emit, rows: int, rungs: Rungs, lasting: bool) -> None:
        self._model, self._spec, self._emit, self._rows = model, spec, emit, rows
        self._rungs, self._lasting = rungs, lasting
        self._weights: list[Array] = []
        self._lowest, self._since = math.inf, time.perf_counter()
        self._seconds: list[float] = []
        self._raised: Exception | None = None
        self.told: dict[str, float] = {}
        self.run = 0

    def taken_up(self) -> int:
        """Go on from what an earlier try kept at a rung; how many epochs that had run. Raises Stopped."""
        begun = self._rungs.taken_up(self._variables)
        if begun:
            self.run, self.told = begun["epoch"], begun["told"]
            self._weights, self._seconds = begun["best"], begun["seconds"]
            self._lowest = self.told.get("validation_loss", self.told.get("loss", math.inf))
            self._rungs.asked_again(self.run, self._left_s(self.run, self._spec.epochs))
        self._since = time.perf_counter()
        return self.run

    def _variables(self) -> list[Any]:
        """All that training changes."""
        model = self._model
        if not (getattr(model.optimizer, "built", False) or getattr(model.optimizer, "_built", False)):
            with model.distribute_strategy.scope():
                model.optimizer.build(model.trainable_variables)
        return [*model.variables, *model.optimizer.variables]

    def hear(self, epoch: int, logs: dict[str, Any], watch: Any) -> None:
        """Take note of an epoch (from 1), and tell the model to stop once `patience` of them brought nothing.

        `watch` is the callback that heard it. What is raised is raised again at the next epoch and by `end`, should the
        user's `fit` go on.
        """
        if self._raised:
            raise self._raised
        try:
            self._hear(epoch, logs)
            self._ask(epoch, watch)
        except Exception as error:
            self._raised = error
            raise

    def end(self) -> None:
        """Leave the model with the weights of its best epoch."""
        if self._raised:
            raise self._raised
        self._restore()

    def _hear(self, epoch: int, logs: dict[str, Any]) -> None:
        figures = {key: float(value) for key, value in logs.items() if np.ndim(value) == 0}
        for name in ("loss", "val_loss"):
            if not math.isfinite(figures.get(name, 0.0)):
                raise CandidateError("train", f"the {name} became {figures[name]} at epoch {epoch}")
        self.run, loss = epoch, figures.get("val_loss", figures.get("loss"))
        if loss is None or loss < self._lowest:
            self._lowest, self._weights = math.inf if loss is None else loss, self._model.get_weights()
            named = {"loss": "loss", "val_loss": "validation_loss"}
            self.told = {"best_epoch": epoch, **{named[key]: figures[key] for key in named if key in figures}}
        if epoch - self.told["best_epoch"] >= self._spec.patience:
            self._model.stop_training = True
        metrics = [value for key, value in figures.items() if key.startswith("val_") and key != "val_loss"]
        shown = {"metric": metrics[0]} if metrics else {}
        now = time.perf_counter()
        self._seconds.append(now - self._since)
        shown |= {"sequences": self._rows, "seconds": self._seconds[-1]}
        self._since = now
        self._emit({"event": "epoch", "epoch": epoch, "of": self._spec.epochs, "loss": figures.get("loss"), **shown})

    def _ask(self, epoch: int, watch: Any) -> None:
        """Ask at a rung; not where the training ends here, or is of another model that the user's `fit` makes."""
        last = (watch.params or {}).get("epochs", self._spec.epochs)
        if not self._rungs.due(epoch) or watch.model is not self._model or self._model.stop_training or epoch >= last:
            return
        weights = self._model.get_weights()
        now = [variable.numpy() for variable in self._variables()] if self._lasting else []

        def state() -> tuple[Arrays, dict[str, Any]]:
            return packed(now, self._weights), {"told": self.told, "seconds": self._seconds}

        self._restore()
        self._rungs.reached(epoch, self.told, self._left_s(epoch, last), state if self._lasting else None)
        self._model.set_weights(weights)
        self._since = time.perf_counter()

    def _left_s(self, epoch: int, last: int) -> float:
        """What the epochs after this one take at most."""
        return (last - epoch) * float(np.median(self._seconds[1:] or self._seconds))

    def _restore(self) -> None:
        if self._weights:
            self._model.set_weights(self._weights)


def _called(run: Fit, hp: Any, trainee: Trainee, data: Dataset, options: dict[str, Any]) -> None:
    """Call `run` with those of the options that it does not set itself, and that it knows."""
    signature = data.signature
    x, y, *weights = _fed(trainee, data.train, signature)
    given = {"validation_data": _fed(trainee, data.validation, signature), **options}
    if weights:
        given["sample_weight"] = weights[0]
    while True:
        try:
            run(hp, trainee.model, x, y, **given)
            return
        except TypeError as error:
            clash = re.search(r"(?:multiple values for|unexpected) keyword argument '(\w+)'", str(error))
            if not clash or given.pop(clash[1], None) is None:
                raise


def _fed(trainee: Trainee, part: Split, signature: Signature) -> tuple[Array, ...]:
    """x, y as the model's loss takes it, and where steps are padding the weights that leave them out."""
    if signature.kind == "regression":
        return part.x, targets_of(signature, part.y) if trainee.plain else part.y
    y, weights = np.maximum(part.y, 0), (part.y >= 0).astype(np.float32)
    if trainee.columns == 1:
        y = y[..., None].astype(np.float32)
    elif _loss_name(trainee.model) in ONE_HOT:
        y = np.eye(trainee.columns, dtype=np.float32)[y]
    return (part.x, y, weights) if signature.sequences and signature.masked else (part.x, y)


def _loss_name(model: Any) -> str:
    loss = getattr(model, "loss", None)
    if isinstance(loss, dict):
        loss = list(loss.values())
    if isinstance(loss, list | tuple):
        loss = loss[0] if loss else None
    name = loss if isinstance(loss, str) else getattr(loss, "name", None) or getattr(loss, "__name__", "")
    return str(name).replace("_", "").lower()


def _gives_probabilities(trainee: Trainee, data: Dataset) -> bool:
    """Whether its answers sum to one, or its last layer is a sigmoid."""
    if trainee.columns > 1:
        output = np.asarray(trainee.model(data.train.x[:ROWS], training=False))
        return bool(np.allclose(output.sum(axis=-1), 1.0, atol=1e-4) and output.min() >= 0)
    layer = trainee.model
    while inner := getattr(layer, "layers", None) or [getattr(layer, "layer", None)]:
        if inner[-1] is None:
            break
        layer = inner[-1]
    return getattr(getattr(layer, "activation", None), "__name__", "") == "sigmoid"
