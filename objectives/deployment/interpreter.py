"""LiteRT's door: runs an artifact to judge its outputs, and opens its flatbuffer to see what it is made of.

Nothing is timed here; that is the meter's, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray
from numpy.typing import NDArray

__all__ = ["Session", "answers", "predict", "read_graph", "schema", "write_graph"]


def predict(path: Path, x: NDArray[Any], *, threads: int = 1) -> NDArray[Any]:
    """What the artifact at `path`, of one input and one output, gives for x [sequences, ...]: [sequences, ...].

    Raises as `answers` does.
    """
    interpreter = _opened(path, threads)
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(f"{path}: one input and one output expected, got {len(inputs)} and {len(outputs)}")
    return _run(interpreter, path, [(inputs[0], x)], outputs)[0]


def answers(path: Path, given: Mapping[str, NDArray[Any]], *, threads: int = 1) -> dict[str, NDArray[Any]]:
    """What the artifact's one signature gives, by name, for arrays [sequences, ...] by name.

    The artifact's batch is fixed, so the last call is filled up with copies of the last sequence. Variables are reset
    before every call: a fused LSTM keeps its state between calls, and would answer a sequence with the one before in
    mind. Raises ValueError where the arrays do not fit the artifact's inputs, RuntimeError where LiteRT cannot run it.
    """
    return Session(path, threads=threads).run(given)


class Session:
    """An artifact that is open, for many questions (`answers`)."""

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        self._path, self._interpreter = path, _opened(path, threads)
        (signature,) = self._interpreter._get_full_signature_list().values()  # a signature runner would refuse resets
        details = [*self._interpreter.get_input_details(), *self._interpreter.get_output_details()]
        places = {place["index"]: place for place in details}
        self._inputs = {name: places[index] for name, index in signature["inputs"].items()}
        self._outputs = {name: places[index] for name, index in signature["outputs"].items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an input."""
        return tuple(map(int, self._inputs[name]["shape"]))

    def run(self, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """As `answers`."""
        if given.keys() != self._inputs.keys():
            raise ValueError(f"{self._path}: takes {', '.join(self._inputs)}, got {', '.join(given)}")
        fed = [(self._inputs[name], array) for name, array in given.items()]
        found = _run(self._interpreter, self._path, fed, list(self._outputs.values()))
        return dict(zip(self._outputs, found, strict=True))


def _opened(path: Path, threads: int) -> Any:
    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    return interpreter


def _run(interpreter: Any, path: Path, fed: list[tuple[Any, NDArray[Any]]], outputs: list[Any]) -> list[NDArray[Any]]:
    ready = [(place["index"], _fitting(path, place, x)) for place, x in fed]
    batch, count = int(fed[0][0]["shape"][0]), len(fed[0][1])
    found = [np.empty((count, *place["shape"][1:]), place["dtype"]) for place in outputs]
    for start in range(0, count, batch):
        interpreter.reset_all_variables()
        for index, x in ready:
            part = x[start : start + batch]
            interpreter.set_tensor(index, np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)]))
        interpreter.invoke()
        for place, kept in zip(outputs, found, strict=True):
            part = kept[start : start + batch]
            part[...] = interpreter.get_tensor(place["index"])[: len(part)]
    return found


def _fitting(path: Path, place: Any, x: NDArray[Any]) -> NDArray[Any]:
    """An array as one input takes it, but for the number of sequences."""
    rest = [int(size) for size in place["shape"][1:]]
    if list(x.shape[1:]) != rest:
        raise ValueError(f"{path}: takes sequences of shape {rest}, got {list(x.shape[1:])}")
    if not np.can_cast(x.dtype, place["dtype"], casting="same_kind"):
        raise ValueError(f"{path}: takes {np.dtype(place['dtype'])}, got {x.dtype}")
    return x.astype(place["dtype"], copy=False)


def read_graph(model: bytes) -> Any:
    """The .tflite as LiteRT's own tree of objects (`schema.ModelT`), to be looked at or changed."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))


def write_graph(graph: Any) -> bytes:
    """The .tflite of a tree that `read_graph` gave."""
    return bytes(convert_object_to_bytearray(graph))
