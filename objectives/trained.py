"""Trained weights and what a teacher answers: made once in the life of a home."""

from __future__ import annotations

from dataclasses import replace
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


def trained(bench: Bench, data: Dataset, genotype: Genotype, emit: Emit) -> tuple[Weights, dict[str, Any]]:
    """The group's weights and the history of their training; trained now unless the cache has them."""
    cache = Cache(bench.home)
    teacher = bench.teacher if genotype.training.distillation > 0 else None
    key = training_key(bench, data, genotype, teacher)
    kept, history = cache.arrays("trained", key), cache.record("trained", key)
    if kept is not None and history is not None:
        return _unpack(kept), history
    model = build(genotype.architecture, data.signature, bench.seed)
    logits = _teacher(bench, data, teacher, emit) if teacher else None
    history = fit(model, data, genotype.training, bench.training, seed=bench.seed, teacher_logits=logits, emit=emit)
    weights = weights_of(model)
    cache.keep_arrays("trained", key, _pack(weights))
    cache.keep_record("trained", key, history)
    return weights, history


def training_key(bench: Bench, data: Dataset, genotype: Genotype, teacher: Genotype | None) -> str:
    """Names trained weights by all they depend on."""
    budget = replace(bench.training, distillation=())  # the alphas searched change nothing about this one
    taught = training_key(bench, data, teacher, None) if teacher else ""
    return digest(genotype.architecture, genotype.training, budget, data.digest, bench.seed, taught)


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
