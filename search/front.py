"""Which candidates are worth a look: dominance, ties within noise, hypervolume, and the rules that pick one point."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from objectives.task import TASKS
from spaces.errors import InputError, NothingFeasible, nearest

Key = TypeVar("Key", bound=Hashable)
Costs = Sequence[float]
"""One value per objective, all minimised."""
Point = Mapping[str, Any]
"""A POINT of the contract's JSON, with "costs": objective name -> value."""


def dominates(a: Costs, b: Costs) -> bool:
    """Whether a is nowhere worse than b and somewhere better."""
    better = False
    for x, y in zip(a, b, strict=True):
        if x > y:
            return False
        better = better or x < y
    return better


def front(points: Mapping[Key, Costs]) -> list[Key]:
    """The keys of the points that no other dominates, by rising costs; of equal points all are kept."""
    keys = list(points)
    return [keys[place] for place in foremost(np.array([*points.values()], dtype=np.float64))] if keys else []


def foremost(costs: NDArray[np.float64]) -> NDArray[np.intp]:
    """The places of the rows [points, objectives] that no other dominates, as `front` orders them."""
    left, found = np.lexsort(costs.T[::-1]), []  # whatever dominates a row comes before it
    while left.size:
        first, others = left[0], left[1:]
        found.append(first)
        better, same = costs[others] < costs[first], costs[others] == costs[first]
        left = others[better.any(axis=1) | same.all(axis=1)]
    return np.array(found, dtype=np.intp)


def extended(points: Mapping[Key, Costs], key: Key, costs: Costs) -> Mapping[Key, Costs]:
    """A front with another point, without those that it dominates; the same front where that changes nothing."""
    if any(dominates(other, costs) for other in points.values()):
        return points
    return {one: other for one, other in points.items() if not dominates(costs, other)} | {key: costs}


def tied(a: Costs, b: Costs, within: Costs) -> bool:
    """Whether two points differ in no objective by more than what is `within` noise of it, in the objective's unit."""
    return all(abs(x - y) <= noise for x, y, noise in zip(a, b, within, strict=True))


def led(keys: Sequence[Key], ties: Mapping[Key, Collection[Key]]) -> dict[Key, Key | None]:
    """For each key the one that stands for it: the first before it that it ties with and that stands for itself.

    None for those that stand for themselves. Two that tie with the same one need not tie with each other: whatever is
    not shown is at least within noise of what stands for it.
    """
    found: dict[Key, Key | None] = {}
    for key in keys:
        found[key] = next((one for one in found if found[one] is None and one in ties[key]), None)
    return found


