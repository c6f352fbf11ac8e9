from __future__ import annotations

import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rehearsed import bench, plan

from objectives.outcome import Outcome
from objectives.rehearsal import invented
from search import history
from search.budget import Limits, problem, reached
from search.drive import drive
from search.growth import settled, volume
from search.study import Study
from search.summary import front_of, point_of, summarise
from spaces.errors import InputError
from spaces.genotype import Architecture, Deployment, Genotype, Training

REFERENCE = {"quality": 0.9, "latency": 10.0, "size": 1000.0}


def told(at: Path, units: int, error: float) -> Outcome:
    outcome = invented(bench(at), Genotype(Architecture("gru", units), Training(), Deployment()))
    assert outcome.quality
    return replace(outcome, quality=replace(outcome.quality, error=error))


@pytest.mark.parametrize("text", ["", "settled", "drop<=0.005, latency_ms<=0.05", "accuracy>=0.9"])
def test_rules_that_are_legal(text: str) -> None:
    assert problem(text, "accuracy", baseline=True) == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("converged", 'give bounds as in "drop<=0.005, latency_ms<=0.05", or "settled"'),
        ("speed>=3", "did you mean 'speedup'"),
        ("drop<=x", "give a number"),
        ("drop<0.1", "give bounds as in"),
    ],
)
def test_rules_that_are_none(text: str, words: str) -> None:
    assert words in problem(text, "accuracy", baseline=True)


def test_the_volume_of_one_point_is_its_share_of_the_box() -> None:
    """By hand: of errors as they are, of the rest by logarithms down to a thousandth, below which is nothing."""
    assert volume([(0.3, 1.0, 10.0)], REFERENCE) == pytest.approx((0.6 / 0.9) * (1 / 3) * (2 / 3))
    assert volume([(0.0, 1e-5, 0.5)], REFERENCE) == pytest.approx(1.0)
    assert volume([(0.95, 1.0, 10.0), (0.3, math.inf, 1.0)], REFERENCE) == 0.0
    assert volume([], REFERENCE) == volume([], {}) == volume([(0.1, 1.0)], {}) == 0.0


def test_half_of_a_latency_is_as_much_however_short_it_is(tmp_path: Path) -> None:
    """A search that still finds models twice as fast has not settled, though both are far faster than the corner."""

    def taking(units: int, ms: float) -> Outcome:
        made = told(tmp_path, units, 0.1)
        assert made.measurement
        return replace(made, measurement=replace(made.measurement, median_ms=ms))

    first = [taking(units, 0.1) for units in range(1, 31)]
    assert settled([*first, *(taking(units, 0.05) for units in range(31, 46))], REFERENCE) is False
    assert settled([*first, *(taking(units, 0.1) for units in range(31, 46))], REFERENCE) is True
    assert settled(first, REFERENCE | {"latency": 1e-4}) is None  # nothing lies below this corner


def test_settled_when_the_last_third_brought_nothing(tmp_path: Path) -> None:
    learning = [told(tmp_path, units, 0.9 - 0.02 * units) for units in range(1, 31)]
    still = [told(tmp_path, units, 0.31) for units in range(31, 46)]
    assert settled(learning[:19], REFERENCE) is None
    assert settled(learning, {}) is None
    assert settled(learning, REFERENCE) is False
    assert settled([*learning, *still], REFERENCE) is True


def test_a_study_stops_when_it_has_what_was_asked_for(tmp_path: Path) -> None:
    with Study.start(tmp_path, "s", plan(tmp_path)) as study:
        assert drive(study, Limits(trials=300, stop_when="accuracy>=0.9, latency_ms<=0.1")) == "target"
    found = history.read(tmp_path, "s")
    assert found.ended == "target"
    assert len(found.outcomes) < 100
    assert reached("accuracy>=0.9, latency_ms<=0.1", found) == "target"
    assert reached("accuracy>=0.999", found) == ""
    assert not found.running  # what had been got ready was taken back
    with Study.start(tmp_path, "s", plan(tmp_path)) as study:
        assert drive(study, Limits(trials=600, stop_when="settled")) == "settled"


def test_what_was_asked_for_is_said_also_where_time_is_up(tmp_path: Path) -> None:
    """The last groups, or the baseline, may come after the time, and bring the target."""
    with Study.start(tmp_path, "s", plan(tmp_path)) as study:
        assert drive(study, Limits(trials=40)) == "trials"
    for rule, ended in ("accuracy>=0.5", "target"), ("accuracy>=0.999", "timeout"):
        with Study.start(tmp_path, "s", plan(tmp_path)) as study:
            assert drive(study, Limits(trials=300, timeout_s=0.0, stop_when=rule)) == ended


