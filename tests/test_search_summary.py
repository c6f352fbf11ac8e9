from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rehearsed import BASELINE, plan

from objectives.objective import OBJECTIVES
from objectives.outcome import Outcome
from objectives.rehearsal import invented, prepare
from search.front import pick
from search.history import History
from search.summary import front_of, nearest_miss, reference_of, searched_corner, summarise
from spaces.genotype import Architecture, Deployment, Genotype, Training
from spaces.record import to_json


def outcome(home: Path, units: int, error: float, latency_ms: float, size_kb: int, batch: int = 1) -> Outcome:
    genotype = Genotype(Architecture("gru", units), Training(), Deployment("loop", 4, "32", batch))
    made = invented(plan(home).bench, genotype)
    assert made.quality
    assert made.measurement
    assert made.artifact
    return replace(
        made,
        quality=replace(made.quality, validation=1 - error, error=error),
        measurement=replace(made.measurement, median_ms=latency_ms),
        artifact=replace(made.artifact, size_bytes=size_kb * 1024),
        seconds={"train": 2.0, "lower": 0.5, "measure": 1.0},
    )


def study(home: Path, outcomes: dict[int, Outcome], *, baseline: bool = True, **more: Any) -> History:
    bounds = more.pop("bounds", {})
    made = plan(home, bounds=bounds)
    return History(
        name="s",
        plan=made,
        prepared=prepare(to_json(made.bench)),
        baseline=outcome(home, 128, 0.04, 4.0, 100) if baseline else None,
        outcomes=outcomes,
        running=more.pop("running", {}),
        duplicates=0,
        finals=more.pop("finals", {}),
        wall_s=more.pop("wall_s", 20.0),
        training_s=12.0,
        measuring_s=6.0,
        ended="",
        **more,
    )


@pytest.fixture
def four(tmp_path: Path) -> dict[int, Outcome]:
    return {
        0: outcome(tmp_path, 16, 0.10, 0.40, 10),
        1: outcome(tmp_path, 32, 0.05, 1.00, 20),
        2: outcome(tmp_path, 48, 0.06, 1.20, 30),  # dominated by 1
        3: Outcome(BASELINE, "failed", stage="lower", reason="died by signal 11 (SIGSEGV)"),
        4: Outcome(BASELINE, "infeasible", untrained_ms=9.0, reason="latency 9 ms is over the bound of 5"),
    }


def test_it_is_the_json_of_the_contract(tmp_path: Path, four: dict[int, Outcome]) -> None:
    found = summarise(study(tmp_path, four, running={5: BASELINE}))
    assert json.loads(json.dumps(found)) == found
    wanted = {"study", "task", "counts", "failures", "hypervolume", "wall_s", "baseline", "front"}
    assert wanted <= found.keys()
    assert found["counts"] == {"complete": 3, "infeasible": 1, "stopped": 0, "failed": 1, "running": 1}
    assert found["failures"] == [{"trial": 3, "stage": "lower", "reason": "died by signal 11 (SIGSEGV)"}]
    assert [point["trial"] for point in found["front"]] == [0, 1]
    fast = found["front"][0]
    assert fast["speedup"] == pytest.approx(10)
    assert fast["drop"] == pytest.approx(0.06)
    assert fast["throughput_per_s"] == pytest.approx(2500)
    assert fast["genotype"]["architecture"]["units"] == 16
    assert {"median", "ci", "converged", "scenario", "batch", "threads", "device"} <= fast["latency_ms"].keys()
    assert {"metric", "validation", "test", "test_stderr"} <= fast["quality"].keys()
    assert {"format", "sha256", "realised_bits", "exporter"} <= fast["artifact"].keys()
    assert (found["baseline"]["trial"], found["baseline"]["speedup"], found["baseline"]["drop"]) == ("baseline", 1, 0)
    assert {point.keys() == found["baseline"].keys() for point in found["front"]} == {True}


def test_hypervolume_is_a_share_of_the_box(tmp_path: Path, four: dict[int, Outcome]) -> None:
    """By hand: the corner is a constant's error (0.9), the baseline's latency (4 ms) and size (100 KiB)."""
    history = study(tmp_path, {0: four[0]})
    assert reference_of(history) == {"quality": 0.9, "latency": 4.0, "size": 100.0}
    shares = (0.8 / 0.9) * (math.log(4 / 0.4) / math.log(1000)) * (math.log(100 / 10) / math.log(1000))
    assert summarise(history)["hypervolume"] == pytest.approx(shares)
    assert summarise(study(tmp_path, {}))["hypervolume"] == 0


