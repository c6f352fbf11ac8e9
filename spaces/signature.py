"""What goes into a model of a study and what comes out, with the constants of preprocessing that travel inside it."""

from __future__ import annotations

from dataclasses import dataclass

PADDING = -1.0e9
"""The float that fills the steps after a short sequence's end; a model derives its mask from it. Tokens pad with 0."""


@dataclass(frozen=True)
class Signature:
    """Input `x`: float32 [batch, time, features] in raw units, or int32 [batch, time] where `vocabulary` is set.

    Output: [batch, outputs], for tagging [batch, time, outputs]. Keras models give logits (classification, tagging) or
    normalised values (regression); deployed models give probabilities or values in raw units.
    """

    kind: str  # "classification" | "regression" | "tagging"
    time_steps: int
    features: int  # 0 for tokens
    outputs: int
    vocabulary: int | None = None
    masked: bool = False  # some sequences are shorter than `time_steps`
    mean: tuple[float, ...] = ()  # per feature, of the training part; x is used as (x - mean) / std
    std: tuple[float, ...] = ()
    target_mean: tuple[float, ...] = ()  # per output, regression only
    target_std: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def sequences(self) -> bool:
        """Whether one output is given for every time step."""
        return self.kind == "tagging"
