"""From architecture to model to .tflite: the served file answers as Keras does, and the way in and out is right."""

from dataclasses import replace

import numpy as np
import pytest

from objectives.deployment.interpreter import predict
from objectives.deployment.lower import lower
from spaces.backend import keras, tf
from spaces.build import build, put_weights, served, serving_model, weights_of
from spaces.cells.recurrent import WRITTEN_OUT
from spaces.errors import ModelError, SpecError
from spaces.genotype import Architecture, Deployment
from spaces.signature import PADDING, Signature

FLOATS = Signature("classification", 7, 3, 4, mean=(1.0, -2.0, 0.5), std=(2.0, 0.1, 1.0))
MASKED = replace(FLOATS, masked=True)
TOKENS = Signature("classification", 7, 0, 4, vocabulary=9, masked=True)
TAGGING = replace(MASKED, kind="tagging")
REGRESSION = replace(FLOATS, kind="regression", outputs=2, target_mean=(100.0, -3.0), target_std=(20.0, 0.5))

TINY = replace(  # as in SI units: deviations far below the 1e-7 at which Keras's own normalisation stops
    REGRESSION,
    masked=True,
    mean=(1e-9, -2e-9, 5e-10),
    std=(2e-9, 1e-10, 1e-9),
    target_mean=(1e-7, -3e-9),
    target_std=(2e-8, 5e-10),
)


