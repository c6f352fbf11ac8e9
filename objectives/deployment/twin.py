"""The Keras 3 model that a user would have written: what the stock exporter is judged on."""

from __future__ import annotations

from typing import Any

import numpy as np

from spaces.backend import keras3
from spaces.build import Weights
from spaces.genotype import Architecture
from spaces.signature import PADDING, Signature

_LAYERS = {"lstm": "LSTM", "gru": "GRU", "simple_rnn": "SimpleRNN"}


def twin(architecture: Architecture, signature: Signature, weights: Weights, batch: int) -> Any:
    """A Keras 3 model equal to `serving_model`, of stock layers only, with `batch` as its static batch.

    Takes raw `x`, gives `y`: probabilities, or values in raw units. Raises ValueError for a cell that Keras has no
    layer for.
    """
    if not architecture.stock:
        raise ValueError(f"Keras 3 has no layers for rank, residual, brick or attention pooling, got {architecture}")
    if architecture.cell not in _LAYERS:
        raise ValueError(f"Keras 3 has no {architecture.cell} layer; it has {', '.join(_LAYERS)}")
    k = keras3()
    tokens = signature.vocabulary is not None
    shape = (batch, signature.time_steps) if tokens else (batch, signature.time_steps, signature.features)
    x = k.Input(batch_shape=shape, dtype="int32" if tokens else "float32", name="x")
    steps, mask = _prepared(k, x, architecture, signature)
    sequences = signature.sequences or architecture.readout == "mean"
    for number in range(1, architecture.layers + 1):
        inner = sequences or number < architecture.layers
        steps = _layer(k, architecture, f"layer{number}", inner)(steps, mask=mask)
    if not signature.sequences and architecture.readout == "mean":
        steps = k.layers.GlobalAveragePooling1D()(steps, mask=mask)
    y = k.layers.Dense(signature.outputs, name="head")(steps)
    model = k.Model(x, _answer(k, y, signature))
    for layer in model.layers:
        if layer.name in weights:
            layer.set_weights([*weights[layer.name], *weights.get(f"{layer.name}_backward", [])])
    return model


def _prepared(k: Any, x: Any, architecture: Architecture, signature: Signature) -> tuple[Any, Any]:
    """What the first layer takes, [batch, time, features], and the mask [batch, time] of the steps that count."""
    if signature.vocabulary is not None:
        mask = k.ops.not_equal(x, 0) if signature.masked else None
        steps = k.layers.Embedding(signature.vocabulary, architecture.embedding, name="embedding")(x)
    else:
        mask = k.ops.any(k.ops.not_equal(x, PADDING), axis=-1) if signature.masked else None
        steps = x
        if signature.mean:
            steps = (x - np.array(signature.mean, np.float32)) / np.array(signature.std, np.float32)
    if mask is not None:
        steps = k.ops.where(k.ops.expand_dims(mask, -1), steps, 0.0)
    return _stacked(k, steps, mask, architecture.frame_stack)


def _stacked(k: Any, steps: Any, mask: Any, frames: int) -> tuple[Any, Any]:
    """`frames` time steps side by side as one, the last one filled up with zeros."""
    if frames == 1:
        return steps, mask
    batch, time, features = steps.shape
    missing = -time % frames
    steps = k.ops.reshape(k.layers.ZeroPadding1D((0, missing))(steps), (batch, -1, frames * features))
    if mask is not None:
        mask = k.ops.any(k.ops.reshape(k.ops.pad(mask, ((0, 0), (0, missing))), (batch, -1, frames)), axis=-1)
    return steps, mask


def _layer(k: Any, architecture: Architecture, name: str, return_sequences: bool) -> Any:
    kind = getattr(k.layers, _LAYERS[architecture.cell])
    if not architecture.bidirectional:
        return kind(architecture.units, return_sequences=return_sequences, name=name)
    return k.layers.Bidirectional(kind(architecture.units, return_sequences=return_sequences), name=name)


def _answer(k: Any, y: Any, signature: Signature) -> Any:
    """Probabilities, or values in raw units, of what the head gives."""
    if signature.kind != "regression":
        return k.layers.Activation("softmax", name="probabilities")(y)
    if not signature.target_mean:
        return y
    return y * np.array(signature.target_std, np.float32) + np.array(signature.target_mean, np.float32)
