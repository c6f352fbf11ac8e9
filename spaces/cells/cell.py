"""A cell is a pair: the Keras layer that trains, and the lowered graph that serves the same weights.

The two are held equal (1e-5 in float32, `spaces.contract`). A class here is abstract or final: `Cell` the contract,
`RecurrentCell` for steps that multiply the state by a matrix, `LinearCell` for states that can be scanned.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from spaces.backend import tf
from spaces.catalog import CELLS
from spaces.errors import SpecError, nearest
from spaces.genotype import Deployment
from spaces.scan import State, Tensor, last_state, loop, sequence

Arrays = Sequence[Any]
"""A layer's weights in Keras's order: NumPy arrays in a lowered graph, variables in a layer that trains."""


class Cell(ABC):
    """How one recurrent layer trains and how it is served; stateless, one instance may make many layers."""

    @abstractmethod
    def layer(
        self, units: int, *, return_sequences: bool = False, go_backwards: bool = False, name: str | None = None
    ) -> Any:
        """The Keras layer: [batch, time, features] -> [batch, units] or [batch, time, units], as Keras's RNNs give it.

        A masked step carries the state and repeats the output; `go_backwards` gives its sequence in the order worked.
        """

    @abstractmethod
    def lowered(
        self,
        weights: Arrays,
        x: Tensor,
        mask: Tensor,
        *,
        return_sequences: bool,
        go_backwards: bool,
        deployment: Deployment,
    ) -> Tensor:
        """What `layer` gives with these weights, on static [batch, time, features], as a graph that runs fast.

        `mask` is None or [batch, time, 1], 1.0 where a step counts.
        """

    def initialise(self, weights: list[np.ndarray]) -> list[np.ndarray]:
        """The weights to start training from, given Keras's own; for layers whose usual start trains badly."""
        return weights


class RecurrentCell(Cell):
    """A cell whose step multiplies the state by `weights[1]` [units, gates]; all inputs are projected beforehand."""

    states = 1
    """How many tensors [batch, units] a step hands to the next; the first is the output."""

    @abstractmethod
    def project(self, weights: Arrays, x: Tensor) -> Tensor:
        """The inputs' share of the gates: [batch, time, features] -> [batch, time, gates], one matrix product."""

    @abstractmethod
    def step(self, weights: Arrays, projected: Tensor, state: State) -> State:
        """One time step: projected [batch, gates] and the state before -> the state after, its output first."""

    def lowered(
        self,
        weights: Arrays,
        x: Tensor,
        mask: Tensor,
        *,
        return_sequences: bool,
        go_backwards: bool,
        deployment: Deployment,
    ) -> Tensor:
        """One WHILE over the projected inputs, `deployment.steps` time steps an iteration."""
        if go_backwards:
            x, mask = backwards(x), backwards(mask)
        start = [tf.zeros([x.shape[0], weights[1].shape[0]])] * self.states
        return loop(
            partial(self.step, weights),
            self.project(weights, x),
            start,
            steps=deployment.steps,
            mask=mask,
            return_sequences=return_sequences,
        )


class LinearCell(Cell):
    """A cell whose state is h_t = a_t h_(t-1) + b_t, a and b functions of the inputs alone: it can be scanned."""

    @abstractmethod
    def coefficients(self, weights: Arrays, x: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b), each [batch, time, units], from what `inputs` gave."""

    def inputs(self, x: Tensor) -> Tensor:
        """What the gates of each step see, [batch, time, ...]: the step itself, unless the cell has a wider window."""
        return x

    def gate(self, weights: Arrays, x: Tensor) -> Tensor:
        """What the state is multiplied by to give the output, at each step of x; None where the state is the output."""
        return None

    def lowered(
        self,
        weights: Arrays,
        x: Tensor,
        mask: Tensor,
        *,
        return_sequences: bool,
        go_backwards: bool,
        deployment: Deployment,
    ) -> Tensor:
        """A parallel scan ("scan"), or one WHILE of elementwise steps ("loop")."""
        if go_backwards:
            x, mask = backwards(x), backwards(mask)
        steps = None if deployment.lowering == "scan" else deployment.steps
        return self.run(weights, x, mask, return_sequences=return_sequences, steps=steps)

    def run(
        self, weights: Arrays, x: Tensor, mask: Tensor, *, return_sequences: bool, steps: int | None = None
    ) -> Tensor:
        """The outputs, x in the order worked: by scan, or where `steps` is given by a loop. Layers train on it too."""
        if mask is not None:
            x = x * mask  # a wider window sees zeros in place of padding
        seen = self.inputs(x)
        a, b = self.coefficients(weights, seen)
        if mask is not None:
            a, b = a * mask + (1.0 - mask), b * mask
        state = _solve(a, b, return_sequences, steps)
        rows = seen if return_sequences or mask is not None else seen[:, -1:]
        gate = self.gate(weights, rows)
        if gate is None:
            return state
        if mask is not None:  # a masked step repeats the output, so it keeps the gate of the step before
            return _solve(1.0 - mask, gate * mask, return_sequences, None) * state
        return gate * state if return_sequences else gate[:, 0] * state


def _solve(a: Tensor, b: Tensor, return_sequences: bool, steps: int | None) -> Tensor:
    """h_t = a_t h_(t-1) + b_t: all of them or the last, by scan, or in a loop of so many steps an iteration."""
    if steps is None:
        return sequence(a, b) if return_sequences else last_state(a, b)

    def step(both: Tensor, state: State) -> State:
        decay, update = tf.split(both, 2, axis=1)
        return (decay * state[0] + update,)

    start = [tf.zeros([b.shape[0], b.shape[2]])]
    return loop(step, tf.concat([a, b], axis=2), start, steps=steps, return_sequences=return_sequences)


def backwards(x: Tensor) -> Tensor:
    """[batch, time, ...] with time reversed; None stays None."""
    return None if x is None else tf.reverse(x, [1])


def projection(x: Tensor, kernel: Any, bias: Any = None) -> Tensor:
    """The input projection of all steps: [batch, time, features] -> [batch, time, width], one FULLY_CONNECTED."""
    with tf.name_scope("input_projection"):
        return dense(x, kernel, bias)


def recurrent(state: Tensor, kernel: Any, bias: Any = None) -> Tensor:
    """The recurrent product of one step: [batch, units] -> [batch, gates], one FULLY_CONNECTED."""
    with tf.name_scope("recurrent"):
        product = tf.matmul(state, kernel)
        return product if bias is None else product + bias


def dense(x: Tensor, kernel: Any, bias: Any = None) -> Tensor:
    """X @ kernel + bias over the last axis of [batch, features] or [batch, time, features]; two-dimensional inside,
    for a product of higher rank becomes a BATCH_MATMUL.
    """
    product = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), kernel)
    flat = product if bias is None else product + bias
    return tf.reshape(flat, [-1, *x.shape[1:-1], kernel.shape[-1]])


def find_cell(name: str) -> Cell:
    """The cell of this name in the catalog, or at "package.module:Class". Raises SpecError where there is none."""
    place = CELLS[name].place if name in CELLS else name
    module, colon, attribute = place.partition(":")
    if not colon:
        raise SpecError(f"there is no cell {name!r}: {nearest(name, CELLS)} A cell of yours is named 'module:Class'.")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SpecError(f"the cell {name!r} cannot be imported: {error}.") from error
    cell = found() if isinstance(found, type) else found
    if not isinstance(cell, Cell):
        raise SpecError(f"{name!r} must be a spaces.cells.cell.Cell, but it is {found!r}.")
    return cell
