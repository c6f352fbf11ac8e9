"""Keras to .tflite: the graph that is served, with a static batch, one input `x` and one output `y`.

"loop", "scan" and "parallel" are brisk's own graphs, converted in float32 and narrowed afterwards (`quantize`). "keras"
is what people do today, the stock converter on a Keras 3 model with a static batch, its quantisation included; "full8"
and "full16x8" are the stock converter's static integers on any of the four. On a graph with a WHILE, Keras's own layers
included, both kill the process (TensorFlow 2.21, tensorflow/tensorflow#76672), so who asks runs in one that may die.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.deployment.interpreter import read_graph, schema, write_graph
from objectives.deployment.twin import twin
from spaces.backend import tf
from spaces.build import Weights, served
from spaces.catalog import STATIC_BITS
from spaces.genotype import Architecture, Deployment
from spaces.signature import Signature
from spaces.streamed import stream_spec, streamed

STOCK = {
    "32": "float32",
    "8": "dynamic range",
    "16": "float16",
    "full8": "full int8",
    "full16x8": "int16 activations, int8 weights",
}
_CALIBRATION_CALLS = 32


def lower(
    architecture: Architecture,
    signature: Signature,
    weights: Weights,
    deployment: Deployment,
    *,
    representative: NDArray[Any] | None = None,
) -> bytes:
    """The .tflite of a trained model as `deployment` serves it, signature `serving_default`, input `x`, output `y`.

    "loop", "scan" and "parallel" come in float32 whatever the bits, but for `STATIC_BITS`. `representative`: raw inputs
    [sequences, time, features] or [sequences, time] that those calibrate on; ValueError where it lacks them.
    """
    if deployment.lowering == "keras":
        converter = tf.lite.TFLiteConverter.from_keras_model(twin(architecture, signature, weights, deployment.batch))
    else:
        function = traced(architecture, signature, weights, deployment)
        if deployment.bits not in STATIC_BITS and len(function.inputs) == 1:  # no tensor that a cell of the user's has
            return finished(_converted(function))
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
        converter.experimental_lower_to_saved_model = False  # by way of it the same graph comes, only later
    if deployment.lowering == "keras" or deployment.bits in STATIC_BITS:
        _narrow(converter, deployment, representative)
    converter.exclude_conversion_metadata = True  # which takes another reading and writing of the file
    with _silence():
        return finished(bytes(converter.convert()))


def _converted(function: Any) -> bytes:
    """What TFLiteConverter makes of a graph without variables. That would look for some to freeze, and read the file
    twice to store equal constants once, which takes as long as the rest.
    """
    graph = function.graph.as_graph_def()
    return bytes(tf.compat.v1.lite.toco_convert(graph, function.inputs, function.outputs))


def traced(architecture: Architecture, signature: Signature, weights: Weights, deployment: Deployment) -> Any:
    """The graph of brisk's own that is converted, as a concrete function of `x`."""
    serve = served(architecture, signature, weights, deployment)
    shape = (deployment.batch, signature.time_steps) + ((signature.features,) if signature.vocabulary is None else ())
    x = tf.TensorSpec(shape, tf.float32 if signature.vocabulary is None else tf.int32, name="x")
    function = tf.function(lambda x: {"y": serve(x)}, autograph=False, input_signature=[x])
    return function.get_concrete_function()


def lower_streaming(
    architecture: Architecture, signature: Signature, weights: Weights, *, frames: int, batch: int = 1
) -> bytes:
    """The float32 .tflite of one step of a stream: `x` and the states go in by name; `y` and, by the same names, the
    states come out.

    Raises ModelError where the model cannot stream (`spaces.streamed`).
    """
    stream = streamed(architecture, signature, weights, frames)
    shape = (batch, frames) + ((signature.features,) if signature.vocabulary is None else ())
    x = tf.TensorSpec(shape, tf.float32 if signature.vocabulary is None else tf.int32, name="x")

    def step(x: Any, *states: Any) -> dict[str, Any]:
        y, after = stream.step(x, states)
        return {"y": y, **{kept.name: state for kept, state in zip(stream.states, after, strict=True)}}

    serve = tf.function(step, autograph=False, input_signature=stream_spec(x, stream))
    with tempfile.TemporaryDirectory() as folder, _silence():
        tf.saved_model.save(tf.Module(), folder, signatures={"serving_default": serve.get_concrete_function()})
        return bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())


def exporter_name(deployment: Deployment) -> str:
    """Which exporter makes the artifact, for people: it stands beside every speedup."""
    if deployment.lowering == "keras":
        return f"Keras 3, static batch, TFLite {STOCK[deployment.bits]}"
    name = f"brisk {deployment.lowering}"
    if deployment.lowering == "loop":
        name = f"brisk loop, {deployment.steps} {'step' if deployment.steps == 1 else 'steps'} an iteration"
    return name + (f", TFLite {STOCK[deployment.bits]}" if deployment.bits in STATIC_BITS else "")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keras prints every endpoint, and the converter warns of what is its own affair."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _narrow(converter: Any, deployment: Deployment, representative: NDArray[Any] | None) -> None:
    """Ask the stock converter for the deployment's bits."""
    if deployment.bits == "32":
        return
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if deployment.bits == "16":
        converter.target_spec.supported_types = [tf.float16]
    elif deployment.bits in STATIC_BITS:
        if representative is None or len(representative) == 0:
            raise ValueError(f"{deployment.bits} calibrates on representative inputs, but got none")
        converter.representative_dataset = lambda: _calls(representative, deployment.batch)
        sets = tf.lite.OpsSet
        wide = sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.target_spec.supported_ops = [sets.TFLITE_BUILTINS_INT8 if deployment.bits == "full8" else wide]


def _calls(x: NDArray[Any], batch: int) -> Iterator[list[NDArray[Any]]]:
    """A few calls' worth of inputs, going round where there are fewer sequences than one call takes."""
    for call in range(min(_CALIBRATION_CALLS, -(-len(x) // batch))):
        yield [np.take(x, np.arange(call * batch, (call + 1) * batch), axis=0, mode="wrap")]


def finished(model: bytes) -> bytes:
    """The model with equal constants stored once, its input called `x` and its output `y`, tensors and signature:
    converters call them otherwise, or leave the signature out.
    """
    graph = read_graph(model)
    _store_once(graph)
    signature, main = schema.SignatureDefT(), graph.subgraphs[0]
    signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
    signature.inputs, signature.outputs = (
        [_called(name, main, places[0])] for name, places in ((b"x", main.inputs), (b"y", main.outputs))
    )
    graph.signatureDefs = [signature]
    return write_graph(graph)


def _store_once(graph: Any) -> None:
    """Have tensors with equal constants share one buffer, and empty the others."""
    constants = [one for part in graph.subgraphs for one in part.tensors if not one.isVariable]
    contents = {one.buffer: graph.buffers[one.buffer].data for one in constants}
    first: dict[bytes, int] = {}
    places = {
        buffer: first.setdefault(bytes(data), buffer)
        for buffer, data in contents.items()
        if data is not None and len(data)
    }
    for one in constants:
        one.buffer = places.get(one.buffer, one.buffer)
    for buffer in places.keys() - first.values():
        graph.buffers[buffer].data = None


def _called(name: bytes, part: Any, place: int) -> Any:
    """A tensor that goes in or out by a name, which becomes its own."""
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, int(place)
    part.tensors[place].name = name
    return entry
