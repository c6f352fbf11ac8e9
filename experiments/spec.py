"""What the user wrote: a TOML file, or a shipped preset, as frozen records that are known to make sense."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.problems import problems
from experiments.table import Place, override, record
from objectives.bench import Bench, TaskSpec, TrainingSpec
from objectives.model_file import ModelFile, code, layers_of, sha256_of
from objectives.objective import OBJECTIVES
from objectives.outcome import Conditions
from objectives.sources import importable
from search.budget import STAGE_TIMEOUT_S
from search.history import Plan
from spaces.catalog import CELLS
from spaces.errors import SpecError, nearest
from spaces.genotype import Architecture, Deployment, Genotype, Training
from spaces.hyperspace import KEYS
from spaces.space import Space

PRESETS = Path(__file__).parent / "presets"
TAUGHT = (0.0, 0.5)  # what is searched of `training.distillation` where the baseline teaches and nothing else is said


@dataclass(frozen=True)
class StudySpec:
    """The `[study]` table. `name` is the file's unless given; without `timeout_s` the trials are the only end; without
    `workers` there are as many as serve the machine best (`experiments.launch`).
    """

    name: str = ""
    seed: int = 0
    trials: int = 40
    timeout_s: float | None = None
    workers: int | None = None
    stop_when: str = ""


@dataclass(frozen=True)
class Baseline:
    """The `[baseline]` table: the model that speedup and drop are against, an architecture or a trained model's file.

    Without `deployment` it is served as people export today, through the stock converter with dynamic range
    quantisation, an architecture by Keras 3; a cell that Keras does not have, in float32 by its own first lowering.
    `custom` and `unsafe` say what opening the file may run (`spaces.lowering.load`).
    """

    architecture: Architecture | None = None
    model: str = ""
    custom: tuple[str, ...] = ()
    unsafe: bool = False
    training: Training | None = None
    deployment: Deployment | None = None
    teacher: bool = False

    @property
    def genotype(self) -> Genotype:
        """The baseline as a candidate."""
        if self.architecture is None:
            return Genotype.of_model(Path(self.model).name, Deployment("keras", bits="8"))
        first = CELLS[self.architecture.cell].lowerings
        usual = Deployment("keras", bits="8") if "keras" in first else Deployment(first[0])
        return Genotype(self.architecture, self.training or Training(), self.deployment or usual)

    def file(self, root: str) -> ModelFile | None:
        """The trained model's file as it is now; None for an architecture."""
        if not self.model:
            return None
        sha256, layers = sha256_of(Path(root) / self.model), layers_of(self.custom, root)
        return ModelFile(self.model, sha256, self.custom, self.unsafe, layers=layers)


@dataclass(frozen=True)
class QualityBound:
    """`quality = { max_error }`: of the task's error, 1 - accuracy or rmse."""

    max_error: float | None = None


@dataclass(frozen=True)
class LatencyBound(Conditions):
    """`latency = { device, scenario, threads, max_ms }`, `max_ms` per sequence, and other conditions of measuring."""

    device: str = "local"
    max_ms: float | None = None


@dataclass(frozen=True)
class SizeBound:
    """`size = { max_kb }`: of the file, in KiB; likewise `memory`, of the peak."""

    max_kb: float | None = None


@dataclass(frozen=True)
class Objectives:
    """The `[objectives]` table: those named are weighed, two or more; a bound is a hard constraint."""

    quality: QualityBound | None = None
    latency: LatencyBound | None = None
    size: SizeBound | None = None
    memory: SizeBound | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives asked for, in the order of `OBJECTIVES`."""
        return tuple(name for name in OBJECTIVES if getattr(self, name) is not None)

    @property
    def bounds(self) -> dict[str, float]:
        """Objective -> bound, in the objective's unit."""
        bounds = {name: getattr(getattr(self, name), OBJECTIVES[name].bound) for name in self.names}
        return {name: bound for name, bound in bounds.items() if bound is not None}

    @property
    def conditions(self) -> Conditions:
        """How latency is measured, whether or not it is weighed."""
        latency = self.latency or LatencyBound()
        return Conditions(**{row.name: getattr(latency, row.name) for row in dataclasses.fields(Conditions)})


@dataclass(frozen=True)
class SearchSpec:
    """The `[search]` table. `trial_timeout_s` holds for one trained model with all its forms, `stage_timeout_s` for
    each stage of it but training, `memory_limit_mb` for a worker: TensorFlow takes 1 GiB, and the models that are kept
    up to half of that again. Both may be tables by stage (`search.budget.STAGES`): one that is not named has the
    default time, training that of the trial, and no limit of memory. `without` are economies switched off, to see what
    they bring. `confirm_seeds` says how often the members of the front are trained in all.
    """

    sampler: str = "auto"
    warm_start: tuple[str, ...] = ("known",)
    trial_timeout_s: float = 1800.0
    stage_timeout_s: float | dict[str, float] = STAGE_TIMEOUT_S
    memory_limit_mb: int | dict[str, int] | None = None
    confirm_seeds: int = 1
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class StorageSpec:
    """The `[storage]` table: an MLflow tracking URI in place of the home's own store."""

    mlflow: str = ""


