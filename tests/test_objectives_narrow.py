"""Training for narrow weights: on the very grid that the file will have, straight through the rounding."""

import types
from dataclasses import replace

import numpy as np
import pytest

from objectives.bench import TrainingSpec
from objectives.deployment.graph import Reader
from objectives.deployment.interpreter import predict, read_graph, schema
from objectives.deployment.lower import lower
from objectives.deployment.quantize import quantize
from objectives.training.fit import fit
from objectives.training.narrow import rounded, rounding
from spaces.backend import keras, tf
from spaces.build import build, put_weights, serving_model, weights_of
from spaces.catalog import CELLS, asked_bits
from spaces.genotype import Architecture, Deployment, Training
from spaces.signature import Signature

FLOATS = Signature("classification", 4, 3, 4, mean=(1.0, 50.0, 0.0), std=(2.0, 300.0, 0.001))
TOKENS = Signature("classification", 4, 0, 4, vocabulary=9)


def moved(architecture, signature, seed=1):
    """A model with no weight where training starts it."""
    random, model = np.random.default_rng(seed), build(architecture, signature, seed)
    put_weights(
        model,
        {
            name: [np.abs(w + random.normal(scale=0.3, size=w.shape)).astype(np.float32) for w in arrays]
            for name, arrays in weights_of(model).items()
        },
    )
    return model


def stored(model):
    """(rows of integers as they are stored, scale of each) of every narrow matrix, once."""
    graph, found = read_graph(model), {}
    for index, part in enumerate(graph.subgraphs):
        reader = Reader(graph, index)
        for op in part.operators:
            for tensor in filter(None, (reader.stored(int(i)) for i in op.inputs)):
                data = graph.buffers[tensor.buffer].data
                if tensor.type == schema.TensorType.INT8:
                    values = data.view(np.int8)
                elif tensor.type == schema.TensorType.INT4:  # two to a byte, the lower half first
                    values = np.stack([data << 4, data], axis=1).ravel().view(np.int8) >> 4
                    values = values[: np.prod(tensor.shape)]
                else:
                    continue
                found[tensor.buffer] = values.reshape(tensor.shape[0], -1), tensor.quantization.scale[:, None]
    return list(found.values())


def closest(matrix, others):
    """How far a matrix is from that of the others which is like it, or has it among its rows."""
    return min(
        np.abs(other[at : at + len(matrix)] - matrix).max()
        for other in others
        if other.shape[1] == matrix.shape[1]
        for at in range(len(other) - len(matrix) + 1)
    )


@pytest.mark.parametrize(
    ("architecture", "signature", "bits", "exact"),
    [
        (Architecture("gru", 8, rank=2, embedding=10, layers=2), TOKENS, "rec4", True),
        (Architecture("lstm", 8, bidirectional=True, readout="attention"), FLOATS, "4", True),
        (Architecture("lstmp", 8), FLOATS, "rec4", True),
        (Architecture("ligru", 8), FLOATS, "rec4", False),  # normalisation is folded in, a factor a channel
        (Architecture("lru", 8), FLOATS, "8", False),  # and so is its input's scale
        (Architecture("attention", 8, readout="mean"), FLOATS, "8", False),  # as is the scale of the queries
    ],
    ids=lambda each: getattr(each, "cell", ""),
)
def test_the_rounded_weights_are_those_of_the_file(architecture, signature, bits, exact):
    model = moved(architecture, signature)
    deployment = Deployment(CELLS[architecture.cell].lowerings[0])
    narrow = stored(quantize(lower(architecture, signature, weights_of(model), deployment), bits, head=True))
    before = weights_of(model)
    rounding(model, bits, head=True)
    after = weights_of(model)
    changed = [
        (new.T if name != "embedding" else new)
        for name in after
        for old, new in zip(before[name], after[name], strict=True)
        if np.any(new != old)
    ]
    assert sum(map(len, changed)) == sum(len(integers) for integers, _ in narrow)  # a matrix may be taken apart
    top = max(2 ** (width - 1) - 1 for width in asked_bits(bits, head=True).values())
    for integers, scale in narrow:
        if exact:
            assert closest(integers * scale, changed) <= scale.max() * 1e-4
        assert closest(integers, [_integers(matrix, integers) for matrix in changed]) < 1e-3
        assert np.abs(integers).max() <= top


