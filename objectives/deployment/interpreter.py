"""LiteRT's door: runs an artifact to judge its outputs, and opens its flatbuffer to see what it is made of.

Nothing is timed here; that is the meter's, in a process of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray
from numpy.typing import NDArray

__all__ = ["predict", "read_graph", "schema", "write_graph"]


def predict(path: Path, x: NDArray[Any], *, threads: int = 1) -> NDArray[Any]:
    """What the artifact at `path` gives for x [sequences, time, features] or [sequences, time]: [sequences, ...].

    The artifact's batch is fixed, so the last call is filled up with copies of the last sequence. Variables are reset
    before every call: a fused LSTM keeps its state between calls, and would answer a sequence with the one before in
    mind. Raises ValueError where x does not fit the artifact's one input, RuntimeError where LiteRT cannot run it.
    """
    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(f"{path}: one input and one output expected, got {len(inputs)} and {len(outputs)}")
    batch, *rest = (int(size) for size in inputs[0]["shape"])
    if list(x.shape[1:]) != rest:
        raise ValueError(f"{path}: takes sequences of shape {rest}, got {list(x.shape[1:])}")
    if not np.can_cast(x.dtype, inputs[0]["dtype"], casting="same_kind"):
        raise ValueError(f"{path}: takes {np.dtype(inputs[0]['dtype'])}, got {x.dtype}")
    x = x.astype(inputs[0]["dtype"], copy=False)
    answers = np.empty((len(x), *outputs[0]["shape"][1:]), outputs[0]["dtype"])
    for start in range(0, len(x), batch):
        part = x[start : start + batch]
        filled = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
        interpreter.reset_all_variables()
        interpreter.set_tensor(inputs[0]["index"], filled)
        interpreter.invoke()
        answers[start : start + batch] = interpreter.get_tensor(outputs[0]["index"])[: len(part)]
    return answers


def read_graph(model: bytes) -> Any:
    """The .tflite as LiteRT's own tree of objects (`schema.ModelT`), to be looked at or changed."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))


def write_graph(graph: Any) -> bytes:
    """The .tflite of a tree that `read_graph` gave."""
    return bytes(convert_object_to_bytearray(graph))
