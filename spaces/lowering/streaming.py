"""The model as a stream sees it: the next frames and the state go in, the output and the new state come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spaces.errors import ModelError
from spaces.lowering.form import Session
from spaces.lowering.load import Loaded, Port, unique
from spaces.lowering.recurrence import Level, levels_of
from spaces.lowering.rewrite import recurrent_layers

LETTERS = {2: ("h", "c"), 1: ("h",)}
LOOKS_AHEAD = (
    "Bidirectional", "GlobalAveragePooling1D", "GlobalMaxPooling1D", "AveragePooling1D", "MaxPooling1D", "Flatten",
    "Permute", "Attention", "AdditiveAttention", "MultiHeadAttention", "GroupQueryAttention", "Conv1DTranspose",
    "UpSampling1D", "ZeroPadding1D", "Cropping1D", "RepeatVector",
)  # fmt: skip
"""Layers whose output at a step depends on later steps, or on how many there are."""


@dataclass(frozen=True)
class Kept:
    """One tensor that passes from call to call: the layer it belongs to, its name, its shape without the batch."""

    layer: str
    name: str
    shape: tuple[int, ...]


def kept_states(loaded: Loaded) -> list[Kept]:
    """The states of a causal model, zeros before the first frame.

    Raises ModelError for one that is not causal, naming the layer that looks ahead, or has nothing to keep.
    """
    if loaded.keras is None:
        raise ModelError("it cannot stream: a SavedModel without layers does not show its states")
    kinds = loaded.keras.layers
    known, left = recurrent_layers(loaded)
    if left:
        raise ModelError(f"it cannot stream: the layer {left[0].name} ({type(left[0]).__name__}) is left as it is")
    states: list[Kept] = []
    for layer in loaded.layers:
        kind = type(layer).__name__
        if kind in LOOKS_AHEAD:
            raise ModelError(f"it cannot stream: the layer {layer.name} ({kind}) needs steps that have not come yet")
        if getattr(layer, "go_backwards", False):
            raise ModelError(f"it cannot stream: the layer {layer.name} works backwards in time")
        if type(layer) is kinds.Conv1D:
            states += _past(layer)
    for layer in known:
        levels = levels_of(layer, loaded.keras) or []
        states += [Kept(layer.name, name, (units,)) for name, units in _names(layer.name, levels)]
    if not states:
        raise ModelError("it cannot stream: it keeps nothing from one step to the next, so call it frame by frame")
    names = unique([state.name for state in states], "state")
    return [Kept(state.layer, name, state.shape) for state, name in zip(states, names, strict=True)]


def give(session: Session, states: Sequence[Kept], tensors: Sequence[Any]) -> None:
    """Let the layers start from these tensors [batch, ...], one a state."""
    session.given, session.left = {}, {}
    for state, tensor in zip(states, tensors, strict=True):
        session.given[state.layer] = [*session.given.get(state.layer, []), tensor]


def taken(session: Session, states: Sequence[Kept]) -> list[Any]:
    """The states that the layers ended with, in the order of `states`.

    Raises ModelError where a layer was not called exactly once, so that it has no state of its own.
    """
    ended = [tensor for name in dict.fromkeys(state.layer for state in states) for tensor in session.left.get(name, [])]
    if len(ended) != len(states):
        raise ModelError("it cannot stream: a recurrent layer is not part of what the model computes")
    return ended


def state_port(state: Kept, batch: int) -> Port:
    """The input that a state comes in by."""
    return Port(state.name, (batch, *state.shape), "float32")


def _names(layer: str, levels: Sequence[Level]) -> list[tuple[str, int]]:
    several = len(levels) > 1
    return [
        (f"{layer}_{place}_{letter}" if several else f"{layer}_{letter}", level.units)
        for place, level in enumerate(levels)
        for letter in LETTERS[level.cell.states]
    ]


def _past(layer: Any) -> list[Kept]:
    size, rate = layer.kernel_size[0], layer.dilation_rate[0]
    if size == 1 and layer.strides[0] == 1:
        return []
    if layer.padding != "causal" or layer.strides[0] != 1 or layer.groups != 1:
        raise ModelError(
            f"it cannot stream: the layer {layer.name} (Conv1D) must have padding='causal', stride 1 and one group"
        )
    return [Kept(layer.name, f"{layer.name}_past", ((size - 1) * rate, int(layer.kernel.shape[1])))]