def _integers(matrix, like):
    """A rounded matrix [outputs, inputs] as integers of the width of another."""
    return matrix / np.abs(matrix).max(1, keepdims=True) * np.abs(like).max()


def test_the_file_of_rounded_weights_answers_as_keras_does(tmp_path):
    """Normalisation included: folded into the kernel, a feature of large scale would leave no grid for the others."""
    architecture, x = Architecture("gru", 16), np.random.default_rng(0).normal(size=(40, 4, 3))
    x = (x * FLOATS.std + FLOATS.mean).astype(np.float32)
    model = build(architecture, FLOATS, 3)
    content = quantize(lower(architecture, FLOATS, weights_of(model), Deployment("loop")), "4")
    (tmp_path / "model.tflite").write_bytes(content)
    rounding(model, "4")
    expected = serving_model(model, FLOATS)(x).numpy()
    np.testing.assert_allclose(predict(tmp_path / "model.tflite", x), expected, atol=5e-3)


def test_gradients_go_straight_through_to_the_floats_behind():
    x = keras.Input((1,))
    model = keras.Model(x, keras.layers.Dense(2, use_bias=False, name="head")(x))
    (weight,) = model.trainable_variables
    weight.assign([[0.7, -0.2]])
    narrow = rounding(model, "4", head=True)
    np.testing.assert_allclose(weight, [[0.7, -0.2]])  # a column of one weight is its own scale
    (behind,) = narrow.moved([weight])
    behind.assign_sub([[0.1, 0.0]])
    np.testing.assert_allclose(weight, [[0.7, -0.2]])
    narrow.after_step()
    np.testing.assert_allclose(weight, [[0.6, -0.2]])
    column = tf.constant([[7.0], [3.4], [-1.6], [0.4]])
    np.testing.assert_allclose(rounded(column, 4, 0), [[7.0], [3.0], [-2.0], [0.0]])
    np.testing.assert_allclose(rounded(column, 4, 1), column)
    assert not np.any(rounded(tf.zeros([3, 2]), 8, 0))


def test_training_for_narrow_weights_ends_on_the_grid_keeps_zeros_and_beats_rounding():
    random = np.random.default_rng(0)

    def part(count):
        x = random.normal(size=(count, 4, 3)).astype(np.float32)
        return types.SimpleNamespace(x=x, y=(x[:, :, 0] * x[:, :, 1]).sum(1, keepdims=True).astype(np.float32))

    signature = Signature("regression", 4, 3, 1)
    data = types.SimpleNamespace(signature=signature, train=part(256), validation=part(128))
    model = build(Architecture("gru", 12), signature, 0)
    training, spec = Training(2e-2, sparsity=0.3), TrainingSpec(epochs=12)
    fit(model, data, training, spec, seed=0)
    plain = weights_of(model)
    zeros = [plain["layer1"][at] == 0.0 for at in (0, 1)]
    rounding(model, "4")
    after_training = np.mean((model(data.validation.x) - data.validation.y) ** 2)
    put_weights(model, plain)
    history = fit(model, data, replace(training, qat="4"), spec, seed=0)
    assert history["epochs_run"] == 4
    assert history["validation_loss"] < after_training
    ended = weights_of(model)
    for at, zero in enumerate(zeros):
        assert zero.any()
        assert not ended["layer1"][at][zero].any()
        np.testing.assert_allclose(rounded(ended["layer1"][at], 4, 0), ended["layer1"][at], atol=1e-6)
    assert np.any(ended["layer1"][0] != rounded(plain["layer1"][0], 4, 0))
