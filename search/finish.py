"""The end of a study: front, its twins and the baseline are judged once more, and those figures are the ones shown.

Measured minima are biased low by the search that chose them (the winner's curse), so all are measured again,
interleaved in one sitting while nothing trains; and the test part is read, for the first time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from objectives.cache import Cache
from objectives.latency.devices import reached
from objectives.outcome import MeasureFailure, Measurement, Outcome, Quality
from search.budget import Limits
from search.isolate import CallFailed, Child, ChildDied, Event
from search.study import Study
from search.summary import front_of
from search.twins import wanted
from search.worth import near_the_front
from spaces.errors import CandidateError, DeviceError
from spaces.record import from_json, to_json

MORE_PROCESSES = 4  # than a sitting of the search may have
SECONDS_A_MODEL = 2.0  # more than such a sitting may take
MOST = 60  # models: what is within noise of the front comes after it, and after so many of it not at all

DAMAGED = "its file in the cache is damaged or gone"

Measured = Sequence[Measurement | MeasureFailure]


def finish(study: Study, child: Child, on_event: Callable[[Event], None], limits: Limits) -> float:
    """Keep the final figures of the front, its twins and the baseline; gives the seconds spent measuring.

    `child` reads the test part; one that dies of it is replaced, and what it dies of twice left out.
    What cannot be had is told as {"event": "warning", "text"}, and the figures of the search stay; an outcome with a
    `reason` has its measurement of the search still, one whose file was damaged, or cannot be run on the test part, all
    of its figures. Nothing is done where no trial was told since the last time.
    """
    history = study.history()
    best = front_of(history)
    near = near_the_front(history.candidates, history.plan.objectives)
    chosen = [*dict.fromkeys([*best, *near])][: max(MOST, len(best))]
    found: dict[int | str, Outcome] = {name: history.candidates[name] for name in chosen}
    current = wanted(history)
    found |= {name: twin for name, twin in history.twins.items() if twin.measurement and twin.genotype in current}
    if history.baseline and history.baseline.state == "complete":
        found = {"baseline": history.baseline, **found}
    if not found or set(found) <= set(history.finals):
        return 0.0
    try:
        tested, deaths = _tested(study, list(found.values()), child, on_event, limits)
    except (ChildDied, CallFailed, CandidateError) as error:
        on_event({"event": "warning", "text": f"the test figures are missing: {error}"})
        return 0.0
    alive = [name for place, name in enumerate(found) if place not in deaths]
    qualities = dict(zip(alive, tested["quality"], strict=True))
    whys = {name: deaths.get(place, DAMAGED) for place, name in enumerate(found)}
    finals = {name: _unmeasured(outcome, whys[name]) for name, outcome in found.items() if not qualities.get(name)}
    found = {name: outcome for name, outcome in found.items() if name not in finals}
    on_event({"event": "stage", "stage": "measure", "form": None, "detail": f"the front again, {len(found)} models"})
    started = time.monotonic()
    try:
        measured = _measured(study, list(found.values()), tested, on_event)
    except DeviceError as error:  # the next session may do better
        on_event({"event": "warning", "text": f"the front is not measured again: {error}"})
        return 0.0
    spent = time.monotonic() - started
    for (name, outcome), measurement in zip(found.items(), measured, strict=True):
        again = replace(outcome, quality=from_json(Quality, qualities[name]))
        if isinstance(measurement, Measurement):
            finals[name] = replace(again, measurement=measurement)
        else:
            finals[name] = _unmeasured(again, measurement.reason)
    study.keep_final(finals)
    return spent


def _unmeasured(outcome: Outcome, why: str) -> Outcome:
    """With the measurement of the search, and why there is no other."""
    reason = f"could not be measured again: {why}"
    return replace(outcome, stage="measure", reason=reason, notes=(*outcome.notes, reason))


def _tested(
    study: Study, found: list[Outcome], child: Child, on_event: Callable[[Event], None], limits: Limits
) -> tuple[dict[str, Any], dict[int, str]]:
    """What `final` of the evaluator gives of those that it does not die of, and by place how it died of the others,
    which are left out: at its second death at the same one. Raises ChildDied where it died twice of none.
    """
    left, deaths, died = list(range(len(found))), dict[int, str](), set[int | None]()
    at: int | None = None

    def hear(event: Event) -> None:
        nonlocal at
        at = event["form"] if event["event"] == "stage" else at
        on_event(event)

    while left:
        at = None
        arguments = {
            "bench": to_json(study.bench),
            "genotypes": [to_json(found[place].genotype) for place in left],
            "outcomes": [to_json(found[place]) for place in left],
        }
        try:
            told = child.call(
                f"{study.plan.evaluator}:final",
                arguments,
                timeout_s=limits.group_timeout_s and limits.group_timeout_s * (1 + len(left)),
                on_event=hear,
                stage_timeouts=limits.stage_timeouts,
                stage_memory_bytes=limits.stage_memory_bytes,
            )
        except ChildDied as death:
            place = None if at is None else left[at]
            if place in died:
                if place is None:
                    raise
                left.remove(place)
                deaths[place] = f"the worker that ran it on the test part {death.reason}"
            died.add(place)
            continue
        return dict(told), deaths
    return {"quality": []}, deaths


def _measured(
    study: Study, found: list[Outcome], tested: dict[str, Any], on_event: Callable[[Event], None]
) -> Measured:
    """All in one sitting, given time by their number, in milliseconds as they are while nothing else runs: those of the
    search are as they were when its home first measured, which others may have disturbed. An evaluator of invented
    figures has told its own.
    """
    if "measurement" in tested:
        return [from_json(Measurement, plain) for plain in tested["measurement"]]
    asked = study.plan.bench.conditions
    conditions = replace(
        asked,
        max_processes=asked.max_processes + MORE_PROCESSES,
        timeout_s=asked.timeout_s + SECONDS_A_MODEL * len(found),
    )
    cache = Cache(study.plan.bench.home)
    paths = [cache.artifact(outcome.artifact.sha256) for outcome in found if outcome.artifact]
    with reached(study.plan.bench.device) as tool:
        return tool.measure(paths, conditions, emit=on_event)
