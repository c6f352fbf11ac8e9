from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from rehearsed import BASELINE, at_write, bench, plan

from objectives.objective import OBJECTIVES, violations
from objectives.outcome import FORETOLD, Outcome
from objectives.rehearsal import invented, prepare
from search import history
from search.budget import Limits
from search.drive import drive
from search.history import database
from search.lock import driven
from search.study import AT_ONCE, PATIENCE, Group, SpaceExhausted, Study, named_at_work
from spaces.errors import StudyError
from spaces.genotype import Genotype
from spaces.record import to_json
from spaces.space import Space

SMALL = Space(cell=("mingru",), units=(16, 32, 16), learning_rate=(0.003,), bits=("32", "8"), lowering=("scan",))


def started(home: Path, **changes: object) -> Study:
    study = Study.start(home, "s", plan(home, **changes))  # type: ignore[arg-type]
    study.keep_prepared(prepare(to_json(study.plan.bench)))
    return study


def tell_all(study: Study, group: Group) -> None:
    for number, genotype in zip(group.numbers, group.genotypes, strict=True):
        study.tell(number, invented(study.plan.bench, genotype))


def test_a_group_is_one_model_in_every_form_and_never_more_than_the_budget(tmp_path: Path) -> None:
    with started(tmp_path) as study:
        group = study.next_group(100)
        assert group
        assert len({genotype.group for genotype in group.genotypes}) == 1
        forms = study.plan.space.deployments(group.genotypes[0].architecture, study._signature)
        assert {genotype.deployment for genotype in group.genotypes} == set(forms)
        assert history.read(tmp_path, "s").running == dict(zip(group.numbers, group.genotypes, strict=True))
        tell_all(study, group)
        more = study.next_group(len(forms) + 1)
        assert more
        assert len(more.numbers) == 1
        assert study.next_group(len(forms) + 1) is None
        tell_all(study, more)
    with started(tmp_path) as study:  # which has room for the forms that were left
        rest = study.next_group(100)
        assert rest
        assert {one.group for one in rest.genotypes} == {more.genotypes[0].group}
        both = [*more.genotypes, *rest.genotypes]
        known = {one.deployment for one in both}
        assert known == set(study.plan.space.deployments(both[0].architecture, study._signature))
        assert len(known) == len(both)
        tell_all(study, rest)
        another = study.next_group(100)
        assert another
        assert another.genotypes[0].group != rest.genotypes[0].group


def test_a_small_space_is_exhausted_and_nothing_is_tried_twice(tmp_path: Path) -> None:
    with started(tmp_path, space=SMALL, sampler="random") as study:
        groups = []
        with contextlib.suppress(SpaceExhausted):
            while group := study.next_group(100):
                groups.append(group)
                tell_all(study, group)
        keys = [genotype.key for group in groups for genotype in group.genotypes]
        assert len(keys) == len(set(keys)) == 4  # two sizes in two bit widths
        told = study.history()
        assert told.counts == {"complete": 4, "infeasible": 0, "stopped": 0, "failed": 0, "running": 0}
        assert told.duplicates >= 100


def test_what_the_sampler_learns(tmp_path: Path) -> None:
    forms = replace(plan(tmp_path).space, cell=("lstm",), steps=(1, 2, 4))
    with started(tmp_path, bounds={"latency": 0.05, "size": 50.0}, space=forms) as study:
        group = study.next_group(6)
        assert group
        full = invented(bench(tmp_path), group.genotypes[0])
        assert full.measurement
        assert full.artifact
        full = replace(full, artifact=replace(full.artifact, size_bytes=2048))
        cases = [
            replace(full, measurement=replace(full.measurement, median_ms=0.04)),
            replace(full, measurement=replace(full.measurement, median_ms=0.1)),
            replace(full, measurement=None),
            Outcome(BASELINE, "infeasible", untrained_ms=0.2),
            Outcome(BASELINE, "stopped"),
            Outcome(BASELINE, "failed"),
        ]
        told = [study.tell(number, case) for number, case in zip(group.numbers, cases, strict=True)]
        trials = study._optuna.trials
    assert [outcome.state for outcome in told[:3]] == ["complete", "infeasible", "failed"]
    assert told[1].reason == "latency 0.1 ms is over the bound of 0.05"
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "PRUNED", "FAIL"]
    assert trials[1].constraints == {"latency": pytest.approx(1.0), "size": pytest.approx(-0.96)}
    assert trials[3].values == [0.9, 0.2, 100.0]  # a constant's error, the measured latency, twice the bound on size
    assert trials[3].constraints["latency"] == pytest.approx(3.0)
    assert {tuple(sorted(trial.constraints)) for trial in trials if trial.state.name != "FAIL"} == {("latency", "size")}


