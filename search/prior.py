"""Latency foretold: an analytic model whose constants are fitted to what the study has measured so far.

A call costs its turns of a loop, operations that are dispatched, transcendentals, the weights that each step reads, the
products that need no step before them, and a fixed part (after DeepCPU's account of recurrent inference: Zhang et al.,
USENIX ATC 2018); a scan has levels in place of turns. A foretold figure is never shown as one: it only saves the trying
of what is far over a bound, and nothing where the model does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.outcome import FORETOLD, Outcome
from spaces.catalog import CELLS, STEPS, WEIGHT_BYTES
from spaces.genotype import Genotype
from spaces.signature import Signature

CONSTANTS = (
    "us_fixed",
    "us_per_loop_turn",
    "us_per_operation",
    "us_per_1000_transcendentals",
    "us_per_kilobyte_of_weights",
    "us_per_million_multiplications",
    "us_per_scan_level",
    "us_per_keras_step",
)
FEWEST = 12  # architectures that it is fitted to
FOLDS = 5
USEFUL = 0.5  # the relative error up to which it is believed
SURE = 2.0  # errors over the bound


@dataclass(frozen=True)
class Prior:
    """The fitted model. `error` is the 90th percentile of the relative error on architectures that were left out."""

    constants: tuple[float, ...]
    error: float
    outcomes: int

    @property
    def useful(self) -> bool:
        """Whether it is believed."""
        return self.error <= USEFUL

    def predict_ms(self, genotype: Genotype, signature: Signature) -> float:
        """Milliseconds a call."""
        return float(features(genotype, signature) @ np.array(self.constants)) / 1000

    def hopeless(self, genotype: Genotype, signature: Signature, bound_ms: float) -> bool:
        """Whether a sequence takes longer than the bound for certain."""
        foretold = self.predict_ms(genotype, signature) / genotype.deployment.batch
        return self.useful and foretold > bound_ms * (1 + SURE * self.error)

    def report(self) -> dict[str, Any]:
        """As JSON."""
        constants = dict(zip(CONSTANTS, self.constants, strict=True))
        return {"error": self.error, "used": self.useful, "outcomes": self.outcomes, "constants": constants}


def fitted(outcomes: Iterable[Outcome], signature: Signature) -> Prior | None:
    """The model of what was measured, each graph once.

    None where that is too little, or of models that are not brisk's.
    """
    took = [(outcome.genotype, ms) for outcome in outcomes if (ms := _measured_ms(outcome))]
    known = list({(genotype.served, genotype.deployment): (genotype, ms) for genotype, ms in took}.values())
    places = {model: place for place, model in enumerate(dict.fromkeys(genotype.served for genotype, _ in known))}
    if len(places) < FEWEST:
        return None
    took_us = np.array([1000 * ms for _, ms in known])
    shares = np.array([features(genotype, signature) for genotype, _ in known]) / took_us[:, None]
    fold = np.array([places[genotype.served] % FOLDS for genotype, _ in known])
    misses = np.empty(len(known))
    for left_out in range(FOLDS):
        mine = fold == left_out
        misses[mine] = np.abs(shares[mine] @ _solved(shares[~mine]) - 1)
    return Prior(tuple(map(float, _solved(shares))), float(np.quantile(misses, 0.9)), len(took))


def features(genotype: Genotype, signature: Signature) -> NDArray[np.float64]:
    """How often a call pays each of `CONSTANTS`."""
    built, served = genotype.served, genotype.deployment
    step, units, batch = STEPS[built.cell], built.units, served.batch
    frames = math.ceil(signature.time_steps / built.frame_stack)
    turns = max(built.brick, math.ceil(frames / built.brick)) if built.brick else frames
    ways = built.layers * (2 if built.bidirectional else 1)
    matrix = step.gates * units * (2 * built.rank or units) if CELLS[built.cell].recurrent_matrix else 0
    width = (built.embedding if signature.vocabulary else signature.features) * built.frame_stack
    loop, scan, stock = (served.lowering == kind for kind in ("loop", "scan", "keras"))
    levels = math.ceil(math.log2(turns + 1))
    multiplied = frames * step.gates * units * (width + (built.layers - 1) * units) * (2 if built.bidirectional else 1)
    multiplied += (frames if signature.sequences else 1) * units * signature.outputs
    multiplied += turns * matrix * ways if batch > 1 else 0
    stepping = loop or stock
    return np.array(
        [
            1.0,
            ways * turns / served.steps if loop else 0.0,
            ways * step.operations * (turns if stepping else 1),
            ways * turns * step.transcendentals * units * batch / 1e3,
            ways * turns * matrix * WEIGHT_BYTES[served.bits] / 1e3 if stepping else 0.0,
            multiplied * batch / 1e6,
            ways * levels * step.operations if scan else 0.0,
            ways * turns if stock else 0.0,
        ]
    )


def _measured_ms(outcome: Outcome) -> float | None:
    """What a call of it took; None where that is not known, or of a model that is not brisk's."""
    built = outcome.genotype.architecture
    if built.model or built.hypermodel or outcome.stage == FORETOLD:
        return None
    return outcome.measurement.median_ms if outcome.measurement else outcome.untrained_ms


def _solved(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The constants, none negative, by which the features make up the whole of each call, in the least squares: what
    comes out negative is left out, until nothing does.
    """
    found = np.zeros(shares.shape[1])
    used = np.arange(shares.shape[1])
    while len(used):
        solved = np.linalg.lstsq(shares[:, used], np.ones(len(shares)), rcond=None)[0]
        if (solved >= 0).all():
            found[used] = solved
            break
        used = used[solved > 0]
    return found
