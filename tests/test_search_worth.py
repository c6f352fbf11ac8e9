from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rehearsed import BASELINE, bench, plan

from objectives.bench import TrainingSpec
from objectives.outcome import Outcome, Quality
from objectives.rehearsal import invented, prepare
from search import history
from search.budget import Limits
from search.crashes import Crashes
from search.drive import drive
from search.economy import economy
from search.study import Study
from search.summary import summarise
from search.warm import KNOWN, known, points, table
from search.worth import Trainings, at_rung, near_the_front
from spaces.catalog import CELLS
from spaces.errors import SpecError, StudyError
from spaces.genotype import Architecture, Deployment, Genotype, Training
from spaces.record import to_json
from spaces.signature import Signature
from spaces.space import Space

NAMES = ("quality", "latency", "size")
SIGNATURE = Signature("classification", 64, 1, 10)
GRU = Genotype(Architecture("gru", 32), Training(), Deployment("loop", 4, "8"))


def costs(quality: float | None, latency: float | None, size: float | None) -> dict[str, float | None]:
    return dict(zip(NAMES, (quality, latency, size), strict=True))


def finished(at: Path, error: float, ms: float, kib: float) -> Outcome:
    outcome = invented(bench(at), GRU)
    assert outcome.quality
    assert outcome.measurement
    assert outcome.artifact
    return replace(
        outcome,
        quality=replace(outcome.quality, error=error),
        measurement=replace(outcome.measurement, median_ms=ms, ci_ms=(0.9 * ms, 1.1 * ms)),
        artifact=replace(outcome.artifact, size_bytes=int(kib * 1024)),
    )


def test_what_nothing_beats_beyond_the_noise_is_measured_at_the_end(tmp_path: Path) -> None:
    told = {
        "front": finished(tmp_path, 0.1, 1.0, 10.0),  # 0.9 to 1.1 ms
        "slower": finished(tmp_path, 0.2, 1.3, 20.0),
        "as fast": finished(tmp_path, 0.2, 1.2, 20.0),
        "better": finished(tmp_path, 0.05, 9.0, 90.0),
        "its slower sibling": finished(tmp_path, 0.05, 12.0, 95.0),
        "refused": replace(finished(tmp_path, 0.01, 0.1, 1.0), state="infeasible"),
    }
    assert near_the_front(told, NAMES) == ["front", "as fast", "better"]
    sure = finished(tmp_path, 0.2, 1.15, 20.0)
    assert sure.measurement
    narrow = replace(sure, measurement=replace(sure.measurement, ci_ms=(1.149, 1.151)))
    assert "narrow" not in near_the_front(told | {"narrow": narrow}, NAMES)
    slow = replace(narrow, measurement=replace(narrow.measurement, median_ms=1.12, ci_ms=(1.119, 1.121)))
    assert "slow" in near_the_front(told | {"slow": slow}, NAMES)  # 3 % less would be as fast: sittings differ so much


def test_a_training_is_held_against_those_that_are_over_and_those_that_are_not(tmp_path: Path) -> None:
    trainings, told = Trainings(NAMES), {}
    for number in range(6):
        outcome = replace(finished(tmp_path, 0.05, 1.0 + number, 10.0), learned=(0.3,), untrained_ms=1.0 + number)
        genotype = replace(GRU, training=Training(0.001 * (1 + number)))
        told[number] = replace(outcome, genotype=genotype)
    asked = {"rung": 0, "epoch": 6, "of": 30}
    slow = {**asked, "forms": [costs(0.31, 9.0, 11.0)]}
    assert "at epoch 6 of 30, with an error of 0.31" in trainings.stop("slow", slow, told)
    assert trainings.stop("learns", {**asked, "forms": [costs(0.29, 9.0, 11.0)]}, told) == ""
    assert trainings.stop("fast", {**asked, "forms": [costs(0.9, 0.1, 11.0)]}, told) == ""
    assert trainings.stop("unknown", {**asked, "forms": [costs(0.9, None, 11.0)]}, told) == ""
    assert trainings.stop("worse", {**asked, "forms": [costs(0.95, 9.5, 12.0)]}, told) != ""


