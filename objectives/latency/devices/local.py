"""The machine itself: models are timed in fresh, pinned, TensorFlow-free processes, one sitting at a time."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import math
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from objectives.latency import timing
from objectives.latency.devices.device import Device, Tell
from objectives.latency.timing import Visit
from objectives.outcome import Conditions, MeasureFailure, Measurement
from spaces.errors import DeviceError, InputError, ModelError
from spaces.record import digest, to_json

METER = Path(__file__).parents[1] / "meter.py"
REFERENCE = Path(__file__).parents[1] / "reference.tflite"
REFERENCE_SHA256 = "b205f3354a9a9667d1cad66c1221a4fed9a16dde55e5598aee5738c2e94fbe9a"
METERED = 2  # a figure that the meter finds in another way is another figure
SAID_S = 5.0  # between two times that a process says that it waits
START_S = {True: 20.0, False: 180.0}  # silence allowed beyond the sitting's own: TFLite only, with TensorFlow


@dataclass(frozen=True)
class Candidate:
    """A model to time: a .tflite file, a SavedModel folder or a Keras file.

    `twice` runs it twice a call; `clean` clears the vector registers before each call (`meter.cleaner`); `how` is the
    way TensorFlow runs it (`meter.open_tensorflow`), with what a file may need: a length where its own is free, the
    user's own code, and leave to run code that it holds (`spaces.lowering.load`).
    """

    path: Path
    twice: bool = False
    clean: bool = False
    how: str = "function"
    time_steps: int | Mapping[str, int] | None = None  # for all inputs, or by their names
    custom: tuple[str, ...] = ()
    unsafe: bool = False

    @property
    def kind(self) -> str:
        """How the meter opens it: "tflite", "savedmodel" or "keras"."""
        if self.path.is_dir():
            return "savedmodel"
        return "keras" if self.path.suffix in (".keras", ".h5", ".hdf5") else "tflite"


class Local(Device):
    """The machine's own cores. Raises ModelError where the reference model is not the frozen one, DeviceError where the
    meter cannot begin.
    """

    name = "local"

    def measure(
        self,
        models: Sequence[Path],
        conditions: Conditions,
        *,
        cores: Sequence[int] | None = None,
        emit: Tell | None = None,
    ) -> list[Measurement | MeasureFailure]:
        """Time all models in one interleaved sitting on the last of `cores`, by default this process's own."""
        return self.compare([Candidate(path) for path in models], conditions, cores=cores, emit=emit)

    def compare(
        self,
        candidates: Sequence[Candidate],
        conditions: Conditions,
        *,
        cores: Sequence[int] | None = None,
        emit: Tell | None = None,
    ) -> list[Measurement | MeasureFailure]:
        """`measure`, of candidates that need not be plain paths."""
        timing.period_s(conditions.scenario)
        cores = _pinned(conditions.threads, cores)
        if not candidates:
            return []

        def tell(detail: str) -> None:
            if emit:
                emit({"event": "stage", "stage": "measure", "form": None, "detail": detail})

        runs = _Runs(candidates, conditions, cores)
        with exclusive(self.name, lambda: tell("waiting for another measurement on this machine")):
            tell(f"{len(candidates)} models, interleaved")
            sitting = timing.gather(runs.look, len(candidates), conditions, time.monotonic, tell)
        return [
            MeasureFailure(visits) if isinstance(visits, str) else runs.conclude(index, visits, sitting.reference_ns)
            for index, visits in enumerate(sitting.models)
        ]

    def fingerprint(self, conditions: Conditions) -> str:
        """Processor, cores, runtime, reference and conditions, digested."""
        machine = [processor(), os.cpu_count(), platform.system(), version("ai-edge-litert"), REFERENCE_SHA256, METERED]
        return digest(machine, to_json(conditions))


class _Unlucky(Exception):
    """The meter died of nothing that a candidate did."""


