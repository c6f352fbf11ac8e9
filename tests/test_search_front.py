from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.front import dominates, front, hypervolume, led, pick, tied
from spaces.errors import InputError, NothingFeasible

coordinate = st.integers(0, 6).map(float)


def points_of(dimensions: int) -> st.SearchStrategy[list[tuple[float, ...]]]:
    return st.lists(st.tuples(*[coordinate] * dimensions), max_size=12)


def test_dominance_by_hand() -> None:
    assert dominates((1, 2), (1, 3))
    assert not dominates((1, 2), (1, 2))
    assert not dominates((1, 3), (2, 2))
    assert front({"a": (1, 5), "b": (2, 2), "c": (3, 3), "d": (5, 1), "e": (2, 2)}) == ["a", "b", "e", "d"]


@settings(max_examples=60)
@given(st.integers(1, 4).flatmap(points_of))
def test_the_front_is_what_no_other_dominates(points: list[tuple[float, ...]]) -> None:
    named = dict(enumerate(points))
    expected = {i for i, p in named.items() if not any(dominates(q, p) for q in points)}
    assert set(front(named)) == expected


def test_ties_are_within_noise_in_every_objective() -> None:
    assert tied((0.1, 5.00), (0.1, 5.02), (0.0, 0.03))
    assert not tied((0.1, 5.00), (0.1, 5.05), (0.0, 0.03))
    assert not tied((0.1, 5.00), (0.11, 5.00), (0.0, 0.03))


def test_of_those_that_tie_the_first_stands_for_the_others() -> None:
    """b ties with a and c, which do not tie with each other; d with c, which stands for itself."""
    ties = {"a": ["b"], "b": ["a", "c"], "c": ["b", "d"], "d": ["c"], "e": []}
    assert led("abcde", ties) == {"a": None, "b": "a", "c": None, "d": "c", "e": None}


@given(st.lists(st.tuples(coordinate, coordinate), max_size=10))
def test_whatever_has_a_leader_ties_with_it_and_leaders_do_not_tie(points: list[tuple[float, ...]]) -> None:
    named = dict(enumerate(points))
    ties = {i: [j for j in named if j != i and tied(named[i], named[j], (1, 1))] for i in named}
    found = led(list(named), ties)
    leaders = [key for key, leader in found.items() if leader is None]
    assert all(leader in leaders and leader in ties[key] for key, leader in found.items() if leader is not None)
    assert not any(one in ties[other] for one in leaders for other in leaders)


def test_hypervolume_by_hand() -> None:
    assert hypervolume([], (4, 4)) == 0
    assert hypervolume([(1, 3), (2, 2), (3, 1)], (4, 4)) == 6
    assert hypervolume([(1, 3), (5, 0)], (4, 4)) == 3  # what is beyond the corner adds nothing
    assert hypervolume([(1, 1, 1)], (3, 3, 3)) == 8
    assert hypervolume([(0, 0, 1), (1, 1, 0)], (2, 2, 2)) == 4 + 1  # slabs: z in [0, 1) only the second


@settings(max_examples=60)
@given(st.integers(1, 4).flatmap(points_of))
def test_hypervolume_counts_the_dominated_cells(points: list[tuple[float, ...]]) -> None:
    """Whole coordinates: the volume is the number of unit cells whose lower corner some point is not above."""
    dimensions = len(points[0]) if points else 2
    size = 5
    cells = [[]]  # type: list[list[int]]
    for _ in range(dimensions):
        cells = [[*cell, i] for cell in cells for i in range(size)]
    inside = [p for p in points if all(x < size for x in p)]
    expected = sum(any(all(x <= c for x, c in zip(p, cell, strict=True)) for p in inside) for cell in cells)
    assert hypervolume(points, [float(size)] * dimensions) == expected


def point(trial: int, error: float, latency_ms: float, size_kb: float, **more: Any) -> dict[str, Any]:
    return {
        "trial": trial,
        "quality": {"metric": "accuracy", "validation": 1 - error, "test": None},
        "latency_ms": {"median": latency_ms, "batch": 1},
        "throughput_per_s": 1000 / latency_ms,
        "size_bytes": int(size_kb * 1024),
        "peak_memory_bytes": int(size_kb * 2048),
        "speedup": 10 / latency_ms,
        "drop": error - 0.02,
        "costs": {"quality": error, "latency": latency_ms, "size": size_kb},
        **more,
    }


FRONT = [point(1, 0.30, 0.1, 10), point(2, 0.05, 0.4, 20), point(3, 0.03, 3.0, 60), point(4, 0.02, 9.0, 200)]


@pytest.mark.parametrize(
    ("rule", "trial"),
    [
        ("fastest", 1),
        ("best", 4),
        ("knee", 2),
        ("drop<=0.005", 4),
        ("drop<=0.03", 2),
        ("drop <= 0.03, latency_ms<=5", 2),
        ("accuracy>=0.96", 3),
        ("size_kb<=50,accuracy>=0.9", 2),
        ("speedup>=3,validation>=0.97", 3),
        ("memory_kb<=21", 1),
    ],
)
def test_rules(rule: str, trial: int) -> None:
    assert pick(random.sample(FRONT, len(FRONT)), rule)["trial"] == trial


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("quickest", "knee, fastest, best"),
        ("latency<=1", "did you mean 'latency_ms'"),
        ("drop<0.1", "comma-separated bounds"),
        ("fastest,drop<=0.1", "'fastest' stands alone: bounds choose the fastest point that keeps within them"),
        ("drop<=much", "give a number"),
        ("drop<=nan", "give a number"),
        ("test>=0.9", "not known yet"),
    ],
)
def test_wrong_rules_say_what_is_right(rule: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        pick(FRONT, rule)


def test_a_drop_needs_a_baseline() -> None:
    with pytest.raises(InputError, match="this study has none"):
        pick([point(1, 0.1, 1, 1, drop=None, speedup=None)], "drop<=0.1")


def test_nothing_within_names_the_nearest_miss() -> None:
    with pytest.raises(NothingFeasible, match=r"nearest is trial 2: accuracy 0\.95, latency_ms 0\.4"):
        pick(FRONT, "accuracy>=0.96,latency_ms<=0.4")
    for rule in ("knee", "fastest", "accuracy>=0.9", "rmse<=2", "drop<=0.1"):
        with pytest.raises(NothingFeasible, match="the front is empty"):
            pick([], rule)


def test_a_front_that_quality_was_no_objective_of_still_has_a_best() -> None:
    lean = [{**one, "costs": {"latency": one["latency_ms"]["median"], "size": 1.0}} for one in FRONT]
    assert [pick(lean, rule)["trial"] for rule in ("best", "fastest", "accuracy>=0.96", "knee")] == [4, 1, 3, 1]


def test_the_fastest_is_the_fastest_a_sequence() -> None:
    batched = point(5, 0.5, 0.4, 10) | {"latency_ms": {"median": 0.4, "batch": 8}}
    assert pick([*FRONT, batched], "fastest")["trial"] == 5
    assert pick([*FRONT, batched], "latency_ms<=0.05")["trial"] == 5


def test_the_knee_of_one_point_is_that_point() -> None:
    assert pick(FRONT[:1], "knee") is FRONT[0]
    assert not math.isnan(FRONT[0]["costs"]["quality"])