FIGURES = st.tuples(*(st.sampled_from([0.5, 0.98, 1.0, 1.02, 1.3, 2.0]) for _ in NAMES))


@settings(deadline=None)
@given(st.lists(FIGURES, max_size=8), st.lists(FIGURES, min_size=1, max_size=4), st.integers(0, 8))
def test_what_is_not_deployed_could_not_have_been_measured_at_the_end(
    told: list[tuple[float, ...]], forms: list[tuple[float, ...]], early: int
) -> None:
    trainings, home = Trainings(NAMES), Path()
    outcomes = {number: finished(home, *figures) for number, figures in enumerate(told)}
    trainings.beaten([], dict(list(outcomes.items())[:early]))  # others may have asked before
    mine = [finished(home, *figures) for figures in forms]
    near = [near_the_front({**outcomes, "mine": form}, NAMES) for form in mine]
    assert trainings.beaten(mine, outcomes) == ["mine" not in each for each in near]


def test_a_study_deploys_what_may_come_to_its_front_or_all(tmp_path: Path) -> None:
    for name, without in (("spared", ()), ("all", ("deploy",))):
        with Study.start(tmp_path, name, plan(tmp_path, without=without)) as study:
            drive(study, Limits(trials=60))
        found = history.read(tmp_path, name)
        spared = [outcome for outcome in found.outcomes.values() if outcome.stage == "deploy"]
        assert bool(spared) == (name == "spared")
        assert economy(found)["undeployed"] == len(spared)
        complete = {key: one for key, one in found.outcomes.items() if one.state == "complete"}
        for outcome in spared:
            whole = invented(found.plan.bench, outcome.genotype)
            assert "it" not in near_the_front({**complete, "it": whole}, NAMES)
            assert outcome.error is not None
            assert whole.quality
            assert outcome.error <= whole.quality.error + 1e-12
    trials = optuna.load_study(study_name="spared", storage=f"sqlite:///{tmp_path}/optuna.db").trials
    told = [trial for trial in trials if trial.user_attrs.get("outcome", {}).get("stage") == "deploy"]
    assert {trial.state.name for trial in told} == {"COMPLETE"}
    assert all(trial.values[0] == trial.user_attrs["outcome"]["trained_error"] for trial in told)


def test_a_study_stops_trainings_and_keeps_the_fast_cells(tmp_path: Path) -> None:
    space = Space(cell=("lstm", "gru", "mingru"), units=(16, 128, 16), lowering=("loop", "scan"), steps=(1, 4))
    fronts: dict[str, set[str]] = {}
    for name, without in (("halved", ()), ("whole", ("halving",))):
        made = plan(tmp_path, space=space, without=without)
        with Study.start(tmp_path, name, made) as study:
            drive(study, Limits(trials=120))
        found = history.read(tmp_path, name)
        stopped = {outcome.genotype.group for outcome in found.outcomes.values() if outcome.stage == "train"}
        groups = {outcome.genotype.group for outcome in found.outcomes.values()}
        assert bool(stopped) == (name == "halved")
        assert len(stopped) < 0.8 * len(groups)
        fronts[name] = {str(found.candidates[point].genotype.architecture.cell) for point in _front(found)}
    assert fronts["whole"] - {"lstm"} <= fronts["halved"]
    assert "mingru" in fronts["halved"]  # though it learns half as fast


def _front(found: history.History) -> list[Any]:
    from search.summary import front_of

    return front_of(found)


