"""What a study keeps beside its trials: the twins of its front, and its chosen model at several batch sizes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rehearsed import BASELINE, PRELOAD, at_write, bench, plan

from objectives.bench import TrainingSpec
from objectives.outcome import Outcome
from objectives.rehearsal import invented
from search import history, twins
from search.batches import conditions, curve, forms, knee
from search.budget import Limits
from search.drive import drive
from search.front import pick
from search.history import Plan
from search.study import Study
from search.summary import front_of, summarise
from spaces.genotype import Architecture, Deployment, Genotype, Training
from spaces.space import Space

TAUGHT = {"training": TrainingSpec(distillation=(0.5,)), "teacher": BASELINE}


@pytest.mark.parametrize(
    ("throughput", "found"),
    [
        ([(1, 100), (4, 300), (16, 329), (32, 330)], 4),
        ([(1, 100), (4, 300), (16, 330), (32, 400)], 32),
        ([(1, 100), (4, 109)], 1),
        ([(8, 5)], 8),
        ([], None),
    ],
)
def test_the_knee_is_where_the_next_batch_adds_less_than_a_tenth(
    throughput: list[tuple[int, float]], found: int | None
) -> None:
    assert knee(throughput) == found


def test_the_ladder_is_the_spaces_own_where_it_has_one() -> None:
    one = Genotype(Architecture("gru", 16), Training(), Deployment(batch=8))
    assert list(forms(Space(), one)) == ["batch-1", "batch-4", "batch-8", "batch-16", "batch-32"]
    assert list(forms(Space(batch=(2, 64, 8)), one)) == ["batch-2", "batch-8", "batch-64"]
    assert {form.group for form in forms(Space(), one).values()} == {one.group}


def test_a_curve_is_no_look(tmp_path: Path) -> None:
    under = conditions(replace(bench(tmp_path), bounds={"latency": 1.0}))
    assert under.bounds == {}
    assert under.in_full


def test_a_row_has_its_own_figures_and_a_bound_excludes_it(tmp_path: Path) -> None:
    """By hand: 2 ms for a call of 8 are 0.25 ms a sequence and 4000 a second."""
    made = invented(plan(tmp_path).bench, Genotype(Architecture("gru", 16), Training(), Deployment(batch=8)))
    assert made.measurement
    eight = replace(made, measurement=replace(made.measurement, median_ms=2.0, peak_memory_bytes=4096 * 1024))
    failed = Outcome(
        Genotype(Architecture("gru", 16), Training(), Deployment(batch=64)), "failed", stage="lower", reason="no"
    )
    shown = curve(3, [failed, eight], {"memory": 4000.0})
    assert shown
    first, last = shown["rows"]
    assert (first["batch"], first["ms_per_sequence"], first["throughput_per_s"]) == (8, 0.25, 4000)
    assert first["peak_memory_bytes"] == 4096 * 1024
    assert first["excluded"] == "memory 4096 KiB is over the bound of 4000"
    assert (last["latency_ms"], last["excluded"]) == (None, "failed at lower: no")
    assert (shown["knee"], shown["text"]) == (None, "No batch of them can be served.")
    free = curve(3, [eight], {})
    assert free
    assert (free["rows"][0]["excluded"], free["knee"]) == ("", 8)


def test_a_memory_bound_keeps_large_batches_off_the_front_and_marks_them_in_the_curve(tmp_path: Path) -> None:
    space = Space(cell=("lstm",), units=(64,), bits=("8",), lowering=("loop",), steps=(1,), batch=(1, 8, 64, 512))
    made = plan(tmp_path, space=space, bounds={"memory": 300.0}, objectives=("quality", "latency", "memory"))
    with Study.start(tmp_path, "s", made) as study:
        drive(study, Limits(trials=4))
    found = history.read(tmp_path, "s")
    state = {one.genotype.deployment.batch: (one.state, one.reason) for one in found.outcomes.values()}
    assert {batch for batch, (said, _) in state.items() if said == "infeasible"} == {512}
    assert "memory" in state[512][1]
    assert "over the bound of 300" in state[512][1]
    shown = summarise(found)
    assert {point["genotype"]["deployment"]["batch"] for point in shown["front"]} <= {1, 8, 64}
    rows = {row["batch"]: row for row in shown["batch_curve"]["rows"]}
    assert list(rows) == [1, 8, 64, 512]
    assert "over the bound" in rows[512]["excluded"]
    assert not any(rows[batch]["excluded"] for batch in (1, 8, 64))
    assert rows[8]["throughput_per_s"] == pytest.approx(8000 / rows[8]["latency_ms"]["median"])
    assert rows[64]["peak_memory_bytes"] > rows[1]["peak_memory_bytes"]
    assert shown["batch_curve"]["trial"] == pick(shown["front"], "knee")["trial"]


def taught(home: Path) -> Plan:
    """Every candidate is distilled, so that every member of the front needs a twin."""
    return plan(home, **TAUGHT)


def test_a_distilled_front_tells_what_distilling_bought(tmp_path: Path) -> None:
    """Invented: distilled at 0.5 the error is 0.005 less, and nothing else changes."""
    with Study.start(tmp_path, "s", taught(tmp_path)) as study:
        drive(study, Limits(trials=10, workers=2))
    found = history.read(tmp_path, "s")
    assert found.counts["complete"] == 10
    models = {one.genotype.group for one in found.twins.values()}
    assert 1 <= len(models) <= twins.MOST
    assert all(one.genotype.training.distillation == 0 for one in found.twins.values())
    assert set(found.twins) <= set(found.finals)
    assert not set(found.twins) & set(front_of(found, final=True))
    shown = summarise(found)
    chosen = pick(shown["front"], "knee")
    (gain,) = chosen["twins"]
    assert (gain["technique"], gain["setting"], gain["latency_ratio"]) == ("distillation", "0.5", 1.0)
    assert gain["error_change"] == pytest.approx(-0.005)
    assert gain["tested"]
    entry = next(one for one in shown["compression"] if one["technique"] == "distillation")
    assert entry["pairs"] == len(found.twins)
    assert entry["error_change"] == pytest.approx(-0.005)


def test_a_twin_that_fails_is_told_and_costs_nothing_else(tmp_path: Path) -> None:
    made = plan(tmp_path, baseline=None, extra={"crash": "train:undistilled"}, **TAUGHT)
    with Study.start(tmp_path, "s", made) as study:
        assert drive(study, Limits(trials=4)) == "trials"
    found = history.read(tmp_path, "s")
    shown = summarise(found)
    assert {failure["trial"] for failure in shown["failures"]} == set(found.twins) != set()
    assert all("SIGSEGV" in failure["reason"] for failure in shown["failures"])
    assert shown["final"]
    assert all(point["twins"] == [] for point in shown["front"])
    assert len(shown["batch_curve"]["rows"]) == 4


def _drive_and_die_at_the_end(home: str, stop: int) -> None:
    """Drive the study "s", and be killed before the write of this number counted from the first twin's beginning."""
    at = Path(home)

    def strike() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with Study.start(at, "s", taught(at)) as study:
        held: list[Any] = []

        def hear(event: dict[str, Any]) -> None:
            if event["event"] == "group" and str(event["trials"][0]).startswith("twin-") and stop and not held:
                held.append(at_write(stop, strike))
                held[0].__enter__()

        drive(study, Limits(trials=8), hear)


def test_killed_between_the_front_and_its_twins_it_ends_as_if_undisturbed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)

    def session(home: Path, stop: int) -> int | None:
        home.mkdir(exist_ok=True)
        driver = context.Process(target=_drive_and_die_at_the_end, args=(str(home), stop))
        driver.start()
        driver.join(60)
        return driver.exitcode

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert session(whole, 0) == 0
    for stop in (1, 2, 5):  # before the first twin is kept, after it, and later
        assert session(killed, stop) == -9
    assert session(killed, 0) == 0
    one, other = (summarise(history.read(home, "s")) for home in (whole, killed))
    for key in ("counts", "front", "compression", "batch_curve", "failures"):
        assert one[key] == other[key]
    assert history.read(killed, "s").twins.keys() == history.read(whole, "s").twins.keys()
    assert session(killed, 0) == 0  # a finished study that is run again
    assert summarise(history.read(killed, "s"))["front"] == other["front"]
