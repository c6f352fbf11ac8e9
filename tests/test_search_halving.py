from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.front import dominates
from search.halving import crowding, goes_on, standing

COST = st.integers(0, 6).map(float)
RUNGS = st.lists(st.lists(st.tuples(COST, COST, COST), min_size=1, max_size=3), min_size=1, max_size=12)


def test_fronts_by_hand() -> None:
    rung = {"fast": [(9.0, 1.0)], "good": [(1.0, 9.0)], "middle": [(5.0, 5.0)], "worse": [(6.0, 6.0)], "bad": [(9, 9)]}
    assert [set(ranked) for ranked in standing(rung)] == [{"fast", "good", "middle"}, {"worse"}, {"bad"}]


def test_a_candidate_counts_by_its_best_form() -> None:
    rung = {"a": [(5.0, 5.0), (0.0, 1.0)], "b": [(1.0, 2.0)], "c": [(1.0, 0.0)]}
    assert [sorted(ranked) for ranked in standing(rung)] == [["a", "c"], ["b"]]


def test_crowding_as_deb_has_it() -> None:
    found = crowding({"l": (0.0, 4.0), "m": (1.0, 1.0), "n": (2.0, 0.5), "r": (4.0, 0.0)})
    assert found["l"] == found["r"] == math.inf
    assert found["m"] == pytest.approx(2 / 4 + 3.5 / 4)
    assert found["n"] == pytest.approx(3 / 4 + 1 / 4)


def test_one_objective_is_plain_successive_halving() -> None:
    rung = {number: [(float(number),)] for number in range(9)}
    assert [number for number in rung if goes_on(rung, number)] == [0, 1, 2, 3, 4]


def test_what_is_fast_goes_on_however_slowly_it_learns() -> None:
    rung = {number: [(0.1 + number / 100, 5.0 + number, 50.0 + number)] for number in range(30)}
    rung[99] = [(0.9, 0.1, 60.0)]
    assert goes_on(rung, 99)
    assert not goes_on(rung, 29)


@given(RUNGS)
def test_whatever_nothing_dominates_goes_on_and_the_rest_never_beats_it(groups: list[list[tuple[float, ...]]]) -> None:
    rung = dict(enumerate(groups))
    every = [(number, form) for number, forms in rung.items() for form in forms]
    best = {number for number, form in every if not any(dominates(other, form) for _, other in every)}
    going = {number for number in rung if goes_on(rung, number)}
    assert best <= going
    assert len(going) <= max(len(best), math.ceil(len(rung) / 2))
    assert sorted(number for ranked in standing(rung) for number in ranked) == list(rung)
