"""The ensemble that teaches: chosen by quality, settled once, and the same after any kind of end."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from rehearsed import BASELINE, at_write, bench, plan

from objectives.bench import TrainingSpec
from objectives.outcome import Outcome
from objectives.rehearsal import invented, prepare
from search import history
from search.budget import Limits
from search.drive import drive
from search.ensemble import best
from search.study import Study
from spaces.record import to_json
from spaces.space import Space

TAUGHT = TrainingSpec(distillation=(0.0, 0.5), hints=(0.0, 0.1), teacher="ensemble", ensemble=2)
WIDE = Space(cell=("gru", "mingru"), units=(16, 128, 16), bits=("32", "8"), lowering=("loop",), steps=(4,))


def driven(home: Path, trials: int, **changes: Any) -> history.History:
    with Study.start(home, "s", plan(home, training=TAUGHT, space=WIDE, **changes)) as study:
        drive(study, Limits(trials=trials))
    return history.read(home, "s")


def test_the_best_are_distinct_models_that_had_no_teacher(tmp_path: Path) -> None:
    def outcome(units: int, error: float, bits: str = "8", alpha: float = 0.0) -> Outcome:
        genotype = replace(
            BASELINE,
            architecture=replace(BASELINE.architecture, units=units),
            training=replace(BASELINE.training, distillation=alpha),
            deployment=replace(BASELINE.deployment, bits=bits),
        )
        whole = invented(bench(tmp_path), genotype)
        assert whole.quality
        return replace(whole, quality=replace(whole.quality, error=error))

    told = [outcome(16, 0.4), outcome(32, 0.2), outcome(32, 0.1, "32"), outcome(48, 0.01, alpha=0.5), outcome(64, 0.3)]
    told.append(Outcome(replace(BASELINE, architecture=replace(BASELINE.architecture, units=80)), "failed"))
    assert [genotype.architecture.units for genotype in best(told, 2)] == [32, 64]
    assert best(reversed(told), 3) == best(told, 3)
    assert best(told, 4) == ()


def test_a_model_that_got_no_file_may_teach_and_one_that_was_stopped_may_not(tmp_path: Path) -> None:
    good, other, third = (replace(BASELINE, architecture=replace(BASELINE.architecture, units=n)) for n in (16, 32, 48))
    undeployed = Outcome(good, "stopped", stage="deploy", learned=(0.5,), trained_error=0.001)
    halved = Outcome(other, "stopped", stage="train", learned=(0.01,))
    assert best([halved, undeployed, invented(bench(tmp_path), third)], 2) == (good, third)


def test_nothing_is_distilled_before_the_ensemble_and_all_that_is_learns_from_it(tmp_path: Path) -> None:
    found = driven(tmp_path, 24)
    distilled = [n for n, outcome in found.outcomes.items() if outcome.genotype.training.distillation]
    assert distilled
    assert min(distilled) >= 12
    earlier = [outcome for number, outcome in found.outcomes.items() if number < min(distilled)]
    assert set(found.ensemble) <= {outcome.genotype for outcome in earlier}
    assert len({genotype.group for genotype in found.ensemble}) == 2
    assert found.bench.teachers == found.bench.ensemble == found.ensemble
    assert found.plan.bench.teachers == ()
    assert any(found.outcomes[number].genotype.training.hints for number in distilled)
    longer = driven(tmp_path, 32)
    assert longer.ensemble == found.ensemble  # though better ones came


def test_the_baseline_is_one_of_them_where_it_may_teach_and_is_good_enough(tmp_path: Path) -> None:
    assert BASELINE in driven(tmp_path, 16, teacher=BASELINE).ensemble


class _Cut(Exception):
    pass


def _cut() -> None:
    raise _Cut


def test_a_study_that_is_cut_short_settles_on_the_same_and_goes_the_same_way(tmp_path: Path) -> None:
    def genotypes(home: Path, cuts: list[int]) -> list[str]:
        for cut in [*cuts, 0]:
            study = Study.start(home, "s", plan(home, training=TAUGHT, space=WIDE))
            study.keep_prepared(prepare(to_json(study.plan.bench)))
            with study, contextlib.suppress(_Cut), at_write(cut, _cut):
                while True:
                    if len(study.outcomes) >= 5:
                        study.gather_ensemble()
                    group = study.next_group(12)
                    if group is None:
                        break
                    for number, genotype in zip(group.numbers, group.genotypes, strict=True):
                        study.tell(number, invented(study.bench, genotype))
        return [to_json(study.outcomes[n].genotype) for n in sorted(study.outcomes)] + [
            to_json(g) for g in ensemble(home)
        ]

    def ensemble(home: Path) -> Any:
        return history.read(home, "s").ensemble

    whole = genotypes(tmp_path / "whole", [])
    assert len(whole) == 14
    assert genotypes(tmp_path / "cut", [1, 2, 3, 7, 19, 31, 44, 60]) == whole
