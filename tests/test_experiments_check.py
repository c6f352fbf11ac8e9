"""`brisk check` says what `brisk run` would say, and every shipped preset passes it and a rehearsal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.check import check_spec
from experiments.launch import launch
from experiments.spec import presets, read
from objectives.bench import TaskSpec
from objectives.latency.devices import device
from objectives.sources import gather
from spaces.errors import SpecError

SPEC = '[task]\ndata = "digits-rows"\n[objectives]\nquality = {}\nlatency = {}\n'
PLUGINS = """
from optuna.samplers import RandomSampler
from objectives.latency.devices.fake import Fake


class Board(Fake):
    name = "board"


def sampler(seed):
    return RandomSampler(seed=seed)
"""


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_is_sound(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_spec(name, (), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["study"] == name
    assert all(count > 0 for count in found["forms"].values())


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_can_be_rehearsed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch(name, ("study.workers=1",), home=tmp_path / "home", trials=4, rehearse=True, as_json=True)
    summary = json.loads(capsys.readouterr().out)
    assert summary["counts"]["complete"] >= 1
    assert summary["front"]


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A spec with a module of the user's own beside it; the path of imports is put back afterwards."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "brisk_test_plugins", raising=False)
    (tmp_path / "brisk_test_plugins.py").write_text(PLUGINS)
    (tmp_path / "mine.toml").write_text(SPEC)
    return str(tmp_path / "mine.toml")


def test_samplers_and_devices_beside_the_spec_are_found(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ("search.sampler=brisk_test_plugins:sampler", "objectives.latency.device=brisk_test_plugins:Board")
    check_spec(spec, sets, as_json=True)
    assert sys.path[-1] == str(Path(spec).parent)
    assert read(spec, sets).plan("home").bench.device == "brisk_test_plugins:Board"


def test_a_worker_finds_them_once_it_has_the_data(spec: str) -> None:
    gather(TaskSpec(data="parity", samples=10), seed=0, root=str(Path(spec).parent))
    assert device("brisk_test_plugins:Board").name == "board"


def test_a_study_may_use_them_too(spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ("search.sampler=brisk_test_plugins:sampler",)
    launch(spec, sets, home=tmp_path / "home", trials=3, rehearse=True, as_json=True)
    assert json.loads(capsys.readouterr().out)["front"]


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("search.sampler=tpee", "search.sampler: got 'tpee'"),
        ("search.sampler=nowhere:sampler", "cannot be had: ModuleNotFoundError"),
        ("objectives.latency.device=nowhere:Board", "cannot be had"),
        ("objectives.latency.threads=200", r"objectives\.latency\.threads: got 200, but"),
        ("space.frame_stack=9", "the sequences have only 8 time steps"),
    ],
)
def test_what_a_run_would_refuse_is_refused(spec: str, item: str, words: Any) -> None:
    with pytest.raises(SpecError, match=words):
        check_spec(spec, (item,), as_json=True)


def test_the_data_are_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    check_spec("digits", (), as_json=False)
    said = capsys.readouterr().out
    assert "classification of digits-pixels: 1078 train + 362 validation + 357 test sequences" in said
    assert "64 steps of 1 features, 10 classes of 174 to 183" in said
