from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from rehearsed import bench, plan
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from objectives.outcome import FORETOLD, Outcome
from objectives.rehearsal import invented
from search import surrogate
from search.budget import Limits
from search.drive import drive
from search.front import hypervolume
from search.study import Study
from search.surrogate import POINTS, Surrogate, _normal, _Process
from spaces.genotype import Architecture, Deployment, Genotype, Training
from spaces.signature import Signature
from spaces.space import Space

NAMES = ("quality", "latency", "size")
SIGNATURE = Signature("classification", 64, 1, 10)
SPACE = Space(cell=("lstm", "gru", "mingru"), units=(16, 128, 16), frame_stack=(1, 2, 4), lowering=("loop", "scan"))


def told(at: Path, count: int) -> list[Outcome]:
    cells, widths = SPACE.cell, range(16, 144, 16)
    built = [Architecture(cell, units, frame_stack=frames) for units in widths for cell in cells for frames in (1, 2)]
    trained = [Genotype(one, Training(3e-3), Deployment("loop", 4, "8")) for one in built]
    return [invented(bench(at), one) for one in trained[:count]]


def informed(outcomes: Iterable[Outcome], space: Space = SPACE, **options: Any) -> Surrogate:
    found = Surrogate(space, SIGNATURE, NAMES, {}, **options)
    for outcome in outcomes:
        found.learn(outcome)
    return found


def test_it_regresses_as_scikit_learn_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogate, "SCALES", (0.7,))
    monkeypatch.setattr(surrogate, "NOISES", (0.02,))
    luck = np.random.default_rng(0)
    x, asked = luck.normal(size=(25, 3)), luck.normal(size=(9, 3))
    for y in (np.sin(x[:, 0]) + x[:, 1], x[:, 2] ** 2):
        theirs = GaussianProcessRegressor(RBF(0.7), alpha=0.02, optimizer=None, normalize_y=True).fit(x, y)
        mean, deviation = theirs.predict(asked, return_std=True)
        found = _Process(x, y)
        for expected in (found.mean(asked), found.foretold(asked)[0]):
            np.testing.assert_allclose(expected, mean, atol=1e-8)
        np.testing.assert_allclose(found.foretold(asked)[1], np.hypot(deviation, math.sqrt(0.02) * y.std()), atol=1e-8)


def test_its_normal_distribution_is_the_normal_distribution() -> None:
    x = np.linspace(-6, 6, 1001)
    np.testing.assert_allclose(_normal(x), [NormalDist().cdf(one) for one in x], atol=2e-4)


def test_a_gain_is_what_the_hypervolume_is_expected_to_grow_by(tmp_path: Path) -> None:
    def logs(rows: list[list[float]]) -> list[list[float]]:
        return [[error, *map(math.log, others)] for error, *others in rows]

    found, taken, form = informed(told(tmp_path, 20)), [[0.2, 0.02, 9e3], [0.1, 0.05, 2e4]], [0.12, 0.03, 1e4]
    worst, deviation = [0.5, 0.2, 1e5], 0.4
    found._worst = np.array(worst)
    (gains,) = found._gains(np.array(taken), np.array([form]), np.array([0]), np.array([deviation]))
    low = np.array([0.0, *np.min(logs([*taken, form]), axis=0)[1:]])
    reference, box = logs([worst])[0], float(np.prod(logs([worst])[0] - low))
    errors = form[0] * np.exp(deviation * np.random.default_rng(0).normal(size=1000))
    before = hypervolume(logs(taken), reference)
    grown = [hypervolume(logs([*taken, [error, *form[1:]]]), reference) - before for error in errors]
    assert gains.sum() / POINTS * box == pytest.approx(np.mean(grown), rel=0.1)
    diverged = informed(told(tmp_path, 20), trivial_error=worst[0])
    diverged._worst = np.array([50.0, *worst[1:]])
    (same,) = diverged._gains(np.array(taken), np.array([form]), np.array([0]), np.array([deviation]))
    np.testing.assert_array_equal(same, gains)


