from __future__ import annotations

import json
import multiprocessing
import queue
import random
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from rehearsed import BASELINE, PRELOAD, bench, drive_and_die, plan

from objectives.outcome import Outcome
from search import history
from search.budget import Limits
from search.drive import _Driver, drive, shares
from search.isolate import CallFailed, Child, ChildDied
from search.lane import Abandoned, Lane, Work
from search.study import PATIENCE, Study, named_at_work
from search.summary import front_of, summarise
from spaces.errors import InputError, StudyError
from spaces.genotype import Deployment
from spaces.record import to_json
from spaces.space import Space

TRIALS, DEATHS, SEED = 9, 3, 11


def driven(home: Path, limits: Limits, **changes: Any) -> tuple[str, list[dict[str, Any]]]:
    heard: list[dict[str, Any]] = []
    with Study.start(home, "s", plan(home, **changes)) as study:
        return drive(study, limits, heard.append), heard


def test_a_study_from_start_to_end(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    with Study.start(tmp_path, "s", plan(tmp_path)) as study:
        assert drive(study, Limits(trials=10), heard.append) == "trials"
        summary = summarise(study)
    groups = [event for event in heard if event["event"] == "group"]
    assert groups[0]["trials"] == ["baseline"]
    told = [event["trial"] for event in heard if event["event"] == "told"]
    assert told[0] == "baseline"
    assert sorted(told[1:11]) == list(range(10))
    assert told[11:] == ["batch-1", "batch-4", "batch-16", "batch-32"]
    assert heard[-1] == {"event": "idle", "lane": 0}  # and nothing is said of it any more
    assert all("lane" in event for event in heard)  # what the end measures is the first worker's
    assert summary["counts"] == {"complete": 10, "infeasible": 0, "stopped": 0, "failed": 0, "running": 0}
    assert summary["final"]
    assert all(point["quality"]["test"] is not None for point in (summary["baseline"], *summary["front"]))
    assert summary["ended"] == "trials"


def test_a_front_is_measured_again_whole_however_long_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or its accurate end, which is slow, would be lost."""
    monkeypatch.setattr("search.finish.MOST", 2)
    driven(tmp_path, Limits(trials=40))
    found = history.read(tmp_path, "s")
    best = front_of(found)
    assert len(best) > 2
    assert {*best} <= {*found.finals}


def test_a_fault_fails_its_candidate_and_nothing_else(tmp_path: Path) -> None:
    """Five forms of one model: a crash, an endless loop, an endless hunger, an error, and one that is well."""
    space = Space(cell=("lstm",), bits=("32", "16", "8", "rec8", "4"), lowering=("loop",), steps=(1,))
    faults = {"crash": "quantize:8", "hang": "lower:rec8", "eat": "quality:4", "raise": "quantize:16"}
    limits = Limits(trials=5, group_timeout_s=5.0, memory_limit_bytes=250 * 2**20)
    ended, heard = driven(tmp_path, limits, extra=faults, baseline=None, space=space)
    found = history.read(tmp_path, "s").outcomes.values()
    told = {one.genotype.deployment.bits: (one.state, one.stage, one.reason) for one in found}
    assert ended == "trials"
    assert told["32"] == ("complete", "", "")
    assert told["16"] == ("failed", "quantize", "asked for by the rehearsal")
    assert told["8"] == ("failed", "quantize", "died by signal 11 (SIGSEGV)")
    assert told["rec8"] == ("failed", "lower", "did not end within 5 s")
    assert told["4"][:2] == ("failed", "quality")
    assert "over its limit of 250 MiB" in told["4"][2]
    trials = [event["trial"] for event in heard if event["event"] == "told" and isinstance(event["trial"], int)]
    assert sorted(trials) == [0, 1, 2, 3, 4]


def test_a_crash_in_a_shared_stage_fails_the_group(tmp_path: Path) -> None:
    driven(tmp_path, Limits(trials=8), extra={"crash": "train:lstm"}, baseline=None)
    outcomes = history.read(tmp_path, "s").outcomes.values()
    by_cell = Counter((outcome.genotype.architecture.cell, outcome.state) for outcome in outcomes)
    assert {state for cell, state in by_cell if cell == "lstm"} <= {"failed"}
    assert {state for cell, state in by_cell if cell == "mingru"} <= {"complete"}
    assert sum(by_cell.values()) == 8


DOOMED = """
import os, pathlib, signal
from objectives.rehearsal import evaluate as well, final, prepare

def evaluate(bench, genotypes, emit, ask):
    emit({"event": "stage", "stage": "train", "form": None, "detail": ""})
    with open(pathlib.Path(bench["home"], "tries"), "a") as tries:
        tries.write("x")
    if len(pathlib.Path(bench["home"], "tries").read_text()) <= int(bench["extra"]["deaths"]):
        os.kill(os.getpid(), signal.SIGKILL)
    well(bench, genotypes, emit, ask)
"""


@pytest.mark.parametrize(("deaths", "expected"), [(2, {"complete": 8}), (3, {"failed": 4, "complete": 4})])
def test_a_group_whose_worker_is_killed_is_tried_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int, expected: dict[str, int]
) -> None:
    """Two groups of four forms, the second begun before the first is tried again."""
    (tmp_path / "doomed.py").write_text(DOOMED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = replace(plan(tmp_path, baseline=None, extra={"deaths": str(deaths)}), evaluator="doomed")
    with Study.start(tmp_path, "s", made) as study:
        drive(study, Limits(trials=8))
    assert Counter(outcome.state for outcome in history.read(tmp_path, "s").outcomes.values()) == expected


UNREADY = """
import os, signal
from objectives.rehearsal import final, prepare
from spaces.errors import CandidateError, DeviceError

def evaluate(bench, genotypes, emit, ask):
    emit({{"event": "stage", "stage": "load", "form": None, "detail": ""}})
    {}
"""
MEASURING = 'emit({"event": "stage", "stage": "untrained", "form": None, "detail": ""})\n    '


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        ("import no_such_module_of_brisk", "ModuleNotFoundError"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "died by signal 9"),
        ("raise CandidateError('load', 'MemoryError: no message')", "MemoryError"),
        (MEASURING + "raise DeviceError('the device can measure nothing now')", "the device can measure nothing now"),
    ],
)
def test_what_is_no_candidates_fault_ends_the_run_and_costs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, told: str
) -> None:
    (tmp_path / "unready.py").write_text(UNREADY.format(trouble))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        Study.start(tmp_path, "s", replace(plan(tmp_path, baseline=None), evaluator="unready")) as study,
        pytest.raises(StudyError, match=rf"no candidate can be evaluated: {told}.*; the worker's log in .*logs may"),
    ):
        drive(study, Limits(trials=8))
    found = history.read(tmp_path, "s")
    assert not found.outcomes
    assert found.running


DYING = """
import pathlib
from objectives.rehearsal import evaluate as well, final, prepare
from spaces.errors import DeviceError

def evaluate(bench, genotypes, emit, ask):
    with open(pathlib.Path(bench["home"], "groups"), "a") as groups:
        groups.write("x")
    if {}:
        raise DeviceError("the device can measure nothing now")
    well(bench, genotypes, emit, ask)
"""


def test_a_device_that_dies_in_the_night_ends_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not fail all that was left."""
    (tmp_path / "dying.py").write_text(DYING.format('len(pathlib.Path(bench["home"], "groups").read_text()) > 3'))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        Study.start(tmp_path, "s", replace(plan(tmp_path, baseline=None), evaluator="dying")) as study,
        pytest.raises(StudyError, match="no candidate can be evaluated: the device can measure nothing now"),
    ):
        drive(study, Limits(trials=60, workers=2))
    outcomes = history.read(tmp_path, "s").outcomes.values()
    failed = {one.genotype.group for one in outcomes if one.state == "failed"}
    assert 1 <= len(failed) <= 2  # two where a measurement of before it died came in between
    assert any(one.state != "failed" for one in outcomes)