def test_without_a_baseline_nothing_is_compared(tmp_path: Path, four: dict[int, Outcome]) -> None:
    found = summarise(study(tmp_path, four, baseline=False))
    assert found["baseline"] is None
    assert {(point["speedup"], point["drop"]) for point in found["front"]} == {(None, None)}
    assert 0 < found["hypervolume"] <= 1


def test_speedup_of_a_batch_is_per_sequence(tmp_path: Path) -> None:
    found = summarise(study(tmp_path, {0: outcome(tmp_path, 16, 0.1, 8.0, 10, batch=8)}))
    assert found["front"][0]["speedup"] == pytest.approx(4)
    assert found["front"][0]["costs"]["latency"] == pytest.approx(1)
    assert found["front"][0]["latency_ms"]["median"] == 8
    batched = outcome(tmp_path, 16, 0.1, 8.0, 10, batch=8)
    assert OBJECTIVES["latency"].read(replace(batched, measurement=None, untrained_ms=4.0)) == 0.5
    assert front_of(study(tmp_path, {0: batched}, bounds={"latency": 1.0})) == [0]


def test_figures_of_the_end_are_used_and_said(tmp_path: Path, four: dict[int, Outcome]) -> None:
    """Measured again, 1 is found faster than 0 is, so that the front is made anew among those measured."""
    base = outcome(tmp_path, 128, 0.04, 5.0, 100)
    finals = {"baseline": base, 0: four[0], 1: outcome(tmp_path, 32, 0.05, 0.30, 10)}
    history = study(tmp_path, four, finals=finals)
    found = summarise(history)
    assert front_of(history) == [0, 1]
    assert [point["trial"] for point in found["front"]] == [1]
    assert found["final"]
    assert found["front"][0]["speedup"] == pytest.approx(5.0 / 0.30)


def over(home: Path, low_ms: float) -> Outcome:
    """0 measured again, with 0.6 ms for 0.4, and an interval from `low_ms`."""
    found = outcome(home, 16, 0.10, 0.60, 10)
    assert found.measurement
    return replace(found, measurement=replace(found.measurement, ci_ms=(low_ms, 0.65)))


def test_a_bound_is_broken_at_the_end_only_by_a_whole_interval(tmp_path: Path, four: dict[int, Outcome]) -> None:
    finals: dict[int | str, Outcome] = {0: over(tmp_path, 0.45), 1: over(tmp_path, 0.55)}
    point = summarise(study(tmp_path, four, finals=finals, bounds={"latency": 0.5}))["front"]
    assert [(one["trial"], one["latency_ms"]["median"], one["final"]) for one in point] == [(0, 0.6, True)]


def test_a_bound_on_memory_is_broken_at_the_end_only_beyond_its_noise(tmp_path: Path) -> None:
    searched = outcome(tmp_path, 16, 0.10, 0.40, 10)
    assert searched.measurement
    for kib, fronts in ((109, [0]), (112, [])):
        again = replace(searched, measurement=replace(searched.measurement, peak_memory_bytes=kib * 1024))
        history = study(tmp_path, {0: searched}, finals={0: again}, bounds={"memory": 100.0})
        assert front_of(history, final=True) == fronts


def test_the_end_leaves_no_front_empty(tmp_path: Path, four: dict[int, Outcome]) -> None:
    finals: dict[int | str, Outcome] = {0: over(tmp_path, 0.55)}
    point = summarise(study(tmp_path, four, finals=finals, bounds={"latency": 0.5}))["front"]
    assert [(one["trial"], one["latency_ms"]["median"], one["final"]) for one in point] == [(0, 0.4, False)]
    assert "over the bound" in point[0]["notes"][-1]
    assert point[0]["speedup"] == pytest.approx(4.0 / 0.4)  # both of the search


def test_what_ran_from_other_seeds_and_failed_is_told(tmp_path: Path, four: dict[int, Outcome]) -> None:
    again = replace(four[0], state="failed", stage="train", reason="the loss became nan", quality=None)
    found = summarise(
        study(tmp_path, four, seeds={"seed-1-0": again, "seed-2-0": outcome(tmp_path, 16, 0.12, 0.4, 10)})
    )
    assert {"trial": "seed-1-0", "stage": "train", "reason": "the loss became nan"} in found["failures"]
    assert found["front"][0]["seeds"]["validation"] == pytest.approx([0.9, 0.88])
    assert found["front"][0]["seeds"]["mean"] == pytest.approx(0.88)


def test_what_could_not_be_measured_again_is_not_final(tmp_path: Path, four: dict[int, Outcome]) -> None:
    finals: dict[int | str, Outcome] = {0: replace(four[0], reason="could not be measured again: died"), 1: four[1]}
    found = summarise(study(tmp_path, four, finals=finals))
    assert [(point["trial"], point["final"]) for point in found["front"]] == [(0, False), (1, True)]


