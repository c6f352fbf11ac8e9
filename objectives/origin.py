"""Where a group's weights come from: trained by us, or the user's own model; the stations need not know which."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from objectives.bench import Bench, Emit
from objectives.data import Dataset
from objectives.given import Given
from objectives.trained import Trained
from spaces.genotype import Deployment, Genotype


class Origin(Protocol):
    """A model that can be answered for and converted; `history` tells of its training."""

    trains: bool
    history: dict[str, Any]

    def start(self) -> None:
        """Take the weights that training begins with."""

    def train(self, emit: Emit) -> None:
        """Take the trained weights."""

    def answer(self, x: NDArray[Any]) -> NDArray[Any]:
        """What the float model gives for the data's x: the oracle of every form."""

    def lower(self, asked: Deployment) -> bytes:
        """The .tflite of a form; only the stock converter narrows it."""

    def exporter(self, asked: Deployment) -> str:
        """Who made the file of a form, for people."""


def origin_of(bench: Bench, data: Dataset, genotype: Genotype) -> Origin:
    """The origin of a genotype's group. Raises InputError where the user's model or code cannot be opened."""
    if genotype.architecture.hypermodel:
        from objectives.built import Built  # KerasTuner and Keras 3, which few studies need

        return Built(bench, data, genotype)
    return Given(bench, data) if genotype.architecture.model else Trained(bench, data, genotype)