@dataclass(frozen=True)
class Spec:
    """A study as it was asked for. `root` is the folder that relative paths start from."""

    objectives: Objectives
    study: StudySpec = field(default_factory=StudySpec)
    task: TaskSpec = field(default_factory=TaskSpec)
    baseline: Baseline | None = None
    space: Space = field(default_factory=Space)
    training: TrainingSpec = field(default_factory=TrainingSpec)
    search: SearchSpec = field(default_factory=SearchSpec)
    storage: StorageSpec = field(default_factory=StorageSpec)
    root: str = field(default="", metadata={"unwritten": True})

    def bench(self, home: str) -> Bench:
        """The conditions under which every candidate is made and judged, with stages kept in `home`."""
        return Bench(
            task=self.task,
            training=self.training,
            seed=self.study.seed,
            device=self.objectives.latency.device if self.objectives.latency else "local",
            conditions=self.objectives.conditions,
            bounds=self.objectives.bounds,
            home=home,
            teacher=self.baseline.genotype if self.baseline and self.baseline.teacher else None,
            quantize_head=self.space.quantize_head,
            root=self.root,
            model=self.baseline.file(self.root) if self.baseline else None,
            hypermodel=code(self.space.hypermodel, self.root) if self.space.hypermodel else None,
            without=self.search.without,
        )

    def plan(self, home: str) -> Plan:
        """What a study that goes on must share with its start: all but trials, timeouts, workers and places."""
        baseline = self.baseline.genotype if self.baseline else None
        return Plan(
            bench=self.bench(home),
            space=self.space,
            objectives=self.objectives.names,
            baseline=baseline,
            sampler=self.search.sampler,
            warm_start=self.search.warm_start,
            confirm_seeds=self.search.confirm_seeds,
            tracking=self.storage.mlflow,
        )


def presets() -> dict[str, Path]:
    """The shipped specs by name."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}


def read(path_or_preset: str, sets: Sequence[str] = ()) -> Spec:
    """The spec in a file or preset, with `key.path=value` overrides.

    Modules of the user's own beside the file can be imported from then on. Raises SpecError, saying file, key, value
    and remedy, where anything in it is unknown or does not fit the rest.
    """
    path = presets().get(path_or_preset, Path(path_or_preset))
    shipped = path_or_preset in presets()
    if path.is_dir() or path.suffix in (".keras", ".h5", ".hdf5", ".tflite"):
        raise SpecError(
            f"{path_or_preset}: is no spec, which is a .toml file or a preset ({', '.join(presets())}); for a trained "
            f"model there is `brisk rewrite {path_or_preset} --out DIR`, and in a spec `[baseline] model`"
        )
    if not path.is_file():
        raise SpecError(
            f"{path_or_preset}: there is no such file and no such preset; {nearest(path_or_preset, presets())}"
        )
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: is not TOML: {error}; strings need quotes, tables stand in [brackets]") from error
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    place = Place(path.name if shipped else str(path), sets=tuple(override(tables, item) for item in sets))
    _refuse(tables, place)
    tables.setdefault("objectives", {})
    spec = record(Spec, tables, place)
    spec = dataclasses.replace(
        spec,
        study=dataclasses.replace(spec.study, name=spec.study.name or _named_after(path)),
        root=str(Path.cwd() if shipped else path.parent.resolve()),
    )
    teaches = spec.baseline is not None and spec.baseline.teacher and not spec.space.hypermodel
    if teaches and "distillation" not in tables.get("training", {}):
        spec = dataclasses.replace(spec, training=dataclasses.replace(spec.training, distillation=TAUGHT))
    for key, problem in problems(spec):
        raise place.at(key).error(problem)
    importable(spec.root)
    return spec


def _named_after(path: Path) -> str:
    """A study's name from its file's, which may hold what a study's may not."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-") or "study"


def _refuse(tables: dict[str, Any], place: Place) -> None:
    later = {
        "objectives.latency.batch": "the batch is part of the candidate; set space.batch instead",
        "storage.optuna": "studies are kept in the home's own SQLite file for now; leave the key out",
    }
    for key, remedy in later.items():
        value: Any = tables
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            raise place.at(key).error(f"got {value!r}; {remedy}")
    space = tables.get("space")
    if isinstance(space, dict) and "hypermodel" in space:
        for key in (row.name for row in dataclasses.fields(Space) if row.name in space and row.name not in KEYS):
            problem = f"got {space[key]!r}, but space.hypermodel says what is built and trained; leave the key out"
            raise place.at("space").at(key).error(problem)