def test_where_the_baseline_was_not_measured_again_both_figures_are_of_the_search(
    tmp_path: Path, four: dict[int, Outcome]
) -> None:
    history = study(tmp_path, four)
    assert history.baseline
    finals: dict[int | str, Outcome] = {
        "baseline": replace(history.baseline, reason="could not be measured again: died"),
        0: outcome(tmp_path, 16, 0.10, 0.20, 10),  # half as long as in the search: the machine is faster now
    }
    (point,) = summarise(study(tmp_path, four, finals=finals))["front"]
    assert point["latency_ms"]["median"] == 0.20
    assert point["speedup"] == pytest.approx(4.0 / 0.4)


def test_a_cost_of_which_there_is_none_is_left_out_of_the_corner(tmp_path: Path, four: dict[int, Outcome]) -> None:
    """As memory where the kernel hides it."""
    history = study(tmp_path, four)
    objectives = ("quality", "latency", "size", "memory")

    def hidden(one: Outcome) -> Outcome:
        return replace(one, measurement=one.measurement and replace(one.measurement, peak_memory_bytes=0))

    outcomes = {number: hidden(one) for number, one in history.outcomes.items()}
    assert history.baseline
    blind = replace(
        history, plan=replace(history.plan, objectives=objectives), outcomes=outcomes, baseline=hidden(history.baseline)
    )
    found = summarise(blind)
    assert set(found["reference"]) == {"quality", "latency", "size"}
    assert found["hypervolume"] == pytest.approx(summarise(history)["hypervolume"])


def test_the_corner_is_the_baseline_of_the_end(tmp_path: Path, four: dict[int, Outcome]) -> None:
    history = study(tmp_path, four, finals={"baseline": outcome(tmp_path, 128, 0.04, 5.0, 100)})
    assert reference_of(history)["latency"] == 5.0
    assert searched_corner(history)["latency"] == 4.0  # what the figures of the search are held against


def test_what_is_over_a_bound_is_not_on_the_front(tmp_path: Path, four: dict[int, Outcome]) -> None:
    history = study(tmp_path, four, bounds={"latency": 0.5})
    assert front_of(history) == [0]
    assert nearest_miss(history) == "the nearest miss is trial 4: latency 9 ms is over the bound of 5"


def near(
    home: Path, units: int, error: float, ms: float, size_kb: float, *, stderr: float = 0.01, wide: float = 0.0
) -> Outcome:
    """A candidate whose validation error has a standard error, and whose latency an interval of so wide a half."""
    found = outcome(home, units, error, ms, 1)
    assert found.quality
    assert found.measurement
    assert found.artifact
    return replace(
        found,
        quality=replace(found.quality, stderr=stderr),
        measurement=replace(found.measurement, ci_ms=(ms * (1 - wide), ms * (1 + wide))),
        artifact=replace(found.artifact, size_bytes=int(size_kb * 1024)),
    )


def ties_of(home: Path, *outcomes: Outcome) -> list[tuple[list[int], int | None]]:
    points = summarise(study(home, dict(enumerate(outcomes))))["front"]
    return [(point["ties"], point["tie_of"]) for point in points]


def test_points_that_noise_cannot_tell_apart_have_the_fastest_stand_for_them(tmp_path: Path) -> None:
    """Two errors of 0.01 differ by 0.0141 within one standard error; 3 % of latency, 2 % of size."""
    first = near(tmp_path, 16, 0.060, 1.00, 20.0)
    assert ties_of(tmp_path, first, near(tmp_path, 32, 0.047, 1.02, 20.3)) == [([1], None), ([0], 0)]
    apart: list[tuple[list[int], int | None]] = [([], None), ([], None)]
    assert ties_of(tmp_path, first, near(tmp_path, 32, 0.045, 1.02, 20.3)) == apart
    assert ties_of(tmp_path, first, near(tmp_path, 32, 0.047, 1.04, 20.3)) == apart
    assert ties_of(tmp_path, first, near(tmp_path, 32, 0.047, 1.02, 20.6)) == apart
    assert ties_of(tmp_path, first, near(tmp_path, 32, 0.047, 1.04, 20.3, wide=0.05)) == [([1], None), ([0], 0)]
    unsure = near(tmp_path, 16, 0.060, 1.00, 20.0, stderr=0.0), near(tmp_path, 32, 0.059, 1.01, 20.0, stderr=0.0)
    assert ties_of(tmp_path, *unsure) == apart


