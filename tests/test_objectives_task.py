from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, root_mean_squared_error

from objectives.task import TASKS

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=25, deadline=None)


@few
@given(seeds)
def test_accuracy_is_that_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, output = rng.integers(0, 4, 30), rng.random((30, 4))
    assert TASKS["classification"].score(y, output) == pytest.approx(accuracy_score(y, output.argmax(1)))


@few
@given(seeds)
def test_accuracy_of_tags_leaves_padded_steps_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, output = rng.integers(-1, 3, (20, 7)), rng.random((20, 7, 3))
    y[0, 0] = 1
    assert TASKS["tagging"].score(y, output) == pytest.approx(accuracy_score(y[y >= 0], output[y >= 0].argmax(1)))


@few
@given(seeds, st.integers(1, 3))
def test_rmse_is_that_of_scikit_learn(seed: int, outputs: int) -> None:
    rng = np.random.default_rng(seed)
    y, output = rng.normal(size=(2, 30, outputs))
    flat = root_mean_squared_error(y.ravel(), output.ravel())
    assert TASKS["regression"].score(y, output) == pytest.approx(flat)


def test_errors_are_minimised() -> None:
    assert TASKS["classification"].error(0.9) == pytest.approx(0.1)
    assert TASKS["tagging"].error(1.0) == 0.0
    assert TASKS["regression"].error(2.5) == 2.5


def test_an_answer_of_nan_is_wrong() -> None:
    output = np.array([[np.nan, 0.2], [0.9, 0.1]])
    assert TASKS["classification"].score(np.array([0, 0]), output) == 0.5


def drawn(kind: str, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets and outputs of a model of fixed quality; tags of one sequence are right or wrong together."""
    if kind == "regression":
        y = rng.normal(size=(n, 2))
        return y, y + rng.normal(size=(n, 2)) * rng.choice([0.5, 2.0], (n, 1))
    skill = rng.random((n, 1)) ** 0.3
    right = rng.random((n, 12) if kind == "tagging" else n) < (skill if kind == "tagging" else 0.8)
    y = np.zeros(right.shape, int)
    if kind == "tagging":
        y[np.arange(12) >= rng.integers(1, 13, (n, 1))] = -1
    return y, np.stack([right, ~right], axis=-1).astype(float)


@pytest.mark.parametrize("kind", TASKS)
def test_the_standard_error_is_the_spread_over_draws(kind: str) -> None:
    rng, task = np.random.default_rng(0), TASKS[kind]
    draws = [drawn(kind, rng, 200) for _ in range(800)]
    spread = np.std([task.score(*draw) for draw in draws])
    assert np.mean([task.stderr(*draw) for draw in draws]) == pytest.approx(spread, rel=0.08)


def test_that_all_are_right_does_not_say_that_all_will_be() -> None:
    """One wrong of forty is within two such errors of none."""
    y, right = np.ones((40, 5), int), np.broadcast_to([0.0, 1.0], (40, 5, 2))
    assert 0.5 / 40 < TASKS["classification"].stderr(y[:, 0], right[:, 0]) < 1 / 40
    assert TASKS["tagging"].stderr(y, right) == pytest.approx(1 / 200, rel=0.02)
    assert TASKS["classification"].stderr(y[:1, 0], right[:1, 0]) == pytest.approx(np.sqrt(2 / 9 / 4))
    assert TASKS["tagging"].stderr(y[:1], right[:1]) == pytest.approx(1 / 5)
    assert TASKS["regression"].stderr(np.ones((1, 1)), np.ones((1, 1))) == 0.0


def test_the_trivial_error_is_that_of_the_best_constant_of_train() -> None:
    train, validation = np.array([2, 2, 0, 1]), np.array([0, 2, 2, 2, 1])
    assert TASKS["classification"].trivial_error(train, validation) == pytest.approx(0.4)
    tags = np.array([[1, 1, -1], [0, -1, -1]])
    assert TASKS["tagging"].trivial_error(tags, tags) == pytest.approx(1 / 3)
    values, truth = np.array([[0.0], [4.0]], np.float32), np.array([[2.0], [5.0]], np.float32)
    assert TASKS["regression"].trivial_error(values, truth) == pytest.approx(np.sqrt(4.5))
