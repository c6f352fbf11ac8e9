"""The hypervolume of what a study has found, and how much it still grows: whether the search has settled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from objectives.objective import OBJECTIVES
from objectives.outcome import Outcome
from search.front import front, hypervolume

FEWEST = 10  # trained models that must have brought nothing
SHARE = 3  # and one in so many of all
LITTLE = 0.01
"""Growth below which a search has settled."""

NONE = 1000.0
"""A latency, size or memory so many times less than the corner's counts as none."""


def settled(outcomes: Iterable[Outcome], reference: Mapping[str, float]) -> bool | None:
    """Whether the last third of the trained models, ten or more, made the hypervolume grow by less than 1 %.

    `outcomes` in the order in which they were told, `reference` as in `search.summary.searched_corner`. None while
    there are too few to say, or nothing to measure from, or nothing lies below that corner.
    """
    told = [outcome for outcome in outcomes if outcome.error is not None]
    models = list(dict.fromkeys((outcome.genotype.architecture, outcome.genotype.training) for outcome in told))
    last = max(FEWEST, math.ceil(len(models) / SHARE))
    before = set(models[:-last])
    if len(models) < 2 * FEWEST or not reference:
        return None
    early = [each for each in told if (each.genotype.architecture, each.genotype.training) in before]
    then, now = (volume(_finished(some, reference), reference) for some in (early, told))
    return now - then < LITTLE * now if now else None


def volume(points: Iterable[Sequence[float]], reference: Mapping[str, float]) -> float:
    """The hypervolume of costs, in the order of `reference`, as a share of the box below that corner; 0.0 without one.

    Errors count as they are, other costs by their logarithm, down to a thousandth of the corner's: half of a latency is
    as much wherever it is.
    """
    if not reference:
        return 0.0
    scaled = [[_scaled(*each) for each in zip(reference, costs, reference.values(), strict=True)] for costs in points]
    return hypervolume(scaled, [1.0] * len(reference))


def _scaled(name: str, cost: float, corner: float) -> float:
    """From 0, none, to 1, the corner's."""
    if name == "quality":
        return cost / corner
    return 1 + math.log(max(cost / corner, 1 / NONE)) / math.log(NONE)


def _finished(outcomes: Iterable[Outcome], reference: Mapping[str, float]) -> list[list[float]]:
    """The costs of the finished ones among them that no other dominates."""
    rows = [
        [OBJECTIVES[name].read(outcome) for name in reference] for outcome in outcomes if outcome.state == "complete"
    ]
    costs = dict(enumerate([value for value in row if value is not None] for row in rows))
    whole = {place: row for place, row in costs.items() if len(row) == len(reference)}
    return [whole[place] for place in front(whole)]
