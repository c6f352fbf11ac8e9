"""A study in the words of the contract: the JSON of `brisk show`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from objectives.objective import OBJECTIVES, over_bound, violations
from objectives.outcome import Outcome
from objectives.task import TASKS
from search.batches import curve, forms
from search.economy import economy
from search.front import RULES, dominates, front, led, pick, tied
from search.gains import compression, seeds_of, twins_of
from search.growth import volume
from search.health import advice, health
from search.history import History
from spaces.genotype import Genotype
from spaces.record import to_json

Z = 1.96
"""Standard errors to either side that hold 95 %."""

SAME_SIZE = 0.02
"""Files that differ by less, as a share, are no reason to look at both."""


class Kept(Protocol):
    """A study that can say what it holds."""

    def history(self) -> History: ...


def summarise(study: History | Kept) -> dict[str, Any]:
    """The JSON of `show`, from `search.history.read` or a running Study.

    More than the contract asks: each point has its "costs" by objective with their "intervals", the "ties" it has
    within noise, those beaten by no more than that among them, and whether its figures are "final" (measured again at
    the end). Of points of the front that tie, one stands for the others, whose "tie_of" it is. "rehearsal" is true
    where all are invented. "seconds" says where the time went, "health" and "advice" how the study goes
    (`search.health`). `speedup` and `throughput` are per sequence, so that forms of different batch sizes compare;
    `drop` is on validation, `test_drop` on test.
    """
    history = _upheld(study if isinstance(study, History) else study.history())
    numbers = front_of(history, final=True)
    points = _points(history, numbers)
    reference = reference_of(history)
    costs = [_costs(history, latest(history, number)) for number in numbers]
    found = {
        "study": history.name,
        "task": task_of(history),
        "objectives": list(history.plan.objectives),
        "bounds": history.plan.bench.bounds,
        "counts": history.counts,
        "duplicates": history.duplicates,
        "failures": _failures(history),
        "hypervolume": volume([[cost[name] for name in reference] for cost in costs], reference),
        "reference": reference,
        "wall_s": history.wall_s,
        "seconds": seconds(history),
        "training": throughput(history),
        "ended": history.ended,
        "rehearsal": history.plan.rehearsal,
        "final": bool(history.finals),
        "baseline": _baseline(history),
        "front": points,
        "economy": economy(history),
        "compression": compression(history),
        "batch_curve": _batch_curve(history, points),
    }
    checks = health(history, found, searched_corner(history))
    return found | {"health": checks, "advice": advice(history, found, checks)}


def task_of(history: History) -> dict[str, Any]:
    """The task as the spec has it, and what is known of its data."""
    return to_json(history.plan.bench.task) | dict(history.prepared.get("summary", {}))


def front_of(history: History, *, final: bool = False) -> list[int | str]:
    """The candidates that no other within the bounds dominates, the fastest first.

    By the figures of the search; with `final`, where there are figures from the end, by those, among the candidates
    that have them. They kept within the bounds in the search, so that only a latency whose whole interval is over its
    bound, or a memory by more than its noise, takes them off: the two figures are of different sittings.
    """
    pool = _finished(history, final=final)
    costs = {number: list(_costs(history, outcome).values()) for number, outcome in pool.items()}
    latency = OBJECTIVES["latency"].read
    return sorted(front(costs), key=lambda number: (latency(pool[number]) or 0.0, costs[number]))


def _finished(history: History, *, final: bool) -> dict[int | str, Outcome]:
    """What `front_of` chooses from."""
    measured = {key: outcome for key, outcome in history.finals.items() if key in history.candidates} if final else {}
    pool = measured or history.candidates
    bounds = history.plan.bench.bounds
    judged = {number: _lowest(outcome) for number, outcome in measured.items()} or pool
    return {
        number: outcome
        for number, outcome in pool.items()
        if outcome.state == "complete" and max(violations(judged[number], bounds).values(), default=0.0) <= 0
    }


def _lowest(outcome: Outcome) -> Outcome:
    """With the lowest latency that its interval allows, and the least memory that noise does."""
    measured = outcome.measurement
    if measured is None:
        return outcome
    memory = math.floor(measured.peak_memory_bytes * (1 - OBJECTIVES["memory"].noise))
    return replace(outcome, measurement=replace(measured, median_ms=measured.ci_ms[0], peak_memory_bytes=memory))


def _upheld(history: History) -> History:
    """With the measurements of the search where those of the end would leave no front at all."""
    if not history.finals or front_of(history, final=True):
        return history
    finals = dict(history.finals)
    for name, found in history.finals.items():
        if name in history.candidates:
            over = over_bound(_lowest(found), history.plan.bench.bounds) or "it was over a bound"
            reason = f"measured again at the end, {over}"
            searched = history.candidates[name].measurement
            finals[name] = replace(found, measurement=searched, reason=reason, notes=(*found.notes, reason))
    return replace(history, finals=finals)


def reference_of(history: History) -> dict[str, float]:
    """The corner that the hypervolume is measured from (`search.growth.volume`): {} before anything is known.

    For the error that of a constant predictor, for other objectives the baseline's value; in a study without one the
    bound, or else the worst finished candidate's. One of which there is none, as memory where the kernel hides it, is
    left out.
    """
    corner = {}
    for name in history.plan.objectives:
        if name == "quality":
            value = history.prepared.get("trivial_error")
        else:
            value = OBJECTIVES[name].read(latest(history, "baseline")) if history.baseline else None
            value = history.plan.bench.bounds.get(name) if value is None else value
        if value is None:
            known = [_costs(history, other)[name] for other in history.candidates.values() if other.weighed]
            value = max(known, default=None)
        if value is None:
            return {}
        corner[name] = float(value)
    return {name: value for name, value in corner.items() if value > 0}


def searched_corner(history: History) -> dict[str, float]:
    """That of the figures of the search, which are of other sittings than those of the end."""
    return reference_of(replace(history, finals={}))


def batches_left(history: History) -> dict[str, Genotype]:
    """The chosen candidate at each batch of its curve that is not in the record yet, by name: "batch-4"."""
    history = _upheld(history)
    numbers = front_of(history, final=True)
    points = [point_of(history, number, numbers) for number in numbers]
    wanted = forms(history.plan.space, latest(history, knee_of(points)).genotype) if points else {}
    kept = {name: outcome.genotype for name, outcome in history.batches.items()}
    return {name: genotype for name, genotype in wanted.items() if kept.get(name) != genotype}


def knee_of(points: Sequence[dict[str, Any]]) -> int | str:
    """The point whose curve over batch sizes is in the record: the one that `--pick` takes by default."""
    name: int | str = pick(points, "knee")["trial"]
    return name


def _batch_curve(history: History, points: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The curve of the chosen point; None while the record has none, or that of another."""
    if not points:
        return None
    name = knee_of(points)
    mine = forms(history.plan.space, latest(history, name).genotype)
    kept = [found for key, found in history.batches.items() if mine.get(key) == found.genotype]
    return curve(name, kept, history.plan.bench.bounds)


