"""Trained weights and what a teacher answers: made once in the life of a home."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.bench import Bench, Emit
from objectives.cache import Arrays, Cache
from objectives.data import Dataset
from objectives.deployment.lower import exporter_name, lower, lower_streaming
from objectives.deployment.pour import Array, constants, distinct, plain, poured
from objectives.given import soft_targets, states
from objectives.task import TASKS
from objectives.training.accelerator import strategy_of
from objectives.training.distill import Lesson, Outputs, hidden_states, mean_of, normalised, outputs_of, teacher_logits
from objectives.training.fit import Graphs, fit, served_outputs, shorter
from objectives.training.rungs import GoesOn, Rungs, epochs_of, learned_at, never_stopped
from spaces.build import Weights, build, cell_of, put_weights, serving_model, weights_of
from spaces.genotype import Architecture, Deployment, Genotype, Training
from spaces.record import digest
from spaces.signature import Signature
from spaces.slicing import sliced
from spaces.streamed import streamed

MAKERS = ("tensorflow", "tf-keras", "brisk-rnn")
"""What trained weights depend on beside the bench: another version of these trains anew."""

CALIBRATION_ROWS = 100  # for static integer forms
MODELS, KEPT_BYTES = 48, 2**24
"""How many models a process keeps at most, and of how many bytes of weights: a search comes back to what is good, to
train it at another rate. Each has some eight times its weights with it, graphs, and the targets.
"""


@dataclass(frozen=True)
class _Built:
    """A Keras model as it was built: its first weights, those that it is looked at with, and the graphs made of it."""

    model: Any
    start: Weights
    architecture: Architecture
    signature: Signature
    graphs: Graphs = field(default_factory=Graphs)
    constants: dict[Deployment, list[Array]] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Of its weights."""
        return sum(array.nbytes for arrays in self.start.values() for array in arrays)

    @functools.cached_property
    def looked_at(self) -> Weights:
        """Random weights, no two alike."""
        return distinct(self.start)

    def looked_at_as(self, asked: Deployment) -> list[Array]:
        """The constants of a form with those."""
        if asked not in self.constants:
            self.constants[asked] = constants(self.architecture, self.signature, self.looked_at, asked)
        return self.constants[asked]

    @functools.cached_property
    def outputs(self) -> Outputs:
        """What the model gives, traced once for all validation."""
        return outputs_of(self.model)


def _fresh(architecture: Architecture, signature: Signature, seed: int, accelerator: str) -> _Built:
    with strategy_of(accelerator).scope():
        model = build(architecture, signature, seed)
    return _Built(model, weights_of(model), architecture, signature)


_KEPT: dict[tuple[Any, ...], _Built] = {}  # the newest last


def _kept(*what: Any) -> _Built:
    """What `_fresh` made before, if it was not long ago."""
    found = _KEPT.pop(what) if what in _KEPT else _fresh(*what)
    _KEPT[what] = found
    while len(_KEPT) > MODELS or (len(_KEPT) > 1 and sum(one.size_bytes for one in _KEPT.values()) > KEPT_BYTES):
        del _KEPT[next(iter(_KEPT))]
    return found


