"""Sparsity: the smallest weights of every kernel become zero while the rest goes on learning.

tensorflow-model-optimization's own wrappers know neither our cells nor layers inside Bidirectional, so its mask updates
are driven here directly, over weights chosen by what they are rather than by the layer they sit in.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from spaces.backend import tf

BEGIN, END = 0.25, 0.75
"""The shares of the training steps at which zeros begin to appear, and at which all of them are there."""

UPDATES = 50
"""How often at most the zeros are chosen again between the two; each choice sorts every pruned matrix."""


SPARED = {"embedding": "embedding", "pooling": "head", "head": "head"}
"""Layers outside the recurrence, and the role (`catalog.ROLES`) of the one matrix that each has."""


_ADDED = re.compile("bias|positions")


class Sparsity:
    """The zeros of one model in training; made by `sparsify`. Where none are asked for it does nothing."""

    def __init__(
        self, weights: dict[str, Any], pruning: Any, step: Any, end_step: int, variables: Sequence[Any] = ()
    ) -> None:
        self._weights = weights
        self._pruning = pruning
        self._step = step
        self._end_step = end_step
        self.variables = variables  # that the zeros to come depend on, beside the weights

    def after_step(self) -> None:
        """Choose the zeros again if it is time, and put them back after the optimiser moved them; traceable."""
        if self._pruning:
            self._step.assign_add(1)
            self._pruning.conditional_mask_update()
            self._pruning.weight_mask_op()

    @property
    def settled(self) -> bool:
        """Whether the weights hold all the zeros asked for, so that this epoch's weights may be chosen."""
        return self._pruning is None or int(self._step.numpy()) >= self._end_step

    def by_matrix(self) -> dict[str, float]:
        """The share of zeros in each pruned matrix, by its name, as counted in its values."""
        return {name: float(np.mean(weight.numpy() == 0.0)) for name, weight in self._weights.items()}

    def realised(self) -> float:
        """The share of zeros in all pruned matrices together; 0 where none is pruned."""
        values = [weight.numpy().ravel() for weight in self._weights.values()]
        return float(np.mean(np.concatenate(values) == 0.0)) if values else 0.0


def sparsify(model: Any, sparsity: float, total_steps: int, block: int = 1) -> Sparsity:
    """Prepare `model` to be trained for `total_steps` steps towards this share of zeros in each of its kernels.

    Zeros come in rows of `block` weights, of one input and neighbouring outputs.
    Cubic schedule of Zhu and Gupta 2017 (arXiv 1710.01878). Input and recurrent kernels of every cell are pruned;
    biases, the token embedding and the head are not: they are small, and the outputs hang on them. Nothing is added to
    the model, so there is nothing to strip: its weights are what is exported.
    """
    if not sparsity:
        return Sparsity({}, None, None, 0)
    with warnings.catch_warnings():  # it compares versions in a deprecated way when imported
        warnings.simplefilter("ignore")
        from tensorflow_model_optimization.python.core.sparsity.keras.pruning_impl import Pruning
        from tensorflow_model_optimization.sparsity.keras import PolynomialDecay

    begin = int(BEGIN * total_steps)
    span = max(int(END * total_steps) - begin, 1)
    frequency = -(-span // UPDATES)
    end = begin + span // frequency * frequency  # the last update falls on the end exactly, or the zeros stay too few
    schedule = PolynomialDecay(0.0, sparsity, begin_step=begin, end_step=end, power=3, frequency=frequency)
    weights = kernels(model)
    step = tf.Variable(0, dtype=tf.int64, trainable=False)
    masked = [(w, tf.Variable(tf.ones_like(w), trainable=False), tf.Variable(0.0)) for w in weights.values()]
    pruning = _in_rows(Pruning)(lambda: step, masked, schedule, (1, block), "AVG")
    return Sparsity(weights, pruning, step, end, [step, *(each for _, *own in masked for each in own)])


def _in_rows(pruning: Any) -> Any:
    """The library's pruning, whose blocks are rows of any matrix: its own fail where there is one row, or one block of
    them, or a third axis.
    """

    class InRows(pruning):  # type: ignore[misc]
        def _validate_block(self) -> None:
            pass

        def _maybe_update_block_mask(self, weights: Any) -> Any:
            block, columns = self._block_size[1], int(weights.shape[-1])
            if block == 1:
                return self._update_mask(weights)
            count = -(-columns // block)
            rows = tf.pad(tf.reshape(tf.abs(weights), [-1, columns]), [[0, 0], [0, count * block - columns]])
            sizes = tf.constant([min(block, columns - block * place) for place in range(count)], weights.dtype)
            threshold, mask = self._update_mask(tf.reduce_sum(tf.reshape(rows, [-1, count, block]), axis=-1) / sizes)
            return threshold, tf.reshape(tf.repeat(mask, block, axis=1)[:, :columns], weights.shape)

    return InRows


def held(model: Any, moved: Callable[[list[Any]], list[Any]]) -> Sparsity:
    """The zeros that `model` has, kept while it is trained further; `moved` tells what the optimiser moves for it."""
    weights = kernels(model)
    values = moved(list(weights.values()))
    masks = [tf.constant(np.where(value.numpy() == 0.0, 0.0, 1.0), value.dtype) for value in values]
    return Sparsity(weights, _Held(list(zip(values, masks, strict=True))), tf.Variable(0, dtype=tf.int64), 0)


class _Held:
    """In place of the pruning that chooses zeros: they are chosen."""

    def __init__(self, masked: list[tuple[Any, Any]]) -> None:
        self._masked = masked

    def conditional_mask_update(self) -> None:
        """Choose nothing."""

    def weight_mask_op(self) -> None:
        """Put the zeros back."""
        for weight, mask in self._masked:
            weight.assign(weight * mask)


def kernels(model: Any) -> dict[str, Any]:
    """The matrices that sparsity applies to, by name: all trainable ones but biases and those of `SPARED`.

    A bias may be a matrix too (that of a reset-after GRU is [2, 3 units]), and places in a sequence are added as one,
    so names are looked at as well.
    """
    spared = {id(w) for layer in model.layers if layer.name in SPARED for w in layer.weights}
    return {
        w.name.removesuffix(":0"): w
        for w in model.trainable_variables
        if w.shape.rank >= 2 and not _ADDED.search(w.name.rpartition("/")[2]) and id(w) not in spared
    }
