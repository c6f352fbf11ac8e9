"""From an architecture to the Keras model that trains it, and to the graph that serves the same weights.

Both carry the whole way from raw `x` to the answer inside: mask, normalisation, frames, cells, readout, head. Importing
this module registers brisk's own Keras layers, so that a saved model loads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import spaces.cells.fast
import spaces.cells.linear  # noqa: F401  (registers its layers, as `fast` does its cell)
from spaces.backend import keras, tf
from spaces.cells.cell import backwards, dense, find_cell
from spaces.errors import ModelError, SpecError
from spaces.genotype import Architecture, Deployment
from spaces.scan import Tensor
from spaces.signature import PADDING, Signature

Weights = dict[str, list[np.ndarray]]
"""By layer name: "embedding", "layer1", "layer1_backward", "layer2", ..., "head"; arrays in Keras's order."""


def build(architecture: Architecture, signature: Signature, seed: int) -> Any:
    """A fresh Keras model: raw x [batch, time, features] float32, or tokens [batch, time] int32, to logits
    (classification, tagging) or normalised values (regression).

    Seeds TensorFlow, NumPy and Python: the same seed gives the same weights. Raises SpecError where the architecture
    makes no sense for the signature.
    """
    if signature.sequences and architecture.frame_stack > 1:
        raise SpecError(
            f"space.frame_stack must be 1 for tagging, which labels every step, but got {architecture.frame_stack}."
        )
    keras.utils.set_random_seed(seed)
    cell = find_cell(architecture.cell)
    x = inputs = _input(signature)
    for layer in _preparation(architecture, signature):
        x = layer(x)
    for index in range(1, architecture.layers + 1):
        layer = cell.layer(
            architecture.units, return_sequences=_sequences(architecture, signature, index), name=f"layer{index}"
        )
        x = (_both_ways(layer) if architecture.bidirectional else layer)(x)
        if architecture.dropout:
            x = keras.layers.Dropout(architecture.dropout, name=f"dropout{index}")(x)
    if not signature.sequences and architecture.readout == "mean":
        x = keras.layers.GlobalAveragePooling1D(name="mean")(x)
    model = keras.Model(inputs, keras.layers.Dense(signature.outputs, name="head")(x))
    put_weights(model, {name: _start(cell, name, arrays) for name, arrays in weights_of(model).items()})
    return model


def weights_of(model: Any) -> Weights:
    """The trained arrays of a model from `build`, by layer name."""
    return {name: layer.get_weights() for name, layer in _weighted(model)}


def put_weights(model: Any, weights: Weights) -> None:
    """Set what `weights_of` gave. Raises ModelError where names or shapes are another architecture's."""
    layers = dict(_weighted(model))
    if layers.keys() != weights.keys():
        raise ModelError(f"the model has layers {sorted(layers)}, but the weights are of {sorted(weights)}.")
    for name, layer in layers.items():
        try:
            layer.set_weights(weights[name])
        except ValueError as error:
            raise ModelError(f"the weights do not fit the layer {name!r}: {error}") from error


def serving_model(model: Any, signature: Signature) -> Any:
    """The model as it is served in Keras: the same weights, giving probabilities or values in raw units.

    Saves as .keras (loads after `import spaces.build`) and as a SavedModel, with a free batch.
    """
    if signature.kind != "regression":
        answer = keras.layers.Activation("softmax", name="probabilities")
    elif signature.target_mean:
        answer = keras.layers.Rescaling(list(signature.target_std), list(signature.target_mean), name="raw_units")
    else:
        answer = keras.layers.Activation("linear", name="raw_units")
    return keras.Model(model.input, answer(model.output))


def served(
    architecture: Architecture, signature: Signature, weights: Weights, deployment: Deployment
) -> Callable[[Tensor], Tensor]:
    """The lowered graph, a traceable function of static x that gives what `serving_model` gives.

    x float32 [batch, time, features] or int32 [batch, time]; for the lowerings "loop" and "scan".
    """
    cell = find_cell(architecture.cell)

    def graph(x: Tensor) -> Tensor:
        x, mask = _prepared(architecture, signature, weights, x)
        for index in range(1, architecture.layers + 1):
            sequences = _sequences(architecture, signature, index)
            ways = [
                cell.lowered(
                    weights[name], x, mask, return_sequences=sequences, go_backwards=back, deployment=deployment
                )
                for name, back in ((f"layer{index}", False), (f"layer{index}_backward", True))
                if name in weights
            ]
            if len(ways) == 2:
                ways[1] = backwards(ways[1]) if sequences else ways[1]
            x = tf.concat(ways, axis=-1) if len(ways) == 2 else ways[0]
        if not signature.sequences and architecture.readout == "mean":
            x = tf.reduce_mean(x, 1) if mask is None else tf.reduce_sum(x * mask, 1) / tf.reduce_sum(mask, 1)
        with tf.name_scope("head"):
            return _answer(dense(x, *weights["head"]), signature)

    return graph


def _input(signature: Signature) -> Any:
    if signature.vocabulary:
        return keras.Input((signature.time_steps,), dtype="int32", name="x")
    return keras.Input((signature.time_steps, signature.features), dtype="float32", name="x")


