"""The floor of a study: the user's own model, rewritten in every form, kept beside the trials."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rehearsed import plan

from objectives.model_file import ModelFile
from search import history
from search.budget import Limits
from search.drive import drive
from search.front import pick
from search.study import Study
from search.summary import nearest_miss, summarise
from search.worth import near_the_front
from spaces.errors import NothingFeasible, StudyError
from spaces.genotype import Deployment, Genotype

OWN = Genotype.of_model("mine.keras", Deployment("keras", bits="8"))
FILE = ModelFile("mine.keras", "first")
FORMS = [f"rewrite-{index}" for index in range(1, 13)]


def driven(home: Path, *, trials: int = 3, hear: Any = None, **changes: Any) -> list[dict[str, Any]]:
    """The events of a rehearsed study of the user's model."""
    heard: list[dict[str, Any]] = []
    settings = {"baseline": OWN, "model": FILE, **changes}
    with Study.start(home, "s", plan(home, **settings)) as study:
        drive(study, Limits(trials=trials), hear or heard.append)
    return heard


def test_the_forms_come_after_the_baseline_in_one_group_and_are_no_trials(tmp_path: Path) -> None:
    groups = [event["trials"] for event in driven(tmp_path) if event["event"] == "group"]
    assert groups[:2] == [["baseline"], FORMS]
    found = history.read(tmp_path, "s")
    assert list(found.rewrites) == FORMS
    assert {outcome.state for outcome in found.rewrites.values()} == {"complete"}
    assert sum(found.counts.values()) == 3
    names = {point["trial"] for point in summarise(found)["front"]}
    assert names & set(FORMS)
    within_noise = {*names, *near_the_front(found.candidates, found.plan.objectives)}
    assert within_noise == set(found.finals) - {"baseline"}


def test_a_form_that_fails_is_told_and_harmless(tmp_path: Path) -> None:
    driven(tmp_path, extra={"crash": "quantize:rec4"})
    found = history.read(tmp_path, "s")
    failures = summarise(found)["failures"]
    assert [failure["trial"] for failure in failures if isinstance(failure["trial"], str)] == [
        "rewrite-4",
        "rewrite-8",
        "rewrite-12",
    ]
    assert all("SIGSEGV" in failure["reason"] for failure in failures)
    assert sum(found.counts.values()) == 3


def test_stopped_among_the_forms_it_goes_on_with_those_left(tmp_path: Path) -> None:
    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "told" and event["trial"] == "rewrite-5":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        driven(tmp_path, hear=interrupt)
    kept = history.read(tmp_path, "s").rewrites
    assert list(kept) == FORMS[:5]
    groups = [event["trials"] for event in driven(tmp_path) if event["event"] == "group"]
    assert groups[0] == FORMS[5:]
    found = history.read(tmp_path, "s").rewrites
    assert list(found) == FORMS
    assert {name: found[name] for name in kept} == kept


def test_bounds_hold_for_the_forms_and_the_nearest_miss_may_be_one(tmp_path: Path) -> None:
    driven(tmp_path, trials=1, bounds={"size": 0.001})
    found = history.read(tmp_path, "s")
    assert {outcome.state for outcome in found.rewrites.values()} == {"infeasible"}
    assert not summarise(found)["front"]
    forms = replace(found, outcomes={})
    assert nearest_miss(forms).startswith("the nearest miss is rewrite-")


def test_a_rule_names_the_form_that_is_nearest(tmp_path: Path) -> None:
    driven(tmp_path, trials=1)
    front = summarise(history.read(tmp_path, "s"))["front"]
    with pytest.raises(NothingFeasible, match="the nearest is rewrite-"):
        pick([point for point in front if isinstance(point["trial"], str)], "latency_ms<=1e-6")


def test_another_model_is_another_study(tmp_path: Path) -> None:
    driven(tmp_path, trials=1)
    with pytest.raises(StudyError, match=r"the model mine\.keras of study 's' has changed.* --name"):
        driven(tmp_path, trials=2, model=replace(FILE, sha256="second"))


def test_a_model_that_was_mended_is_looked_at_anew(tmp_path: Path) -> None:
    """Before anything was made of it, the file may change, and with it the forms that it allows."""
    with pytest.raises(StudyError, match="baseline failed at lower"):
        driven(tmp_path, extra={"raise": "lower:keras"})
    with Study.start(tmp_path, "s", plan(tmp_path, baseline=OWN, model=FILE, extra={"raise": "lower:keras"})) as study:
        looked = {**study.prepared, "model": {"padding": None, "forms": study.prepared["model"]["forms"][:2]}}
        study.keep_prepared(looked)
        assert list(study.rewrites_left()) == FORMS[:2]
    assert history.read(tmp_path, "s").prepared == looked
