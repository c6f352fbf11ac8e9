"""The contract of a device, over the table, and what the local one does when models misbehave."""

from __future__ import annotations

import inspect
import os
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from objectives.latency.devices import DEVICES, device
from objectives.latency.devices.fake import Fake
from objectives.latency.devices.local import METER, REFERENCE, Candidate, Local, _Runs, exclusive
from objectives.latency.timing import Visit
from objectives.outcome import Conditions, MeasureFailure, Measurement
from spaces.errors import InputError, SpecError
from spaces.record import from_json, to_json

SHORT = Conditions(min_processes=1, max_processes=1, timeout_s=1.0)
CRASHES = (19_983, 163)  # one byte of the reference that makes LiteRT 2.3 die by SIGSEGV when it opens the file


def spoilt(folder: Path, byte: tuple[int, int]) -> Path:
    content = bytearray(REFERENCE.read_bytes())
    content[byte[0]] = byte[1]
    path = folder / f"spoilt-{byte[0]}.tflite"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_measures_every_model_it_is_given(name: str, tmp_path: Path) -> None:
    tool = device(name)
    missing = tmp_path / "missing.tflite"
    good, absent, same = tool.measure([REFERENCE, missing, REFERENCE], SHORT)
    assert isinstance(absent, MeasureFailure)
    for each in (good, same):
        assert isinstance(each, Measurement)
        assert each.device == tool.name
        assert each.ci_ms[0] <= each.median_ms <= each.ci_ms[1]
        assert (each.batch, each.threads, each.scenario, each.processes) == (1, 1, "burst", 1)
        assert not each.converged, "one process cannot promise two percent"
        assert min(each.first_ms, each.load_ms, each.peak_memory_bytes, each.reference_ms) > 0
        assert from_json(Measurement, to_json(each)) == from_json(Measurement, to_json(each))
    assert tool.measure([], SHORT) == []


@pytest.mark.parametrize("name", DEVICES)
def test_a_fingerprint_names_the_conditions(name: str) -> None:
    tool = device(name)
    assert tool.fingerprint(Conditions()) == device(name).fingerprint(Conditions())
    assert tool.fingerprint(Conditions()) != tool.fingerprint(Conditions(threads=2))


@pytest.mark.parametrize("name", DEVICES)
def test_an_unknown_scenario_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match="scenario 'slowly'"):
        device(name).measure([REFERENCE], Conditions(scenario="slowly"))


def test_a_users_device_is_found_by_its_place_and_wrong_ones_are_named() -> None:
    assert isinstance(device("objectives.latency.devices.fake:Fake"), Fake)
    assert not inspect.isabstract(Fake)
    with pytest.raises(SpecError, match="'lokal' is not known; did you mean 'local'"):
        device("lokal")
    with pytest.raises(SpecError, match="cannot be had: ModuleNotFoundError"):
        device("nowhere.at_all:Thing")
    with pytest.raises(SpecError, match=r"is a dict; it must be|is a dict, which is not"):
        device("builtins:dict")


def test_the_fake_device_repeats_itself_and_orders_models_by_size(tmp_path: Path) -> None:
    sizes = [1000, 20_000, 50_000]
    paths = [tmp_path / f"{size}.tflite" for size in sizes]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(b"x" * size)
    one, other = Fake().measure(paths, Conditions()), Fake().measure(paths, Conditions())
    assert one == other
    medians = [each.median_ms for each in one if isinstance(each, Measurement)]
    assert medians == sorted(medians)
    assert Fake(seed=1).measure(paths, Conditions()) != one
    assert all(each.converged for each in one if isinstance(each, Measurement))


def test_a_meter_that_somebody_killed_is_started_again() -> None:
    stop = threading.Event()

    def kill_one() -> None:
        while not stop.wait(0.05):
            for child in psutil.Process().children():
                if str(METER) in child.cmdline():
                    child.kill()
                    return

    killer = threading.Thread(target=kill_one)
    killer.start()
    [found] = Local().measure([REFERENCE], SHORT)
    stop.set()
    killer.join()
    assert isinstance(found, Measurement), found


def test_a_model_that_kills_its_process_fails_alone(tmp_path: Path) -> None:
    os.mkfifo(hangs := tmp_path / "hangs.tflite")  # whoever opens it waits for a writer, for ever
    good, crash, hang = Local().measure([REFERENCE, spoilt(tmp_path, CRASHES), hangs], SHORT)
    assert isinstance(good, Measurement)
    assert crash == MeasureFailure("died by SIGSEGV when it was opened and run")
    assert hang == MeasureFailure("did not open and run within 2 s")


def test_a_death_of_the_meter_is_blamed_on_the_model_it_was_at(tmp_path: Path) -> None:
    runs = _Runs([Candidate(REFERENCE), Candidate(spoilt(tmp_path, CRASHES))], SHORT, [], started=1)  # 1: no probe
    assert runs.look([0, 1]) == {1: "died by SIGSEGV in open"}
    assert isinstance(runs.look([0])[0], Visit)


def test_run_twice_a_call_takes_twice_as_long() -> None:
    one, two = Local().compare([Candidate(REFERENCE), Candidate(REFERENCE, twice=True)], SHORT)
    assert isinstance(one, Measurement)
    assert isinstance(two, Measurement)
    assert 1.5 < two.median_ms / one.median_ms < 2.6  # a loose oracle: tests run beside other work


def test_progress_is_told() -> None:
    heard: list[dict[str, Any]] = []
    Local().measure([REFERENCE], SHORT, emit=heard.append)
    assert {(each["event"], each["stage"]) for each in heard} == {("stage", "measure")}
    assert heard[-1]["detail"].startswith("process 1 of at most 1")


def test_more_threads_than_cores_are_refused() -> None:
    with pytest.raises(InputError, match="threads = 3 must be at most the cores"):
        Local().measure([REFERENCE], Conditions(threads=3), cores=[0, 1])


def test_two_measurements_wait_for_one_another_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("objectives.latency.devices.local.SAID_S", 0.05)
    name, order, waits = f"test-{os.getpid()}", [], []

    def second() -> None:
        with exclusive(name, lambda: waits.append(True)):
            order.append("second")

    with exclusive(name, lambda: None):
        other = threading.Thread(target=second)
        other.start()
        while len(waits) < 3:
            time.sleep(0.01)
        order.append("first")
    other.join(timeout=10)
    assert order == ["first", "second"]
    said = len(waits)
    time.sleep(0.2)
    assert len(waits) == said
