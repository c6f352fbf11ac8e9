"""The user's model as it is, but for its recurrent layers, which run as brisk's loops on the same weights.

While a model is being traced (`rewriting`), the `call` of each layer that brisk knows is replaced on the instance, and
of no other: masks, merging, nesting and whatever else the graph does remain Keras's own doing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from spaces.backend import keras as keras2
from spaces.backend import tf
from spaces.cells.cell import backwards
from spaces.errors import ModelError
from spaces.lowering.form import Chain, Form, Session
from spaces.lowering.layers import causal, dense, foreign, parts, time_distributed, two_ways
from spaces.lowering.load import Loaded, Port
from spaces.lowering.recurrence import Level, Repeating, joined, levels_of, run, start_of, states_of
from spaces.scan import Tensor

QUIET = (
    "Dropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "GaussianNoise",
    "GaussianDropout",
    "ActivityRegularization",
)
"""Layers that do nothing at inference; Keras 2 makes a copy of its input all the same."""

RECURRENT = ("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "RNN", "LSTM", "GRU", "SimpleRNN")


def as_it_is(loaded: Loaded) -> Form:
    """The form that leaves the layers to the Keras that they live in."""
    return Form("keras3" if loaded.family == "Keras 3" else "fused")


@contextlib.contextmanager
def rewriting(loaded: Loaded, form: Form, *, streaming: bool = False) -> Iterator[Session]:
    """Within it, tracing a call of the model builds `form`; afterwards the model is as it was.

    Entered before the tracing begins, for weights are read and layers made, which a graph would take for its own.
    """
    session = Session(form, streaming)
    changed = []
    stateful = [layer for layer in loaded.layers if isinstance(layer, loaded.keras.layers.RNN) and layer.stateful]
    try:
        for layer in loaded.layers:
            if call := _replacement(layer, loaded, session):
                object.__setattr__(layer, "call", tf.autograph.experimental.do_not_convert(call))
                changed.append(layer)
        for layer in stateful:  # every form starts at zero in each call, those that brisk leaves to Keras too
            layer.stateful = False
        yield session
    finally:
        for layer in changed:
            object.__delattr__(layer, "call")
        for layer in stateful:
            layer.stateful = True


def recurrent_layers(loaded: Loaded) -> tuple[list[Any], list[Any]]:
    """The recurrent layers that brisk rewrites, and those it leaves as they are; wrappers are not counted."""
    known, left = [], []
    for layer in loaded.layers:
        if levels_of(layer, loaded.keras):
            known.append(layer)
        elif any(issubclass(type(layer), getattr(loaded.keras.layers, kind)) for kind in RECURRENT):
            left.append(layer)
    return known, left


def stacks(loaded: Loaded, ports: Sequence[Port]) -> bool:
    """Whether any recurrent layer can go on in the loop of the one before; `ports` are the inputs, of static shape."""
    forward = tf.function(lambda *tensors: loaded.call(tensors), autograph=False)
    with rewriting(loaded, Form(stacked=True)) as session:
        forward.get_concrete_function(*(tf.TensorSpec(port.shape, port.dtype) for port in ports))
    return session.joined > 0


def _replacement(layer: Any, loaded: Loaded, session: Session) -> Callable[..., Any] | None:
    kinds = loaded.keras.layers
    levels = levels_of(layer, loaded.keras)
    if session.form.lowering != "loop":
        other = session.form.lowering != as_it_is(loaded).lowering
        return _in_order(layer, foreign(layer, session)) if other and levels else None
    if levels:
        together = session.form.projection == "joined"
        return _in_order(layer, _recurrent(layer, [joined(each) for each in levels] if together else levels, session))
    if type(layer) is kinds.Dense:
        return dense(layer)
    if session.streaming and type(layer) is kinds.Conv1D and layer.kernel_size[0] > 1:
        return causal(layer, session)
    if type(layer) is kinds.TimeDistributed:
        return time_distributed(layer, kinds)
    if type(layer) is kinds.Bidirectional and hasattr(layer, "_call_fused_lstm"):
        return two_ways(layer)
    if type(layer).__name__ in QUIET and type(layer) is getattr(kinds, type(layer).__name__, None):
        return lambda inputs, *ignored, **also: inputs
    return None


def _in_order(layer: Any, call: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """A `call` of Keras 2 with its arguments as the layer's Keras orders them: a model may give them by position."""
    if call is None or isinstance(layer, keras2.layers.Layer):
        return call

    def ordered(sequences: Any, initial_state: Any = None, mask: Any = None, training: Any = False) -> Any:
        return call(sequences, mask, training, initial_state)

    return ordered


def _recurrent(layer: Any, levels: list[Level], session: Session) -> Callable[..., Any]:
    def call(inputs: Any, mask: Any = None, training: Any = None, initial_state: Any = None, **ignored: Any) -> Any:
        x, given = parts(inputs, initial_state)
        if given and session.streaming:
            raise ModelError(f"it cannot stream: the layer {layer.name} starts from a state that the model computes")
        given = list(session.given.get(layer.name, given))
        marks, zeroed = _marks(mask), bool(layer.zero_output_for_mask)
        mine = levels
        if given and marks is not None and not (zeroed or session.streaming):
            mine = [*levels[:-1], replace(levels[-1], cell=Repeating(levels[-1].cell))]
        before = session.chains.get(id(x))
        chained = mine
        if before and mine is levels and not given and not layer.go_backwards and before.mask is marks:
            x, marks, chained = before.x, before.mask, [*before.levels, *mine]
            session.joined += 1
        x, order = tf.cast(x, tf.float32), backwards if layer.go_backwards else _as_is
        output, state = run(
            chained,
            order(x),
            order(marks),
            start_of(chained, int(x.shape[0]), given or None),
            steps=session.form.steps,
            ahead=session.form.projection == "ahead",
            return_sequences=layer.return_sequences,
        )
        if zeroed and marks is not None:
            shown = marks if layer.unroll else order(marks)  # where it unrolls, Keras forgets to turn the mask round
            output = output * (shown if layer.return_sequences else order(marks)[:, -1])
        states = states_of(mine, state[-sum(level.cell.states for level in mine) :])
        if layer.name in session.left and session.streaming:
            raise ModelError(f"it cannot stream: the layer {layer.name} is used more than once")
        session.left[layer.name] = states
        onward = layer.return_sequences and session.form.stacked and mine is levels
        if onward and not (given or layer.go_backwards or (zeroed and marks is not None)):
            session.chains[id(output)] = Chain(output, chained, x, marks)
        if not layer.return_state:
            return output
        packed = tf.nest.pack_sequence_as(_plain(layer.cell.state_size), states)
        packed = list(packed) if isinstance(packed, list | tuple) else [packed]
        return [output, *packed] if isinstance(layer, keras2.layers.Layer) else (output, *packed)

    return call


def _as_is(x: Tensor) -> Tensor:
    return x


def _plain(size: Any) -> Any:
    """A state size as plain lists, whatever containers Keras tracks it in."""
    return [_plain(one) for one in size] if isinstance(size, list | tuple) else size


def _marks(mask: Any) -> Tensor:
    """A mask of either Keras as floats [batch, time, 1], the same tensor for the same mask; None stays None."""
    mask = mask[0] if isinstance(mask, list | tuple) else mask
    if mask is None:
        return None
    known = getattr(mask, "_brisk_marks", None)
    if known is None:
        known = tf.cast(mask, tf.float32)
        known = known[:, :, None] if len(known.shape) == 2 else known
        mask._brisk_marks = known
    return known