def test_what_is_beaten_by_no_more_than_noise_is_told_beside_what_beats_it(tmp_path: Path) -> None:
    figures = [(0.060, 1.00), (0.062, 1.01), (0.062, 1.20)]
    told = {number: near(tmp_path, 16, error, ms, 20.0) for number, (error, ms) in enumerate(figures)}
    (best,) = summarise(study(tmp_path, dict(told), finals=dict(told)))["front"]
    assert (best["trial"], best["ties"]) == (0, [1])
    told[3] = near(tmp_path, 16, 0.060, 0.99, 20.0)  # which 1 ties with too
    told[4] = near(tmp_path, 16, 0.040, 1.00, 20.0)  # which beats 1 by more than that
    front = summarise(study(tmp_path, dict(told), finals=dict(told)))["front"]
    assert [(point["trial"], point["ties"]) for point in front] == [(3, []), (4, [])]
    del told[3], told[4]
    (searched,) = summarise(study(tmp_path, dict(told)))["front"]  # they were not measured together yet
    assert searched["ties"] == []


def test_what_the_rules_of_pick_take_is_never_hidden(tmp_path: Path) -> None:
    """1 ties with 0, which is faster, and is the knee: between 0 and 2 it is nearer to the best of both."""
    outcomes = [near(tmp_path, 16, 0.060, 1.00, 20.0), near(tmp_path, 32, 0.047, 1.01, 20.0)]
    outcomes += [near(tmp_path, 48, 0.040, 1.50, 20.0, stderr=0.0)]
    points = summarise(study(tmp_path, dict(enumerate(outcomes))))["front"]
    assert [(point["trial"], point["tie_of"]) for point in points] == [(0, 1), (1, None), (2, None)]
    assert pick(points, "knee")["trial"] == 1


def test_every_objective_has_an_interval(tmp_path: Path) -> None:
    found = near(tmp_path, 16, 0.10, 8.0, 10, wide=0.05)
    made = replace(found, genotype=replace(found.genotype, deployment=Deployment("loop", 4, "32", 8)))
    assert made.measurement
    made = replace(made, measurement=replace(made.measurement, batch=8))
    point = summarise(study(tmp_path, {0: made}))["front"][0]
    assert point["quality"]["stderr"] == 0.01
    assert point["intervals"]["quality"] == pytest.approx([0.0804, 0.1196])
    assert point["intervals"]["latency"] == pytest.approx([0.95, 1.05])  # a sequence
    assert point["intervals"]["size"] == [10, 10]
    quality = found.quality
    assert quality
    tested = replace(made, quality=replace(quality, test=0.88, test_stderr=0.02))
    point = summarise(study(tmp_path, {0: made}, finals={0: tested}))["front"][0]
    assert point["intervals"]["quality"] == pytest.approx([0.0808, 0.1592])
    unknown = replace(made, quality=replace(quality, stderr=None))
    assert summarise(study(tmp_path, {0: unknown}))["front"][0]["intervals"]["quality"] is None


def test_what_was_stopped_is_no_point_however_good_it_looked(tmp_path: Path, four: dict[int, Outcome]) -> None:
    stopped = Outcome(four[0].genotype, "stopped", untrained_ms=0.01, stage="train", reason="behind", learned=(0.01,))
    found = summarise(study(tmp_path, {**four, 5: stopped}))
    assert found["counts"]["stopped"] == 1
    assert [point["trial"] for point in found["front"]] == [0, 1]
    assert summarise(study(tmp_path, {0: stopped}, baseline=False))["front"] == []
    assert nearest_miss(study(tmp_path, {0: stopped})) == "no candidate was finished"


def test_where_the_time_went(tmp_path: Path, four: dict[int, Outcome]) -> None:
    """Three finished candidates and the baseline in 20 s of wall time, 12 of them training, 6 measuring."""
    found = summarise(study(tmp_path, four))["seconds"]
    assert found["stages"] == {"train": 8.0, "lower": 2.0, "measure": 4.0}
    assert (found["training"], found["measuring"]) == (12.0, 6.0)
    assert (found["other"], found["other_share"]) == (2.0, pytest.approx(0.1))
    assert found["idle_share"] == 0
    assert summarise(replace(study(tmp_path, four), workers_s=40.0, idle_s=6.0))["seconds"]["idle_share"] == 0.15


def test_how_fast_it_trained(tmp_path: Path, four: dict[int, Outcome]) -> None:
    """Two workers were at their epochs for 16 s together."""
    worked = replace(study(tmp_path, four), sequences=32_000, epochs_s=16.0)
    found = summarise(worked)["training"]
    assert found == {"sequences": 32_000, "epochs_s": 16.0, "sequences_per_s": 2000.0, "wall_share": 0.6}
    assert summarise(study(tmp_path, {}))["training"]["sequences_per_s"] == 0.0
