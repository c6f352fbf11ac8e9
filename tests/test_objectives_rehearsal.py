from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rehearsed import BASELINE, bench

from objectives.outcome import Outcome
from objectives.rehearsal import NOTE, evaluate, final, invented, prepare
from spaces.errors import CandidateError
from spaces.genotype import Architecture, Deployment, Genotype, Training
from spaces.record import from_json, to_json
from spaces.signature import Signature
from spaces.space import Space


def genotype(cell: str = "lstm", units: int = 128, lowering: str = "loop", **served: Any) -> Genotype:
    return Genotype(Architecture(cell, units), Training(), Deployment(lowering, **served))


def latency_us(tmp_path: Path, made: Genotype) -> float:
    outcome = invented(bench(tmp_path), made)
    assert outcome.measurement
    return outcome.measurement.median_ms * 1000


def test_it_answers_as_the_real_evaluator_does_and_says_that_it_invents(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    forms = [BASELINE, genotype(bits="8")]
    evaluate(to_json(bench(tmp_path)), [to_json(form) for form in forms], heard.append, lambda question: "")
    told = {event["form"]: from_json(Outcome, event["outcome"]) for event in heard if event["event"] == "outcome"}
    assert {form: outcome.genotype for form, outcome in told.items()} == dict(enumerate(forms))
    assert all(outcome.state == "complete" and NOTE in outcome.notes for outcome in told.values())
    stages = [event["stage"] for event in heard if event["event"] == "stage"]
    assert list(dict.fromkeys(stages)) == ["load", "train", "lower", "quantize", "quality", "measure"]
    tested = final(to_json(bench(tmp_path)), [to_json(BASELINE)], [to_json(told[0])], heard.append)
    assert tested["quality"][0]["test"] < tested["quality"][0]["validation"]


def test_what_is_prepared_fits_the_space(tmp_path: Path) -> None:
    prepared = prepare(to_json(bench(tmp_path)))
    signature = from_json(Signature, prepared["signature"])
    assert (signature.time_steps, signature.features, signature.outputs) == (64, 1, 10)
    assert Space().deployments(BASELINE.architecture, signature)
    assert prepared["trivial_error"] == 0.9


def test_latency_follows_the_fitted_model(tmp_path: Path) -> None:
    """64 steps of an LSTM of 128 units in float32: 0.339 + 11 x 0.026 + 0.281 x 0.64 + 262144 / 153e3 us each."""
    by_hand = 64 * (0.339 + 0.286 + 0.17984 + 1.71336) + 2 + 10 * 128 / 83e3 + 64 * 512 / 83e3
    assert latency_us(tmp_path, genotype()) == pytest.approx(by_hand, rel=0.02)


def test_what_makes_a_model_faster_or_smaller_does_so_here(tmp_path: Path) -> None:
    assert latency_us(tmp_path, genotype(bits="8")) < latency_us(tmp_path, genotype())
    assert latency_us(tmp_path, genotype(steps=4)) < latency_us(tmp_path, genotype())
    assert latency_us(tmp_path, genotype("mingru", lowering="scan")) < latency_us(tmp_path, genotype("mingru"))
    assert latency_us(tmp_path, genotype(batch=8)) > latency_us(tmp_path, genotype())
    small, large = (invented(bench(tmp_path), genotype(bits=bits)).artifact for bits in ("8", "32"))
    assert small
    assert large
    assert small.size_bytes < large.size_bytes


def test_a_bound_refuses_before_training(tmp_path: Path) -> None:
    refused = invented(bench(tmp_path, bounds={"latency": 0.05}), genotype())
    assert (refused.state, refused.quality) == ("infeasible", None)
    assert refused.untrained_ms
    assert refused.untrained_ms > 0.05


def test_a_fault_strikes_at_its_stage_alone(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    faulty = to_json(bench(tmp_path, extra={"raise": "lower:keras"}))
    evaluate(faulty, [to_json(BASELINE), to_json(genotype())], heard.append, lambda question: "")
    states = {event["form"]: event["outcome"]["state"] for event in heard if event["event"] == "outcome"}
    assert states == {0: "failed", 1: "complete"}
    faulty = to_json(bench(tmp_path, extra={"raise": "train:lstm"}))
    with pytest.raises(CandidateError, match="train: asked for"):
        evaluate(faulty, [to_json(BASELINE)], heard.append, lambda question: "")