def test_a_kind_that_killed_twice_is_not_tried_again_in_the_home_with_these_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashes, wide = Crashes(tmp_path), replace(GRU, architecture=Architecture("gru", 64))
    crashes.died(GRU, "lower", "died by signal 11 (SIGSEGV)")
    crashes.died(GRU, "train", "of another cause")
    assert crashes.known(wide) == ""
    crashes.died(GRU, "lower", "died by signal 11 (SIGSEGV)")
    assert Crashes(tmp_path).known(wide) == "not tried: 2 like it failed, the last of which died by signal 11 (SIGSEGV)"
    assert crashes.known(replace(GRU, deployment=Deployment("loop", 4, "32"))) == ""
    with monkeypatch.context() as newer:
        newer.setattr("search.crashes._versions", lambda: ["another"])
        assert crashes.known(wide) == ""
    assert crashes.known(wide)
    crashes.well(wide)
    assert crashes.known(GRU) == ""
    built = replace(GRU, architecture=Architecture("hypermodel:own:build", 0, values=(("cell", "gru"),)))
    for _ in range(2):
        crashes.died(built, "lower", "died by signal 11 (SIGSEGV)")
    assert crashes.known(built)
    assert crashes.known(replace(built, architecture=replace(built.architecture, values=(("cell", "lstm"),)))) == ""


def test_points_that_are_known_to_crash_are_no_end_of_a_search(tmp_path: Path) -> None:
    space = Space(cell=("lstm", "gru"), bits=("8",), lowering=("loop",), steps=(4,))
    crashes = Crashes(tmp_path)
    for _ in range(2):
        crashes.died(GRU, "lower", "died by signal 11 (SIGSEGV)")
    made = replace(plan(tmp_path, space=space, baseline=None), warm_start=(KNOWN,))
    with Study.start(tmp_path, "s", made) as study:
        assert drive(study, Limits(trials=5)) == "trials"
    assert {outcome.genotype.architecture.cell for outcome in history.read(tmp_path, "s").outcomes.values()} == {"lstm"}


def test_memory_counts_at_a_rung(tmp_path: Path) -> None:
    """What took less of it is not dominated, however it learned."""
    measured = finished(tmp_path, 0.1, 1.0, 10.0)
    assert measured.measurement
    known = at_rung(replace(measured, untrained_ms=4.0), 0)
    assert known["memory"] == measured.measurement.peak_memory_bytes / 1024
    assert known["latency"] == 4.0 / measured.genotype.deployment.batch


def test_memory_has_noise_too(tmp_path: Path) -> None:
    """One probe of it is no reason to give a form no file."""

    def taking(share: float) -> Outcome:
        made = finished(tmp_path, 0.1, 1.0, 10.0)
        assert made.measurement
        return replace(made, measurement=replace(made.measurement, peak_memory_bytes=int(1e6 * share)))

    told = {0: replace(taking(1.0), quality=Quality("accuracy", 0.95, 0.05))}
    answers = Trainings(("quality", "memory")).beaten([taking(1.15), taking(1.3)], told)
    assert answers == [False, True]


def test_a_model_that_got_no_file_stands_at_later_rungs_with_its_error(tmp_path: Path) -> None:
    early = Outcome(GRU, "stopped", stage="deploy", trained_error=0.2, untrained_ms=1.0)
    assert [at_rung(early, rung)["quality"] for rung in (0, 1)] == [0.2, 0.2]
    assert at_rung(replace(early, learned=(0.4,)), 0)["quality"] == 0.4


def test_what_was_stopped_is_known_with_all_its_costs(tmp_path: Path) -> None:
    """Else whoever comes to the rung later is held against survivors alone."""
    made = replace(plan(tmp_path, objectives=("quality", "latency", "memory")), warm_start=())
    with Study.start(tmp_path, "s", made) as study:
        drive(study, Limits(trials=60))
        stopped = [outcome for outcome in study.outcomes.values() if outcome.state == "stopped"]
    assert stopped
    for outcome in stopped:
        known = at_rung(outcome, 0)
        assert known["quality"] == outcome.learned[0]
        assert None not in (known["latency"], known["memory"])


def test_crashes_are_learnt_and_the_rest_of_the_space_is_searched(tmp_path: Path) -> None:
    space = Space(cell=("lstm",), bits=("32", "8"), lowering=("loop",), steps=(1, 4))
    made = plan(tmp_path, space=space, baseline=None, extra={"crash": "quantize:8"})
    with Study.start(tmp_path, "s", made) as study:
        drive(study, Limits(trials=12))
    found = history.read(tmp_path, "s")
    assert 2 <= found.counts["failed"] <= 4  # the next group had been given out already
    assert found.counts["complete"] + found.counts["stopped"] == 12 - found.counts["failed"]


