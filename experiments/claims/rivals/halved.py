"""Syne Tune's MOASHA: by its local backend, and over two processes that stay."""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims.rivals.ground import STARTS, Given, Ground, Where, cores, keep

METRICS = ["error", "latency", "size"]
GRACE = 3  # epochs


class Halted(Exception):
    """The scheduler stopped it."""


def search(here: Ground, *, warm: bool) -> None:
    """Until the time is over."""
    from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

    np.random.seed(here.where.seed)  # it draws from NumPy's global state
    # One more than there are epochs: it stops, by killing, what reaches `max_t`, before it could be converted.
    most = here.bench.training.epochs + 1
    seed = here.where.seed
    scheduler = MOASHA(_space(here), METRICS, time_attr="epoch", max_t=most, grace_period=GRACE, random_seed=seed)
    if warm:
        _over_two(scheduler, here.where)
    else:
        _by_backend(scheduler, here)


def _space(here: Ground) -> dict[str, Any]:
    from syne_tune.config_space import choice, finrange, loguniform, uniform

    space: dict[str, Any] = {}
    for name, one in here.names().items():
        if one.values:
            space[name] = choice(list(range(len(one.values))))
        elif one.step:
            space[name] = finrange(one.low, one.high, round((one.high - one.low) / one.step) + 1, cast_int=True)
        else:
            space[name] = (loguniform if one.log else uniform)(one.low, one.high)
    return space


def epochs(here: Ground, values: dict[str, Any], report: Any) -> None:
    """Train one candidate and report each epoch; convert it at the end. `report` raises where it is to stop."""
    with here.noting_failures():
        genotype = here.sample(Given(values))
        origin = here.origin(genotype)
        origin.start()
        untrained = here.lowered(origin, genotype)
        known = {"latency": here.timed_ms(untrained), "size": untrained.stat().st_size / 1024}

        def told(event: dict[str, Any]) -> None:
            if event["event"] == "epoch":
                report(epoch=event["epoch"], error=here.task.error(event["metric"]), **known)

        try:
            origin.train(told)
        except Halted:
            return
        path = here.lowered(origin, genotype)
        here.found(genotype, path, here.timed_ms(path))


# Its local backend ---------------------------------------------------------------------------------------------------


def _by_backend(scheduler: Any, here: Ground) -> None:
    from syne_tune import StoppingCriterion, Tuner
    from syne_tune.backend import LocalBackend

    logging.getLogger("syne_tune").setLevel(logging.WARNING)
    os.environ["SYNETUNE_FOLDER"] = str(here.folder / "syne-tune")
    where = here.where
    place = {"task": where.task, "seed": where.seed, "ends": where.ends, "folder": where.folder}
    scheduler.config_space |= place  # constants are handed on
    entry = str(Path(__file__).with_name("one_trial.py"))
    backend = LocalBackend(entry, binary=f"{sys.executable} -P", pass_args_as_json=True, rotate_gpus=False)
    Tuner(
        backend,
        scheduler,
        StoppingCriterion(max_wallclock_time=max(here.left, 0.1)),
        n_workers=2,
        sleep_time=0.1,  # by default it looks every five seconds
        max_failures=100_000,
        callbacks=[],
        save_tuner=False,
    ).run()


def one_trial(values: dict[str, Any]) -> None:
    """A process of the local backend; it takes the core that is free."""
    from syne_tune import Reporter

    where = Where(values["task"], int(values["seed"]), float(values["ends"]), values["folder"])
    held = []
    for core in cores():
        held.append(open(Path(where.folder) / f"core-{core}", "wb"))  # noqa: SIM115 - held till this process ends
        try:
            fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        os.sched_setaffinity(0, {core})
        break
    epochs(Ground(where), values, Reporter())


# Two processes that stay ---------------------------------------------------------------------------------------------


def _over_two(scheduler: Any, where: Where) -> None:
    from syne_tune.backend.trial_status import Trial

    context = multiprocessing.get_context("spawn")
    ears: dict[Connection, tuple[int, Any]] = {}
    trials: dict[int, Any] = {}
    count = starts = 0

    def start(core: int) -> None:
        mine, theirs = context.Pipe()
        process = context.Process(target=_stay, args=(where, core, theirs))
        process.start()
        theirs.close()
        ears[mine] = core, process

    for core in cores():
        start(core)
    while time.time() < where.ends and ears:
        for ear in wait(list(ears), timeout=0.5):
            assert isinstance(ear, Connection)
            core, process = ears[ear]
            try:
                told = ear.recv()
            except EOFError:
                del ears[ear]
                process.join()
                keep(Path(where.folder) / "failed.jsonl", {"reason": f"a process ended with {process.exitcode}"})
                starts += 1
                if starts < STARTS:
                    start(core)
                continue
            if told is None:
                suggestion = scheduler.suggest()
                trials[core] = Trial(count, suggestion.config, None)
                scheduler.on_trial_add(trials[core])
                count += 1
                ear.send(suggestion.config)
            else:
                ear.send(scheduler.on_trial_result(trials[core], told))
    for _, process in ears.values():
        process.kill()


def _stay(where: Where, core: int, ear: Connection) -> None:
    """Train what the scheduler suggests, one after another."""
    os.sched_setaffinity(0, {core})
    here = Ground(where)

    def report(**told: float) -> None:
        ear.send(told)
        if ear.recv() == "STOP":
            raise Halted

    while here.left > 0:
        ear.send(None)
        values = ear.recv()
        try:
            epochs(here, values, report)
        except Exception:  # noted; on to the next
            continue
