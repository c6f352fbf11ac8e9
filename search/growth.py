"""How much the hypervolume still grows: whether a search has settled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from objectives.objective import OBJECTIVES
from objectives.outcome import Outcome
from search.front import front, hypervolume

FEWEST = 10  # trained models that must have brought nothing
SHARE = 3  # and one in so many of all
LITTLE = 0.01
"""Growth below which a search has settled."""


def settled(outcomes: Iterable[Outcome], reference: Mapping[str, float]) -> bool | None:
    """Whether the last third of the trained models, ten or more, made the hypervolume grow by less than 1 %.

    `outcomes` in the order in which they were told, `reference` as in `search.summary.reference_of`. None while there
    are too few to say, or nothing to measure from.
    """
    told = [outcome for outcome in outcomes if outcome.error is not None]
    models = list(dict.fromkeys((outcome.genotype.architecture, outcome.genotype.training) for outcome in told))
    last = max(FEWEST, math.ceil(len(models) / SHARE))
    before = set(models[:-last])
    if len(models) < 2 * FEWEST or not reference:
        return None
    now = volume(told, reference)
    early = [each for each in told if (each.genotype.architecture, each.genotype.training) in before]
    then = volume(early, reference)
    return bool(now) and now - then < LITTLE * now


def volume(outcomes: Iterable[Outcome], reference: Mapping[str, float]) -> float:
    """The hypervolume of the finished ones among them, in the units of the objectives."""
    rows = [
        [OBJECTIVES[name].read(outcome) for name in reference] for outcome in outcomes if outcome.state == "complete"
    ]
    costs = dict(enumerate([value for value in row if value is not None] for row in rows))
    whole = {place: row for place, row in costs.items() if len(row) == len(reference)}
    return hypervolume([whole[place] for place in front(whole)], list(reference.values()))
