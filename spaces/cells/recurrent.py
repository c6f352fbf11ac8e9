"""Cells that need the state before: a loop over time, whose inputs are projected beforehand."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from spaces.backend import keras, tf
from spaces.cells.cell import Arrays, Cell, Weight
from spaces.cells.products import Factored
from spaces.genotype import Deployment
from spaces.scan import State, Tensor, loop, unroll

WRITTEN_OUT = 16
"""The most steps that are trained one by one in the graph, in place of a loop over time. A step of a loop costs a CPU
1.6 to 2.2 times as much (`experiments/claims/training.py`); more of them written out cost a search more than they save,
for the graph is made anew for each model."""


def written_out(steps: int | None) -> bool:
    """Whether a sequence of so many steps is trained without a loop; on a GPU Keras's LSTM and GRU have fast kernels
    for theirs.
    """
    return steps is not None and steps <= WRITTEN_OUT and not tf.config.list_physical_devices("GPU")


class RecurrentCell(Cell):
    """A cell whose step needs the state before; all inputs are projected beforehand, in one matrix product."""

    states = 1
    """How many tensors a step hands to the next; the first is the output."""

    def state_widths(self, weights: Arrays) -> tuple[int, ...]:
        """The width of each of them; the rows of the recurrent matrix, `weights[1]`, unless the cell says otherwise."""
        return (weights[1].shape[0],) * self.states

    @abstractmethod
    def project(self, weights: Arrays, x: Tensor) -> Tensor:
        """The inputs' share of the gates: [batch, time, features] -> [batch, time, gates], one matrix product."""

    def project_batch(self, weights: Arrays, x: Tensor, mask: Tensor) -> Tensor:
        """The same while training, for a cell that normalises by the batch; mask [batch, time, 1] or None."""
        return self.project(weights, x)

    def held(self, weights: Arrays) -> Arrays:
        """What a step takes in place of the weights, all that is the same at each step worked out once: arrays and
        numbers (tensors while training), in a row. The weights themselves, unless the cell says otherwise.
        """
        return weights

    @abstractmethod
    def step(self, weights: Arrays, projected: Tensor, state: State) -> State:
        """One time step: projected [batch, gates] and the state before -> the state after, its output first. The
        weights come as `held` gives them.
        """

    def train(self, weights: Arrays, x: Tensor, mask: Tensor, *, return_sequences: bool, training: bool) -> Tensor:
        """Keras's own loop over the projected inputs, or the steps of a short sequence, recorded for the gradients."""
        start = [tf.zeros([tf.shape(x)[0], width]) for width in self.state_widths(weights)]
        projected = self.project_batch(weights, x, mask) if training else self.project(weights, x)
        held = self.held([tf.convert_to_tensor(each) for each in weights])  # variables would be read at each step

        def step(projected: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, State]:
            moved = self.step(held, projected, tuple(state))
            return moved[0], moved

        last, outputs, _ = keras.backend.rnn(
            step,
            projected,
            start,
            mask=None if mask is None else mask > 0.0,
            return_all_outputs=return_sequences,
            unroll=written_out(projected.shape[1]),
        )
        return outputs if return_sequences else last

    def serve(
        self, weights: Arrays, x: Tensor, mask: Tensor, *, return_sequences: bool, deployment: Deployment
    ) -> Tensor:
        """One WHILE over the projected inputs, `deployment.steps` time steps an iteration."""
        start = [tf.zeros([x.shape[0], width]) for width in self.state_widths(weights)]
        return loop(
            partial(self.step, self.held(weights)),
            self.project(weights, x),
            start,
            steps=deployment.steps,
            mask=mask,
            return_sequences=return_sequences,
        )

    def states_of(self, weights: Arrays, features: int) -> tuple[tuple[int, ...], ...]:
        """The states that a step hands on."""
        return tuple((width,) for width in self.state_widths(weights))

    def stream(self, weights: Arrays, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The steps one after the other."""
        state, outputs = unroll(partial(self.step, self.held(weights)), self.project(weights, x), None, state)
        return outputs, state

    def factored(self, rank: int) -> Cell:
        """`LowRank`, for a cell whose second weight is a matrix."""
        if [len(weight.axes) for weight in self.weights[1:2]] != [2]:
            return super().factored(rank)
        return LowRank(self, rank)


class LowRank(RecurrentCell):
    """A recurrent cell whose recurrent matrix is the product of two thinner ones, R = R1 R2 (Prabhavalkar 2016, arXiv
    1603.08042), and its input matrix too, where that saves weights.

    Two products wait for each other where there was one: it pays for wide cells, or where bytes count.
    """

    def __init__(self, inner: RecurrentCell, rank: int) -> None:
        self.inner = inner
        self.rank = rank
        self.states = inner.states

    @property
    def place(self) -> str:
        """That of the inner cell, and the rank."""
        return f"{self.inner.place}@{self.rank}"

    def declared(self, features: int, units: int, time: int | None) -> tuple[Weight, ...]:
        """Those of the inner cell, whose first two are its matrices; each that is factored is two in its place."""
        weights = []
        for weight in (whole := self.inner.declared(features, units, time)):
            rows, columns = (*weight.shape(features=features, units=units), 0)[:2]
            saves = self.rank * (rows + columns) < rows * columns
            if weight is whole[1] or (weight is whole[0] and saves):
                left = replace(weight, name=f"{weight.name}_left", axes=(weight.axes[0], str(self.rank)))
                right = replace(weight, name=f"{weight.name}_right", axes=(str(self.rank), weight.axes[1]))
                weights += [left, right]
            else:
                weights.append(weight)
        return tuple(weights)

    def _whole(self, weights: Arrays) -> list[Any]:
        """The weights as the inner cell knows them."""
        extra = len(weights) - len(self.inner.weights)
        if extra == 2:
            return [Factored(*weights[:2]), Factored(*weights[2:4]), *weights[4:]]
        return [weights[0], Factored(*weights[1:3]), *weights[3:]]

    def state_widths(self, weights: Arrays) -> tuple[int, ...]:
        """Those of the inner cell."""
        return self.inner.state_widths(self._whole(weights))

    def project(self, weights: Arrays, x: Tensor) -> Tensor:
        """That of the inner cell."""
        return self.inner.project(self._whole(weights), x)

    def project_batch(self, weights: Arrays, x: Tensor, mask: Tensor) -> Tensor:
        """That of the inner cell."""
        return self.inner.project_batch(self._whole(weights), x, mask)

    def held(self, weights: Arrays) -> Arrays:
        """That of the inner cell."""
        return self.inner.held(self._whole(weights))

    def step(self, weights: Arrays, projected: Tensor, state: State) -> State:
        """That of the inner cell."""
        return self.inner.step(weights, projected, state)