def nearest_miss(history: History) -> str:
    """The refused candidate that was nearest to its bounds, in words, for a study in which nothing kept within them."""
    refused = {number: outcome for number, outcome in history.candidates.items() if outcome.state == "infeasible"}
    if not refused:
        return "no candidate was finished"

    def over(number: int | str) -> float:
        return max(violations(refused[number], history.plan.bench.bounds).values(), default=math.inf)

    number = min(refused, key=over)
    named = f"trial {number}" if isinstance(number, int) else number
    return f"the nearest miss is {named}: {refused[number].reason}"


def seconds(history: History) -> dict[str, Any]:
    """Where the wall time went, and the workers' time by stage, which several of them spend at once. `idle_share` is
    that of the workers' time in which they had nothing to do, or waited for the device.
    """
    stages: dict[str, float] = {}
    beside = (*history.twins.values(), *history.batches.values(), *history.seeds.values())
    for outcome in (*history.candidates.values(), *beside, *([history.baseline] if history.baseline else [])):
        for stage, spent in outcome.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + spent
    other = max(history.wall_s - history.training_s - history.measuring_s, 0.0)
    return {
        "training": history.training_s,
        "measuring": history.measuring_s,
        "other": other,
        "other_share": other / history.wall_s if history.wall_s else 0.0,
        "idle_share": history.idle_s / history.workers_s if history.workers_s else 0.0,
        "stages": stages,
    }


