"""A loaded model becomes a .tflite that answers by the user's names, as the model does, in every width."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from graphs import SHAPES, shaped

from experiments.claims.graphs import TOLERANCE, difference, form_of, original
from objectives.bench import Bench, TaskSpec, TrainingSpec
from objectives.deployment.convert import convert, fixed, save
from objectives.deployment.graph import matrices
from objectives.deployment.interpreter import Interpreter, answers
from objectives.deployment.quantize import quantize, realised_bits
from objectives.evaluate import _kept_artifact
from objectives.group import Group
from objectives.outcome import Conditions
from spaces.backend import keras, keras3, tf
from spaces.errors import ModelError
from spaces.genotype import Deployment
from spaces.lowering.form import Form
from spaces.lowering.load import Loaded, load

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # of Keras 3, with NumPy 2
    pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask"),  # Keras 3, of models in models
]
FIRST = 26 * 30  # seeds that the tests of `rewriting` do not draw
NARROW = {"8": {"input": 8, "recurrent": 8}, "rec4": {"recurrent": 4}, "16": {"input": 16, "recurrent": 16}}
KERAS = pytest.mark.parametrize("k", [keras3, lambda: keras], ids=["Keras 3", "Keras 2"])


def opened(model: Any, folder: Path) -> Loaded:
    model.save(folder / "model.keras")
    return load(folder / "model.keras")


def answered(loaded: Loaded, content: bytes, inputs: list[np.ndarray], folder: Path) -> list[np.ndarray]:
    path = folder / "model.tflite"
    path.write_bytes(content)
    got = answers(path, {port.name: array for port, array in zip(loaded.inputs, inputs, strict=True)})
    assert got.keys() == set(loaded.outputs)
    return [got[name] for name in loaded.outputs]


@pytest.mark.parametrize("first", range(FIRST, FIRST + 2 * len(SHAPES), len(SHAPES)), ids=["Keras 3", "Keras 2"])
def test_a_file_answers_as_its_model_in_every_width(first: int, tmp_path: Path) -> None:
    for seed in range(first + first // len(SHAPES) % 2, first + len(SHAPES), 2):  # half of the shapes of each Keras
        drawn = shaped(seed)
        loaded = opened(drawn.model, tmp_path)
        wanted = original(loaded, drawn.inputs)
        content = convert(loaded, form_of(seed), fixed(loaded, len(drawn.inputs[0]), None))
        gap = difference(answered(loaded, content, drawn.inputs, tmp_path), wanted)
        assert gap <= TOLERANCE, f"{drawn.words}: {form_of(seed)} differs by {gap:.2g}"
        bits = list(NARROW)[seed % len(NARROW)]
        narrow = quantize(content, bits)
        got = answered(loaded, narrow, drawn.inputs, tmp_path)
        assert all(np.isfinite(each).all() for each in got), f"{drawn.words}: {bits}"
        uses = matrices(narrow)
        fits = {use.role for use in uses if use.operation == "FULLY_CONNECTED"} & NARROW[bits].keys()
        realised = {role: {use.bits for use in uses if use.role == role} for role in fits}
        left = {use.role for use in uses if use.operation != "FULLY_CONNECTED"}  # of the layers that Keras runs
        assert all(realised[role] == {NARROW[bits][role]} for role in fits - left), f"{drawn.words}: {bits}: {realised}"


@KERAS
def test_names_of_inputs_and_outputs_are_kept_and_never_meet(k: Any, tmp_path: Path) -> None:
    x, other = k().Input((4, 3), name="sensor.left"), k().Input((3,), name="user-profile")
    first = k().layers.LSTM(4, return_sequences=True, name="lstm_2")(x)
    states = k().layers.LSTM(3, return_state=True, name="lstm")(first)
    loaded = opened(k().Model([x, other], [first, *states, other]), tmp_path)
    assert [port.name for port in loaded.inputs] == ["sensor.left", "user_profile"]
    assert len(set(loaded.outputs)) == 5
    assert {loaded.outputs[0], loaded.outputs[1]} == {"lstm_2", "lstm"}
    data = [np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32) for shape in ((4, 3), (3,))]
    got = answered(loaded, convert(loaded, Form(), fixed(loaded, 2, None)), data, tmp_path)
    assert difference(got, original(loaded, data)) <= TOLERANCE


@KERAS
def test_a_length_that_is_free_must_be_given(k: Any, tmp_path: Path) -> None:
    x = k().Input((None, None, 2), name="films")
    loaded = opened(k().Model(x, k().layers.TimeDistributed(k().layers.GRU(2))(x)), tmp_path)
    with pytest.raises(ModelError, match=r"the input films takes sequences of any length, .* give --time-steps"):
        fixed(loaded, 1, None)
    with pytest.raises(ModelError, match=r"films has the shape \[None, None, None, 2\]: only the batch and the length"):
        fixed(loaded, 1, 3)


@KERAS
def test_what_the_stock_converter_narrows(k: Any, tmp_path: Path) -> None:
    model = k().Sequential([k().Input((5, 32), name="x"), k().layers.LSTM(48), k().layers.Dense(2)])
    loaded, x = opened(model, tmp_path), np.random.default_rng(0).normal(size=(3, 5, 32)).astype(np.float32)
    ports, native = fixed(loaded, 1, None), Form("keras3" if loaded.family == "Keras 3" else "fused")
    made = {bits: convert(loaded, native, ports, bits=bits) for bits in ("32", "16", "8")}
    assert len(made["8"]) < len(made["16"]) < len(made["32"])
    assert [realised_bits(made[bits])["recurrent"] for bits in ("32", "16", "8")] == [32, 16, 8]
    for bits, allowed in (("32", TOLERANCE), ("16", 1e-2), ("8", 1e-1)):
        assert difference(answered(loaded, made[bits], [x], tmp_path), original(loaded, [x])) <= allowed


def test_a_file_that_keeps_its_state_is_known_and_starts_anew_where_it_is_reset(tmp_path: Path) -> None:
    """As the card of an export says."""
    model = keras.Sequential([keras.Input((5, 3), name="x"), keras.layers.LSTM(4)])
    loaded, x = opened(model, tmp_path), np.random.default_rng(0).normal(size=(1, 5, 3)).astype(np.float32)
    content = convert(loaded, Form("fused"), fixed(loaded, 1, None))
    bench = Bench(TaskSpec(), TrainingSpec(), 0, "fake", Conditions(), {}, str(tmp_path))
    group = Group(bench, [], lambda event: None, lambda question: None)
    group.origin = SimpleNamespace(exporter=str, blueprint="")  # type: ignore[assignment]
    artifact = _kept_artifact(group, Deployment("keras"), content, "trained", {})
    assert artifact.keeps_state
    interpreter = Interpreter(str(group.cache.artifact(artifact.sha256)))
    interpreter.allocate_tensors()
    call = interpreter.get_signature_runner("serving_default")
    first, second = (next(iter(call(x=x).values())) for _ in range(2))
    interpreter.reset_all_variables()
    third = next(iter(call(x=x).values()))
    np.testing.assert_array_equal(first, third)
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_tokens_of_any_width_have_a_narrow_table(kind: str, tmp_path: Path) -> None:
    """Keras's own text examples feed int64, and LiteRT looks rows up by int32 alone."""
    x = keras.Input((5,), dtype=kind, name="x")
    model = keras.Model(x, keras.layers.GRU(3)(keras.layers.Embedding(40, 32)(x)))
    loaded, data = opened(model, tmp_path), np.arange(10).reshape(2, 5).astype(kind)
    content = quantize(convert(loaded, Form(), fixed(loaded, 2, None)), "8")
    assert realised_bits(content)["embedding"] == 8
    assert difference(answered(loaded, content, [data], tmp_path), original(loaded, [data])) <= 1e-2


@KERAS
def test_a_saved_model_answers_as_its_keras_does_and_converts_without_layers(k: Any, tmp_path: Path) -> None:
    x = k().Input((4, 3), batch_size=2, name="x")
    model = k().Model(x, k().layers.Dense(2, name="y")(k().layers.GRU(4, stateful=True)(x)))
    loaded, data = opened(model, tmp_path), np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    wanted = original(loaded, [data])
    save(loaded, fixed(loaded, 2, None), tmp_path / "saved")
    graph = load(tmp_path / "saved")
    assert (graph.family, [port.name for port in graph.inputs], graph.outputs) == ("SavedModel", ["x"], loaded.outputs)
    for _ in range(2):  # it starts at zero in each call
        assert difference([each.numpy() for each in graph.call([tf.constant(data)])], wanted) <= TOLERANCE
    content = convert(graph, Form("graph"), fixed(graph, 2, None))
    assert difference(answered(graph, content, [data], tmp_path), wanted) <= TOLERANCE
