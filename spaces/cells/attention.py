"""Encoder blocks as cells: every step looks at every other, by softmax or by linear attention."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np

from spaces.backend import keras, tf
from spaces.cells.cell import Arrays, Weight
from spaces.cells.parallel import ParallelCell, carried
from spaces.cells.products import projection
from spaces.scan import Tensor

EPSILON = 1e-6


class Encoder(ParallelCell):
    """A pre-norm encoder block (Vaswani 2017, arXiv 1706.03762; Xiong 2020, arXiv 2002.04745): x = E u + p for inputs u
    and learned positions p, then y = x + O heads(N x), then y + F2 relu(F1 N y + b1) + b2.

    N brings each step to mean 0 and deviation 1; a scale and a shift of its own would add nothing, for a product
    follows it. Weights: positions [time, units], started as sinusoids, attention [units, 3 units] (queries, keys,
    values), out [units, units] and its bias, inner [units, 2 units] and its bias, outer [2 units, units] and its bias;
    last, where features are not as many as units, entry E [features, units].
    """

    def declared(self, features: int, units: int, time: int | None) -> tuple[Weight, ...]:
        """Positions for each step, and the entry if one is needed."""
        entry = Weight("entry_kernel", ("features", "units"))
        weights = (
            Weight("position_bias", (str(time), "units"), lambda shape, dtype=None: sinusoids(*shape)),
            Weight("attention_kernel", ("units", "3 units"), lambda shape, dtype=None: _glorots(shape)),
            Weight("out_kernel", ("units", "units")),
            Weight("out_bias", ("units",), "zeros"),
            Weight("inner_kernel", ("units", "2 units")),
            Weight("inner_bias", ("2 units",), "zeros"),
            Weight("outer_kernel", ("2 units", "units")),
            Weight("outer_bias", ("units",), "zeros"),
        )
        return (*weights, entry) if features != units else weights

    def run(self, weights: Arrays, x: Tensor, mask: Tensor, *, return_sequences: bool) -> Tensor:
        """Every step, or where nothing is masked and the last alone is read, only that one's query."""
        positions, attention, out, out_bias, inner, inner_bias, outer, outer_bias, *entry = weights
        x = (projection(x, entry[0]) if entry else x) + positions[None]
        if mask is None and not return_sequences:
            x = x[:, -1:] + projection(self._last(attention, normalised(x)), out, out_bias)
        else:
            queries, keys, values = tf.split(projection(normalised(x), attention), 3, axis=2)
            x += projection(self.every(queries, keys, values, mask), out, out_bias)
        wide = tf.nn.relu(projection(normalised(x), inner, inner_bias))
        return carried(x + projection(wide, outer, outer_bias), mask, return_sequences)

    def _last(self, attention: np.ndarray, x: Tensor) -> Tensor:
        """All heads of the last step, [batch, 1, units]. A row is a head, in which the other heads' units are zeros;
        values are projected when they are weighed: H rows and not all steps.
        """
        units = attention.shape[0]
        own = np.kron(np.eye(heads(units)), np.ones(units // heads(units))).astype(np.float32)  # [heads, units]
        weighed = self.weights_of_last(attention, x, own) @ x
        return tf.reduce_sum(projection(weighed, attention[:, 2 * units :]) * own, 1, keepdims=True)

    @abstractmethod
    def every(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """All heads of all steps, side by side: each [batch, time, units], mask [batch, time, 1] or None -> the same
        shape. Heads are split along the units, where they lie, for a transposition costs more than small products.
        """

    @abstractmethod
    def weights_of_last(self, attention: np.ndarray, x: Tensor, own: np.ndarray) -> Tensor:
        """How much each head of the last step takes of each step, [batch, heads, time]."""


class Attention(Encoder):
    """Its heads are softmax(Q K^T / sqrt(width)) V (Vaswani 2017)."""

    def every(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """A masked key weighs nothing."""
        hidden = 0.0 if mask is None else (tf.reshape(mask, [-1, 1, mask.shape[1]]) - 1.0) * 1e9
        outputs = []
        for query, key, value in _split(queries * (heads(queries.shape[2]) / queries.shape[2]) ** 0.5, keys, values):
            scores = tf.matmul(query, key, transpose_b=True)
            outputs.append(tf.matmul(tf.nn.softmax(scores if mask is None else scores + hidden), value))
        return tf.concat(outputs, axis=2)

    def weights_of_last(self, attention: np.ndarray, x: Tensor, own: np.ndarray) -> Tensor:
        """Q (K x)^T = (Q K) x^T: the keys need not be made either."""
        units = attention.shape[0]
        queries = projection(x[:, -1:], attention[:, :units]) * (own * (heads(units) / units) ** 0.5)
        queries = projection(queries, _transposed(attention[:, units : 2 * units]))
        return tf.nn.softmax(tf.matmul(queries, x, transpose_b=True))


class LinearAttention(Encoder):
    """Its heads are f(Q) (f(K)^T V) / (f(Q) sum f(K)) with f = elu + 1 (Katharopoulos 2020, arXiv 2006.16236), as in
    the paper where every step may be seen: time enters linearly.
    """

    def every(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """A masked key is zero."""
        queries, keys = _positive(queries), _positive(keys)
        keys = keys if mask is None else keys * mask
        split = _split(queries, keys, values)
        outputs = tf.concat([query @ tf.matmul(key, value, transpose_a=True) for query, key, value in split], axis=2)
        _, time, units = queries.shape
        shape = [-1, time, count := heads(units), units // count]
        totals = tf.reshape(queries * tf.reduce_sum(keys, 1, keepdims=True), shape)
        totals = tf.reduce_sum(totals, 3, keepdims=True) + EPSILON
        return tf.reshape(tf.reshape(outputs, shape) / totals, [-1, time, units])

    def weights_of_last(self, attention: np.ndarray, x: Tensor, own: np.ndarray) -> Tensor:
        """One query against all keys."""
        units = attention.shape[0]
        queries = _positive(projection(x[:, -1:], attention[:, :units])) * own
        keys = _positive(projection(x, attention[:, units : 2 * units]))
        products = tf.matmul(queries, keys, transpose_b=True)
        return products / (tf.reduce_sum(products, 2, keepdims=True) + EPSILON)


def heads(units: int) -> int:
    """How many heads: of 16 units or more, at most 8, all alike."""
    return next(count for count in range(max(1, min(8, units // 16)), 0, -1) if units % count == 0)


def _split(*wholes: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Head by head: each [batch, time, units] -> [batch, time, units / heads]."""
    return zip(*(tf.split(whole, heads(whole.shape[2]), axis=2) for whole in wholes), strict=True)


def normalised(x: Tensor) -> Tensor:
    """Each step of x [batch, time, units] with mean 0 and deviation 1."""
    x -= tf.reduce_mean(x, 2, keepdims=True)
    return x * tf.math.rsqrt(tf.reduce_mean(x * x, 2, keepdims=True) + EPSILON)


def sinusoids(time: int, units: int) -> np.ndarray:
    """Positions [time, units] as Vaswani 2017 has them, sines first and then cosines."""
    waves = -(-units // 2)
    angles = np.arange(time)[:, None] / 10000.0 ** (np.arange(waves) / waves)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :units].astype(np.float32)


def _positive(x: Tensor) -> Tensor:
    return tf.nn.elu(x) + 1.0


def _transposed(kernel: np.ndarray) -> np.ndarray:
    """NumPy's where it is NumPy, so that it becomes a constant."""
    return kernel.T if isinstance(kernel, np.ndarray) else tf.transpose(kernel)


def _glorots(shape: tuple[int, int]) -> Tensor:
    """Three square matrices side by side, each started as if it were alone."""
    limit = (6.0 / (2 * shape[0])) ** 0.5
    return keras.initializers.RandomUniform(-limit, limit)(shape)
