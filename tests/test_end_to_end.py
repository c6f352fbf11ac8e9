"""The way of a newcomer: a study of their own data, its front, an export; and a converter that kills its process."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
import pytest

from experiments.cli import main
from objectives.outcome import Conditions

SPEC = """
[study]
trials = 9
[task]
data = "waves.npz"
[baseline]
architecture = { cell = "lstm", units = 8 }
[space]
cell = ["gru"]
units = [8, 16, 8]
bits = [32, 8, "full8"]
lowering = ["loop"]
steps = [1, 4]
learning_rate = [1e-2]
[objectives]
quality = {}
latency = { max_processes = 2, min_processes = 2, half_width = 0.1, max_ms = 50.0 }
size = {}
[training]
epochs = 4
[search]
sampler = "random"
trial_timeout = "5m"
"""


FORMS = ("tflite", "streaming", "keras", "savedmodel", "tfserving")


def brisk(*arguments: str, home: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The installed command, as a person calls it, from another folder than the checkout."""
    command = [sys.executable, "-P", "-c", "from experiments.cli import main; main()", *arguments]
    environment = {**os.environ, "BRISK_HOME": str(home / "home")}
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0 or not check, f"brisk {' '.join(arguments)} ended with {done.returncode}: {done.stderr}"
    return done


def here(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """The same in this process, where all that a process of its own would prove has been proved: it takes seconds."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.chdir(home)
        patch.setenv("BRISK_HOME", str(home / "home"))
        patch.setattr(sys, "path", [*sys.path])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main([*arguments])
            except SystemExit as ended:
                code = int(ended.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a spec, and a home in which the spec's study has been run to its end."""
    folder = tmp_path_factory.mktemp("waves")
    rng = np.random.default_rng(0)
    slow = rng.integers(0, 2, 240)
    phase = rng.uniform(0, 6, (240, 1))
    steps = np.arange(12)[None] * np.where(slow, 0.3, 1.5)[:, None] + phase
    x = 5.0 + 2.0 * np.stack([np.sin(steps), np.cos(steps)], axis=2) + rng.normal(0, 0.1, (240, 12, 2))
    np.savez(folder / "waves.npz", x=x.astype(np.float32), y=np.where(slow, "slow", "fast"))
    (folder / "waves.toml").write_text(SPEC)
    done = brisk("run", "waves.toml", "--json", home=folder, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "run.json").write_text(done.stdout.splitlines()[-1])
    return folder


def at_once(*several: list[list[str]], home: Path) -> None:
    """Lists of commands, each list in a process of its own, all beside each other."""
    code = "import json, sys\nfrom experiments.cli import main\nfor each in json.loads(sys.argv[1]): main(each)"
    environment = {**os.environ, "BRISK_HOME": str(home / "home")}
    started = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", code, json.dumps(commands)],
            cwd=home,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for commands in several
    ]
    said = [(one.communicate(timeout=600)[0], one.returncode) for one in started]
    assert [code for _, code in said] == [0] * len(started), "\n".join(text for text, _ in said)


@pytest.fixture(scope="module")
def exported(study: Path) -> Callable[[str], Path]:
    """The best point of the study, exported in every form."""
    asked = {form: ["export", "waves", "--pick", "best", "--to", form, "--out", f"out-{form}"] for form in FORMS}
    at_once([asked[form] for form in FORMS[:2]], [asked[form] for form in FORMS[2:]], home=study)
    return lambda form: study / f"out-{form}"


def shown(study: Path) -> dict[str, Any]:
    """The JSON of `show`."""
    return dict(json.loads(here("show", "waves", "--json", home=study).stdout))


def test_a_study_ends_with_a_front_against_its_baseline(study: Path) -> None:
    summary = json.loads(brisk("show", "waves", "--json", home=study).stdout)
    assert summary == shown(study)
    assert summary == json.loads((study / "run.json").read_text())
    assert sum(summary["counts"].values()) == 9
    assert summary["training"]["sequences_per_s"] > 0
    assert summary["front"]
    assert summary["final"]
    for point in [summary["baseline"], *summary["front"]]:
        assert point["quality"]["test"] is not None
        assert point["latency_ms"]["ci"][0] <= point["latency_ms"]["median"] <= point["latency_ms"]["ci"][1]
    assert summary["baseline"]["speedup"] == pytest.approx(1.0)
    assert {"bits", "steps"} & {entry["technique"] for entry in summary["compression"]}
    assert [row["batch"] for row in summary["batch_curve"]["rows"]] == [1, 4, 16, 32]
    assert all(row["throughput_per_s"] > 0 for row in summary["batch_curve"]["rows"])
    assert summary["baseline"]["artifact"]["exporter"] == "Keras 3, static batch, TFLite dynamic range"


