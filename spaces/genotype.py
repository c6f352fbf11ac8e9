"""A point of the space, in three groups that are reused apart: one architecture is trained once per `Training` and
deployed in many ways.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace

from spaces.gene import Values
from spaces.record import digest

MODEL = "model:"
"""What the cell of a user's own model begins with; the name of its file follows."""

HYPERMODEL = "hypermodel:"
"""What the cell of a model that the user's code builds begins with; "module:build" follows."""


NEARLY = 1.05
"""Learning rates that round to the same power of this count as one."""


@dataclass(frozen=True)
class Architecture:
    """What is built: `layers` recurrent layers of `units` units over frames of `frame_stack` time steps."""

    cell: str
    units: int
    layers: int = 1
    bidirectional: bool = False
    frame_stack: int = 1
    readout: str = "last"  # "last" | "mean" | "attention"; unused by tagging, which reads every step
    embedding: int = 32  # width of the token embedding; unused by float sequences
    dropout: float = 0.0
    rank: int = 0  # of the factors of the recurrent matrices; 0 for whole matrices
    residual: bool = False  # whether a layer's input is added to its output, from the second layer on
    brick: int = 0  # steps that a layer ahead reads at once, bricks side by side; 0 for none (ShaRNN)
    values: Values = field(default=(), metadata={"unwritten": True})  # of a hypermodel, which has nothing of the above

    @property
    def stock(self) -> bool:
        """Whether it is made of layers that Keras has, its cell apart."""
        return not (self.rank or self.residual or self.brick or self.readout == "attention")

    @property
    def hypermodel(self) -> str:
        """The "module:build" of the user's that builds it from `values`; else ""."""
        return self.cell.removeprefix(HYPERMODEL) if self.cell.startswith(HYPERMODEL) else ""

    @property
    def model(self) -> str:
        """The name of the file, where this is the user's own trained model, which nothing of ours builds; else ""."""
        return self.cell.removeprefix(MODEL) if self.cell.startswith(MODEL) else ""


@dataclass(frozen=True)
class Training:
    """How it is trained: `distillation` is alpha, the teacher's share of the loss, `sparsity` the share of zeros.

    `hints` is the weight of a loss beside it, that the states resemble the teacher's; 0 without distillation.
    """

    learning_rate: float = 3e-3
    distillation: float = 0.0
    sparsity: float = 0.0
    hints: float = 0.0
    pruned_units: float = 0.0  # the share of hidden units cut out of the trained model
    qat: str = ""  # the bits that the weights are trained for; "" for none
    block: int = 1  # zeros of `sparsity` come in rows of so many, along the outputs

    @property
    def before(self) -> Training | None:
        """The training that this one goes on from, which others may share; None where it starts from random weights."""
        if self.qat:
            return replace(self, qat="")
        return replace(self, pruned_units=0.0) if self.pruned_units else None


@dataclass(frozen=True)
class Deployment:
    """How it is served.

    `lowering`: "loop" (WHILE with `steps` time steps an iteration), "scan" (parallel prefix, `steps` is 1), "parallel"
    (a cell without a state, as it is) or "keras" (the stock converter on the equivalent Keras 3 model, on a user's own
    as it is). "stacked" is for a user's own model only: a loop that layers in a row share. `bits`: see `catalog.BITS`.
    `batch`: sequences a call.
    """

    lowering: str = "loop"
    steps: int = 1
    bits: str = "32"
    batch: int = 1


Alike = tuple[Architecture, Training, int | None]
"""Architecture, training but for its rate, and about which rate."""


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
    def served(self) -> Architecture:
        """What is left of the architecture once units are cut out, all layers alike."""
        if not self.training.pruned_units:
            return self.architecture
        units = kept_units(self.architecture.units, self.training.pruned_units)
        return replace(self.architecture, units=units)

    @functools.cached_property
    def group(self) -> str:
        """Names the trained model; candidates of one group differ in deployment only."""
        return digest(self.architecture, self.training)

    @functools.cached_property
    def alike(self) -> Alike:
        """The trained model but for a rate that is nearly the same: what tells two such apart is luck."""
        rate = self.training.learning_rate
        near = round(math.log(rate, NEARLY)) if rate > 0 else None
        return self.architecture, replace(self.training, learning_rate=0.0), near

    @functools.cached_property
    def key(self) -> str:
        """Names the candidate."""
        return digest(self)


def kept_units(units: int, pruned: float) -> int:
    """How many units are left when this share is cut out: a multiple of 16, as kernels work, of few units one of 4."""
    step = 16 if units >= 32 else 4
    return min(units, max(step, int(units * (1.0 - pruned) / step + 0.5) * step))
