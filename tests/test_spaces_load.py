"""A user's model file is opened by the Keras that wrote it, or refused in words."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from spaces.backend import keras, keras3, tf
from spaces.errors import ModelError, SpecError
from spaces.lowering.load import load

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # of Keras 3, with NumPy 2
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5"),
]
X = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)


class Halving(keras.layers.Layer):  # type: ignore[misc]
    """A layer of a user's own."""

    def call(self, inputs: Any) -> Any:
        return inputs / 2


def model(k: Any, *layers: Any) -> Any:
    made = k.Sequential([k.Input((4, 3), name="frames"), *layers, k.layers.GRU(2)])
    made(X)
    return made


@pytest.mark.parametrize(
    ("k", "name", "family"),
    [
        (keras3, "m.keras", "Keras 3"),
        (keras3, "m.h5", "Keras 3"),
        (lambda: keras, "m.keras", "Keras 2"),
        (lambda: keras, "m.h5", "Keras 2"),
        (lambda: keras, "folder", "Keras 2"),
    ],
)
def test_every_kind_of_file_is_opened_by_the_keras_that_wrote_it(
    k: Any, name: str, family: str, tmp_path: Path
) -> None:
    made = model(k())
    made.save(tmp_path / name)
    loaded = load(tmp_path / name)
    assert loaded.family == family
    assert [port.shape for port in loaded.inputs] == [(None, 4, 3)]
    assert np.asarray(loaded.call([tf.constant(X)])[0]) == pytest.approx(np.asarray(made(X)), abs=1e-6)
    assert loaded.predict([tf.constant(X)], 2)[0] == pytest.approx(np.asarray(made(X)), abs=1e-6)


def test_an_exported_saved_model_has_a_signature_and_no_layers(tmp_path: Path) -> None:
    made = model(keras3())
    made.export(tmp_path / "folder", verbose=False)
    loaded = load(tmp_path / "folder")
    assert loaded.family == "SavedModel"
    assert loaded.layers == []
    assert np.asarray(loaded.call([tf.constant(X)])[0]) == pytest.approx(np.asarray(made(X)), abs=1e-6)


def test_tokens_are_whole_numbers_whatever_keras_declares(tmp_path: Path) -> None:
    k = keras3()
    x, other = k.Input((None,)), k.Input((3,))
    h = k.layers.GRU(2)(k.layers.Embedding(9, 4)(x))
    k.Model([x, other], k.layers.Concatenate()([h, other])).save(tmp_path / "m.keras")
    assert [port.dtype for port in load(tmp_path / "m.keras").inputs] == ["int32", "float32"]


def test_mixed_precision_is_computed_in_float32(tmp_path: Path) -> None:
    k = keras3()
    k.config.set_dtype_policy("mixed_float16")
    try:
        made = model(k)
    finally:
        k.config.set_dtype_policy("float32")
    made.save(tmp_path / "m.keras")
    (answer,) = load(tmp_path / "m.keras").call([tf.constant(X)])
    assert answer.dtype == tf.float32
    assert np.asarray(answer) == pytest.approx(np.asarray(made(X), np.float32), abs=1e-2)


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
@pytest.mark.parametrize("k", [keras3, lambda: keras], ids=["Keras 3", "Keras 2"])
def test_a_lambda_runs_only_where_that_is_allowed(k: Any, name: str, tmp_path: Path) -> None:
    made = model(k(), k().layers.Lambda(lambda x: 2 * x, output_shape=(4, 3)))
    made.save(tmp_path / name)
    with pytest.raises(
        ModelError, match=r"has a Lambda layer, which would run Python code stored in the file; .* --unsafe"
    ):
        load(tmp_path / name)
    loaded = load(tmp_path / name, unsafe=True)
    assert np.asarray(loaded.call([tf.constant(X)])[0]) == pytest.approx(np.asarray(made(X)), abs=1e-6)


