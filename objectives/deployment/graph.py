"""What a .tflite multiplies by: its constant matrices, the part each plays, and the width each is stored in.

Graphs that brisk lowers carry the part in their names (`recurrent`, `input_projection`, `head`, `embedding`). In any
other file it is read off the structure: in the body of a WHILE a matrix that meets carried state is recurrent, one that
does not is an input projection; the fused LSTM names its operands by position; a table that rows are looked up in is an
embedding; outside loops a matrix after which no other comes is the head, an earlier one an input projection.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from objectives.deployment.interpreter import read_graph, schema

ROLES = {"recurrent": "recurrent", "input_projection": "input", "head": "head", "embedding": "embedding"}
"""Name scope of a lowered graph -> role."""

_SCOPE = re.compile(rf"(?:^|[/;])({'|'.join(ROLES)})(?:_\d+)?(?=[/;]|$)")
_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
_TYPES = schema.TensorType
_BITS = {_TYPES.FLOAT32: 32, _TYPES.FLOAT16: 16, _TYPES.INT8: 8, _TYPES.UINT8: 8, _TYPES.INT4: 4, _TYPES.INT2: 2}
_FLOATS = (_TYPES.FLOAT32, _TYPES.FLOAT16)
_FUSED = "UNIDIRECTIONAL_SEQUENCE_LSTM"
_CARRIED_ON = ("WHILE", _FUSED)
_OPERANDS = {  # operation -> positions where a constant matrix may stand
    "FULLY_CONNECTED": (1,),
    "BATCH_MATMUL": (0, 1),
    "CONV_2D": (1,),
    "DEPTHWISE_CONV_2D": (1,),
    "GATHER": (0,),
    "EMBEDDING_LOOKUP": (1,),
    _FUSED: (1, 2, 3, 4, 5, 6, 7, 8),
}
_FUSED_INPUTS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Matrix:
    """One constant matrix in one operation; an unrolled loop names the same stored matrix several times."""

    role: str  # "input" | "recurrent" | "head" | "embedding"
    bits: int
    operation: str
    outputs: tuple[str, ...]  # names of the tensors the operation writes
    shape: tuple[int, ...]


@functools.lru_cache(maxsize=4)  # a float file is asked about once for each of its widths
def matrices(model: bytes) -> tuple[Matrix, ...]:
    """Every use of a constant matrix in every subgraph of a .tflite, in the order of the file."""
    graph = read_graph(model)
    return tuple(matrix for index in range(len(graph.subgraphs)) for matrix in Reader(graph, index).matrices())


def keeps_state(model: bytes) -> bool:
    """Whether a .tflite has variables, which live on from one call to the next: the fused LSTM's state is such."""
    return any(tensor.isVariable for part in read_graph(model).subgraphs for tensor in part.tensors)


class Reader:
    """One subgraph with what its structure tells: who writes each tensor, what depends on state, what leads on."""

    def __init__(self, graph: Any, index: int) -> None:
        self.graph, self.part = graph, graph.subgraphs[index]
        self.names = [_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in graph.operatorCodes]
        self.writer = {int(tensor): op for op in self.part.operators for tensor in op.outputs}
        self.callers = [
            (outer, op)
            for outer, part in enumerate(graph.subgraphs)
            for op in part.operators
            if self.names[op.opcodeIndex] == "WHILE" and op.builtinOptions.bodySubgraphIndex == index
        ]

    def matrices(self) -> Iterator[Matrix]:
        stateful, leading = self._stateful(), self._leading()
        for op in self.part.operators:
            name = self.names[op.opcodeIndex]
            for position in _OPERANDS.get(name, ()):
                found = self.stored(int(op.inputs[position])) if position < len(op.inputs) else None
                if found is None or len(found.shape) < 2 or found.type not in _BITS:
                    continue
                role = self._role(op, name, position, stateful, leading)
                outputs = tuple(self.part.tensors[i].name.decode() for i in op.outputs)
                yield Matrix(role, _BITS[found.type], name, outputs, tuple(int(size) for size in found.shape))

    def _role(self, op: Any, name: str, position: int, stateful: set[int], leading: set[int]) -> str:
        if name == _FUSED:
            return "input" if position in _FUSED_INPUTS else "recurrent"
        if name in ("GATHER", "EMBEDDING_LOOKUP"):
            return "embedding"
        scope = _SCOPE.search(";".join(self.part.tensors[i].name.decode() for i in op.outputs))
        if scope:
            return ROLES[scope[1]]
        if self.callers:
            return "recurrent" if stateful.intersection(op.inputs) else "input"
        return "input" if leading.intersection(op.outputs) else "head"

    def stored(self, tensor: int) -> Any:
        """The stored tensor behind an operand, through DEQUANTIZE and the arguments of a WHILE; None if computed."""
        if tensor < 0:
            return None
        found = self.part.tensors[tensor]
        stored = self.graph.buffers[found.buffer]
        if (stored.data is not None and len(stored.data)) or stored.offset:
            return found
        if tensor in self.writer:
            op = self.writer[tensor]
            return self.stored(int(op.inputs[0])) if self.names[op.opcodeIndex] == "DEQUANTIZE" else None
        handed = list(self.part.inputs).index(tensor) if self.callers and tensor in self.part.inputs else -1
        if handed < 0 or int(self.part.outputs[handed]) != tensor:
            return None
        outer, call = self.callers[0]
        return Reader(self.graph, outer).stored(int(call.inputs[handed]))

    def _stateful(self) -> set[int]:
        """Tensors of a WHILE body that depend on a float carried from one iteration to the next."""
        if not self.callers:
            return set()
        carried = zip(self.part.inputs, self.part.outputs, strict=True)
        found = {int(i) for i, o in carried if i != o and self.part.tensors[i].type in _FLOATS}
        for op in self.part.operators:
            if found.intersection(op.inputs):
                found.update(int(i) for i in op.outputs)
        return found

    def _leading(self) -> set[int]:
        """Tensors from which the data still flow into a matrix or a recurrence."""
        found: set[int] = set()
        for op in reversed(self.part.operators):
            name = self.names[op.opcodeIndex]
            if name in _OPERANDS or name in _CARRIED_ON or found.intersection(op.outputs):
                found.update(int(i) for i in op.inputs)
        return found
