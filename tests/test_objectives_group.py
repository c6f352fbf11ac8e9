from __future__ import annotations

import errno
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from objectives.artifact import Artifact
from objectives.bench import Bench, TaskSpec, TrainingSpec
from objectives.evaluate import LONG_MS, _goes_on, _look, _spare_the_beaten, _unsure
from objectives.group import Group
from objectives.latency.devices.fake import Fake
from objectives.latency.devices.local import REFERENCE
from objectives.outcome import Conditions, MeasureFailure, Measurement, Outcome
from spaces.errors import CandidateError, DeviceError, StudyError
from spaces.genotype import Architecture, Deployment, Genotype, Training
from spaces.record import from_json


@pytest.fixture
def group(tmp_path: Path) -> Group:
    forms = [Genotype(Architecture("gru", 8), Training(), Deployment("loop", steps)) for steps in (1, 2)]
    bench = Bench(TaskSpec(), TrainingSpec(), 0, "fake", Conditions(), {}, str(tmp_path))
    heard: list[dict[str, Any]] = []
    made = Group(bench, forms, heard.append, lambda question: None)
    made.heard = heard  # type: ignore[attr-defined]
    return made


def test_what_a_stage_raises_fails_one_form_and_the_others_go_on(group: Group) -> None:
    def station(group: Group, form: int) -> None:
        with group.stage("lower", form):
            if form == 0:
                raise ValueError("no such op\nand a long story")

    group.each(station)
    outcome = next(event for event in group.heard if event["event"] == "outcome")  # type: ignore[attr-defined]
    assert outcome["form"] == 0
    assert (outcome["outcome"]["stage"], outcome["outcome"]["reason"]) == ("lower", "ValueError: no such op")
    assert outcome["outcome"]["seconds"]["lower"] >= 0
    assert group.open == [1]


