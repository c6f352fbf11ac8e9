"""What in a spec makes no sense although every value is of the right type."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objectives.bench import ACCELERATORS, ECONOMIES, TaskSpec, TrainingSpec
from objectives.latency.devices.device import DEVICES
from objectives.latency.timing import period_s
from objectives.objective import OBJECTIVES
from objectives.presets import GENERATED
from objectives.task import TASKS
from search import budget, warm
from spaces.catalog import CELLS
from spaces.errors import SpecError, nearest
from spaces.space import Space

if TYPE_CHECKING:
    from experiments.spec import Baseline, Objectives, Spec

SUFFIXES = (".keras", ".h5", ".hdf5")
"""Of a trained model's file."""

TEACHERS = ("baseline", "ensemble")
MAX_HINTS = 1000.0

LIMITS: dict[str, tuple[float, float]] = {
    "study.seed": (0, 2**31 - 1),
    "study.trials": (1, 100_000),
    "study.workers": (1, 256),
    "task.time_steps": (1, 100_000),
    "task.samples": (10, 10_000_000),
    "objectives.quality.max_error": (0, 1e12),
    "objectives.latency.max_ms": (1e-6, 1e6),
    "objectives.latency.threads": (1, 256),
    "objectives.latency.half_width": (0.001, 0.5),
    "objectives.latency.min_processes": (1, 100),
    "objectives.latency.max_processes": (1, 100),
    "objectives.size.max_kb": (1e-3, 1e9),
    "objectives.memory.max_kb": (1e-3, 1e9),
    "training.epochs": (1, 100_000),
    "training.batch_size": (1, 1_000_000),
    "training.patience": (1, 100_000),
    "training.clipnorm": (1e-6, 1e6),
    "training.temperature": (0.01, 100),
    "training.ensemble": (1, 32),
    "search.memory_limit_mb": (256, 10_000_000),
    "search.confirm_seeds": (1, 100),
}


def problems(spec: Spec) -> Iterator[tuple[str, str]]:
    """Every (key, what is wrong with its value and what to do), single keys first, then what does not fit together."""
    for key, (low, high) in LIMITS.items():
        table, *path = key.split(".")
        value = getattr(spec, table)
        for name in path:
            value = None if value is None else getattr(value, name)
        by_name = {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, dict) else {key: value}
        for place, one in by_name.items():
            if one is not None and not low <= one <= high:
                yield place, f"got {one}; it must lie from {low:g} to {high:g}"
    yield from _study_problems(spec)
    yield from _task_problems(spec.task)
    yield from _objective_problems(spec.objectives)
    yield from ((f"space.{key}", problem) for key, problem in spec.space.problems(spec.task.kind))
    if spec.baseline:
        yield from _baseline_problems(spec.baseline, spec.task.kind, Path(spec.root))
    yield from _search_problems(spec)
    if (accelerator := spec.training.accelerator) not in ACCELERATORS:
        yield "training.accelerator", f"got {accelerator!r}; {nearest(accelerator, ACCELERATORS)}"
    yield from _distillation_problems(spec)
    if spec.space.hypermodel and spec.training.distillation != (0.0,):
        problem = f"got {list(spec.training.distillation)}, but {spec.space.hypermodel} trains its models by itself"
        yield "training.distillation", f"{problem}; leave the key out"


def _study_problems(spec: Spec) -> Iterator[tuple[str, str]]:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", spec.study.name):
        yield "study.name", f"got {spec.study.name!r}; use letters, digits, '.', '_' and '-'"
    url = spec.storage.mlflow
    if url and "://" not in url:
        yield "storage.mlflow", f"got {url!r}; give a URL such as http://host:5000, or leave the key out"
    if url.startswith("sqlite:") and not url.startswith("sqlite:////"):
        problem = "begins at whatever folder a command is given in; give the whole path, as in sqlite:////srv/mlflow.db"
        yield "storage.mlflow", f"got {url!r}, which {problem}"