def throughput(history: History) -> dict[str, Any]:
    """How fast it trained: sequences an epoch times epochs, and how many a worker takes in a second of its epochs,
    validation included. `wall_share` is that of the wall time in which something trained and nothing was measured.
    """
    return {
        "sequences": history.sequences,
        "epochs_s": history.epochs_s,
        "sequences_per_s": history.sequences / history.epochs_s if history.epochs_s else 0.0,
        "wall_share": history.training_s / history.wall_s if history.wall_s else 0.0,
    }


def latest(history: History, name: int | str) -> Outcome:
    if name in history.finals:
        return history.finals[name]
    if name in history.candidates:
        return history.candidates[name]
    assert history.baseline, "only a study with a baseline is asked for it"
    return history.baseline


def _costs(history: History, outcome: Outcome) -> dict[str, float]:
    values = {name: OBJECTIVES[name].read(outcome) for name in history.plan.objectives}
    return {name: math.inf if value is None else value for name, value in values.items()}


def _failures(history: History) -> list[dict[str, Any]]:
    baseline: list[tuple[int | str, Outcome]] = [("baseline", history.baseline)] if history.baseline else []
    return [
        {"trial": name, "stage": outcome.stage, "reason": outcome.reason}
        for name, outcome in [*baseline, *history.candidates.items(), *history.twins.items(), *history.seeds.items()]
        if outcome.state == "failed"
    ]


def _baseline(history: History) -> dict[str, Any] | None:
    complete = history.baseline is not None and history.baseline.state == "complete"
    return point_of(history, "baseline") if complete else None


def _points(history: History, names: Sequence[int | str]) -> list[dict[str, Any]]:
    """The POINTs of a front, the fastest first; of those that tie, one stands for the others: what a rule of `--pick`
    takes, so that it is always seen, else the fastest.
    """
    points = [point_of(history, name, names) for name in names]
    for name, by in _beaten(history, names).items():
        points[by]["ties"].append(name)
    picked = [pick(points, rule)["trial"] for rule in RULES] if points else []
    of = led(list(dict.fromkeys([*picked, *names])), {point["trial"]: point["ties"] for point in points})
    return [point | {"tie_of": of[point["trial"]]} for point in points]


def _beaten(history: History, names: Sequence[int | str]) -> dict[int | str, int]:
    """What noise alone keeps off a front that was measured again, and the place in it of the first that beats it."""
    if not history.finals:
        return {}
    found = {}
    costs = {name: _costs(history, latest(history, name)) for name in names}
    rest = {name: one for name, one in _finished(history, final=True).items() if name not in costs}
    for name, outcome in rest.items():
        mine = _costs(history, outcome)
        by = [place for place, other in enumerate(names) if dominates([*costs[other].values()], [*mine.values()])]
        if by and all(_tied(mine, outcome, history, latest(history, names[place])) for place in by):
            found[name] = by[0]
    return found


def point_of(history: History, name: int | str, others: Sequence[int | str] = ()) -> dict[str, Any]:
    """A POINT of the contract; its `ties` are sought among `others`."""
    outcome = latest(history, name)
    quality, measurement, artifact = outcome.quality, outcome.measurement, outcome.artifact
    assert quality, "only finished candidates become points"
    assert measurement, "only finished candidates become points"
    assert artifact, "only finished candidates become points"
    against = _against(history, name, outcome)
    costs = _costs(history, outcome)
    return {
        "trial": name,
        "genotype": to_json(outcome.genotype),
        "quality": {
            "metric": quality.metric,
            "validation": quality.validation,
            "stderr": quality.stderr,
            "test": quality.test,
            "test_stderr": quality.test_stderr,
            "output_error": quality.output_error,
        },
        "latency_ms": {
            "median": measurement.median_ms,
            "ci": list(measurement.ci_ms),
            "converged": measurement.converged,
            "scenario": measurement.scenario,
            "batch": measurement.batch,
            "threads": measurement.threads,
            "device": measurement.device,
            "trusted": measurement.trusted,
            "why": measurement.why,
        },
        "throughput_per_s": _per_s(outcome),
        "size_bytes": artifact.size_bytes,
        "compressed_bytes": artifact.compressed_bytes,
        "peak_memory_bytes": measurement.peak_memory_bytes,
        **against,
        "artifact": {
            "format": artifact.format,
            "sha256": artifact.sha256,
            "realised_bits": artifact.realised_bits,
            "exporter": artifact.exporter,
            "keeps_state": artifact.keeps_state,
        },
        "costs": costs,
        "intervals": {objective: _interval(history, objective, outcome) for objective in costs},
        "ties": [other for other in others if other != name and _tied(costs, outcome, history, latest(history, other))],
        "tie_of": None,
        "final": name in history.finals and not outcome.reason,
        "twins": twins_of(history, name),
        "seeds": seeds_of(history, name),
        "notes": list(outcome.notes),
    }