@dataclass
class _Runs:
    """The processes of one sitting, and what the first told of each model."""

    candidates: Sequence[Candidate]
    conditions: Conditions
    cores: list[int]
    facts: dict[int, dict[str, Any]] = field(default_factory=dict)  # memory_bytes, batch, runtime by candidate
    started: int = 0

    def look(self, indices: list[int]) -> dict[int, Visit | str]:
        """One process: the Visit or the reason of failure of each candidate; of one alone where it killed the meter.

        A meter that somebody killed, or that died before it came to a candidate, is given a second try.
        """
        with contextlib.suppress(_Unlucky):
            return self._once(indices, again=True)
        return self._once(indices, again=False)

    def _once(self, indices: list[int], *, again: bool) -> dict[int, Visit | str]:
        failed: dict[int, str] = {}
        seen: dict[int, dict[str, Any]] = {index + 1: {"blocks": []} for index in (-1, *indices)}
        last: dict[str, Any] = {}
        plan = timing.plan(self.conditions)
        self.started += 1
        with _process(self._silence_s(indices)) as (say, answers):
            say(self._request(indices, plan))
            for answer in answers:
                if "at" in answer:
                    last = answer
                elif "failed" in answer:
                    failed[answer["failed"] - 1] = answer["reason"]
                    if -1 in failed:
                        raise DeviceError(f"nothing can be measured here: the reference model failed: {failed[-1]}")
                    if failed.keys() >= set(indices):
                        return {index: failed[index] for index in indices}
                elif "ready" in answer:
                    say({"blocks": self._blocks(answer["ready"], plan)})
                elif "block" in answer:
                    cpu = answer["cpu_ns"] if self.conditions.threads == 1 else None
                    block = timing.block_median(np.array(answer["wall_ns"]), np.array(cpu) if cpu else None)
                    seen[answer["block"]]["blocks"].append(block)
                elif "died" in answer:
                    if again and ("SIGKILL" in answer["died"] or last.get("at", 0) - 1 not in indices):
                        raise _Unlucky
                    return self._blame(answer["died"], last, indices) | failed
                else:
                    self._note(seen, answer)
        opened = [index for index in indices if index not in failed]
        return {**failed, **{index: self._visit(seen, index + 1) for index in opened}}

    def conclude(self, index: int, visits: list[Visit], reference_ns: float) -> Measurement:
        """The Measurement of one candidate."""
        facts = self.facts[index + 1]
        machine = Local().fingerprint(self.conditions)
        return timing.conclude(
            visits,
            reference_ns,
            self.conditions,
            device=Local.name,
            batch=facts["batch"],
            peak_memory_bytes=facts["memory_bytes"],
            fingerprint=digest(machine, facts["runtime"]),
        )

    def _silence_s(self, indices: list[int]) -> float:
        light = all(self.candidates[index].kind == "tflite" for index in indices)
        return 2 * self.conditions.timeout_s + START_S[light]

    def _request(self, indices: list[int], plan: timing.Plan) -> dict[str, Any]:
        order = np.random.default_rng(self.started).permutation(indices).tolist()  # which opens first matters
        chosen = [(0, Candidate(_reference())), *((index + 1, self.candidates[index]) for index in order)]
        return {
            "models": [
                {**asdict(each), "index": index, "path": str(each.path.absolute()), "kind": each.kind,
                 "batch": self.conditions.batch, "root": os.getcwd() if each.custom else ""}
                for index, each in chosen
            ],
            "cores": self.cores,
            "seed": self.started,
            "threads": self.conditions.threads,
            "probe_s": max(2, math.ceil(2 * self.conditions.timeout_s)) if self.started == 1 else 0,
            "period_s": plan.period_s,
            "discarded": plan.discarded,
            "warmup_s": plan.warmup_s,
            "warmup_calls": plan.warmup_calls,
        }  # fmt: skip

    def _blocks(self, ready: dict[str, float], plan: timing.Plan) -> list[tuple[int, int]]:
        models = [int(index) for index in ready]
        order = timing.schedule([ns / 1e9 for ns in ready.values()], plan, seed=self.started)
        return [(models[place], calls) for place, calls in order]

    def _note(self, seen: dict[int, dict[str, Any]], answer: dict[str, Any]) -> None:
        for word in ("probed", "opened"):
            if word in answer:
                self.facts.setdefault(answer[word], {key: answer[key] for key in ("memory_bytes", "batch", "runtime")})
        if "opened" in answer:
            seen[answer["opened"]] |= {key: answer[key] for key in ("first_ns", "load_ns")}

    def _visit(self, seen: dict[int, dict[str, Any]], index: int) -> Visit:
        reference = np.array([wall if math.isfinite(wall) else cpu for wall, cpu in seen[0]["blocks"]])
        mine = seen[index]
        return timing.visit(mine["blocks"], reference, first_ns=mine["first_ns"], load_ns=mine["load_ns"])

    def _blame(self, death: str, last: dict[str, Any], indices: list[int]) -> dict[int, Visit | str]:
        """The one model that the meter was at when it died, or all where it was at none of theirs."""
        if not last:
            raise DeviceError(f"nothing can be measured here: the meter {death} before it opened anything")
        culprit = last["at"] - 1
        if culprit in indices:
            return {culprit: f"{death} in {last['doing']}"}
        return dict.fromkeys(indices, f"the meter {death} in {last['doing']} of the reference model")


