"""A loaded model, in any form, to .tflite: traced with static shapes, the user's names kept in its signature."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces.backend import tf
from spaces.errors import ModelError
from spaces.lowering.form import Form, Session
from spaces.lowering.load import Loaded, Port
from spaces.lowering.rewrite import as_it_is, rewriting
from spaces.lowering.streaming import Kept, give, state_port, taken

CALIBRATION_CALLS = 32


def fixed(loaded: Loaded, batch: int, time_steps: int | Mapping[str, int] | None) -> tuple[Port, ...]:
    """The inputs with every free size fixed: the first is the batch, the second time, for all or by the input's name.

    Raises ModelError where a size stays free: no length given, or free sizes beyond the second.
    """
    ports = []
    for port in loaded.inputs:
        shape = [batch, *port.shape[1:]]
        if len(shape) > 1 and shape[1] is None:
            steps = time_steps.get(port.name) if isinstance(time_steps, Mapping) else time_steps
            if steps is None:
                raise ModelError(
                    f"the input {port.name} takes sequences of any length, and a .tflite is made for one: give "
                    "--time-steps, or data whose length counts"
                )
            shape[1] = steps
        if None in shape:
            raise ModelError(
                f"the input {port.name} has the shape {list(port.shape)}: only the batch and the length may be free; "
                "save the model with the rest fixed"
            )
        ports.append(replace(port, shape=tuple(int(size) for size in shape if size is not None)))
    return tuple(ports)


def convert(
    loaded: Loaded,
    form: Form,
    ports: Sequence[Port],
    *,
    bits: str = "32",
    representative: Mapping[str, NDArray[Any]] | None = None,
) -> bytes:
    """The .tflite of `form`, signature `serving_default` with the names of the ports and of the model's outputs.

    `bits` as the stock converter makes them: "32", "16", "8" (dynamic range) or "full8", which calibrates on
    `representative` arrays by input name.
    """
    with tempfile.TemporaryDirectory() as folder, _silence():
        if loaded.keras is None:
            _save(_serving(loaded, ports), [loaded.model], folder)
        else:
            with rewriting(loaded, form) as session:
                _save(_serving(loaded, ports), _resources(loaded, session), folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if bits != "32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if bits == "16":
            converter.target_spec.supported_types = [tf.float16]
        if bits == "full8":
            assert representative is not None, "full8 calibrates on data"
            converter.representative_dataset = lambda: _calls(ports, representative)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        return bytes(converter.convert())


def convert_streaming(loaded: Loaded, form: Form, ports: Sequence[Port], states: Sequence[Kept]) -> bytes:
    """The float32 .tflite of one step of a stream: the ports of the next frames and the states go in, by name; the
    outputs and, by the same names, the states come out.

    Raises ModelError where a layer turns out not to be causal.
    """
    batch = ports[0].shape[0]
    assert batch
    entries = [*ports, *(state_port(state, batch) for state in states)]
    specs = [tf.TensorSpec(port.shape, port.dtype, name=port.name) for port in entries]
    with tempfile.TemporaryDirectory() as folder, _silence(), rewriting(loaded, form, streaming=True) as session:

        def step(*tensors: Any) -> dict[str, Any]:
            give(session, states, tensors[len(ports) :])
            answer = dict(zip(loaded.outputs, loaded.call(tensors[: len(ports)]), strict=True))
            names = [state.name for state in states]
            return {**answer, **dict(zip(names, taken(session, states), strict=True))}

        serve = tf.function(step, autograph=False, input_signature=specs)
        _save(serve, _resources(loaded, session), folder)
        return bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())


def save(loaded: Loaded, ports: Sequence[Port], folder: Path) -> None:
    """The model as a SavedModel with these static shapes, as its own Keras runs it; stateful layers start at zero."""
    with _silence():
        if loaded.keras is None:
            _save(_serving(loaded, ports), [loaded.model], str(folder))
        else:
            with rewriting(loaded, as_it_is(loaded)) as session:
                _save(_serving(loaded, ports), _resources(loaded, session), str(folder))


def _serving(loaded: Loaded, ports: Sequence[Port]) -> Any:
    return tf.function(
        lambda *tensors: dict(zip(loaded.outputs, loaded.call(tensors), strict=True)),
        autograph=False,
        input_signature=[tf.TensorSpec(port.shape, port.dtype, name=port.name) for port in ports],
    )


def _save(serve: Any, resources: list[Any], folder: str) -> None:
    """Trace and save; `resources` are the variables that the graph reads."""
    module = tf.Module()
    module.serve, module.resources = serve, resources
    tf.saved_model.save(module, folder, signatures={"serving_default": serve})


def _resources(loaded: Loaded, session: Session) -> list[Any]:
    """The variables of the model and of the layers that stand in for some of its own."""
    return [*_variables(loaded.model), *(_variables(twin) for twin in session.twins)]


def _variables(layer: Any) -> list[Any]:
    """TensorFlow's variables of a layer; Keras 3 keeps them inside its own."""
    return [getattr(each, "_value", each) for each in layer.variables]


def _calls(ports: Sequence[Port], arrays: Mapping[str, NDArray[Any]]) -> Iterator[dict[str, NDArray[Any]]]:
    """A few calls' worth of inputs, going round where there are fewer sequences than one call takes."""
    batch, count = ports[0].shape[0], len(arrays[ports[0].name])
    assert batch
    for call in range(min(CALIBRATION_CALLS, -(-count // batch))):
        rows = np.arange(call * batch, (call + 1) * batch)
        yield {port.name: np.take(arrays[port.name], rows, axis=0, mode="wrap").astype(port.dtype) for port in ports}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
