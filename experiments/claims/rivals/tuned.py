"""KerasTuner's BayesianOptimization on accuracy alone, distributed as its guide says: a chief and two workers."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from contextlib import suppress
from typing import Any

from experiments.claims.rivals.ground import Given, Ground, Range, Where, nothing, side_by_side
from spaces.genotype import Genotype

EARLY = 2  # candidates are converted at once, to know how much time the rest will take


def search(where: Where) -> None:
    """Until the time is over."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    chief = multiprocessing.get_context("spawn").Process(target=lead, args=(where, port))
    chief.start()
    try:
        side_by_side(work, where, port)
    finally:
        chief.kill()


def lead(where: Where, port: int) -> None:
    """The chief: it alone proposes."""
    _join("chief", port)
    _tuner(Ground(where)).search()


def work(where: Where, port: int, core: int, start: int) -> None:
    """A worker: train while there is time to convert and time what was trained, then do that."""
    os.sched_setaffinity(0, {core})
    _join(f"worker-{core}-{start}", port)
    here = Ground(where)
    trained: list[tuple[float, Genotype]] = []
    trainings, conversions = [0.0], [0.0]  # seconds of each so far

    def run_trial(values: dict[str, Any]) -> float:
        from keras_tuner.errors import FatalError

        began = time.time()
        if here.left < max(trainings) + conversions[-1] * (len(trained) + 1):
            raise FatalError("the rest of the time is for conversion")
        with here.noting_failures():
            genotype = here.sample(Given(values))
            origin = here.origin(genotype)
            origin.train(nothing)
            error = here.task.error(origin.history["validation_metric"])
        trainings.append(time.time() - began)
        if len(trained) < EARLY:
            convert(genotype)
            conversions.append(time.time() - began - trainings[-1])
        trained.append((error, genotype))
        return error

    def convert(genotype: Genotype) -> None:
        with here.noting_failures():
            origin = here.origin(genotype)
            origin.recall()
            path = here.lowered(origin, genotype)
            here.found(genotype, path, here.timed_ms(path))

    from keras_tuner.errors import FatalError

    with suppress(FatalError):
        _tuner(here, run_trial).search()
    for _, genotype in sorted(trained[EARLY:], key=lambda each: each[0]):
        try:
            convert(genotype)
        except Exception:  # noted; the next may do
            continue


def _join(name: str, port: int) -> None:
    address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(port)}
    os.environ.update({**address, "KERASTUNER_TUNER_ID": name})


def _tuner(here: Ground, run: Any = None) -> Any:
    import keras_tuner

    names = here.names()

    class Model(keras_tuner.HyperModel):  # type: ignore[misc]
        def build(self, hp: Any) -> None:
            for name, one in names.items():
                _declare(hp, name, one)

    class Tuner(keras_tuner.BayesianOptimization):  # type: ignore[misc]
        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
            return run({name: _declare(trial.hyperparameters, name, one) for name, one in names.items()})

    return Tuner(
        Model(),
        objective=keras_tuner.Objective("default_objective", "min"),
        max_trials=100_000,
        seed=here.where.seed,
        directory=str(here.folder / "kerastuner"),
        max_consecutive_failed_trials=1000,
    )


def _declare(hp: Any, name: str, one: Range) -> Any:
    if one.values:
        return hp.Choice(name, list(range(len(one.values))), ordered=False)
    sampling = "log" if one.log else "linear"
    if one.step:
        return hp.Int(name, int(one.low), int(one.high), **({"sampling": "log"} if one.log else {"step": one.step}))
    return hp.Float(name, one.low, one.high, sampling=sampling)