def _search_problems(spec: Spec) -> Iterator[tuple[str, str]]:
    if wrong := stopping(spec, spec.study.stop_when):
        yield "study.stop_when", wrong
    shares = spec.training.rungs
    if not all(0 < share < 1 for share in shares) or list(shares) != sorted(set(shares)):
        yield (
            "training.rungs",
            f"got {list(shares)}; give rising shares of the epochs, as in [0.2, 0.5]",
        )
    limits = {"stage_timeout": spec.search.stage_timeout_s, "memory_limit_mb": spec.search.memory_limit_mb}
    for key, limit in limits.items():
        for stage in limit if isinstance(limit, dict) else ():
            if stage not in budget.STAGES:
                yield f"search.{key}.{stage}", f"there is no such stage; {nearest(stage, budget.STAGES)}"
    yield from _sitting_problems(spec)
    for name in spec.search.without:
        if name not in ECONOMIES:
            yield "search.without", f"got {name!r}; {nearest(name, ECONOMIES)}"
    for name in spec.search.warm_start:
        if name.endswith(".toml"):
            try:
                warm.table(Path(spec.root) / name)
            except SpecError as error:
                yield "search.warm_start", str(error).removeprefix("search.warm_start: ")


def _sitting_problems(spec: Spec) -> Iterator[tuple[str, str]]:
    """A sitting ends with the process that is at work when its own time is up."""
    sitting_s, limit = spec.objectives.conditions.timeout_s, spec.search.stage_timeout_s
    if isinstance(limit, dict):
        named = {f".{stage}": limit.get(stage, budget.STAGE_TIMEOUT_S) for stage in budget.SITTINGS}
    else:
        named = {"": limit}
    for stage, seconds in named.items():
        if seconds < 2 * sitting_s:
            yield (
                f"search.stage_timeout{stage}",
                f"got {seconds:g} s, but a measurement may take twice objectives.latency.timeout, {sitting_s:g} s; "
                f"give it {2 * sitting_s:g} s or more",
            )


def stopping(spec: Spec, rule: str) -> str:
    """What is wrong with a rule to stop at; "" where nothing is, or where the kind of task is none."""
    task = TASKS.get(spec.task.kind)
    return budget.problem(rule, task.metric, baseline=spec.baseline is not None) if task else ""


def _task_problems(task: TaskSpec) -> Iterator[tuple[str, str]]:
    if task.kind not in TASKS:
        yield "task.kind", f"got {task.kind!r}; {nearest(task.kind, TASKS)}"
    elif task.metric not in ("", TASKS[task.kind].metric):
        yield "task.metric", f"got {task.metric!r}; {task.kind} is judged by {TASKS[task.kind].metric!r}"
    if not (min(task.splits) > 0 and abs(sum(task.splits) - 1) < 1e-6):
        yield "task.splits", f"got {list(task.splits)}; give three shares above 0 that sum to 1, as in [0.6, 0.2, 0.2]"
    if task.targets and not task.data.lower().endswith(".npy"):
        yield "task.targets", f"got {task.targets!r}, but data = {task.data!r} holds its own; leave the key out"
    for key in ("time_steps", "samples"):
        if getattr(task, key) is not None and task.data not in GENERATED:
            yield f"task.{key}", f"got {getattr(task, key)}; only {', '.join(GENERATED)} are generated, leave it out"


def _objective_problems(objectives: Objectives) -> Iterator[tuple[str, str]]:
    if len(objectives.names) < 2:
        named = ", ".join(objectives.names) or "none"
        yield "objectives", f"got {named}; name two or more of {', '.join(OBJECTIVES)}, as in quality = {{}}"
    if (latency := objectives.latency) is None:
        return
    if latency.device not in DEVICES and ":" not in latency.device:
        yield "objectives.latency.device", f"got {latency.device!r}; {nearest(latency.device, DEVICES)}"
    if latency.min_processes > latency.max_processes:
        problem = f"got {latency.min_processes}, more than max_processes = {latency.max_processes}; swap them"
        yield "objectives.latency.min_processes", problem
    try:
        period_s(latency.scenario)
    except SpecError as error:
        yield "objectives.latency.scenario", str(error)