def test_a_full_disk_is_no_candidates_fault(group: Group) -> None:
    with (
        pytest.raises(StudyError, match=r"No space left.*free some space and run"),
        group.stage("train"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StudyError, match="No space left"), group.stage("lower"):  # as TensorFlow says it
        raise RuntimeError("RESOURCE_EXHAUSTED: /tmp/x/saved_model.pb; No space left on device")
    with pytest.raises(StudyError, match="Read-only"), group.stage("lower"):
        raise RuntimeError("the converter failed") from OSError(errno.EROFS, "Read-only file system")
    with pytest.raises(CandidateError, match="train: FileNotFoundError"), group.stage("train"):
        raise FileNotFoundError(errno.ENOENT, "No such file")


def looked(ms: float, *, trusted: bool) -> Measurement:
    counted = {"processes": 1, "blocks": 20, "first_ms": ms, "load_ms": ms, "peak_memory_bytes": 0}
    figures = {"median_ms": ms, "ci_ms": (0.8 * ms, 1.2 * ms), "raw_ms": ms, "converged": False, "trusted": trusted}
    return Measurement("fake", "burst", 1, 1, why="", fingerprint="", **figures, **counted)  # type: ignore[arg-type]


def test_a_wide_look_is_taken_again_only_where_something_hangs_on_it(group: Group) -> None:
    assert _unsure(group, 0)  # not looked at
    group.bench = replace(group.bench, bounds={"latency": 0.22})
    for ms, trusted, again in (
        (0.2, True, False),
        (0.2, False, True),  # the bound lies within its interval
        (0.1, False, False),
        (3.0, False, True),  # over the bound, and long enough to have been cut
    ):
        group.looks[0] = looked(ms, trusted=trusted)
        assert _unsure(group, 0) == again, (ms, trusted)
    group.bench = replace(group.bench, bounds={})
    group.looks[0] = looked(0.2, trusted=False)
    assert not _unsure(group, 0)


class Picky(Fake):
    """A device that cannot open the second form's file."""

    def measure(self, models: Sequence[Path], *how: Any, **more: Any) -> list[Measurement | MeasureFailure]:
        found = super().measure(models, *how, **more)
        second = [path.read_bytes().endswith(b"22") for path in models]
        refused = MeasureFailure("died by SIGSEGV in open")
        return [refused if is_second else one for is_second, one in zip(second, found, strict=True)]


class Unplugged(Fake):
    """A device that is not there any more."""

    def measure(self, models: Sequence[Path], *how: Any, **more: Any) -> list[Measurement | MeasureFailure]:
        raise OSError("no such port")


class Gone(Fake):
    """One that is asked first for what it is."""

    def fingerprint(self, conditions: Conditions) -> str:
        raise OSError("no such port")


@pytest.mark.parametrize("kind", ["Unplugged", "Gone"])
def test_a_device_that_is_gone_fails_no_form(group: Group, kind: str) -> None:
    group.bench = replace(group.bench, device=f"{__name__}:{kind}")
    content = REFERENCE.read_bytes()
    group.origin = SimpleNamespace(  # type: ignore[assignment]
        blueprint="", start=lambda: None, exporter=str, lower=lambda asked: content
    )
    with pytest.raises(DeviceError, match=f"{kind}' can measure nothing now: OSError: no such port"):
        _look(group)
    assert group.open == [0, 1]


def test_a_form_that_cannot_be_measured_is_not_trained_and_the_others_are(group: Group) -> None:
    group.bench = replace(group.bench, device=f"{__name__}:Picky")
    content = REFERENCE.read_bytes()  # what follows the end is nothing to LiteRT
    group.origin = SimpleNamespace(  # type: ignore[assignment]
        blueprint="", start=lambda: None, exporter=str, lower=lambda asked: content + str(asked.steps).encode() * 2
    )
    _look(group)
    (told,) = [event["outcome"] for event in group.heard if event["event"] == "outcome"]  # type: ignore[attr-defined]
    assert (told["state"], told["stage"], told["reason"]) == ("failed", "untrained", "died by SIGSEGV in open")
    assert told["genotype"]["deployment"]["steps"] == 2
    assert group.open == [0]
    assert group.looks.keys() == {0}


def test_what_others_beat_once_it_is_trained_is_not_deployed(group: Group) -> None:
    asked: list[dict[str, Any]] = []
    true = np.array([0, 1, 0, 1])
    group.forms[1] = replace(group.forms[1], deployment=Deployment("loop", 2, "8"))
    group.data = SimpleNamespace(  # type: ignore[assignment]
        signature=SimpleNamespace(kind="classification"), validation=SimpleNamespace(x=None, y=true)
    )
    group.origin = SimpleNamespace(  # type: ignore[assignment]
        answer=lambda x: np.eye(2, dtype=np.float32)[[0, 1, 0, 0]], history={"learned": [0.5, 0.3]}, trained_as=""
    )
    group.ask = lambda question: asked.append(question) or [False, True]
    _spare_the_beaten(group)
    assert (group.open, asked) == ([0, 1], [])  # nothing is known of their latencies

    group.looks = {0: looked(0.2, trusted=True), 1: looked(0.1, trusted=True)}
    group.known[1]["artifact"] = Artifact("of random weights", 5000, 1, {}, "brisk loop", compressed_bytes=4000)
    group.bench = replace(group.bench, bounds={"quality": 0.2})
    _spare_the_beaten(group)
    assert (group.open, asked) == ([0, 1], [])  # its files will be judged, and refused

    group.bench = replace(group.bench, bounds={"quality": 0.3})
    _spare_the_beaten(group)
    hoped = [outcome["quality"]["error"] for outcome in asked[0]["forms"]]
    share = 4 / 6  # of three right of four, one right and one wrong put beside them
    assert hoped == pytest.approx([0.25, 0.25 - math.sqrt(share * (1 - share) / 7)])
    assert group.open == [0]
    told = from_json(Outcome, group.heard[-1]["outcome"])  # type: ignore[attr-defined]
    assert (told.state, told.stage, told.learned, told.quality) == ("stopped", "deploy", (0.5, 0.3), None)
    assert told.reason == "with an error of 0.25 it was behind another that is as good in all else"
    assert told.measurement == group.looks[1]
    assert (told.error, told.weighed) == (0.25, True)
    assert told.artifact
    assert (told.artifact.sha256, told.artifact.size_bytes) == ("", 5000)  # a file of random weights is nobody's


def test_what_may_be_refused_or_is_not_surely_measured_is_deployed(group: Group) -> None:
    group.data = SimpleNamespace()  # type: ignore[assignment]  # which nobody asks
    group.origin = SimpleNamespace(trained_as="")  # type: ignore[assignment]
    group.looks = {0: looked(LONG_MS + 1, trusted=False), 1: looked(0.2, trusted=True)}
    group.bench = replace(group.bench, bounds={"latency": 0.19})
    group.ask = lambda question: pytest.fail("nothing is to be asked")
    _spare_the_beaten(group)
    assert group.open == [0, 1]


def test_what_cannot_be_run_fails_form_by_form(group: Group) -> None:
    def answer(x: Any) -> Any:
        raise ValueError("no such op")

    group.data = SimpleNamespace(  # type: ignore[assignment]
        signature=SimpleNamespace(kind="classification"), validation=SimpleNamespace(x=None, y=np.zeros(4))
    )
    group.origin = SimpleNamespace(answer=answer, trained_as="")  # type: ignore[assignment]
    group.looks = {form: looked(0.2, trusted=True) for form in group.open}
    _spare_the_beaten(group)
    assert group.open == [0, 1]


def test_a_training_with_little_left_goes_on_whatever_is_thought_of_it(group: Group) -> None:
    group.data = SimpleNamespace(signature=SimpleNamespace(kind="classification"))  # type: ignore[assignment]
    group.ask = lambda question: f"behind at epoch {question['epoch']}"
    group.began -= 10.0
    assert _goes_on(group, 0, 6, 0.5, 60.0) == "behind at epoch 6"
    assert _goes_on(group, 1, 15, 0.4, 4.0) == ""
    said = [event["goes_on"] for event in group.heard if event["event"] == "rung"]  # type: ignore[attr-defined]
    assert said == [False, True]
