"""A study of a hypermodel of the user's own, in KerasTuner's language, with Keras 3 and with Keras 2."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_end_to_end import brisk

from experiments.exporters import verify, write
from objectives import judge
from objectives.bench import Bench, TaskSpec, TrainingSpec
from objectives.built import Built
from objectives.data import loaded
from objectives.model_file import code
from objectives.outcome import Conditions, Outcome
from search.history import Plan, known_bench, known_space, read
from search.ledger import genes
from spaces.errors import InputError
from spaces.genotype import Deployment
from spaces.record import from_json, to_json
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
    return tf_keras.Sequential([*layers, tf_keras.layers.GRU(3), tf_keras.layers.Dense(1)])


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
    shown = brisk("show", "own", home=study).stdout
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
    done = brisk("run", "own.toml", home=study, check=False)
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
