"""Trained weights poured into a file that was lowered with others, in place of converting again.

The graphs of two sets of weights differ in their constants alone, and the converter does few things to a constant. So
the constants of both are traced, and every float array of the file must be one of the first's as it may be stored: then
that of the second's goes there. One that is nothing of the kind, and the file cannot be had this way. Whoever uses it
compares its answers with the Keras model's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.deployment.interpreter import schema
from objectives.deployment.lower import traced
from spaces.backend import tf
from spaces.build import Weights
from spaces.genotype import Architecture, Deployment
from spaces.signature import PADDING, Signature

Array = NDArray[np.float32]
JITTER = 1e-3


def distinct(weights: Weights, seed: int = 0) -> Weights:
    """The weights a little shaken, so that no two constants look the same; for a file that only is to be timed."""
    rng = np.random.default_rng(seed)
    return {
        name: [array + rng.normal(0.0, JITTER, array.shape).astype(array.dtype) for array in arrays]
        for name, arrays in weights.items()
    }


def poured(
    content: bytes,
    architecture: Architecture,
    signature: Signature,
    deployment: Deployment,
    before: Weights,
    after: Weights,
) -> bytes | None:
    """The float32 .tflite `content`, lowered with the weights `before`, with those of `after` in their place.

    `before` are best `distinct`: arrays that look the same cannot be told apart. None where not all of them are found.
    """
    if not schema.Model.ModelBufferHasIdentifier(content, 0):
        return None
    old = _constants(traced(architecture, signature, before, deployment))
    new = _constants(traced(architecture, signature, after, deployment))
    if [array.shape for array in old] != [array.shape for array in new]:
        return None
    known = _known(old, new, signature)
    written = bytearray(content)
    for array in _stored(written):
        row = array.reshape(-1, array.shape[-1])[0] if array.ndim else array
        repeated = array.ndim > 1 and bool((array == row).all())  # a constant that was broadcast
        found = known.get(array.tobytes()) or (known.get(row.tobytes()) if repeated else None)
        if found is not None and found.size:
            array[...] = found.reshape(row.shape if found.size < array.size else array.shape)
        elif not np.isin(array, (0.0, 1.0)).all():  # such the converter adds itself
            return None
    return bytes(written)


def _known(old: list[Array], new: list[Array], signature: Signature) -> dict[bytes, Array]:
    """What takes the place of an array of these bytes; nothing, of size 0, where that is not clear."""
    pairs = {(was.shape, was.tobytes(), becomes.tobytes()): (was, becomes) for was, becomes in zip(old, new, strict=True)}
    same = [was for was, becomes in pairs.values() if was.tobytes() == becomes.tobytes()]
    known: dict[bytes, Array] = {}
    return known


def _constants(function: Any) -> list[Array]:
    """The float constants of a graph and of the loops in it, in the order of the tracing."""
    graph = function.graph.as_graph_def()
    inner = {each.signature.name: each.node_def for each in graph.library.function}
    arrays = map(tf.make_ndarray, _tensors(graph.node, inner))
    return [array for array in arrays if array.dtype == np.float32]