def test_a_converter_that_dies_costs_its_own_candidates_only(study: Path) -> None:
    summary = shown(study)
    failures = summary["failures"]
    assert failures
    assert all(failure["stage"] == "lower" and "SIGSEGV" in failure["reason"] for failure in failures)
    assert summary["counts"]["failed"] == len(failures)
    assert summary["counts"]["complete"] + summary["counts"]["stopped"] == 9 - len(failures)  # some others beat


def test_running_a_finished_study_again_changes_nothing(study: Path) -> None:
    before = shown(study)
    after = json.loads(here("run", "waves.toml", "--json", home=study).stdout.splitlines()[-1])
    assert after["counts"] == before["counts"]
    assert after["front"] == before["front"]


def test_mlflow_shows_the_study(study: Path) -> None:
    code = (
        "import json, mlflow, pathlib\n"
        "client = mlflow.MlflowClient('sqlite:///' + str(pathlib.Path('home/mlflow.db').resolve()))\n"
        "runs = client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=100)\n"
        "print(json.dumps([dict(r.data.tags) for r in runs]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=study, capture_output=True, text=True, check=True)
    tags = json.loads(done.stdout.splitlines()[-1])
    trials = [tag for tag in tags if tag.get("brisk.kind") == "trial"]
    front = {str(point["trial"]) for point in shown(study)["front"]}
    assert len(trials) == 9 + 1  # and the baseline
    (page,) = (study / "home").rglob("front.html")
    assert "Which parameters matter" in page.read_text(encoding="utf-8")
    assert {tag["brisk.trial"] for tag in trials if tag["brisk.pareto"] == "true"} == front


def test_pick_names_the_fastest(study: Path) -> None:
    point = json.loads(here("pick", "waves", "fastest", "--json", home=study).stdout)
    assert point["latency_ms"]["median"] == min(p["latency_ms"]["median"] for p in shown(study)["front"])


@pytest.mark.parametrize(
    ("form", "file"),
    [
        ("tflite", "model.tflite"),
        ("keras", "model.keras"),
        ("savedmodel", "saved_model/saved_model.pb"),
        ("tfserving", "models/waves/1/saved_model.pb"),
        ("streaming", "streaming.tflite"),
    ],
)
def test_an_export_is_verified_and_described(exported: Callable[[str], Path], form: str, file: str) -> None:
    out = exported(form)
    assert (out / file).is_file()
    assert (out / "labels.txt").read_text().split() == ["fast", "slow"]
    card = json.loads((out / "model.json").read_text())
    assert card["input"]["shape"][1:] == ([1, 2] if form == "streaming" else [12, 2])
    assert card["verification"]["rows"] > 0
    assert card["quality"]["test_stderr"] is not None
    assert [row["batch"] for row in card["batch_curve"]["rows"]] == [1, 4, 16, 32]
    assert len(card["normalisation"]["mean"]) == 2
    assert {path.name for path in out.iterdir()} - {Path(file).parts[0]} <= {
        "README.md",
        "model.json",
        "labels.txt",
        "model.config",
        "states.npz",
    }


def test_brisk_measures_the_keras_file_that_it_wrote(
    study: Path, exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = exported("keras") / "model.keras"
    short = functools.partial(Conditions, min_processes=1, max_processes=1, timeout_s=10.0)  # TensorFlow starts slowly
    monkeypatch.setattr("experiments.measure.Conditions", short)
    row = json.loads(here("measure", str(model), "--json", home=study).stdout)["models"][0]
    assert row["latency_ms"]["median"] > 0


def test_the_five_lines_of_the_card_call_the_model(exported: Callable[[str], Path]) -> None:
    out = exported("tflite")
    lines = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    assert lines
    batch = json.loads((out / "model.json").read_text())["input"]["shape"][0]
    given = f"import numpy\nx = numpy.load('../waves.npz')['x'][:{batch}]\n"
    code = given + lines[1] + f"\nassert abs(y.sum() - {batch}) < 1e-3"
    subprocess.run([sys.executable, "-c", code], cwd=out, check=True, capture_output=True)


def test_the_lines_of_a_stream_come_to_the_answer_of_the_file(exported: Callable[[str], Path]) -> None:
    out, whole = exported("streaming"), exported("tflite")
    lines = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    assert lines
    code = (
        "import numpy\nrow = numpy.load('../waves.npz')['x'][:1]\n"
        "frames = [row[:, at : at + 1] for at in range(row.shape[1])]\n"
        f"{lines[1]}\nstreamed = y\nx = row\n"
        f"import os; os.chdir({str(whole)!r})\n"
        "from ai_edge_litert.interpreter import Interpreter\n"
        "model = Interpreter('model.tflite')\nbatch = model.get_input_details()[0]['shape'][0]\n"
        "model.allocate_tensors()\n"
        "y = model.get_signature_runner('serving_default')(x=numpy.repeat(row, batch, axis=0))['y']\n"
        "assert abs(streamed - y[:1]).max() < 0.02, (streamed, y)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=out, check=True, capture_output=True)


def test_an_export_never_overwrites_by_itself(study: Path) -> None:
    (study / "taken").mkdir(exist_ok=True)
    (study / "taken" / "mine.txt").write_text("keep")
    done = brisk("export", "waves", "--to", "tflite", "--out", "taken", home=study, check=False)
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert "--overwrite" in done.stderr
    assert (study / "taken" / "mine.txt").read_text() == "keep"


def test_an_export_that_does_not_verify_is_not_left(study: Path) -> None:
    point = json.loads(here("pick", "waves", "best", "--json", home=study).stdout)
    artifact = study / "home" / "cache" / "artifacts" / f"{point['artifact']['sha256']}.tflite"
    others = [path for path in artifact.parent.glob("*.tflite") if path != artifact]
    kept = artifact.read_bytes()
    artifact.write_bytes(max(others, key=lambda path: path.stat().st_size).read_bytes())
    try:
        done = brisk("export", "waves", "--pick", "best", "--to", "tflite", "--out", "bad", home=study, check=False)
    finally:
        artifact.write_bytes(kept)
    assert done.returncode == 4, done.stderr
    assert "Nothing was left" in done.stderr
    assert not (study / "bad").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "nosuch"), "no such preset"),
        (("run", "waves.toml", "--set", "study.trails=3"), "did you mean 'trials'"),
        (("run", "waves.toml", "--set", "training.epochs=5"), "another plan"),
        (("show", "wave"), "did you mean 'waves'"),
        (("pick", "waves", "quickest"), "knee, fastest, best"),
        (("export", "waves", "--to", "onnx", "--out", "x"), "no such form"),
        (("export", "waves", "--to", "streaming", "--frames", "5", "--out", "x"), "give one of 1, 2, 3, 4, 6, 12"),
        (("export", "waves", "--trial", "999", "--to", "tflite", "--out", "x"), "no such trial"),
        (("measure", "missing.tflite"), "missing.tflite"),
    ],
)
def test_wrong_input_ends_with_one_paragraph(study: Path, arguments: tuple[str, ...], words: str) -> None:
    done = here(*arguments, home=study)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_file_of_the_front_costs_the_end_nothing_else(study: Path, tmp_path: Path) -> None:
    for name in ("waves.npz", "waves.toml"):
        shutil.copy(study / name, tmp_path)
    shutil.copytree(study / "home", tmp_path / "home")
    point = shown(study)["front"][0]
    model = tmp_path / "home" / "cache" / "artifacts" / f"{point['artifact']['sha256']}.tflite"
    model.write_bytes(model.read_bytes()[:-1])
    done = brisk("run", "waves.toml", "--trials", "10", "--json", home=tmp_path)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["final"]
    tested = {each["trial"]: each["quality"]["test"] for each in [*summary["front"], summary["baseline"]]}
    assert tested.pop(point["trial"], None) is None
    assert tested
    assert None not in tested.values()


