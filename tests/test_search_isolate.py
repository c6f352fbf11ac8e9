from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rehearsed import BASELINE, bench

from search.isolate import CallFailed, Child, ChildDied, _Watch
from spaces.errors import CandidateError, SpecError, StudyError
from spaces.record import to_json

PREPARE, EVALUATE = "objectives.rehearsal:prepare", "objectives.rehearsal:evaluate"


def arguments(home: Path, **extra: str) -> dict[str, Any]:
    return {"bench": to_json(bench(home, extra=extra)), "genotypes": [to_json(BASELINE)]}


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    made = Child(home=tmp_path, name="t", cores=[min(os.sched_getaffinity(0))], memory_limit_bytes=300 * 2**20)
    yield made
    made.close()


def test_it_returns_emits_and_stays_between_calls(child: Child, tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    assert child.pid is None
    assert child.call(EVALUATE, arguments(tmp_path), on_event=heard.append) is None
    first = child.pid
    assert [event["event"] for event in heard][-1] == "outcome"
    assert heard[-1]["outcome"]["genotype"] == to_json(BASELINE)
    assert child.call("spaces.errors:nearest", {"name": "grou", "known": ["gru", "lstm"]}) == "did you mean 'gru'?"
    assert child.pid == first
    assert first
    assert psutil.Process(first).cpu_affinity() == [min(os.sched_getaffinity(0))]
    assert os.getsid(first) == first  # a session of its own: Ctrl-C of the terminal is not for it


def test_what_a_library_prints_stays_out_of_the_protocol(child: Child, tmp_path: Path) -> None:
    child.call("builtins:print", {"sep": "", "end": "noise\n"})
    assert (tmp_path / "logs" / "t.log").read_text() == "noise\n"


def test_a_brisk_error_comes_back_as_itself(child: Child, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"device 'nope' is not known"):
        child.call("objectives.latency.devices.device:device", {"name": "nope"})
    with pytest.raises(CandidateError, match=r"train: asked for by the rehearsal") as caught:
        child.call(EVALUATE, arguments(tmp_path, **{"raise": "train:*"}))
    assert (caught.value.stage, caught.value.reason) == ("train", "asked for by the rehearsal")


def test_any_other_error_leaves_the_child_alive(child: Child) -> None:
    with pytest.raises(CallFailed, match=r"TypeError: .*unexpected keyword argument 'y'"):
        child.call(PREPARE, {"y": 1})
    alive = child.pid
    with pytest.raises(CallFailed, match="ModuleNotFoundError"):
        child.call("nowhere_at_all:f", {})
    assert child.pid == alive


def test_a_crash_is_named_and_the_next_call_gets_a_fresh_child(child: Child, tmp_path: Path) -> None:
    with pytest.raises(ChildDied, match=r"died by signal 11 \(SIGSEGV\)") as caught:
        child.call(EVALUATE, arguments(tmp_path, crash="quantize:8"))
    assert caught.value.kind == "crashed"
    with pytest.raises(ChildDied, match="ended with exit code 3"):
        child.call("os:_exit", {"status": 3})
    assert child.call(PREPARE, {"bench": to_json(bench(tmp_path))})["trivial_error"] == 0.9


def test_time_and_memory_have_limits(child: Child, tmp_path: Path) -> None:
    with pytest.raises(ChildDied, match=r"did not end within 0\.7 s") as caught:
        child.call(EVALUATE, arguments(tmp_path, hang="train:*"), timeout_s=0.7)
    assert caught.value.kind == "timeout"
    with pytest.raises(ChildDied, match=r"used \d+ MiB of memory, over its limit of 300 MiB") as caught:
        child.call(EVALUATE, arguments(tmp_path, eat="train:*"), timeout_s=30)
    assert caught.value.kind == "memory"


PAUSE = """
import time

def pause(detail, seconds, emit):
    emit({"event": "stage", "detail": detail})
    time.sleep(seconds)
"""


def test_waiting_for_others_is_not_timed(child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pausing.py").write_text(PAUSE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    child.call("pausing:pause", {"detail": "", "seconds": 0})
    child.call("pausing:pause", {"detail": "waiting for another measurement", "seconds": 1.6}, timeout_s=0.8)
    with pytest.raises(ChildDied, match=r"did not end within 0\.8 s"):
        child.call("pausing:pause", {"detail": "process 1 of 8", "seconds": 30}, timeout_s=0.8)


def test_a_child_that_waits_must_say_so_again(child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was stopped while it waited would never be ended."""
    monkeypatch.setattr("search.isolate.SILENT_S", 0.5)
    (tmp_path / "pausing.py").write_text(PAUSE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ChildDied, match=r"did not end within 0\.4 s"):
        child.call("pausing:pause", {"detail": "waiting for another measurement", "seconds": 30}, timeout_s=0.4)


FORKED = """
import os, time

def die():
    if os.fork() == 0:
        time.sleep(60)
    os._exit(7)
"""


def test_a_child_is_dead_though_what_it_started_lives(
    child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which holds its end of the pipe, so that nothing says that there will be no more."""
    (tmp_path / "forking.py").write_text(FORKED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ChildDied, match="ended with exit code 7"):
        child.call("forking:die", {}, timeout_s=30)


def test_close_ends_a_running_call(child: Child, tmp_path: Path) -> None:
    threading.Timer(0.6, child.close).start()
    started = time.monotonic()
    with pytest.raises(ChildDied):
        child.call(EVALUATE, arguments(tmp_path, hang="load:*"))
    assert time.monotonic() - started < 5
    with pytest.raises(ChildDied, match="was closed"):
        child.call(PREPARE, {})


ASKING = """
import time

def ask_twice(ask):
    return [ask({"ask": "one"}), ask({"ask": "two"})]

def stages(seconds, emit):
    for name, took in seconds.items():
        emit({"event": "stage", "stage": name})
        time.sleep(took)

def goes_on(stage, emit):
    for turn in range(100):
        emit({"event": "stage", "stage": stage, "detail": f"turn {turn}"})
        time.sleep(0.1)
"""


@pytest.fixture
def asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "asking.py").write_text(ASKING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


@pytest.mark.usefixtures("asking")
def test_it_asks_and_is_answered(child: Child) -> None:
    def slowly(question: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.6)
        return {"to": question["ask"]}

    child.call("asking:stages", {"seconds": {}})  # its imports are done
    assert child.call("asking:ask_twice", {}, on_ask=slowly, timeout_s=1.0) == [{"to": "one"}, {"to": "two"}]
    assert child.call("asking:ask_twice", {}) == [None, None]

    def refuse(question: dict[str, Any]) -> None:
        raise LookupError("nobody is there")

    before = child.pid
    with pytest.raises(LookupError):
        child.call("asking:ask_twice", {}, on_ask=refuse)
    assert not psutil.pid_exists(before or 0)
    assert child.call("asking:ask_twice", {}) == [None, None]


@pytest.mark.usefixtures("asking")
def test_each_stage_has_a_limit_of_its_own(child: Child) -> None:
    limits = {"lower": 1.5, "train": 9.0}
    child.call("asking:stages", {"seconds": {"lower": 0.6, "train": 0.6, "measure": 0.6}}, stage_timeouts=limits)
    with pytest.raises(ChildDied, match=r"the stage lower did not end within 1\.5 s") as caught:
        child.call("asking:stages", {"seconds": {"train": 0.1, "lower": 30}}, stage_timeouts=limits)
    assert caught.value.kind == "timeout"
    with pytest.raises(ChildDied, match=r"the stage lower did not end within 1\.5 s"):
        child.call("asking:goes_on", {"stage": "lower"}, stage_timeouts=limits)  # telling of it is no new one


@pytest.mark.usefixtures("asking")
def test_a_stage_may_be_given_less_memory_than_the_others(child: Child) -> None:
    limits = {"lower": 2**20}
    child.call("asking:stages", {"seconds": {"train": 0.5}}, stage_memory_bytes=limits)
    message = r"used \d+ MiB of memory in the stage lower, over its limit of 1 MiB"
    with pytest.raises(ChildDied, match=message) as caught:
        child.call("asking:stages", {"seconds": {"train": 0.5, "lower": 30}}, stage_memory_bytes=limits)
    assert caught.value.kind == "memory"


@pytest.mark.usefixtures("asking")
def test_standing_still_is_not_timed(child: Child) -> None:
    child.pause()  # of nothing yet: none begins
    threading.Timer(1.0, child.resume).start()
    began = time.monotonic()
    child.call("asking:stages", {"seconds": {}}, timeout_s=20.0)
    assert time.monotonic() - began > 1.0
    began = time.monotonic()
    threading.Timer(0.2, child.pause).start()
    threading.Timer(2.5, child.resume).start()
    child.call("asking:stages", {"seconds": {"train": 1.0}}, timeout_s=2.0, stage_timeouts={"train": 2.0})
    assert time.monotonic() - began > 2.4
    child.pause()
    child.close()
    assert child.pid is None


ORPHAN = """
import os, signal, sys, time
from search.isolate import Child

child = Child()
child.call("asking:stages", {"seconds": {}})
child.pause()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.usefixtures("asking")
def test_one_that_stands_still_ends_with_its_parent(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        orphan = psutil.Process(int(parent.stdout.readline()))
        while orphan.status() != psutil.STATUS_STOPPED:  # signals take their time
            time.sleep(0.01)
        parent.kill()
    _, alive = psutil.wait_procs([orphan], timeout=5)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.usefixtures("asking")
def test_a_child_outlives_the_thread_that_first_called_it(child: Child) -> None:
    thread = threading.Thread(target=child.call, args=("asking:stages", {"seconds": {}}))
    thread.start()
    thread.join()
    first = child.pid
    time.sleep(0.3)
    assert child.call("asking:ask_twice", {}) == [None, None]
    assert child.pid == first


def test_time_in_which_the_driver_stood_still_is_charged_to_nobody() -> None:
    """As after Ctrl-Z and `fg`, or where a machine was paused: the child did, or could do, nothing meanwhile."""
    watch = _Watch(1800.0, {"train": 10.0})
    watch.hear({"event": "stage", "stage": "train", "form": None})
    watch._looked -= 3600
    watch.tick(counts=True)
    for _ in range(4):
        watch._looked -= 1.9
        watch.tick(counts=True)
    watch._looked -= 1.9
    with pytest.raises(ChildDied, match=r"the stage train did not end within 10 s"):
        watch.tick(counts=True)


def test_a_log_that_was_cleared_away_costs_nothing(child: Child, tmp_path: Path) -> None:
    child.call(PREPARE, {"bench": arguments(tmp_path)["bench"]})
    (tmp_path / "logs" / "t.log").unlink()
    assert child.call(PREPARE, {"bench": arguments(tmp_path)["bench"]})
    with pytest.raises(ChildDied, match="exit code 3"):
        child.call("os:_exit", {"status": 3})


def test_a_process_that_cannot_be_started_is_told(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("search.isolate.subprocess.Popen", full)
    with pytest.raises(StudyError, match=r"cannot be started .*Resource temporarily.*fewer --workers"):
        child.call(PREPARE, {})