def test_a_search_begins_with_a_plain_and_a_small_model_of_each_cell(tmp_path: Path) -> None:
    space = Space(
        cell=tuple(CELLS)[:5],
        units=(16, 64, 16),
        frame_stack=(4, 8, 16),
        readout=("last", "mean"),
        lowering=("loop", "scan"),
    )
    found = [one.architecture for one in known(space, SIGNATURE)]
    assert [one.cell for one in found[::2]] == [one.cell for one in found[1::2]]
    assert {one.cell for one in found} == {*space.cell}
    assert [(one.units, one.frame_stack, one.readout) for one in found] == [(32, 16, "last"), (16, 16, "mean")] * 5
    short = [one.architecture for one in known(space, replace(SIGNATURE, time_steps=40))]
    assert [one.frame_stack for one in short] == [8, 16] * 5  # of the plain ones five steps are left
    with Study.start(tmp_path, "s", plan(tmp_path, space=space)) as study:
        study.keep_prepared(prepare(to_json(study.plan.bench)))
        leads = [group.genotypes[0].architecture for _ in found if (group := study.next_group(500))]
    assert leads == found


def test_where_all_are_taught_the_known_ones_are_too(tmp_path: Path) -> None:
    made = plan(tmp_path, training=TrainingSpec(distillation=(0.5,)), teacher=BASELINE)
    with Study.start(tmp_path, "s", made) as study:
        study.keep_prepared(prepare(to_json(study.plan.bench)))
        assert {one.training.distillation for one in study._beginning} == {0.5}


def test_of_many_cells_a_few_of_each_kind_are_known() -> None:
    found = [one.architecture.cell for one in known(Space(cell=tuple(CELLS)), SIGNATURE)]
    kinds = {CELLS[cell].lowerings for cell in CELLS}
    assert len(found) == 10
    assert {CELLS[cell].lowerings for cell in found} == kinds


def test_a_search_begins_where_another_ended_or_with_a_table(tmp_path: Path) -> None:
    with Study.start(tmp_path, "old", plan(tmp_path)) as study:
        drive(study, Limits(trials=20))
    (tmp_path / "good.toml").write_text(
        '[[point]]\narchitecture = { cell = "lstm", units = 48 }\ntraining = { learning_rate = 3e-3 }\n'
        '[[point]]\narchitecture = { cell = "tcn", units = 48 }\n'
    )
    old = history.read(tmp_path, "old")
    front = [old.candidates[point].genotype for point in _front(old)]
    made = replace(plan(tmp_path, root=str(tmp_path)), warm_start=("good.toml", "old"))
    with Study.start(tmp_path, "new", made) as study:
        drive(study, Limits(trials=40))
        tried = [outcome.genotype for outcome in study.outcomes.values()]
    assert tried[0].architecture == Architecture("lstm", 48)  # the other lies outside the space
    assert set(front) <= set(tried)
    assert list(points((KNOWN,), tmp_path, "", made.space, SIGNATURE))


