"""From an architecture to the Keras model that trains it, and to the graph that serves the same weights.

Both carry the whole way from raw `x` to the answer inside: mask, normalisation, frames, cells, readout, head. Importing
this module registers brisk's own Keras layers, so that a saved model loads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from spaces.backend import keras, seed_initializers, tf
from spaces.cells.cell import Cell, CellLayer, backwards, find_cell
from spaces.cells.products import dense
from spaces.cells.recurrent import RecurrentCell, written_out
from spaces.errors import ModelError, SpecError
from spaces.genotype import Architecture, Deployment
from spaces.pooling import AttentionPooling, pooled
from spaces.scan import Tensor
from spaces.signature import PADDING, Signature

Weights = dict[str, list[np.ndarray]]
"""By layer name: "embedding", "layer1", "layer1_backward", "layer2", ..., "head"; arrays in Keras's order."""


def build(architecture: Architecture, signature: Signature, seed: int, *, loops: bool = False) -> Any:
    """A fresh Keras model: raw x [batch, time, features] float32, or tokens [batch, time] int32, to logits
    (classification, tagging) or normalised values (regression).

    The same seed gives the same weights, if initializers draw by Keras, NumPy or Python. Keras's own layers come
    without a loop where that trains faster, unless `loops`. Raises SpecError where the architecture makes no sense for
    the signature.
    """
    if signature.sequences and architecture.frame_stack > 1:
        raise SpecError(
            f"space.frame_stack must be 1 for tagging, which labels every step, but got {architecture.frame_stack}."
        )
    seed_initializers(seed)
    cell = cell_of(architecture)
    x = inputs = _input(signature)
    for layer in _preparation(architecture, signature):
        x = layer(x)
    if architecture.brick:
        brick = cell.layer(architecture.units, name="brick")
        x = Bricks(brick if loops else _written_out(brick, architecture.brick), architecture.brick, name="bricks")(x)
    for index in range(1, architecture.layers + 1):
        sequences = _sequences(architecture, signature, index)
        layer = cell.layer(architecture.units, return_sequences=sequences, name=f"layer{index}")
        if not (loops or (signature.masked and architecture.bidirectional)):  # Keras would turn the mask the wrong way
            layer = _written_out(layer, x.shape[1])
        y = (_both_ways(layer) if architecture.bidirectional else layer)(x)
        if architecture.dropout:
            y = keras.layers.Dropout(architecture.dropout, name=f"dropout{index}")(y)
        if architecture.residual and index > 1:
            y = keras.layers.Add(name=f"residual{index}")([x if sequences else LastStep(name="last")(x), y])
        x = y
    if not signature.sequences and architecture.readout == "mean":
        x = keras.layers.GlobalAveragePooling1D(name="mean")(x)
    if not signature.sequences and architecture.readout == "attention":
        x = AttentionPooling(name="pooling")(x)
    model = keras.Model(inputs, keras.layers.Dense(signature.outputs, name="head")(x))
    put_weights(model, {name: _start(cell, name, arrays) for name, arrays in weights_of(model).items()})
    return model


def recurrent(model: Any) -> bool:
    """Whether a layer of a Keras model takes its steps one after the other, in a loop or written out."""
    own = (find_cell(one.cell) for one in model.submodules if isinstance(one, CellLayer))
    stock = any(isinstance(one, keras.layers.RNN) for one in model.submodules)
    return stock or any(isinstance(cell, RecurrentCell) for cell in own)


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

    x float32 [batch, time, features] or int32 [batch, time]; for every lowering but "keras".
    """
    cell = cell_of(architecture)

    def graph(x: Tensor) -> Tensor:
        x, mask = prepared(architecture, signature, weights, x)
        if architecture.brick:
            x, mask = _read_bricks(cell, weights["bricks"], x, mask, architecture.brick, deployment)
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
            y = tf.concat(ways, axis=-1) if len(ways) == 2 else ways[0]
            if architecture.residual and index > 1:
                y += x if sequences else x[:, -1]
            x = y
        if not signature.sequences and architecture.readout == "mean":
            x = tf.reduce_mean(x, 1) if mask is None else tf.reduce_sum(x * mask, 1) / tf.reduce_sum(mask, 1)
        if not signature.sequences and architecture.readout == "attention":
            with tf.name_scope("head"):
                x = pooled(x, weights["pooling"][0], mask)
        with tf.name_scope("head"):
            return answer_of(dense(x, *weights["head"]), signature)

    return graph


def cell_of(architecture: Architecture) -> Cell:
    """The cell of an architecture's layers, its matrices factored if asked for."""
    return find_cell(architecture.cell + (f"@{architecture.rank}" if architecture.rank else ""))


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


