from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rehearsed import bench, plan

from objectives.outcome import FORETOLD, Outcome
from objectives.rehearsal import invented
from search import history
from search.budget import Limits
from search.drive import drive
from search.economy import economy
from search.prior import features, fitted
from search.study import Study
from spaces.genotype import Architecture, Deployment, Genotype, Training
from spaces.signature import Signature
from spaces.space import Space

SIGNATURE = Signature("classification", 64, 1, 10)
FORMS = [Deployment("loop", steps, bits) for steps in (1, 4) for bits in ("32", "8")]


def measured(at: Path, cells: tuple[str, ...] = ("lstm", "gru", "fastgrnn"), count: int = 6) -> list[Outcome]:
    widths = range(16, 16 * count + 1, 16)
    built = [Architecture(cell, units, frame_stack=2) for cell in cells for units in widths]
    return [invented(bench(at), Genotype(one, Training(), form)) for one in built for form in FORMS]


def test_known_constants_are_found_again(tmp_path: Path) -> None:
    known = np.array([3.0, 0.4, 0.03, 0.25, 0.02, 12.0, 0.1, 1.0])
    outcomes = []
    for outcome in measured(tmp_path):
        assert outcome.measurement
        ms = float(features(outcome.genotype, SIGNATURE) @ known) / 1000
        outcomes.append(replace(outcome, measurement=replace(outcome.measurement, median_ms=ms)))
    found = fitted(outcomes, SIGNATURE)
    assert found
    assert found.error < 1e-3
    assert found.constants[:6] == pytest.approx(known[:6], rel=0.01)


def test_nothing_within_its_bound_is_called_hopeless(tmp_path: Path) -> None:
    outcomes = measured(tmp_path)
    prior = fitted(outcomes, SIGNATURE)
    assert prior
    assert prior.useful
    called = 0
    for outcome in outcomes:
        assert outcome.measurement
        for bound_ms in (0.01, 0.03, 0.1):
            if prior.hopeless(outcome.genotype, SIGNATURE, bound_ms):
                called += 1
                assert outcome.measurement.median_ms > bound_ms
    assert called


def test_too_little_is_not_fitted_to_and_what_does_not_fit_is_not_believed(tmp_path: Path) -> None:
    assert fitted(measured(tmp_path, ("gru",)), SIGNATURE) is None
    luck = np.random.default_rng(0)
    wild = []
    for outcome in measured(tmp_path):
        assert outcome.measurement
        ms = outcome.measurement.median_ms * float(np.exp(luck.normal(0, 1.5)))
        wild.append(replace(outcome, measurement=replace(outcome.measurement, median_ms=ms)))
    prior = fitted(wild, SIGNATURE)
    assert prior
    assert not prior.useful
    assert not any(prior.hopeless(outcome.genotype, SIGNATURE, 1e-9) for outcome in wild)


def test_a_study_does_not_try_what_is_foretold_to_be_far_over_its_bound(tmp_path: Path) -> None:
    space = Space(cell=("lstm", "gru"), units=(16, 512, 16), steps=(1, 4), lowering=("loop",))
    made = plan(tmp_path, space=space, bounds={"latency": 0.06}, sampler="random")
    with Study.start(tmp_path, "s", made) as study:
        drive(study, Limits(trials=150))
        found = study.history()
    foretold = [outcome for outcome in found.outcomes.values() if outcome.stage == FORETOLD]
    assert foretold
    assert all(outcome.state == "infeasible" and "not tried" in outcome.reason for outcome in foretold)
    truth = [invented(bench(tmp_path), outcome.genotype).measurement for outcome in foretold]
    assert all(one and one.median_ms > 0.06 for one in truth)
    told = economy(history.read(tmp_path, "s"))
    assert told["foretold"] == len(foretold)
    assert told["latency_model"]["used"]