def test_a_wrong_table_says_where(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('[[point]]\narchitecture = { cell = "gru" }\n')
    with pytest.raises(SpecError, match=r"bad.toml cannot be used: .*units.*a table has \[\[point\]\] entries"):
        table(tmp_path / "bad.toml")


def test_members_of_the_front_are_trained_again_from_other_seeds(tmp_path: Path) -> None:
    made = replace(plan(tmp_path), confirm_seeds=3)
    for _ in range(2):  # another run of the same wants nothing more
        heard: list[dict[str, Any]] = []
        with Study.start(tmp_path, "s", made) as study:
            drive(study, Limits(trials=12), heard.append)
            summary = summarise(study)
    assert not [event for event in heard if str(event.get("trial")).startswith("seed-")]
    again = history.read(tmp_path, "s").seeds
    assert {name.split("-")[1] for name in again} == {"1", "2"}
    for point in summary["front"]:
        if f"seed-1-{point['trial']}" in again:
            figures = point["seeds"]["validation"]
            assert len(figures) == len(set(figures)) == 3
            assert figures[0] == point["quality"]["validation"]
            assert point["seeds"]["std"] > 0
    assert any(point["seeds"] for point in summary["front"])


def test_a_model_at_nearly_the_rate_of_another_is_known_unless_it_was_asked_for(tmp_path: Path) -> None:
    rates = (1.5e-3, 1.52e-3)
    entry = '[[point]]\narchitecture = {{ cell = "lstm", units = 32 }}\ntraining = {{ learning_rate = {} }}\n'
    deployment = 'deployment = { lowering = "loop", steps = 1, bits = "8" }\n'
    (tmp_path / "near.toml").write_text("".join(entry.format(rate) + deployment for rate in rates))
    space = Space(cell=("lstm",), units=(32,), learning_rate=(1e-3, 3e-3), lowering=("loop",), steps=(1,), bits=("8",))
    made = replace(plan(tmp_path, space=space, baseline=None, root=str(tmp_path)), warm_start=("near.toml",))
    with Study.start(tmp_path, "s", made) as study:
        assert drive(study, Limits(trials=300)) == "exhausted"
    tried = [outcome.genotype for outcome in history.read(tmp_path, "s").outcomes.values()]
    assert [genotype.training.learning_rate for genotype in tried[:2]] == list(rates)
    assert tried[0].alike == tried[1].alike
    assert len({genotype.alike for genotype in tried}) == len(tried) - 1
    assert 12 < len(tried) <= 25  # a factor of 3 has 22 and a half twentieths


def test_outcomes_may_be_added_while_garbage_is_collected(tmp_path: Path) -> None:
    """What Python runs then, finalizers or a callback, lets another thread in, as one that tells an outcome."""
    one = finished(tmp_path, 0.1, 1.0, 10.0)
    told = dict.fromkeys(range(100), one)
    trainings = Trainings(NAMES)

    def collected(phase: str, info: dict[str, int]) -> None:
        told[len(told)] = one

    thresholds = gc.get_threshold()
    gc.callbacks.append(collected)
    gc.set_threshold(1)
    try:
        assert trainings.beaten([finished(tmp_path, 0.2, 9.0, 90.0)], told) == [True]
        assert trainings.stop("g", {"rung": 0, "epoch": 1, "of": 9, "forms": [costs(0.1, 1.0, 10.0)]}, told) == ""
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(collected)
    assert len(told) > 100


def test_a_point_with_a_key_that_none_has_is_refused(tmp_path: Path) -> None:
    for entry, key in (
        ('architecture = { cell = "gru", units = 16, frame_stak = 8 }', "architecture.frame_stak"),
        ('architecture = { cell = "gru", units = 16 }\ndeploy = { steps = 4 }', "deploy"),
    ):
        (tmp_path / "bad.toml").write_text(f"[[point]]\n{entry}\n")
        with pytest.raises(SpecError, match=rf"bad.toml cannot be used: {key}: there is no such key"):
            table(tmp_path / "bad.toml")
    (tmp_path / "bad.toml").write_text('[[points]]\narchitecture = { cell = "gru", units = 16 }\n')
    with pytest.raises(
        SpecError, match=r"bad.toml cannot be used: points: there is no such key; a table has \[\[point"
    ):
        table(tmp_path / "bad.toml")


def test_points_outside_the_space_are_told_and_studies_that_are_not_there_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        '[[point]]\narchitecture = { cell = "lstm", units = 48 }\n'
        '[[point]]\narchitecture = { cell = "tcn", units = 48 }\n'
    )
    heard: list[dict[str, Any]] = []
    for _ in range(2):  # it is said once
        made = replace(plan(tmp_path, baseline=None, root=str(tmp_path)), warm_start=("mine.toml",))
        with Study.start(tmp_path, "s", made) as study:
            drive(study, Limits(trials=4), heard.append)
    (text,) = [event["text"] for event in heard if event["event"] == "warning"]
    assert text.startswith("search.warm_start: point 2 of mine.toml lies outside the space and is not tried: ")
    with pytest.raises(StudyError, match=r"search\.warm_start: there is no study 'typo'"):
        Study.start(tmp_path, "t", replace(plan(tmp_path), warm_start=("typo",)))
