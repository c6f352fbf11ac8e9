"""Weights poured into a lowered file are those of a file lowered with them."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from objectives.deployment.interpreter import predict
from objectives.deployment.lower import lower
from objectives.deployment.pour import constants, distinct, narrowed, plain, poured
from objectives.deployment.quantize import WIDTHS, quantize
from spaces.build import Weights, build, cell_of, weights_of
from spaces.catalog import CELLS
from spaces.genotype import Architecture, Deployment
from spaces.signature import Signature

SIGNATURE = Signature("classification", 8, 3, 4, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
VALUES = replace(SIGNATURE, kind="regression", target_mean=(5.0, -3.0, 0.0, 1.0), target_std=(2.0, 7.0, 0.3, 1.0))
WORDS = Signature("classification", 8, 0, 4, vocabulary=11)
X = np.random.default_rng(0).normal(size=(5, 8, 3)).astype(np.float32)


def answers(path: Path, content: bytes) -> np.ndarray:
    path.write_bytes(content)
    return predict(path, X)


def refilled(
    content: bytes, architecture: Architecture, signature: Signature, deployment: Deployment, *weights: Weights
) -> bytes | None:
    old, new = (constants(architecture, signature, each, deployment) for each in weights)
    return poured(content, signature, old, new)


def two(architecture: Architecture, signature: Signature) -> tuple[Weights, Weights]:
    """Weights to lower first, and others, far from them, as training leaves them: some are zero."""
    before, after = (weights_of(build(architecture, signature, seed)) for seed in (0, 1))
    rng = np.random.default_rng(2)
    after = {
        name: [
            np.float32(array + rng.uniform(0.0, 0.1, array.shape) * (rng.random(array.shape) < 0.9)) for array in each
        ]
        for name, each in after.items()
    }
    return distinct(before), after


@pytest.mark.parametrize(
    ("architecture", "deployment", "signature"),
    [
        (Architecture("gru", 8, layers=2), Deployment("loop", 4), SIGNATURE),
        (Architecture("gru", 8), Deployment("loop", 8), SIGNATURE),  # splits a bias, for no loop is left of it
        (Architecture("lstm", 8, bidirectional=True, readout="mean"), Deployment("loop"), VALUES),
        (Architecture("gru", 8), Deployment("keras"), VALUES),
        (Architecture("mingru", 8, frame_stack=2), Deployment("scan"), SIGNATURE),
        (Architecture("fastgrnn", 8), Deployment("loop"), SIGNATURE),
        (Architecture("sru", 8), Deployment("loop"), SIGNATURE),  # pads a bias
        (Architecture("lru", 8), Deployment("loop"), SIGNATURE),  # spreads a decay over all steps
        (Architecture("attention", 8), Deployment("parallel"), SIGNATURE),  # scales queries
        (Architecture("tcn", 8), Deployment("parallel"), VALUES),
    ],
    ids=lambda one: getattr(one, "cell", getattr(one, "lowering", getattr(one, "kind", ""))),
)
def test_a_poured_file_answers_as_one_lowered_anew(
    tmp_path: Path, architecture: Architecture, deployment: Deployment, signature: Signature
) -> None:
    before, after = two(architecture, signature)
    first = lower(architecture, signature, before, deployment)
    found = refilled(first, architecture, signature, deployment, before, after)
    assert found is not None
    anew = answers(tmp_path / "anew.tflite", lower(architecture, signature, after, deployment))
    np.testing.assert_allclose(answers(tmp_path / "poured.tflite", found), anew, atol=1e-6, rtol=1e-6)
    assert np.abs(answers(tmp_path / "first.tflite", first) - anew).max() > 1e-3


@pytest.mark.parametrize(
    ("cell", "lowering"),
    [
        (cell, lowering)
        for cell in ("gru", "lstm", "mingru", "fastgrnn", "fastrnn", "qrnn", "ligru")
        for lowering in CELLS[cell].lowerings
        if lowering != "keras"
    ],
)
def test_most_graphs_need_no_tracing_to_be_poured_into(cell: str, lowering: str) -> None:
    """But those whose cell makes something else of its weights than gates and what a step holds."""
    architecture, deployment = Architecture(cell, 8), Deployment(lowering, 2 if lowering == "loop" else 1)
    before, after = two(architecture, SIGNATURE)
    first = lower(architecture, SIGNATURE, before, deployment)
    found = poured(first, SIGNATURE, *(plain(weights, cell_of(architecture)) for weights in (before, after)))
    assert (found is None) == (cell == "ligru")
    if found is not None:
        assert found == refilled(first, architecture, SIGNATURE, deployment, before, after)


@functools.cache
def with_zeros(architecture: Architecture, deployment: Deployment, signature: Signature) -> tuple[bytes, bytes]:
    """The float files of a model before and after, when it has a channel of zeros."""
    before, after = two(architecture, signature)
    after["layer1"][0][:, 1] = 0.0
    of, content = (lower(architecture, signature, weights, deployment) for weights in (before, after))
    return of, content


@pytest.mark.parametrize("bits", [each for each in WIDTHS if each != "32"])
@pytest.mark.parametrize(
    ("architecture", "deployment", "signature"),
    [
        (Architecture("fastgrnn", 5, frame_stack=2), Deployment("loop", 2), SIGNATURE),
        (Architecture("lstm", 6, bidirectional=True), Deployment("loop", 3), VALUES),
        (Architecture("qrnn", 8, readout="mean"), Deployment("scan"), SIGNATURE),
        (Architecture("gru", 4, embedding=3), Deployment("loop"), WORDS),
    ],
    ids=lambda one: getattr(one, "cell", getattr(one, "kind", "")),
)
def test_a_narrow_file_that_is_poured_is_the_one_that_the_quantizer_makes(
    bits: str, architecture: Architecture, deployment: Deployment, signature: Signature
) -> None:
    of, content = with_zeros(architecture, deployment, signature)
    another, _ = with_zeros(Architecture("mingru", 7), Deployment("loop"), SIGNATURE)
    known = quantize(of, bits)
    assert narrowed(known, of, content) == quantize(content, bits)
    assert narrowed(known, of, of) == known
    assert narrowed(known, content, content) is None  # it does not follow from these
    assert narrowed(known, of, another) is None


def test_a_narrow_file_that_has_its_weights_behind_its_tables_is_not_filled() -> None:
    """The quantizer puts them there from 256 KiB on."""
    architecture, deployment = Architecture("lstm", 256), Deployment("loop")
    of, content = (lower(architecture, SIGNATURE, weights, deployment) for weights in two(architecture, SIGNATURE))
    known = quantize(of, "8")
    assert len(known) > 2**18
    assert narrowed(known, of, content) is None


def test_a_file_that_is_not_wholly_accounted_for_is_left() -> None:
    architecture, deployment = Architecture("gru", 8), Deployment("loop")
    before, after = two(architecture, SIGNATURE)
    content = lower(architecture, SIGNATURE, before, deployment)
    arguments = (architecture, SIGNATURE, deployment)
    assert refilled(content, *arguments, before, after) is not None
    assert refilled(b"no such file", *arguments, before, after) is None
    assert refilled(content, *arguments, distinct(before, seed=1), after) is None
    kernel = before["layer1"][0].T.tobytes()
    assert content.count(kernel) == 1
    assert refilled(content.replace(kernel, kernel[::-1]), *arguments, before, after) is None


def test_arrays_that_look_the_same_and_become_different_are_not_guessed_at() -> None:
    architecture, deployment = Architecture("gru", 8, layers=2), Deployment("loop")
    before, after = two(architecture, SIGNATURE)
    before = {
        name: [*arrays[:2], np.ones_like(arrays[2])] if len(arrays) > 2 else arrays for name, arrays in before.items()
    }
    content = lower(architecture, SIGNATURE, before, deployment)
    assert refilled(content, architecture, SIGNATURE, deployment, before, after) is None