def _baseline_problems(baseline: Baseline, kind: str, root: Path) -> Iterator[tuple[str, str]]:
    """An architecture is a space of one point, and must be a legal one; a model is a file that is there."""
    if baseline.model:
        yield from _model_problems(baseline, root)
        return
    if baseline.architecture is None:
        example = 'model = "my_rnn.keras", or architecture = { cell = "lstm", units = 128 }'
        yield "baseline", f"names no model; give {example}"
        return
    for key, value in (("custom", list(baseline.custom)), ("unsafe", baseline.unsafe)):
        if value:
            yield f"baseline.{key}", f"got {value!r}, but it is for opening a model file; leave the key out"
    if (cell := baseline.architecture.cell) not in CELLS:
        yield "baseline.architecture.cell", f"got {cell!r}; {nearest(cell, CELLS)}"
        return
    genotype = baseline.genotype
    point: dict[str, Any] = {}
    tables: dict[str, str] = {}
    for table in ("architecture", "training", "deployment"):
        for row in dataclasses.fields(getattr(genotype, table)):
            if row.name == "values":  # of a hypermodel, which no baseline is
                continue
            point[row.name] = (getattr(getattr(genotype, table), row.name),)
            tables[row.name] = table
    for key in ("distillation", "hints"):
        if point.pop(key) != (0.0,):
            yield f"baseline.training.{key}", "the baseline has no teacher; leave the key out"
    for key, problem in Space(**point).problems(kind):
        yield f"baseline.{tables[key]}.{key}", problem


def _model_problems(baseline: Baseline, root: Path) -> Iterator[tuple[str, str]]:
    for key in ("architecture", "training", "deployment"):
        if getattr(baseline, key) is not None:
            yield (
                f"baseline.{key}",
                f"stands beside model = {baseline.model!r}, which is trained already; give only one",
            )
    path = root / baseline.model
    known = f"a model is a {', '.join(SUFFIXES)} file or a SavedModel folder"
    if not path.exists():
        yield "baseline.model", f"got {baseline.model!r}; there is no such file in {root.resolve()}; {known}"
    elif path.is_dir() and not (path / "saved_model.pb").exists():
        yield "baseline.model", f"got {baseline.model!r}, a folder without saved_model.pb; {known}"
    elif path.is_file() and path.suffix.lower() not in SUFFIXES:
        yield "baseline.model", f"got {baseline.model!r}; {known}"


def _distillation_problems(spec: Spec) -> Iterator[tuple[str, str]]:
    training, unlabelled = spec.training, spec.task.unlabelled
    alphas, hints = training.distillation, training.hints
    if not hints or not all(0 <= weight <= MAX_HINTS for weight in hints) or len(set(hints)) < len(hints):
        yield "training.hints", f"got {list(hints)}; name weights of the hint from 0 to {MAX_HINTS:g}, each once"
    if training.teacher not in TEACHERS:
        yield "training.teacher", f"got {training.teacher!r}; {nearest(training.teacher, TEACHERS)}"
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas) or len(set(alphas)) < len(alphas):
        yield "training.distillation", f"got {list(alphas)}; name shares of the teacher from 0 to 1, each once"
    elif max(alphas) == 0:
        yield from _untaught_problems(training, unlabelled)
    elif training.teacher == "ensemble" and 0 not in alphas:
        problem = f"got {list(alphas)}, but an ensemble is chosen among those that had no teacher; add 0 to the list"
        yield "training.distillation", problem
    elif training.teacher == "baseline" and not (spec.baseline and spec.baseline.teacher):
        remedy = 'set baseline.teacher = true, or training.teacher = "ensemble"'
        yield "training.distillation", f"got {list(alphas)}, but nothing teaches; {remedy}"


def _untaught_problems(training: TrainingSpec, unlabelled: str) -> Iterator[tuple[str, str]]:
    """What a teacher alone is good for, where none is asked for."""
    remedy = "set training.distillation to shares of it in the loss, as in [0.0, 0.5]"
    if unlabelled:
        yield "task.unlabelled", f"got {unlabelled!r}, but unlabelled data teach nothing without a teacher; {remedy}"
    if training.hints and max(training.hints) > 0:
        yield "training.hints", f"got {list(training.hints)}, but hints come from a teacher; {remedy}"
    if training.teacher == "ensemble":
        yield "training.teacher", f"got 'ensemble', but nothing is distilled; {remedy}"
