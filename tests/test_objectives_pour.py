"""Weights poured into a lowered file are those of a file lowered with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from objectives.deployment.interpreter import predict
from objectives.deployment.lower import lower
from objectives.deployment.pour import distinct, poured
from spaces.build import build, weights_of
from spaces.genotype import Architecture, Deployment
from spaces.signature import Signature

SIGNATURE = Signature("classification", 8, 3, 4, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
X = np.random.default_rng(0).normal(size=(5, 8, 3)).astype(np.float32)


def answers(path: Path, content: bytes) -> np.ndarray:
    path.write_bytes(content)
    return predict(path, X)


@pytest.mark.parametrize(
    ("architecture", "deployment"),
    [
        (Architecture("gru", 8, layers=2), Deployment("loop", 4)),
        (Architecture("lstm", 8, bidirectional=True, readout="mean"), Deployment("loop")),
        (Architecture("mingru", 8, frame_stack=2), Deployment("scan")),
        (Architecture("fastgrnn", 8), Deployment("loop")),
        (Architecture("tcn", 8), Deployment("parallel")),
    ],
    ids=lambda one: getattr(one, "cell", getattr(one, "lowering", "")),
)
def test_a_poured_file_answers_as_one_lowered_anew(
    tmp_path: Path, architecture: Architecture, deployment: Deployment
) -> None:
    before = distinct(weights_of(build(architecture, SIGNATURE, 0)))
    after = weights_of(build(architecture, SIGNATURE, 1))
    first = lower(architecture, SIGNATURE, before, deployment)
    found = poured(first, architecture, SIGNATURE, deployment, before, after)
    assert found is not None
    assert found != first
    anew = answers(tmp_path / "anew.tflite", lower(architecture, SIGNATURE, after, deployment))
    np.testing.assert_allclose(answers(tmp_path / "poured.tflite", found), anew, atol=1e-6)
    assert np.abs(answers(tmp_path / "first.tflite", first) - anew).max() > 1e-3


def test_a_file_without_the_weights_is_not_guessed_at() -> None:
    architecture, deployment = Architecture("gru", 8), Deployment("loop")
    before, after = (weights_of(build(architecture, SIGNATURE, seed)) for seed in (0, 1))
    assert poured(b"no such file", architecture, SIGNATURE, deployment, before, after) is None
