"""The tasks that every cell is trained on, each with its budget, the same for all cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from objectives.bench import TaskSpec, TrainingSpec
from objectives.data import Dataset, load
from objectives.task import TASKS as KINDS
from objectives.training.fit import fit
from spaces.build import build, put_weights, serving_model, weights_of
from spaces.errors import CandidateError, ModelError
from spaces.genotype import Architecture, Training

LONGER = 60  # steps of the longer parity strings; those trained on have 20


@dataclass(frozen=True)
class Task:
    """What is learned, by what model, in how many epochs; `judge` gives its figures, by name, of a trained model."""

    spec: TaskSpec
    judge: Callable[[Any, Dataset, Architecture, int], dict[str, float | None]]
    epochs: int
    learning_rate: float = 4e-3
    model: dict[str, Any] = field(default_factory=dict)
    cells: tuple[str, ...] = ()  # () for all

    def learn(self, cell: str, seed: int) -> dict[str, Any]:
        """Train the cell, and say what came of it on the test part."""
        data = load(self.spec, seed=seed, root=".")
        architecture = Architecture(cell, **self.model)
        model = build(architecture, data.signature, seed)
        training = TrainingSpec(epochs=self.epochs, patience=self.epochs)
        try:
            told = fit(model, data, Training(self.learning_rate), training, seed=seed)
        except CandidateError as failure:
            return {"failed": failure.reason}
        figures = self.judge(model, data, architecture, seed)
        return {**figures, "epochs": told["epochs_run"], "train_s": round(told["train_s"], 1)}


def answers(model: Any, data: Dataset, x: Any) -> Any:
    """What the served model answers."""
    return serving_model(model, data.signature).predict(x, batch_size=256, verbose=0)


def accuracy(model: Any, data: Dataset, architecture: Architecture, seed: int) -> dict[str, float | None]:
    """The task's own metric."""
    return {"accuracy": KINDS[data.signature.kind].score(data.test.y, answers(model, data, data.test.x))}


def over_constant(model: Any, data: Dataset, architecture: Architecture, seed: int) -> dict[str, float | None]:
    """How many times smaller the mean squared error is than that of always answering the mean."""
    y = data.test.y
    error = float(np.mean((answers(model, data, data.test.x) - y) ** 2))
    return {"times_better": float(np.mean((y - data.train.y.mean(axis=0)) ** 2)) / error}


def short_and_long(model: Any, data: Dataset, architecture: Architecture, seed: int) -> dict[str, float | None]:
    """The share of steps told right: of unseen strings, and of longer ones."""
    signature = replace(data.signature, time_steps=LONGER)
    longer = load(replace(PARITY, time_steps=LONGER, samples=600), seed=seed + 1000, root=".").test
    found = accuracy(model, data, architecture, seed)
    try:
        stretched = build(architecture, signature, seed)
        put_weights(stretched, weights_of(model))
    except ModelError:  # its weights are of one length
        return {**found, "longer": None}
    answered = serving_model(stretched, signature).predict(longer.x, batch_size=256, verbose=0)
    return {**found, "longer": KINDS["tagging"].score(longer.y, answered)}


def answered_characters(model: Any, data: Dataset, architecture: Architecture, seed: int) -> dict[str, float | None]:
    """The share of characters of the sums told right, the question's steps not counted."""
    behind = (data.signature.time_steps + 1) // 3
    told = answers(model, data, data.test.x)[:, -behind:].argmax(axis=-1)
    return {"accuracy": float(np.mean(told == data.test.y[:, -behind:]))}


PARITY = TaskSpec("tagging", "parity", time_steps=20, samples=2000)
TASKS = {
    "digits": Task(TaskSpec("classification", "digits-rows"), accuracy, 25, model={"units": 64, "layers": 2}),
    "parity": Task(PARITY, short_and_long, 40, model={"units": 32, "embedding": 8}),
    "adding": Task(
        TaskSpec("regression", "adding", time_steps=200, samples=5000), over_constant, 15, model={"units": 64}
    ),
    "characters": Task(
        TaskSpec("tagging", "characters", time_steps=100, samples=2000),
        accuracy,
        8,
        model={"units": 64, "embedding": 16},
    ),
    "addition": Task(
        TaskSpec("tagging", "addition", time_steps=8, samples=5000),
        answered_characters,
        150,
        model={"units": 128, "embedding": 12},
        cells=("lstm",),
    ),
}
