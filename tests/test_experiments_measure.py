"""`brisk measure` on files of every kind, and what it says of files that are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments.measure import _cells, check_model, measure_models, measured
from objectives.latency import meter
from objectives.latency.devices.local import REFERENCE
from objectives.latency.meter import open_litert, open_tensorflow
from objectives.outcome import Conditions
from spaces.backend import tf
from spaces.errors import InputError, ModelError


def test_rows_compare_with_the_fastest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, large = tmp_path / "small.tflite", tmp_path / "large.tflite"
    content = REFERENCE.read_bytes()
    small.write_bytes(content)
    large.write_bytes(content + bytes(len(content)))
    report = measure_models([large, small, small], device="fake", as_json=True)
    assert json.loads(capsys.readouterr().out) == report
    slow, fast, same = report["models"]
    assert [row["model"] for row in report["models"]] == [str(large), str(small), str(small)]
    assert slow["times_fastest"] == pytest.approx(
        (3 + 4 * len(content) / 1000) / (3 + 2 * len(content) / 1000), rel=0.02
    )
    assert not slow["ties_with_fastest"]
    assert fast["ties_with_fastest"]
    assert same["ties_with_fastest"]
    assert fast["throughput_per_s"] == pytest.approx(1000 / fast["latency_ms"]["median"])
    assert set(fast["latency_ms"]) >= {"median", "ci", "converged", "scenario", "batch", "threads", "device"}


def test_the_table_names_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    measure_models([REFERENCE, REFERENCE], device="fake", scenario="paced:10ms")
    said = capsys.readouterr().out
    assert "fake, paced:10ms, 1 thread, batch 1" in said
    assert said.count("reference.tflite") == 2


def test_a_models_name_is_printed_as_it_is_and_marks_are_those_of_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("[bold]x[").mkdir()
    path = Path("[bold]x[", "[a]:smile:.tflite")
    shutil.copy(REFERENCE, path)
    report = measure_models([path], device="fake")
    assert str(path) in capsys.readouterr().out
    (row,) = report["models"]
    assert _cells({**row, "trusted": False})[0].startswith("!")
    assert _cells({**row, "latency_ms": {**row["latency_ms"], "converged": False}})[0].startswith("~")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.tflite", None, "there is no model at"),
        ("notes.txt", b"hello", r"must end in \.tflite, \.keras"),
        ("broken.tflite", b"hello, world", "must have b'TFL3' at byte 4, but got b'o, w'"),
        ("broken.keras", b"hello", "must have b'PK' at byte 0"),
        ("broken.h5", b"", "damaged or misnamed"),
    ],
)
def test_what_is_no_model_is_refused(name: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=said):
        check_model(path)


def test_a_folder_must_be_a_savedmodel(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"without saved_model\.pb"):
        check_model(tmp_path)


def test_where_no_model_can_be_run_the_first_reason_is_given(tmp_path: Path) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(REFERENCE.read_bytes()[:2000])
    with pytest.raises(ModelError, match=r"no model could be measured; .*broken\.tflite"):
        measured([broken], "local", Conditions(max_processes=1, min_processes=1, timeout_s=1))


@pytest.mark.filterwarnings("ignore")  # of the libraries that save the models
def test_keras_files_and_savedmodels_are_measured_beside_tflite(tmp_path: Path) -> None:
    from spaces.backend import keras, keras3

    files = [tmp_path / name for name in ("two.h5", "three.keras", "saved", "copy.tflite")]
    for version, path in ((keras, files[0]), (keras3(), files[1])):
        model = version.Sequential([version.Input((6, 3)), version.layers.GRU(4), version.layers.Dense(2)])
        model.save(path)
    tf.saved_model.save(keras.models.load_model(files[0], compile=False), str(files[2]))
    shutil.copy(REFERENCE, files[3])
    report = measured(files, "local", Conditions(batch=3, min_processes=1, max_processes=1, timeout_s=10))
    rows = report["models"]
    assert [row.get("failed") for row in rows] == [None] * 4
    assert [row["latency_ms"]["batch"] for row in rows] == [3, 3, 3, 1]
    assert all(row["latency_ms"]["median"] > 0.01 for row in rows)


@pytest.mark.filterwarnings("ignore")  # of the library that saves the model
def test_a_keras_file_may_need_a_length_and_code_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import tf_keras\nclass Twice(tf_keras.layers.Layer):\n    def call(self, x):\n        return 2 * x\n"
    (tmp_path / "measured_layers.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    from measured_layers import Twice

    from spaces.backend import keras

    path = Path("mine.h5")
    keras.Sequential([keras.Input((None, 3)), Twice(), keras.layers.GRU(2)]).save(path)
    short = Conditions(min_processes=1, max_processes=1, timeout_s=10)
    (row,) = measured([path], "local", short, time_steps=5, custom=("measured_layers:Twice",))["models"]
    assert "failed" not in row
    with pytest.raises(ModelError, match="give --time-steps"):
        measured([path], "local", short, custom=("measured_layers:Twice",))
    with pytest.raises(InputError, match="--time-steps: --device fake takes no such option; leave it out"):
        measured([path], "fake", short, time_steps=5)
    with pytest.raises(InputError, match="--custom: of use to none of these files; leave it out"):
        measured([REFERENCE], "local", short, custom=("measured_layers:Twice",))


def test_a_model_of_a_fixed_batch_is_timed_at_that_and_its_inputs_are_not_swapped(tmp_path: Path) -> None:
    """A graph function takes keywords by the alphabet."""
    from spaces.backend import keras

    left, right = keras.Input((4, 3), batch_size=5, name="left"), keras.Input((4, 2), batch_size=5, name="again")
    joined = keras.layers.Concatenate()([left, right])
    keras.Model([left, right], keras.layers.Dense(2)(joined)).save(path := tmp_path / "two.keras")
    for how in ("function", "predict"):
        asked = {"kind": "keras", "path": str(path), "how": how}
        assert open_tensorflow(asked, 1).batch == 5
        answer, _ = meter._keras(asked, 1)
        x = {"left": tf.ones((5, 4, 3)), "again": tf.zeros((5, 4, 2))}
        wanted = keras.models.load_model(path, compile=False)([*x.values()])
        np.testing.assert_allclose(tf.nest.flatten(answer(**x))[0], wanted, rtol=1e-5)
    with pytest.raises(ValueError, match="it takes sequences of 4 steps and no others"):
        meter._keras({**asked, "time_steps": 9}, 1)


def test_a_tflite_of_free_length_needs_one(tmp_path: Path) -> None:
    """The interpreter would time a single step."""
    summed = tf.function(lambda x: tf.reduce_sum(x, axis=1))
    traced = summed.get_concrete_function(tf.TensorSpec((1, None, 3), tf.float32))
    (path := tmp_path / "free.tflite").write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([traced]).convert())
    with pytest.raises(ValueError, match=r"has the free shape \[1, -1, 3\]: give --time-steps"):
        open_litert(str(path), 1, 1)
    opened = open_litert(str(path), 1, 1, 7)
    opened.feed(0)
    opened.call()
    assert opened.batch == 1
