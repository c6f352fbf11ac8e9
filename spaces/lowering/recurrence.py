"""Built-in recurrent layers of either Keras, read as what they compute: cells with their weights, one after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from spaces.backend import tf
from spaces.cells.gated import GRU, LSTM, ResetBeforeGRU, SimpleRNN
from spaces.cells.recurrent import RecurrentCell
from spaces.scan import State, Tensor, blocks, unroll

LONG = 256  # time steps from which a sequence is written in two stages, for each write copies the whole buffer


@dataclass(frozen=True)
class Level:
    """One cell and its weights."""

    cell: RecurrentCell
    weights: Sequence[np.ndarray]
    units: int  # width of the output and of each state

    def run(self, projected: Tensor, mask: Tensor, state: State) -> tuple[State, Tensor]:
        """Every step of a block of projected inputs [batch, n, gates]."""
        return unroll(partial(self.cell.step, self.cell.held(self.weights)), projected, mask, state)


@dataclass(frozen=True)
class Repeating(RecurrentCell):
    """A cell that carries its output as a state of its own, before those of `inner`.

    Keras gives zeros for masked steps before the first that counts, and for all of them with `zero_output_for_mask`;
    the state itself may be something else there, where it did not start at zero.
    """

    inner: RecurrentCell

    @property
    def states(self) -> int:  # type: ignore[override]
        """The output, and the states of the inner cell."""
        return 1 + self.inner.states

    def layer(self, units: int, **flags: Any) -> Any:
        """That of the inner cell."""
        return self.inner.layer(units, **flags)

    def project(self, weights: Sequence[Any], x: Tensor) -> Tensor:
        """That of the inner cell."""
        return self.inner.project(weights, x)

    def held(self, weights: Sequence[Any]) -> Sequence[Any]:
        """That of the inner cell."""
        return self.inner.held(weights)

    def step(self, weights: Sequence[Any], projected: Tensor, state: State) -> State:
        """The inner step, its output first."""
        moved = self.inner.step(weights, projected, state[1:])
        return (moved[0], *moved)


@dataclass(frozen=True)
class Joined(RecurrentCell):
    """A cell whose gates are one product of the input and the state side by side, [x, h] [W; R] + b.

    Nothing is projected ahead, and so no long buffer of gates is written and read again: faster where the input is
    narrow beside the state. Weights [W; R] under the place of R, and b. For LSTM and SimpleRNN, whose input and state
    meet in a sum, and which hold nothing else for their steps.
    """

    inner: RecurrentCell

    @property
    def states(self) -> int:  # type: ignore[override]
        """Those of the inner cell."""
        return self.inner.states

    def layer(self, units: int, **flags: Any) -> Any:
        """That of the inner cell."""
        return self.inner.layer(units, **flags)

    def project(self, weights: Sequence[Any], x: Tensor) -> Tensor:
        """The input as it is."""
        return x

    def step(self, weights: Sequence[Any], projected: Tensor, state: State) -> State:
        """The inner step on [x, h], with the bias where the projected input would be."""
        return self.inner.step(weights, weights[2], (tf.concat([projected, state[0]], axis=1), *state[1:]))


def joined(level: Level) -> Level:
    """The level with input and state in one product; as it is where the cell does not allow it."""
    if type(level.cell) not in (LSTM, SimpleRNN):
        return level
    kernel, recurrent, bias = level.weights
    return Level(Joined(level.cell), [kernel, np.concatenate([kernel, recurrent]), bias], level.units)


def joins(layer: Any, keras: Any) -> bool:
    """Whether `joined` changes anything about a layer."""
    return any(joined(level) is not level for level in levels_of(layer, keras) or [])


def run(
    levels: Sequence[Level],
    x: Tensor,
    mask: Tensor,
    start: State,
    *,
    steps: int,
    ahead: bool,
    return_sequences: bool,
) -> tuple[Tensor, State]:
    """The output, [batch, time, units] or [batch, units] of the last, and the states after it, of stacked levels.

    `x` [batch, time, features] and `mask` [batch, time, 1] or None, in the order to work in; `start` holds the states
    of all levels, [batch, units] each. All levels advance in one loop body: `steps` time steps of the first, then the
    same of the second, whose inputs are projected in one product, and so on. `ahead`: the first level's inputs are
    projected all at once before the loop, which reads the weights once, but writes a long buffer.
    """
    source = levels[0].cell.project(levels[0].weights, x) if ahead else x
    counts = [level.cell.states for level in levels]

    def block(rows: Tensor, kept: Tensor, state: State) -> tuple[State, Tensor]:
        after: list[Tensor] = []
        for place, level in enumerate(levels):
            if place or not ahead:
                rows = level.cell.project(level.weights, rows)
            own = state[sum(counts[:place]) : sum(counts[: place + 1])]
            own, rows = level.run(rows, kept, own)
            after += own
        return tuple(after), rows

    width = levels[-1].units if return_sequences else None
    time = int(x.shape[1])
    whole = block
    if return_sequences and time > LONG:  # rows are gathered in a short buffer, which is then copied into the long one
        rows = _rows(time, steps)
        whole = partial(_inner, block, steps, width)
        state, outputs = blocks(whole, source, mask, start, steps=rows, width=width)
    else:
        state, outputs = blocks(whole, source, mask, start, steps=steps, width=width)
    last = state[sum(counts[:-1])]
    return (outputs if return_sequences else last), state


def _inner(
    block: Callable[..., Any], steps: int, width: int | None, rows: Tensor, kept: Tensor, state: State
) -> tuple[State, Tensor]:
    return blocks(block, rows, kept, state, steps=steps, width=width)


def _rows(time: int, steps: int) -> int:
    """How many steps a short buffer holds: about twice the square root of all, a multiple of `steps`."""
    return max(steps, steps * round(2 * math.sqrt(time) / steps))


def start_of(levels: Sequence[Level], batch: int, given: Sequence[Tensor] | None) -> State:
    """The states to start from, `given` without the outputs that `Repeating` adds, or zeros."""
    state: list[Tensor] = []
    rest = list(given) if given else None
    for level in levels:
        repeats = isinstance(level.cell, Repeating)
        zeros = tf.zeros([batch, level.units])
        state += [zeros] * repeats
        for _ in range(level.cell.states - repeats):
            state.append(rest.pop(0) if rest is not None else zeros)
    return tuple(state)


def states_of(levels: Sequence[Level], state: State) -> list[Tensor]:
    """The states as Keras gives them, without the outputs that `Repeating` adds."""
    kept: list[Tensor] = []
    rest = list(state)
    for level in levels:
        own, rest = rest[: level.cell.states], rest[level.cell.states :]
        kept += own[isinstance(level.cell, Repeating) :]
    return kept


def levels_of(layer: Any, keras: Any) -> list[Level] | None:
    """What a recurrent layer of this Keras computes; None where it is none, or not one that brisk knows by heart."""
    kinds = keras.layers
    if type(layer) in (kinds.LSTM, kinds.GRU, kinds.SimpleRNN):
        cells = [layer.cell]
    elif type(layer) is kinds.RNN:
        stacked = type(layer.cell) is kinds.StackedRNNCells
        cells = list(layer.cell.cells) if stacked else [layer.cell]
    else:
        return None
    if getattr(layer, "time_major", False) or not layer.built:
        return None
    levels = [_level(cell, kinds) for cell in cells]
    return None if None in levels else [level for level in levels if level]


def _level(cell: Any, kinds: Any) -> Level | None:
    kind = type(cell)
    if not any(issubclass(kind, known) for known in (kinds.LSTMCell, kinds.GRUCell, kinds.SimpleRNNCell)):
        return None
    if kind.__module__.split(".")[0] not in ("keras", "tf_keras"):  # a subclass may compute something else
        return None
    kernel, recurrent = (np.asarray(each, np.float32) for each in (cell.kernel, cell.recurrent_kernel))
    bias = np.asarray(cell.bias, np.float32) if cell.use_bias else None
    if issubclass(kind, kinds.LSTMCell):
        made: RecurrentCell = LSTM(cell.activation, cell.recurrent_activation)
        shape: tuple[int, ...] = (kernel.shape[1],)
    elif issubclass(kind, kinds.GRUCell):
        made = (GRU if cell.reset_after else ResetBeforeGRU)(cell.activation, cell.recurrent_activation)
        shape = (2, kernel.shape[1]) if cell.reset_after else (kernel.shape[1],)
    else:
        made, shape = SimpleRNN(cell.activation), (kernel.shape[1],)
    weights = [kernel, recurrent, np.zeros(shape, np.float32) if bias is None else bias]
    return Level(made, weights, recurrent.shape[0])
