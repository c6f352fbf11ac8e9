"""Matrix products as the converter makes single operations of them; their name scopes tell quantisation their roles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spaces.backend import tf
from spaces.scan import Tensor


def projection(x: Tensor, kernel: Any, bias: Any = None) -> Tensor:
    """The input projection of all steps: [batch, time, features] -> [batch, time, width], one FULLY_CONNECTED."""
    with tf.name_scope("input_projection"):
        return dense(x, kernel, bias)


@dataclass(frozen=True)
class Factored:
    """A matrix as the product of two thinner ones: left [rows, rank], right [rank, columns]."""

    left: Any
    right: Any

    @property
    def shape(self) -> tuple[int, int]:
        """That of the product."""
        return self.left.shape[0], self.right.shape[1]


def recurrent(state: Tensor, kernel: Any, bias: Any = None) -> Tensor:
    """The recurrent product of one step: [batch, units] -> [batch, gates], one FULLY_CONNECTED, or two if factored."""
    with tf.name_scope("recurrent"):
        if isinstance(kernel, Factored):
            state, kernel = tf.matmul(state, kernel.left), kernel.right
        product = tf.matmul(state, kernel)
        return product if bias is None else product + bias


def dense(x: Tensor, kernel: Any, bias: Any = None) -> Tensor:
    """X @ kernel + bias over the last axis of [batch, features] or [batch, time, features]; two-dimensional inside,
    for a product of higher rank becomes a BATCH_MATMUL.
    """
    flat = tf.reshape(x, [-1, x.shape[-1]])
    if isinstance(kernel, Factored):
        flat, kernel = tf.matmul(flat, kernel.left), kernel.right
    product = tf.matmul(flat, kernel)
    flat = product if bias is None else product + bias
    return tf.reshape(flat, [-1, *x.shape[1:-1], kernel.shape[-1]])
