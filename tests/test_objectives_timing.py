"""The arithmetic of latency, on synthetic noise: what is concluded must be true of the numbers that were put in."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives.latency import timing
from objectives.latency.timing import Visit
from objectives.outcome import Conditions
from spaces.errors import SpecError

BETWEEN, WITHIN = 0.006, 0.01  # spreads of the ratio that facts/measuring.md reports


def synthetic(call_ns: float, random: np.random.Generator, drift: float = 1.0, rounds: int = 30) -> Visit:
    """A process's view of a model, on a machine that gets slower by `drift` from its first round to its last."""
    slow = np.linspace(1, drift, rounds)
    own = math.exp(BETWEEN * random.standard_normal())
    spread = np.exp(WITHIN * random.standard_normal((2, rounds)))
    return Visit(call_ns * own * slow * spread[0], 60_000 * slow * spread[1])


def sitting(calls_ns: list[float], seed: int, conditions: Conditions = Conditions(), drift: float = 1.0):  # noqa: B008
    random = np.random.default_rng(seed)

    def look(indices: list[int]) -> dict[int, Visit | str]:
        return {index: synthetic(calls_ns[index], random, drift) for index in indices}

    found = timing.gather(look, len(calls_ns), conditions, clock=lambda: 0.0)
    known = {"device": "x", "batch": 1, "peak_memory_bytes": 0, "fingerprint": ""}
    return [timing.conclude(visits, found.reference_ns, conditions, **known) for visits in found.models]


@pytest.mark.parametrize(("scenario", "seconds"), [("burst", None), ("paced:10ms", 0.01), ("paced:2.5ms", 0.0025)])
def test_a_scenario_gives_its_period(scenario: str, seconds: float | None) -> None:
    assert timing.period_s(scenario) == seconds


@pytest.mark.parametrize("scenario", ["", "paced", "paced:10", "paced:0ms", "paced:-1ms", "Burst"])
def test_an_unknown_scenario_is_named_with_its_remedy(scenario: str) -> None:
    with pytest.raises(SpecError, match=r"is not known; write 'burst', or 'paced:10ms'"):
        timing.period_s(scenario)


@given(
    st.lists(st.floats(1e-6, 0.5), min_size=1, max_size=9),
    st.sampled_from(["burst", "paced:10ms"]),
    st.integers(1, 4),
    st.integers(0, 1000),
)
def test_every_model_has_one_block_in_every_round(
    calls_s: list[float], scenario: str, processes: int, seed: int
) -> None:
    plan = timing.plan(Conditions(scenario=scenario, min_processes=processes, max_processes=processes))
    order = timing.schedule(calls_s, plan, seed)
    rounds = [order[start : start + len(calls_s)] for start in range(0, len(order), len(calls_s))]
    assert all(Counter(model for model, _ in each) == Counter(range(len(calls_s))) for each in rounds)
    assert len(rounds) >= 3
    assert min(calls for _, calls in order) >= 3
    cost_s = sum((calls + plan.discarded) * max(calls_s[m], plan.period_s or 0) for m, calls in order)
    least_s = 3 * sum((3 + plan.discarded) * max(s, plan.period_s or 0) for s in calls_s)
    assert cost_s <= max(plan.budget_s * 1.5, least_s) + plan.rounds * plan.discarded * len(calls_s) * 0.01


def test_the_order_differs_from_process_to_process() -> None:
    plan = timing.plan(Conditions())
    assert timing.schedule([1e-4] * 6, plan, seed=1) != timing.schedule([1e-4] * 6, plan, seed=2)


def test_calls_that_were_cut_do_not_count() -> None:
    wall, cpu = np.array([5.0, 5.1, 9.0, 30.0]), np.array([5.0, 5.0, 5.1, 5.2])
    assert timing.block_median(wall, cpu) == pytest.approx((5.05, 5.05))
    assert math.isnan(timing.block_median(wall * 2, cpu)[0])
    assert timing.block_median(wall, None)[0] == pytest.approx(7.05)


def test_where_most_blocks_were_cut_cpu_time_stands_in_and_is_not_trusted() -> None:
    reference = np.full(4, 60.0)
    busy = timing.visit([(math.nan, 5.0), (math.nan, 5.2), (math.nan, 5.1), (7.0, 5.0)], reference)
    assert busy.blocks_ns.tolist() == [5.0, 5.2, 5.1, 5.0]
    assert not busy.quiet
    calm = timing.visit([(math.nan, 5.0), (7.0, 5.2), (7.1, 5.1), (7.0, 5.0)], reference)
    assert calm.blocks_ns.tolist() == [7.0, 7.1, 7.0]
    assert calm.quiet
    known = {"device": "x", "batch": 1, "peak_memory_bytes": 0, "fingerprint": ""}
    told = timing.conclude([busy] * 3, 60.0, Conditions(), **known)
    assert not told.trusted
    assert "CPU time" in told.why


