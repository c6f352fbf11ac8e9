"""Every cell's Keras layer against the papers' recurrences in NumPy, and its lowered form against the layer."""

from collections import Counter

import numpy as np
import pytest

from spaces.backend import keras, tf
from spaces.catalog import CELLS
from spaces.cells.cell import find_cell
from spaces.cells.gated import LSTM
from spaces.cells.recurrent import RecurrentCell
from spaces.contract import check_cell, constrained
from spaces.errors import SpecError
from spaces.genotype import Deployment

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


def fastrnn(w, x, before, state):
    alpha, beta = sigmoid(w[3])
    h = alpha * np.tanh(x @ w[0] + state[0] @ w[1] + w[2]) + beta * state[0]
    return h, (h,)


def lstmp(w, x, before, state):
    i, f, g, o = np.split(x @ w[0] + state[0] @ w[1] + w[2], 4, axis=-1)
    c = sigmoid(f) * np.resize(state[1], 2 * UNITS) + sigmoid(i) * np.tanh(g)  # zeros of one width or the other
    h = (sigmoid(o) * np.tanh(c)) @ w[3]
    return h, (h, c)


def cifg(w, x, before, state):
    f, g, o = np.split(x @ w[0] + state[0] @ w[1] + w[2], 3, axis=-1)
    c = sigmoid(f) * state[1] + (1 - sigmoid(f)) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return h, (h, c)


def mgu(w, x, before, state):
    (xf, xn), (hf, hn) = np.split(x @ w[0] + w[2], 2), np.split(state[0] @ w[1], 2)
    f = sigmoid(xf + hf)
    h = (1 - f) * state[0] + f * np.tanh(xn + f * hn)
    return h, (h,)


def ligru(w, x, before, state):
    normal = w[2] * (x @ w[0] - w[4]) / np.sqrt(w[5] + 1e-3) + w[3]
    z, n = np.split(normal + state[0] @ w[1], 2)
    h = sigmoid(z) * state[0] + (1 - sigmoid(z)) * np.maximum(n, 0)
    return h, (h,)


def indrnn(w, x, before, state):
    h = np.maximum(x @ w[0] + w[1] * state[0] + w[2], 0)
    return h, (h,)


