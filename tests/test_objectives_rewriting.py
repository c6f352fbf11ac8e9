"""What is tried for a model, and how its outputs are scored."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from objectives.deployment.convert import fixed
from objectives.rewriting.examples import _ended, _packed, _tags, question
from objectives.rewriting.tried import EXACT, Request, Tried, ways
from objectives.rewriting.work import compared, dropped, look, steps_of
from spaces.errors import DataError, ModelError
from spaces.lowering.load import Port
from spaces.record import to_json

KERAS3 = {"family": "Keras 3", "recurrent": ["lstm (LSTM)"], "stacked": False, "joins": True, "time_steps": 100}


def names(facts: dict[str, Any], *, calibrate: bool = False) -> list[str]:
    return [f"{way.name} {bits}" for way in ways(facts, calibrate=calibrate) for bits in way.bits]


def test_every_lowering_is_tried_in_every_width() -> None:
    tried = names(KERAS3)
    assert {"Keras 3 8", "Keras 2 8", "loop 32", "loop/2 rec4", "loop/8 rec8"} <= set(tried)
    assert not any(name.startswith(("stacked", "loop unrolled")) for name in tried)
    assert not any("full8" in name for name in tried)


def test_short_sequences_are_unrolled_and_stacked_layers_stacked() -> None:
    tried = names({**KERAS3, "time_steps": 5, "stacked": True})
    assert {"joined unrolled 8", "stacked loop/2 8", "loop/2 8"} <= set(tried)
    assert "loop/4 8" not in tried


def test_static_integers_come_last_for_they_kill_the_converter() -> None:
    tried = names(KERAS3, calibrate=True)
    assert tried[-2:] == ["Keras 3 full8", "loop full8"]


def test_a_model_without_recurrent_layers_is_quantised_all_the_same() -> None:
    tried = names({**KERAS3, "recurrent": [], "joins": False})
    assert {"Keras 3 32", "brisk 8"} <= set(tried)
    assert not any("rec" in name for name in tried)


def test_keras_2_is_held_against_its_own_fused_form() -> None:
    assert names({**KERAS3, "family": "Keras 2"})[0] == "Keras 2 32"


RIGHT = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], np.float32)


@pytest.mark.parametrize(
    ("labels", "output", "kind", "score"),
    [
        (np.array([1, 0, 0]), RIGHT, "classification", 2 / 3),
        (np.array([[1], [0], [0]]), RIGHT, "classification", 2 / 3),
        (np.array([1.0, 0.0, 1.0]), RIGHT, "classification", 1.0),
        (np.eye(2)[[1, 0, 0]], RIGHT, "classification", 2 / 3),
        (np.array([[1, 0, -1]]), RIGHT[None], "tagging", 1.0),
        (np.array([[[0, 1], [1, 0], [0, 0]]]), RIGHT[None], "tagging", 1.0),  # one-hot, and after the end nothing
        (np.array([[1, 0, -1]]), RIGHT[None, :, 1:], "tagging", 1.0),  # yes or no, and after the end neither
        (np.array([1, 0, 1]), np.array([[0.9], [0.2], [0.4]], np.float32), "classification", 2 / 3),
        (np.array([True, False, True]), np.array([[5.0], [-3.0], [0.1]], np.float32), "classification", 1.0),
        (np.array([[-1, 0, 1]]), np.array([[-1, 0, 1]], np.float32), "regression", 0.0),
        (np.array([0.5, 2.0]), np.array([[0.5], [1.0]], np.float32), "regression", np.sqrt(0.5)),
        (np.ones((2, 3, 2)) * [[[1.5, 2.5]]], np.ones((2, 3, 2), np.float32), "regression", np.sqrt(1.25)),
    ],
)  # fmt: skip
def test_labels_tell_how_outputs_are_scored(labels: Any, output: Any, kind: str, score: float) -> None:
    found = question(labels, output, "", "y")
    assert found.kind == kind
    assert found.score(output) == pytest.approx(score)


def test_a_regression_drop_is_a_share_of_the_spread() -> None:
    targets = np.array([[100.0], [300.0]], np.float32)
    found = question(targets, targets, "regression", "y")
    assert found.error(targets + 10.0) == pytest.approx(0.1)


def test_whole_numbers_may_be_asked_to_be_values() -> None:
    counts = np.array([[0], [1], [1]])
    assert question(counts, counts.astype(np.float32), "regression", "y").kind == "regression"


def test_labels_that_fit_nothing_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"v: labels of shape \[4\] and dtype int64 do not fit the model's output \[2\]"
    ):
        question(np.zeros((3, 4), np.int64), RIGHT, "", "v")
    with pytest.raises(DataError, match="labels go from 0 to 7, but the model has 2 classes, 0 to 1"):
        question(np.array([0, 7, 1]), RIGHT, "", "v")


def test_labels_after_a_sequences_end_count_for_none() -> None:
    labels, lengths = np.array([[1, 0, 1], [1, 0, 0]]), np.array([3, 1])
    expected = [[1, 0, 1], [1, -1, -1]]
    mask = np.array([[1, 1, 1], [1, 0, 0]])
    for said in ({"lengths_test": lengths}, {"mask_test": mask}):
        np.testing.assert_array_equal(_ended(labels, said, "_test"), expected)
    np.testing.assert_array_equal(_ended(labels, {"lengths": lengths}, "_test"), labels)  # of another part
    np.testing.assert_array_equal(_packed([[1, 0, 1], [1]], "y"), expected)
    np.testing.assert_array_equal(_packed([1, 0], "y"), [1, 0])
    with pytest.raises(DataError, match="y: values of each step that differ in length"):
        _packed([[1.5, 0.5], [1.0]], "y")


@pytest.mark.parametrize(
    ("shape", "labels", "tags"),
    [
        ((None, 3, 4), [[3, 0, 1]], True),
        ((None, 3, 1), [[1, 0, 1]], True),
        ((None, 3, 1), [[5, 0, 1]], False),  # values
        ((None, 3), [[1, 0, 0]], False),  # one-hot, of a sequence
    ],
)
def test_labels_of_steps_are_told_by_what_the_model_gives(shape: Any, labels: Any, tags: bool) -> None:
    loaded: Any = SimpleNamespace(
        keras=True, outputs=["y"], model=SimpleNamespace(outputs=[SimpleNamespace(shape=shape)])
    )
    assert _tags(loaded, "y", np.array(labels)) is tags


def test_exact_is_relative_to_what_the_model_gives_and_no_number_is_never_lost() -> None:
    small = np.array([[1e-5, -3e-6]], np.float32)
    difference, error = compared({"y": small * np.float32(1.01)}, {"y": small})
    assert difference < EXACT
    assert error == pytest.approx(0.01, rel=1e-3)
    assert not Tried("loop rec8", "loop", "rec8", max_difference=difference, output_error=error).exact
    assert Tried("loop 32", "loop", "32", max_difference=difference, output_error=error / 2).exact
    assert not Tried("loop 32", "loop", "32", max_difference=difference, output_error=0.5).exact
    assert compared({"y": np.zeros((1, 2))}, {"y": np.zeros((1, 2))}) == (0.0, 0.0)
    right, wrong = np.ones((1, 2)), np.full((1, 2), np.nan)
    assert compared({"a": right, "b": wrong}, {"a": right, "b": right}) == (np.inf, np.inf)
    wanted = {name: np.array([[1.0], [2.0]]) for name in "ab"}
    asked = {name: question(each, each, "regression", "y") for name, each in wanted.items()}
    assert np.isnan(dropped(asked, {**wanted, "b": np.full((2, 1), np.nan)}, wanted))


def test_each_input_of_free_length_has_that_of_its_data() -> None:
    ports = (Port("said", (None, None, 3), "float32"), Port("heard", (None, None, 2), "float32"))
    loaded: Any = SimpleNamespace(inputs=ports)
    data = {"said": np.zeros((1, 7, 3)), "heard": np.zeros((1, 6, 2))}
    steps = steps_of(loaded, Request("m", "f"), data)
    assert steps == {"said": 7, "heard": 6}
    assert [port.shape for port in fixed(loaded, 2, steps)] == [(2, 7, 3), (2, 6, 2)]
    assert steps_of(loaded, Request("m", "f", time_steps=9), data) == 9
    with pytest.raises(ModelError, match="the input said takes sequences of any length"):
        fixed(loaded, 2, steps_of(loaded, Request("m", "f"), {}))


def test_the_length_of_a_model_that_has_one_is_its_own(tmp_path: Path) -> None:
    """Of tokens too, whose loops would else all be of one step."""
    from spaces.backend import keras

    layers = keras.layers
    path = tmp_path / "tokens.h5"
    tokens = keras.Input((20,), dtype="int32")
    made = keras.Sequential([tokens, layers.Embedding(9, 4), layers.GRU(4), layers.Dense(2)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a format that people have
        made.save(path)
    asked = Request(str(path), str(tmp_path / "made"), root=str(tmp_path))
    (tmp_path / "made").mkdir()
    assert look(to_json(asked))["time_steps"] == 20
    assert look(to_json(replace(asked, time_steps=20)))["time_steps"] == 20
    with pytest.raises(ModelError, match=r"--time-steps 10: .*takes sequences of 20 steps and no others; leave"):
        look(to_json(replace(asked, time_steps=10)))