@contextlib.contextmanager
def begun(arguments: list[str], line: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """A command that has told a line that begins so, and what it goes on to tell."""
    command = [sys.executable, "-P", "-c", "from experiments.cli import main; main()", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr
        next(told for told in running.stderr if told.startswith(line))
        yield running, running.stderr


def test_ctrl_c_keeps_everything_and_a_second_run_goes_on(tmp_path: Path) -> None:
    arguments = ["run", "digits-rows", "--rehearse", "--trials", "200", "--home", str(tmp_path)]
    with begun(arguments, "[5/") as (running, telling):
        running.send_signal(signal.SIGINT)
        started = time.monotonic()
        said = telling.read()
        assert running.wait(timeout=60) == 130
        assert time.monotonic() - started < 30
    assert "kept" in said
    assert "Traceback" not in said
    shown = json.loads(brisk("show", "digits-rows-rehearsal", "--json", "--home", str(tmp_path), home=tmp_path).stdout)
    assert (shown["final"], shown["ended"]) == (True, "interrupted")
    again = brisk(*arguments, "--trials", "60", "--json", home=tmp_path)
    assert sum(json.loads(again.stdout.splitlines()[-1])["counts"].values()) == 60


@pytest.mark.parametrize("struck", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM,)])
def test_a_second_ctrl_c_ends_a_study_at_once_and_so_does_a_signal_to_terminate(
    tmp_path: Path, struck: tuple[signal.Signals, ...]
) -> None:
    arguments = ["run", "digits-rows", "--rehearse", "--trials", "300", "--home", str(tmp_path)]
    with begun(arguments, "[5/") as (running, telling):
        children = psutil.Process(running.pid).children(recursive=True)
        started = time.monotonic()
        for one in struck:
            running.send_signal(one)
            time.sleep(0.05)
        said = telling.read()
        assert running.wait(timeout=60) == 130
        assert time.monotonic() - started < 15
    assert children
    assert not psutil.wait_procs(children, timeout=5)[1]
    assert "Traceback" not in said
    again = brisk(*arguments, "--trials", "60", "--json", home=tmp_path)
    assert sum(json.loads(again.stdout.splitlines()[-1])["counts"].values()) == 60


