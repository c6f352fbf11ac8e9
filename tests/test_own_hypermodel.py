"""A study of a hypermodel of the user's own, in KerasTuner's language, with Keras 3 and with Keras 2."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras_tuner as kt
import numpy as np
import pytest
from test_end_to_end import brisk, here

from experiments.exporters import verify, write
from objectives import judge
from objectives.bench import Bench, TaskSpec, TrainingSpec
from objectives.built import Built, hypermodel, made
from objectives.cache import Cache
from objectives.data import loaded
from objectives.model_file import ModelFile, code, layers_of
from objectives.outcome import Conditions, Outcome
from objectives.trained import _teaching_key
from objectives.training.own import _Epochs, resumable
from objectives.training.rungs import GoesOn, Rungs, Stopped
from search.history import Plan, known_bench, known_space, read
from search.ledger import genes
from spaces.errors import InputError, ModelError, SpecError
from spaces.genotype import Architecture, Deployment, Genotype, Training
from spaces.hypermodel import with_values
from spaces.record import digest, from_json, to_json
from spaces.signature import Signature
from spaces.space import Space

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of Keras 3, with NumPy 2

CODE = """
import keras
import keras_tuner as kt
import tf_keras

SHAPE = (6, 2)


class Tuned(kt.HyperModel):
    def build(self, hp):
        model = keras.Sequential([keras.Input(SHAPE)])
        cell = hp.Choice("cell", ["lstm", "gru"])
        with hp.conditional_scope("cell", ["lstm"]):
            if cell == "lstm":
                model.add(keras.layers.LSTM(hp.Int("units", 4, 8, step=2)))
        with hp.conditional_scope("cell", ["gru"]):
            if cell == "gru":
                model.add(keras.layers.GRU(hp.Int("units", 2, 8, step=2, sampling="log")))
        model.add(keras.layers.Dense(2, activation="softmax"))
        rate = hp.Float("learning_rate", 1e-3, 1e-1, sampling="log")
        model.compile(keras.optimizers.Adam(rate), "categorical_crossentropy", metrics=["accuracy"])
        return model

    def fit(self, hp, model, *args, **kwargs):
        return model.fit(*args, batch_size=hp.Choice("batch_size", [16, 32]), **kwargs)


def plain(hp):
    layers = [tf_keras.layers.Dense(hp.Int(f"units_{i}", 3, 4)) for i in range(hp.Int("deep", 1, 2))]
    return tf_keras.Sequential([*layers, tf_keras.layers.SimpleRNN(3), tf_keras.layers.Dense(1)])