def test_what_takes_long_must_promise_more(tmp_path: Path) -> None:
    """Here a second training of an architecture takes a second, and the first so many."""

    def known_again(first_s: float) -> int:
        outcomes = []
        for one in told(tmp_path, 16):
            outcomes.append(replace(one, seconds={"train": first_s}))
            for rate in (2e-3, 4e-3):
                again = invented(bench(tmp_path), replace(one.genotype, training=Training(rate)))
                outcomes.append(replace(again, seconds={"train": 1.0}))
        met, found = {one.genotype.architecture for one in outcomes}, informed(outcomes)
        return sum(bool(one := found.proposed([], seed)) and one.architecture in met for seed in range(10))

    assert known_again(1.0) < known_again(1000.0)


def test_what_it_proposes_is_new_the_same_again_and_promises_something(tmp_path: Path) -> None:
    outcomes = told(tmp_path, 20)
    one = informed(outcomes).proposed([], 5)
    assert one
    assert one == informed(outcomes).proposed([], 5)
    assert one.architecture.frame_stack == 4  # nobody tried it, and it takes half the time
    assert (one.architecture, one.training) not in {(o.genotype.architecture, o.genotype.training) for o in outcomes}
    other = informed(outcomes).proposed([one], 5)
    assert other
    assert (other.architecture, other.training) != (one.architecture, one.training)
    assert informed(told(tmp_path, 5)).proposed([], 5) is None


def test_what_is_no_number_teaches_nothing(tmp_path: Path) -> None:
    outcomes = told(tmp_path, 20)
    assert outcomes[0].quality
    elsewhere = replace(outcomes[0].genotype, training=Training(0.5))
    for quality in (replace(outcomes[0].quality, error=bad) for bad in (math.nan, math.inf)):
        failed = replace(outcomes[0], genotype=elsewhere, state="failed", quality=quality)
        assert informed([failed, *outcomes, failed]).proposed([], 5) == informed(outcomes).proposed([], 5)


def test_a_model_that_was_stopped_is_taken_on_as_others_went(tmp_path: Path) -> None:
    """All that was trained to its end came to half of the error that it had at the first rung, minGRUs to a quarter."""
    outcomes = []
    for one in told(tmp_path, 24):
        share = 4 if one.genotype.architecture.cell == "mingru" else 2
        assert one.quality
        outcomes.append(replace(one, learned=(share * one.quality.error, math.nan), seconds={"train": 10.0}))
    found = informed(outcomes)
    for cell, left in (("gru", 0.5), ("mingru", 0.25)):
        served = Genotype(Architecture(cell, 144), Training(3e-3), Deployment("loop", 4, "8"))
        stopped = replace(
            invented(bench(tmp_path), served),
            state="stopped",
            quality=None,
            learned=(0.4,),
            seconds={"train": 2.0},
        )
        found.learn(stopped)
        errors, took = found._at_their_ends([*found._models.values()])
        assert errors[-1] == pytest.approx(0.4 * left)
        np.testing.assert_allclose(took, 10.0)  # as long as whole ones
        assert errors[0] == outcomes[0].error
    alone = informed([stopped])
    assert alone._at_their_ends([*alone._models.values()])[0] == 0.4


def test_what_was_refused_for_its_latency_is_known_to_have_it(tmp_path: Path) -> None:
    wide = Genotype(Architecture("lstm", 256), Training(3e-3), Deployment("loop", 4, "8"))
    made = invented(bench(tmp_path), wide)
    looked = Outcome(wide, "infeasible", stage="untrained", untrained_ms=7.0, artifact=made.artifact)
    found = informed([*told(tmp_path, 20), looked])
    again = replace(wide, training=Training(1e-2))
    assert found._costs([again])[0][1] == 7.0
    guessed = informed([*told(tmp_path, 20), replace(looked, stage=FORETOLD)])
    assert guessed._costs([again])[0][1] != 7.0


def test_a_number_that_is_spread_by_its_logarithm_is_drawn_so() -> None:
    drawn = surrogate._Drawn({}, random.Random(0), 0.0)
    found = [drawn.suggest_int("units", 1, 1024, log=True) for _ in range(2000)]
    assert min(found) == 1
    assert 1000 < max(found) <= 1024
    assert 0.45 < sum(one < 32 for one in found) / len(found) < 0.55


def test_what_is_refused_is_not_proposed(tmp_path: Path) -> None:
    outcomes = told(tmp_path, 20)
    one = informed(outcomes).proposed([], 5)
    assert one
    other = informed(outcomes, refused=lambda asked: asked.deployment == one.deployment).proposed([], 5)
    assert other
    assert other.deployment != one.deployment
    assert informed(outcomes, refused=lambda asked: True).proposed([], 5) is None


