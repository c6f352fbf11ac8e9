"""Hints from a model of the user's: what enters its last Dense layer, found in any Keras, or refused in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_objectives_given import ROWS, TIME, TWO, X, bench, dataset, made

from objectives.given import look, states
from spaces.backend import keras, keras3
from spaces.errors import ModelError
from spaces.genotype import Deployment, Genotype

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # of Keras 3, with NumPy 2
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5"),
]


def teaching(path: Path) -> Any:
    """The bench of a study that learns from the model, hints among it."""
    where = bench(path)
    training = replace(where.training, distillation=(0.5,), hints=(0.1,))
    return replace(where, training=training, teacher=Genotype.of_model(path.name, Deployment("keras")))


@pytest.mark.parametrize(("kinds", "name"), [(keras, "old.h5"), (keras3(), "new.keras")])
def test_what_enters_the_last_dense_layer_gives_the_answer(tmp_path: Path, kinds: Any, name: str) -> None:
    layers = kinds.layers
    inner = kinds.Sequential([kinds.Input((5,)), layers.Dense(4, activation="tanh"), layers.Dense(2, name="out")])
    path = made(kinds, layers.GRU(5), inner, path=tmp_path / name)
    where, data = teaching(path), dataset()
    look(where, data)
    entering = states(where, data, X)
    assert entering.shape == (ROWS, 4)
    model = kinds.models.load_model(path, compile=False)
    kernel, bias = (np.asarray(each) for each in model.get_weights()[-2:])
    np.testing.assert_allclose(entering @ kernel + bias, np.asarray(model(X)), atol=1e-5)


@pytest.mark.parametrize(("kinds", "name"), [(keras, "old.h5"), (keras3(), "new.keras")])
def test_a_dense_layer_at_every_step_hints_at_every_step(tmp_path: Path, kinds: Any, name: str) -> None:
    layers = kinds.layers
    head = layers.TimeDistributed(layers.Dense(2, activation="softmax"))
    where = teaching(made(kinds, layers.LSTM(5, return_sequences=True), head, path=tmp_path / name))
    data = dataset(replace(TWO, kind="tagging"))
    look(where, data)
    assert states(where, data, X).shape == (ROWS, TIME, 5)


def test_a_model_without_a_head_to_look_into_is_refused_where_hints_are_asked_for(tmp_path: Path) -> None:
    layers, data = keras3().layers, dataset()
    pooled = [layers.GRU(5, return_sequences=True), layers.Dense(2), layers.GlobalAveragePooling1D()]
    cases = [
        ([layers.GRU(2)], r"bare\.keras: has no Dense layer, before which hints are taken; leave training\.hints"),
        (pooled, r"bare\.keras: what enters its last Dense layer has shape \[6, 5\], but hints for classification are"),
    ]
    for stack, words in cases:
        path = made(keras3(), *stack, path=tmp_path / "bare.keras")
        look(bench(path), data)  # without hints it may teach
        with pytest.raises(ModelError, match=words):
            look(teaching(path), data)
    made(keras3(), layers.GRU(2), path=tmp_path / "m.keras")
    keras3().models.load_model(tmp_path / "m.keras").export(tmp_path / "saved", verbose=False)
    with pytest.raises(ModelError, match=r"saved: is a SavedModel, which has no layers to take hints from"):
        look(teaching(tmp_path / "saved"), data)
