"""Makes the embeddings of a .tflite quantisable: rows fetched by EMBEDDING_LOOKUP instead of GATHER."""

from __future__ import annotations

from typing import Any

import numpy as np

from objectives.deployment.graph import Reader, matrices
from objectives.deployment.interpreter import read_graph, schema, write_graph


def with_lookups(model: bytes) -> bytes:
    """The same model with rows of constant tables fetched by EMBEDDING_LOOKUP, which can read narrow tables.

    A lookup takes a plain list of row numbers in 32 bits, so a RESHAPE goes before it, with a CAST where they are
    wider, and a RESHAPE after.
    """
    if not any(use.operation == "GATHER" for use in matrices(model)):
        return model
    graph = read_graph(model)
    places = [(part, at) for part in graph.subgraphs for at in _gathers(graph, part)]
    for part, at in places:
        _look_up(graph, part, at)
    return write_graph(graph) if places else model


def _gathers(graph: Any, part: Any) -> list[int]:
    """Positions of the GATHERs of whole rows of a constant table, last first, so that insertions do not shift them."""
    reader = Reader(graph, graph.subgraphs.index(part))
    return [
        at
        for at, op in reversed(list(enumerate(part.operators)))
        if reader.names[op.opcodeIndex] == "GATHER"
        and reader.stored(int(op.inputs[0])) is not None
        and len(part.tensors[op.inputs[0]].shape) == 2
        and op.builtinOptions.axis == 0
        and op.builtinOptions.batchDims == 0
    ]


def _look_up(graph: Any, part: Any, at: int) -> None:
    gather = part.operators[at]
    table, rows, output = int(gather.inputs[0]), int(gather.inputs[1]), int(gather.outputs[0])
    count, width = int(np.prod(part.tensors[rows].shape)), int(part.tensors[table].shape[1])
    plain = schema.TensorType.INT32
    flat = _tensor(part, output, "/rows", [count], part.tensors[rows].type)
    wide = part.tensors[rows].type != plain
    counted = _tensor(part, output, "/counted", [count], plain) if wide else flat
    found = _tensor(part, output, "/lookup", [count, width], part.tensors[output].type)
    part.operators[at : at + 1] = [
        _reshape(graph, part, rows, flat),
        *([_operator(graph, "CAST", [flat], counted)] if wide else []),
        _operator(graph, "EMBEDDING_LOOKUP", [counted, table], found),
        _reshape(graph, part, found, output),
    ]


def _tensor(part: Any, like: int, suffix: str, shape: list[int], kind: int) -> int:
    made = schema.TensorT()
    made.name, made.shape, made.type = part.tensors[like].name.rstrip(b";") + suffix.encode(), shape, kind
    made.buffer, made.hasRank = 0, True
    part.tensors.append(made)
    return len(part.tensors) - 1


def _reshape(graph: Any, part: Any, source: int, target: int) -> Any:
    made = _operator(graph, "RESHAPE", [source], target)
    made.builtinOptionsType, made.builtinOptions = schema.BuiltinOptions.ReshapeOptions, schema.ReshapeOptionsT()
    made.builtinOptions.newShape = [int(size) for size in part.tensors[target].shape]
    return made


def _operator(graph: Any, name: str, inputs: list[int], output: int) -> Any:
    code = getattr(schema.BuiltinOperator, name)
    known = [max(each.builtinCode, each.deprecatedBuiltinCode) for each in graph.operatorCodes]
    if code not in known:
        graph.operatorCodes.append(schema.OperatorCodeT())
        graph.operatorCodes[-1].builtinCode = graph.operatorCodes[-1].deprecatedBuiltinCode = code
        graph.operatorCodes[-1].version = 1
        known.append(code)
    made = schema.OperatorT()
    made.opcodeIndex, made.inputs, made.outputs = known.index(code), inputs, [output]
    return made
