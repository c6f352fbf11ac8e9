"""Whole hidden units cut out of trained weights: what is left is a smaller model of the same architecture.

A unit is its columns in every gate of its layer's matrices and biases, its row in the recurrent matrix, and its rows in
whatever reads the layer. Which those are is told by the axes that a cell declares for its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spaces.build import Weights, cell_of
from spaces.cells.cell import Weight, axis
from spaces.errors import ModelError
from spaces.genotype import Architecture
from spaces.signature import Signature

Kept = dict[str, NDArray[np.int64]]
"""Layer name -> the units that stay, in their order."""


@dataclass(frozen=True)
class Part:
    """A layer with weights: what it declares for `features` inputs, which are the outputs of the layers it `reads`,
    side by side; raw inputs where it reads none.
    """

    name: str
    features: int
    reads: tuple[str, ...]
    declared: tuple[Weight, ...]


@dataclass(frozen=True)
class Link:
    """One axis of one array along which units lie: `times` blocks, in each the units of every one of `layers`."""

    name: str  # of the layer that has the array
    array: int
    axis: int
    times: int
    layers: tuple[str, ...]
    learned: bool


def sliced(architecture: Architecture, signature: Signature, weights: Weights, units: int) -> Weights:
    """The weights with `units` units a layer, those that weigh most (`strongest`)."""
    return cut(architecture, signature, weights, strongest(architecture, signature, weights, units))


def strongest(architecture: Architecture, signature: Signature, weights: Weights, units: int) -> Kept:
    """So many units of each layer, those whose weights as one vector are longest (Wen 2018, arXiv 1709.05027).

    Layers that a residual connection adds up keep the same units.
    """
    scores: dict[str, NDArray[np.float64]] = {}
    for link in filter(lambda link: link.learned, _links(architecture, signature, weights)):
        squares = np.square(np.moveaxis(weights[link.name][link.array], link.axis, 0).astype(np.float64))
        shares = squares.reshape(link.times, len(link.layers), architecture.units, -1).sum((0, 3))
        for layer, share in zip(link.layers, shares, strict=True):
            scores[layer] = scores.get(layer, 0.0) + share
    if architecture.residual:
        tied = [name for name in scores if name != "bricks"]
        scores |= dict.fromkeys(tied, np.sum([scores[name] for name in tied], axis=0))
    return {name: np.sort(np.argsort(-score, kind="stable")[:units]) for name, score in scores.items()}


def cut(architecture: Architecture, signature: Signature, weights: Weights, kept: Kept) -> Weights:
    """The weights with only these units of each layer, equally many of all."""
    left = {name: list(arrays) for name, arrays in weights.items()}
    for link in _links(architecture, signature, weights):
        blocks = zip(range(link.times * len(link.layers)), link.layers * link.times, strict=True)
        places = np.concatenate([block * architecture.units + kept[layer] for block, layer in blocks])
        left[link.name][link.array] = np.take(left[link.name][link.array], places, axis=link.axis)
    small = replace(architecture, units=len(next(iter(kept.values()))))
    for part, smaller in zip(_parts(architecture, signature), _parts(small, signature), strict=True):
        left[part.name] = _refactored(part.declared, smaller.declared, left[part.name])
    return left


def _parts(architecture: Architecture, signature: Signature) -> Iterator[Part]:
    """The layers along which units lie, in the order of the model."""
    cell, units = cell_of(architecture), architecture.units
    features = architecture.frame_stack * (architecture.embedding if signature.vocabulary else signature.features)
    time = -(-signature.time_steps // architecture.frame_stack)
    reads: tuple[str, ...] = ()
    if architecture.brick:
        yield Part("bricks", features, (), cell.declared(features, units, architecture.brick))
        features, time, reads = units, -(-time // architecture.brick), ("bricks",)
    for index in range(1, architecture.layers + 1):
        names = (f"layer{index}", f"layer{index}_backward")[: 1 + architecture.bidirectional]
        for name in names:
            yield Part(name, features, reads, cell.declared(features, units, time))
        features, reads = len(names) * units, names
    if architecture.readout == "attention" and not signature.sequences:
        yield Part("pooling", features, reads, (Weight("score", ("features", "1")),))
    outputs = str(signature.outputs)
    yield Part("head", features, reads, (Weight("kernel", ("features", outputs)), Weight("bias", (outputs,))))


def _links(architecture: Architecture, signature: Signature, weights: Weights) -> Iterator[Link]:
    """Every axis along which units lie. Raises ModelError where an array is not of the shape that is declared."""
    for part in _parts(architecture, signature):
        for index, (weight, array) in enumerate(zip(part.declared, weights[part.name], strict=True)):
            if (shape := weight.shape(features=part.features, units=architecture.units)) != array.shape:
                raise ModelError(f"{part.name}: {weight.name} is declared as {shape}, but got {array.shape}")
            for at, (times, of) in enumerate(map(axis, weight.axes)):
                if layers := {"units": (part.name,), "features": part.reads}.get(of):
                    yield Link(part.name, index, at, times, layers, weight.trainable)


def _refactored(
    declared: Sequence[Weight], wanted: Sequence[Weight], arrays: Sequence[NDArray[np.float32]]
) -> list[NDArray[np.float32]]:
    """The arrays as a smaller layer wants them, in which the factors of an input matrix may no longer save weights."""
    named = {weight.name: array for weight, array in zip(declared, arrays, strict=True)}
    return [
        named[weight.name] if weight.name in named else named[f"{weight.name}_left"] @ named[f"{weight.name}_right"]
        for weight in wanted
    ]
