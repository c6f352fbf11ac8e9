"""Trained weights and what a teacher answers: made once in the life of a home."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.bench import Bench, Emit
from objectives.cache import Arrays, Cache
from objectives.data import Dataset
from objectives.training.distill import teacher_logits
from objectives.training.fit import fit
from spaces.build import Weights, build, put_weights, weights_of
from spaces.genotype import Genotype
from spaces.record import digest

MAKERS = ("tensorflow", "tf-keras", "brisk-rnn")
"""What trained weights depend on beside the bench: another version of these trains anew."""


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
    taught = training_key(bench, data, teacher, None) if teacher else ""
    made_with = [version(name) for name in MAKERS]
    return digest(genotype.architecture, genotype.training, budget, data.digest, bench.seed, taught, made_with)


def _teacher_of(bench: Bench, genotype: Genotype) -> Genotype | None:
    return bench.teacher if genotype.training.distillation > 0 else None


def _teacher(bench: Bench, data: Dataset, teacher: Genotype, emit: Emit) -> NDArray[np.float32]:
    """What the teacher answers on the training part, before softmax: computed once per study."""
    cache = Cache(bench.home)
    key = training_key(bench, data, teacher, None)
    kept = cache.arrays("teacher", key)
    if kept is None:
        weights = trained(bench, data, teacher, emit)[0]
        model = build(teacher.architecture, data.signature, bench.seed)
        put_weights(model, weights)
        kept = {"logits": teacher_logits(model, data.train.x, bench.training.batch_size)}
        cache.keep_arrays("teacher", key, kept)
    return kept["logits"]


def _pack(weights: Weights) -> Arrays:
    return {f"{name}/{index}": array for name, arrays in weights.items() for index, array in enumerate(arrays)}


def _unpack(arrays: Arrays) -> Weights:
    weights: Weights = {}
    for name, array in arrays.items():  # kept in the order they were packed
        weights.setdefault(name.rsplit("/", 1)[0], []).append(array)
    return weights
