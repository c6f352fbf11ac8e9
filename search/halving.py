"""Successive halving with several objectives: which trainings go on at a rung.

Candidates that came to a rung are ranked as NSGA-II ranks (Deb et al. 2002): by front, and within a front by crowding
distance. Inside a rung the better half goes on (asynchronous successive halving: Li et al. 2018, arXiv 1810.05934), and
whatever nothing dominates: latency and size are known before training, and a fast model may learn slowly. A stopped
training is not promoted when its rung fills later (the stopping variant); whoever asks for it again takes it up.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from search.front import Costs, foremost

ETA = 2
"""One in so many goes on, of those that something dominates."""

Key = TypeVar("Key", bound=Hashable)


def goes_on(rung: Mapping[Key, Sequence[Costs]], mine: Key) -> bool:
    """Whether a candidate goes on: `rung` has the costs of every form of those that came there, `mine` among them."""
    places = math.ceil(len(rung) / ETA)
    for rank, ranked in enumerate(standing(rung)):
        if mine in ranked:
            return rank == 0 or ranked.index(mine) < places
        places -= len(ranked)
        if places <= 0:
            return False
    raise KeyError(mine)


def standing(rung: Mapping[Key, Sequence[Costs]]) -> Iterator[list[Key]]:
    """The candidates by front, the best first, each where its best form is; within a front the least crowded first."""
    owner = [key for key, forms in rung.items() for _ in forms]
    costs = np.array([form for forms in rung.values() for form in forms], dtype=np.float64)
    left = np.arange(len(owner))
    while left.size:
        distance = crowding({place: costs[place] for place in left[foremost(costs[left])]})
        ranked = list(dict.fromkeys(owner[place] for place in sorted(distance, key=lambda one: -distance[one])))
        yield ranked
        placed = set(ranked)
        left = np.array([place for place in left if owner[place] not in placed], dtype=np.intp)


def crowding(points: Mapping[Key, Costs]) -> dict[Key, float]:
    """The crowding distance of each point among its front: the ends of every objective are infinitely far."""
    found: dict[Key, float] = dict.fromkeys(points, 0.0)
    for axis in range(len(next(iter(points.values()), ()))):
        ordered = sorted(points, key=lambda key: points[key][axis])
        span = points[ordered[-1]][axis] - points[ordered[0]][axis]
        found[ordered[0]] = found[ordered[-1]] = math.inf
        for before, key, after in zip(ordered, ordered[1:], ordered[2:], strict=False):
            found[key] += (points[after][axis] - points[before][axis]) / span if span else 0.0
    return found
