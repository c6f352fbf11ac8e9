"""A cell is a pair: the Keras layer that trains, and the lowered graph that serves the same weights.

The two are held equal (1e-5 in float32, `spaces.contract`). A class here is abstract or final: `Cell` is the contract,
`recurrent.RecurrentCell` is for steps that need the state before, `parallel.LinearCell` for states that can be scanned,
`parallel.ParallelCell` for what has no state. A cell of one of these kinds declares its weights and writes its
equations once; the layer that trains, the lowered form and the streaming form are made of them.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from spaces.backend import keras, tf
from spaces.catalog import CELLS
from spaces.errors import ModelError, SpecError, nearest
from spaces.genotype import Deployment
from spaces.scan import State, Tensor

Arrays = Sequence[Any]
"""A layer's weights in Keras's order: NumPy arrays in a lowered graph, variables in a layer that trains."""

Start = str | Callable[..., Any]
"""A Keras initializer by name, or a function (shape, dtype) -> array that draws by Keras or NumPy, which are seeded."""


@dataclass(frozen=True)
class Weight:
    """One array of a cell. Axes are named, "features", "units" or "rank", perhaps times a number ("4 units"), or are
    numbers ("2"): so that others can tell which rows and columns belong to one unit.
    """

    name: str
    axes: tuple[str, ...]
    start: Start = "glorot_uniform"
    trainable: bool = True
    constraint: Callable[[Any], Any] | None = None  # what a value becomes after each training step

    def shape(self, **sizes: int) -> tuple[int, ...]:
        """The shape where the named axes have these sizes."""
        return tuple(times * sizes.get(name, 1) for times, name in map(axis, self.axes))


def axis(written: str) -> tuple[int, str]:
    """(4, "units") of "4 units", (1, "units") of "units", (2, "") of "2"."""
    times, _, name = written.rpartition(" ")
    if written.isdigit():
        return int(written), ""
    return int(times or 1), name


def ones_for(shape: Any, *, gates: int, gate: int) -> np.ndarray:
    """A bias [gates x units] of ones for one gate and zeros for the others."""
    return np.repeat(np.eye(gates, dtype=np.float32)[gate], shape[0] // gates)


def units_of(declared: Sequence[Weight], arrays: Arrays) -> int:
    """How many units the arrays are of."""
    for weight, array in zip(declared, arrays, strict=True):
        for size, (times, name) in zip(array.shape, map(axis, weight.axes), strict=True):
            if name == "units":
                return int(size) // times
    raise ModelError(f"none of the weights {[weight.name for weight in declared]} has an axis of units")


class Cell(ABC):
    """How one recurrent layer trains and how it is served; stateless, one instance may make many layers."""

    weights: ClassVar[tuple[Weight, ...]] = ()
    static_time: ClassVar[bool] = False
    """Whether the layer that trains must know how many steps there are."""

    def declared(self, features: int, units: int, time: int | None) -> tuple[Weight, ...]:
        """The weights for inputs [batch, time, features]; the same for all, where they do not depend on these."""
        return self.weights

    def layer(
        self, units: int, *, return_sequences: bool = False, go_backwards: bool = False, name: str | None = None
    ) -> Any:
        """The Keras layer: [batch, time, features] -> [batch, units] or [batch, time, units], as Keras's RNNs give it.

        A masked step carries the state and repeats the output; `go_backwards` gives its sequence in the order worked.
        """
        return CellLayer(self.place, units, return_sequences, go_backwards, name=name)

    @property
    def place(self) -> str:
        """Where `find_cell` finds it."""
        return f"{type(self).__module__}:{type(self).__qualname__}"

    @abstractmethod
    def train(self, weights: Arrays, x: Tensor, mask: Tensor, *, return_sequences: bool, training: bool) -> Tensor:
        """What the layer computes: x [batch, time, features] of any batch, in the order worked, and the mask
        [batch, time, 1] as floats or None -> [batch, units] or [batch, time, units]; differentiable.
        """

    @abstractmethod
    def serve(
        self, weights: Arrays, x: Tensor, mask: Tensor, *, return_sequences: bool, deployment: Deployment
    ) -> Tensor:
        """The same as a graph that runs fast: x static, in the order worked."""

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
        if go_backwards:
            x, mask = backwards(x), backwards(mask)
        return self.serve(weights, x, mask, return_sequences=return_sequences, deployment=deployment)

    def states_of(self, weights: Arrays, features: int) -> tuple[tuple[int, ...], ...]:
        """The shapes, without the batch, of what a stream carries from call to call; it starts at `first_state`.

        Raises ModelError where the cell looks ahead, or its past is not bounded.
        """
        raise ModelError(f"the cell {self.place} cannot stream: it needs steps that have not come yet")

    def first_state(self, weights: Arrays, features: int) -> tuple[np.ndarray, ...]:
        """The state before the first step, each without the batch: zeros, unless the cell has learned another."""
        return tuple(np.zeros(shape, np.float32) for shape in self.states_of(weights, features))

    def stream(self, weights: Arrays, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next frames x [batch, n, features] and the state -> their outputs [batch, n, units] and the new state."""
        raise ModelError(f"the cell {self.place} cannot stream: it needs steps that have not come yet")

    def factored(self, rank: int) -> Cell:
        """The cell with its matrices as products of thinner ones. Raises SpecError where it has none to factor."""
        raise SpecError(f"space.rank: the cell {self.place} has no recurrent matrix to factor; leave the key out")

    def initialise(self, weights: list[np.ndarray]) -> list[np.ndarray]:
        """The weights to start training from, given Keras's own; for Keras's layers, whose usual start may be bad."""
        return weights


