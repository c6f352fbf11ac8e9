"""What is worth more time: which trainings go on at their rungs, and what is measured in full at the end."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from objectives.objective import OBJECTIVES, costs_of
from objectives.outcome import Outcome
from search.front import dominates, extended, front
from search.halving import goes_on

Key = TypeVar("Key", bound=Hashable)
Costs = Mapping[str, float | None]
"""By objective; None for what is not known."""


class Trainings:
    """The trainings that are under way, and what was known of them at the rungs they have passed.

    Threads of several workers may ask at once, while another adds to the outcomes.
    """

    def __init__(self, objectives: Sequence[str]) -> None:
        self._objectives = objectives
        self._passed: dict[str, dict[int, Sequence[Costs]]] = defaultdict(dict)  # group -> rung -> its forms
        self._over: dict[tuple[int, int], list[list[float]]] = {}  # what was known of a trial that is over, by rung
        self._best: Mapping[int, Sequence[float]] = {}  # of the finished ones, each as bad as noise may have it
        self._seen = 0  # of the outcomes, for that
        self._one = threading.Lock()

    def stop(self, group: str, question: Mapping[str, Any], outcomes: Mapping[int, Outcome]) -> str:
        """Why a training ends at a rung, "" where it goes on; those that are over count by their `outcomes`."""
        with self._one:
            return self._stop(group, question, _pairs(outcomes))

    def _stop(self, group: str, question: Mapping[str, Any], outcomes: Sequence[tuple[int, Outcome]]) -> str:
        rung, forms = question["rung"], question["forms"]
        self._passed[group][rung] = forms
        came: dict[str, list[list[float]]] = defaultdict(list)
        for other, passed in self._passed.items():
            came[other] += _all_known(passed.get(rung, ()), self._objectives)
        for number, outcome in outcomes:
            if outcome.genotype.group not in self._passed:
                if (number, rung) not in self._over:
                    self._over[number, rung] = _all_known([at_rung(outcome, rung)], self._objectives)
                came[outcome.genotype.group] += self._over[number, rung]
        if not came[group] or goes_on({key: costs for key, costs in came.items() if costs}, group):
            return ""
        learned = f"at epoch {question['epoch']} of {question['of']}, with an error of {forms[0]['quality']:.3g}"
        return f"{learned}, it was behind others that are as fast"

    def beaten(self, forms: Sequence[Outcome], outcomes: Mapping[int, Outcome]) -> list[bool]:
        """Of each form of a trained model, whether a finished candidate beats it beyond the noise of timing, should it
        come to the error that it is given with. `outcomes` are those so far, in the order in which they were told.
        """
        with self._one:
            told = _pairs(outcomes)
            for number, outcome in told[self._seen :]:
                for costs in _all_known([_at_end(outcome, 1)] if outcome.state == "complete" else (), self._objectives):
                    self._best = extended(self._best, number, costs)
            self._seen = len(told)
            rivals = tuple(self._best.values())
        mine = [_all_known([_at_end(form, 0)], self._objectives) for form in forms]
        return [any(dominates(rival, costs) for costs in known for rival in rivals) for known in mine]

    def over(self, group: str) -> None:
        """A training has come to its end: its outcomes tell of it from now on."""
        with self._one:
            self._passed.pop(group, None)


def _pairs(outcomes: Mapping[int, Outcome]) -> list[tuple[int, Outcome]]:
    """Those so far. Of a copy, for to make pairs may start a collection of garbage, in which another thread adds to
    them.
    """
    return list(dict(outcomes).items())


def at_rung(outcome: Outcome, rung: int) -> Costs:
    """What was known of a candidate when it came to a rung; one that needed no more epochs had learned all."""
    whole = outcome.quality.error if outcome.quality else outcome.trained_error
    error = outcome.learned[rung] if rung < len(outcome.learned) else whole
    looked = replace(outcome, measurement=None) if outcome.untrained_ms is not None else outcome
    return costs_of(outcome) | {"quality": error, "latency": OBJECTIVES["latency"].read(looked)}


def near_the_front(candidates: Mapping[Key, Outcome], objectives: Sequence[str]) -> list[Key]:
    """The finished candidates that may be on the front: those that nothing beats beyond the noise of timing."""
    complete = {key: outcome for key, outcome in candidates.items() if outcome.state == "complete"}
    ends = [_all_known((_at_end(outcome, end) for outcome in complete.values()), objectives) for end in (0, 1)]
    at_best, at_worst = (dict(zip(complete, end, strict=True)) for end in ends)
    rivals = [at_worst[key] for key in front(at_worst)]
    return [key for key, mine in at_best.items() if not any(dominates(rival, mine) for rival in rivals)]


def _at_end(outcome: Outcome, end: int) -> Costs:
    """The costs of a candidate at the lower or the upper end of its latency's interval, or of the noise from sitting to
    sitting where that is wider; and of its memory's.
    """
    costs = {
        name: None if cost is None else cost * (1 + (-1, 1)[end] * OBJECTIVES[name].noise)
        for name, cost in costs_of(outcome).items()
    }
    if outcome.measurement and costs["latency"] is not None:
        limit = outcome.measurement.ci_ms[end] / outcome.measurement.batch
        costs["latency"] = (min, max)[end](limit, costs["latency"])
    return costs


def _all_known(costs: Iterable[Costs], objectives: Sequence[str]) -> list[list[float]]:
    """Those of which every objective is known, as rows."""
    rows = [[each.get(name) for name in objectives] for each in costs]
    return [
        [value for value in row if value is not None]
        for row in rows
        if all(value is not None and math.isfinite(value) for value in row)
    ]
