"""A study of the user's own trained model: the baseline, the teacher, and a floor under the front."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_end_to_end import at_once, brisk, here

from experiments.check import check_spec
from objectives.bench import TaskSpec
from objectives.data import load
from search.front import dominates
from search.history import read
from search.summary import _costs
from spaces.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of Keras 3, with NumPy 2

SPEC = """
[study]
trials = 2
[task]
data = "digits-rows"
[baseline]
model = "my_rnn.keras"
teacher = true
[space]
cell = ["mingru"]
units = [8]
bits = [32, 8]
lowering = ["loop"]
steps = 4
learning_rate = [1e-2]
[objectives]
quality = {}
latency = { device = "fake", max_ms = 5.0 }
size = {}
[training]
epochs = 1
distillation = [0.5]
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained .keras file, a spec, and a home in which the spec's study has been run to its end."""
    from spaces.backend import keras3

    folder = tmp_path_factory.mktemp("own")
    data, keras = load(TaskSpec(data="digits-rows"), seed=0, root=""), keras3()
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Rescaling(1 / 16), keras.layers.GRU(16), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((8, 8)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss, jit_compile=False)  # or XLA takes seconds
    model.fit(data.train.x, data.train.y, epochs=6, batch_size=64, verbose=0)
    told = np.asarray(model(data.test.x)).argmax(axis=1)
    (folder / "accuracy").write_text(str(float(np.mean(told == data.test.y))))
    model.save(folder / "my_rnn.keras")
    (folder / "own.toml").write_text(SPEC)
    done = brisk("run", "own.toml", "--json", home=folder, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "run.json").write_text(done.stdout.splitlines()[-1])
    return folder


def summary_of(study: Path) -> dict[str, Any]:
    return dict(json.loads((study / "run.json").read_text()))


def test_the_baseline_is_the_file_as_people_export_it(study: Path) -> None:
    baseline = summary_of(study)["baseline"]
    assert baseline["artifact"]["exporter"] == "my_rnn.keras by Keras 3, static batch, TFLite dynamic range"
    assert baseline["genotype"]["architecture"]["cell"] == "model:my_rnn.keras"
    assert baseline["genotype"]["deployment"]["bits"] == "8"
    assert baseline["quality"]["test"] == pytest.approx(float((study / "accuracy").read_text()), abs=0.02)
    assert baseline["final"]
    shown = here("show", "own", home=study).stdout
    assert "Baseline: my_rnn.keras by Keras 3, static batch" in shown
    assert "rewrite-" in shown


def test_the_front_is_never_worse_than_the_rewritten_model(study: Path) -> None:
    summary, history = summary_of(study), read(study / "home", "own")
    assert history.rewrites.keys() == {f"rewrite-{index}" for index in range(1, 17)}
    assert {outcome.state for outcome in history.rewrites.values()} == {"complete"}
    assert {"rewrite-4", "rewrite-1"} & {point["trial"] for point in summary["front"]}
    assert sum(summary["counts"].values()) == 2
    costs = {name: list(_costs(history, outcome).values()) for name, outcome in history.candidates.items()}
    best = {name for name in costs if not any(dominates(other, costs[name]) for other in costs.values())}
    assert {point["trial"] for point in summary["front"]} == best
    for point in summary["front"]:
        assert point["final"]
        assert point["quality"]["test"] is not None
        assert point["speedup"] > 0


def test_a_float_rewrite_answers_as_the_model_does(study: Path) -> None:
    history = read(study / "home", "own")
    quality = history.rewrites["rewrite-1"].quality
    assert quality
    assert quality.output_error is not None
    assert quality.output_error < 1e-5


def test_the_model_teaches(study: Path) -> None:
    history = read(study / "home", "own")
    assert history.plan.bench.teacher == history.plan.baseline
    assert all(outcome.genotype.training.distillation == 0.5 for outcome in history.outcomes.values())
    (kept,) = (study / "home" / "cache" / "teacher").glob("*.npz")
    logits = np.load(kept)["logits"]
    train = load(TaskSpec(data="digits-rows"), seed=0, root="").train
    assert np.mean(logits.argmax(axis=1) == train.y) > 0.7
    assert logits.min() < 0 < logits.max()  # a linear end teaches its logits


def test_the_study_goes_on_and_its_rewrites_are_not_made_again(study: Path) -> None:
    before = read(study / "home", "own").rewrites
    again = json.loads(here("run", "own.toml", "--json", home=study).stdout.splitlines()[-1])
    assert again["front"] == summary_of(study)["front"]
    assert read(study / "home", "own").rewrites == before


def test_baseline_and_rewrites_are_exported_and_verified(study: Path) -> None:
    trials = ("baseline", "rewrite-4")
    at_once(
        *([["export", "own", "--trial", trial, "--to", "tflite", "--out", f"out-{trial}"]] for trial in trials),
        home=study,
    )
    for trial in trials:
        out = study / f"out-{trial}"
        card = json.loads((out / "model.json").read_text())
        assert card["trial"] == trial
        assert card["output"]["meaning"] == "logits"
        assert card["normalisation"] is None
        assert (out / "model.tflite").stat().st_size == card["size_bytes"]
        assert card["verification"]["rows"] > 0


def test_other_forms_of_the_users_model_are_the_users(study: Path) -> None:
    done = here("export", "own", "--trial", "rewrite-1", "--to", "keras", "--out", "x", home=study)
    assert done.returncode == 2
    assert "your own my_rnn.keras" in done.stderr


def test_check_looks_at_the_model_without_training(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = str(study / "own.toml")
    check_spec(spec, (), as_json=False)
    assert "my_rnn.keras, of Keras 3: 1 recurrent layer, 16 forms" in capsys.readouterr().out
    with pytest.raises(ModelError, match=r"takes sequences of shape \[8, 8\], but the data have \[64, 1\]"):
        check_spec(spec, ("task.data='digits-pixels'",), as_json=False)


def test_a_rehearsal_invents_rewrites_too(study: Path, tmp_path: Path) -> None:
    done = here("run", "own.toml", "--rehearse", "--json", "--home", str(tmp_path), home=study)
    trials = {point["trial"] for point in json.loads(done.stdout.splitlines()[-1])["front"]}
    assert any(str(trial).startswith("rewrite-") for trial in trials)


def test_a_changed_file_is_refused(study: Path) -> None:
    file = study / "my_rnn.keras"
    kept = file.read_bytes()
    file.write_bytes(kept + b"x")
    try:
        done = here("run", "own.toml", home=study)
    finally:
        file.write_bytes(kept)
    assert done.returncode == 2
    assert "the model my_rnn.keras of study 'own' has changed since it was started" in done.stderr
    assert "--name" in done.stderr