def test_what_is_no_trial_is_left_to_the_next_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dying.py").write_text(DYING.format('bench["in_full"]'))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    heard: list[dict[str, Any]] = []
    made = replace(plan(tmp_path, baseline=None), evaluator="dying")
    with Study.start(tmp_path, "s", made) as study:
        assert drive(study, Limits(trials=8), heard.append) == "trials"
        assert summarise(study)["final"]
    told = [event["text"] for event in heard if event["event"] == "warning"]
    assert any("batch-1, batch-4" in text and "the same command tries again" in text for text in told)
    assert not history.read(tmp_path, "s").batches
    (tmp_path / "dying.py").write_text(DYING.format("False"))
    with Study.start(tmp_path, "s", made) as study:
        drive(study, Limits(trials=8))
    assert len(history.read(tmp_path, "s").batches) == 4


@pytest.mark.parametrize(
    ("kind", "reason", "learnt"),
    [
        ("crashed", "died by signal 11 (SIGSEGV)", True),
        ("crashed", "died by signal 9 (SIGKILL)", False),
        ("timeout", "the stage lower did not end within 5 s", True),
        ("timeout", "did not end within 5 s", False),  # training may have taken most of it
        ("memory", "used 3000 MiB", False),
    ],
)
def test_what_teaches_that_a_kind_of_candidate_cannot_be_made(
    tmp_path: Path, kind: str, reason: str, learnt: bool
) -> None:
    with Study.start(tmp_path, "s", plan(tmp_path, baseline=None)) as study:
        driver = _Driver(study, Limits(), lambda event: None, threading.Event())
        try:
            for twin in ("twin-1", "twin-2"):
                work = Work((twin,), (BASELINE,), to_json(study.bench), stage="lower", form=0)
                driver._lanes[0].works.append(work)
                driver._bury(driver._lanes[0], work, ChildDied(kind, reason))
        finally:
            driver.stop("error")
        assert bool(study._crashes.known(BASELINE)) == learnt


