"""Studies of invented figures, for the tests of the search."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from objectives.bench import Bench, TaskSpec, TrainingSpec
from objectives.outcome import Conditions
from search.budget import Limits
from search.drive import drive
from search.history import Plan
from search.owned import OwnedStorage
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
def at_write(number: int, strike: Callable[[], None]) -> Iterator[None]:
    """Strike just before the storage writes its row of this number, counted from 1; 0 is never. Fails where it was not
    struck, and the process is still there to say so.
    """
    seen, write = itertools.count(1), OwnedStorage._write

    def count(storage: OwnedStorage, statement: str, row: tuple[Any, ...]) -> int:
        if next(seen) == number:
            strike()
        return write(storage, statement, row)

    OwnedStorage._write = count  # type: ignore[method-assign]
    try:
        yield
        assert next(seen) > number, "there were not so many writes"
    finally:
        OwnedStorage._write = write  # type: ignore[method-assign]


def drive_and_die(home: str, trials: int, write: int, workers: int) -> None:
    """Drive the study "s", and die of kill -9 at a write."""
    at = Path(home)
    with at_write(write, lambda: os.kill(os.getpid(), signal.SIGKILL)), Study.start(at, "s", plan(at)) as study:
        drive(study, Limits(trials=trials, workers=workers))
