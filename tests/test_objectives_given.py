"""A user's own model, whatever file it is in, is held against the data, asked, taught from and converted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from objectives.bench import Bench, TaskSpec, TrainingSpec
from objectives.data import Dataset, Split
from objectives.deployment.interpreter import predict
from objectives.foreign import check_input
from objectives.given import Given, look, soft_targets
from objectives.model_file import ModelFile, answered, fed, sha256_of
from objectives.outcome import Conditions
from spaces.backend import keras, keras3
from spaces.errors import InputError, ModelError, SpecError
from spaces.genotype import Deployment
from spaces.lowering.load import Port
from spaces.record import from_json
from spaces.signature import PADDING, Signature

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # of Keras 3, with NumPy 2
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5"),
]
TIME, FEATURES, ROWS = 6, 3, 10
X = np.random.default_rng(0).normal(size=(ROWS, TIME, FEATURES)).astype(np.float32)
TWO = Signature("classification", TIME, FEATURES, 2, labels=("no", "yes"))


def dataset(signature: Signature = TWO, x: Any = X) -> Dataset:
    shape = {"regression": (ROWS, signature.outputs), "tagging": (ROWS, TIME)}.get(signature.kind, (ROWS,))
    part = Split(x, np.zeros(shape, np.float32 if signature.kind == "regression" else np.int64))
    return Dataset(signature, part, part, part, "digest", {})


def bench(path: Path, **opening: Any) -> Bench:
    model = ModelFile(path.name, sha256_of(path), **opening)
    home = str(path.parent / "home")
    return Bench(TaskSpec(), TrainingSpec(), 0, "fake", Conditions(), {}, home, root=str(path.parent), model=model)


def made(kinds: Any, *layers: Any, path: Path, shape: tuple[int | None, ...] = (TIME, FEATURES)) -> Path:
    kinds.utils.set_random_seed(0)
    kinds.Sequential([kinds.Input(shape), *layers]).save(path)
    return path


def test_one_sigmoid_unit_tells_two_classes(tmp_path: Path) -> None:
    layers = keras.layers
    path = made(keras, layers.LSTM(4), layers.Dense(1, activation="sigmoid"), path=tmp_path / "old.h5")
    where, data = bench(path), dataset()
    facts, given = look(where, data), Given(where, data)
    assert (facts["family"], facts["recurrent"]) == ("Keras 2", 1)
    p = np.asarray(keras.models.load_model(path, compile=False)(X))[:, 0]
    np.testing.assert_allclose(given.answer(X), np.stack([1 - p, p], axis=1), atol=1e-6)
    np.testing.assert_allclose(soft_targets(where, data), np.log(np.stack([1 - p, p], axis=1)), atol=1e-5)
    assert given.exporter(Deployment("keras", bits="8")) == "old.h5 by Keras 2, static batch, TFLite dynamic range"
    file = tmp_path / "m.tflite"
    for form in (Deployment("keras", bits="8"), *(from_json(Deployment, form) for form in facts["forms"][::4])):
        file.write_bytes(given.lower(form))
        np.testing.assert_allclose(answered(predict(file, X), TWO), given.answer(X), atol=0.01)


def test_logits_teach_as_they_are_and_layers_in_a_row_are_stacked(tmp_path: Path) -> None:
    layers = keras3().layers
    stack = (layers.GRU(4, return_sequences=True), layers.GRU(4), layers.Dense(2, kernel_initializer="ones"))
    where, data = bench(made(keras3(), *stack, path=tmp_path / "m.keras", shape=(None, FEATURES))), dataset()
    logits = np.asarray(keras3().models.load_model(tmp_path / "m.keras")(X))
    np.testing.assert_allclose(soft_targets(where, data), logits, atol=1e-6)
    forms = [from_json(Deployment, form) for form in look(where, data)["forms"]]
    assert {(form.lowering, form.steps) for form in forms} == {("stacked", 1), ("stacked", 2), ("loop", 6)}
    assert {form.bits for form in forms} == {"32", "8", "rec8", "rec4"}
    file = tmp_path / "m.tflite"
    file.write_bytes(Given(where, data).lower(forms[0]))
    np.testing.assert_allclose(predict(file, X), logits, atol=1e-5)


def test_regression_teaches_in_the_units_of_training(tmp_path: Path) -> None:
    signature = Signature("regression", TIME, FEATURES, 1, target_mean=(3.0,), target_std=(2.0,))
    layers = keras3().layers
    path = made(keras3(), layers.SimpleRNN(4), layers.Dense(1), path=tmp_path / "m.keras")
    where, data = bench(path), dataset(signature)
    raw = np.asarray(keras3().models.load_model(path)(X))
    np.testing.assert_allclose(Given(where, data).answer(X), raw, atol=1e-6)
    np.testing.assert_allclose(soft_targets(where, data), (raw - 3) / 2, atol=1e-6)


def test_short_sequences_end_as_the_models_own_mask_has_it(tmp_path: Path) -> None:
    short = X.copy()
    short[:, 4:] = PADDING
    data = dataset(replace(TWO, masked=True), short)
    layers = keras3().layers
    path = made(keras3(), layers.Masking(7.0), layers.LSTM(4), layers.Dense(2), path=tmp_path / "m.keras")
    facts = look(bench(path), data)
    where = bench(path, padding=facts["padding"])
    assert facts["padding"] == 7.0
    np.testing.assert_allclose(Given(where, data).answer(short), Given(where, data).answer(X[:, :4]), atol=1e-6)
    assert fed(short, where.model).max() == 7.0
    plain = made(keras3(), layers.LSTM(4), layers.Dense(2), path=tmp_path / "plain.keras")
    with pytest.raises(ModelError, match=r"baseline\.model: plain\.keras: has no Masking layer, but the sequences"):
        look(bench(plain), data)


def test_a_model_without_recurrence_has_the_stock_forms_only(tmp_path: Path) -> None:
    layers = keras3().layers
    path = made(keras3(), layers.Flatten(), layers.Dense(2), path=tmp_path / "m.keras")
    forms = look(bench(path), dataset())["forms"]
    assert [(form["lowering"], form["bits"]) for form in forms] == [("keras", "32"), ("keras", "8")]


def test_what_does_not_fit_the_data_is_told_in_words(tmp_path: Path) -> None:
    layers = keras3().layers
    path = made(keras3(), layers.LSTM(4), layers.Dense(3), path=tmp_path / "m.keras")
    with pytest.raises(ModelError, match=r"m\.keras: gives outputs of shape \[3\], but classification .* needs \[2\]"):
        look(bench(path), dataset())
    with pytest.raises(ModelError, match=r"gives outputs of shape \[3\], but tagging of these data needs \[6, 2\]"):
        look(bench(path), dataset(replace(TWO, kind="tagging")))
    with pytest.raises(ModelError, match=r"takes sequences of shape \[6, 3\], but the data have \[6, 2\]"):
        look(bench(path), dataset(x=X[..., :2]))
    tokens = replace(TWO, features=0, vocabulary=9)
    with pytest.raises(ModelError, match=r"takes sequences of shape \[6, 3\], but the data have \[6\] \(tokens\)"):
        look(bench(path), dataset(tokens, np.full((ROWS, TIME), 8, np.int32)))
    words = made(
        keras3(), layers.Embedding(5, 2), layers.GRU(2), layers.Dense(2), path=tmp_path / "w.keras", shape=(TIME,)
    )
    with pytest.raises(ModelError, match=r"embedding knows tokens below 5, but the data go up to 8"):
        look(bench(words), dataset(tokens, np.full((ROWS, TIME), 4, np.int32)))
    placed: Any = SimpleNamespace(  # a table of positions knows as many as there are steps
        inputs=[Port("x", (None, TIME), "int32")],
        outputs=["y"],
        layers=[layers.Embedding(9, 2), layers.Embedding(6, 2)],
    )
    check_input(placed, dataset(tokens, np.full((ROWS, TIME), 8, np.int32)), "m", "")


def test_a_file_that_cannot_be_opened_is_told_in_the_specs_words(tmp_path: Path) -> None:
    layers = keras3().layers
    (tmp_path / "bad.keras").write_text("junk")
    with pytest.raises(ModelError, match=r"baseline\.model: .*bad\.keras: is damaged or no model"):
        look(bench(tmp_path / "bad.keras"), dataset())
    path = made(keras3(), layers.Lambda(lambda x: 2 * x), layers.GRU(2), layers.Dense(2), path=tmp_path / "l.keras")
    with pytest.raises(ModelError, match=r"has a Lambda layer.* add unsafe = true under \[baseline\]"):
        look(bench(path), dataset())
    assert look(bench(path, unsafe=True), dataset())["recurrent"] == 1


def test_code_of_the_users_own_lies_beside_the_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brisk_test_own_layers.py").write_text(
        "from spaces.backend import keras3\n\n\nclass Twice(keras3().layers.Layer):\n"
        "    def call(self, x):\n        return 2 * x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import brisk_test_own_layers  # type: ignore[import-not-found]

    layers = keras3().layers
    path = made(keras3(), brisk_test_own_layers.Twice(), layers.GRU(2), layers.Dense(2), path=tmp_path / "m.keras")
    with pytest.raises(ModelError, match=r"'Twice'; name it with custom = \[\"module:Twice\"\] under \[baseline\]"):
        look(bench(path), dataset())
    assert look(bench(path, custom=("brisk_test_own_layers:Twice",)), dataset())["recurrent"] == 1
    with pytest.raises(SpecError, match=r"custom nowhere:Twice: cannot be imported: .* put it beside the spec"):
        look(bench(path, custom=("nowhere:Twice",)), dataset())


def test_a_file_that_changed_is_not_the_studys_any_more(tmp_path: Path) -> None:
    layers = keras3().layers
    path = made(keras3(), layers.GRU(2), layers.Dense(2), path=tmp_path / "m.keras")
    where = bench(path)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(InputError, match=r"m\.keras has changed since the study read it .*--name"):
        look(where, dataset())
    path.unlink()
    with pytest.raises(InputError, match=r"m\.keras is not there any more; put it back"):
        look(where, dataset())


def test_the_digest_of_a_folder_changes_with_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "a").write_text("1")
    before = sha256_of(tmp_path / "saved")
    (tmp_path / "saved" / "a").rename(tmp_path / "saved" / "b")
    renamed = sha256_of(tmp_path / "saved")
    (tmp_path / "saved" / "b").write_text("2")
    assert len({before, renamed, sha256_of(tmp_path / "saved")}) == 3