def sru(w, x, before, state):
    (vf, vr), (bf, br) = np.split(w[1], 2), np.split(w[2], 2)
    candidate, xf, xr, *highway = np.split(x @ w[0], w[0].shape[1] // UNITS)
    f, r = sigmoid(xf + vf * state[1] + bf), sigmoid(xr + vr * state[1] + br)
    c = f * state[1] + (1 - f) * candidate
    h = r * c + (1 - r) * (highway[0] if highway else np.sqrt(3) * x)
    return h, (h, c)


def mingru(w, x, before, state):
    z, n = np.split(x @ w[0] + w[1], 2, axis=-1)
    h = (1 - sigmoid(z)) * state[0] + sigmoid(z) * n
    return h, (h,)


def qrnn(w, x, before, state):
    z, f, o = np.split(np.concatenate([before[-1], x]) @ w[0] + w[1], 3, axis=-1)
    c = sigmoid(f) * state[0] + (1 - sigmoid(f)) * np.tanh(z)
    return sigmoid(o) * c, (c,)


def qrnn_f(w, x, before, state):
    z, f = np.split(np.concatenate([before[-1], x]) @ w[0] + w[1], 2)
    h = sigmoid(f) * state[0] + (1 - sigmoid(f)) * np.tanh(z)
    return h, (h,)


def qrnn_ifo(w, x, before, state):
    z, f, i, o = np.split(np.concatenate([before[-1], x]) @ w[0] + w[1], 4)
    c = sigmoid(f) * state[0] + sigmoid(i) * np.tanh(z)
    return sigmoid(o) * c, (c,)


def sru1(w, x, before, state):
    h, (_, c) = sru([w[0], np.zeros(2 * UNITS), w[1]], x, before, (None, state[0]))
    return h, (c,)


def minlstm(w, x, before, state):
    f, i, n = np.split(x @ w[0] + w[1], 3)
    total = sigmoid(f) + sigmoid(i)
    h = sigmoid(f) / total * state[0] + sigmoid(i) / total * n
    return h, (h,)


def mingru_signed(w, x, before, state):
    a, z, n = np.split(x @ w[0] + w[1], 3)
    h = np.tanh(a) * state[0] + (1 - np.abs(np.tanh(a))) * sigmoid(z) * np.tanh(n)
    return h, (h,)


def lru(w, x, before, state):
    decay = np.exp(-np.exp(w[1]))
    h = decay * state[0] + np.sqrt(1 - decay**2) * (x @ w[0])
    g = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    value, gate = np.split(g @ w[2], 2)
    return value * sigmoid(gate + w[3]), (h,)


def mamba(w, x, before, state):
    kernel, convolution, shift, down, up, bias, into, rate, out, skip, gate, gate_bias, last = w
    u = shift + sum(c * (frame @ kernel) for c, frame in zip(np.split(convolution, 4), [*before, x], strict=True))
    u = u * sigmoid(u)
    delta = np.log1p(np.exp(u @ down @ up + bias))
    h = np.exp(-delta * np.exp(rate)) * state[0] + delta * (u @ into) * u
    g = x @ gate + gate_bias
    return (((u @ out) * h + skip * u) * g * sigmoid(g)) @ last, (h,)


def tcn(w, x, kept):
    *blocks, skip = w
    taps = blocks[0].shape[0] // x.shape[1]
    for block, (kernel, bias) in enumerate(zip(blocks[::2], blocks[1::2], strict=True)):
        x = x * kept[:, None]
        delays = [tap * taps**block for tap in range(taps - 1, 0, -1)]
        seen = [[x[t - d] if t >= d else 0 * x[t] for t in range(len(x))] for d in delays]
        y = np.maximum(np.concatenate([*seen, x], axis=1) @ kernel + bias, 0)
        x = y + (x @ skip if block == 0 else x)
    assert taps ** (block + 1) >= len(x)  # the last step sees the first
    return x


def encoder(heads_of, w, x, kept):
    positions, attention, out, out_bias, inner, inner_bias, outer, outer_bias, *entry = w

    def norm(x):
        return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)

    x = (x @ entry[0] if entry else x) + positions
    q, k, v = np.split(norm(x) @ attention, 3, axis=1)
    width = q.shape[1] // max(1, q.shape[1] // 16)
    seen = [slice(at, at + width) for at in range(0, q.shape[1], width)]
    x = x + np.concatenate([heads_of(q[:, h], k[kept, h], v[kept, h]) for h in seen], axis=1) @ out + out_bias
    return x + np.maximum(norm(x) @ inner + inner_bias, 0) @ outer + outer_bias


def attention(w, x, kept):
    def head(q, k, v):
        scores = np.exp(q @ k.T / np.sqrt(q.shape[1]))
        return scores / scores.sum(1, keepdims=True) @ v

    return encoder(head, w, x, kept)


def linear_attention(w, x, kept):
    def head(q, k, v):
        q, k = (np.where(each > 0, each + 1, np.exp(each)) for each in (q, k))
        return np.stack([sum((row @ key) * value for key, value in zip(k, v, strict=True)) for row in q]) / (
            (q @ k.sum(0))[:, None] + 1e-6
        )

    return encoder(head, w, x, kept)


WHOLE = ("tcn", "attention", "linear_attention")
"""What looks at whole sequences, x [time, features] and which steps count -> [time, units]; the others are steps."""

FIRST = {"mingru_signed": lambda w: w[2]}
"""The states before the first step that are not zeros."""

ORACLES = {name: oracle for name, oracle in globals().items() if name in CELLS}


