"""What enters the head of the user's own model: the states that hints teach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from spaces.backend import tf
from spaces.errors import ModelError
from spaces.lowering.load import Loaded


def telling(loaded: Loaded, where: str) -> Loaded:
    """The model with a second output, what enters its last Dense layer: [batch, (time,) width].

    Raises ModelError, beginning with `where`, for a model that has no such layer.
    """
    if loaded.keras is None:
        raise ModelError(
            f"{where}: is a SavedModel, which has no layers to take hints from; give the .keras or .h5 file of it, or "
            "leave training.hints out"
        )
    head = next(_heads(loaded.model, loaded.keras.layers), None)
    if head is None:
        raise ModelError(
            f"{where}: has no Dense layer, before which hints are taken; leave training.hints out, or end it in one"
        )

    def call(tensors: Sequence[Any]) -> list[Any]:
        entered: list[Any] = []

        def noting(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            entered.append(inputs)
            return type(head).call(head, inputs, *args, **kwargs)

        object.__setattr__(head, "call", tf.autograph.experimental.do_not_convert(noting))
        try:
            return [*loaded.call(tensors), entered[-1]]
        finally:
            object.__delattr__(head, "call")

    return replace(loaded, call=call)


def _heads(model: Any, layers: Any) -> Iterator[Any]:
    """The Dense layers of a model and of those inside it, the last first; one for each step counts as a Dense layer."""
    for layer in reversed(model.layers):
        inner = layer.layer if isinstance(layer, layers.TimeDistributed) else layer
        if isinstance(inner, layers.Dense):
            yield layer
        elif hasattr(layer, "layers"):
            yield from _heads(layer, layers)