def test_of_two_commands_on_a_study_the_second_is_refused_and_on_a_home_both_go_on(tmp_path: Path) -> None:
    arguments = ["run", "digits-rows", "--rehearse", "--trials", "120", "--home", str(tmp_path)]
    with begun(arguments, "[1/") as (first, telling):
        first.send_signal(signal.SIGSTOP)  # or it might be done before
        second = brisk(*arguments, home=tmp_path, check=False)
        first.send_signal(signal.SIGCONT)
        assert second.returncode == 2
        assert f"is being driven by process {first.pid}; wait for it, stop it, or choose another" in second.stderr
        assert "Traceback" not in second.stderr
        other = brisk(*arguments, "--trials", "10", "--name", "other", "--json", home=tmp_path)
        assert sum(json.loads(other.stdout.splitlines()[-1])["counts"].values()) == 10
        telling.read()
        assert first.wait(timeout=60) == 0
    shown = brisk("show", "digits-rows-rehearsal", "--json", "--home", str(tmp_path), home=tmp_path)
    assert sum(json.loads(shown.stdout)["counts"].values()) == 120


FULL = """
mount -t tmpfs -o size=2m brisk {home}
brisk() {{ {python} -P -c "from experiments.cli import main; main()" run digits-rows --rehearse --home {home} "$@"; }}
brisk --trials 2000; echo "ended $?"
{python} -P -c "from experiments.cli import main; main()" show digits-rows-rehearsal --json --home {home}
mount -o remount,size=64m {home}
brisk --trials 300 --json
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "x", "/mnt"], check=False, capture_output=True).returncode
    != 0,
    reason="nobody may mount a file system here",
)
def test_a_file_system_that_fills_up_ends_the_run_in_words_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    home = tmp_path / "small"
    home.mkdir()
    script = FULL.format(home=home, python=sys.executable)
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert "ended 2" in done.stdout
    assert "everything finished before is kept" in done.stderr
    assert "Traceback" not in done.stderr
    full, larger = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert 0 < sum(full["counts"].values()) < 2000
    assert sum(larger["counts"].values()) >= 300
    assert larger["counts"]["complete"] >= full["counts"]["complete"]