@contextlib.contextmanager
def _process(silence_s: float) -> Iterator[tuple[Callable[[dict[str, Any]], None], Iterator[dict[str, Any]]]]:
    """A fresh meter: a function to say something to it, and its answers, the last of which may be {"died": how}.

    It runs in a process group of its own, and is killed with whatever it started when the context ends.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {key: os.environ[key] for key in ("PYTHONPATH", "PYTHONHOME") if key in os.environ}
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryFile() as words:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-B", "-W", "ignore", str(METER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise DeviceError(f"nothing can be measured here: the meter cannot be started: {error}") from error
        mouth, ear = process.stdin, process.stdout
        assert mouth
        assert ear

        def say(message: dict[str, Any]) -> None:
            with contextlib.suppress(BrokenPipeError):  # it died: its answers tell
                os.write(mouth.fileno(), json.dumps(message).encode() + b"\n")

        try:
            yield say, _answers(process, ear.fileno(), silence_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            mouth.close()
            ear.close()


def _answers(process: subprocess.Popen[bytes], pipe: int, silence_s: float) -> Iterator[dict[str, Any]]:
    rest = b""
    while select.select([pipe], [], [], silence_s)[0]:
        chunk = os.read(pipe, 1 << 16)
        if not chunk:
            code = process.wait()
            yield {"died": f"died by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"}
            return
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            if "done" in answer:
                return
            yield answer
    yield {"died": f"gave no sign of life for {silence_s:g} s"}


@contextlib.contextmanager
def exclusive(name: str, waits: Callable[[], None]) -> Iterator[None]:
    """Hold the machine-wide lock of a device; the kernel lets it go when its holder dies. `waits` hears, every few
    seconds, that it is held.

    A lock needs no right to write: any user opens the file that another made. Cleaners of temporary files may take the
    file away, so what was locked must still be what the name means.
    """
    path = Path(tempfile.gettempdir()) / f"brisk-{name}.lock"
    while True:
        with contextlib.suppress(FileExistsError):
            made = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
            os.fchmod(made, 0o644)
            os.close(made)
        try:
            held = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with _again_and_again(waits):
                    fcntl.flock(held, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(held), path.stat()):
                yield
                return
        finally:
            os.close(held)


@contextlib.contextmanager
def _again_and_again(say: Callable[[], None]) -> Iterator[None]:
    """Say it now and every few seconds: who hears nothing more knows that this process does not wait, but hangs."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(SAID_S):
            say()

    say()
    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _pinned(threads: int, cores: Sequence[int] | None) -> list[int]:
    if cores is None:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if cores and threads > len(cores):
        raise InputError(
            f"threads = {threads} must be at most the cores that may be used, but they are {len(cores)}"
            f" ({', '.join(map(str, cores))}); ask for fewer threads"
        )
    return list(cores)[-threads:]


@functools.cache
def _reference() -> Path:
    found = hashlib.sha256(REFERENCE.read_bytes()).hexdigest()
    if found != REFERENCE_SHA256:
        raise ModelError(
            f"{REFERENCE} must be the frozen reference model, sha256 {REFERENCE_SHA256[:12]}..., "
            f"but got {found[:12]}...; install brisk again"
        )
    return REFERENCE


@functools.cache
def processor() -> str:
    """The processor's name, as the system gives it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
