"""Trained weights poured into a file that was lowered with others, in place of converting again.

The graphs of two sets of weights differ in their constants alone, and the converter does few things to a constant. So
each float array of the file must be one of the first weights or a part of them (`plain`), or of the constants that
they were made to in the graph (`constants`), as it may have been stored; the second's takes its place. Where an array
is nothing of the kind, the file cannot be had this way. Whoever uses it compares its answers with the Keras model's. A
narrow file is made of the float one in the same way (`narrowed`): it is the one that the quantizer makes, to the byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.deployment.interpreter import schema
from objectives.deployment.lower import traced
from spaces.backend import tf
from spaces.build import Weights
from spaces.cells.cell import Cell
from spaces.cells.products import Factored
from spaces.cells.recurrent import RecurrentCell
from spaces.genotype import Architecture, Deployment
from spaces.signature import PADDING, Signature

Array = NDArray[np.float32]

_Name = tuple[int, bytes, int]
"""The subgraph of a tensor, its name, and how many of that name come before it."""

JITTER = 1e-3
OWN = (0.0, 1.0)  # numbers that the converter brings along itself
GATES = (2, 3, 4)  # that a bias is split for

_FLOATS = {schema.TensorType.FLOAT32: np.float32, schema.TensorType.FLOAT16: np.float16}
_WIDTHS = {**dict.fromkeys(_FLOATS, 0), schema.TensorType.INT8: 8, schema.TensorType.INT4: 4}


def distinct(weights: Weights, seed: int = 0) -> Weights:
    """The weights a little shaken, so that no two constants look the same; for a file that only is to be timed."""
    rng = np.random.default_rng(seed)
    return {
        name: [array + rng.normal(0.0, JITTER, array.shape).astype(array.dtype) for array in arrays]
        for name, arrays in weights.items()
    }


def plain(weights: Weights, cell: Cell) -> list[Array]:
    """The weights as they are, their rows, their parts from one gate on or up to it, and what the cell's steps hold of
    them: often all that a graph has, and needs no tracing.
    """
    arrays = [array for each in weights.values() for array in each]
    found = [*arrays, *(row for array in arrays if array.ndim == 2 for row in array)]
    found += [part for array in arrays for part in _parts(array)]
    if isinstance(cell, RecurrentCell):
        held = (each for name in weights if name.startswith(("layer", "bricks")) for each in cell.held(weights[name]))
        found += [np.asarray(each) for each in held if not isinstance(each, Factored)]
    return found


def _parts(array: Array) -> Iterator[Array]:
    """What is left and right of each border between gates, the last axis being one of 2, 3 or 4 of them."""
    size = array.shape[-1] if array.ndim else 0
    for cut in sorted({size * gate // gates for gates in GATES if not size % gates for gate in range(1, gates)}):
        yield array[..., :cut]
        yield array[..., cut:]


def constants(
    architecture: Architecture, signature: Signature, weights: Weights, deployment: Deployment
) -> list[Array]:
    """The float constants of a graph and of the loops in it, in the order of the tracing."""
    graph = traced(architecture, signature, weights, deployment).graph.as_graph_def()
    inner = {each.signature.name: each.node_def for each in graph.library.function}
    arrays = map(tf.make_ndarray, _tensors(graph.node, inner))
    return [array for array in arrays if array.dtype == np.float32]


def poured(content: bytes, signature: Signature, old: Sequence[Array], new: Sequence[Array]) -> bytes | None:
    """The float32 .tflite `content`, lowered from a graph of the arrays `old`, with `new` in their place.

    The weights of the old ones must have been `distinct`. None where not all of the file's arrays are accounted for.
    """
    if not schema.Model.ModelBufferHasIdentifier(content, 0):
        return None
    if [array.shape for array in old] != [array.shape for array in new]:
        return None
    known = _known(old, new, signature)
    written = bytearray(content)
    for array in _stored(written):
        row, kept = array[(0,) * (array.ndim - 1)], _kept(array)
        if (found := known.get(array.tobytes())) is not None:
            array[...] = found.reshape(array.shape)
        elif (found := known.get(row[kept].tobytes())) is not None and (array == row).all():  # one padded, or broadcast
            array[..., kept] = found.reshape(-1)
        elif not np.isin(array, OWN).all():
            return None
    return bytes(written)


def narrowed(known: bytes, of: bytes, content: bytes) -> bytes | None:
    """The narrow file of the float file `content`, where `known` is that of the float file `of` and the float ones
    differ in constants alone: what `quantize` makes of it, without taking the graph apart again.

    Each constant of `known` must follow from its like in `of`, bit by bit, and lie in the file's tables; None where one
    does not: the tool puts those of a large file behind them.
    """
    was, becomes = _floats(of), _floats(content)
    written = bytearray(known)
    places = {name: (tensor, stored) for name, tensor, stored in _tensors_of(written, _WIDTHS)}
    if not was.keys() == becomes.keys() == places.keys():
        return None
    filled = set[int]()  # buffers, which several tensors may share, each with scales of its own
    for name, (tensor, stored) in places.items():
        if was[name].shape != becomes[name].shape or not (tensor.Type() in _FLOATS or _scales(tensor)):
            return None
        parts = [stored] if tensor.Type() in _FLOATS else [stored, tensor.Quantization().ScaleAsNumpy()]
        old, new = _narrow(was[name], tensor), _narrow(becomes[name], tensor)
        there = [new[0] if tensor.Buffer() in filled else old[0], *old[1:]]
        filled.add(tensor.Buffer())
        for part, before, after in zip(parts, there, new, strict=True):
            if part.tobytes() != before.tobytes():
                return None
            part.reshape(-1).view(np.uint8)[...] = after.reshape(-1).view(np.uint8)
    return bytes(written)


def _narrow(array: Array, tensor: Any) -> list[NDArray[Any]]:
    """An array in the width of a tensor, and the scales [channels] where that is an integer's: symmetric, the largest
    of a channel as the largest number, as ai-edge-quantizer has it.
    """
    if tensor.Type() in _FLOATS:
        return [array.astype(_FLOATS[tensor.Type()])]
    largest = 2 ** (_WIDTHS[tensor.Type()] - 1) - 1
    channels, axis = _scales(tensor), tensor.Quantization().QuantizedDimension()
    others = tuple(each for each in range(array.ndim) if channels == 1 or each != axis)
    scale = np.maximum(np.abs(array).max(axis=others, keepdims=True), np.float32(1e-9)) / np.float32(largest)
    numbers = np.clip(np.rint(array / scale), -largest, largest).astype(np.int8)
    if largest == 7:  # two a byte, the first one low
        pairs = np.pad(numbers.reshape(-1), (0, numbers.size % 2)).reshape(-1, 2)
        numbers = (pairs[:, 0] & 15) | (pairs[:, 1] << 4)
    return [numbers, scale.reshape(-1)]


def _scales(tensor: Any) -> int:
    return tensor.Quantization().ScaleLength() if tensor.Quantization() else 0


def _known(old: Sequence[Array], new: Sequence[Array], signature: Signature) -> dict[bytes, Array]:
    """What takes the place of each array that a file may hold; nothing where two that look the same become two things.

    What both graphs have in common stays: it may be what weights are multiplied by.
    """
    pairs = {
        (was.shape, was.tobytes(), becomes.tobytes()): (was, becomes) for was, becomes in zip(old, new, strict=True)
    }
    # not all graphs have these as constants
    preparation = (signature.mean, signature.std, signature.target_mean, signature.target_std, PADDING)
    same = [np.array(each, np.float32) for each in preparation]
    same.append(np.reciprocal(same[1]))
    same += [was for was, becomes in pairs.values() if was.tobytes() == becomes.tobytes()]
    known: dict[bytes, Array] = {}
    for was, becomes in [*pairs.values(), *zip(same, same, strict=True)]:
        for key, value in zip(_forms(was, same), _forms(becomes, same), strict=True):
            known.setdefault(key.tobytes(), value)
            if known[key.tobytes()].tobytes() != value.tobytes():
                return {}
    return known


def _forms(array: Array, factors: Sequence[Array]) -> Iterator[Array]:
    """An array as the converter may store it: its axes in another order, and times what its outputs are multiplied by,
    a bias plus what is added then, or a gate's part of it, where nothing comes of a first state of zeros.
    """
    yield from _transposed(array)
    for gates in GATES if array.ndim == 1 else ():
        yield from np.split(array, gates) if not array.size % gates else ()
    fitting = [
        each.reshape(-1) for each in factors if each.ndim and (each.size,) == each.shape[-1:] == array.shape[-1:]
    ]
    for factor in (each for each in fitting if each.all()):  # nothing is multiplied by a state of zeros
        yield from _transposed(array * factor)
        yield from (array * factor + shift for shift in fitting if array.ndim == 1)


def _kept(array: Array) -> slice:
    """The part of the last axis without the zeros at its ends."""
    used = np.flatnonzero(array.any(axis=tuple(range(array.ndim - 1))))
    return slice(used[0], used[-1] + 1) if used.size else slice(0, 0)


def _transposed(array: Array) -> Iterator[Array]:
    return (array.transpose(axes) for axes in permutations(range(array.ndim)))


def _stored(content: bytearray) -> list[Array]:
    """The float arrays in a .tflite, as they lie there, each once: what is written to them is written to it."""
    tensors = {tensor.Buffer(): array for _, tensor, array in _tensors_of(content, (schema.TensorType.FLOAT32,))}
    return list(tensors.values())


def _floats(content: bytes) -> dict[_Name, Array]:
    """The same by name."""
    return {name: array for name, _, array in _tensors_of(content, (schema.TensorType.FLOAT32,))}


def _tensors_of(content: bytes | bytearray, types: Container[int]) -> Iterator[tuple[_Name, Any, Any]]:
    """Name, tensor, and data of each constant of these types in a .tflite: floats in their shape, a number as [1],
    others as bytes.
    """
    model = schema.Model.GetRootAs(content, 0)
    for at in range(model.SubgraphsLength()):
        part, called = model.Subgraphs(at), Counter[bytes]()
        for tensor in (part.Tensors(place) for place in range(part.TensorsLength())):
            if tensor.Type() in types and model.Buffers(tensor.Buffer()).DataLength():
                data = model.Buffers(tensor.Buffer()).DataAsNumpy()
                if tensor.Type() == schema.TensorType.FLOAT32:
                    data = data.view(np.float32).reshape(tensor.ShapeAsNumpy() if tensor.ShapeLength() else 1)
                yield (at, tensor.Name(), called[tensor.Name()]), tensor, data
                called[tensor.Name()] += 1


def _tensors(nodes: Any, inner: Mapping[str, Any]) -> Iterator[Any]:
    """Those of the nodes, each loop's where the loop stands: the library has loops in no order."""
    for node in nodes:
        if node.op == "Const":
            yield node.attr["value"].tensor
        for name in sorted(node.attr):
            if node.attr[name].HasField("func"):
                yield from _tensors(inner[node.attr[name].func.name], inner)
