"""Recurrences over static shapes: a loop for any step, and two parallel forms for linear ones.

All work on [batch, time, width] as it lies, never transposed: at batch 1 that costs nothing, and at larger batches a
step is a strided copy. The parallel forms serve training too, where the batch may be unknown; only `time` must be
static.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from spaces.backend import dynamic_update_slice, tf

Tensor = Any
State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], State]
Block = Callable[[Tensor, Tensor, State], tuple[State, Tensor]]
Power = Callable[[Any], Tensor]
"""n, one or an array [..., 1] -> a^n [..., units] of a constant a."""


def loop(
    step: Step, inputs: Tensor, start: Sequence[Tensor], *, steps: int = 1, mask: Tensor = None, return_sequences: bool
) -> Tensor:
    """The outputs of `step(input [batch, width], state) -> state`, the first of the state [batch, units] being one.

    `inputs`, `mask` and `steps` as in `blocks`. Gives [batch, time, units], or the last [batch, units].
    """
    width = start[0].shape[-1] if return_sequences else None
    state, outputs = blocks(partial(unroll, step), inputs, mask, tuple(start), steps=steps, width=width)
    return outputs if return_sequences else state[0]


def blocks(
    block: Block, inputs: Tensor, mask: Tensor, state: State, *, steps: int, width: int | None
) -> tuple[State, Tensor]:
    """The last state and all outputs [batch, time, units] of a recurrence that goes `steps` time steps in one iteration
    of a WHILE; `width` is how many units the outputs have, or None where they are not wanted (they are None then).

    `inputs` [batch, time, width], all static; `mask` None or [batch, time, 1], 1.0 where a step counts, and elsewhere
    the state stays as it is; `block(inputs [batch, n, width], mask, state) -> state, outputs [batch, n, units]`, for
    instance `unroll` of a step, or `blocks` again. What is left over after the last whole iteration goes through a
    block of its own, and so does everything where there would be one iteration only.
    """
    time = inputs.shape[1]
    rounds = time // steps if time >= 2 * steps else 0
    done, pieces = rounds * steps, []
    if rounds:
        state, piece = _iterate(block, inputs, mask, state, steps, done, width)
        pieces.append(piece)
    if done < time:
        state, piece = block(inputs[:, done:], mask if mask is None else mask[:, done:], state)
        pieces.append(piece)
    if width is None:
        return state, None
    return state, pieces[0] if len(pieces) == 1 else tf.concat(pieces, axis=1)


def _iterate(
    block: Block, inputs: Tensor, mask: Tensor, start: State, steps: int, done: int, width: int | None
) -> tuple[State, Tensor]:
    """The WHILE over the first `done` time steps; the outputs are written `steps` rows at a time, or are None."""
    batch, rounds = inputs.shape[0], done // steps
    buffers = () if width is None else (tf.zeros([batch, done, width]),)
    rows, kept = (_rounds(each, rounds, steps) for each in (inputs, mask))

    def body(at: Tensor, state: State, written: tuple[Tensor, ...]) -> tuple[Tensor, State, tuple[Tensor, ...]]:
        state, outputs = block(_round(rows, at, steps), _round(kept, at, steps), state)
        return at + 1, state, tuple(dynamic_update_slice(each, outputs, [0, at * steps, 0]) for each in written)

    _, state, written = tf.while_loop(lambda at, *_: at < rounds, body, (tf.constant(0), start, buffers))
    return state, written[0] if written else None


def _rounds(x: Tensor, rounds: int, steps: int) -> Tensor:
    """[batch, time, width] -> [batch, rounds, steps x width] of the first rounds x steps steps; None stays None."""
    return None if x is None else tf.reshape(x[:, : rounds * steps], [-1, rounds, steps * x.shape[2]])


def _round(x: Tensor, at: Tensor, steps: int) -> Tensor:
    """The steps of one round, [batch, steps, width].

    By GATHER, whose shape is known: a SLICE that starts at a tensor has none for TFLite, which then prepares the body
    anew in every iteration.
    """
    return None if x is None else tf.reshape(tf.gather(x, at, axis=1), [-1, steps, x.shape[2] // steps])


def unroll(step: Step, inputs: Tensor, mask: Tensor, state: State) -> tuple[State, Tensor]:
    """Every step of a block [batch, steps, width], one after the other: the last state, and the output of each."""
    outputs = []
    kept = [None] * inputs.shape[1] if mask is None else _rows(mask)
    for row, keep in zip(_rows(inputs), kept, strict=True):
        moved = step(row, state)
        state = moved if keep is None else _select(keep, moved, state)
        outputs.append(state[0])
    return state, _stack(outputs)


def _select(keep: Tensor, new: State, old: State) -> State:
    """`new` where `keep` [batch, 1] is 1 and `old` where it is 0, exactly; as arithmetic, which XNNPACK runs faster."""
    lost = 1.0 - keep
    return tuple(keep * after + lost * before for after, before in zip(new, old, strict=True))


def _rows(block: Tensor) -> list[Tensor]:
    """[batch, steps, width] -> steps times [batch, width], in one SPLIT."""
    _, steps, width = block.shape
    flat = tf.reshape(block, [-1, steps * width])
    return [flat] if steps == 1 else list(tf.split(flat, steps, axis=1))


def _stack(rows: Sequence[Tensor]) -> Tensor:
    """The inverse of `_rows`, in one CONCATENATION."""
    flat = rows[0] if len(rows) == 1 else tf.concat(rows, axis=1)
    return tf.reshape(flat, [-1, len(rows), rows[0].shape[-1]])


def last_state(a: Tensor, b: Tensor) -> Tensor:
    """The last h [batch, units] of h_t = a_t h_(t-1) + b_t, h_0 = 0, by tree reduction: log2(time) stages.

    `a` [batch, time, units or 1] and `b` [batch, time, units]. A stage of odd length lays its first step aside instead
    of padding with a = 1, b = 0: the same sum from less work.
    """
    return _total(a, b)[1]


def _total(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The one step (a, b), each [batch, units], that does what all steps do in turn."""
    time = b.shape[1]
    if time == 1:
        return a[:, 0], b[:, 0]
    if time % 2:
        late_a, late_b = _total(a[:, 1:], b[:, 1:])
        return late_a * a[:, 0], late_a * b[:, 0] + late_b
    (a_even, a_odd), (b_even, b_odd) = _pairs(a), _pairs(b)
    return _total(a_odd * a_even, a_odd * b_even + b_odd)