def test_what_is_against_the_baseline_waits_for_it(tmp_path: Path) -> None:
    """The search begins while the baseline is in training, so that there are points before it is known."""
    with Study.start(tmp_path, "s", plan(tmp_path)) as study:
        assert drive(study, Limits(trials=300, workers=2, stop_when="drop<=0.5, speedup>=1")) == "target"
    found = history.read(tmp_path, "s")
    assert reached("drop<=0.5", found) == "target"
    assert reached("drop<=0.5", replace(found, baseline=None)) == ""
    assert found.baseline
    assert reached("drop<=0.5", replace(found, baseline=replace(found.baseline, state="failed"))) == ""
    alone = replace(found, plan=replace(found.plan, baseline=None), baseline=None)
    with pytest.raises(InputError, match="this study has none"):
        reached("drop<=0.5", alone)


def test_what_ended_a_study_must_hold_when_it_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = "accuracy>=0.9, latency_ms<=0.1"

    def slower(kept: Study, *_: Any) -> float:
        finals = {number: one for number, one in kept.outcomes.items() if one.state == "complete"}
        measured = {number: one.measurement for number, one in finals.items() if one.measurement}
        again = {number: replace(one, median_ms=9.0, ci_ms=(8.9, 9.1)) for number, one in measured.items()}
        kept.keep_final({number: replace(finals[number], measurement=one) for number, one in again.items()})
        return 0.0

    monkeypatch.setattr("search.drive.finish", slower)
    with Study.start(tmp_path, "s", plan(tmp_path)) as study:
        assert drive(study, Limits(trials=300, stop_when=rule)) == "missed"
        summary = summarise(study)
    assert summary["advice"]["verdict"] == "worth going on"
    assert summary["advice"]["text"] == "measured again, no point reaches what stop_when asks for"
    found = history.read(tmp_path, "s")
    later = replace(found, finals={})  # as once another trial was told
    assert reached(rule, later) == ""  # or the next run would end by the same lucky figure
    assert reached(rule, replace(later, judged={})) == "target"
    first = front_of(later)[0]
    alone = {name: one for name, one in found.judged.items() if name == first}
    assert reached(rule, replace(later, judged=alone)) == "target"  # by others, which that one dominated


def test_what_is_new_is_held_against_the_baseline_of_its_own_sittings(tmp_path: Path) -> None:
    """The machine is twice as fast at the end as in the search: no candidate's speedup may mix the two."""
    with Study.start(tmp_path, "s", plan(tmp_path)) as study:
        drive(study, Limits(trials=20))
    found = history.read(tmp_path, "s")
    assert found.baseline

    def faster(one: Outcome) -> Outcome:
        assert one.measurement
        low, high = one.measurement.ci_ms
        median_ms = one.measurement.median_ms / 2
        return replace(one, measurement=replace(one.measurement, median_ms=median_ms, ci_ms=(low / 2, high / 2)))

    searched = replace(found, finals={}, judged={})
    true = point_of(searched, front_of(searched)[0])["speedup"]
    later = replace(searched, judged={"baseline": faster(found.judged["baseline"])})  # of the candidates none was
    assert reached(f"speedup>={0.99 * true}", later) == "target"
    assert reached(f"speedup>={1.01 * true}", later) == ""


def test_a_study_that_winds_down_keeps_its_stage_and_judges_its_front(tmp_path: Path) -> None:
    wind_down, seen = threading.Event(), []

    def hear(event: dict[str, Any]) -> None:
        seen.append(event)
        if sum(each["event"] == "told" for each in seen) >= 12 and event["event"] == "stage":
            wind_down.set()

    with Study.start(tmp_path, "s", plan(tmp_path, extra={"pause_s": "0.2"})) as study:
        assert drive(study, Limits(trials=200, workers=2), hear, wind_down) == "interrupted"
        summary = summarise(study)
    assert summary["final"]
    assert summary["ended"] == "interrupted"
    assert summary["batch_curve"] is None
    found = history.read(tmp_path, "s")
    left = len(found.running)
    assert left > 0
    with Study.start(tmp_path, "s", plan(tmp_path, extra={"pause_s": "0.2"})) as study:
        drive(study, Limits(trials=len(found.outcomes) + left))
    assert set(found.running) <= set(history.read(tmp_path, "s").outcomes)


def test_a_study_that_winds_down_at_its_end_begins_nothing_more(tmp_path: Path) -> None:
    """Neither the repeats of its front from other seeds nor its batch curve."""
    wind_down = threading.Event()

    def hear(event: dict[str, Any]) -> None:
        if event["event"] == "group" and str(event["trials"][0]).startswith("seed"):
            wind_down.set()

    with Study.start(tmp_path, "s", replace(plan(tmp_path), confirm_seeds=4)) as study:
        assert drive(study, Limits(trials=12), hear, wind_down) == "interrupted"
        summary = summarise(study)
    assert summary["final"]
    assert summary["batch_curve"] is None
    assert not history.read(tmp_path, "s").seeds  # what was at work was ended with its stage
    with Study.start(tmp_path, "s", replace(plan(tmp_path), confirm_seeds=4)) as study:
        assert drive(study, Limits(trials=12)) == "trials"
    assert {name.rpartition("-")[0] for name in history.read(tmp_path, "s").seeds} == {"seed-1", "seed-2", "seed-3"}