def test_the_interval_covers_the_truth() -> None:
    truth_ms = 0.05
    found = [sitting([truth_ms * 1e6], seed)[0] for seed in range(80)]
    covered = sum(each.ci_ms[0] <= truth_ms * each.reference_ms / 0.06 <= each.ci_ms[1] for each in found)
    assert covered >= 72


def test_a_slow_down_of_five_percent_is_seen_and_half_a_percent_is_not() -> None:
    ties, seen = 0, 0
    for seed in range(20):
        base, same, slow = (each.median_ms for each in sitting([50_000, 50_250, 52_500], seed))
        ties += abs(same / base - 1) <= timing.tie_tolerance(base)
        seen += slow / base - 1 > timing.tie_tolerance(base)
    assert ties >= 19
    assert seen >= 19


def test_a_drift_of_the_machine_cancels() -> None:
    steady, drifting = sitting([50_000], 3)[0], sitting([50_000], 3, drift=1.5)[0]
    ratio = (drifting.median_ms / drifting.reference_ms) / (steady.median_ms / steady.reference_ms)
    assert ratio == pytest.approx(1, abs=0.01)
    assert drifting.trusted


def test_plain_and_paired_medians_far_apart_are_not_trusted() -> None:
    rounds = np.arange(30)
    reference = np.where(rounds < 16, 60_000.0, 90_000.0)
    model = np.where(rounds < 12, 50_000.0, 75_000.0)
    known = {"device": "x", "batch": 1, "peak_memory_bytes": 0, "fingerprint": ""}
    told = timing.conclude([Visit(model, reference)] * 3, float(np.median(reference)), Conditions(), **known)
    assert not told.trusted
    assert "drifted" in told.why


@given(st.integers(2, 10), st.integers(1, 40), st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_the_interval_holds_the_ratio_and_scales_with_it(processes: int, blocks: int, seed: int) -> None:
    ratios = [np.exp(0.02 * np.random.default_rng([seed, p]).standard_normal(blocks)) for p in range(processes)]
    one, thrice = timing.estimate(ratios), timing.estimate([3 * each for each in ratios])
    assert one.low <= one.ratio <= one.high
    assert (thrice.low, thrice.ratio, thrice.high) == pytest.approx((3 * one.low, 3 * one.ratio, 3 * one.high))


def test_one_process_alone_claims_little() -> None:
    assert timing.estimate([np.ones(30)]).half_width == pytest.approx(math.expm1(timing.ONE_PROCESS))
    assert timing.estimate([np.ones(30)] * 3).half_width == 0


def test_one_spoilt_process_of_eight_does_not_spoil_the_figure() -> None:
    random = np.random.default_rng(0)
    ratios = [timing.ratios([synthetic(60_000, random)])[0] for _ in range(8)]
    ratios[3] = ratios[3] * 1.6
    found = timing.estimate(ratios)
    assert found.ratio == pytest.approx(1, abs=0.01)
    assert found.half_width < 0.02


def test_three_processes_are_run_at_least_and_settled_models_are_left_out_of_the_next() -> None:
    noisy = itertools.cycle([50_000, 60_000])
    asked = []

    def look(indices: list[int]) -> dict[int, Visit | str]:
        asked.append(indices)
        level = {0: 50_000.0, 1: float(next(noisy))}
        return {index: Visit(np.full(5, level[index]), np.full(5, 60_000.0)) for index in indices}

    conditions = Conditions(max_processes=6)
    found = timing.gather(look, 2, conditions, clock=lambda: 0.0)
    assert asked == [[0, 1]] * 3 + [[1]] * 3
    assert timing.settled(found.models[0], conditions)
    assert not timing.settled(found.models[1], conditions)


def test_time_is_a_cap_and_the_figure_says_so() -> None:
    clock = itertools.count(step=15.0)
    random = np.random.default_rng(0)
    conditions = Conditions(timeout_s=20.0)
    found = timing.gather(
        lambda indices: {index: synthetic(50_000, random) for index in indices}, 1, conditions, lambda: next(clock)
    )
    assert len(found.models[0]) == 2
    known = {"device": "x", "batch": 1, "peak_memory_bytes": 0, "fingerprint": ""}
    told = timing.conclude(found.models[0], found.reference_ns, conditions, **known)
    assert not told.converged
    assert "from 2 processes" in told.why


def test_a_model_that_fails_leaves_the_others_alone() -> None:
    random = np.random.default_rng(0)

    def look(indices: list[int]) -> dict[int, Visit | str]:
        return {1: "died"} if 1 in indices else {index: synthetic(50_000, random) for index in indices}

    found = timing.gather(look, 3, Conditions(), clock=lambda: 0.0)
    assert found.models[1] == "died"
    assert [len(found.models[index]) >= 3 for index in (0, 2)] == [True, True]
