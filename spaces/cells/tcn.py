"""A temporal convolutional network as a cell: the past is seen through a tree instead of a state."""

from __future__ import annotations

import math

import numpy as np

from spaces.backend import tf
from spaces.cells.cell import Arrays, Weight
from spaces.cells.parallel import ParallelCell, carried
from spaces.cells.products import projection
from spaces.scan import State, Tensor

MOST_TAPS = 10


class TCN(ParallelCell):
    """Causal dilated convolutions until the last step sees the first (Bai 2018, arXiv 1803.01271), one convolution of
    k taps a block, of dilation d = 1, k, k^2, ...: y_t = S x_t + relu(W [x_(t - (k-1) d), ..., x_t] + b).

    Weights, for each block: kernel [k features or units, units] and bias [units]; last, where features are not as many
    as units, skip S [features, units] of the first block, elsewhere the identity. Steps before the first are zeros.
    As a dilation is the product of the taps before it, what the last output depends on is a tree: k neighbours, then k
    of these, and so on. So a whole level is one matrix product over what already lies side by side, and all levels
    together cost time x units^2 / (k - 1) products: many taps are cheap, so there are as few blocks as 10 taps allow,
    but two at least.
    """

    def declared(self, features: int, units: int, time: int | None) -> tuple[Weight, ...]:
        """As many blocks as it takes to cover `time` steps."""
        assert time is not None, "static_time"
        blocks = max(2, math.ceil(math.log(max(time, 2), MOST_TAPS) - 1e-9))
        taps = next(count for count in range(2, MOST_TAPS + 1) if count**blocks >= time)
        weights: list[Weight] = []
        for block in range(1, blocks + 1):
            seen = "units" if weights else "features"
            weights.append(Weight(f"kernel{block}", (f"{taps} {seen}", "units")))
            weights.append(Weight(f"bias{block}", ("units",), "zeros"))
        skip = Weight("skip_kernel", ("features", "units"))
        return (*weights, skip) if features != units else tuple(weights)

    def run(self, weights: Arrays, x: Tensor, mask: Tensor, *, return_sequences: bool) -> Tensor:
        """Every step, or only what the last one depends on."""
        taps = weights[0].shape[0] // x.shape[2]
        if mask is None and not return_sequences:
            return self._last(weights, x, taps)
        for block, (kernel, bias, skip) in enumerate(_blocks(weights)):
            x = x if mask is None else x * mask
            x = _joined([_late(x, tap * taps**block) for tap in range(taps)], kernel, bias, skip)
        return carried(x, mask, return_sequences)

    def _last(self, weights: Arrays, x: Tensor, taps: int) -> Tensor:
        """The last output: each level leaves one node of so many, the rightmost of which is the last step."""
        for kernel, bias, skip in _blocks(weights):
            if short := -x.shape[1] % taps:
                x = tf.pad(x, [[0, 0], [short, 0], [0, 0]])
            nodes = tf.reshape(x, [-1, x.shape[1] // taps, taps * x.shape[2]])
            x = _block(nodes, nodes[:, :, -x.shape[2] :], kernel, bias, skip)
        return x[:, 0]

    def states_of(self, weights: Arrays, features: int) -> tuple[tuple[int, ...], ...]:
        """What each block has yet to see again, [(k - 1) dilation, features or units]."""
        taps = weights[0].shape[0] // features
        kernels = [kernel for kernel, _, _ in _blocks(weights)]
        return tuple(((taps - 1) * taps**block, kernel.shape[0] // taps) for block, kernel in enumerate(kernels))

    def stream(self, weights: Arrays, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next steps, seen together with the past of each block."""
        after, count, taps = [], x.shape[1], weights[0].shape[0] // x.shape[2]
        for block, (past, (kernel, bias, skip)) in enumerate(zip(state, _blocks(weights), strict=True)):
            rows = tf.concat([past, x], axis=1)
            after.append(rows[:, count:])
            starts = [(taps - 1 - tap) * taps**block for tap in range(taps)]
            x = _joined([rows[:, start : start + count] for start in starts], kernel, bias, skip)
        return x, tuple(after)


def _blocks(weights: Arrays) -> list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Kernel, bias and, for the first if it has one, skip of each block."""
    skip = weights[-1] if len(weights) % 2 else None
    kernels = zip(weights[0 : len(weights) // 2 * 2 : 2], weights[1::2], strict=True)
    return [(kernel, bias, None if at else skip) for at, (kernel, bias) in enumerate(kernels)]


def _late(x: Tensor, steps: int) -> Tensor:
    """The steps [batch, time, width] so many steps late, zeros before the first."""
    time = x.shape[1]
    return tf.pad(x[:, : time - steps], [[0, 0], [steps, 0], [0, 0]]) if steps < time else tf.zeros_like(x)


def _joined(late: list[Tensor], kernel: np.ndarray, bias: np.ndarray, skip: np.ndarray | None) -> Tensor:
    """One block for the steps [batch, n, width] themselves, first, and those 1, 2, ... dilations late."""
    return _block(tf.concat(late[::-1], axis=2), late[0], kernel, bias, skip)


def _block(taps: Tensor, x: Tensor, kernel: np.ndarray, bias: np.ndarray, skip: np.ndarray | None) -> Tensor:
    """One block for what the taps see [batch, n, taps x width], of which x is the last."""
    return (x if skip is None else projection(x, skip)) + tf.nn.relu(projection(taps, kernel, bias))
