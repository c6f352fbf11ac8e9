"""Trained weights and what a teacher answers: made once in the life of a home."""

from __future__ import annotations

import functools
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.bench import Bench, Emit
from objectives.cache import Arrays, Cache
from objectives.data import Dataset
from objectives.deployment.lower import exporter_name, lower
from objectives.given import soft_targets
from objectives.training.distill import teacher_logits
from objectives.training.fit import fit
from spaces.build import Weights, build, put_weights, serving_model, weights_of
from spaces.genotype import Deployment, Genotype
from spaces.record import digest

MAKERS = ("tensorflow", "tf-keras", "brisk-rnn")
"""What trained weights depend on beside the bench: another version of these trains anew."""

CALIBRATION_ROWS = 100  # for static integer forms


class Trained:
    """The trained model of a group of candidates, or before `train` the model that training starts from."""

    trains = True

    def __init__(self, bench: Bench, data: Dataset, genotype: Genotype) -> None:
        self.history: dict[str, Any] = {}
        self.weights: Weights = {}
        self._bench, self._data, self._genotype = bench, data, genotype

    def start(self) -> None:
        """Take random weights, always the same."""
        self.weights = weights_of(build(self._genotype.architecture, self._data.signature, self._bench.seed))

    def train(self, emit: Emit) -> None:
        """Take trained weights, from the cache if it has them."""
        self.weights, self.history = trained(self._bench, self._data, self._genotype, emit)

    def recall(self) -> bool:
        """Take the trained weights that the cache has, if it has them."""
        if (kept := recalled(self._bench, self._data, self._genotype)) is not None:
            self.weights, self.history = kept
        return kept is not None

    @functools.cached_property
    def serving(self) -> Any:
        """The float Keras model as it is served, with the trained weights."""
        model = build(self._genotype.architecture, self._data.signature, self._bench.seed)
        put_weights(model, self.weights)
        return serving_model(model, self._data.signature)

    def answer(self, x: NDArray[Any]) -> NDArray[Any]:
        """What the float Keras model gives."""
        return np.asarray(self.serving.predict(x, batch_size=256, verbose=0))

    def lower(self, asked: Deployment) -> bytes:
        """The .tflite of a form with the weights of the moment (`deployment.lower`)."""
        calibration = self._data.train.x[:CALIBRATION_ROWS]
        architecture, signature = self._genotype.architecture, self._data.signature
        return lower(architecture, signature, self.weights, asked, representative=calibration)

    def exporter(self, asked: Deployment) -> str:
        """Which exporter makes the file of a form."""
        return exporter_name(asked)


def trained(bench: Bench, data: Dataset, genotype: Genotype, emit: Emit) -> tuple[Weights, dict[str, Any]]:
    """The group's weights and the history of their training; trained now unless the cache has them."""
    if (kept := recalled(bench, data, genotype)) is not None:
        return kept
    cache, teacher = Cache(bench.home), _teacher_of(bench, genotype)
    key = training_key(bench, data, genotype, teacher)
    model = build(genotype.architecture, data.signature, bench.seed)
    logits = _teacher(bench, data, teacher, emit) if teacher else None
    history = fit(model, data, genotype.training, bench.training, seed=bench.seed, teacher_logits=logits, emit=emit)
    weights = weights_of(model)
    cache.keep_arrays("trained", key, _pack(weights))
    cache.keep_record("trained", key, history)
    return weights, history


def recalled(bench: Bench, data: Dataset, genotype: Genotype) -> tuple[Weights, dict[str, Any]] | None:
    """What `trained` made before, or None where the cache does not have it."""
    cache, key = Cache(bench.home), training_key(bench, data, genotype, _teacher_of(bench, genotype))
    kept, history = cache.arrays("trained", key), cache.record("trained", key)
    return None if kept is None or history is None else (_unpack(kept), history)


def training_key(bench: Bench, data: Dataset, genotype: Genotype, teacher: Genotype | None) -> str:
    """Names trained weights by all they depend on."""
    budget = replace(bench.training, distillation=())  # the alphas searched change nothing about this one
    taught = _teaching_key(bench, data, teacher) if teacher else ""
    made_with = [version(name) for name in MAKERS]
    return digest(genotype.architecture, genotype.training, budget, data.digest, bench.seed, taught, made_with)


def _teaching_key(bench: Bench, data: Dataset, teacher: Genotype) -> str:
    if file := bench.file_of(teacher):
        return digest(file.sha256, data.digest)
    return training_key(bench, data, teacher, None)


def _teacher_of(bench: Bench, genotype: Genotype) -> Genotype | None:
    return bench.teacher if genotype.training.distillation > 0 else None


def _teacher(bench: Bench, data: Dataset, teacher: Genotype, emit: Emit) -> NDArray[np.float32]:
    """What the teacher answers on the training part, before softmax: computed once per study."""
    cache = Cache(bench.home)
    key = _teaching_key(bench, data, teacher)
    kept = cache.arrays("teacher", key)
    if kept is None:
        kept = {"logits": _taught(bench, data, teacher, emit)}
        cache.keep_arrays("teacher", key, kept)
    return kept["logits"]


def _taught(bench: Bench, data: Dataset, teacher: Genotype, emit: Emit) -> NDArray[np.float32]:
    if bench.file_of(teacher):
        return soft_targets(bench, data)
    weights = trained(bench, data, teacher, emit)[0]
    model = build(teacher.architecture, data.signature, bench.seed)
    put_weights(model, weights)
    return teacher_logits(model, data.train.x, bench.training.batch_size)


def _pack(weights: Weights) -> Arrays:
    return {f"{name}/{index}": array for name, arrays in weights.items() for index, array in enumerate(arrays)}


def _unpack(arrays: Arrays) -> Weights:
    weights: Weights = {}
    for name, array in arrays.items():  # kept in the order they were packed
        weights.setdefault(name.rsplit("/", 1)[0], []).append(array)
    return weights