def recurrence(step, weights, x, mask):
    """[batch, time, units], sequence by sequence, step by step; a masked step changes nothing and is seen as zeros."""
    weights = [w.astype(np.float64) for w in weights]
    if step.__name__ in WHOLE:
        return np.stack([repeated(step(weights, *each), each[1]) for each in zip(x, mask, strict=True)])
    outputs = np.zeros((len(x), x.shape[1], UNITS))
    for row in range(len(x)):
        output = FIRST.get(step.__name__, lambda w: np.zeros(UNITS))(weights)
        state, before = (output, np.zeros(UNITS)), np.zeros((3, x.shape[2]))  # the frames before, the oldest first
        for t in range(x.shape[1]):
            if mask[row, t]:
                output, state = step(weights, x[row, t], before, state)
            outputs[row, t] = output
            before = np.concatenate([before[1:], x[row, t : t + 1] * mask[row, t]])
    return outputs


def repeated(outputs, kept):
    """Each output that does not count is the last that does; zeros where none came before."""
    last = np.maximum.accumulate(np.where(kept, np.arange(len(kept)), -1))
    return np.where(last[:, None] < 0, 0, outputs[last])


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
    layers[0].set_weights([random.normal(scale=0.6, size=w.shape) for w in layers[0].get_weights()])
    weights = constrained(layers[0]).get_weights()
    order = slice(None, None, -1 if go_backwards else 1)
    for marks in (mask, np.ones_like(mask)):
        expected = recurrence(ORACLES[name], weights, x[:, order], marks[:, order])
        for layer, wanted in zip(layers, (expected, expected[:, -1]), strict=True):
            layer.set_weights(weights)
            got = layer(tf.constant(x), mask=None if marks.all() else tf.constant(marks))
            np.testing.assert_allclose(got, wanted, atol=2e-6 * max(1.0, np.abs(wanted).max()))


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
    optimiser.build(model.trainable_variables)  # else the step is traced twice

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


@pytest.mark.parametrize("name", [name for name, facts in CELLS.items() if {"scan", "parallel"} & {*facts.lowerings}])
def test_layers_without_a_loop_compile_with_xla(name, random):
    x = tf.constant(random.normal(size=(2, 13, FEATURES)).astype(np.float32))
    layer = find_cell(name).layer(UNITS, return_sequences=True)
    np.testing.assert_allclose(tf.function(layer, jit_compile=True)(x), layer(x), atol=1e-6)


@pytest.mark.parametrize("name", ["attention", "linear_attention"])
def test_heads_are_apart_in_every_form(name, random):
    x = random.normal(size=(BATCH, TIME, 48)).astype(np.float32)
    layer = find_cell(name).layer(48, return_sequences=True)
    layer.build(x.shape)
    weights = [random.normal(scale=0.2, size=w.shape).astype(np.float32) for w in layer.get_weights()]
    expected = recurrence(ORACLES[name], weights, x, np.ones((BATCH, TIME), bool))
    for sequences, wanted in ((True, expected), (False, expected[:, -1])):
        form = {"return_sequences": sequences, "go_backwards": False, "deployment": Deployment("parallel")}
        np.testing.assert_allclose(find_cell(name).lowered(weights, tf.constant(x), None, **form), wanted, atol=2e-5)


def test_linear_layers_need_a_static_length():
    with pytest.raises(ValueError, match="static number of steps, but got"):
        find_cell("mingru").layer(4).build((None, None, 3))


def start(name, units, time=4):
    layer = find_cell(name).layer(units)
    layer.build((None, time, 2))
    return layer.get_weights()