def test_violations_are_shares_of_the_bound(tmp_path: Path) -> None:
    outcome = Outcome(BASELINE, "infeasible", untrained_ms=0.3)
    assert violations(outcome, {"latency": 0.2, "size": 5.0}) == {"latency": pytest.approx(0.5)}
    assert set(OBJECTIVES) >= {"latency", "size"}


@pytest.mark.parametrize("sampler", ["auto", "tpe", "nsga2"])
def test_a_study_cut_at_any_write_goes_on_as_if_nothing_had_happened(tmp_path: Path, sampler: str) -> None:
    whole = _numbered(tmp_path / "whole", sampler, cuts=[])
    assert _numbered(tmp_path / "cut", sampler, cuts=[1, 2, 3, 9, 30, 50, 70]) == whole


def test_a_study_goes_on_from_what_it_was_told_in_that_order(tmp_path: Path) -> None:
    with started(tmp_path) as study:
        group = study.next_group(100)
        assert group
        for number, genotype in reversed([*zip(group.numbers, group.genotypes, strict=True)]):
            study.tell(number, invented(study.plan.bench, genotype))
        told = [*study.outcomes]
    assert told != sorted(told)
    with started(tmp_path) as study:
        assert [*study.outcomes] == told


def test_proposals_that_need_no_trial_are_told_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or nobody looked at the clock, nor heard the workers, while one after the other is foretold to be hopeless."""

    def hopeless(study: Study, genotype: Genotype) -> Outcome:
        return Outcome(genotype, "infeasible", untrained_ms=9.0, stage=FORETOLD, reason="foretold")

    monkeypatch.setattr(Study, "_hopeless", hopeless)
    with started(tmp_path, baseline=None, sampler="random") as study:
        assert study.next_group(10**6) == Group((), ())
        assert len(study.outcomes) == AT_ONCE
    with Study.start(tmp_path, "t", plan(tmp_path, baseline=None, sampler="random")) as study:
        assert drive(study, Limits(trials=10**6, timeout_s=1.0)) == "timeout"
        assert len(study.outcomes) > AT_ONCE


def test_what_an_older_brisk_left_half_made_is_given_up(tmp_path: Path) -> None:
    """It wrote a group bit by bit, and withdrew it so: asked for without a genotype, withdrawn and running, waiting."""
    with started(tmp_path) as study:
        study._optuna.ask()
        group, withdrawn = study.next_group(100), study.next_group(100)
        assert group
        assert withdrawn
        for number in withdrawn.numbers:
            study._trials[number].set_user_attr("withdrawn", True)
        study._optuna.enqueue_trial({"learning_rate": 0.005})
    with started(tmp_path) as study:
        assert study.next_group(100) == group
        again = study.next_group(100)
        assert again
        assert again.numbers[0] > max(withdrawn.numbers) + 1  # another than that which waited
        states = [trial.state.name for trial in study._optuna.trials]
        assert [states[0], *(states[number] for number in withdrawn.numbers)] == ["FAIL"] * (1 + len(withdrawn.numbers))
        assert "WAITING" not in states


class _Cut(Exception):
    pass


def _cut() -> None:
    raise _Cut


def _numbered(home: Path, sampler: str, cuts: list[int]) -> dict[int, str]:
    """The genotype of each trial of a study of 14, given up and started again after so many writes."""
    for cut in [*cuts, 0]:
        study = started(home, sampler=sampler)
        with study, contextlib.suppress(_Cut), at_write(cut, _cut):
            while group := study.next_group(14):
                tell_all(study, group)
    assert len(study.outcomes) == 14
    return {number: outcome.genotype.key for number, outcome in study.outcomes.items()}


@pytest.mark.parametrize("write", [1, 5])
def test_a_withdrawal_that_was_cut_off_is_none(tmp_path: Path, write: int) -> None:
    class Killed(BaseException):
        pass

    def strike() -> None:
        raise Killed

    with contextlib.suppress(Killed), started(tmp_path) as study:
        group = study.next_group(100)
        assert group
        with at_write(write, strike):
            study.withdraw(group.numbers)
    with started(tmp_path) as study:
        assert study.next_group(100) == group


def test_a_study_whose_lead_was_withdrawn_without_its_siblings_goes_on(tmp_path: Path) -> None:
    """As a driver of before left it, which was killed in the midst."""
    with started(tmp_path) as study:
        group = study.next_group(100)
        assert group
        study.withdraw(group.numbers[:1])
    with started(tmp_path) as study:
        again = study.next_group(100)
        assert again
        assert set(again.numbers) == set(group.numbers[1:])


def test_what_was_at_work_whenever_the_study_was_killed_is_given_up(tmp_path: Path) -> None:
    """It may be what kills the machine; what only waited its turn does not, and an interrupt is no death."""
    with started(tmp_path) as study:
        first, waiting = study.next_group(100), study.next_group(100)
        assert first
        assert waiting
    for at_work in ((), *[first.numbers[1:]] * PATIENCE):
        with started(tmp_path) as study:
            assert [study.next_group(100), study.next_group(100)] == [first, waiting]
            assert not study.outcomes
            study.keep_clock({}, at_work)
    with started(tmp_path) as study:
        assert study.next_group(100) == waiting
        assert {outcome.reason for outcome in study.outcomes.values()} == {
            "it was at work 5 times when the study was killed"
        }
        assert set(study.outcomes) == set(first.numbers)


def test_what_is_no_trial_is_given_up_too(tmp_path: Path) -> None:
    """A twin that takes the machine down would do so in each session."""
    for _ in range(PATIENCE):
        with started(tmp_path) as study:
            assert not study.given_up("twin-1", BASELINE)
            study.keep_clock({}, [named_at_work("twin-1", BASELINE)])
    with started(tmp_path) as study:
        another = replace(BASELINE, training=replace(BASELINE.training, learning_rate=0.5))
        assert not study.given_up("twin-1", another)  # the name is given to others
        assert not study.given_up("twin-2", BASELINE)
        assert study.given_up("twin-1", BASELINE)
    assert history.read(tmp_path, "s").twins["twin-1"].reason == "it was at work 5 times when the study was killed"


@pytest.fixture
def far_from_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("far_from_greenwich")
@pytest.mark.parametrize("sampler", ["auto", "nsga2"])
def test_what_is_remembered_of_a_study_is_what_its_tables_hold(tmp_path: Path, sampler: str) -> None:
    """As another process reads them: while some trials are under way, and after another driver took the study up."""

    def storage_attributes(study: optuna.Study) -> dict[str, Any]:
        return study._storage.get_study_system_attrs(study._study_id)

    def compare(study: Study) -> None:
        kept = optuna.load_study(study_name="s", storage=f"sqlite:///{database(tmp_path)}")
        assert study._optuna.user_attrs == kept.user_attrs
        assert storage_attributes(study._optuna) == storage_attributes(kept)
        assert kept.metric_names == ["quality", "latency", "size"]
        theirs = kept.get_trials()
        ours = [study._optuna._storage.get_trial(trial._trial_id) for trial in theirs]
        for listed in (ours, study._optuna.get_trials()):
            for mine, trial in zip(listed, theirs, strict=True):
                for name in ("number", "state", "values", "params", "distributions", "user_attrs", "system_attrs"):
                    assert getattr(mine, name) == getattr(trial, name)
                assert (mine.datetime_start, mine.datetime_complete) == (trial.datetime_start, trial.datetime_complete)

    for session in range(2):
        with started(tmp_path, sampler=sampler) as study:
            for _ in range(4):
                group = study.next_group(1000)
                assert group
                compare(study)
                tell_all(study, Group(group.numbers[1:], group.genotypes[1:]))
            study.tell(group.numbers[0], Outcome(group.genotypes[0], "stopped", stage="train", reason="slow"))
            waiting = study.next_group(1000)
            assert waiting
            study.withdraw(waiting.numbers)
            study.keep_clock({"ended": str(session)})
            compare(study)


def test_one_driver_owns_a_study(tmp_path: Path) -> None:
    with Study.start(tmp_path, "s", plan(tmp_path)):
        with pytest.raises(StudyError, match=f"driven by process {os.getpid()};"):
            Study.start(tmp_path, "s", plan(tmp_path))
        with Study.start(tmp_path, "other", plan(tmp_path)):  # several studies may run in one home
            assert history.read(tmp_path, "other").counts["running"] == 0
    Study.start(tmp_path, "s", plan(tmp_path)).close()


def test_another_plan_or_other_data_are_refused(tmp_path: Path) -> None:
    started(tmp_path).close()
    with pytest.raises(StudyError, match=r"space.units was \[16, 128, 16\], is \[16, 32, 16\].*--name"):
        Study.start(tmp_path, "s", plan(tmp_path, space=replace(plan(tmp_path).space, units=(16, 32, 16))))
    with pytest.raises(StudyError, match=r"bench\.bounds"):
        Study.start(tmp_path, "s", plan(tmp_path, bounds={"latency": 0.1}))
    with pytest.raises(StudyError, match="letters, digits"):
        Study.start(tmp_path, "a/b", plan(tmp_path))
    moved = plan(tmp_path / "elsewhere", root="elsewhere", sampler="random")  # none of which makes another study
    moved = replace(moved, tracking="http://elsewhere")
    with (
        Study.start(tmp_path, "s", moved) as study,
        pytest.raises(StudyError, match="the data of study 's' have changed"),
    ):
        study.keep_prepared({**study.prepared, "digest": "other"})
    assert history.read(tmp_path, "s").plan == moved


def test_a_failed_baseline_may_be_mended_and_no_other(tmp_path: Path) -> None:
    other = replace(BASELINE, architecture=replace(BASELINE.architecture, units=64))
    with started(tmp_path) as study:
        study.keep_baseline(Outcome(BASELINE, "failed", stage="lower", reason="r"))
    with started(tmp_path, baseline=other) as study:
        assert study.baseline is None
        study.keep_baseline(invented(study.plan.bench, other))
    with pytest.raises(StudyError, match=r"baseline\.architecture\.units was 64, is 128"):
        started(tmp_path)
    with started(tmp_path / "late") as study:
        study.keep_baseline(Outcome(BASELINE, "failed", stage="lower", reason="r"))
        assert study.next_group(1)
    with started(tmp_path / "late", baseline=None) as study:
        assert study.baseline is None
        assert study.history().running  # what was begun beside it


def test_a_storage_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    sqlite3.connect(database(tmp_path)).execute("CREATE TABLE half_made (x)").connection.close()
    with pytest.raises(StudyError, match=r"no such table: studies.*just being started"):
        history.read(tmp_path, "s")
    database(tmp_path).write_bytes(b"no database at all" * 100)
    with pytest.raises(StudyError, match="damaged"):
        history.read(tmp_path, "s")
    with pytest.raises(StudyError, match="cannot be used"):
        Study.start(tmp_path, "s", plan(tmp_path))


def test_reading_needs_no_optuna_and_says_what_it_does_not_find(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="there is no study in"):
        history.read(tmp_path, "s")
    with started(tmp_path) as study:
        group = study.next_group(20)
        assert group
        tell_all(study, group)
        study.keep_baseline(invented(study.plan.bench, BASELINE))
        study.keep_final({"baseline": invented(study.plan.bench, BASELINE), 0: study.outcomes[0]})
        assert history.read(tmp_path, "s") == study.history()
        assert history.read(tmp_path, "s").finals.keys() == {"baseline", 0}
        group = study.next_group(20)
        assert group
        study.tell(group.numbers[0], invented(study.plan.bench, group.genotypes[0]))
        assert history.read(tmp_path, "s").finals == {}  # figures of a study that has gone on since
    with pytest.raises(StudyError, match=r"there is no study 't' in .*known names: s"):
        history.read(tmp_path, "t")
    reading = f"from search import history; history.read(pathlib.Path({str(tmp_path)!r}), 's')"
    code = f"import pathlib, sys; {reading}; print('optuna' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_study_of_another_program_is_left_alone(tmp_path: Path) -> None:
    storage = optuna.storages.RDBStorage(f"sqlite:///{database(tmp_path)}")
    optuna.create_study(storage=storage, study_name="s", directions=["minimize"] * 3).ask()
    storage.remove_session()
    storage.engine.dispose()
    with pytest.raises(StudyError, match="brisk did not make"):
        Study.start(tmp_path, "s", plan(tmp_path))
    with pytest.raises(StudyError, match="not made by brisk"):
        history.read(tmp_path, "s")


def test_a_figure_that_is_no_number_fails_a_candidate_that_is_over_a_bound_too(tmp_path: Path) -> None:
    """Or its violation would be no number, which Optuna refuses, in this session and in each that comes."""
    with Study.start(tmp_path, "s", plan(tmp_path, baseline=None, bounds={"quality": 0.5, "latency": 1e-9})) as study:
        study.keep_prepared(prepare(to_json(study.plan.bench)))
        group = study.next_group(20)
        assert group
        made = invented(replace(study.plan.bench, bounds={}), group.genotypes[0])
        assert made.quality
        wrong = replace(made, state="infeasible", quality=replace(made.quality, error=float("nan")))
        kept = study.tell(group.numbers[0], wrong)
    assert (kept.state, kept.reason) == ("failed", "its quality is nan, not a number")


def test_where_nothing_is_known_of_a_cost_none_is_told(tmp_path: Path) -> None:
    """Not 0, which is the best there can be."""
    with Study.start(tmp_path, "s", plan(tmp_path, baseline=None, bounds={"size": 20.0})) as study:
        study.keep_prepared(prepare(to_json(study.plan.bench)))
        group = study.next_group(20)
        assert group
        refused = Outcome(group.genotypes[0], "infeasible", stage="lower", reason="size 90 KiB is over the bound of 20")
        study.tell(group.numbers[0], refused)
        assert study._optuna.trials[group.numbers[0]].state == optuna.trial.TrialState.PRUNED


def test_a_study_that_goes_on_elsewhere_says_so(tmp_path: Path) -> None:
    made = replace(plan(tmp_path, baseline=None, device="fake"), evaluator="objectives.judge")
    for before, said in ((None, 0), ("another", 1)):
        with Study.start(tmp_path, "s", made) as study:
            if before:
                study._optuna.set_user_attr("fingerprint", before)
            assert len(study.elsewhere()) == said
            if not before:
                assert study.elsewhere() == []


def test_whether_a_process_drives_a_study_is_known_to_others(tmp_path: Path) -> None:
    assert not driven(tmp_path, "s")
    with started(tmp_path):
        assert driven(tmp_path, "s")
    assert not driven(tmp_path, "s")
    started(tmp_path).close()  # who looked holds nothing
