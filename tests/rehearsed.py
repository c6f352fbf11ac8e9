"""Studies of invented figures, for the tests of the search."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

from objectives.bench import Bench, TaskSpec, TrainingSpec
from objectives.outcome import Conditions
from search.budget import Limits
from search.drive import drive
from search.history import Plan
from search.study import Study
from spaces.genotype import Architecture, Deployment, Genotype, Training
from spaces.space import Space

PRELOAD = [
    "search.drive",
    "objectives.rehearsal",
    "optuna.storages._rdb.storage",
    "alembic.command",
    "sqlalchemy.orm",
]
"""What a process that drives a study imports, for a fork server to have at hand."""

BASELINE = Genotype(Architecture("lstm", 128), Training(), Deployment("keras", 1, "8"))


def bench(at: Path, **changes: Any) -> Bench:
    settings: dict[str, Any] = {
        "task": TaskSpec(data="digits-pixels"),
        "training": TrainingSpec(),
        "seed": 7,
        "device": "local",
        "conditions": Conditions(),
        "bounds": {},
        "home": str(at),
    }
    return Bench(**(settings | changes))


def plan(at: Path, *, space: Space | None = None, baseline: Genotype | None = BASELINE, **changes: Any) -> Plan:
    sampler = changes.pop("sampler", "tpe")
    objectives = changes.pop("objectives", ("quality", "latency", "size"))
    space = space or Space(cell=("lstm", "mingru"), units=(16, 128, 16), steps=(1, 4))
    return Plan(bench(at, **changes), space, objectives, baseline, sampler, "objectives.rehearsal")


@contextlib.contextmanager
def at_commit(number: int, strike: Callable[[], None]) -> Iterator[None]:
    """Strike just before the storage's commit of this number, counted from 1; 0 is never."""
    seen = itertools.count(1)

    def count(_: object) -> None:
        if next(seen) == number:
            strike()

    event.listen(Engine, "commit", count)
    try:
        yield
    finally:
        event.remove(Engine, "commit", count)


def drive_and_die(home: str, trials: int, commit: int, workers: int) -> None:
    """Drive the study "s", and die of kill -9 at a commit."""
    at = Path(home)
    with at_commit(commit, lambda: os.kill(os.getpid(), signal.SIGKILL)), Study.start(at, "s", plan(at)) as study:
        drive(study, Limits(trials=trials, workers=workers))
