"""How a user's model is to run, and what one tracing of it remembers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spaces.lowering.recurrence import Level
from spaces.scan import Tensor


@dataclass(frozen=True)
class Form:
    """How the recurrent layers run.

    `lowering`: "loop" (brisk's WHILE, `steps` time steps an iteration; as many as there are unrolls it), "keras3"
    (the WHILE of Keras 3) or "fused" (the layers of Keras 2, whose LSTM TFLite turns into one operation). `stacked`:
    recurrent layers that follow one another share one loop. `projection`: inputs are multiplied "ahead", all at once
    before the loop, "inside", a round's at once, or "joined" with the state, one product a step (`recurrence.Joined`).
    """

    lowering: str = "loop"
    steps: int = 1
    stacked: bool = False
    projection: str = "ahead"


@dataclass(frozen=True)
class Chain:
    """A layer's whole sequence, and how it came about, so that the next layer may go on in the same loop."""

    sequence: Tensor  # held, for chains are found by its id
    levels: list[Level]
    x: Tensor
    mask: Tensor


@dataclass
class Session:
    """What one tracing remembers. `given` are states to start from by layer name, and `left` those it ended with.

    With `streaming`, a tracing goes on where the one before ended: a masked first step repeats the output before it.
    """

    form: Form
    streaming: bool = False
    chains: dict[int, Chain] = field(default_factory=dict)
    given: dict[str, Sequence[Tensor]] = field(default_factory=dict)
    left: dict[str, list[Tensor]] = field(default_factory=dict)
    joined: int = 0  # layers that went on in the loop of the one before
    twins: list[Any] = field(default_factory=list)  # layers of the other Keras, whose variables the graph reads