def test_a_baseline_that_takes_the_machine_down_is_given_up(tmp_path: Path) -> None:
    for _ in range(PATIENCE):
        with Study.start(tmp_path, "s", plan(tmp_path)) as study:
            study.keep_clock({}, [named_at_work("baseline", BASELINE)])
    with (
        Study.start(tmp_path, "s", plan(tmp_path)) as study,
        pytest.raises(StudyError, match="the baseline failed at start: it was at work 5 times"),
    ):
        drive(study, Limits(trials=4))
    with Study.start(tmp_path, "s", plan(tmp_path)) as study:  # as it says, the same command tries it again
        assert drive(study, Limits(trials=4)) == "trials"
        assert study.baseline
        assert study.baseline.state == "complete"


FUSSY = """
import json, pathlib
from objectives.rehearsal import evaluate as well, final, prepare
from spaces.errors import DeviceError

def evaluate(bench, genotypes, emit, ask):
    first = pathlib.Path(bench["home"], "first.json")
    if not first.exists():
        first.write_text(json.dumps(genotypes))
    if json.loads(first.read_text()) == genotypes:
        raise DeviceError("the device can measure nothing now")
    well(bench, genotypes, emit, ask)
"""


def test_a_device_that_fails_one_model_alone_fails_that_and_the_study_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fussy.py").write_text(FUSSY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Study.start(tmp_path, "s", replace(plan(tmp_path, baseline=None), evaluator="fussy")) as study:
        assert drive(study, Limits(trials=24)) == "trials"
    outcomes = history.read(tmp_path, "s").outcomes.values()
    assert len(outcomes) == 24
    assert Counter(outcome.state for outcome in outcomes)["failed"] == 4
    assert {one.genotype.group for one in outcomes if one.state == "failed"} == {study.outcomes[0].genotype.group}


