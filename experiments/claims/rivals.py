"""Other searches of the same space by the same training and the same exporters: `experiments.claims.search` runs them.

    python -m experiments.claims.rivals SYSTEM TASK SEED SECONDS FOLDER

"optuna-nsga2" and "optuna-tpe": a trial is a candidate, trained to the end, converted and timed in the process that
made it, as Optuna's documentation has it for several objectives; two processes share a journal, each on its own core.
"kerastuner": BayesianOptimization on validation accuracy alone, in one process on both cores (it has no other way but a
server), and whatever it has trained is converted and timed afterwards, the best first, in the last part of the time.
"moasha": Syne Tune's scheduler over two such workers, told error, latency and size after every epoch; a candidate is
converted and timed before training, as its authors do for latency, and converted again once it is trained.

Each candidate that is finished becomes a line of `FOLDER/found.jsonl`, its file beside it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from experiments.spec import read
from objectives.data import loaded
from objectives.deployment.interpreter import predict
from objectives.deployment.quantize import quantize
from objectives.model_file import answered
from objectives.task import TASKS
from objectives.trained import Trained
from spaces.catalog import STATIC_BITS
from spaces.genotype import Genotype
from spaces.record import to_json

WARM, CALLS = 10, 100  # of a latency in process
AFTERWARDS = 0.25  # of the time, for what is converted and timed after an accuracy-only search


class Ground:
    """What all searches share: data, space, training, exporters, and the clock of the run."""

    def __init__(self, task: str, seed: int, seconds: float, folder: Path) -> None:
        spec = read(task, (f"study.seed={seed}",))
        bench = spec.bench(str(folder / f"home-{os.getpid()}"))
        self.bench = replace(bench, training=replace(bench.training, rungs=()))
        self.data, self.space = loaded(self.bench), spec.space
        self.seed, self.folder = seed, folder
        self.ends = float(os.environ["CLAIM_BEGAN"]) + seconds

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self.ends - time.time()

    def sample(self, trial: Any) -> Genotype:
        """A candidate, drawn from the preset's space."""
        return self.space.sample(trial, self.data.signature)

    def origin(self, genotype: Genotype) -> Trained:
        """Its model."""
        return Trained(self.bench, self.data, genotype)

    def lowered(self, origin: Trained, genotype: Genotype) -> Path:
        """The file of the form that it is to be served in."""
        asked = genotype.deployment
        ours = asked.lowering != "keras" and asked.bits not in STATIC_BITS
        content = origin.lower(replace(asked, bits="32") if ours else asked)
        content = quantize(content, asked.bits) if ours else content
        path = self.folder / f"{genotype.key}.tflite"
        path.write_bytes(content)
        return path

    def error(self, path: Path) -> float:
        """On the validation part, of the file."""
        task, data = TASKS[self.data.signature.kind], self.data
        output = answered(predict(path, data.validation.x), data.signature)
        return task.error(task.score(data.validation.y, output))

    def found(self, genotype: Genotype, path: Path, latency_ms: float) -> tuple[float, float, float]:
        """Keep a finished candidate; gives error, latency in ms and size in KiB."""
        error, size = self.error(path), path.stat().st_size / 1024
        line = {"t": time.time(), "genotype": to_json(genotype), "file": path.name}
        line |= {"error": error, "latency_ms": latency_ms, "size_kib": size}
        with open(self.folder / "found.jsonl", "a", encoding="utf-8") as found:
            found.write(json.dumps(line) + "\n")
        return error, latency_ms, size


def timed_ms(path: Path) -> float:
    """The median of some calls, in this process, whatever else runs."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    place = interpreter.get_input_details()[0]
    interpreter.set_tensor(place["index"], np.zeros(place["shape"], place["dtype"]))
    spent = []
    for _ in range(WARM + CALLS):
        began = time.perf_counter()
        interpreter.invoke()
        spent.append(time.perf_counter() - began)
    return float(np.median(spent[WARM:])) * 1000


def nothing(event: dict[str, Any]) -> None:
    """What training tells of itself, unheard."""
    del event


# Optuna --------------------------------------------------------------------------------------------------------------


def optuna_worker(kind: str, ground: tuple[Any, ...], core: int) -> None:
    """One of the processes that share a study."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    os.sched_setaffinity(0, {core})
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    here = Ground(*ground)
    samplers = {"optuna-nsga2": optuna.samplers.NSGAIISampler, "optuna-tpe": optuna.samplers.TPESampler}
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(here.folder / "journal.log"))),
        study_name="rival",
        directions=["minimize"] * 3,
        sampler=samplers[kind](seed=1000 * here.seed + core),
        load_if_exists=True,
    )

    def objective(trial: Any) -> tuple[float, float, float]:
        genotype = here.sample(trial)
        origin = here.origin(genotype)
        origin.train(nothing)
        path = here.lowered(origin, genotype)
        return here.found(genotype, path, timed_ms(path))

    study.optimize(objective, timeout=max(here.left, 0.1), catch=(Exception,))


# KerasTuner ----------------------------------------------------------------------------------------------------------


