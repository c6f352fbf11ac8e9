"""Rungs: a training that is stopped, or dies, is taken up where it was."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_objectives_fit import recurrent, sums

from objectives.bench import TrainingSpec
from objectives.cache import Cache
from objectives.training.fit import fit
from objectives.training.rungs import Rungs, Stopped, epochs_of, learned_at
from spaces.genotype import Training

SPEC = TrainingSpec(epochs=6, batch_size=32)
PLAIN = Training(2e-2)


def rungs(home: Path, answers: dict[int, str], asked: list[tuple[int, int, float]]) -> Rungs:
    def goes_on(rung: int, epoch: int, error: float, left_s: float) -> str:
        assert 0 < left_s < 60
        asked.append((rung, epoch, error))
        return answers.get(rung, "")

    return Rungs((2, 4), lambda told: 1 - told["validation_metric"], goes_on, Cache(home), "k")


def trained(
    training: Training = PLAIN, spec: TrainingSpec = SPEC, **changes: Any
) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
    model, heard = recurrent(), []
    history = fit(model, sums(), training, spec, seed=3, emit=heard.append, **changes)
    return model.get_weights(), history, heard


def test_rungs_are_epochs_before_the_last() -> None:
    assert epochs_of((0.2, 0.5), 30) == (6, 15)
    assert epochs_of((0.01, 0.02, 0.99), 3) == (1,)
    assert epochs_of((), 30) == ()


def test_a_kept_training_tells_other_rungs_what_it_was_asked_at() -> None:
    """The error of another epoch is none of theirs."""
    kept = {"learned": [0.4, 0.2], "rungs": [6, 15], "ran": 30}
    assert learned_at(kept, (6, 15)) == [0.4, 0.2]
    np.testing.assert_array_equal(learned_at(kept, (3, 6, 20)), [np.nan, 0.4, np.nan])
    np.testing.assert_array_equal(learned_at(kept | {"ran": 18}, (3, 6, 20)), [np.nan, 0.4])  # it needed no more
    assert learned_at(kept, ()) == []
    assert learned_at({"learned": [0.4]}, (6, 15)) == [0.4]  # of an older brisk


def test_a_training_stopped_at_a_rung_goes_on_from_there_as_if_it_never_had_been(tmp_path: Path) -> None:
    whole, told, _ = trained()
    asked: list[tuple[int, int, float]] = []
    with pytest.raises(Stopped, match="behind others") as stopped:
        trained(rungs=rungs(tmp_path, {1: "behind others"}, asked))
    assert [(rung, epoch) for rung, epoch, _ in asked] == [(0, 2), (1, 4)]
    assert stopped.value.learned == tuple(error for *_, error in asked)
    with pytest.raises(Stopped):  # nothing is trained to hear the same answer
        trained(rungs=rungs(tmp_path, {1: "behind others"}, []))
    weights, history, heard = trained(rungs=rungs(tmp_path, {}, []))
    assert [event["epoch"] for event in heard] == [5, 6]
    assert history["learned"] == list(stopped.value.learned)
    assert (history["best_epoch"], history["epochs_run"]) == (told["best_epoch"], 6)
    for one, other in zip(weights, whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("how", "epochs"),
    [
        (Training(2e-2, sparsity=0.5), 6),
        (Training(2e-2, sparsity=0.5, block=4), 6),
        (Training(2e-2, qat="8"), 20),  # of which six are left to it
        (Training(2e-2, sparsity=0.5, qat="4"), 20),
    ],
    ids=["zeros", "blocks of zeros", "rounded", "both"],
)
def test_one_that_zeroes_or_rounds_weights_goes_on_as_if_it_never_had_been_stopped(
    tmp_path: Path, how: Training, epochs: int
) -> None:
    spec = replace(SPEC, epochs=epochs)
    whole, told, _ = trained(how, spec)
    with pytest.raises(Stopped, match="behind others"):
        trained(how, spec, rungs=rungs(tmp_path, {1: "behind others"}, []))
    weights, history, heard = trained(how, spec, rungs=rungs(tmp_path, {}, []))
    assert [event["epoch"] for event in heard] == [5, 6]
    assert (history["best_epoch"], history["realised_sparsity"]) == (told["best_epoch"], told["realised_sparsity"])
    for one, other in zip(weights, whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_another_study_with_other_rungs_goes_on_from_there_where_it_knows_what_was_learned(tmp_path: Path) -> None:
    def of(*epochs: int) -> Rungs:
        return replace(rungs(tmp_path, {}, []), epochs=epochs)

    for epochs, left, learned in (((4, 5), [5, 6], 2), ((2,), [5, 6], 1), ((3,), [1, 2, 3, 4, 5, 6], 1)):
        with pytest.raises(Stopped) as stopped:
            trained(rungs=rungs(tmp_path, {1: "behind others"}, []))
        _, history, heard = trained(rungs=of(*epochs))
        assert [event["epoch"] for event in heard] == left
        assert len(history["learned"]) == learned
        known = dict(zip((2, 4), stopped.value.learned, strict=True))
        assert all(known.get(at, error) == error for at, error in zip(epochs, history["learned"], strict=True))


def test_what_was_kept_of_another_model_or_torn_is_not_taken_up(tmp_path: Path) -> None:
    asked: list[tuple[int, int, float]] = []
    with pytest.raises(Stopped):
        trained(rungs=rungs(tmp_path, {0: "stop"}, asked))
    kept = next((tmp_path / "cache" / "begun").glob("*.npz"))
    kept.write_bytes(kept.read_bytes()[:-200])
    assert [event["epoch"] for event in trained(rungs=rungs(tmp_path, {}, []))[2]] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(Stopped):
        fit(recurrent(outputs=3), sums(), Training(2e-2), SPEC, seed=3, rungs=rungs(tmp_path, {0: "stop"}, asked))
    assert [event["epoch"] for event in trained(rungs=rungs(tmp_path, {}, []))[2]] == [1, 2, 3, 4, 5, 6]


DIES = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = ["tests"]
import test_objectives_rungs as here

def die(event):
    if event["epoch"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)

here.fit(here.recurrent(), here.sums(), here.Training(2e-2), here.SPEC, seed=3, emit=die,
         rungs=here.rungs(Path(sys.argv[1]), {}, []))
"""


def test_a_process_that_dies_loses_what_it_did_since_the_last_rung(tmp_path: Path) -> None:
    died = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL
    assert [event["epoch"] for event in trained(rungs=rungs(tmp_path, {}, []))[2]] == [5, 6]
