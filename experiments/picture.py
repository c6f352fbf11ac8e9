"""What a drawing of the front shows: the marks, the frame they fit into, and the words above them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from experiments.figures import number
from experiments.report import REHEARSAL, bits, provenance
from objectives.outcome import Outcome
from search.ledger import form, title
from spaces.record import to_json

SMALLER_IS_BETTER = ("rmse", "mae", "mse", "loss", "error")


@dataclass(frozen=True)
class Mark:
    """One candidate as drawn: its figures, latency that of one sequence, and its name."""

    trial: int | str  # "baseline" where it is no trial
    x_ms: float
    low_ms: float
    high_ms: float
    y: float
    stderr: float
    size_kib: float
    name: str


@dataclass(frozen=True)
class Picture:
    """What both drawings show. `others` are candidates off the front, `over` those of them beyond a bound."""

    metric: str
    smaller_is_better: bool
    tested: bool
    front: tuple[Mark, ...]
    baseline: Mark | None
    others: tuple[Mark, ...]
    over: tuple[Mark, ...]
    batched: bool  # whether some take several sequences a call

    @property
    def x_label(self) -> str:
        """The axis says what is timed; calls of different batch sizes compare by the sequence."""
        timed = "one sequence of a call" if self.batched else "one call"
        return f"latency of {timed}, ms (median, 95 % interval)"

    @property
    def y_label(self) -> str:
        """The axis says which data the figures are of."""
        return f"{self.metric}, {'test' if self.tested else 'validation'} data"

    @property
    def others_label(self) -> str:
        """Candidates off the front are never read on the test part."""
        return "other candidates, validation data" if self.tested else "other candidates"

    @property
    def chief(self) -> tuple[Mark, ...]:
        """Those the frame must hold: the front and the baseline."""
        return (*self.front, *([self.baseline] if self.baseline else []))

    @property
    def log_y(self) -> bool:
        """An error that spans a decade is read on a log axis; a score never."""
        low, high = min((m.y for m in self.chief), default=1.0), max((m.y for m in self.chief), default=1.0)
        return self.smaller_is_better and 0 < 10 * low <= high


def picture(summary: Mapping[str, Any], outcomes: Sequence[tuple[int | str, Outcome]] = ()) -> Picture:
    """The marks of a study: front and baseline from the JSON of `show`, the rest from the outcomes."""
    front = tuple(sorted((_mark(point) for point in summary["front"]), key=lambda mark: mark.x_ms))
    baseline = _mark(summary["baseline"]) if summary.get("baseline") else None
    points = [*summary["front"], *([summary["baseline"]] if summary.get("baseline") else [])]
    metric = points[0]["quality"]["metric"] if points else "quality"
    tested = bool(points) and all(point["quality"].get("test") is not None for point in points)
    shown = {mark.trial for mark in front} | ({baseline.trial} if baseline else set())
    rest = [(n, o) for n, o in outcomes if n not in shown and o.quality and o.measurement]
    others = tuple(_outcome_mark(n, o) for n, o in rest if o.state != "infeasible")
    over = tuple(_outcome_mark(n, o) for n, o in rest if o.state == "infeasible")
    batched = any(p["latency_ms"]["batch"] > 1 for p in points) or any(o.genotype.deployment.batch > 1 for _, o in rest)
    return Picture(metric, metric.startswith(SMALLER_IS_BETTER), tested, front, baseline, others, over, batched)


def _mark(point: Mapping[str, Any]) -> Mark:
    measured, found = point["latency_ms"], point["quality"]
    tested = found.get("test") is not None
    return Mark(
        trial=point["trial"],
        x_ms=measured["median"] / measured["batch"],
        low_ms=measured["ci"][0] / measured["batch"],
        high_ms=measured["ci"][1] / measured["batch"],
        y=found["test"] if tested else found["validation"],
        stderr=(found.get("test_stderr") or 0.0) if tested else 0.0,
        size_kib=point["size_bytes"] / 1024,
        name=f"{title(point['genotype'])} · {bits(point)} · {form(point['genotype'])}",
    )


def _outcome_mark(trial: int | str, outcome: Outcome) -> Mark:
    assert outcome.quality is not None
    assert outcome.measurement is not None
    plain, measured = to_json(outcome.genotype), outcome.measurement
    name = f"{title(plain)} · {outcome.genotype.deployment.bits} · {form(plain)}"
    size = outcome.artifact.size_bytes / 1024 if outcome.artifact else 0.0
    x_ms, low_ms, high_ms = (each / measured.batch for each in (measured.median_ms, *measured.ci_ms))
    return Mark(trial, x_ms, low_ms, high_ms, outcome.quality.validation, 0.0, size, name)


def headline(summary: Mapping[str, Any], shown: Picture) -> list[str]:
    """One or two lines: what there is, and what the speedups are against; invented figures are said to be such."""
    count = len(shown.front)
    invented = f"{REHEARSAL} · " if summary.get("rehearsal") else ""
    line = f"{invented}{summary['study']}: {count or 'no'} model{'' if count == 1 else 's'} on the front"
    fastest = max((point.get("speedup") or 0.0 for point in summary["front"]), default=0.0)
    baseline = summary.get("baseline")
    if not fastest:
        return [line]
    return [f"{line}, up to {number(fastest)} times faster than the baseline"] + (
        [f"baseline: {provenance(baseline)}"] if baseline else []
    )


def running_best(shown: Picture) -> list[float]:
    """The best figure at each latency or less: test figures may dip where validation figures did not."""
    best: list[float] = []
    for mark in shown.front:
        best.append(mark.y if not best else (min if shown.smaller_is_better else max)(best[-1], mark.y))
    return best


def y_range(shown: Picture) -> tuple[float, float]:
    """The range of front and baseline with a margin: candidates that failed to learn must not squeeze them."""
    marks = shown.chief or (*shown.others, *shown.over)
    if not marks:
        return 0.0, 1.0
    if shown.log_y:
        return min(mark.y for mark in marks) / 1.4, max(mark.y for mark in marks) * 1.4
    low, high = min(mark.y - mark.stderr for mark in marks), max(mark.y + mark.stderr for mark in marks)
    margin = 0.15 * (high - low) or 0.05 * (abs(high) or 1.0)
    return low - margin, high + margin


def x_range(shown: Picture) -> tuple[float, float]:
    marks = [mark for mark in (*shown.chief, *shown.others, *shown.over) if mark.x_ms > 0]
    return (
        min((mark.x_ms for mark in marks), default=0.1) / 1.5,
        max((mark.x_ms for mark in marks), default=10.0) * 1.5,
    )


def ticks(span: tuple[float, float]) -> list[float]:
    """1, 2, 5 of each decade, or the ones alone where there are many decades."""
    decades = range(math.floor(math.log10(span[0])), math.ceil(math.log10(span[1])) + 1)
    parts = (1, 2, 5) if len(decades) <= 6 else (1,)
    return [tick for power in decades for part in parts if span[0] <= (tick := float(f"{part}e{power}")) <= span[1]]


def stairs(shown: Picture) -> list[tuple[float, float]]:
    """Points along the drawn front, and the baseline: what no label may cover."""
    best, points = running_best(shown), [(mark.x_ms, mark.y) for mark in shown.chief]
    for (left, right), (low, high) in zip(pairwise(shown.front), pairwise(best), strict=True):
        shares = [step / 20 for step in range(21)]
        points += [(left.x_ms * (right.x_ms / left.x_ms) ** share, low) for share in shares]
        points += [(right.x_ms, low + share * (high - low)) for share in shares]
    return points