@keras.saving.register_keras_serializable(package="brisk", name="Cell")
class CellLayer(keras.layers.Layer):  # type: ignore[misc]
    """A cell as a layer, with the arrays that it declares as weights.

    `cell` is a name for `find_cell`. The attributes are those that Bidirectional asks of any RNN.
    """

    def __init__(
        self, cell: str, units: int, return_sequences: bool = False, go_backwards: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.cell = cell
        self.units = units
        self.return_sequences = return_sequences
        self.go_backwards = go_backwards
        self.return_state = self.stateful = False
        self.supports_masking = True
        self.input_spec = [keras.layers.InputSpec(ndim=3)]
        self._cell = find_cell(cell)

    def build(self, input_shape: Any) -> None:
        """Make the weights; raises ValueError where time is not static and the cell must know it."""
        _, time, features = input_shape
        if time is None and self._cell.static_time:
            raise ValueError(
                f"{self.name} works on all steps at once, so it needs a static number of steps, but got {input_shape}"
            )
        self._arrays = [
            self.add_weight(
                name=weight.name,
                shape=weight.shape(features=features, units=self.units),
                initializer=weight.start,
                trainable=weight.trainable,
                constraint=weight.constraint,
            )
            for weight in self._cell.declared(features, self.units, time)
        ]
        self.built = True

    @tf.autograph.experimental.do_not_convert  # it would read and write the source of every cell, for nothing
    def call(self, inputs: Tensor, mask: Tensor = None, training: bool | None = None) -> Tensor:
        """[batch, time, features] -> [batch, units] or, in the order worked, [batch, time, units]."""
        mask = None if mask is None else tf.cast(mask, inputs.dtype)[:, :, None]
        if self.go_backwards:
            inputs, mask = backwards(inputs), backwards(mask)
        return self._cell.train(
            self._arrays, inputs, mask, return_sequences=self.return_sequences, training=bool(training)
        )

    def compute_mask(self, inputs: Tensor, mask: Tensor = None) -> Tensor:
        """The mask goes on where there are steps for it to mark."""
        return mask if self.return_sequences else None

    def compute_output_shape(self, input_shape: Any) -> Any:
        """[batch, time, units] or [batch, units]."""
        shape = tf.TensorShape(input_shape).as_list()
        return tf.TensorShape([*shape[: 2 if self.return_sequences else 1], self.units])

    def get_config(self) -> dict[str, Any]:
        """What makes the layer again."""
        own = {name: getattr(self, name) for name in ("cell", "units", "return_sequences", "go_backwards")}
        return {**super().get_config(), **own}


def backwards(x: Tensor) -> Tensor:
    """[batch, time, ...] with time reversed; None stays None."""
    return None if x is None else tf.reverse(x, [1])


def find_cell(name: str) -> Cell:
    """The cell of this name in the catalog, or at "package.module:Class"; "gru@16" is one whose matrices are factored
    with rank 16. Raises SpecError where there is none.
    """
    name, _, rank = name.partition("@")
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
    return cell.factored(int(rank)) if rank else cell
