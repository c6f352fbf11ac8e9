from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rehearsed import BASELINE, bench

from objectives import evaluate, trained
from objectives.cache import Cache
from objectives.latency.devices.fake import Fake
from objectives.outcome import Measurement
from objectives.rehearsal import invented
from spaces.record import to_json


def test_another_version_of_what_trains_is_another_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data: Any = SimpleNamespace(digest="d")
    before = trained.training_key(bench(tmp_path), data, BASELINE, None)
    assert trained.training_key(replace(bench(tmp_path), device="fake"), data, BASELINE, None) == before
    monkeypatch.setattr(trained, "version", lambda name: "99" if name == "tf-keras" else "1")
    assert trained.training_key(bench(tmp_path), data, BASELINE, None) != before


def test_a_kept_figure_of_another_form_counts_as_absent(tmp_path: Path) -> None:
    group: Any = SimpleNamespace(cache=Cache(tmp_path))
    figure = invented(bench(tmp_path), BASELINE).measurement
    assert figure
    group.cache.keep_record("measured", "good", to_json(figure))
    group.cache.keep_record("measured", "old", {**to_json(figure), "median_ms": {"of": "an older brisk"}})
    assert evaluate._kept(group, "good") == figure
    assert evaluate._kept(group, "old") is None
    assert evaluate._kept(group, "none") is None


class Telling(Fake):
    def measure(self, models: Any, conditions: Any, *, cores: Any = None, emit: Any = None) -> Any:
        emit({"event": "stage", "stage": "measure", "form": None, "detail": "waiting"})
        return super().measure(models, conditions)


def test_a_sitting_tells_of_itself_under_its_own_stage(tmp_path: Path) -> None:
    sha256 = Cache(tmp_path).keep_artifact(b"x" * 100)
    heard: list[dict[str, Any]] = []
    group: Any = SimpleNamespace(
        bench=bench(tmp_path, device=f"{__name__}:Telling"),
        cache=Cache(tmp_path),
        open=[0],
        known={0: {"artifact": SimpleNamespace(sha256=sha256)}},
        emit=heard.append,
    )
    conditions = group.bench.conditions
    assert isinstance(evaluate._sitting(group, "untrained", conditions)[0], Measurement)
    assert [(event["stage"], event["detail"]) for event in heard] == [("untrained", "waiting")]
    assert group.cache.record("reference", Fake().fingerprint(conditions))


def test_the_first_record_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.first_record("reference", "k", {"reference_ms": 1.0}) == {"reference_ms": 1.0}
    assert Cache(tmp_path).first_record("reference", "k", {"reference_ms": 2.0}) == {"reference_ms": 1.0}
