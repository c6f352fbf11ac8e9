"""`brisk rewrite` from the command line: files, ledger, words."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.attempts import one_way
from experiments.cli import main
from objectives.deployment.interpreter import answers
from objectives.rewriting.tried import Request, Way
from search.isolate import Child
from spaces.backend import keras, keras3

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of Keras 3, with NumPy 2

STEPS, FEATURES, CLASSES = 6, 3, 4


def classifier(k: Any) -> Any:
    x = k.Input((STEPS, FEATURES), name="frames")
    h = k.layers.LSTM(8, return_sequences=True, name="lstm")(x)
    h = k.layers.GRU(8, name="gru")(h)
    return k.Model(x, k.layers.Dense(CLASSES, activation="softmax", name="gesture")(h))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained-enough model of Keras 3, rows it gets right, and rows without labels."""
    where = tmp_path_factory.mktemp("rewrite")
    keras3().utils.set_random_seed(1)
    model = classifier(keras3())
    model.set_weights([3 * w for w in model.get_weights()])
    model.save(where / "gestures.keras")
    x = np.random.default_rng(0).standard_normal((80, STEPS, FEATURES)).astype(np.float32)
    np.savez(where / "val.npz", x=x, y=np.asarray(model(x)).argmax(-1))
    np.savez(where / "unlabelled.npz", x=x)
    np.savez(where / "short.npz", x=x[:, :3], y=np.zeros(80, int))
    return where


def run(*arguments: Any) -> int:
    try:
        main([str(each) for each in arguments])
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0


@pytest.fixture(scope="module")
def out(folder: Path) -> Path:
    target = folder / "fast"
    model, data = folder / "gestures.keras", folder / "val.npz"
    assert (
        run("rewrite", model, "--data", data, "--out", target, "--device", "fake", "--streaming", "--max-drop", 1) == 0
    )
    return target


def test_the_file_answers_under_the_users_names_as_the_ledger_says(folder: Path, out: Path) -> None:
    report = json.loads((out / "rewrite.json").read_text())
    with np.load(folder / "val.npz") as data:
        got = answers(out / "model.tflite", {"frames": data["x"]})["gesture"]
        right = float((got.argmax(-1) == data["y"]).mean())
    chosen = next(entry for entry in report["forms"] if entry["chosen"])
    assert report["chosen"] == chosen["name"]
    assert chosen["metric"]["gesture"] == pytest.approx(right)
    assert report["proof"]["rows"] == 80
    assert report["original"]["gesture"]["score"] == 1.0


def test_the_ledger_has_every_form_with_its_reason(out: Path) -> None:
    forms = {entry["name"]: entry for entry in json.loads((out / "rewrite.json").read_text())["forms"]}
    assert {
        "loop 32",
        "loop/2 rec4",
        "stacked loop 8",
        "joined unrolled 8",
        "Keras 3 8",
        "Keras 2 8",
        "loop full8",
    } <= set(forms)
    assert forms["loop 32"]["exact"]
    assert forms["loop 8"]["output_error"] > 1e-4
    assert forms["loop/2 rec4"]["realised_bits"] == {"input": 8, "recurrent": 4, "head": 32}
    assert "died by signal 11" in forms["loop full8"]["reason"]
    assert all(entry["reason"] for entry in forms.values())
    wanted = {"name", "latency_ms", "size_bytes", "output_error", "metric", "chosen", "reason"}
    assert all(wanted <= set(entry) for entry in forms.values())


def test_the_stream_takes_the_next_frame_and_its_state(folder: Path, out: Path) -> None:
    stream = json.loads((out / "rewrite.json").read_text())["streaming"]
    assert [state["name"] for state in stream["states"]] == ["lstm_h", "lstm_c", "gru_h"]
    exact = next(form for form in stream["forms"] if form["bits"] == "32")
    assert exact["max_difference"] <= 1e-5
    assert exact["drop"] == 0.0
    assert all(form["reason"] for form in stream["forms"])
    with np.load(folder / "val.npz") as data:
        x = data["x"][:4]
    whole = answers(out / "model.tflite", {"frames": x})["gesture"]
    state = {each["name"]: np.zeros((4, *each["shape"][1:]), np.float32) for each in stream["states"]}
    for at in range(STEPS):
        answer = answers(out / "streaming.tflite", {"frames": x[:, at : at + 1], **state})
        state = {name: answer[name] for name in state}
    assert np.abs(answer["gesture"] - whole).max() < 0.3  # both may be narrow, each in its own way


