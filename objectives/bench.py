"""The bench: the fixed conditions under which every candidate of a study is made and judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from objectives.model_file import ModelFile
from objectives.outcome import Conditions
from spaces.genotype import Genotype

ACCELERATORS = ("auto", "cpu", "gpu", "tpu")
"""What `training.accelerator` may ask for: all devices of that kind, or of the fastest kind that there is."""

ECONOMIES = ("siblings", "look", "halving", "deploy", "prior", "pour", "graphs")
"""What a search saves by: a trained model served in every form at once; its measurement before training; training
stopped at rungs; no file of a trained form that others beat; proposals skipped by the fitted latency model; trained
weights put into the file of the look; models kept with their graphs, to be trained again at another rate. Each can be
switched off (`search.without`), to see what it brings.
"""

Emit = Callable[[dict[str, Any]], None]
"""How a worker says what it is at: events, as JSON."""

Ask = Callable[[dict[str, Any]], Any]
"""How a worker asks its driver something, as JSON, and waits for the answer."""


@dataclass(frozen=True)
class TaskSpec:
    """The `[task]` table. `data`: a preset's name, a path, or "module:function"; `splits` = train, validation, test."""

    kind: str = "classification"
    data: str = "digits-rows"
    metric: str = ""  # "" is the kind's own: accuracy, rmse, accuracy
    splits: tuple[float, float, float] = (0.6, 0.2, 0.2)
    targets: str = ""  # the .npy file of y, where `data` is a .npy file of x
    unlabelled: str = ""  # a path or "module:function" of sequences that a teacher alone answers for
    time_steps: int | None = None  # of the generated presets "adding" and "parity"
    samples: int | None = None  # sequences to generate, for the same


@dataclass(frozen=True)
class TrainingSpec:
    """The `[training]` table. `distillation` are the alphas searched, `hints` the weights of the hint in the loss.

    `teacher`: "baseline", which needs `baseline.teacher`, or "ensemble", the mean of the `ensemble` best of the study.
    """

    epochs: int = 30
    batch_size: int = 32
    patience: int = 8  # epochs without a better validation loss before early stopping
    clipnorm: float = 1.0
    distillation: tuple[float, ...] = (0.0,)
    temperature: float = 2.0
    hints: tuple[float, ...] = (0.0,)
    teacher: str = "baseline"
    ensemble: int = 3
    accelerator: str = "auto"  # one of `ACCELERATORS`
    rungs: tuple[float, ...] = (0.2, 0.5)  # shares of the epochs at which a training may be stopped; () for never


@dataclass(frozen=True)
class Bench:
    """What a worker needs to evaluate any candidate of one study; equal benches may share finished stages."""

    task: TaskSpec
    training: TrainingSpec
    seed: int
    device: str
    conditions: Conditions
    bounds: dict[str, float]  # objective name -> bound, in the objective's unit
    home: str
    teacher: Genotype | None = None  # the baseline, where it teaches or may be of the ensemble
    ensemble: tuple[Genotype, ...] = ()  # the study's best, once they are settled
    quantize_head: bool = False  # of our lowerings; it saves nothing and costs the most error
    root: str = ""  # folder that relative data paths start from (the spec's)
    extra: dict[str, str] = field(default_factory=dict)
    data_digest: str = ""  # of the data that the study was begun on; "" before they were read
    model: ModelFile | None = None  # the user's own trained model, where that is the baseline
    hypermodel: ModelFile | None = None  # the user's code that builds the candidates, where brisk does not
    without: tuple[str, ...] = ()  # those of `ECONOMIES` that are switched off
    in_full: bool = False  # every measurement at length, for these figures are final
    repeat: int = 0  # which training of the same candidate: of another seed, the data's split apart

    @property
    def training_seed(self) -> int:
        """Of random weights and the order of sequences; that of the data's split is `seed`, whatever the repeat."""
        return self.seed + self.repeat

    @property
    def teachers(self) -> tuple[Genotype, ...]:
        """Whom the distilled candidates learn from; more than one teach their mean."""
        if self.training.teacher == "ensemble":
            return self.ensemble
        return (self.teacher,) if self.teacher else ()

    def file_of(self, genotype: Genotype) -> ModelFile | None:
        """What is the user's behind a genotype; None where all is brisk's."""
        if genotype.architecture.hypermodel:
            return self.hypermodel
        return self.model if genotype.architecture.model else None
