"""What stands in for single layers of a user's model while it is traced: the same answers, in operations that run fast.

Each function gives the `call` of one layer instance, or None where the layer is best left alone.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from spaces.backend import keras as keras2
from spaces.backend import keras3, tf
from spaces.lowering.form import Session
from spaces.scan import Tensor


def parts(inputs: Any, initial_state: Any) -> tuple[Tensor, list[Tensor]]:
    """The sequence, and the states that came with it, flat; none where it starts at zero."""
    if isinstance(inputs, list | tuple):
        inputs, initial_state = inputs[0], list(inputs[1:]) or initial_state
    return inputs, [tf.cast(each, tf.float32) for each in tf.nest.flatten(initial_state) if each is not None]


def dense(layer: Any) -> Callable[..., Any] | None:
    """One FULLY_CONNECTED over all steps, where Keras makes a BATCH_MATMUL of it."""
    if getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False):
        return None

    def call(inputs: Tensor, **ignored: Any) -> Tensor:
        if len(inputs.shape) < 3:
            return type(layer).call(layer, inputs)
        kernel = tf.convert_to_tensor(layer.kernel)
        product = tf.matmul(tf.reshape(tf.cast(inputs, kernel.dtype), [-1, inputs.shape[-1]]), kernel)
        if layer.use_bias:
            product = product + tf.convert_to_tensor(layer.bias)
        product = tf.reshape(product, [*inputs.shape[:-1], kernel.shape[-1]])
        return product if layer.activation is None else layer.activation(product)

    return call


def causal(layer: Any, session: Session) -> Callable[..., Any]:
    """A causal convolution that sees what came before its block, and leaves the end of it for the next."""

    def call(inputs: Tensor, **ignored: Any) -> Tensor:
        (past,) = session.given[layer.name]
        seen = tf.concat([past, inputs], axis=1)
        session.left[layer.name] = [seen[:, seen.shape[1] - past.shape[1] :]]
        kernel, rate = tf.convert_to_tensor(layer.kernel), layer.dilation_rate[0]
        found = tf.nn.conv1d(seen, kernel, stride=1, padding="VALID", dilations=rate)
        if layer.use_bias:
            found = found + tf.convert_to_tensor(layer.bias)
        return found if layer.activation is None else layer.activation(found)

    return call


def time_distributed(layer: Any, kinds: Any) -> Callable[..., Any] | None:
    """All steps as one batch, which is the same for layers that keep batch entries apart, as all do at inference."""
    inner = layer.layer
    if isinstance(inner, kinds.RNN | kinds.Bidirectional) or getattr(inner, "stateful", False):
        return None

    def call(inputs: Tensor, mask: Any = None, **ignored: Any) -> Any:
        if isinstance(inputs, list | tuple):
            return type(layer).call(layer, inputs, mask=mask)
        batch, time = inputs.shape[:2]
        marks = {}
        if mask is not None and len(mask.shape) > 2 and "mask" in inspect.signature(type(inner).call).parameters:
            marks = {"mask": tf.reshape(mask, [batch * time, *mask.shape[2:]])}  # to each step its own
        found = inner(tf.reshape(inputs, [batch * time, *inputs.shape[2:]]), **marks)
        return tf.nest.map_structure(lambda each: tf.reshape(each, [batch, time, *each.shape[1:]]), found)

    return call


def two_ways(layer: Any) -> Callable[..., Any]:
    """Keras 3's own way, but never its fused one, which would pass our loops by."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with _without(layer, "_can_attempt_fused_lstm"), _without(layer, "_can_attempt_fused_gru"):
            return type(layer).call(layer, *args, **kwargs)

    return call


@contextlib.contextmanager
def _without(layer: Any, ability: str) -> Iterator[None]:
    object.__setattr__(layer, ability, lambda *args, **kwargs: False)
    try:
        yield
    finally:
        object.__delattr__(layer, ability)


def foreign(layer: Any, session: Session) -> Callable[..., Any] | None:
    """The like of the layer in the other Keras, with the same weights."""
    other = keras3() if session.form.lowering == "keras3" else keras2
    kind = type(layer).__name__
    if kind not in ("LSTM", "GRU", "SimpleRNN"):
        return None
    shared = ("units", "use_bias", "return_sequences", "return_state", "go_backwards", "zero_output_for_mask")
    flags = {name: getattr(layer, name) for name in shared if hasattr(layer, name)}
    flags |= {name: getattr(layer, name) for name in ("reset_after",) if hasattr(layer, name)}
    for name in ("activation", "recurrent_activation"):
        if hasattr(layer, name):
            function = getattr(layer, name)
            theirs = str(getattr(function, "__module__", "")).split(".")[0] in ("keras", "tf_keras")
            known = getattr(function, "__name__", "") if theirs else ""
            flags[name] = known if known in ("tanh", "sigmoid", "relu", "linear") else function
    twin = getattr(other.layers, kind)(**flags)
    twin.build((None, None, int(layer.cell.kernel.shape[0])))
    twin.set_weights([np.asarray(each) for each in layer.get_weights()])
    session.twins.append(twin)

    def call(inputs: Any, mask: Any = None, training: Any = None, initial_state: Any = None, **ignored: Any) -> Any:
        x, given = parts(inputs, initial_state)
        mask = mask[0] if isinstance(mask, list | tuple) else mask
        found = twin(x, mask=mask, initial_state=given or None)
        native = isinstance(layer, keras2.layers.Layer)
        if not layer.return_state:
            return found
        return list(found) if native else tuple(found)

    return call