def test_the_readmes_code_runs(out: Path) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S))
    code = code.replace("frame,", "np.zeros([1, 1, 3], np.float32),")
    code += "\nprint(answer['gesture'].shape, sorted(state))"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=out, check=True, capture_output=True, text=True)
    assert done.stdout.strip().endswith("(1, 4) ['gru_h', 'lstm_c', 'lstm_h']")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gestures.keras", "--data", "unlabelled.npz"], "has no labels, so that no drop .* add an array y"),
        (["gestures.keras", "--data", "short.npz"], r"x: has rows of shape \[3, 3\], but the model takes \[6, 3\]"),
        (["gestures.keras", "--data", "absent.npz"], "--data absent.npz: there is no such file"),
        (["gestures.keras", "--data", "val.npy"], "--data val.npy: .* save x and y in one .npz file"),
        (["gestures.keras", "--data", "digit"], "--data digit: is no file of rows .* did you mean 'digits"),
        (["absent.keras"], "there is no model at absent.keras"),
        (["val.npz"], "must end in"),
        (["gestures.keras", "--batch", "0"], "give whole numbers from 1 up"),
        (["gestures.keras", "--device", "nowhere"], "device 'nowhere' is not known"),
        (["gestures.keras", "--period", "soon", "--streaming"], "--period soon: give milliseconds, .* as in 10ms"),
        (["gestures.keras", "--custom", "nothing"], "write module:Name"),
        (["gestures.keras", "--scenario", "often", "--device", "local"], "scenario 'often' is not known"),
        (["gestures.keras", "--threads", "999", "--device", "local"], "threads = 999 must be at most the cores"),
        (["gestures.keras", "--streaming", "99", "--device", "fake"], "--streaming 99: the sequences have 6"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_paragraph(
    arguments: list[str], said: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert run("rewrite", *arguments, "--out", "nowhere") == 2
    told = capsys.readouterr().err
    assert re.search(said, told)
    assert "Traceback" not in told
    assert not Path("nowhere").exists()


def test_a_full_folder_is_left_alone(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("rewrite", folder / "gestures.keras", "--out", out) == 2
    assert "the folder is not empty" in capsys.readouterr().err


def test_several_batches_and_lengths_give_a_file_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = keras.Sequential([keras.Input((None, 2), name="x"), keras.layers.GRU(4), keras.layers.Dense(1)])
    model.save(tmp_path / "free.keras")
    assert run("rewrite", tmp_path / "free.keras", "--out", tmp_path / "none", "--device", "fake") == 2
    assert "takes sequences of any length" in capsys.readouterr().err
    target = tmp_path / "fast"
    asked = ("--time-steps", "3,5", "--batch", "2", "--device", "fake", "--json")
    assert run("rewrite", tmp_path / "free.keras", "--out", target, *asked) == 0
    report = json.loads(capsys.readouterr().out)
    named = [report["file"], *(part["file"] for part in report["others"])]
    assert named == ["model-b2-t3.tflite", "model-b2-t5.tflite"]
    x = np.random.default_rng(0).standard_normal((2, 5, 2)).astype(np.float32)
    (name,) = [port["name"] for port in report["inputs"]]
    (output,) = [port["name"] for port in report["outputs"]]
    assert answers(target / named[1], {name: x})[output] == pytest.approx(np.asarray(model(x)), abs=1e-5)


def test_a_model_without_recurrent_layers_is_quantised_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    k = keras3()
    k.Sequential([k.Input((5,)), k.layers.Dense(3)]).save(tmp_path / "plain.keras")
    assert run("rewrite", tmp_path / "plain.keras", "--out", tmp_path / "fast", "--device", "fake") == 0
    assert "No recurrent layer that brisk rewrites" in capsys.readouterr().out


def test_a_conversion_that_does_not_end_is_listed_and_the_next_is_tried(folder: Path, tmp_path: Path) -> None:
    request = Request(str(folder / "gestures.keras"), str(tmp_path))
    child = Child()
    rows = one_way(child, request, Way("loop", "loop", bits=("32", "8")), timeout_s=0.3)  # TensorFlow starts in seconds
    child.close()
    assert [row.name for row in rows] == ["loop 32", "loop 8"]
    assert all(row.reason == "the conversion did not end within 0.3 s" for row in rows)
