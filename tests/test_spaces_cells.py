"""Every cell's Keras layer against the papers' recurrences in NumPy, and its lowered form against the layer."""

import numpy as np
import pytest

from spaces.backend import keras, tf
from spaces.catalog import CELLS
from spaces.cells.cell import RecurrentCell, find_cell
from spaces.cells.gated import LSTM
from spaces.contract import check_cell
from spaces.errors import SpecError

BATCH, TIME, FEATURES, UNITS = 4, 11, 3, 6


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def lstm(w, x, before, state):
    i, f, g, o = np.split(x @ w[0] + state[0] @ w[1] + w[2], 4, axis=-1)
    c = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return h, (h, c)


def gru(w, x, before, state):
    xz, xr, xn = np.split(x @ w[0] + w[2][0], 3, axis=-1)
    hz, hr, hn = np.split(state[0] @ w[1] + w[2][1], 3, axis=-1)
    z = sigmoid(xz + hz)
    h = z * state[0] + (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn)
    return h, (h,)


def simple_rnn(w, x, before, state):
    h = np.tanh(x @ w[0] + state[0] @ w[1] + w[2])
    return h, (h,)


def fastgrnn(w, x, before, state):
    p = x @ w[0] + state[0] @ w[1]
    z = sigmoid(p + w[2][0])
    h = (sigmoid(w[3][0]) * (1 - z) + sigmoid(w[3][1])) * np.tanh(p + w[2][1]) + z * state[0]
    return h, (h,)


def mingru(w, x, before, state):
    z, n = np.split(x @ w[0] + w[1], 2, axis=-1)
    h = (1 - sigmoid(z)) * state[0] + sigmoid(z) * n
    return h, (h,)


def qrnn(w, x, before, state):
    z, f, o = np.split(np.concatenate([before, x]) @ w[0] + w[1], 3, axis=-1)
    c = sigmoid(f) * state[0] + (1 - sigmoid(f)) * np.tanh(z)
    return sigmoid(o) * c, (c,)


ORACLES = {f.__name__: f for f in (lstm, gru, simple_rnn, fastgrnn, mingru, qrnn)}


def recurrence(step, weights, x, mask):
    """[batch, time, units], sequence by sequence, step by step; a masked step changes nothing and is seen as zeros."""
    weights = [w.astype(np.float64) for w in weights]
    outputs = np.zeros((len(x), x.shape[1], UNITS))
    for row in range(len(x)):
        state, output, before = (np.zeros(UNITS), np.zeros(UNITS)), np.zeros(UNITS), np.zeros(x.shape[2])
        for t in range(x.shape[1]):
            if mask[row, t]:
                output, state = step(weights, x[row, t], before, state)
            outputs[row, t] = output
            before = x[row, t] * mask[row, t]
    return outputs


@pytest.fixture
def random():
    return np.random.default_rng(7)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("go_backwards", [False, True])
def test_layer_is_the_recurrence_of_the_paper(name, go_backwards, random):
    x = random.normal(size=(BATCH, TIME, FEATURES)).astype(np.float32)
    mask = random.random((BATCH, TIME)) < 0.7
    mask[0] = True
    layers = [
        find_cell(name).layer(UNITS, return_sequences=sequences, go_backwards=go_backwards)
        for sequences in (True, False)
    ]
    for layer in layers:
        layer.build((None, TIME, FEATURES))
    weights = [random.normal(scale=0.6, size=w.shape).astype(np.float32) for w in layers[0].get_weights()]
    order = slice(None, None, -1 if go_backwards else 1)
    for marks in (mask, np.ones_like(mask)):
        expected = recurrence(ORACLES[name], weights, x[:, order], marks[:, order])
        for layer, wanted in zip(layers, (expected, expected[:, -1]), strict=True):
            layer.set_weights(weights)
            got = layer(tf.constant(x), mask=None if marks.all() else tf.constant(marks))
            np.testing.assert_allclose(got, wanted, atol=2e-6)


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_keeps_its_contract(name):
    lowerings = [form for form in CELLS[name].lowerings if form != "keras"]
    assert check_cell(find_cell(name), lowerings=lowerings, times=(1, 7)) == []


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_trains_from_its_start(name, random):
    """Which of two halves is louder: learned in a few steps, so gradients reach every weight and the start is sane."""
    x = random.normal(size=(128, 12, FEATURES)).astype(np.float32)
    x[::2, :6] *= 0.3
    y = np.arange(128) % 2
    keras.utils.set_random_seed(1)
    cell = find_cell(name)
    layers = [cell.layer(16, return_sequences=True, name="a"), cell.layer(16, name="b"), keras.layers.Dense(2)]
    inputs = output = keras.Input((12, FEATURES))
    for layer in layers:
        output = layer(output)
    model = keras.Model(inputs, output)
    for layer in layers[:2]:
        layer.set_weights(cell.initialise(layer.get_weights()))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimiser = keras.optimizers.Adam(1e-2, clipnorm=1.0)

    @tf.function
    def train():
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        optimiser.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return value, [tf.reduce_max(tf.abs(g)) for g in gradients]

    first, gradients = train()
    assert all(0 < float(g) < 10 for g in gradients)
    losses = [float(train()[0]) for _ in range(60)]
    assert np.mean(losses[-5:]) < 0.5 * float(first)


@pytest.mark.parametrize("name", [name for name, facts in CELLS.items() if not facts.recurrent_matrix])
def test_linear_layers_compile_with_xla(name, random):
    x = tf.constant(random.normal(size=(2, 13, FEATURES)).astype(np.float32))
    layer = find_cell(name).layer(UNITS, return_sequences=True)
    np.testing.assert_allclose(tf.function(layer, jit_compile=True)(x), layer(x), atol=1e-6)


def test_linear_layers_need_a_static_length():
    with pytest.raises(ValueError, match="static number of steps, but got"):
        find_cell("mingru").layer(4).build((None, None, 3))


def test_start_of_the_gates():
    kernel = np.zeros((2, 8), np.float32)
    _, bias = find_cell("mingru").initialise([kernel, np.zeros(8, np.float32)])
    np.testing.assert_allclose(bias, [-3, -5 / 3, -1 / 3, 1, 0, 0, 0, 0], atol=1e-6)
    _, bias = find_cell("qrnn").initialise([kernel, np.zeros(6, np.float32)])
    np.testing.assert_array_equal(bias, [0, 0, 1, 1, 0, 0])
    *_, bias = find_cell("gru").initialise([kernel, kernel, np.zeros((2, 6), np.float32)])
    np.testing.assert_array_equal(bias, [[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])


class Forgetful(LSTM):
    """A cell whose lowered form is wrong, in a way that a zero state would hide."""

    def step(self, weights, projected, state):
        h, c = super().step(weights, projected, state)
        return h, 0.9 * c


def test_the_contract_names_what_is_wrong():
    findings = check_cell(Forgetful(), times=(1, 4))
    assert findings
    assert all("time=4" in finding and "differs from the layer by" in finding for finding in findings)


def test_find_cell_takes_a_place_and_names_the_nearest():
    assert isinstance(find_cell("spaces.cells.gated:GRU"), RecurrentCell)
    with pytest.raises(SpecError, match="did you mean 'lstm'"):
        find_cell("lstmm")
    with pytest.raises(SpecError, match="cannot be imported"):
        find_cell("nowhere.at_all:Cell")
    with pytest.raises(SpecError, match=r"must be a spaces\.cells\.cell\.Cell"):
        find_cell("math:pi")
