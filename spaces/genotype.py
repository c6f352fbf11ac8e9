"""A point of the space, in three groups that are reused apart: one architecture is trained once per `Training` and
deployed in many ways.
"""

from __future__ import annotations

from dataclasses import dataclass

from spaces.record import digest

MODEL = "model:"
"""What the cell of a user's own model begins with; the name of its file follows."""


@dataclass(frozen=True)
class Architecture:
    """What is built: `layers` recurrent layers of `units` units over frames of `frame_stack` time steps."""

    cell: str
    units: int
    layers: int = 1
    bidirectional: bool = False
    frame_stack: int = 1
    readout: str = "last"  # "last" | "mean"; unused by tagging, which reads every step
    embedding: int = 32  # width of the token embedding; unused by float sequences
    dropout: float = 0.0

    @property
    def model(self) -> str:
        """The name of the file, where this is the user's own trained model, which nothing of ours builds; else ""."""
        return self.cell.removeprefix(MODEL) if self.cell.startswith(MODEL) else ""


@dataclass(frozen=True)
class Training:
    """How it is trained: `distillation` is alpha, the teacher's share of the loss, `sparsity` the share of zeros."""

    learning_rate: float = 3e-3
    distillation: float = 0.0
    sparsity: float = 0.0


@dataclass(frozen=True)
class Deployment:
    """How it is served.

    `lowering`: "loop" (WHILE with `steps` time steps an iteration), "scan" (parallel prefix, `steps` is 1) or
    "keras" (the stock converter on the equivalent Keras 3 model, on a user's own as it is). "stacked" is for a user's
    own model only: a loop that layers in a row share. `bits`: see `catalog.BITS`. `batch`: sequences a call.
    """

    lowering: str = "loop"
    steps: int = 1
    bits: str = "32"
    batch: int = 1


@dataclass(frozen=True)
class Genotype:
    """One candidate."""

    architecture: Architecture
    training: Training
    deployment: Deployment

    @classmethod
    def of_model(cls, name: str, deployment: Deployment) -> Genotype:
        """The user's own trained model of this file name; it is not ours to train."""
        return cls(Architecture(MODEL + name, units=0), Training(learning_rate=0.0), deployment)

    @property
    def group(self) -> str:
        """Names the trained model; candidates of one group differ in deployment only."""
        return digest(self.architecture, self.training)

    @property
    def key(self) -> str:
        """Names the candidate."""
        return digest(self)