DEADLY = """
import os, signal
from objectives.rehearsal import evaluate, prepare
from objectives.rehearsal import final as well

def final(bench, genotypes, outcomes, emit):
    for form, each in enumerate(genotypes):
        emit({"event": "stage", "stage": "quality", "form": form, "detail": "test"})
        if each["deployment"]["bits"] == "8":
            os.kill(os.getpid(), signal.SIGSEGV)
    return well(bench, genotypes, outcomes, emit)
"""


def test_a_model_that_kills_whoever_tests_it_costs_no_other_its_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    space = Space(cell=("lstm", "mingru"), bits=("32", "8"), steps=(1,))
    with Study.start(tmp_path, "s", replace(plan(tmp_path, baseline=None, space=space), evaluator="deadly")) as study:
        drive(study, Limits(trials=4))
    finals = history.read(tmp_path, "s").finals.values()
    tested = {one.genotype.deployment.bits: (one.quality.test is not None, one.reason) for one in finals if one.quality}
    assert tested["32"] == (True, "")
    assert tested["8"][0] is False
    assert "the worker that ran it on the test part died by signal 11" in tested["8"][1]


def test_what_outgrew_its_memory_is_tried_once_more_for_others_filled_it_too(tmp_path: Path) -> None:
    with Study.start(tmp_path, "s", plan(tmp_path, baseline=None)) as study:
        driver = _Driver(study, Limits(), lambda event: None, threading.Event())
        lane, work = driver._lanes[0], Work(("twin-1",), (BASELINE,), to_json(study.bench), stage="train")
        lane.works.append(work)
        try:
            driver._bury(lane, work, ChildDied("memory", "used 3000 MiB of memory, over its limit of 2000 MiB"))
            assert lane.work
            assert (lane.work.names, lane.work.tried) == (("twin-1",), 2)
            lane.work.stage = "train"
            driver._bury(lane, lane.work, ChildDied("memory", "used 3000 MiB of memory, over its limit of 2000 MiB"))
        finally:
            driver.stop("error")
    (twin,) = history.read(tmp_path, "s").twins.values()
    assert twin.reason.startswith("used 3000 MiB")


def test_a_full_disk_that_a_worker_met_fails_no_candidate(tmp_path: Path) -> None:
    with Study.start(tmp_path, "s", plan(tmp_path, baseline=None)) as study:
        driver = _Driver(study, Limits(), lambda event: None, threading.Event())
        lane, work = driver._lanes[0], Work(("twin-1",), (BASELINE,), to_json(study.bench), stage="quality", form=0)
        lane.works.append(work)
        try:
            with pytest.raises(CallFailed, match="No space left on device"):
                driver._bury(lane, work, CallFailed("OSError: [Errno 28] No space left on device: 'x.json'"))
        finally:
            driver.stop("error")
    assert not history.read(tmp_path, "s").twins


def test_a_stage_is_finished_before_a_session_that_winds_down_lets_go(tmp_path: Path) -> None:
    """A sitting tells how far it is again and again; only what begins something is too late."""
    lane = Lane(Child(home=tmp_path, name="w", cores=shares(1)[0]), queue.SimpleQueue())

    def stage(name: str, form: int | None, detail: str = "") -> dict[str, Any]:
        return {"event": "stage", "stage": name, "form": form, "detail": detail}

    try:
        lane._tell(stage("untrained", None, "process 1 of 4"))
        lane.abandon.set()
        lane._tell(stage("untrained", None, "process 2 of 4"))
        for later in (
            stage("untrained", None, "waiting for another measurement"),
            stage("train", None),
            {"event": "outcome"},
        ):
            with pytest.raises(Abandoned):
                lane._tell(later)
            lane._at = "untrained", None
    finally:
        lane.close()


