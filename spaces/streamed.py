"""A study's model as a stream sees it: the next frames and the state go in, the answer so far and the new state come
out. After the last frame of a sequence the answer is the one that the whole sequence would have had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spaces.backend import tf
from spaces.build import Weights, answer_of, cell_of, prepared
from spaces.cells.products import dense
from spaces.errors import ModelError
from spaces.genotype import Architecture
from spaces.scan import State, Tensor
from spaces.signature import Signature


@dataclass(frozen=True)
class Kept:
    """One tensor that passes from call to call, [batch, ...]; `first` is a sequence's first, without the batch."""

    name: str
    first: np.ndarray


@dataclass(frozen=True)
class Stream:
    """`step(x [batch, frames, ...], state) -> (answer, state)`: traceable, for static x with `frames` time steps.

    The answer is [batch, outputs], or for tagging [batch, frames, outputs].
    """

    states: tuple[Kept, ...]
    step: Callable[[Tensor, State], tuple[Tensor, State]]


def streamed(architecture: Architecture, signature: Signature, weights: Weights, frames: int) -> Stream:
    """The stream of a trained model that takes `frames` time steps a call.

    Raises ModelError where the model is not causal, or `frames` cut a stacked frame or a sequence in two.
    """
    _refuse(architecture, signature, frames)
    cell, signature = cell_of(architecture), replace(signature, masked=False)  # a stream has no padding
    states: list[Kept] = []
    widths = []
    for index in range(1, architecture.layers + 1):
        arrays = weights[f"layer{index}"]
        first = cell.first_state(arrays, _features(architecture, signature, index))
        widths.append(len(first))
        states += [Kept(f"layer{index}_state{place}", array) for place, array in enumerate(first, start=1)]
    if architecture.readout == "mean" and not signature.sequences:
        states += [Kept("sum", np.zeros(architecture.units, np.float32)), Kept("count", np.zeros(1, np.float32))]

    def step(x: Tensor, state: State) -> tuple[Tensor, State]:
        x = prepared(architecture, signature, weights, x)[0]
        left: list[Tensor] = list(state)
        after: list[Tensor] = []
        for index, width in enumerate(widths, start=1):
            own, left = left[:width], left[width:]
            y, moved = cell.stream(weights[f"layer{index}"], x, tuple(own))
            x = y + x if architecture.residual and index > 1 else y
            after += moved
        if left:
            total, count = left[0] + tf.reduce_sum(x, 1), left[1] + float(x.shape[1])
            x, after = total / count, [*after, total, count]
        elif not signature.sequences:
            x = x[:, -1]
        with tf.name_scope("head"):
            return answer_of(dense(x, *weights["head"]), signature), tuple(after)

    return Stream(tuple(states), step)


def _refuse(architecture: Architecture, signature: Signature, frames: int) -> None:
    """Raise ModelError for what cannot stream."""
    stack, time = architecture.frame_stack, signature.time_steps
    why = ""
    if architecture.bidirectional:
        why = "its layers work backwards in time too"
    elif architecture.brick:
        why = "it reads bricks of steps side by side"
    elif architecture.readout == "attention" and not signature.sequences:
        why = "its attention pooling weighs all steps at once"
    elif frames < 1 or frames % stack or time % frames:
        legal = [count for count in range(stack, time + 1, stack) if time % count == 0]
        remedy = f"give one of {', '.join(map(str, legal))}" if legal else "none does"
        why = f"{frames} frames a call must divide its {time} time steps and hold whole stacks of {stack}; {remedy}"
    elif signature.masked and frames > 1:
        why = f"sequences of several lengths stream one time step a call, but got {frames}"
    if why:
        raise ModelError(f"it cannot stream: {why}")


def _features(architecture: Architecture, signature: Signature, index: int) -> int:
    """The width of a layer's inputs."""
    if index > 1:
        return architecture.units
    return (architecture.embedding if signature.vocabulary else signature.features) * architecture.frame_stack


def stream_spec(x: Any, stream: Stream) -> Sequence[Any]:
    """The input signature of a step: x [batch, frames, ...] and the states, by name."""
    batch = x.shape[0]
    return [x, *(tf.TensorSpec((batch, *kept.first.shape), tf.float32, name=kept.name) for kept in stream.states)]