def _preparation(architecture: Architecture, signature: Signature) -> Iterator[Any]:
    """The layers from raw x to the first cell; plain Keras ones wherever there is no mask to hand on.

    Rescaling, for Keras's Normalization takes a deviation below 1e-7 for 1e-7: data in metres or farads would vanish.
    """
    if signature.vocabulary:
        yield keras.layers.Embedding(
            signature.vocabulary, architecture.embedding, mask_zero=signature.masked, name="embedding"
        )
    elif signature.masked:
        yield keras.layers.Masking(PADDING, name="mask")
    if signature.mean and not signature.vocabulary:
        kind = MaskedRescaling if signature.masked else keras.layers.Rescaling
        yield kind(1.0, [-mean for mean in signature.mean], name="centre")  # first, or large means would lose digits
        yield kind([1.0 / std for std in signature.std], name="scale")
    if architecture.frame_stack > 1:
        yield FrameStack(architecture.frame_stack, name="frames")


def _prepared(architecture: Architecture, signature: Signature, weights: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    """What `_preparation`'s layers make of x, and the mask [batch, time, 1] as floats, or None where there is none."""
    mask = None
    if signature.vocabulary:
        mask = tf.cast(x != 0, tf.float32)[:, :, None] if signature.masked else None
        with tf.name_scope("embedding"):
            x = tf.gather(tf.constant(weights["embedding"][0]), x)
    elif signature.masked:
        mask = tf.cast(x[:, :, :1] > PADDING / 2, tf.float32)
        x = x * mask
    if signature.mean and not signature.vocabulary:
        x = (x - np.array(signature.mean, np.float32)) * (1.0 / np.array(signature.std, np.float32))
    if architecture.frame_stack > 1:
        x, mask = _stacked(x, mask, architecture.frame_stack)
    return x, mask


def _sequences(architecture: Architecture, signature: Signature, index: int) -> bool:
    """Whether this layer gives every step: all but the last do, and that one unless only its last step is read."""
    return index < architecture.layers or signature.sequences or architecture.readout == "mean"


def _both_ways(forward: Any) -> Any:
    """The layer and its like working backwards, outputs side by side."""
    config = {**forward.get_config(), "go_backwards": True, "name": f"{forward.name}_backward"}
    backward = type(forward).from_config(config)
    return keras.layers.Bidirectional(forward, backward_layer=backward, name=forward.name)


def _weighted(model: Any) -> Iterator[tuple[str, Any]]:
    """Layers with trained weights, by the name their weights go under; the two halves of a Bidirectional apart."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.Bidirectional):
            yield layer.name, layer.forward_layer
            yield f"{layer.name}_backward", layer.backward_layer
        elif layer.trainable_weights:
            yield layer.name, layer


def _start(cell: Any, name: str, arrays: list[np.ndarray]) -> list[np.ndarray]:
    return cell.initialise(arrays) if name.startswith("layer") else arrays


def _answer(logits: Tensor, signature: Signature) -> Tensor:
    if signature.kind != "regression":
        return tf.nn.softmax(logits)
    if signature.target_mean:
        return logits * np.array(signature.target_std, np.float32) + np.array(signature.target_mean, np.float32)
    return logits


def _stacked(x: Tensor, mask: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Frames of `factor` steps, padded at the end: [batch, time, features] -> [batch, frames, factor x features].

    A frame counts if any of its steps does; a masked step in it reads as zeros, the mean of normalised data.
    """
    _, time, features = x.shape
    short = -time % factor
    frames = (time + short) // factor
    if mask is not None:
        x = x * mask
        mask = tf.reduce_max(tf.reshape(tf.pad(mask, [[0, 0], [0, short], [0, 0]]), [-1, frames, factor]), 2, True)
    if short:
        x = tf.pad(x, [[0, 0], [0, short], [0, 0]])
    return tf.reshape(x, [-1, frames, factor * features]), mask


@keras.saving.register_keras_serializable(package="brisk")
class MaskedRescaling(keras.layers.Rescaling):  # type: ignore[misc]
    """Keras's Rescaling, which drops the mask, handing it on."""

    def __init__(self, scale: Any, offset: Any = 0.0, **kwargs: Any) -> None:
        super().__init__(scale, offset, **kwargs)
        self.supports_masking = True


@keras.saving.register_keras_serializable(package="brisk")
class FrameStack(keras.layers.Layer):  # type: ignore[misc]
    """`factor` time steps side by side as one: fewer, wider steps (Sak 2015, arXiv 1507.06947)."""

    def __init__(self, factor: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Tensor = None) -> Tensor:
        """[batch, time, features] -> [batch, ceil(time / factor), factor x features]."""
        marks = None if mask is None else tf.cast(mask, inputs.dtype)[:, :, None]
        return _stacked(inputs, marks, self.factor)[0]

    def compute_mask(self, inputs: Tensor, mask: Tensor = None) -> Tensor:
        """A frame counts if any of its steps does."""
        if mask is None:
            return None
        marks = tf.cast(mask, tf.float32)[:, :, None]
        return _stacked(marks, marks, self.factor)[1][:, :, 0] > 0.0

    def get_config(self) -> dict[str, Any]:
        """What makes the layer again."""
        return {**super().get_config(), "factor": self.factor}
