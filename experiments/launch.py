"""`brisk run`: the spec becomes a plan, the plan a study; workers are driven, MLflow is told, the front is shown."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import psutil

from experiments.problems import stopping
from experiments.progress import Progress
from experiments.publish import publish, shows, sink
from experiments.report import console, write
from experiments.show import print_json
from experiments.spec import Objectives, Spec, read
from experiments.table import Place, duration_s
from objectives.bench import Bench
from objectives.outcome import Outcome
from search.budget import STAGE_TIMEOUT_S, STAGES, Limits
from search.drive import drive, shares
from search.history import History
from search.lock import disk_trouble_told
from search.outbox import Outbox
from search.study import Study
from search.summary import nearest_miss, summarise
from spaces.errors import InputError, NothingFeasible, SpecError
from spaces.record import from_json

REHEARSAL = "-rehearsal"
WINDING_DOWN = "finishing the stage at work, then the front is measured once more; Ctrl-C again stops at once"
SHOWN_EVERY_S = 20.0  # the front in MLflow while a study runs
SELDOM = 50  # times what it took to sum it up, till the next time: the workers wait for who does it
SHIPPING_S = 30.0  # how long the end of a run waits for what is under way to MLflow
WORKER_BYTES = 2**31  # TensorFlow takes 1 GiB with a small model, and half of that more with those that it keeps
MOST_WORKERS = 8  # unless asked: what so many are at, the next proposal can only guess
MANY = 100  # trials that are left to send then, of which it is said: they take seconds and more


def launch(
    spec_name: str,
    sets: tuple[str, ...],
    *,
    home: Path,
    trials: int | None = None,
    timeout: str | None = None,
    workers: int | None = None,
    stop_when: str | None = None,
    name: str | None = None,
    rehearse: bool = False,
    as_json: bool = False,
) -> None:
    """Run a study to the end of its budget, or go on with it, and print its front.

    Raises InputError for a wrong spec, data or home, NothingFeasible where no candidate kept within the bounds, and
    KeyboardInterrupt after everything finished has been kept.
    """
    spec = read(spec_name, sets)
    if wrong := stopping(spec, stop_when or ""):
        raise InputError(f"--stop-when: {wrong}")
    limits = limits_of(spec, trials=trials, timeout=timeout, workers=workers, stop_when=stop_when)
    plan = spec.plan(str(usable(home)))
    check_threads(plan.bench, limits.workers)
    study_name = (name or spec.study.name) + (REHEARSAL if rehearse else "")
    if rehearse:
        plan = replace(plan, evaluator="objectives.rehearsal")
    with (
        disk_trouble_told(home),
        Study.start(home, study_name, plan) as study,
        _shipping(study, home) if not rehearse else nullcontext() as outbox,
    ):
        ended = _work(study, limits, outbox)
        history = study.history()
    summary = summarise(history)
    if as_json:
        print_json(summary)
    else:
        write(summary, console())
    if outbox:
        outbox.close(SHIPPING_S)
        _show_in_mlflow(home, history, outbox)
    if ended == "interrupted":
        raise KeyboardInterrupt
    if not summary["front"]:
        raise NothingFeasible(f"the study {study_name!r} found nothing within its bounds: {nearest_miss(history)}")


def _show_in_mlflow(home: Path, history: History, outbox: Outbox) -> None:
    """Send what is left, after the front was shown: thousands of trials take minutes."""
    sync = f"`brisk sync {history.name}` sends"
    if outbox.pending > MANY and not outbox.reason:
        click.echo(f"brisk: sending {outbox.pending} trials to MLflow; {sync} what Ctrl-C leaves", err=True)
    if reason := outbox.reason or publish(home, history):
        click.echo(f"brisk: MLflow does not show it all yet ({reason}); {sync} it", err=True)


def limits_of(
    spec: Spec,
    *,
    trials: int | None = None,
    timeout: str | None = None,
    workers: int | None = None,
    stop_when: str | None = None,
) -> Limits:
    """The budget: the spec's, where the command line does not say otherwise.

    Training has the whole of a trial's time, unless the spec limits that stage by name.
    """
    seconds = duration_s(timeout, Place("--timeout")) if timeout else spec.study.timeout_s
    asked, memory = spec.search.stage_timeout_s, spec.search.memory_limit_mb
    usual, named = (STAGE_TIMEOUT_S, asked) if isinstance(asked, dict) else (asked, {})
    each_memory = memory if isinstance(memory, dict) else {}
    machine = allowed()
    return Limits(
        trials=trials or spec.study.trials,
        timeout_s=seconds,
        workers=workers or spec.study.workers or most_useful(spec.objectives, *machine),
        group_timeout_s=spec.search.trial_timeout_s,
        stage_timeouts={**dict.fromkeys(set(STAGES) - {"train"}, usual), **named},
        memory_limit_bytes=memory * 2**20 if isinstance(memory, int) else None,
        stage_memory_bytes={stage: mib * 2**20 for stage, mib in each_memory.items()},
        stop_when=stop_when or spec.study.stop_when,
    )


def allowed(groups: Path = Path("/sys/fs/cgroup"), mine: Path = Path("/proc/self/cgroup")) -> tuple[int, int]:
    """Cores and free bytes that this process may use: the machine's, or what a container or slice leaves of them."""
    cores, free = len(os.sched_getaffinity(0)), psutil.virtual_memory().available
    try:
        within = next(line for line in mine.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return cores, free
    group = groups / within.removeprefix("0::").strip("/")
    for folder in (group, *group.parents):
        if folder.is_relative_to(groups):
            quota, period = _numbers_in(folder / "cpu.max", 2)
            most, used = (_numbers_in(folder / name, 1)[0] for name in ("memory.max", "memory.current"))
            used = (used or 0) - _files_kept(folder / "memory.stat")
            cores = min(cores, max(1, int(quota / period))) if quota and period else cores
            free = min(free, max(0, most - used)) if most else free
    return cores, free


def _files_kept(file: Path) -> int:
    """The bytes of files in memory, which are given back where memory is short."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return 0
    return sum(int(count) for name, count in lines if name in ("inactive_file", "active_file"))


def _numbers_in(file: Path, count: int) -> list[int | None]:
    """The whole numbers of a file of the kernel's, None for "max" and where there is none."""
    try:
        words = file.read_text().split()
    except OSError:
        words = []
    return [int(word) if word.isdigit() else None for word in (*words, *[""] * count)][:count]


def most_useful(objectives: Objectives, cores: int, free_bytes: int) -> int:
    """How many workers serve a machine best: each with the cores that it measures with, and room in memory.

    Two with a core each train more sequences than one with two (`experiments/claims/training.py`).
    """
    local = objectives.latency is None or objectives.latency.device == "local"
    cores_each = objectives.conditions.threads if local else 1
    return max(1, min(cores // cores_each, free_bytes // WORKER_BYTES, MOST_WORKERS))


def check_threads(bench: Bench, workers: int) -> None:
    """Raise SpecError where a worker would have fewer cores than the threads it must measure with."""
    split = shares(workers)
    threads, fewest = bench.conditions.threads, min(map(len, split))
    if bench.device == "local" and threads > fewest:
        cores = len({core for share in split for core in share})
        raise SpecError(
            f"objectives.latency.threads: got {threads}, but {workers} worker{'s' * (workers > 1)} on {cores} "
            f"core{'s' * (cores > 1)} leave{'s' * (workers == 1)} {fewest} for each; "
            "ask for fewer threads, or for fewer --workers"
        )


def usable(home: Path) -> Path:
    """The home, made if it is not there. Raises InputError where it cannot be written."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        (home / ".writable").touch()
        (home / ".writable").unlink(missing_ok=True)  # of another run, at the same time
    except OSError as error:
        raise InputError(
            f"the home {home} cannot be written ({error.strerror}); name another with --home or BRISK_HOME"
        ) from None
    return home.resolve()


def _work(study: Study, limits: Limits, outbox: Outbox | None) -> str:
    """Drive the study and judge its front, with everybody told who wants to know; gives why it ended."""
    told = tuple(study.outcomes.values())
    with Progress(trials=limits.trials, timeout_s=limits.timeout_s, before=told) as progress:
        due = time.monotonic() + SHOWN_EVERY_S

        def hear(event: dict[str, Any]) -> None:
            nonlocal due
            progress(event)
            if outbox and event["event"] == "told" and shows(event["trial"]):
                outbox.put(event["trial"], from_json(Outcome, event["outcome"]))
            elif outbox and event["event"] == "group" and (began := time.monotonic()) > due:
                outbox.show(summarise(study))
                due = time.monotonic() + max(SHOWN_EVERY_S, SELDOM * (time.monotonic() - began))

        with _endable(lambda: progress.say(WINDING_DOWN)) as wind_down:
            return drive(study, limits, hear, wind_down)


@contextmanager
def _shipping(study: Study, home: Path) -> Iterator[Outbox]:
    """An outbox that has heard of what the study holds already; closed at once where the study ends by an error."""
    history = study.history()
    outbox = Outbox(sink(home, history))
    for name, outcome in history.candidates.items():
        outbox.put(name, outcome)
    try:
        yield outbox
    except BaseException:
        outbox.close(0.0)  # `brisk sync` sends the rest
        raise


@contextmanager
def _endable(say: Callable[[], None]) -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event and is spoken of, the second raises KeyboardInterrupt, as a termination signal
    does at once, or a terminal that is closed: workers are ended, everything finished is kept.
    """
    wind_down = threading.Event()

    def interrupt(number: int, frame: Any) -> None:
        if number == signal.SIGINT and not wind_down.is_set():
            wind_down.set()
            say()
        else:
            raise KeyboardInterrupt

    ending = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        ending.append(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in ending}
    try:
        yield wind_down
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
