"""What the time of a study goes to, with news that are read late."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rehearsed import plan

from search.budget import Limits
from search.clock import IDLE, Clock
from search.drive import drive
from search.history import clock_of
from search.study import Study
from spaces.space import Space


def clock(workers: int) -> Clock:
    made = Clock(clock_of({}), workers)
    made._put_down = 0.0
    return made


def test_each_stage_counts_from_when_it_came() -> None:
    """Two workers, second by second: a sum is of wall time, measuring before training; waiting is idle."""
    found = clock(2)
    found.turn(0, "start", 1.0)  # nobody had anything to do till then
    found.turn(1, "lower", 2.0)
    found.turn(0, "train", 4.0)  # both were at what is neither
    found.turn(1, "untrained", 5.0)
    found.turn(0, IDLE, 7.0)
    found.turn(1, "train", 8.0)
    found.tick(10.0)
    sums = {name: found.sums[name] for name in ("wall_s", "measuring_s", "training_s", "workers_s", "idle_s")}
    assert sums == {"wall_s": 10.0, "measuring_s": 3.0, "training_s": 3.0, "workers_s": 20.0, "idle_s": 6.0}


def test_who_stands_still_for_a_measurement_is_idle() -> None:
    found = clock(2)
    found.turn(0, "train", 0.0)
    found.turn(1, "measure", 0.0)
    found.quiet = 1
    found.tick(2.0)
    found.quiet = None
    found.turn(1, IDLE, 2.0)
    found.tick(3.0)
    assert (found.sums["measuring_s"], found.sums["training_s"], found.sums["idle_s"]) == (2.0, 1.0, 3.0)


def test_time_does_not_run_backwards() -> None:
    """News that came before the clock was last looked at."""
    found = clock(1)
    found.tick(5.0)
    found.turn(0, "train", 4.0)
    found.tick(6.0)
    assert (found.sums["wall_s"], found.sums["training_s"]) == (6.0, 1.0)


STEADY = """
import time
from objectives.rehearsal import evaluate as well, final, prepare

def evaluate(bench, genotypes, emit, ask):
    emit({"event": "stage", "stage": "train", "form": None, "detail": ""})
    time.sleep(0.3)
    well(bench, genotypes, emit, ask)
"""


def test_a_driver_that_is_late_takes_nothing_from_what_its_worker_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its proposals take long, while a worker that has its next group in hand trains."""
    (tmp_path / "steady.py").write_text(STEADY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    asked = Study.next_group

    def slow(study: Study, trials: int) -> Any:
        time.sleep(0.2)
        return asked(study, trials)

    monkeypatch.setattr(Study, "next_group", slow)
    space = Space(cell=("lstm",), units=(16, 96, 16), bits=("32",), lowering=("loop",), steps=(1,))
    made = replace(plan(tmp_path, baseline=None, space=space), evaluator="steady", warm_start=())
    with Study.start(tmp_path, "s", made) as study:
        drive(study, Limits(trials=5, workers=1))
        assert study.clock["training_s"] > 1.2
