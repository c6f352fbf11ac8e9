"""Quantisation-aware training: the model works with its weights as the file will hold them, and learns to.

A step runs forward and back on rounded weights, and moves floats behind them by the gradients found there (straight
through the rounding: Bengio, Leonard, Courville 2013, arXiv 1308.3432). The grid is that of `deployment.quantize`, tool
and all: symmetric, a scale per output channel, per row of an embedding. What the model is left with are the rounded
weights, which quantising gives back as they are. Activations, which a dynamic range form rounds to 8 bits at each call,
are not simulated: they cost less than the noise of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from objectives.training.prune import SPARED, kernels
from spaces.backend import tf
from spaces.catalog import asked_bits

LEAST = 1e-9  # the bound that the quantiser takes for a channel of zeros


class Rounding:
    """The rounded weights of one model in training and the floats behind them; made by `rounding`, which see."""

    def __init__(self, narrow: Sequence[tuple[Any, int, int]]) -> None:
        self._narrow = [(weight, tf.Variable(weight, constraint=weight.constraint), *how) for weight, *how in narrow]
        self._floats = {id(weight): behind for weight, behind, *_ in self._narrow}
        self.variables = list(self._floats.values())
        self.after_step()

    def moved(self, weights: Sequence[Any]) -> list[Any]:
        """What an optimiser moves in place of these weights of the model: the floats behind those that are rounded."""
        return [self._floats.get(id(weight), weight) for weight in weights]

    def after_step(self) -> None:
        """Round what the optimiser moved; traceable."""
        for weight, behind, width, axis in self._narrow:
            weight.assign(rounded(behind, width, axis))


def rounding(model: Any, bits: str, *, head: bool = False) -> Rounding:
    """Prepare a model to be trained for `bits` (one of `catalog.QAT_BITS`, the head's included if `head`), or for none.

    Its weights are rounded from now on.
    """
    widths = asked_bits(bits, head=head)
    return Rounding([(weight, widths[role], role == "embedding") for weight, role in _roles(model) if role in widths])


def rounded(weight: Any, width: int, axis: int) -> Any:
    """A matrix on the grid of a signed integer, with a scale for each slice along `axis`."""
    top = float(2 ** (width - 1) - 1)
    scale = tf.maximum(tf.reduce_max(tf.abs(weight), axis, keepdims=True), LEAST) / top
    return tf.round(weight / scale) * scale


def _roles(model: Any) -> list[tuple[Any, str]]:
    """Every matrix of the model that multiplies, and its role (`catalog.ROLES`)."""
    spared = [(layer.weights[0], SPARED[layer.name]) for layer in model.layers if layer.name in SPARED]
    roles = [(weight, _role(name.rpartition("/")[2])) for name, weight in kernels(model).items()]
    return [*roles, *spared]


def _role(name: str) -> str:
    """The role of a cell's matrix by its name: what a step multiplies the state by is recurrent."""
    return "recurrent" if name.startswith(("recurrent", "projection")) else "input"
