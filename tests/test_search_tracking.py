import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sample_study import outcome, study

from search import tracking
from search.ledger import curve
from search.outbox import Outbox
from spaces.signature import Signature

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


PREDECESSOR = f"""
    import os, signal, sys
    sys.path.insert(0, {str(ROOT / "tests")!r})
    from pathlib import Path
    from sample_study import study
    from search import tracking
    summary, outcomes = study(6)
    store = tracking.home_store(Path(sys.argv[1]))
    tracking.project(*store, "one", summary, outcomes)
    killed = tracking.Projection(*store, "killed", summary["task"])
    killed.trial(*outcomes[0])
    killed._log = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # dies with the run made and nothing in it
    killed.trial(*outcomes[1])
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A new home that two processes open at once, one of which is killed while it ships a second study.

    One for the module: a store costs seconds of migration, a process seconds of importing MLflow.
    """
    home = tmp_path_factory.mktemp("home")
    other = subprocess.Popen([sys.executable, "-c", textwrap.dedent(PREDECESSOR), str(home)], cwd=ROOT)
    summary, outcomes = study(6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tracking.project(*tracking.home_store(home), "two", summary, outcomes)
    assert other.wait(120) == -signal.SIGKILL
    return home


def runs(home, name):
    """What MLflow shows of a study: (parent, trial -> child), asked of MLflow itself."""
    client = tracking._client(tracking.home_store(home)[0])
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = [run for run in client.search_runs(experiments) if run.data.tags.get("brisk.study") == name]
    parents = [run for run in found if run.data.tags["brisk.kind"] == "study"]
    children = [run for run in found if run.data.tags["brisk.kind"] == "trial"]
    assert len(parents) == 1
    assert all(run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id for run in children)
    by_trial = {run.data.tags["brisk.trial"]: run for run in children}
    assert len(by_trial) == len(children), "a trial has two runs"
    return parents[0], by_trial


def shown(home, name):
    """Everything visible of a study, to compare two states."""
    parent, children = runs(home, name)
    return [(run.info.run_id, run.info.status, run.data.to_dictionary()) for run in (parent, *children.values())]


def test_a_study_is_shown_run_by_run_and_a_second_time_changes_nothing(home):
    summary, outcomes = study(12)
    summary["study"] = "first"
    files = {"front.html": "<p>front</p>", "front.png": b"png"}
    tracking.project(*tracking.home_store(home), "first", summary, outcomes, files)
    parent, children = runs(home, "first")
    assert set(children) == {str(number) for number, _ in outcomes}
    assert parent.info.status == "FINISHED"
    assert parent.data.params["data"] == "digits-pixels"
    assert parent.data.metrics["pareto_size"] == len(summary["front"])
    assert parent.data.metrics["training_sequences_per_s"] == 4210.4
    assert parent.data.metrics["best_latency_ms"] == min(
        o.measurement.median_ms for _, o in outcomes[1:] if o.measurement
    )
    one = children["1"]
    assert one.data.params["cell"] == "gru"
    assert one.data.metrics["latency_ms"] == pytest.approx(outcome(1).measurement.median_ms)
    assert one.data.metrics["speedup"] == pytest.approx(5.31 / outcome(1).measurement.median_ms)
    assert (children["5"].info.status, children["5"].data.tags["brisk.stage"]) == ("FAILED", "lower")
    assert children["9"].data.tags["brisk.feasible"] == "false"
    front = {str(point["trial"]) for point in summary["front"]}
    assert {trial for trial, run in children.items() if run.data.tags["brisk.pareto"] == "true"} == front
    artifacts = Path(parent.info.artifact_uri)
    assert (artifacts / "front.html").read_text() == "<p>front</p>"
    assert artifacts.is_relative_to(home.resolve())
    view, page = tracking.pages_of(tracking.home_store(home)[0], "first")
    assert "viewStateShareKey=brisk-first" in view
    assert parent.info.run_id in page
    before = shown(home, "first")
    tracking.project(*tracking.home_store(home), "first", summary, outcomes, files)
    assert shown(home, "first") == before


def test_a_candidate_that_leaves_the_front_is_untagged_and_fresh_figures_replace_old_ones(home):
    summary, outcomes = study(6, tested=False)
    store = tracking.Projection(*tracking.home_store(home), "moving", summary["task"])
    for number, found in outcomes:
        store.trial(number, found)
    store.front(summary, outcomes)
    left = summary["front"][0]["trial"]
    again = outcome(summary["front"][1]["trial"], tested=True)
    store.trial(summary["front"][1]["trial"], again)
    store.front({**summary, "front": summary["front"][1:]}, outcomes)
    _, children = runs(home, "moving")
    assert children[str(left)].data.tags["brisk.pareto"] == "false"
    assert children[str(summary["front"][1]["trial"])].data.metrics["test_accuracy"] == again.quality.test


def test_two_processes_share_a_new_home(home):
    for name in ("one", "two"):
        assert len(runs(home, name)[1]) == 6


def test_a_process_killed_while_it_ships_leaves_runs_that_are_completed(home):
    assert runs(home, "killed")[1]["1"].info.status == "RUNNING"
    summary, outcomes = study(6)
    tracking.project(*tracking.home_store(home), "killed", summary, outcomes)
    parent, children = runs(home, "killed")
    assert len(children) == 6
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED", "FAILED"}
    assert "latency_ms" in children["1"].data.metrics


def test_a_dead_server_never_stops_a_study_and_sync_completes_it_later(home):
    summary, outcomes = study(6)
    outbox = Outbox(lambda: tracking.Projection("http://127.0.0.1:9", "", "late", summary["task"]), retry_s=60)
    started = time.monotonic()
    for number, found in outcomes:
        outbox.put(number, found)
    outbox.show(summary)
    assert time.monotonic() - started < 0.5
    assert not outbox.close(timeout_s=30)
    assert outbox.pending == 6
    assert "127.0.0.1" in outbox.reason
    tracking.project(*tracking.home_store(home), "late", summary, outcomes)
    assert len(runs(home, "late")[1]) == 6


def test_the_outbox_ships_to_the_store(home):
    summary, outcomes = study(4)
    outbox = Outbox(lambda: tracking.Projection(*tracking.home_store(home), "posted", summary["task"]))
    for number, found in outcomes:
        outbox.put(number, found)
    outbox.show(summary)
    assert outbox.close(timeout_s=60), outbox.reason
    assert len(runs(home, "posted")[1]) == 4


class Sink:
    """A store in memory, which refuses the trials in `bad`."""

    def __init__(self, bad=()):
        self.bad, self.trials, self.summary, self.gate = set(bad), {}, None, threading.Event()
        self.gate.set()

    def trial(self, number, found):
        self.gate.wait()
        if number in self.bad:
            raise RuntimeError(f"no {number}")
        self.trials[number] = found

    def front(self, summary, outcomes):
        self.summary = summary


def test_one_bad_trial_does_not_hold_up_the_others():
    sink = Sink(bad={2})
    outbox = Outbox(lambda: sink, retry_s=0.01)
    for number in range(5):
        outbox.put(number, outcome(number))
    assert not outbox.close(timeout_s=5)
    assert set(sink.trials) == {0, 1, 3, 4}
    assert (outbox.pending, outbox.reason) == (1, "RuntimeError: no 2")


def test_what_failed_is_tried_again_and_the_newest_state_wins():
    sink = Sink(bad={1})
    sink.gate.clear()
    outbox = Outbox(lambda: sink, retry_s=0.01)
    newer = replace(outcome(1), notes=("measured again",))
    outbox.put(1, outcome(1))
    outbox.put(1, newer)
    outbox.show({"front": "old"})
    outbox.show({"front": "new"})
    sink.gate.set()
    sink.bad.clear()
    assert outbox.close(timeout_s=5)
    assert sink.trials == {1: newer}
    assert sink.summary == {"front": "new"}


def test_the_front_is_shown_while_trials_come_faster_than_they_are_shipped():
    sink, shown = Sink(), threading.Event()
    sink.front = lambda summary, outcomes: shown.set()
    sink.trial = lambda number, found: None if shown.is_set() else outbox.put(number + 1, found)  # there is a next one
    outbox = Outbox(lambda: sink)
    outbox.put(0, outcome(0))
    outbox.show({"front": []})
    assert shown.wait(5)
    assert outbox.close(timeout_s=5)


def test_a_slow_server_is_not_rested_for():
    """Only what costs the processor is: waiting takes nothing from the search."""
    sink = Sink()
    sink.trial = lambda number, found: time.sleep(0.1)
    outbox = Outbox(lambda: sink)
    for number in range(6):
        outbox.put(number, outcome(number))
    until = time.monotonic() + 4  # nine times 0.1 s for each would be 5.4 s more
    while outbox.pending and time.monotonic() < until:
        time.sleep(0.01)
    assert outbox.pending == 0
    assert outbox.close(timeout_s=5)


def test_closing_waits_no_longer_than_it_was_told():
    sink = Sink()
    sink.gate.clear()
    outbox = Outbox(lambda: sink)
    outbox.put(1, outcome(1))
    started = time.monotonic()
    assert not outbox.close(timeout_s=0.2)
    assert time.monotonic() - started < 2
    sink.gate.set()


def test_who_was_given_no_more_time_ships_no_more():
    """Another goes on with the rest: two that take turns would read all runs of the study again for each trial."""
    sink = Sink()
    sink.trial = lambda number, found: time.sleep(0.05)
    outbox = Outbox(lambda: sink)
    for number in range(200):
        outbox.put(number, outcome(number))
    assert not outbox.close(timeout_s=0.2)
    left = outbox.pending
    assert left > 150
    time.sleep(0.3)
    assert outbox.pending == left


def test_the_curves_only_get_better_and_leave_the_baseline_out():
    summary, outcomes = study(24)
    steps = curve(summary, outcomes)
    assert [step for step, _ in steps] == list(range(1, 24))
    for key, sign in (("best_error", -1), ("best_latency_ms", -1), ("hypervolume", 1)):
        values = [sign * figures[key] for _, figures in steps if key in figures]
        assert values == sorted(values)
    assert steps[-1][1]["pareto_size"] == len(summary["front"])
    assert curve(summary, outcomes, since=20) == steps[20:]


def test_a_registered_model_runs_wherever_numpy_and_litert_are(home, tmp_path):
    model = ROOT / "objectives/latency/reference.tflite"
    from objectives.deployment.interpreter import Interpreter, predict

    interpreter = Interpreter(model_path=str(model))
    [details], [result] = interpreter.get_input_details(), interpreter.get_output_details()
    shape = [int(size) for size in details["shape"]]
    x = np.random.default_rng(0).normal(size=(3, *shape[1:])).astype(np.float32)
    signature = Signature("classification", shape[1], shape[2] if len(shape) > 2 else 0, int(result["shape"][-1]))
    summary, outcomes = study(3)
    store = tracking.Projection(*tracking.home_store(home), "chosen", summary["task"])
    store.trial(*outcomes[1])
    versions = [store.register(1, model, signature, name="digits-knee", aliases=("knee",)) for _ in range(2)]
    assert versions == [1, 2]
    np.save(tmp_path / "x.npy", x)
    code = """
        import sys, numpy as np, mlflow
        uri, folder = sys.argv[1:]
        mlflow.set_tracking_uri(uri)
        model = mlflow.pyfunc.load_model("models:/digits-knee@knee")
        x = np.load(folder + "/x.npy")
        np.save(folder + "/named.npy", model.predict({"x": x}))
        assert "tensorflow" not in sys.modules
    """
    blind = {**os.environ, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", textwrap.dedent(code), tracking.home_store(home)[0], str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=blind, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "named.npy"), predict(model, x))


def test_studies_of_one_name_keep_apart_and_a_parameter_waits_till_it_is_known(home):
    """As two people's on one server, or one's that was begun anew."""
    summary, outcomes = study(6)
    blank = {**summary, "task": {**summary["task"], "time_steps": None}}
    store = tracking.home_store(home)
    mine = tracking.project(*store, "shared", blank, outcomes, identity="a" * 32)
    theirs = tracking.project(*store, "shared", summary, outcomes[:2], identity="b" * 32)
    assert mine._parent_id != theirs._parent_id
    assert len(mine._runs) == 6
    assert len(theirs._runs) == 2
    assert tracking.pages_of(store[0], "shared", "a" * 32) != tracking.pages_of(store[0], "shared", "b" * 32)
    assert tracking.pages_of(store[0], "shared") is None
    assert "time_steps" not in mine._client.get_run(mine._parent_id).data.params
    known = {**summary, "task": {**summary["task"], "time_steps": 64}}
    tracking.project(*store, "shared", known, outcomes, identity="a" * 32)
    assert mine._client.get_run(mine._parent_id).data.params["time_steps"] == "64"


def test_a_copied_home_writes_into_itself(home, tmp_path):
    summary, outcomes = study(6)
    tracking.project(*tracking.home_store(home), "copied", summary, outcomes, {"front.html": "<p>old</p>"})
    copy = tmp_path / "copy"
    shutil.copytree(home, copy)  # with the log of what the store has not yet put into its file
    code = f"""
        import sys
        sys.path.insert(0, {str(ROOT / "tests")!r})
        from pathlib import Path
        from sample_study import study
        from search import tracking
        store = tracking.home_store(Path(sys.argv[1]))
        tracking.project(*store, "copied", *study(6), {{"front.html": "<p>new</p>"}})
    """  # a process of its own, as a copied home's are: MLflow remembers the folder of every run that it wrote
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(copy)], cwd=ROOT, check=True)
    parents = [runs(place, "copied")[0] for place in (home, copy)]
    told = [(Path(parent.info.artifact_uri) / "front.html").read_text() for parent in parents]
    assert told == ["<p>old</p>", "<p>new</p>"]
    assert Path(parents[1].info.artifact_uri).is_relative_to(copy.resolve())
