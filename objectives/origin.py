"""Where a group's weights come from: trained by us, or the user's own model; the stations need not know which."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from objectives.bench import Bench, Emit
from objectives.data import Dataset
from objectives.given import Given
from objectives.trained import Trained
from objectives.training.rungs import GoesOn, never_stopped
from spaces.genotype import Deployment, Genotype


class Origin(Protocol):
    """A model that can be answered for and converted; `history` tells of its training."""

    trains: bool
    history: dict[str, Any]

    @property
    def blueprint(self) -> str:
        """Names what the file of an untrained model depends on, but for its form; "" where that is not known."""

    @property
    def trained_as(self) -> str:
        """Names the trained weights by all they depend on; "" where that is not known."""

    def start(self) -> None:
        """Take the weights that training begins with."""

    def train(self, emit: Emit, goes_on: GoesOn = never_stopped) -> None:
        """Take the trained weights; `goes_on` is asked at each rung, if this origin has any. May raise Stopped."""

    def answer(self, x: NDArray[Any]) -> NDArray[Any]:
        """What the float model gives for the data's x: the oracle of every form."""

    def lower(self, asked: Deployment) -> bytes:
        """The .tflite of a form; only the stock converter narrows it."""

    def poured(self, content: bytes, asked: Deployment) -> bytes | None:
        """A float file of a form, lowered after `start`, with the trained weights in it; None where that cannot be."""

    def exporter(self, asked: Deployment) -> str:
        """Who made the file of a form, for people."""


def origin_of(bench: Bench, data: Dataset, genotype: Genotype) -> Origin:
    """The origin of a genotype's group. Raises InputError where the user's model or code cannot be opened."""
    if genotype.architecture.hypermodel:
        from objectives.built import Built  # KerasTuner and Keras 3, which few studies need

        return Built(bench, data, genotype)
    return Given(bench, data) if genotype.architecture.model else Trained(bench, data, genotype)
