"""Recurrences over static shapes: a loop for any step, and two parallel forms for linear ones.

All work on [batch, time, width] as it lies, never transposed: at batch 1 that costs nothing, and at larger batches a
step is a strided copy. The parallel forms serve training too, where the batch may be unknown; only `time` must be
static.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from spaces.backend import dynamic_update_slice, tf

Tensor = Any
State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], State]


def loop(
    step: Step, inputs: Tensor, start: Sequence[Tensor], *, steps: int = 1, mask: Tensor = None, return_sequences: bool
) -> Tensor:
    """The states that `step` passes through, `steps` time steps an iteration of one WHILE.

    `inputs` [batch, time, width], all static; `step(input [batch, width], state) -> state`, where the first of the
    state [batch, units] is the output; `mask` [batch, time, 1], 1.0 where the step counts, and elsewhere the state
    stays as it is. Gives [batch, time, units], or the last [batch, units]. Steps left over after the last whole
    iteration are unrolled, and so is everything where there would be one iteration only.
    """
    time = inputs.shape[1]
    rounds = time // steps if time >= 2 * steps else 0
    done = rounds * steps
    state, pieces = tuple(start), []
    if rounds:
        state, piece = _iterate(step, inputs, state, steps, done, mask, return_sequences)
        pieces.append(piece)
    if done < time:
        kept = mask if mask is None else mask[:, done:]
        state, outputs = _unroll(step, inputs[:, done:], state, kept)
        pieces.append(_stack(outputs))
    if not return_sequences:
        return state[0]
    return pieces[0] if len(pieces) == 1 else tf.concat(pieces, axis=1)


def _iterate(
    step: Step, inputs: Tensor, start: State, steps: int, done: int, mask: Tensor, return_sequences: bool
) -> tuple[State, Tensor]:
    """The WHILE over the first `done` time steps; the sequence is written `steps` rows at a time, or is None."""
    batch, _, width = inputs.shape
    units = start[0].shape[-1]
    buffers = (tf.zeros([batch, done, units]),) if return_sequences else ()

    def body(at: Tensor, state: State, written: tuple[Tensor, ...]) -> tuple[Tensor, State, tuple[Tensor, ...]]:
        block = tf.slice(inputs, [0, at, 0], [batch, steps, width])
        kept = None if mask is None else tf.slice(mask, [0, at, 0], [batch, steps, 1])
        state, outputs = _unroll(step, block, state, kept)
        if return_sequences:
            written = (dynamic_update_slice(written[0], _stack(outputs), [0, at, 0]),)
        return at + steps, state, written

    _, state, written = tf.while_loop(lambda at, *_: at < done, body, (tf.constant(0), start, buffers))
    return state, written[0] if return_sequences else None


def _unroll(step: Step, block: Tensor, state: State, mask: Tensor) -> tuple[State, list[Tensor]]:
    """Every step of a block [batch, steps, width], one after the other, and the output of each."""
    outputs = []
    kept = [None] * block.shape[1] if mask is None else _rows(mask)
    for row, keep in zip(_rows(block), kept, strict=True):
        moved = step(row, state)
        state = moved if keep is None else _select(keep, moved, state)
        outputs.append(state[0])
    return state, outputs


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


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """The even and the odd rows of [batch, time, width], time even: neighbours lie side by side in memory."""
    _, time, width = x.shape
    even, odd = tf.split(tf.reshape(x, [-1, time // 2, 2 * width]), 2, axis=2)
    return even, odd
