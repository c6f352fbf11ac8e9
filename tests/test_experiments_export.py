"""`brisk export` short of writing: what may be chosen, what passes, what is refused, and what the card says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rehearsed import bench, plan
from sample_study import outcome, point, study

from experiments import ui
from experiments.card import card_of, readme
from experiments.export import FLOAT_TOLERANCE, chosen, export, export_point, judge, proof
from experiments.landing import landing
from objectives.artifact import Artifact
from objectives.bench import TaskSpec
from objectives.cache import Cache
from objectives.outcome import Outcome
from search.history import History, assembled, read
from search.study import Study
from spaces.errors import DataError, InputError, StudyError, VerificationError
from spaces.genotype import Deployment
from spaces.record import from_json, to_json
from spaces.signature import Signature

WORDS = Signature("classification", 12, 0, 2, vocabulary=100, masked=True)
WAVES = Signature("classification", 12, 1, 2, mean=(5.0,), std=(2.0,))


def found(**changes: Any) -> dict[str, Any]:
    """What `verify` gives for a perfect float form of `outcome(n)`."""
    quality = {"validation": 0.9, "test": 0.89, "test_stderr": 0.01}
    told = {"rows": 256, "max_difference": 0.0, "largest_output": 1.0, "output_error": 0.0}
    return {**told, "score": 0.9, "keras_score": 0.9, "quality": quality} | changes


def quantised(validation: float) -> Outcome:
    known = outcome(1)
    assert known.genotype.deployment.bits == "8"
    assert known.quality
    return replace(known, quality=replace(known.quality, validation=validation, error=1 - validation))


def test_a_quantised_file_is_held_to_the_score_the_study_recorded_and_to_no_other() -> None:
    far = found(max_difference=0.3)
    judge(far, "tflite", quantised(0.9))
    with pytest.raises(VerificationError, match=r"scores 0\.9 on the validation part.*recorded 0\.905"):
        judge(far, "tflite", quantised(0.905))
    with pytest.raises(VerificationError, match=r"differs from the trained Keras model by 0\.3"):
        judge(far, "keras", quantised(0.9))  # the float model is written, whatever the bits
    judge(found(), "keras", quantised(0.5))


@pytest.mark.parametrize("form", ["tflite", "savedmodel"])
def test_a_float_form_is_held_to_its_outputs_relative_to_the_largest(form: str) -> None:
    known = quantised(0.9)
    deployment = replace(known.genotype.deployment, bits="32")
    known = replace(known, genotype=replace(known.genotype, deployment=deployment))
    judge(found(max_difference=50 * FLOAT_TOLERANCE, largest_output=100.0), form, known)
    for wrong in (2 * FLOAT_TOLERANCE, float("nan")):
        with pytest.raises(VerificationError, match="Nothing was left"):
            judge(found(max_difference=wrong), form, known)


def history(baseline: Outcome | None, told: dict[int, Outcome]) -> History:
    kept = {"plan": to_json(plan(Path("home"), baseline=baseline.genotype if baseline else None))}
    kept |= {"baseline": to_json(baseline)} if baseline else {}
    rows: list[tuple[int, str, dict[str, Any]]] = [
        (number, "COMPLETE", {"outcome": to_json(one)}) for number, one in told.items()
    ]
    return assembled("s", kept, [*rows, (7, "RUNNING", {"genotype": to_json(outcome(7).genotype)})])


@pytest.mark.parametrize(
    ("trial", "words"),
    [
        ("baseline", "--trial baseline: cannot be exported, for it is failed"),
        ("²", "--trial ²: study 's' has no such trial"),
        ("9", "no such trial"),
        ("7", "still being trained"),
        ("5", "it is infeasible"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_words(trial: str, words: str) -> None:
    past = history(outcome(1, state="failed"), {4: outcome(4), 5: outcome(5, state="infeasible")})
    with pytest.raises(InputError, match=words):
        chosen(past, "knee", trial)
    assert chosen(past, "knee", "4")[0] == 4


def test_the_baseline_can_be_chosen_where_there_is_one() -> None:
    assert chosen(history(outcome(0), {}), "knee", "baseline")[0] == "baseline"
    with pytest.raises(InputError, match="no such trial"):
        chosen(history(None, {}), "knee", "baseline")


def test_a_rehearsal_cannot_be_exported(tmp_path: Path) -> None:
    Study.start(tmp_path, "s", plan(tmp_path)).close()
    with pytest.raises(InputError, match="figures are invented"):
        export_point(
            tmp_path,
            "s",
            rule=None,
            trial=None,
            to="tflite",
            out=tmp_path / "x",
            overwrite=False,
            frames=None,
            as_json=True,
        )


def test_what_cannot_be_read_back_did_not_verify(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"could not be loaded and run: FileNotFoundError.*Nothing was left"):
        proof(str(tmp_path), "builtins:open", {"file": str(tmp_path / "gone")})


def test_the_card_gives_the_quality_of_what_was_written() -> None:
    known, base = quantised(0.88), outcome(0)
    chosen_point = point(3, known, base)
    card = card_of(WAVES, known, chosen_point, found(), study="s", to="keras")
    assert card["quality"] == {"metric": "accuracy", **found()["quality"]}
    assert card["baseline"]["drop"] == pytest.approx(0.968 - 0.9)
    assert "this form was not measured" in card["latency_ms"]["of"]
    assert card["verification"]["held_to"] == "outputs"
    assert "accuracy 0.8900 +- 0.0100 on the test part" in readme(card)
    assert "reset_all_variables" not in readme(card_of(WAVES, known, chosen_point, found(), study="s", to="tflite"))
    assert card["normalisation"]["mean"] == [5.0]
    assert card_of(WAVES, known, chosen_point, found(), study="s", to="tflite")["latency_ms"]["of"] == (
        "the .tflite artifact"
    )


def test_the_card_of_a_file_that_keeps_its_state_resets_it() -> None:
    known = quantised(0.88)
    assert known.artifact
    kept = replace(known, artifact=replace(known.artifact, keeps_state=True))
    stateful = {**point(3, kept, outcome(0)), "artifact": to_json(kept.artifact)}
    told = readme(card_of(WAVES, kept, stateful, found(), study="s", to="tflite"))
    assert "model.reset_all_variables()  # before each call: its state would live on\ny = call(x=x)" in told


def test_the_card_tells_of_other_batch_sizes_and_of_what_its_training_bought() -> None:
    twin = {"technique": "distillation", "setting": "0.5", "twin": "twin-1", "latency_ratio": 1.0, "bytes_ratio": 1.0}
    twin |= {"compressed_ratio": 1.0, "error_change": -0.012, "tested": True, "verdict": "more accurate"}
    chosen_point = {**point(3, quantised(0.9), None), "twins": [twin]}
    card = card_of(WAVES, quantised(0.9), chosen_point, found(), study="s", to="tflite")
    card["batch_curve"] = study(4)[0]["batch_curve"]
    told = readme(card)
    assert "distillation 0.5: more accurate (1.00× in time, -1.2 pt in error on test data)" in told
    assert "From a batch of 4 on, throughput grows by less than 10 %." in told
    assert "| 4 | 0.100 | 0.0250 | 40,000 | 684 |  |" in told
    assert "| 32 | 0.770 | 0.0241 | 41,558 | 8,887 | excluded: memory 8887 KiB is over the bound of 4096 |" in told
    assert card["twins"] == [twin]


def test_the_card_of_a_token_model_tells_its_vocabulary() -> None:
    card = card_of(WORDS, quantised(0.9), point(3, outcome(1), None), found(), study="s", to="tflite")
    assert card["input"]["units"] == "tokens 0..99, 0 pads"
    assert card["normalisation"] is None
    assert "normalis" not in readme(card)
    whole = replace(WORDS, masked=False)
    card = card_of(whole, quantised(0.9), point(3, outcome(1), None), found(), study="s", to="tflite")
    assert card["input"]["units"] == "tokens 0..99"


def test_an_artifact_is_found_in_the_home_as_it_lies_now(tmp_path: Path) -> None:
    sha256 = Cache(tmp_path / "old").keep_artifact(b"model")
    (tmp_path / "old").rename(tmp_path / "new")
    assert Cache(tmp_path / "new").artifact(sha256).read_bytes() == b"model"
    plain = to_json(outcome(1).artifact)
    assert from_json(Artifact, {"path": "/gone", **plain}) == from_json(Artifact, plain)  # of an older study


def test_nothing_is_trained_for_an_export(tmp_path: Path) -> None:
    from experiments.exporters import write

    known = to_json(outcome(1))
    task = TaskSpec(data="parity", time_steps=6, samples=60)
    with pytest.raises(StudyError, match=r"has no weights that these versions trained; run the study again"):
        write(to_json(bench(tmp_path, task=task)), known, "keras", str(tmp_path), "s")
    with pytest.raises(DataError, match="has changed since the study read it"):
        write(to_json(bench(tmp_path, task=task, data_digest="other")), known, "keras", str(tmp_path), "s")


class Tracking(BaseHTTPRequestHandler):
    """As much of an MLflow server as says where the study "s" of that `identity` is."""

    identity = ""

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        run = {"run_id": "abc", "run_name": "s", "experiment_id": "3", "status": "FINISHED", "artifact_uri": "x"}
        told = {"brisk.kind": "study", "brisk.study": "s", "brisk.id": self.identity}
        tags = [{"key": key, "value": value} for key, value in told.items()]
        answer: dict[str, Any] = {}
        if self.path.startswith("/api/2.0/mlflow/experiments/search"):
            answer = {"experiments": [{"experiment_id": "3", "name": "brisk/digits", "lifecycle_stage": "active"}]}
        elif self.path.startswith("/api/2.0/mlflow/runs/search"):
            answer = {"runs": [{"info": run, "data": {"tags": tags}}]}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Tracking) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_ui_names_the_page_on_the_studys_own_server_and_starts_none(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    kept = replace(plan(tmp_path), tracking=server, evaluator="objectives.judge")
    Study.start(tmp_path, "s", kept).close()
    monkeypatch.setattr(Tracking, "identity", read(tmp_path, "s").id)
    ui.serve(tmp_path, "s", open_browser=False, say=said.append)
    assert said[0].startswith(f"the front of s: {server}/#/experiments/3/runs?")
    assert len(said) == 2
    assert not (tmp_path / "mlflow-server.log").exists()
    Study.start(tmp_path, "other", kept).close()
    with pytest.raises(StudyError, match="brisk sync other"):
        ui.serve(tmp_path, "other", open_browser=False)
    Study.start(tmp_path, "tried-rehearsal", plan(tmp_path)).close()
    with pytest.raises(StudyError, match="its figures are invented, and MLflow holds none; see `brisk show tried-re"):
        ui.serve(tmp_path, "tried-rehearsal", open_browser=False)


def landed(out: Path, overwrite: bool = False, **needed: Path) -> None:
    with landing(out, overwrite, {name.replace("_", " "): path for name, path in needed.items()}) as folder:
        (folder / "model").write_text("new")


def test_what_is_written_takes_its_place_and_no_folder_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    landed(tmp_path / "a" / "new")
    assert (tmp_path / "a" / "new" / "model").read_text() == "new"
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "link").symlink_to(out)
    monkeypatch.chdir(out)
    landed(Path())  # where we are, for it is empty
    assert [one.name for one in out.iterdir()] == ["model"]
    monkeypatch.chdir(tmp_path)
    before = out.stat().st_ino
    (out / "old").mkdir()
    landed(tmp_path / "link", overwrite=True)
    assert (out.stat().st_ino, [one.name for one in out.iterdir()]) == (before, ["model"])


def test_what_goes_wrong_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), landing(out, True, {}) as folder:
        (folder / "model").write_text(str(1 / 0))
    assert [one.name for one in out.iterdir()] == ["old"]


def test_what_cannot_be_moved_away_leaves_all_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a disk of its own within the folder."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a", "b", "lost+found"):
        (out / name).write_text("old")
    rename = Path.rename

    def held(one: Path, to: Path) -> Path:
        if one.name == "b":
            raise OSError(16, "Device or resource busy", str(one))
        return rename(one, to)

    monkeypatch.setattr(Path, "rename", held)
    with pytest.raises(InputError, match=r"b cannot be moved out of the way \(Device or resource busy\)"):
        landed(out, overwrite=True)
    assert {one.name: one.read_text() for one in out.iterdir()} == dict.fromkeys(("a", "b", "lost+found"), "old")
    monkeypatch.undo()
    landed(out, overwrite=True)
    assert sorted(one.name for one in out.iterdir()) == ["lost+found", "model"]


def test_nothing_that_is_needed_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    (out / "home").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"not empty; name another one, or add --overwrite"):
        landed(out)
    with pytest.raises(InputError, match=r"not empty, and the home is in it; name another one$"):
        landed(out, overwrite=True, the_home=out / "home")
    with pytest.raises(InputError, match=r"not empty, and the folder that you are in is in it; name another one$"):
        landed(Path(), overwrite=True)
    assert (out / "home").is_dir()


def test_labels_in_a_file_of_their_own_are_needed_too(tmp_path: Path) -> None:
    """As every file that the spec names is."""
    (labels := tmp_path / "labels").mkdir()
    (labels / "y.npy").touch()
    where = bench(tmp_path / "home", task=TaskSpec(data="x.npy", targets="labels/y.npy"), root=str(tmp_path))
    with pytest.raises(InputError, match=r"not empty, and the file of targets is in it; name another one$"):
        export(where, WAVES, outcome(1), point(1, outcome(1), outcome(0)), study="s", to="tflite", out=labels,
               overwrite=True)  # fmt: skip
    assert (labels / "y.npy").exists()


def test_a_form_of_narrow_activations_has_no_stream(tmp_path: Path) -> None:
    known = outcome(1)
    static = replace(known, genotype=replace(known.genotype, deployment=Deployment("keras", bits="full8")))
    with pytest.raises(InputError, match=r"--to streaming: 1 is of full8, activations too"):
        export(
            bench(tmp_path), WAVES, static, point(1, static, outcome(0)), study="s", to="streaming", out=tmp_path / "x"
        )