def _interval(history: History, name: str, outcome: Outcome) -> list[float] | None:
    """The 95 % interval of an objective, in its unit; None of a quality whose standard error is not known.

    Of the error on test data where those have been read. A size is exact; memory varies by its noise.
    """
    quality, measured = outcome.quality, outcome.measurement
    assert quality, "only finished candidates become points"
    assert measured, "only finished candidates become points"
    value = OBJECTIVES[name].read(outcome)
    if name == "quality":
        tested = quality.test is not None and quality.test_stderr is not None
        value, stderr = quality.error, quality.stderr
        if tested:
            value, stderr = TASKS[history.plan.bench.task.kind].error(quality.test or 0.0), quality.test_stderr
        return None if stderr is None else [max(value - Z * stderr, 0.0), value + Z * stderr]
    if name == "latency":
        return [end / measured.batch for end in measured.ci_ms]
    noise = OBJECTIVES[name].noise
    return None if value is None else [value * (1 - noise), value * (1 + noise)]


def _tied(costs: dict[str, float], outcome: Outcome, history: History, other: Outcome) -> bool:
    """Whether noise cannot tell two finished candidates apart in any objective."""
    theirs = _costs(history, other)
    within = [_noise(name, max(costs[name], theirs[name]), outcome, other) for name in costs]
    return tied(list(costs.values()), list(theirs.values()), within)


def _noise(name: str, value: float, a: Outcome, b: Outcome) -> float:
    """The difference in an objective that says nothing, in its unit: of an error one combined standard error, of a
    latency its noise from sitting to sitting, or that of the two intervals where they are wider.
    """
    if name == "quality":
        return math.hypot(*((each.quality.stderr or 0.0) if each.quality else 0.0 for each in (a, b)))
    share = max(OBJECTIVES[name].noise, SAME_SIZE if name == "size" else 0.0)
    if name == "latency":
        return max(share * value, math.hypot(*(_half_width(each) for each in (a, b))))
    return share * value


def _half_width(outcome: Outcome) -> float:
    """Of the interval of its latency per sequence, in ms."""
    measured = outcome.measurement
    return (measured.ci_ms[1] - measured.ci_ms[0]) / 2 / measured.batch if measured else 0.0


def _against(history: History, name: int | str, outcome: Outcome) -> dict[str, float | None]:
    """Speedup and drops against the baseline; None without one. Two sittings do not compare: where one of the two was
    not measured again, both have their latencies of the search.
    """
    if history.baseline is None or history.baseline.state != "complete":
        return {"speedup": None, "drop": None, "test_drop": None}
    base, searched = latest(history, "baseline"), history.candidates.get(name)
    if outcome.reason or base.reason:
        base = replace(base, measurement=history.baseline.measurement)
        outcome = replace(outcome, measurement=searched.measurement if searched else outcome.measurement)
    assert base.quality, "the baseline is complete"
    assert outcome.quality, "only finished candidates are compared"
    test_drop = None
    if base.quality.test is not None and outcome.quality.test is not None:
        error = TASKS[history.plan.bench.task.kind].error
        test_drop = error(outcome.quality.test) - error(base.quality.test)
    return {
        "speedup": _per_s(outcome) / _per_s(base),
        "drop": outcome.quality.error - base.quality.error,
        "test_drop": test_drop,
    }


def _per_s(outcome: Outcome) -> float:
    assert outcome.measurement, "only finished candidates are compared"
    return outcome.measurement.batch / outcome.measurement.median_ms * 1000