def test_what_a_graph_took_is_known_and_not_foretold(tmp_path: Path) -> None:
    """One that took longer than its neighbours let expect is no gain, however often it is trained."""
    space = Space(cell=("gru",), units=(16, 128, 16), lowering=("loop",), steps=(4,), bits=("8",))
    outcomes = []
    for number in range(40):
        units, rate = 16 + number % 8 * 16, 1e-3 * 1.05 ** (number // 8)
        trained = Genotype(Architecture("gru", units), Training(rate), Deployment("loop", 4, "8"))
        outcome = invented(bench(tmp_path), trained)
        assert outcome.quality
        assert outcome.measurement
        measured = replace(outcome.measurement, median_ms=units / 1000 * (3 if units == 16 else 1))
        quality = replace(outcome.quality, error=0.5 - units / 400)
        outcomes.append(replace(outcome, measurement=measured, quality=quality, state="complete"))
    units = [one.architecture.units for seed in range(20) if (one := informed(outcomes, space).proposed([], seed))]
    assert len(units) == 20
    assert 16 not in units


def test_a_study_takes_its_proposals_in_turn(tmp_path: Path) -> None:
    with Study.start(tmp_path, "s", plan(tmp_path, space=SPACE, sampler="auto")) as study:
        drive(study, Limits(trials=120))
        assert len(study.outcomes) == 120
        assert sum("lead" not in trial.user_attrs for trial in study._optuna.get_trials(deepcopy=False)) > 12


def test_what_is_under_way_is_not_proposed_again_at_another_rate(tmp_path: Path) -> None:
    outcomes = told(tmp_path, 20)
    for seed in range(10):
        one = informed(outcomes).proposed([], seed)
        assert one
        forms = SPACE.deployments(one.architecture, SIGNATURE, one.training.qat)
        other = informed(outcomes).proposed([replace(one, deployment=form) for form in forms], seed)
        assert other
        assert other.architecture != one.architecture


def test_a_model_is_known_in_all_its_forms_and_what_was_foretold_in_its_own(tmp_path: Path) -> None:
    def known(*outcomes: Outcome, under_way: Iterable[Genotype] = (), alone: bool = False) -> list[bool]:
        found = informed(outcomes, alone=alone)
        return [found.tried(each, under_way) == one.genotype for each in (near, other)]

    one, *_ = told(tmp_path, 1)
    near = replace(one.genotype, training=Training(one.genotype.training.learning_rate * 1.01))
    other = replace(near, deployment=Deployment("loop", 1, "32"))
    for state, stage in (("complete", ""), ("stopped", "train"), ("failed", "train"), ("infeasible", "untrained")):
        assert known(replace(one, state=state, stage=stage)) == [True, True]
    assert known(replace(one, state="infeasible", stage=FORETOLD)) == [True, False]
    assert known(under_way=[one.genotype]) == [True, True]
    assert known(under_way=[one.genotype], alone=True) == [True, False]
    assert informed([]).tried(near, []) is None


def test_a_model_is_proposed_again_in_another_form_where_its_forms_go_their_own_way(tmp_path: Path) -> None:
    space = Space(
        cell=("gru",), units=(16, 128, 16), learning_rate=(3e-3,), lowering=("loop",), steps=(1,), bits=("32", "8")
    )
    models = [
        Genotype(Architecture("gru", units), Training(3e-3), Deployment(bits="8")) for units in range(16, 144, 16)
    ]
    outcomes = [invented(bench(tmp_path), one) for one in models]
    assert informed(outcomes, space).proposed([], 0) is None
    other = informed(outcomes, space, alone=True).proposed([], 0)
    assert other
    assert other.deployment.bits == "32"


def test_what_is_none_at_all_counts_as_the_least_there_is() -> None:
    """A model may take no memory that the kernel tells of, and an error be 0; others of a wide range stay apart."""
    found = surrogate._floored([[0.0, 0.0, 1.0], [20.0, 5.0, 1e-6], [40.0, 0.0, 1e3]])
    assert found.tolist() == [[0.04, 0.005, 1.0], [20.0, 5.0, 1e-6], [40.0, 0.005, 1e3]]