def sequence(a: Tensor, b: Tensor) -> Tensor:
    """Every h [batch, time, units] of h_t = a_t h_(t-1) + b_t, h_0 = 0, by odd-even reduction (Blelloch 1990).

    Shapes as in `last_state`. Up: neighbours become one step, till one is left; down: the odd rows are then known, and
    each even one follows from the odd one before it. Work grows with time, that of Hillis-Steele with time log2(time).
    """
    time = b.shape[1]
    if time == 1:
        return b
    if time % 2:
        early = sequence(a[:, :-1], b[:, :-1])
        return tf.concat([early, a[:, -1:] * early[:, -1:] + b[:, -1:]], axis=1)
    (a_even, a_odd), (b_even, b_odd) = _pairs(a), _pairs(b)
    odd = sequence(a_odd * a_even, a_odd * b_even + b_odd)
    before = tf.pad(odd[:, :-1], [[0, 0], [1, 0], [0, 0]])
    even = a_even * before + b_even
    return tf.reshape(tf.concat([even, odd], axis=2), [-1, time, b.shape[2]])


def steady_last(power: Power, b: Tensor) -> Tensor:
    """`last_state` where a is the same at every step: one product with the powers of a, and a sum over time."""
    ages = np.arange(b.shape[1] - 1, -1, -1, dtype=np.float32)
    return tf.reduce_sum(power(ages[:, None]) * b, axis=1)


def steady_sequence(power: Power, b: Tensor, stride: int = 1) -> Tensor:
    """`sequence` where a is the same at every step: a stage needs one power of it, a^stride, instead of products."""
    time, a = b.shape[1], power(np.float32(stride))
    if time == 1:
        return b
    if time % 2:
        early = steady_sequence(power, b[:, :-1], stride)
        return tf.concat([early, a * early[:, -1:] + b[:, -1:]], axis=1)
    even, odd = _pairs(b)
    odd = steady_sequence(power, a * even + odd, 2 * stride)
    even = a * tf.pad(odd[:, :-1], [[0, 0], [1, 0], [0, 0]]) + even
    return tf.reshape(tf.concat([even, odd], axis=2), [-1, time, b.shape[2]])


@tf.custom_gradient
def _pairs(x: Tensor) -> tuple[tuple[Tensor, Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """The even and the odd rows of [batch, time, width], time even: neighbours lie side by side in memory.

    The gradient is that of SPLIT, but as a STACK: XLA makes the usual CONCAT 3-6 times slower at some widths.
    """
    _, time, width = x.shape
    even, odd = tf.split(tf.reshape(x, [-1, time // 2, 2 * width]), 2, axis=2)

    def gradient(of_even: Tensor, of_odd: Tensor) -> Tensor:
        return tf.reshape(tf.stack([of_even, of_odd], axis=2), [-1, time, width])

    return (even, odd), gradient