def raw(signature, count=64, seed=3):
    """Raw inputs, the shorter sequences padded at their end; one is whole, one has a single step."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, signature.time_steps + 1, count)
    lengths[:2] = signature.time_steps, 1
    after = np.arange(signature.time_steps) >= lengths[:, None]
    if signature.vocabulary:
        x = random.integers(1, signature.vocabulary, (count, signature.time_steps)).astype(np.int32)
        return np.where(after, 0, x) if signature.masked else x
    x = random.normal(size=(count, signature.time_steps, signature.features)).astype(np.float32)
    x = x * np.float32(signature.std or 1) + np.float32(signature.mean or 0)
    return np.where(after[:, :, None], np.float32(PADDING), x) if signature.masked else x


def trained(architecture, signature, seed=5):
    """A model whose every weight, biases included, is away from where training starts."""
    random = np.random.default_rng(seed)
    model = build(architecture, signature, seed)
    moved = {
        name: [(w + random.normal(scale=0.2, size=w.shape)).astype(np.float32) for w in arrays]
        for name, arrays in weights_of(model).items()
    }
    put_weights(model, moved)
    return model


def cell(name, **more):
    return Architecture(name, 6, **more)


def long(signature, time):
    return replace(signature, time_steps=time)


LOOP, LOOP4, LOOP5 = Deployment("loop", 1), Deployment("loop", 4, batch=4), Deployment("loop", 5)
PARALLEL, PARALLEL4 = Deployment("parallel"), Deployment("parallel", batch=4)
SCAN, SCAN4 = Deployment("scan"), Deployment("scan", batch=4)
FORMS = [  # a covering set: each cell, length, batch, mask, depth, way and readout at least once, the odd ones together
    (cell("lstm"), long(MASKED, 100), LOOP5),
    (cell("lstm"), long(FLOATS, 1), LOOP4),
    (cell("lstm", layers=2, bidirectional=True), MASKED, LOOP4),
    (cell("lstm", layers=3, readout="mean"), long(FLOATS, 64), LOOP5),
    (cell("gru"), long(MASKED, 64), LOOP4),
    (cell("gru"), long(FLOATS, 100), LOOP),
    (cell("gru", layers=2, bidirectional=True), TAGGING, LOOP5),
    (cell("gru", frame_stack=3, readout="mean", layers=2), MASKED, LOOP),
    (cell("simple_rnn", bidirectional=True), FLOATS, LOOP5),
    (cell("simple_rnn"), long(TOKENS, 64), LOOP4),
    (cell("fastgrnn", readout="mean"), long(MASKED, 100), LOOP4),
    (cell("fastgrnn", layers=3), REGRESSION, LOOP5),
    (cell("fastgrnn", bidirectional=True), long(FLOATS, 1), LOOP),
    (cell("gru", frame_stack=2), TINY, LOOP),
    (cell("mingru"), long(FLOATS, 64), SCAN),
    (cell("mingru"), long(MASKED, 100), SCAN4),
    (cell("mingru", layers=2, bidirectional=True), TOKENS, SCAN),
    (cell("mingru", layers=3), TAGGING, SCAN4),
    (cell("mingru", readout="mean"), long(MASKED, 64), LOOP5),
    (cell("mingru"), long(FLOATS, 1), SCAN4),
    (cell("qrnn"), long(MASKED, 100), SCAN),
    (cell("qrnn"), long(FLOATS, 1), SCAN),
    (cell("qrnn", layers=2, bidirectional=True, readout="mean"), MASKED, SCAN4),
    (cell("qrnn", frame_stack=4), long(FLOATS, 64), SCAN4),
    (cell("qrnn", layers=2), replace(TAGGING, masked=False), LOOP4),
    (cell("qrnn", bidirectional=True), long(MASKED, 7), LOOP5),
    (cell("gru", rank=2, layers=3, residual=True, brick=5), long(MASKED, 37), LOOP4),
    (cell("mingru", layers=2, residual=True, brick=4, readout="mean"), long(FLOATS, 37), SCAN4),
    (cell("lstm", layers=2, residual=True), TAGGING, LOOP5),
    (cell("tcn", layers=2, readout="attention"), MASKED, PARALLEL4),
    (cell("tcn", frame_stack=2), long(FLOATS, 37), PARALLEL),
    (cell("attention", layers=2), TAGGING, PARALLEL4),
    (cell("attention", bidirectional=True, readout="attention"), FLOATS, PARALLEL),
    (cell("linear_attention", layers=2, residual=True), TOKENS, PARALLEL4),
    (cell("lstm", readout="attention", brick=3), MASKED, LOOP4),
]


@pytest.mark.parametrize(("architecture", "signature", "deployment"), FORMS)
def test_the_file_answers_as_keras_does_and_again(architecture, signature, deployment, tmp_path):
    model = trained(architecture, signature)
    x = raw(signature)
    expected = serving_model(model, signature)(x).numpy()
    path = tmp_path / "model.tflite"
    path.write_bytes(lower(architecture, signature, weights_of(model), deployment))
    twice = predict(path, np.concatenate([x, x]))
    unit = np.float32(signature.target_std or 1.0)
    steps = np.ones(expected.shape[:-1], bool)
    if signature.sequences and signature.masked:
        steps = x[:, :, 0] != PADDING  # what stands at padding is nobody's concern, though it agrees too
    for got in (twice[: len(x)], twice[len(x) :]):
        assert np.abs((got - expected) / unit)[steps].max() <= 1e-5
    np.testing.assert_array_equal(twice[: len(x)], twice[len(x) :])


@pytest.mark.parametrize(
    ("architecture", "signature", "loops_stay"),
    [
        (cell("lstm"), FLOATS, False),
        (cell("simple_rnn", bidirectional=True), MASKED, True),
        (cell("simple_rnn", bidirectional=True), FLOATS, False),
        (cell("gru", brick=3, readout="mean"), MASKED, False),
        (cell("fastgrnn", bidirectional=True, rank=2), MASKED, False),
    ],
)
def test_short_sequences_are_trained_without_a_loop_and_alike(architecture, signature, loops_stay, monkeypatch):
    x = raw(signature)

    def found():
        model = trained(architecture, signature)

        @tf.function(autograph=False)
        def step(x):
            with tf.GradientTape() as tape:
                y = model(x, training=True)
                value = tf.reduce_sum(tf.sin(y))
            return [y, *tape.gradient(value, model.trainable_variables)]

        graph = step.get_concrete_function(tf.TensorSpec((None, *x.shape[1:]), x.dtype)).graph.as_graph_def()
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        return any("While" in node.op for node in nodes), [each.numpy() for each in step(x)]

    loops, written_out = found()
    assert loops == loops_stay
    monkeypatch.setattr("spaces.cells.recurrent.WRITTEN_OUT", 0)
    loops, in_a_loop = found()
    assert loops
    for mine, other in zip(written_out, in_a_loop, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)


def test_long_sequences_are_trained_in_a_loop_and_all_on_a_gpu(monkeypatch):
    def unrolled(signature):
        return build(cell("gru"), signature, 0).get_layer("layer1").unroll

    assert unrolled(long(FLOATS, WRITTEN_OUT))
    assert not unrolled(long(FLOATS, WRITTEN_OUT + 1))
    looped = build(cell("gru", brick=3), FLOATS, 0, loops=True)  # as it is exported
    assert not looped.get_layer("layer1").unroll
    assert not looped.get_layer("bricks").layer.unroll
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["one"] if kind == "GPU" else [])
    assert not unrolled(long(FLOATS, WRITTEN_OUT))


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_a_loop_holds_one_recurrent_product_a_step(steps):
    """`steps` copies in the body and the rest of 8 behind it; all of them where one iteration would hold everything."""
    signature = long(FLOATS, 8)
    weights = weights_of(build(cell("gru"), signature, 0))
    graph = tf.function(served(cell("gru"), signature, weights, Deployment("loop", steps)), autograph=False)
    concrete = graph.get_concrete_function(tf.TensorSpec((1, 8, 3)))
    bodies = [f for f in concrete.graph.as_graph_def().library.function if "body" in f.signature.name]
    inside = [[node.name for node in f.node_def if node.op == "MatMul"] for f in bodies]
    outside = [op.name for op in concrete.graph.get_operations() if op.type == "MatMul" and "recurrent" in op.name]
    expected = {1: ([1], 0), 3: ([3], 2), 8: ([], 8)}[steps]
    assert ([len(names) for names in inside], len(outside)) == expected
    assert all("recurrent" in name for names in inside for name in names)
    names = [op.name for op in concrete.graph.get_operations() if op.type == "MatMul"]
    assert sum(name.startswith("input_projection") for name in names) == 1
    assert sum(name.startswith("head") for name in names) == 1


def test_padding_changes_nothing():
    """A padded sequence has the answer of the sequence alone, in every cell that sees it step by step."""
    for name in ("gru", "qrnn"):
        model = trained(cell(name, layers=2), MASKED)
        x = raw(MASKED, count=2)
        x[0, 4:] = PADDING
        short = build(cell(name, layers=2), long(MASKED, 4), 0)
        put_weights(short, weights_of(model))
        np.testing.assert_allclose(model(x[:1]), short(x[:1, :4]), atol=1e-6)


def test_frames_count_if_any_of_their_steps_does():
    """Length 7 in frames of 3: steps 0-2, 3-5, 6 and two of padding; a sequence of 4 has two frames, the rest zeros."""
    signature = replace(MASKED, mean=(), std=())
    layer = build(cell("gru", frame_stack=3), signature, 0).get_layer("frames")
    x = np.arange(42, dtype=np.float32).reshape(2, 7, 3) + 1
    mask = np.arange(7) < np.array([[7], [4]])
    frames, marks = layer(x, mask=mask).numpy(), layer.compute_mask(x, mask).numpy()
    np.testing.assert_array_equal(marks, [[True, True, True], [True, True, False]])
    np.testing.assert_array_equal(frames[0].reshape(9, 3), np.concatenate([x[0], np.zeros((2, 3))]))
    np.testing.assert_array_equal(frames[1].reshape(9, 3), np.concatenate([x[1, :4], np.zeros((5, 3))]))


def test_the_unit_of_the_data_makes_no_difference():
    """Metres or nanometres: what the model sees, and so what it answers, is the same up to the unit."""
    plain, scaled = (
        REGRESSION,
        replace(
            REGRESSION,
            **{
                key: tuple(1e-9 * value for value in getattr(REGRESSION, key))
                for key in ("mean", "std", "target_mean", "target_std")
            },
        ),
    )
    x = raw(plain, count=8)
    model = trained(cell("gru"), plain)
    twin = build(cell("gru"), scaled, 0)
    put_weights(twin, weights_of(model))
    expected = serving_model(model, plain)(x).numpy()
    np.testing.assert_allclose(serving_model(twin, scaled)(x * np.float32(1e-9)).numpy() * 1e9, expected, rtol=1e-4)


def test_regression_is_served_in_raw_units():
    model = trained(cell("gru"), REGRESSION)
    x = raw(REGRESSION, count=3)
    expected = model(x).numpy() * [20.0, 0.5] + [100.0, -3.0]
    np.testing.assert_allclose(serving_model(model, REGRESSION)(x), expected, rtol=1e-5)


@pytest.mark.parametrize(("name", "signature"), [("qrnn", MASKED), ("fastgrnn", TOKENS), ("simple_rnn", TAGGING)])
def test_serving_model_saves_and_loads_with_a_free_batch(name, signature, tmp_path):
    frames = 1 if signature.sequences else 2
    serving = serving_model(trained(cell(name, bidirectional=True, frame_stack=frames), signature), signature)
    x = raw(signature, count=5)
    serving.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_allclose(again(x), serving(x), atol=1e-6)
    tf.saved_model.save(serving, str(tmp_path / "saved"))
    signed = tf.saved_model.load(str(tmp_path / "saved")).signatures["serving_default"]
    for count in (1, 5):
        (answer,) = signed(x=tf.constant(x[:count])).values()
        np.testing.assert_allclose(answer, serving(x[:count]), atol=1e-6)


def test_weights_go_by_layer_name_and_come_back():
    model = build(cell("simple_rnn", layers=2, bidirectional=True), TOKENS, 0)
    weights = weights_of(model)
    assert list(weights) == ["embedding", "layer1", "layer1_backward", "layer2", "layer2_backward", "head"]
    assert [w.shape for w in weights["layer2_backward"]] == [(12, 6), (6, 6), (6,)]
    other = build(cell("simple_rnn", layers=2, bidirectional=True), TOKENS, 1)
    put_weights(other, weights)
    np.testing.assert_array_equal(other(raw(TOKENS)), model(raw(TOKENS)))


def test_weights_of_another_architecture_are_refused():
    model = build(cell("gru"), FLOATS, 0)
    with pytest.raises(ModelError, match="has layers"):
        put_weights(model, weights_of(build(cell("gru", layers=2), FLOATS, 0)))
    with pytest.raises(ModelError, match="do not fit the layer"):
        put_weights(model, weights_of(build(Architecture("gru", 8), FLOATS, 0)))


def test_the_seed_is_the_model():
    same, again, other = (weights_of(build(cell("mingru"), FLOATS, seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(same["layer1"][0], again["layer1"][0])
    assert np.abs(same["layer1"][0] - other["layer1"][0]).max() > 0.1
    assert same["layer1"][1][0] == -3.0


@pytest.mark.parametrize("cell", ["lstm", "fastgrnn", "attention"])
def test_tensorflow_is_not_seeded_by_building_nor_building_by_tensorflow(cell):
    """Seeded, it would forget what it has compiled."""
    found, drawn = [], []
    for seed in (1, 2):
        tf.random.set_seed(seed)
        found.append(weights_of(build(Architecture(cell, 6), FLOATS, 4)))
        drawn.append(tf.random.uniform([3]).numpy())
        tf.random.set_seed(seed)
        np.testing.assert_array_equal(tf.random.uniform([3]).numpy(), drawn[-1])
    np.testing.assert_equal(found[0], found[1])
    assert (drawn[0] != drawn[1]).all()


def test_tagging_refuses_frames():
    with pytest.raises(SpecError, match=r"space\.frame_stack must be 1 for tagging.*but got 2"):
        build(cell("gru", frame_stack=2), TAGGING, 0)
