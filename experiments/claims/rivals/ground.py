"""What all rivals share: data, space, training, exporters, the clock of the run, and processes that are kept alive."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.spec import read
from objectives.bench import ECONOMIES
from objectives.data import loaded
from objectives.deployment.interpreter import predict
from objectives.deployment.quantize import quantize
from objectives.model_file import answered
from objectives.task import TASKS
from spaces.catalog import STATIC_BITS
from spaces.genotype import Genotype
from spaces.record import to_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from objectives.trained import Trained

WARM, CALLS = 10, 100  # of a latency in process
DRAWS = 2000  # in which every name of a preset's space comes up
STARTS = 5  # of one process, before it is given up


@dataclass(frozen=True)
class Where:
    """What a process of a rival has to know; `ends` in seconds of the epoch."""

    task: str
    seed: int
    ends: float
    folder: str


class Ground:
    """The task as every rival has it."""

    def __init__(self, where: Where) -> None:
        spec = read(where.task, (f"study.seed={where.seed}",))
        self.where, self.folder = where, Path(where.folder)
        bench = spec.bench(str(self.folder / f"home-{os.getpid()}"))
        self.bench = replace(bench, training=replace(bench.training, rungs=()), without=ECONOMIES)
        self.data, self.space = loaded(self.bench), spec.space
        self.task = TASKS[self.data.signature.kind]

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self.where.ends - time.time()

    def sample(self, trial: Any) -> Genotype:
        """A candidate, drawn from the preset's space."""
        return self.space.sample(trial, self.data.signature)

    def names(self) -> dict[str, Range]:
        """All that there is to choose, by name; those choices included that only some cells or lowerings have."""
        noted = Noted(np.random.default_rng(0))
        for _ in range(DRAWS):
            self.sample(noted)
        return dict(sorted(noted.names.items()))

    def origin(self, genotype: Genotype) -> Trained:
        """Its model."""
        from objectives.trained import Trained

        return Trained(self.bench, self.data, genotype)

    def lowered(self, origin: Trained, genotype: Genotype) -> Path:
        """The file of the form that it is to be served in, with the weights of the moment."""
        asked = genotype.deployment
        ours = asked.lowering != "keras" and asked.bits not in STATIC_BITS
        content = origin.lower(replace(asked, bits="32") if ours else asked)
        content = quantize(content, asked.bits, head=self.bench.quantize_head) if ours else content
        path = self.folder / f"{genotype.key}-{os.getpid()}.tflite"
        path.write_bytes(content)
        return path

    def error(self, path: Path) -> float:
        """On the validation part, of the file."""
        output = answered(predict(path, self.data.validation.x), self.data.signature)
        return self.task.error(self.task.score(self.data.validation.y, output))

    def timed_ms(self, path: Path) -> float:
        """The median of some calls for a sequence, in this process, whatever else runs."""
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(path), num_threads=1)
        interpreter.allocate_tensors()
        place = interpreter.get_input_details()[0]
        batch = place["shape"][0]
        interpreter.set_tensor(place["index"], np.resize(self.data.validation.x, place["shape"]).astype(place["dtype"]))
        spent = []
        for _ in range(WARM + CALLS):
            began = time.perf_counter()
            interpreter.invoke()
            spent.append(time.perf_counter() - began)
        return float(np.median(spent[WARM:])) * 1000 / float(batch)

    def found(self, genotype: Genotype, path: Path, latency_ms: float) -> tuple[float, float, float]:
        """Keep a finished candidate; gives error, latency in ms and size in KiB."""
        error, size = self.error(path), path.stat().st_size / 1024
        line = {"t": time.time(), "genotype": to_json(genotype), "file": path.name}
        keep(self.folder / "found.jsonl", line | {"error": error, "latency_ms": latency_ms, "size_kib": size})
        return error, latency_ms, size

    @contextmanager
    def noting_failures(self) -> Iterator[None]:
        """Keep the reason of a candidate that fails, and raise it again."""
        try:
            yield
        except Exception:
            keep(self.folder / "failed.jsonl", {"t": time.time(), "reason": traceback.format_exc()[-600:]})
            raise


def keep(file: Path, line: dict[str, Any]) -> None:
    """Add a line of JSON in one write, so that processes do not mix theirs."""
    with open(file, "ab", buffering=0) as lines:
        lines.write(json.dumps(line).encode() + b"\n")


def nothing(event: dict[str, Any]) -> None:
    """What training tells of itself, unheard."""
    del event


# The space, for searches that want it declared -----------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """What one name may be: a choice, or numbers from `low` to `high`, whole ones in steps."""

    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: int = 0  # 0: not whole
    log: bool = False


class Noted:
    """A trial that draws at random and notes what it was asked for."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.names: dict[str, Range] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of them."""
        self.names[name] = Range(values=tuple(choices))
        return choices[int(self._rng.integers(len(choices)))]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number."""
        self.names[name] = Range(low=low, high=high, step=step, log=log)
        return int(low + step * self._rng.integers((high - low) // step + 1))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number."""
        self.names[name] = Range(low=low, high=high, log=log)
        return float(self._rng.uniform(low, high))


class Given:
    """A trial whose values another search chose, by name; choices by place, for they are of several types."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of them."""
        return choices[int(self._values[name])]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number."""
        del high, log
        return low + step * round((float(self._values[name]) - low) / step)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number."""
        del log
        return min(max(float(self._values[name]), low), high)


# Processes -----------------------------------------------------------------------------------------------------------


def cores() -> list[int]:
    """The two that a rival has."""
    return sorted(os.sched_getaffinity(0))[:2]


def side_by_side(work: Callable[..., None], where: Where, *arguments: Any) -> None:
    """Run `work(where, *arguments, core, start)` on each core; one that dies is started again, for any user would."""
    context = multiprocessing.get_context("spawn")

    def again_and_again(core: int) -> None:
        for start in range(STARTS):
            process = context.Process(target=work, args=(where, *arguments, core, start))
            process.start()
            process.join(max(where.ends - time.time(), 0.0))
            if process.exitcode is None:
                process.kill()
            if not process.exitcode:
                return
            keep(Path(where.folder) / "failed.jsonl", {"reason": f"a process ended with {process.exitcode}"})

    with ThreadPoolExecutor() as pool:
        list(pool.map(again_and_again, cores()))