def hypervolume(points: Sequence[Costs], reference: Costs) -> float:
    """The volume that the points dominate within the box below the reference point, exact in any dimension.

    Points not better than the reference in every objective add nothing. By slicing along the last objective (While et
    al., "A faster algorithm for calculating hypervolume", 2006): meant for fronts of up to some hundred points.
    """
    inside = [tuple(point) for point in points if all(x < r for x, r in zip(point, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(point[0] for point in inside)
    if len(reference) == 2:
        return _area(inside, reference)
    inside.sort(key=lambda point: point[-1])
    tops = [point[-1] for point in inside[1:]] + [reference[-1]]
    volume = 0.0
    below: Mapping[int, Costs] = {}
    for index, (point, top) in enumerate(zip(inside, tops, strict=True)):
        below = extended(below, index, point[:-1])
        if top > point[-1]:
            volume += (top - point[-1]) * hypervolume(list(below.values()), reference[:-1])
    return volume


def _area(points: Sequence[Costs], reference: Costs) -> float:
    area, lowest = 0.0, reference[1]
    for x, y in sorted((x, y) for x, y in points):
        if y < lowest:
            area += (reference[0] - x) * (lowest - y)
            lowest = y
    return area


# Rules ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bound:
    field: str
    sign: str
    limit: float

    def miss(self, point: Point) -> float:
        """By how much of the limit the point is over it; 0 where it keeps within."""
        value = _field(point, self.field)
        if _SIGNS[self.sign](value, self.limit):
            return 0.0
        return max(abs(value - self.limit), 1e-12) / (abs(self.limit) or 1.0)


_SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<=": lambda value, limit: value <= limit + _ROUNDING,
    ">=": lambda value, limit: value >= limit - _ROUNDING,
}
_ROUNDING = 1e-9  # a drop is a difference of two shares: 0.05 - 0.02 is a little more than 0.03

_READ: dict[str, Callable[[Point], float | None]] = {
    "drop": lambda point: point["drop"],
    "speedup": lambda point: point["speedup"],
    "latency_ms": lambda point: _latency(point),
    "throughput_per_s": lambda point: point["throughput_per_s"],
    "size_kb": lambda point: point["size_bytes"] / 1024,
    "size_bytes": lambda point: point["size_bytes"],
    "memory_kb": lambda point: point["peak_memory_bytes"] / 1024,
    "peak_memory_bytes": lambda point: point["peak_memory_bytes"],
    "validation": lambda point: point["quality"]["validation"],
    "test": lambda point: point["quality"]["test"],
}
"""What a rule may bound, beside the metric's own name, which is its validation figure: test is not for choosing.
Latency is per sequence, as in the objective of that name."""

AGAINST = ("drop", "speedup")
"""Those of them that compare a point with the baseline."""

RULES = ("knee", "fastest", "best")


def pick(points: Sequence[Point], rule: str) -> Point:
    """The point that a rule chooses: "knee", "fastest", "best", or bounds such as "drop<=0.005,size_kb<=50".

    "best" has the lowest error, "fastest" the lowest latency, also within bounds; "knee" lies nearest to the corner
    where every cost is the front's lowest, costs scaled to the front's range and, but for the error, by logarithm.
    Raises InputError for a rule that is none, NothingFeasible, naming the nearest miss, where no point keeps within it.
    """
    bounds = [] if rule in RULES else [_parsed(part, points) for part in rule.split(",")]
    if not points:
        raise NothingFeasible("the front is empty: no candidate was finished within the study's bounds")
    if rule == "knee":
        return min(points, key=_corner_distance(points))
    if rule == "best":
        return min(points, key=lambda point: (_error(point), _latency(point)))
    within = [point for point in points if all(bound.miss(point) == 0 for bound in bounds)]
    if within:
        return min(within, key=lambda point: (_latency(point), _error(point)))
    near = min(points, key=lambda point: sum(bound.miss(point) for bound in bounds))
    figures = ", ".join(f"{bound.field} {_field(near, bound.field):.4g}" for bound in bounds)
    named = f"trial {near['trial']}" if isinstance(near["trial"], int) else near["trial"]
    raise NothingFeasible(f"no point of the front keeps within {rule}; the nearest is {named}: {figures}")


def bounded(rule: str) -> list[str]:
    """The figures that a rule of bounds names. Raises InputError where it is none."""
    return [_parsed(part, [], named=()).field for part in rule.split(",")]


def _parsed(text: str, points: Sequence[Point], named: Sequence[str] = RULES) -> _Bound:
    """A bound; `named` are the rules that might be given in its place."""
    metrics = {point["quality"]["metric"] for point in points} or {task.metric for task in TASKS.values()}
    known = [*_READ, *sorted(metrics)]
    parts = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*(<=|>=)\s*(\S+)\s*", text)
    if parts is None and text.strip() in named:
        raise InputError(f"{text.strip()!r} stands alone: bounds choose the fastest point that keeps within them")
    if parts is None:
        raise InputError(
            f"the rule {text!r} is none: give {''.join(f'{name}, ' for name in named)}{'or ' if named else ''}"
            f"comma-separated bounds such as drop<=0.005, of {', '.join(known)}"
        )
    field, sign, number = parts.groups()
    if field not in known:
        raise InputError(f"the rule {text!r} bounds {field!r}, which no point has; {nearest(field, known)}")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise InputError(f"the rule {text!r} compares with {number!r}; give a number")
    return _Bound(field, sign, limit)


def _field(point: Point, field: str) -> float:
    value = _READ[field](point) if field in _READ else point["quality"]["validation"]
    if value is None:
        why = (
            "it is against the baseline, and this study has none, or none yet" if field in AGAINST else "not known yet"
        )
        raise InputError(f"a rule bounds {field!r}, but the front's points have no such figure: {why}")
    return value


def _latency(point: Point) -> float:
    measured = point["latency_ms"]
    return float(measured["median"] / measured["batch"])


def _error(point: Point) -> float:
    """Whether or not the study weighs it."""
    quality = point["quality"]
    return next(task.error(quality["validation"]) for task in TASKS.values() if task.metric == quality["metric"])


def _corner_distance(points: Sequence[Point]) -> Callable[[Point], float]:
    def scaled(point: Point) -> list[float]:
        costs = point["costs"].items()
        return [cost if name == "quality" or cost <= 0 else math.log(cost) for name, cost in costs]

    columns = list(zip(*map(scaled, points), strict=True))
    lows = [min(column) for column in columns]
    ranges = [max(column) - min(column) or 1.0 for column in columns]

    def distance(point: Point) -> float:
        return math.hypot(*((x - low) / span for x, low, span in zip(scaled(point), lows, ranges, strict=True)))

    return distance