def compiled(hp):
    model = keras.Sequential([keras.Input(SHAPE), keras.layers.GRU(hp.Int("units", 2, 4)), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile=False)  # or XLA takes seconds
    return model


def compiled_long_ago(hp):
    model = tf_keras.Sequential([tf_keras.Input(SHAPE), tf_keras.layers.SimpleRNN(3), tf_keras.layers.Dense(2)])
    model.compile(tf_keras.optimizers.legacy.Adam(), tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


class Stepped(keras.Model):
    def train_step(self, *args):
        return super().train_step(*args)


def compiled_with_steps(hp):
    x = keras.Input(SHAPE)
    model = Stepped(x, keras.layers.Dense(2)(keras.layers.GRU(3)(x)))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def compiled_nadam(hp):
    model = tf_keras.Sequential([tf_keras.Input(SHAPE), tf_keras.layers.SimpleRNN(3), tf_keras.layers.Dense(2)])
    model.compile("nadam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def of_other_inputs(hp):
    return keras.Sequential([keras.Input((9, 2)), keras.layers.GRU(2), keras.layers.Dense(2)])


def of_other_outputs(hp):
    return keras.Sequential([keras.Input(SHAPE), keras.layers.GRU(2), keras.layers.Dense(5)])


def nothing(hp):
    return [hp.Int("units", 1, 2)]


def broken(hp):
    return keras.layers.GRU(hp.Int("units", 1, 2) / 0)
"""

SPEC = """
[study]
trials = 4
[task]
data = "signs.npz"
[space]
hypermodel = "own_tuned:Tuned"
lowering = ["loop", "keras"]
bits = [32, 8]
steps = 2
[objectives]
quality = {}
latency = { device = "fake" }
size = {}
[training]
epochs = 4
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with code, data and a spec, and a home in which the spec's study has been run to its end."""
    folder = tmp_path_factory.mktemp("tuned")
    x = np.random.default_rng(0).normal(size=(150, 6, 2)).astype(np.float32)
    np.savez(folder / "signs.npz", x=x, y=(x[:, -1, 0] > 0).astype(int))
    np.savez(folder / "sums.npz", x=x, y=100 + 50 * x.sum(axis=(1, 2)))
    (folder / "own_tuned.py").write_text(CODE)
    (folder / "own.toml").write_text(SPEC)
    done = brisk("run", "own.toml", "--json", home=folder, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "run.json").write_text(done.stdout.splitlines()[-1])
    return folder


def test_its_hyperparameters_are_searched_and_shown(study: Path) -> None:
    summary, history = json.loads((study / "run.json").read_text()), read(study / "home", "own")
    assert summary["counts"]["complete"] + summary["counts"]["stopped"] == 4
    assert {gene["name"] for gene in history.prepared["hypermodel"]["genes"]} == {
        *("cell", "units", "learning_rate", "batch_size"),
    }
    for outcome in history.outcomes.values():
        values = dict(outcome.genotype.architecture.values)
        assert values["units"] in ((4, 6, 8) if values["cell"] == "lstm" else (2, 4, 8))
        assert values["batch_size"] in (16, 32)
        assert outcome.genotype.training.learning_rate == 0.0
        if outcome.genotype.deployment.bits == "32":
            assert outcome.quality
            assert outcome.quality.output_error is not None
            assert outcome.quality.output_error < 1e-5
        told = genes(outcome.genotype)
        assert {name: told[name] for name in values} == {name: str(value) for name, value in values.items()}
        assert told["lowering"] == outcome.genotype.deployment.lowering
    assert max(outcome.quality.validation for outcome in history.outcomes.values() if outcome.quality) > 0.7
    shown = here("show", "own", home=study).stdout
    assert "cell=" in shown
    assert "learning_rate=" in shown


@pytest.mark.parametrize("to", ["tflite", "keras", "savedmodel"])
def test_its_models_are_written_in_every_form(study: Path, to: str) -> None:
    history = read(study / "home", "own")
    outcome = next(one for one in history.outcomes.values() if one.genotype.deployment.bits == "32")
    bench, folder = to_json(history.bench), study / f"out-{to}"
    folder.mkdir()
    path = write(bench, to_json(outcome), to, str(folder), "own")["path"]
    found = verify(bench, to_json(outcome.genotype), to, path, str(folder))
    assert found["max_difference"] < 1e-5
    assert found["probable"]
    assert found.get("keras", "3").startswith("3")
    assert outcome.quality
    assert found["quality"]["validation"] == pytest.approx(outcome.quality.validation)


def test_changed_code_is_another_study(study: Path) -> None:
    (study / "own_tuned.py").write_text(CODE + "\n# changed\n")
    done = here("run", "own.toml", home=study)
    (study / "own_tuned.py").write_text(CODE)
    assert done.returncode == 2
    assert "the code of own_tuned:Tuned, or what it imports beside it, has changed" in done.stderr


def bench_of(folder: Path, name: str, data: str, kind: str = "classification") -> Bench:
    task, place = TaskSpec(kind=kind, data=data), f"own_tuned:{name}"
    hypermodel = code(place, str(folder))
    training = TrainingSpec(epochs=2)
    home = str(folder / "home")
    return Bench(task, training, 0, "fake", Conditions(), {}, home, root=str(folder), hypermodel=hypermodel)


def test_a_keras_2_model_without_an_optimizer_is_trained_by_brisk(study: Path) -> None:
    """Regression, in raw units; the layers that a loop repeats are hyperparameters under a condition."""
    bench = bench_of(study, "plain", "sums.npz", "regression")
    prepared = judge.prepare(to_json(bench))
    plan = Plan(bench, Space(hypermodel="own_tuned:plain", lowering=("loop", "keras")), ("quality", "latency"))
    space, bench = known_space(plan, prepared), known_bench(plan, prepared)
    assert [gene.key for gene in space.genes] == ["hp:deep", "hp:units_0", "hp:units_1@deep=2"]
    signature = from_json(Signature, prepared["signature"])
    point = space.sample(Highest(), signature)
    events: list[dict[str, Any]] = []
    forms = [replace(point, deployment=Deployment(lowering)) for lowering in ("loop", "keras")]
    judge.evaluate(to_json(bench), [to_json(form) for form in forms], events.append, lambda question: "")
    outcomes = [from_json(Outcome, event["outcome"]) for event in events if event["event"] == "outcome"]
    assert dict(point.architecture.values) == {"deep": 2, "units_0": 4, "units_1": 4}
    assert point.training.learning_rate == 1e-2
    for outcome in outcomes:
        assert outcome.state == "complete", outcome
        assert outcome.quality
        assert outcome.quality.output_error is not None
        assert outcome.quality.output_error < 1e-5
        assert outcome.quality.error < 1.2 * prepared["trivial_error"]  # of outputs in raw units
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1, 2]
    again = Built(bench, loaded(bench), forms[0])
    again.train(events.append)  # once in the life of a home
    assert len([event for event in events if event["event"] == "epoch"]) == 2
    late = Built(bench, loaded(bench), replace(point, architecture=replace(point.architecture, values=(("deep", 2),))))
    late.train(events.append)
    assert "units_1 = 3: not searched, for it was met only here" in late.history["notes"]


def test_its_training_is_asked_at_the_rungs_and_comes_to_the_same(study: Path, tmp_path: Path) -> None:
    asked: list[tuple[int, int, float]] = []

    def built(home: str, rungs: tuple[float, ...] = (0.2, 0.5)) -> Built:
        bench = replace(bench_of(study, "Tuned", "signs.npz"), home=str(tmp_path / home))
        values = (("cell", "gru"), ("units", 4), ("learning_rate", 0.02), ("batch_size", 16))
        bench = replace(bench, training=TrainingSpec(epochs=6, rungs=rungs))
        architecture = Architecture("hypermodel:own_tuned:Tuned", units=0, values=values)
        return Built(bench, loaded(bench), Genotype(architecture, Training(0.0), Deployment()))

    def goes_on(rung: int, epoch: int, error: float, left_s: float) -> str:
        asked.append((rung, epoch, error))
        return ""

    whole, never, stopped = built("whole"), built("never", ()), built("stopped")
    whole.train(lambda event: None, goes_on)
    never.train(lambda event: None, goes_on)
    assert [(rung, epoch) for rung, epoch, _ in asked] == [(0, 1), (1, 3)]
    assert whole.history["learned"] == [error for _, _, error in asked]
    assert never.history["learned"] == []
    for mine, theirs in zip(whole.loaded.model.get_weights(), never.loaded.model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(Stopped, match="enough") as why:
        stopped.train(lambda event: None, lambda rung, *_: "enough" if rung else "")
    assert why.value.learned == tuple(whole.history["learned"])
    assert not stopped.recall()


def trained_in_parts(study: Path, name: str, bench: Bench, homes: tuple[Path, Path]) -> tuple[list[int], Built, Built]:
    """One training as a whole, and one that is stopped at epoch 3 of 6 and asked for again: the epochs that the latter
    ran then, and both. All rows are one batch, so that their order, which Keras draws, is nothing to either.
    """
    events, asked = list[dict[str, Any]](), list[int]()

    def built(home: Path) -> Built:
        again = replace(bench, home=str(home), training=TrainingSpec(epochs=6, rungs=(0.5,), batch_size=150))
        values = (("deep", 1), ("units_0", 3)) if name == "plain" else (("units", 3),) if name == "compiled" else ()
        architecture = Architecture(f"hypermodel:own_tuned:{name}", units=0, values=values)
        return Built(again, loaded(again), Genotype(architecture, Training(1e-2), Deployment()))

    def once_more(rung: int, epoch: int, error: float, left_s: float) -> str:
        asked.append(epoch)
        return ""

    whole, stopped, going_on = built(homes[0]), built(homes[1]), built(homes[1])
    whole.train(lambda event: None)
    with pytest.raises(Stopped):
        stopped.train(lambda event: None, lambda *_: "enough")
    going_on.train(events.append, once_more)
    assert asked == [3]
    assert going_on.history["learned"] == pytest.approx(whole.history["learned"], rel=1e-4)
    return [event["epoch"] for event in events if event["event"] == "epoch"], going_on, whole


@pytest.mark.parametrize(
    ("name", "data", "kind"), [("compiled", "signs.npz", "classification"), ("plain", "sums.npz", "regression")]
)
def test_a_stopped_training_goes_on_from_its_rung(study: Path, tmp_path: Path, name: str, data: str, kind: str) -> None:
    """By Keras 3 and by Keras 2: optimizer, best epoch and all, so that it comes to what it would have come to."""
    bench = bench_of(study, name, data, kind)
    bench = known_bench(Plan(bench, Space(hypermodel=f"own_tuned:{name}"), ("quality",)), judge.prepare(to_json(bench)))
    epochs, going_on, whole = trained_in_parts(study, name, bench, (tmp_path / "whole", tmp_path / "parts"))
    assert epochs == [4, 5, 6]
    told = {key: going_on.history[key] for key in ("epochs_run", "best_epoch", "validation_loss")}
    assert told == pytest.approx({key: whole.history[key] for key in told}, rel=1e-4)
    for mine, theirs in zip(going_on.loaded.model.get_weights(), whole.loaded.model.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    assert not list((tmp_path / "parts" / "cache" / "begun").glob("*.npz"))  # the trained weights are kept


def test_one_whose_optimizer_cannot_be_taken_up_begins_anew(study: Path, tmp_path: Path) -> None:
    bench = bench_of(study, "compiled_long_ago", "signs.npz")
    epochs, _, _ = trained_in_parts(study, "compiled_long_ago", bench, (tmp_path / "whole", tmp_path / "parts"))
    assert epochs == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", ["compiled_with_steps", "compiled_nadam"])
def test_what_keras_does_not_tell_all_of_begins_anew(study: Path, name: str) -> None:
    """A `train_step` may have more than one optimizer; Nadam of Keras 2 keeps a product to itself."""
    data = loaded(bench_of(study, name, "signs.npz"))
    bench = bench_of(study, name, "signs.npz")
    trainee, _ = made(hypermodel(bench), with_values(hypermodel(bench), {}), data, 0, name)
    assert not resumable(trainee)
    plain, _ = made(hypermodel(bench_of(study, "compiled", "signs.npz")), kt.HyperParameters(), data, 0, "compiled")
    assert resumable(plain)


def test_the_code_of_an_installed_package_is_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "installed_here"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from installed_here.models import build\n")
    (package / "models.py").write_text("def build(hp): ...\n")
    monkeypatch.syspath_prepend(package.parent)
    before = code("installed_here:build", str(tmp_path))
    (package / "models.py").write_text("def build(hp): return 1\n")
    assert code("installed_here:build", str(tmp_path)).sha256 != before.sha256


def test_code_that_changed_is_refused_by_a_process_that_reads_it_first(study: Path) -> None:
    bench = bench_of(study, "compiled", "signs.npz")
    assert bench.hypermodel
    other = replace(bench, hypermodel=replace(bench.hypermodel, sha256="0" * 64))
    with pytest.raises(ModelError, match="the code of own_tuned:compiled has changed since the study read it"):
        hypermodel(other)


def test_a_group_is_stopped_at_a_rung(study: Path) -> None:
    """Regression, by Keras 2, in raw units."""
    bench = bench_of(study, "plain", "sums.npz", "regression")
    bench = replace(bench, training=TrainingSpec(epochs=50, rungs=(0.02,)))
    prepared = judge.prepare(to_json(bench))
    point = Genotype(
        Architecture("hypermodel:own_tuned:plain", units=0, values=(("deep", 1), ("units_0", 3))),
        Training(1e-3),
        Deployment(),
    )
    plan = Plan(bench, Space(hypermodel="own_tuned:plain", lowering=("loop",)), ("quality", "latency"))
    bench, events = known_bench(plan, prepared), list[dict[str, Any]]()
    judge.evaluate(to_json(bench), [to_json(point)], events.append, lambda question: "behind others")
    (outcome,) = (from_json(Outcome, event["outcome"]) for event in events if event["event"] == "outcome")
    assert (outcome.state, outcome.reason) == ("stopped", "behind others")
    assert outcome.measurement
    assert outcome.learned[0] == pytest.approx(prepared["trivial_error"], rel=0.5)


class Watch:
    """A callback of a training of `epochs` epochs."""

    def __init__(self, model: Any, epochs: int = 10) -> None:
        self.model, self.params = model, {"epochs": epochs}


class Model:
    """What a training sees of a model: one weight."""

    stop_training = False
    weight = 0.0

    def get_weights(self) -> list[Any]:
        return [self.weight]

    def set_weights(self, weights: list[Any]) -> None:
        (self.weight,) = weights


def epochs_of(model: Model, rungs: tuple[int, ...], goes_on: GoesOn, patience: int = 10) -> _Epochs:
    spec, nowhere = TrainingSpec(epochs=20, patience=patience), Cache("/nonexistent")
    asked = Rungs(rungs, lambda told: model.weight, goes_on, nowhere, "k")
    return _Epochs(model, spec, lambda event: None, 8, asked, lasting=False)


def test_a_rung_sees_the_best_epoch_and_the_training_goes_on_from_its_own() -> None:
    model, seen = Model(), list[tuple[Any, ...]]()

    def goes_on(rung: int, epoch: int, error: float, left_s: float) -> str:
        assert 0 <= left_s < 60
        assert model.weight == error
        seen.append((rung, epoch, error))
        return ""

    epochs = epochs_of(model, (2, 4, 5), goes_on, patience=3)
    for epoch, loss in {1: 1.0, 2: 0.5, 4: 0.9, 5: 0.8}.items():  # the third is not told of
        model.weight = float(epoch)
        epochs.hear(epoch, {"val_loss": loss}, Watch(Model()))  # a teacher's
        epochs.hear(epoch, {"val_loss": loss}, Watch(model))
        assert model.weight == epoch
    assert seen == [(0, 2, 2.0), (1, 4, 2.0)]  # the fifth ends the training anyway
    assert model.stop_training
    epochs.end()
    assert model.weight == 2.0


def test_nobody_is_asked_about_a_last_epoch() -> None:
    model, seen = Model(), list[int]()
    epochs = epochs_of(model, (4,), lambda rung, *_: seen.append(rung) or "")
    epochs.hear(4, {"val_loss": 1.0}, Watch(model, epochs=4))
    assert seen == []


def test_a_rung_that_was_passed_over_is_asked_at_once_and_only_once() -> None:
    model, seen = Model(), list[tuple[int, int]]()
    epochs = epochs_of(model, (2, 4), lambda rung, epoch, *_: seen.append((rung, epoch)) or "")
    for epoch in (5, 6, 1, 2, 4):  # a `fit` that trains in two parts
        epochs.hear(epoch, {"val_loss": 1.0}, Watch(model))
    assert seen == [(1, 5)]


def test_a_fit_that_swallows_what_ends_it_ends_nevertheless() -> None:
    model = Model()
    epochs = epochs_of(model, (1,), lambda *_: "enough")
    for _ in range(2):
        with pytest.raises(Stopped):
            epochs.hear(1, {"val_loss": 1.0}, Watch(model))
    with pytest.raises(Stopped):
        epochs.end()


class Highest:
    """A trial that always proposes the upper end."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return choices[-1]

    def suggest_int(self, name: str, low: int, high: int, **_: Any) -> int:
        return high

    def suggest_float(self, name: str, low: float, high: float, **_: Any) -> float:
        return high


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("of_other_inputs", r"takes sequences of shape \[9, 2\], but the data have \[6, 2\] .time steps, features."),
        ("of_other_outputs", r"gives outputs of shape \[5\], but classification of these data needs \[2\]"),
        ("nothing", "returned list; it must return a Keras model"),
        ("broken", r"failed with ZeroDivisionError: division by zero .own_tuned.py, line \d+., of units = 1"),
    ],
)
def test_a_hypermodel_that_does_not_fit_is_refused_in_words(study: Path, name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        judge.prepare(to_json(bench_of(study, name, "signs.npz")))


def test_a_module_that_is_not_there_is_looked_for_without_importing_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no module nowhere_at_all in .*; put it beside the spec"):
        code("nowhere_at_all:build", str(tmp_path))
    (tmp_path / "mine_beside.py").write_text("import theirs_beside\nraise SystemExit\n")
    (tmp_path / "theirs_beside.py").write_text("a = 1\n")
    before = code("mine_beside:build", str(tmp_path)).sha256
    (tmp_path / "theirs_beside.py").write_text("a = 2\n")
    assert code("mine_beside:build", str(tmp_path)).sha256 != before
    assert "mine_beside" not in sys.modules


def test_the_code_of_custom_layers_names_what_a_teacher_says(tmp_path: Path) -> None:
    """Or answers of layers that have changed would be taken from the home."""
    (tmp_path / "mine_layers.py").write_text("class Attn: pass\n")
    before = layers_of(("mine_layers:Attn",), str(tmp_path))
    (tmp_path / "mine_layers.py").write_text("class Attn: x = 1\n")
    assert before != layers_of(("mine_layers:Attn",), str(tmp_path)) != ""
    assert layers_of(("no_such_layers_of_brisk:Attn",), str(tmp_path)) == layers_of((), str(tmp_path)) == ""
    data: Any = SimpleNamespace(digest="d")
    teacher = Genotype.of_model("m.keras", Deployment("keras"))
    files = [ModelFile("m.keras", "s", layers=one) for one in ("", "a", "b")]
    benches: list[Any] = [SimpleNamespace(file_of=lambda _, file=file: file) for file in files]
    keys = [_teaching_key(bench, data, teacher) for bench in benches]
    assert len({*keys}) == 3
    assert keys[0] == digest("s", "d")  # as an older brisk has it


def test_code_in_folders_that_are_packages_all_the_same_is_known_by_its_contents(tmp_path: Path) -> None:
    """Python needs no `__init__.py`; what the module imports counts too."""
    (tmp_path / "models" / "parts").mkdir(parents=True)
    (tmp_path / "models" / "rnn.py").write_text("from models.parts.blocks import x\n\ndef build(hp): return x\n")
    (tmp_path / "models" / "parts" / "blocks.py").write_text("x = 1\n")
    before = code("models.rnn:build", str(tmp_path)).sha256
    assert before
    assert code("models.rnn:build", str(tmp_path)).sha256 == before
    (tmp_path / "models" / "parts" / "blocks.py").write_text("x = 2\n")
    assert code("models.rnn:build", str(tmp_path)).sha256 != before
    for place in ("models.typo:build", "models.rnn.typo:build"):
        with pytest.raises(SpecError, match=rf"space\.hypermodel: got '{place}', but in .* there is .*mend the name"):
            code(place, str(tmp_path))