@pytest.mark.parametrize(
    "spelt",
    ['"class_name": "Lambda"', '"class_name" :\t"Lambda"', '"class\\u005fname": "L\\u0061mbda"'],
    ids=["plain", "spaced", "escaped"],
)
def test_a_lambda_in_a_saved_model_is_seen_however_it_is_spelt(spelt: str, tmp_path: Path) -> None:
    """The folder's layers stand in a file of JSON amid other bytes, each with its length before it."""
    plain = '"class_name": "Lambda"'
    model(keras, keras.layers.Lambda(lambda x: 2 * x)).save(tmp_path / "folder")
    file = tmp_path / "folder" / "keras_metadata.pb"
    assert plain.encode() in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(plain.encode(), spelt.encode()))
    with pytest.raises(ModelError, match=r"folder: has a Lambda layer, .* --unsafe"):
        load(tmp_path / "folder")


@pytest.mark.parametrize("policy", ["float64", "float16"])
@pytest.mark.parametrize("k", [keras3, lambda: keras], ids=["Keras 3", "Keras 2"])
def test_weights_in_other_floats_are_refused(k: Any, policy: str, tmp_path: Path) -> None:
    k().Sequential([k().Input((4, 3)), k().layers.Dense(2, dtype=policy)]).save(tmp_path / "m.keras")
    with pytest.raises(ModelError, match=rf"keeps its weights in {policy} \(.*kernel.*\), .* build it in float32"):
        load(tmp_path / "m.keras")


@pytest.mark.parametrize("k", [keras3, lambda: keras], ids=["Keras 3", "Keras 2"])
def test_names_never_meet(k: Any, tmp_path: Path) -> None:
    """Keras 3 calls all outputs of a layer by its name; numbered, one would be called as a layer is already."""
    x = k().Input((4, 3))
    first = k().layers.LSTM(2, return_sequences=True, name="lstm_2")(x)
    states = k().layers.LSTM(2, return_state=True, name="lstm")(first)
    k().Model(x, [first, *states]).save(tmp_path / "m.keras")
    outputs = load(tmp_path / "m.keras").outputs
    assert outputs[:2] == ("lstm_2", "lstm")
    assert len(set(outputs)) == 4


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_a_layer_of_the_users_is_named(name: str, tmp_path: Path) -> None:
    model(keras, Halving()).save(tmp_path / name)
    with pytest.raises(ModelError, match="needs code of its own, 'Halving'; name it with --custom module:Halving"):
        load(tmp_path / name)
    assert load(tmp_path / name, custom=("test_spaces_load:Halving",)).family == "Keras 2"


def test_custom_objects_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="--custom Halving: write module:Name"):
        load(tmp_path, custom=("Halving",))
    with pytest.raises(SpecError, match="--custom nowhere:Halving: cannot be imported"):
        load(tmp_path, custom=("nowhere:Halving",))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.keras"
    model(keras3()).save(whole)
    (tmp_path / "cut.keras").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "empty.keras").write_bytes(b"")
    (tmp_path / "noise.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500))
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("letter.txt", "hello")
    for place, metadata in enumerate(("[]", "null", '{"keras_version": 3}', '{"keras_version": ""}')):
        with zipfile.ZipFile(tmp_path / f"odd{place}.keras", "w") as archive:
            archive.writestr("metadata.json", metadata)
            archive.writestr("config.json", "{}")
    with h5py.File(tmp_path / "number.h5", "w") as file:
        file.attrs["model_config"] = 3
    odd = [f"odd{place}.keras" for place in range(4)]
    for name in ("cut.keras", "empty.keras", "noise.h5", "other.keras", "number.h5", *odd):
        with pytest.raises(ModelError, match=f"{name}: is damaged or no model"):
            load(tmp_path / name)


def test_weights_without_a_model_are_refused(tmp_path: Path) -> None:
    model(keras).save_weights(tmp_path / "m.h5")
    with pytest.raises(ModelError, match=r"it holds weights only, without a model; save the whole model"):
        load(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5") as file:
        assert "model_config" not in file.attrs


def test_what_keras_3_cannot_read_back_is_said(tmp_path: Path) -> None:
    k = keras3()
    x = k.Input((4, 3))
    k.Model(x, k.layers.GRU(2)(k.layers.Masking()(x))).save(tmp_path / "m.h5")
    with pytest.raises(ModelError, match=r"Keras 3 cannot read its own operation 'NotEqual' back from \.h5"):
        load(tmp_path / "m.h5")
