"""The kinds of task: each a row that says how good an output is, how sure that figure is, and what a constant reaches.

`y` and `output` are arrays as `objectives.data` and the deployed model give them:
classification: int [sequences] and probabilities (or logits) [sequences, classes];
regression: float [sequences, outputs] twice, in raw units;
tagging: int [sequences, time], -1 at padded steps, and probabilities [sequences, time, classes].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Task:
    """One kind of task. `score` is the metric; `error`, made of a score, is what the search minimises.

    `stderr(y, output)` is the standard error of the score for a new draw of as many sequences. `trivial_error(train_y,
    validation_y)` is the error of the best constant of the training part: a model that does not beat it learnt nothing.
    """

    kind: str
    metric: str
    score: Callable[[Array, Array], float]
    error: Callable[[float], float]
    stderr: Callable[[Array, Array], float]
    trivial_error: Callable[[Array, Array], float]


def accuracy(y: Array, output: Array) -> float:
    """Share of labels that the largest output names, over the steps that are not padding."""
    return float(_correct(y, output).sum() / (y >= 0).sum())


def rmse(y: Array, output: Array) -> float:
    """Root mean squared error over sequences and outputs, in the units of `y`."""
    return float(np.sqrt(_squared(y, output).mean()))


def share_stderr(share: float, n: int) -> float:
    """Of a share of n independent labels: the deviation of what it may be once these are known and all shares were as
    likely before (Bayes and Laplace: the beta distribution of n p + 1 and n (1 - p) + 1). Other than
    sqrt(p (1 - p) / n) it is not 0 where all are right.
    """
    p = (share * n + 1) / (n + 2)
    return float(np.sqrt(p * (1 - p) / (n + 3)))


def _label_stderr(y: Array, output: Array) -> float:
    return share_stderr(accuracy(y, output), len(y))


def _clustered_stderr(y: Array, output: Array) -> float:
    """Of a share of steps, the steps of a sequence being no independent draws.

    The linearised variance of a ratio of totals over clusters (Cochran, Sampling Techniques, 1977, section 2.11):
    with c right of m steps in each of n sequences and p the share, sqrt(n / (n - 1) * sum (c - p m)^2) / sum m.
    """
    right, steps = _correct(y, output).sum(axis=1), (y >= 0).sum(axis=1)
    residual = right - steps * (right.sum() / steps.sum())
    inflate = len(y) / max(len(y) - 1, 1)
    # Where all are right, or none is, as if one were not: that nothing varies does not say that nothing will.
    return float(np.sqrt(inflate * max(np.square(residual).sum(), 1.0)) / steps.sum())


def _rmse_stderr(y: Array, output: Array) -> float:
    """By the delta method: that of the mean squared error over sequences, divided by twice the rmse."""
    squared = _squared(y, output).mean(axis=1)
    score = float(np.sqrt(squared.mean()))
    if score == 0.0:
        return 0.0
    variance = np.square(squared - squared.mean()).sum() / max(len(squared) - 1, 1)
    return float(np.sqrt(variance / len(squared)) / (2 * score))


def _trivial_accuracy_error(train_y: Array, validation_y: Array) -> float:
    commonest = np.bincount(train_y[train_y >= 0]).argmax()
    return float(1 - (validation_y == commonest).sum() / (validation_y >= 0).sum())


def _trivial_rmse(train_y: Array, validation_y: Array) -> float:
    return rmse(validation_y, np.broadcast_to(train_y.mean(axis=0, dtype=np.float64), validation_y.shape))


def _correct(y: Array, output: Array) -> NDArray[np.bool_]:
    """A model that answers with NaN is wrong, whatever argmax makes of it."""
    found: NDArray[np.bool_] = (output.argmax(axis=-1) == y) & np.isfinite(output).all(axis=-1)
    return found


def _squared(y: Array, output: Array) -> NDArray[np.float64]:
    squared: NDArray[np.float64] = np.square(np.asarray(output, np.float64) - np.asarray(y, np.float64))
    return squared


def _shortfall(score: float) -> float:
    return 1.0 - score


def _itself(score: float) -> float:
    return score


TASKS: dict[str, Task] = {
    "classification": Task("classification", "accuracy", accuracy, _shortfall, _label_stderr, _trivial_accuracy_error),
    "regression": Task("regression", "rmse", rmse, _itself, _rmse_stderr, _trivial_rmse),
    "tagging": Task("tagging", "accuracy", accuracy, _shortfall, _clustered_stderr, _trivial_accuracy_error),
}