def test_start_of_the_gates():
    np.testing.assert_allclose(start("mingru", 4)[1], [-3, -5 / 3, -1 / 3, 1, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(start("qrnn", 2)[1], [0, 0, 3, -1, 0, 0])
    np.testing.assert_array_equal(start("qrnn_f", 2)[1], [0, 0, 3, -1])
    np.testing.assert_array_equal(start("qrnn_ifo", 2)[1], [0, 0, 3, -1, 0, 0, 0, 0])
    np.testing.assert_array_equal(start("sru1", 2)[1], [3, -1, 0, 0])
    np.testing.assert_array_equal(start("minlstm", 3)[1], [3, 1, -1, -3, -1, 1, 0, 0, 0])
    long = start("mingru", 3, time=400)[1]
    np.testing.assert_allclose(1 / sigmoid(long[:1]) - 1, 400, rtol=1e-4)  # the slowest remembers the whole sequence
    decays = np.tanh(start("mingru_signed", 5)[1])
    np.testing.assert_allclose(decays[:5], [*sigmoid(np.array([3, 1, -1])), 0, 0], atol=1e-6)
    np.testing.assert_array_equal(start("mingru_signed", 2)[2], [1, 1])
    rings = np.exp(-2 * np.exp(start("lru", 300)[1])), np.log1p(np.exp(start("mamba", 300)[5]))
    for ring, (low, high) in zip(rings, ((0.5**2, 0.99**2), (1e-3, 1e-1)), strict=True):
        assert low * 0.999 < ring.min() < 1.2 * low < high / 1.2 < ring.max() < 1.001 * high
    np.testing.assert_array_equal(start("lstm@1", 2)[-1], [0, 0, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(start("cifg", 2)[2], [1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(start("ligru", 2)[3], [1, 1, 0, 0])
    np.testing.assert_array_equal(start("lstmp", 1)[2], [0, 0, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(start("fastrnn", 2)[3], [-3, 3])
    assert 0.0 <= start("indrnn", 200)[1].min() < 0.1 < 2**0.25 - 0.1 < start("indrnn", 200)[1].max() < 2**0.25
    deviations = [block.std() for block in np.split(start("sru", 500)[0], 4, axis=1)]  # 2 features: variance 1 / 2
    np.testing.assert_allclose(np.square(deviations), [1 / 2, 1 / 4, 1 / 4, 3 / 2], rtol=0.1)
    *_, bias = find_cell("gru").initialise([np.zeros(1), np.zeros(1), np.zeros((2, 6), np.float32)])
    np.testing.assert_array_equal(bias, [[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])


def test_li_gru_normalises_by_the_batch_and_then_by_what_it_noted(random):
    x = random.normal(2.0, 3.0, size=(BATCH, TIME, FEATURES)).astype(np.float32)
    mask = random.random((BATCH, TIME)) < 0.7
    layer = find_cell("ligru").layer(UNITS, return_sequences=True)
    layer.build(x.shape)
    kernel, recurrent, scale, shift, _, _ = weights = layer.get_weights()
    assert [w.name.split("/")[-1] for w in layer.trainable_weights] == [
        "kernel:0",
        "recurrent_kernel:0",
        "scale:0",
        "shift:0",
    ]
    seen = (x @ kernel)[mask]
    for average in (seen.mean(0), seen.var(0)):
        assert np.abs(average).min() > 1e-3
    got = layer(x, mask=tf.constant(mask), training=True)
    of_batch = [kernel, recurrent, scale, shift, seen.mean(0), seen.var(0)]
    np.testing.assert_allclose(got, recurrence(ligru, of_batch, x, mask), atol=1e-5)
    noted = [0.95 * before + 0.05 * now for before, now in zip(weights[4:], of_batch[4:], strict=True)]
    for now, wanted in zip(layer.get_weights()[4:], noted, strict=True):
        np.testing.assert_allclose(now, wanted, rtol=1e-5)
    got = layer(x, mask=tf.constant(mask), training=False)
    np.testing.assert_allclose(got, recurrence(ligru, [*weights[:4], *noted], x, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["sru", "sru1"])
def test_sru_hands_on_inputs_that_are_as_wide_as_it_is(name, random):
    x = random.normal(size=(BATCH, TIME, UNITS)).astype(np.float32)
    layer = find_cell(name).layer(UNITS, return_sequences=True)
    layer.build(x.shape)
    weights = layer.get_weights()
    assert weights[0].shape == (UNITS, 3 * UNITS)
    expected = recurrence(ORACLES[name], weights, x, np.ones((BATCH, TIME)))
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)
    form = {"return_sequences": True, "go_backwards": False, "deployment": Deployment("loop")}
    np.testing.assert_allclose(find_cell(name).lowered(weights, tf.constant(x), None, **form), expected, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, facts in CELLS.items() if "scan" in facts.lowerings])
def test_linear_layers_stay_finite_on_long_and_loud_data(name, random):
    x = tf.constant(random.normal(scale=30.0, size=(1, 1000, FEATURES)).astype(np.float32))
    layer = find_cell(name).layer(UNITS)
    layer.build(x.shape)
    with tf.GradientTape() as tape:
        output = layer(x)
    for value in (output, *tape.gradient(output, layer.trainable_weights)):
        assert np.isfinite(value).all()


def test_a_signed_gate_tells_parity_of_any_length(random):
    """By hand: a one turns the memory's sign, a zero keeps it; a gate that is never negative cannot."""
    ones = random.integers(0, 2, (8, 200))
    layer = find_cell("mingru_signed").layer(1, return_sequences=True)
    layer.build((None, 200, 1))
    layer.set_weights([np.array([[-20.0, 0.0, 0.0]]), np.array([10.0, 0.0, 0.0]), np.ones(1)])
    told = layer(tf.constant(ones[..., None], tf.float32))
    np.testing.assert_array_equal(told[..., 0], 1 - 2 * (ones.cumsum(axis=1) % 2))


def test_indrnn_keeps_its_memory_bounded():
    layer = find_cell("indrnn").layer(2)
    layer.build((None, 8, 2))
    layer.set_weights([np.ones((2, 2)), np.array([-3.0, 3.0]), np.zeros(2)])
    np.testing.assert_allclose(constrained(layer).get_weights()[1], [-(2 ** (1 / 8)), 2 ** (1 / 8)], rtol=1e-6)


@pytest.mark.parametrize("name", ["gru@3", "fastgrnn@2", "ligru@3"])
def test_a_factored_cell_is_the_cell_with_the_products_of_its_factors(name, random):
    x = tf.constant(random.normal(size=(BATCH, TIME, FEATURES)).astype(np.float32))
    inner = name.split("@")[0]
    thin, whole = (find_cell(cell).layer(UNITS, return_sequences=True) for cell in (name, inner))
    for layer in (thin, whole):
        layer.build(x.shape)
    thin.set_weights([random.normal(scale=0.6, size=w.shape) for w in thin.get_weights()])
    weights = constrained(thin).get_weights()
    whole.set_weights([weights[0], weights[1] @ weights[2], *weights[3:]])
    np.testing.assert_allclose(thin(x), whole(x), atol=1e-5 * max(1.0, np.abs(whole(x)).max()))
    assert check_cell(find_cell(name), times=(3,)) == []


@pytest.mark.parametrize("name", ["mingru", "indrnn", "sru"])
def test_only_a_recurrent_matrix_can_be_factored(name):
    with pytest.raises(SpecError, match="has no recurrent matrix to factor"):
        find_cell(f"{name}@4")


@pytest.mark.parametrize(("name", "gates"), [("fastrnn", 0), ("fastgrnn", 1), ("fastgrnn@2", 1)])
def test_what_is_the_same_at_each_step_is_worked_out_once(name, gates):
    """The sigmoids of the two scales; and each variable is read once for the projection and once for all steps."""
    steps, layer = 5, find_cell(name).layer(4)
    layer(tf.zeros((1, steps, 3)))
    graph = tf.function(layer, autograph=False).get_concrete_function(tf.TensorSpec((2, steps, 3))).graph
    counts = Counter(op.type for op in graph.get_operations())
    assert counts["Sigmoid"] == 2 + gates * steps
    assert counts["ReadVariableOp"] <= 2 * len(layer.weights)


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
