"""One candidate at several batch sizes, each lowered and measured as it would be served: nothing is extrapolated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from objectives.bench import Bench
from objectives.objective import over_bound
from objectives.outcome import Outcome
from spaces.genotype import Genotype
from spaces.space import Space

LADDER = (1, 4, 16, 32)
"""The batch sizes of a curve, where the space does not name several."""

PAYS = 0.10  # more throughput, for the next larger batch to be worth it
LONGER_S = 5.0  # than a sitting of the search may take; under other conditions no figure of such a one is reused


def forms(space: Space, genotype: Genotype) -> dict[str, Genotype]:
    """The candidate at each batch of the ladder, and at its own, by name: "batch-1", "batch-4", ..."""
    sizes = {*(space.batch if len(space.batch) > 1 else LADDER), genotype.deployment.batch}
    return {f"batch-{size}": at(genotype, size) for size in sorted(sizes)}


def at(genotype: Genotype, batch: int) -> Genotype:
    """The same weights in the same form, for calls of so many sequences."""
    return replace(genotype, deployment=replace(genotype.deployment, batch=batch))


def conditions(bench: Bench) -> Bench:
    """The bench of a curve: no bound, for what is over one is shown too, and a sitting of its own for all of it, in
    full: these figures are final, a look is not.
    """
    longer = replace(bench.conditions, timeout_s=bench.conditions.timeout_s + LONGER_S)
    return replace(bench, bounds={}, conditions=longer, in_full=True)


def curve(name: int | str, outcomes: Iterable[Outcome], bounds: Mapping[str, float]) -> dict[str, Any] | None:
    """The JSON of a curve: a row for each batch, the batch at its knee, and that in words; None without outcomes.

    A row's "excluded" says which bound it is over, or why there are no figures ("latency_ms" is None then); "" where
    it may be served.
    """
    rows = [_row(outcome, bounds) for outcome in sorted(outcomes, key=lambda one: one.genotype.deployment.batch)]
    if not rows:
        return None
    found = knee([(row["batch"], row["throughput_per_s"]) for row in rows if not row["excluded"]])
    return {"trial": name, "rows": rows, "knee": found, "text": _words(found, rows)}


def knee(throughput: Sequence[tuple[int, float]]) -> int | None:
    """The batch from which on throughput grows by less than 10 % to the next; the largest where it always grows more.

    `throughput` are (batch, sequences a second), by rising batch. None without any.
    """
    for (batch, now), (_, then) in pairwise(throughput):
        if then < (1 + PAYS) * now:
            return batch
    return throughput[-1][0] if throughput else None


def _row(outcome: Outcome, bounds: Mapping[str, float]) -> dict[str, Any]:
    batch, measured, artifact = outcome.genotype.deployment.batch, outcome.measurement, outcome.artifact
    if not measured or not artifact:
        why = f"{outcome.state} at {outcome.stage}: {outcome.reason}"
        unknown = ("latency_ms", "ms_per_sequence", "throughput_per_s", "peak_memory_bytes", "size_bytes")
        return {"batch": batch, **dict.fromkeys(unknown), "excluded": why}
    return {
        "batch": batch,
        "latency_ms": {
            "median": measured.median_ms,
            "ci": list(measured.ci_ms),
            "converged": measured.converged,
            "trusted": measured.trusted,
            "why": measured.why,
        },
        "ms_per_sequence": measured.median_ms / batch,
        "throughput_per_s": 1000 * batch / measured.median_ms,
        "peak_memory_bytes": measured.peak_memory_bytes,
        "size_bytes": artifact.size_bytes,
        "excluded": over_bound(outcome, bounds),
    }


def _words(found: int | None, rows: Sequence[Mapping[str, Any]]) -> str:
    if found is None:
        return "No batch of them can be served."
    served = [row["batch"] for row in rows if not row["excluded"]]
    if found == served[-1]:
        return f"Throughput still grows by 10 % or more up to a batch of {found}." if len(served) > 1 else ""
    return f"From a batch of {found} on, throughput grows by less than 10 %."