class Trained:
    """The trained model of a group of candidates, or before `train` the model that training starts from."""

    trains = True

    def __init__(self, bench: Bench, data: Dataset, genotype: Genotype) -> None:
        self.history: dict[str, Any] = {}
        self.weights: Weights = {}
        self._bench, self._data, self._genotype = bench, data, genotype

    @functools.cached_property
    def _built(self) -> _Built:
        """The Keras model as it was built, to be looked at, trained and asked."""
        what = (self._genotype.served, self._data.signature, self._bench.training_seed)
        return (_fresh if self._anew else _kept)(*what, self._bench.training.accelerator)

    @property
    def _anew(self) -> bool:
        """Whether each training makes graphs of its own: those with dropout would draw other random numbers."""
        return self._genotype.served.dropout > 0 or "graphs" in self._bench.without

    @property
    def model(self) -> Any:
        """The float Keras model."""
        return self._built.model

    @property
    def beginning(self) -> Weights:
        """The weights that training starts from."""
        return self._built.start

    @property
    def graphs(self) -> Graphs | None:
        """What earlier trainings of the model were traced to."""
        return None if self._anew else self._built.graphs

    @functools.cached_property
    def blueprint(self) -> str:
        """Names what the file of an untrained model depends on, but for its form."""
        made_with = [version(name) for name in MAKERS]
        return digest(self._genotype.served, self._data.signature, self._bench.training_seed, made_with)

    @property
    def outputs(self) -> Outputs:
        """What the model gives with the weights of the moment, before it is served."""
        return self._built.outputs

    @functools.cached_property
    def trained_as(self) -> str:
        """Names the trained weights."""
        teachers = _teachers_of(self._bench, self._genotype)
        return training_key(self._bench, self._data, self._genotype, teachers)

    def start(self) -> None:
        """Take random weights, always the same."""
        self.weights = self._built.looked_at

    def train(self, emit: Emit, goes_on: GoesOn = never_stopped) -> None:
        """Take trained weights, from the cache if it has them."""
        where = (self._bench, self._data, self._genotype)
        self.weights, self.history = trained(*where, emit, goes_on, self)

    def recall(self) -> bool:
        """Take the trained weights that the cache has, if it has them."""
        if (kept := recalled(self._bench, self._data, self._genotype)) is not None:
            self.weights, self.history = kept
        return kept is not None

    @property
    def serving(self) -> Any:
        """The float Keras model as it is served, with the trained weights, its loops as everybody has them."""
        model = build(self._genotype.served, self._data.signature, self._bench.training_seed, loops=True)
        put_weights(model, self.weights)
        return serving_model(model, self._data.signature)

    def answer(self, x: NDArray[Any]) -> NDArray[Any]:
        """What the float Keras model gives."""
        put_weights(self.model, self.weights)
        return served_outputs(self._data.signature, self._built.outputs(x))

    def lower(self, asked: Deployment) -> bytes:
        """The .tflite of a form with the weights of the moment (`deployment.lower`)."""
        calibration = self._data.train.x[:CALIBRATION_ROWS]
        architecture, signature = self._genotype.served, self._data.signature
        return lower(architecture, signature, self.weights, asked, representative=calibration)

    def poured(self, content: bytes, asked: Deployment) -> bytes | None:
        """A float file of a form that was lowered after `start`, with the weights of the moment in it."""
        signature, built = self._data.signature, self._built
        architecture, cell = self._genotype.served, cell_of(self._genotype.served)
        was, becomes = plain(built.looked_at, cell), plain(self.weights, cell)
        if (found := poured(content, signature, was, becomes)) is not None:
            return found
        trained = constants(architecture, signature, self.weights, asked)
        return poured(content, signature, built.looked_at_as(asked), trained)

    def stream(self, frames: int) -> tuple[bytes, dict[str, NDArray[np.float32]]]:
        """The float32 .tflite of one step of a stream, and the states that a sequence begins with, by name.

        Raises ModelError where the model cannot stream.
        """
        architecture, signature = self._genotype.served, self._data.signature
        first = {kept.name: kept.first for kept in streamed(architecture, signature, self.weights, frames).states}
        return lower_streaming(architecture, signature, self.weights, frames=frames), first

    def exporter(self, asked: Deployment) -> str:
        """Which exporter makes the file of a form."""
        return exporter_name(asked)


def trained(
    bench: Bench,
    data: Dataset,
    genotype: Genotype,
    emit: Emit,
    goes_on: GoesOn = never_stopped,
    untrained: Trained | None = None,
) -> tuple[Weights, dict[str, Any]]:
    """The group's weights and the history of their training; trained now unless the cache has them.

    `goes_on` is asked at each rung; `untrained` has the model, where the caller does. Raises Stopped where training is
    to stop.
    """
    if (kept := recalled(bench, data, genotype)) is not None:
        return kept
    cache, teachers = Cache(bench.home), _teachers_of(bench, genotype)
    key = training_key(bench, data, genotype, teachers)
    before = genotype.training.before
    begun, first = _begun(bench, data, genotype, before, emit, goes_on) if before else ({}, {})
    lesson = _lesson(bench, data, teachers, emit) if teachers else None
    untrained = untrained or Trained(bench, data, genotype)
    put_weights(untrained.model, begun or untrained.beginning)  # last: what went before may have trained this model
    task, spec = TASKS[data.signature.kind], shorter(genotype.training, bench.training)[1]
    asking = never_stopped if before else goes_on  # the training before was the one to ask
    epochs = epochs_of(spec.rungs, spec.epochs)
    rungs = Rungs(epochs, lambda told: task.error(told["validation_metric"]), asking, cache, key)
    history = fit(
        untrained.model,
        data,
        genotype.training,
        bench.training,
        seed=bench.training_seed,
        lesson=lesson,
        quantize_head=bench.quantize_head,
        emit=emit,
        rungs=rungs,
        graphs=untrained.graphs,
        outputs=untrained.outputs,
    )
    asked = first or {**history, "ran": history["epochs_run"]}
    history |= {"learned": asked["learned"], "ran": asked["ran"], "rungs": _asked_at(bench)}
    if teachers:
        history["notes"] = [_thanks(teachers)]
    weights = weights_of(untrained.model)
    cache.keep_arrays("trained", key, _pack(weights))
    cache.keep_record("trained", key, history)
    rungs.done()
    return weights, history


