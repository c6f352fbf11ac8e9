"""The contract of a cell, as code: what it serves equals what it trains. Used by the tests and for users' own cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from spaces.backend import keras, tf
from spaces.cells.cell import Cell
from spaces.errors import ModelError
from spaces.genotype import Deployment

BATCH, FEATURES, UNITS = 3, 5, 8
TOLERANCE = 1e-5


def check_cell(
    cell: Cell,
    *,
    lowerings: Sequence[str] = ("loop",),
    times: Sequence[int] = (1, 2, 7, 16),
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> list[str]:
    """What is wrong with the pair, one sentence each; empty where the contract holds.

    For every length in `times`, last output and sequence, forwards and backwards, masked (holes included) and not: the
    Keras layer gives finite outputs of the right shape, keeps its configuration, and each form in `lowerings`, the loop
    with 1, 3 and all steps in an iteration, equals it to `tolerance` in float32, whatever weights its constraints
    allow. A cell that streams gives the same sequence chunk by chunk. An output above 1 may differ by so much more.
    """
    random = np.random.default_rng(seed)
    findings = []
    for time, sequences, back, masked in product(times, (False, True), (False, True), (False, True)):
        where = f"time={time}, return_sequences={sequences}, go_backwards={back}, {'masked' if masked else 'no mask'}"
        x = random.normal(size=(BATCH, time, FEATURES)).astype(np.float32)
        mask = _mask(random, time) if masked else None
        layer = cell.layer(UNITS, return_sequences=sequences, go_backwards=back, name="layer1")
        layer.build((None, time, FEATURES))
        weights = [random.normal(scale=0.5, size=w.shape).astype(np.float32) for w in layer.get_weights()]
        layer.set_weights(weights)
        weights = constrained(layer).get_weights()
        expected = np.asarray(layer(tf.constant(x), mask=None if mask is None else tf.constant(mask[:, :, 0] > 0)))
        allowed = tolerance * max(1.0, float(np.max(np.abs(expected))))
        findings += [f"the layer {fault} at {where}" for fault in _faults(layer, expected, time, sequences)]
        for deployment in _deployments(lowerings, time):
            got = _serve(cell, weights, x, mask, sequences, back, deployment)
            form = f"the lowered form ({deployment.lowering}, steps={deployment.steps})"
            if got.shape != expected.shape:
                findings.append(f"{form} gives shape {got.shape}, the layer {expected.shape} at {where}")
            elif not (difference := float(np.max(np.abs(got - expected)))) <= allowed:
                findings.append(f"{form} differs from the layer by {difference:.1e} at {where}")
        if sequences and not back and not masked:
            findings += [
                f"the streaming form {fault} at {where}" for fault in _streamed(cell, weights, x, expected, allowed)
            ]
    return findings


def constrained(layer: Any) -> Any:
    """A layer or model with each of its weights brought to where its constraint keeps it in training."""
    for variable in layer.weights:
        if variable.constraint is not None:
            variable.assign(variable.constraint(variable))
    return layer


def _streamed(
    cell: Cell, weights: list[np.ndarray], x: np.ndarray, expected: np.ndarray, allowed: float
) -> Iterator[str]:
    """What is wrong with the outputs of a stream that comes in chunks of 1, 2, 1, 2, ... frames."""
    try:
        state = tuple(np.repeat(first[None], BATCH, axis=0) for first in cell.first_state(weights, FEATURES))
    except ModelError:
        return  # it looks ahead
    at, chunk, got = 0, 1, []
    while at < x.shape[1]:
        outputs, state = cell.stream(weights, tf.constant(x[:, at : at + chunk]), state)
        got.append(np.asarray(outputs))
        at, chunk = at + chunk, 3 - chunk
    difference = float(np.max(np.abs(np.concatenate(got, axis=1) - expected)))
    if not difference <= allowed:
        yield f"differs from the layer by {difference:.1e}"


def _mask(random: np.random.Generator, time: int) -> np.ndarray:
    """[batch, time, 1]: one sequence whole, one with holes anywhere, one that ends early."""
    mask = np.ones((BATCH, time, 1), np.float32)
    mask[1, :, 0] = random.random(time) < 0.6
    mask[2, (time + 1) // 2 :] = 0.0
    return mask


def _faults(layer: Any, output: np.ndarray, time: int, sequences: bool) -> Iterator[str]:
    shape = (BATCH, time, UNITS) if sequences else (BATCH, UNITS)
    if output.shape != shape:
        yield f"gives shape {output.shape} instead of {shape}"
    if not np.all(np.isfinite(output)):
        yield "gives values that are not finite"
    plain = keras.saving.serialize_keras_object(layer)
    try:
        again = keras.saving.deserialize_keras_object(plain)
    except (TypeError, ValueError) as error:
        yield f"cannot be made again from its configuration ({error})"
    else:
        if again.get_config() != layer.get_config():
            yield "is not the same when made again from its configuration"


def _deployments(lowerings: Sequence[str], time: int) -> Iterator[Deployment]:
    for lowering in lowerings:
        for steps in sorted({1, min(3, time), time}) if lowering == "loop" else (1,):
            yield Deployment(lowering, steps)


def _serve(
    cell: Cell,
    weights: list[np.ndarray],
    x: np.ndarray,
    mask: np.ndarray | None,
    sequences: bool,
    back: bool,
    deployment: Deployment,
) -> np.ndarray:
    """The lowered form, traced as it is before it is converted."""

    def graph(x: Any, mask: Any = None) -> Any:
        return cell.lowered(weights, x, mask, return_sequences=sequences, go_backwards=back, deployment=deployment)

    inputs = [tf.constant(part) for part in (x, mask) if part is not None]
    return np.asarray(tf.function(graph, autograph=False)(*inputs))