def test_a_failed_baseline_ends_the_run_and_is_tried_again(tmp_path: Path) -> None:
    faults = {"raise": "lower:keras"}
    for _ in range(2):
        with pytest.raises(
            StudyError, match=r"baseline failed at lower: asked for by the rehearsal; mend \[baseline\]"
        ):
            driven(tmp_path, Limits(trials=3), extra=faults)
    summary = summarise(history.read(tmp_path, "s"))
    assert [failure["trial"] for failure in summary["failures"]] == ["baseline"]
    assert not any(count for state, count in summary["counts"].items() if state != "running")
    well = replace(BASELINE, deployment=Deployment("loop", 1, "8"))
    assert driven(tmp_path, Limits(trials=3), extra=faults, baseline=well)[0] == "trials"
    summary = summarise(history.read(tmp_path, "s"))
    assert summary["baseline"]["genotype"]["deployment"]["lowering"] == "loop"
    assert summary["rehearsal"]


def test_time_ends_a_study_between_groups(tmp_path: Path) -> None:
    ended, _ = driven(tmp_path, Limits(trials=100, timeout_s=1.0), extra={"pause_s": "0.3"})
    found = history.read(tmp_path, "s")
    assert ended == found.ended == "timeout"
    assert found.baseline
    assert len(found.outcomes) < 100
    assert not found.running


def test_an_interrupt_keeps_everything(tmp_path: Path) -> None:
    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "stage" and event["trials"][0] != "baseline":
            raise KeyboardInterrupt

    with Study.start(tmp_path, "s", plan(tmp_path)) as study, pytest.raises(KeyboardInterrupt):
        drive(study, Limits(trials=6), interrupt)
    found = history.read(tmp_path, "s")
    assert found.ended == "interrupted"
    assert found.baseline
    assert len(found.running) > 0
    assert not found.outcomes
    assert driven(tmp_path, Limits(trials=6))[0] == "trials"
    assert sorted(history.read(tmp_path, "s").outcomes) == list(range(6))


MORTAL = """
import os, pathlib, signal
from objectives.rehearsal import evaluate, final, prepare as well

def prepare(bench):
    with open(pathlib.Path(bench["home"], "tries"), "a") as tries:
        tries.write("x")
    if len(pathlib.Path(bench["home"], "tries").read_text()) <= int(bench["extra"]["deaths"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return well(bench)
"""


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_worker_that_dies_while_it_prepares_is_replaced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    (tmp_path / "mortal.py").write_text(MORTAL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = replace(plan(tmp_path, baseline=None, extra={"deaths": str(deaths)}), evaluator="mortal")
    with Study.start(tmp_path, "s", made) as study:
        if deaths == 1:
            assert drive(study, Limits(trials=1)) == "trials"
        else:
            with pytest.raises(ChildDied, match="the worker that reads and checks the data died by signal 9"):
                drive(study, Limits(trials=1))
    assert (tmp_path / "tries").read_text() == "xx"


ENDLESS = """
import time
from objectives.rehearsal import evaluate, final

def prepare(bench):
    time.sleep(600)
"""


def test_reading_the_data_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        Study.start(tmp_path, "s", replace(plan(tmp_path, baseline=None), evaluator="endless")) as study,
        pytest.raises(ChildDied, match=r"reads and checks the data did not end within 0\.5 s"),
    ):
        drive(study, Limits(trials=1, group_timeout_s=0.5))


def test_errors_of_the_user_reach_the_user(tmp_path: Path) -> None:
    wrong = plan(tmp_path)
    with Study.start(tmp_path, "s", wrong) as study:
        study.keep_prepared({"digest": "of other data"})
        with pytest.raises(StudyError, match="have changed"):
            drive(study, Limits(trials=1))