def _begun(
    bench: Bench, data: Dataset, genotype: Genotype, training: Training, emit: Emit, goes_on: GoesOn
) -> tuple[Weights, dict[str, Any]]:
    """The weights that `training` gave and the genotype's goes on from, units cut out if that is what it is for; and
    its history.
    """
    before = replace(genotype, training=training)
    weights, history = trained(bench, data, before, emit, goes_on)
    emit({"event": "stage", "stage": "train", "form": None, "detail": "going on"})
    if before.served != genotype.served:
        weights = sliced(before.served, data.signature, weights, genotype.served.units)
    return weights, {"ran": history["epochs_run"], **history}


def recalled(bench: Bench, data: Dataset, genotype: Genotype) -> tuple[Weights, dict[str, Any]] | None:
    """What `trained` made before, or None where the cache does not have it."""
    cache, key = Cache(bench.home), training_key(bench, data, genotype, _teachers_of(bench, genotype))
    kept, history = cache.arrays("trained", key), cache.record("trained", key)
    if kept is None or history is None:
        return None
    return _unpack(kept), history | {"learned": learned_at(history, _asked_at(bench))}


def _asked_at(bench: Bench) -> tuple[int, ...]:
    """The rungs of a study's trainings: of one that goes on from another, those of the first."""
    return epochs_of(bench.training.rungs, bench.training.epochs)


def training_key(bench: Bench, data: Dataset, genotype: Genotype, teachers: Sequence[Genotype]) -> str:
    """Names trained weights by all they depend on; unlabelled sequences are nothing to a candidate without teachers.

    The accelerator changes no more of them than the number of threads does: float noise.
    """
    budget = asdict(replace(bench.training, distillation=(), hints=(), teacher="", ensemble=0, accelerator=""))
    del budget["rungs"]
    once = replace(bench, repeat=0)
    taught = [data.unlabelled_digest, *(_teaching_key(once, data, one) for one in teachers)] if teachers else []
    made_with = [version(name) for name in MAKERS]
    head = bench.quantize_head and genotype.training.qat != ""
    seed = bench.training_seed
    return digest(genotype.architecture, genotype.training, budget, data.digest, seed, taught, made_with, head)


def _teaching_key(bench: Bench, data: Dataset, teacher: Genotype) -> str:
    if file := bench.file_of(teacher):
        return digest(file.sha256, *([file.layers] if file.layers else []), data.digest)
    return training_key(bench, data, teacher, ())


def _teachers_of(bench: Bench, genotype: Genotype) -> tuple[Genotype, ...]:
    return bench.teachers if genotype.training.distillation > 0 else ()


def _thanks(teachers: Sequence[Genotype]) -> str:
    """Whom a candidate learnt from, for people."""
    built = [one.architecture for one in teachers]
    names = ", ".join(each.model or f"{each.cell} {each.units}" for each in built)
    return f"learnt from {'the mean of ' if len(built) > 1 else ''}{names}"


def _lesson(bench: Bench, data: Dataset, teachers: Sequence[Genotype], emit: Emit) -> Lesson:
    """What the teachers say: the mean of their outputs, their states side by side. They are trained but once."""
    bench = replace(bench, repeat=0)
    said = [_said(bench, data, teacher, emit) for teacher in teachers]
    logits = mean_of(data.signature.kind, [each["logits"] for each in said])
    hidden = np.concatenate([each["hidden"] for each in said], axis=-1) if _hinting(bench) else None
    return Lesson(logits, hidden, data.unlabelled)


def _said(bench: Bench, data: Dataset, teacher: Genotype, emit: Emit) -> Arrays:
    """What one teacher answers, before softmax, and its states where a candidate may ask for them: once per study."""
    cache, hinting = Cache(bench.home), _hinting(bench)
    key = digest(_teaching_key(bench, data, teacher), data.unlabelled_digest, hinting)
    kept = cache.arrays("teacher", key)
    if kept is None:
        kept = _asked(bench, data, teacher, emit, hinting=hinting)
        cache.keep_arrays("teacher", key, kept)
    return kept


def _asked(bench: Bench, data: Dataset, teacher: Genotype, emit: Emit, *, hinting: bool) -> Arrays:
    x, size = data.taught_x, bench.training.batch_size
    if bench.file_of(teacher):
        logits, hidden = soft_targets(bench, data), states(bench, data, x) if hinting else None
    else:
        weights = trained(bench, data, teacher, emit)[0]
        model = build(teacher.served, data.signature, bench.seed)
        put_weights(model, weights)
        logits, hidden = teacher_logits(model, x, size), hidden_states(model, x, size) if hinting else None
    return {"logits": logits} if hidden is None else {"logits": logits, "hidden": normalised(hidden)}


def _hinting(bench: Bench) -> bool:
    return max(bench.training.hints) > 0


def _pack(weights: Weights) -> Arrays:
    return {f"{name}/{index}": array for name, arrays in weights.items() for index, array in enumerate(arrays)}


def _unpack(arrays: Arrays) -> Weights:
    weights: Weights = {}
    for name, array in arrays.items():  # kept in the order they were packed
        weights.setdefault(name.rsplit("/", 1)[0], []).append(array)
    return weights
