"""The objectives a study may weigh: each a row with its direction, its unit and how it is read off an outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from objectives.outcome import Outcome


@dataclass(frozen=True)
class Objective:
    """One cost, always minimised. `read` gives None where the outcome does not know it; `bound` names its spec key.

    Latency, and with it its bound, is per sequence, the time of a call divided by its batch: so forms of different
    batch sizes compare, as they do by speedup.
    """

    name: str
    unit: str
    bound: str  # the key that bounds it in `[objectives]`, in `unit`
    noise: float  # relative difference below which two measured values are a tie
    read: Callable[[Outcome], float | None]


def _error(outcome: Outcome) -> float | None:
    return outcome.quality.error if outcome.quality else None


def _latency(outcome: Outcome) -> float | None:
    if outcome.measurement:
        return outcome.measurement.median_ms / outcome.measurement.batch
    return None if outcome.untrained_ms is None else outcome.untrained_ms / outcome.genotype.deployment.batch


def _size(outcome: Outcome) -> float | None:
    return outcome.artifact.size_bytes / 1024 if outcome.artifact else None


def _memory(outcome: Outcome) -> float | None:
    return outcome.measurement.peak_memory_bytes / 1024 if outcome.measurement else None


OBJECTIVES: dict[str, Objective] = {
    "quality": Objective("quality", "error", "max_error", 0.0, _error),
    "latency": Objective("latency", "ms", "max_ms", 0.03, _latency),
    "size": Objective("size", "KiB", "max_kb", 0.0, _size),
    "memory": Objective("memory", "KiB", "max_kb", 0.1, _memory),
}


def costs_of(outcome: Outcome) -> dict[str, float | None]:
    """What is known of an outcome, by objective."""
    return {name: row.read(outcome) for name, row in OBJECTIVES.items()}


def learned_cost(outcome: Outcome, name: str) -> float | None:
    """One of its costs, of a model without a file the error that its training came to; None for what is not known."""
    return outcome.error if name == "quality" else OBJECTIVES[name].read(outcome)


def violations(outcome: Outcome, bounds: Mapping[str, float]) -> dict[str, float]:
    """How far each known figure is over its bound, as a share of the bound; 0 or negative where it keeps within.

    A share, because samplers add up the violations of bounds in different units.
    """
    known = {name: value for name in bounds if (value := OBJECTIVES[name].read(outcome)) is not None}
    return {name: (value - bounds[name]) / (abs(bounds[name]) or 1.0) for name, value in known.items()}


def over_bound(outcome: Outcome, bounds: Mapping[str, float]) -> str:
    """The first bound that an outcome is over, in words; "" where it keeps within all."""
    for name, over in violations(outcome, bounds).items():
        if over > 0:
            value, unit = OBJECTIVES[name].read(outcome), OBJECTIVES[name].unit
            return f"{name} {value:.4g} {unit} is over the bound of {bounds[name]:g}"
    return ""
