"""Loops and scans against the recurrence written out in NumPy."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces import scan
from spaces.backend import tf

SHAPES = {
    "batch": st.integers(1, 3),
    "time": st.integers(1, 33),
    "units": st.integers(1, 3),
    "seed": st.integers(0, 99),
}


def linear(a, b):
    h, rows = np.zeros_like(b[:, 0]), []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        rows.append(h)
    return np.stack(rows, axis=1)


@settings(deadline=None, max_examples=60)
@given(**SHAPES, wide=st.booleans())
def test_scans_solve_the_linear_recurrence(batch, time, units, seed, wide):
    random = np.random.default_rng(seed)
    a = random.uniform(-1, 1, (batch, time, units if wide else 1)).astype(np.float32)
    b = random.normal(size=(batch, time, units)).astype(np.float32)
    expected = linear(a, b)
    np.testing.assert_allclose(scan.sequence(a, b), expected, atol=1e-5)
    np.testing.assert_allclose(scan.last_state(tf.constant(a), tf.constant(b)), expected[:, -1], atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(**SHAPES, steps=st.integers(1, 9), masked=st.booleans())
def test_loop_runs_any_step_any_number_at_a_time(batch, time, units, seed, steps, masked):
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(batch, time, units)).astype(np.float32)
    mask = (random.random((batch, time, 1)) < 0.6).astype(np.float32) if masked else None
    h, count, rows = np.zeros((batch, units)), np.zeros((batch, units)), []
    for t in range(time):
        keep = np.ones((batch, 1)) if mask is None else mask[:, t]
        h, count = np.where(keep, np.tanh(inputs[:, t] - 0.5 * h + count), h), np.where(keep, count + 0.1, count)
        rows.append(h)

    def step(row, state):
        return tf.tanh(row - 0.5 * state[0] + state[1]), state[1] + 0.1

    start = [tf.zeros((batch, units))] * 2
    for sequences, expected in ((True, np.stack(rows, axis=1)), (False, h)):
        got = scan.loop(
            step,
            tf.constant(inputs),
            start,
            steps=steps,
            mask=None if mask is None else tf.constant(mask),
            return_sequences=sequences,
        )
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_last_state_costs_one_product_a_pair():
    """Work grows with time, not with time log time: the reason for not using Hillis-Steele."""

    def elements(time):
        graph = tf.function(scan.sequence).get_concrete_function(*[tf.TensorSpec((1, time, 1))] * 2).graph
        return sum(op.outputs[0].shape.num_elements() for op in graph.get_operations() if op.type == "Mul")

    assert elements(1024) < 4 * 1024
