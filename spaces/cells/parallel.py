"""Cells that need no loop: linear ones, whose states are scanned, and those without a state."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from spaces.backend import tf
from spaces.cells.cell import Arrays, Cell, units_of
from spaces.genotype import Deployment
from spaces.scan import State, Tensor, last_state, loop, sequence


class LinearCell(Cell):
    """A cell whose state is h_t = a_t h_(t-1) + b_t, a and b functions of the inputs alone: it can be scanned."""

    static_time = True
    window: ClassVar[int] = 1
    """How many steps the gates see: a step and those before it, side by side, the oldest first."""

    @abstractmethod
    def coefficients(self, weights: Arrays, x: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b), each [batch, time, states], from what `inputs` gave."""

    def start(self, weights: Arrays) -> Tensor:
        """The state before the first step [states]; None where it is zero."""
        return None

    def inputs(self, x: Tensor) -> Tensor:
        """What the gates of each step see, [batch, time, window x features]; zeros before the first step."""
        time = x.shape[1]
        late = [tf.pad(x[:, : time - back], [[0, 0], [back, 0], [0, 0]]) for back in range(1, min(self.window, time))]
        missing = [tf.zeros_like(x)] * (self.window - 1 - len(late))
        return tf.concat([*missing, *reversed(late), x], axis=2) if self.window > 1 else x

    def readout(self, weights: Arrays, x: Tensor, state: Tensor) -> Tensor:
        """The output of steps [batch, n, units] from what `inputs` gave for them and their states; the state itself,
        unless the cell has a gate or a product behind it.
        """
        return state

    reads_inputs: ClassVar[bool] = False
    """Whether `readout` looks at the inputs too."""

    def train(self, weights: Arrays, x: Tensor, mask: Tensor, *, return_sequences: bool, training: bool) -> Tensor:
        """The scan that is served too: of static length, which XLA compiles well (a tf.while_loop it does not)."""
        return self.run(weights, x, mask, return_sequences=return_sequences)

    def serve(
        self, weights: Arrays, x: Tensor, mask: Tensor, *, return_sequences: bool, deployment: Deployment
    ) -> Tensor:
        """A parallel scan ("scan"), or one WHILE of elementwise steps ("loop")."""
        steps = None if deployment.lowering == "scan" else deployment.steps
        return self.run(weights, x, mask, return_sequences=return_sequences, steps=steps)

    def run(
        self, weights: Arrays, x: Tensor, mask: Tensor, *, return_sequences: bool, steps: int | None = None
    ) -> Tensor:
        """The outputs, x in the order worked: by scan, or where `steps` is given by a loop."""
        if mask is not None:
            x = x * mask  # a wider window sees zeros in place of padding
        seen = self.inputs(x)
        a, b = self.coefficients(weights, seen)
        if mask is not None:
            a, b = a * mask + (1.0 - mask), b * mask
        first = self.start(weights)
        if first is not None:
            b = tf.concat([b[:, :1] + a[:, :1] * first, b[:, 1:]], axis=1) if b.shape[1] > 1 else b + a * first
        if return_sequences or (mask is not None and self.reads_inputs):
            state = _solve(a, b, True, steps)
            output = self.readout(weights, seen, state)
            if mask is not None and self.reads_inputs:  # a masked step repeats the output, not only the state
                return _solve(1.0 - mask, output * mask, return_sequences, None)
            return output
        state = _solve(a, b, False, steps)
        return self.readout(weights, seen[:, -1:], state[:, None])[:, 0]

    def states_of(self, weights: Arrays, features: int) -> tuple[tuple[int, ...], ...]:
        """The state, and the steps that a wider window looks back to."""
        past = ((self.window - 1, features),) if self.window > 1 else ()
        return ((self.width(weights),), *past)

    def width(self, weights: Arrays) -> int:
        """How many numbers the state has; as many as units, unless the cell says otherwise."""
        return units_of(self.weights, weights)

    def first_state(self, weights: Arrays, features: int) -> tuple[np.ndarray, ...]:
        """As learned, where the cell learns it."""
        zeros = super().first_state(weights, features)
        first = self.start(weights)
        return zeros if first is None else (np.asarray(first, np.float32), *zeros[1:])

    def stream(self, weights: Arrays, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The steps one after the other, the window filled from those of the calls before."""
        h, *past = state
        count = x.shape[1]
        rows = tf.concat([*past, x], axis=1)
        seen = tf.concat([rows[:, at : at + count] for at in range(self.window)], axis=2) if past else x
        a, b = self.coefficients(weights, seen)
        states = []
        for at in range(count):
            h = a[:, at] * h + b[:, at]
            states.append(h)
        outputs = self.readout(weights, seen, tf.stack(states, axis=1))
        return outputs, (h, *(rows[:, count:] for _ in past))


class ParallelCell(Cell):
    """A cell without a state: every step is computed at once, from a bounded past or from the whole sequence."""

    static_time = True

    @abstractmethod
    def run(self, weights: Arrays, x: Tensor, mask: Tensor, *, return_sequences: bool) -> Tensor:
        """The outputs; a masked step is seen as if it were not there, and repeats the output before it (`carried`)."""

    def train(self, weights: Arrays, x: Tensor, mask: Tensor, *, return_sequences: bool, training: bool) -> Tensor:
        """The graph that is served too."""
        return self.run(weights, x, mask, return_sequences=return_sequences)

    def serve(
        self, weights: Arrays, x: Tensor, mask: Tensor, *, return_sequences: bool, deployment: Deployment
    ) -> Tensor:
        """As it is."""
        return self.run(weights, x, mask, return_sequences=return_sequences)


def carried(outputs: Tensor, mask: Tensor, return_sequences: bool) -> Tensor:
    """Outputs [batch, time, units] with each masked step repeating the one before, zeros before the first that counts;
    all of them, or the last [batch, units].
    """
    if mask is None:
        return outputs if return_sequences else outputs[:, -1]
    return _solve(1.0 - mask, outputs * mask, return_sequences, None)


def _solve(a: Tensor, b: Tensor, return_sequences: bool, steps: int | None) -> Tensor:
    """h_t = a_t h_(t-1) + b_t: all of them or the last, by scan, or in a loop of so many steps an iteration."""
    if steps is None:
        return sequence(a, b) if return_sequences else last_state(a, b)

    def step(both: Tensor, state: State) -> State:
        decay, update = tf.split(both, 2, axis=1)
        return (decay * state[0] + update,)

    start = [tf.zeros([b.shape[0], b.shape[2]])]
    return loop(step, tf.concat([a, b], axis=2), start, steps=steps, return_sequences=return_sequences)