def test_an_error_of_the_user_inside_a_worker_ends_the_run(tmp_path: Path) -> None:
    """As where a worker has fewer cores than threads; what a candidate fails at does not."""
    made = plan(tmp_path, baseline=None)
    with Study.start(tmp_path, "s", made) as study:
        driver = _Driver(study, Limits(), lambda event: None, threading.Event())
        lane, work = driver._lanes[0], Work((0,), (BASELINE,), {})
        try:
            with pytest.raises(InputError, match="threads = 8"):
                driver._bury(lane, work, InputError("threads = 8 must be at most the cores"))
        finally:
            driver.stop("error")


def test_workers_are_told_which_data_they_must_find(tmp_path: Path) -> None:
    with Study.start(tmp_path, "s", plan(tmp_path, baseline=None)) as study:
        drive(study, Limits(trials=1))
        assert study.bench.data_digest == study.prepared["digest"] != ""
        assert study.plan.bench.data_digest == ""


def test_cores_are_shared_out() -> None:
    cores = shares(1)[0]
    assert sorted(core for share in shares(len(cores)) for core in share) == cores
    assert all(len(share) == 1 for share in shares(len(cores) + 3))


def test_two_lanes_tell_every_trial_once(tmp_path: Path) -> None:
    ended, heard = driven(tmp_path, Limits(trials=14, workers=2))
    told = Counter(event["trial"] for event in heard if event["event"] == "told")
    assert ended == "trials"
    assert set(told.values()) == {1}
    assert len(history.read(tmp_path, "s").outcomes) == 14


def test_a_group_goes_to_the_worker_that_has_met_its_architecture(tmp_path: Path) -> None:
    space = Space(cell=("lstm", "gru"), units=(16, 64, 16), learning_rate=(1e-3, 1e-1), lowering=("loop",), steps=(1,))
    ended, heard = driven(
        tmp_path, Limits(trials=150, workers=2), space=space, baseline=None, sampler="random", extra={"pause_s": "0.05"}
    )
    assert ended == "trials"
    met: dict[Any, set[int]] = {}
    again = []
    for event in heard:
        if event["event"] == "group" and isinstance(event["trials"][0], int):
            lanes = met.setdefault(json.dumps(event["genotypes"][0]["architecture"]), set())
            if lanes:
                again.append(event["lane"] in lanes)
            lanes.add(event["lane"])
    assert len(again) > 50
    assert sum(again) > 0.8 * len(again)  # who has three groups to do is given no other
    assert {lane for lanes in met.values() for lane in lanes} == {0, 1}


def test_what_is_taken_back_is_what_came_last(tmp_path: Path) -> None:
    """Also where the call before it still waits for one that only warms up."""
    news: queue.SimpleQueue[Any] = queue.SimpleQueue()
    lane = Lane(Child(home=tmp_path, name="w", cores=shares(1)[0]), news)
    at = to_json(bench(tmp_path))
    try:
        lane.submit("objectives.rehearsal:prepare", {"bench": at}, Limits())
        first, last = (Work((number,), (BASELINE,), at) for number in (1, 2))
        for work, function in ((first, "prepare"), (last, "no_such_function")):
            lane.works.append(work)
            lane.submit(f"objectives.rehearsal:{function}", {"bench": at}, Limits())
        assert lane.take_back() is last
        assert lane.take_back() is None
        assert [news.get(timeout=60).kind for _ in range(4)] == ["begin", "done"] * 2
        assert news.empty()
    finally:
        lane.close()


def bare(outcome: Outcome) -> tuple[str, str]:
    return outcome.genotype.key, outcome.state


def test_killed_at_any_moment_it_ends_as_if_undisturbed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"

    def session(home: Path, writes: int) -> int | None:
        driver = context.Process(target=drive_and_die, args=(str(home), TRIALS, writes, 1))
        driver.start()
        workers: list[psutil.Process] = []
        while driver.is_alive():
            workers = _children(driver.pid) or workers
            driver.join(0.05)
        psutil.wait_procs(workers, timeout=5)
        assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
        return driver.exitcode

    assert session(undisturbed, 0) == 0
    moments = random.Random(SEED)
    deaths = 0
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        writes = moments.randint(2, 40) if deaths < DEATHS else 0
        code = session(killed, writes)
        if code == 0:
            break
        assert code == -9
        deaths += 1
    whole, resumed = history.read(undisturbed, "s"), history.read(killed, "s")
    assert deaths == DEATHS
    assert resumed.counts == whole.counts
    assert resumed.duplicates == whole.duplicates
    assert {n: bare(o) for n, o in resumed.outcomes.items()} == {n: bare(o) for n, o in whole.outcomes.items()}