class Hyper:
    """A KerasTuner trial's hyperparameters, asked as Optuna's trial is."""

    def __init__(self, hp: Any) -> None:
        self._hp = hp

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of them; by place where they are not of one type."""
        return choices[self._hp.Choice(name, list(range(len(choices))), ordered=False)]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number."""
        return int(self._hp.Int(name, low, high, step=step))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number."""
        return float(self._hp.Float(name, low, high, sampling="log" if log else "linear"))


def kerastuner(ground: tuple[Any, ...]) -> None:
    """The whole search."""
    import keras_tuner

    here = Ground(*ground)
    task = TASKS[here.data.signature.kind]
    trained: dict[str, tuple[float, Trained, Genotype]] = {}
    searching = here.ends - AFTERWARDS * here.left

    class Enough(Exception):
        """The time for searching is over."""

    class Tuner(keras_tuner.BayesianOptimization):  # type: ignore[misc]
        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> float:
            if time.time() > searching:
                raise Enough
            genotype = here.sample(Hyper(trial.hyperparameters))
            origin = here.origin(genotype)
            origin.train(nothing)
            error = task.error(origin.history["validation_metric"])
            trained[genotype.key] = (error, origin, genotype)
            return error

    class Model(keras_tuner.HyperModel):  # type: ignore[misc]
        def build(self, hp: Any) -> Any:
            here.sample(Hyper(hp))

    goal = keras_tuner.Objective("default_objective", "min")
    tuner = Tuner(
        Model(),
        objective=goal,
        max_trials=100_000,
        seed=here.seed,
        directory=str(here.folder / "kt"),
        max_consecutive_failed_trials=1,
    )
    try:
        tuner.search()
    except Exception:  # it wraps what `run_trial` raises
        if time.time() < searching:
            raise
    for _, origin, genotype in sorted(trained.values(), key=lambda each: each[0]):
        if here.left < 0:
            break
        path = here.lowered(origin, genotype)
        here.found(genotype, path, timed_ms(path))


# Syne Tune -----------------------------------------------------------------------------------------------------------


class Halted(Exception):
    """The scheduler stopped it."""


class Drawn:
    """A configuration of independent uniform numbers, read as a point of the space."""

    def __init__(self, uniform: dict[str, float]) -> None:
        self._uniform = list(uniform.values())

    def _next(self, name: str) -> float:
        return self._uniform[sum(map(ord, name)) % len(self._uniform)]

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of them."""
        return choices[min(int(self._next(name) * len(choices)), len(choices) - 1)]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number."""
        count = (high - low) // step + 1
        return low + step * min(int(self._next(name) * count), count - 1)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number."""
        share = self._next(name)
        return float(low * (high / low) ** share if log else low + (high - low) * share)


def moasha_worker(ground: tuple[Any, ...], core: int, ear: Connection) -> None:
    """Train what the scheduler suggests, and tell it of every epoch."""
    os.sched_setaffinity(0, {core})
    here = Ground(*ground)
    task = TASKS[here.data.signature.kind]
    while here.left > 0:
        ear.send(("next", None))
        genotype = here.sample(Drawn(ear.recv()))
        origin = here.origin(genotype)
        origin.start()
        untrained = here.lowered(origin, genotype)
        latency_ms, size = timed_ms(untrained), untrained.stat().st_size / 1024

        def told(event: dict[str, Any], latency_ms: float = latency_ms, size: float = size) -> None:
            if event["event"] == "epoch":
                ear.send(("epoch", (event["epoch"], task.error(event["metric"]), latency_ms, size)))
                if ear.recv() == "STOP":
                    raise Halted

        try:
            origin.train(told)
        except Halted:
            continue
        here.found(genotype, here.lowered(origin, genotype), latency_ms)


def moasha(ground: tuple[Any, ...]) -> None:
    """The scheduler, and two workers."""
    from syne_tune.backend.trial_status import Trial
    from syne_tune.config_space import uniform
    from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

    task, seed, seconds, _ = ground
    np.random.seed(seed)
    epochs = read(task).training.epochs
    space = {f"u{place:02d}": uniform(0.0, 1.0) for place in range(61)}  # a prime: names rarely share a number
    metrics = ["error", "latency", "size"]
    scheduler = MOASHA(space, metrics, time_attr="epoch", max_t=epochs + 1, grace_period=3, random_seed=seed)
    context = multiprocessing.get_context("spawn")
    lines: dict[Connection, Any] = {}
    workers = []
    for core in sorted(os.sched_getaffinity(0))[:2]:
        mine, theirs = context.Pipe()
        workers.append(context.Process(target=moasha_worker, args=(ground, core, theirs)))
        workers[-1].start()
        lines[mine] = None
    count = 0
    ends = float(os.environ["CLAIM_BEGAN"]) + seconds
    while time.time() < ends and any(worker.is_alive() for worker in workers):
        for line in multiprocessing.connection.wait(list(lines), timeout=0.5):
            assert isinstance(line, Connection)
            try:
                kind, what = line.recv()
            except EOFError:
                del lines[line]
                continue
            if kind == "next":
                suggestion = scheduler.suggest()
                lines[line] = Trial(count, suggestion.config, None)
                scheduler.on_trial_add(lines[line])
                count += 1
                line.send(suggestion.config)
            else:
                result = dict(zip(["epoch", *metrics], what, strict=True))
                line.send(scheduler.on_trial_result(lines[line], result))
    for worker in workers:
        worker.kill()


def main() -> None:
    """Search, and be ended by whoever started it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=["optuna-nsga2", "optuna-tpe", "kerastuner", "moasha"])
    parser.add_argument("task")
    parser.add_argument("seed", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    os.environ.setdefault("CLAIM_BEGAN", str(time.time()))
    ground = (asked.task, asked.seed, asked.seconds, asked.folder)
    if asked.system == "kerastuner":
        kerastuner(ground)
    elif asked.system == "moasha":
        moasha(ground)
    else:
        context = multiprocessing.get_context("spawn")
        cores = sorted(os.sched_getaffinity(0))[:2]
        workers = [context.Process(target=optuna_worker, args=(asked.system, ground, core)) for core in cores]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


if __name__ == "__main__":
    main()