def prepared(architecture: Architecture, signature: Signature, weights: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
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
        # Of rank 3, or TFLite would fold it into the first kernel, where the widest feature coarsens the rest's grid.
        x = (x - np.array(signature.mean, np.float32)) * (1.0 / np.array(signature.std, np.float32)).reshape(1, 1, -1)
    if architecture.frame_stack > 1:
        x, mask = _stacked(x, mask, architecture.frame_stack)
    return x, mask


def _sequences(architecture: Architecture, signature: Signature, index: int) -> bool:
    """Whether this layer gives every step: all but the last do, and that one unless only its last step is read."""
    return index < architecture.layers or signature.sequences or architecture.readout != "last"


def _written_out(layer: Any, steps: int) -> Any:
    """The layer without a loop, where that trains faster; brisk's own layers see to it themselves."""
    if type(layer) in (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN) and written_out(steps):
        return type(layer).from_config({**layer.get_config(), "unroll": True})
    return layer


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
    return cell.initialise(arrays) if name.startswith(("layer", "bricks")) else arrays


def answer_of(logits: Tensor, signature: Signature) -> Tensor:
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


def _read_bricks(
    cell: Cell, weights: list[np.ndarray], x: Tensor, mask: Tensor, size: int, deployment: Deployment
) -> tuple[Tensor, Tensor]:
    """What `Bricks` makes of x, and its mask."""
    bricks, marks, mask = _bricks(x, mask, size)
    last = cell.lowered(weights, bricks, marks, return_sequences=False, go_backwards=False, deployment=deployment)
    return tf.reshape(last, [x.shape[0], -1, last.shape[-1]]), mask


def _bricks(x: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bricks [batch x bricks, size, features] with their masks, filled up with masked zeros at the end; and the mask
    [batch, bricks, 1] of those with a step that counts.
    """
    _, time, features = x.shape
    short, whole = -time % size, mask is None
    if short:
        mask = tf.ones_like(x[:, :, :1]) if whole else mask
        x, mask = (tf.pad(each, [[0, 0], [0, short], [0, 0]]) for each in (x, mask))
    bricks = tf.reshape(x, [-1, size, features])
    marks = None if mask is None else tf.reshape(mask, [-1, size, 1])
    if whole:
        return bricks, marks, None
    return bricks, marks, tf.reshape(tf.reduce_max(marks, 1), [-1, (time + short) // size, 1])


@keras.saving.register_keras_serializable(package="brisk")
class Bricks(keras.layers.Wrapper):  # type: ignore[misc]
    """ShaRNN's first stage (Dennis 2019, "Shallow RNNs"): a recurrent layer reads bricks of `size` steps side by side,
    each from a state of zeros, and gives its last state of each: [batch, time, features] -> [batch, bricks, units].

    A loop of `size` steps and one of time / size in place of one of time.
    """

    def __init__(self, layer: Any, size: int, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        self.size = size
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Make the inner layer's weights."""
        if not self.layer.built:
            self.layer.build((None, self.size, input_shape[-1]))
            self.layer.built = True
        self.built = True

    @tf.autograph.experimental.do_not_convert
    def call(self, inputs: Tensor, mask: Tensor = None, training: bool | None = None) -> Tensor:
        """The last states."""
        marks = None if mask is None else tf.cast(mask, inputs.dtype)[:, :, None]
        bricks, marks, _ = _bricks(inputs, marks, self.size)
        last = self.layer(bricks, mask=None if marks is None else marks[:, :, 0] > 0.0, training=training)
        return tf.reshape(last, [-1, -(-inputs.shape[1] // self.size), last.shape[-1]])

    def compute_mask(self, inputs: Tensor, mask: Tensor = None) -> Tensor:
        """A brick counts if any of its steps does."""
        if mask is None:
            return None
        marks = tf.cast(mask, tf.float32)[:, :, None]
        return _bricks(marks, marks, self.size)[2][:, :, 0] > 0.0

    def get_config(self) -> dict[str, Any]:
        """What makes the layer again."""
        return {**super().get_config(), "size": self.size}


@keras.saving.register_keras_serializable(package="brisk")
class LastStep(keras.layers.Layer):  # type: ignore[misc]
    """The last step of a sequence; a masked one repeats the output before it, so the last that counts."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Tensor = None) -> Tensor:
        """[batch, time, units] -> [batch, units]."""
        return inputs[:, -1]

    def compute_mask(self, inputs: Tensor, mask: Tensor = None) -> Tensor:
        """There are no steps any more."""
        return None


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