def _children(pid: int | None) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []


QUIET = """
import os, pathlib, time
from objectives.rehearsal import evaluate as well, final, prepare

def evaluate(bench, genotypes, emit, ask):
    with open(pathlib.Path(bench["home"], "first"), "a+") as first:
        first.write(f"{os.getpid()} ")
        first.flush()
        first.seek(0)
        loud = first.read().split()[0] != str(os.getpid())
    stage = {"event": "stage", "stage": "train" if loud else "measure", "form": None, "detail": "", "quiet": not loud}
    with open(pathlib.Path(bench["home"], "beats"), "a") as beats:
        for beat in range(100):
            if beat % 25 == 0:
                emit(stage)
            time.sleep(0.01)
            print("loud" if loud else "quiet", time.monotonic(), file=beats, flush=True)
    well(bench, genotypes, emit, ask)
"""


def test_the_others_stand_still_while_one_measures_what_they_would_disturb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quietly.py").write_text(QUIET)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    space = Space(cell=("lstm",), units=(16, 32, 16), bits=("32",), lowering=("loop",), steps=(1,))
    made = replace(plan(tmp_path, baseline=None, space=space), evaluator="quietly", warm_start=())
    with Study.start(tmp_path, "s", made) as study:
        drive(study, Limits(trials=6, workers=2))
    beats = [line.split() for line in (tmp_path / "beats").read_text().splitlines()]
    at = {kind: [float(when) for who, when in beats if who == kind] for kind in ("loud", "quiet")}
    assert at["loud"]
    assert at["quiet"]
    during = [when for when in at["loud"] if any(abs(when - other) < 0.008 for other in at["quiet"])]
    assert len(during) <= 0.6 * len(at["loud"])  # the driver may be busy for a moment
    assert len(history.read(tmp_path, "s").outcomes) == 6


def test_nobody_stands_still_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quietly.py").write_text(QUIET)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("search.drive.QUIET_S", 0.2)
    space = Space(cell=("lstm",), units=(16, 32, 16), bits=("32",), lowering=("loop",), steps=(1,))
    made = replace(plan(tmp_path, baseline=None, space=space), evaluator="quietly", warm_start=())
    heard: list[dict[str, Any]] = []
    with Study.start(tmp_path, "s", made) as study:
        drive(study, Limits(trials=2, workers=2), heard.append)
    beats = [line.split() for line in (tmp_path / "beats").read_text().splitlines()]
    at = {kind: [float(when) for who, when in beats if who == kind] for kind in ("loud", "quiet")}
    assert min(at["loud"]) < max(at["quiet"]) - 0.1  # it went on before the other was done
    last = max(place for place, event in enumerate(heard) if event["event"] == "told" and event["trial"] in (0, 1))
    assert [event["event"] for event in heard[:last]].count("warning") == 1  # and was not stopped again
    assert len(history.read(tmp_path, "s").outcomes) == 2


def test_the_search_begins_while_the_baseline_is_still_at_work(tmp_path: Path) -> None:
    _, heard = driven(tmp_path, Limits(trials=6, workers=2), extra={"pause_s": "0.4"})
    groups = [event["lane"] for event in heard if event["event"] == "group"]
    first = next(place for place, event in enumerate(heard) if event["event"] == "told")
    begun = [event for event in heard[:first] if event["event"] == "group"]
    assert groups[0] == 0
    assert {event["lane"] for event in begun} == {0, 1}
