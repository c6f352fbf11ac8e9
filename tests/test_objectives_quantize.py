import numpy as np
import pytest

from objectives.deployment.graph import matrices
from objectives.deployment.interpreter import predict, read_graph, schema
from objectives.deployment.lower import lower
from objectives.deployment.quantize import WIDTHS, quantize, realised_bits
from spaces.backend import keras, tf
from spaces.build import build, weights_of
from spaces.catalog import BITS, STATIC_BITS, asked_bits
from spaces.genotype import Architecture, Deployment
from spaces.signature import Signature

UNITS, STEPS = 24, 3
SIGNATURE = Signature("classification", 9, 0, 5, vocabulary=40)
ARCHITECTURE = Architecture("lstm", UNITS, embedding=12)


@pytest.fixture(scope="module")
def weights():
    found = weights_of(build(ARCHITECTURE, SIGNATURE, seed=1))
    found["layer1"][1][:, 7] = 0.0  # as pruning may leave a channel: its scale must not become a division by zero
    return found


@pytest.fixture(scope="module")
def model(weights):
    """Embedding, one LSTM in a WHILE of several steps an iteration, head."""
    return lower(ARCHITECTURE, SIGNATURE, weights, Deployment("loop", STEPS, "32", 2))


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).integers(0, 40, (6, 9)).astype(np.int32)


def answers(model, x, folder):
    path = folder / "model.tflite"
    path.write_bytes(model)
    return predict(path, x)


def stored(model, shape):
    """Type and bytes of each buffer that holds a tensor of this shape."""
    graph = read_graph(model)
    tensors = [each for part in graph.subgraphs for each in part.tensors if each.shape is not None]
    found = {each.buffer: each for each in tensors if tuple(each.shape) == shape}
    return [(each, graph.buffers[at].data) for at, each in found.items() if graph.buffers[at].data is not None]


REALISED = {
    "32": {"embedding": 32, "input": 32, "recurrent": 32, "head": 32},
    "16": {"embedding": 16, "input": 16, "recurrent": 16, "head": 16},
    "8": {"embedding": 8, "input": 8, "recurrent": 8, "head": 32},
    "rec8": {"embedding": 32, "input": 32, "recurrent": 8, "head": 32},
    "rec4": {"embedding": 8, "input": 8, "recurrent": 4, "head": 32},
    "4": {"embedding": 4, "input": 4, "recurrent": 4, "head": 32},
}
ERROR = {"32": 0.0, "16": 1e-3, "8": 0.02, "rec8": 0.01, "rec4": 0.1, "4": 0.2}  # relative RMS, at most


def test_every_width_of_the_catalog_is_known_but_the_stock_converters():
    assert set(WIDTHS) == set(BITS) - set(STATIC_BITS)
    for bits in WIDTHS:  # the table that requests are read from, against what the files are held to here
        assert asked_bits(bits) == {role: width for role, width in REALISED[bits].items() if width != 32}


@pytest.mark.parametrize("bits", REALISED)
def test_the_file_holds_the_widths_asked_for_and_answers_nearly_the_same(model, x, bits, tmp_path, capsys):
    narrow = quantize(model, bits)
    assert realised_bits(narrow) == REALISED[bits]
    expected, got = answers(model, x, tmp_path), answers(narrow, x, tmp_path)
    assert np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)) <= ERROR[bits]
    assert (narrow == model) == (bits == "32")
    assert capsys.readouterr() == ("", "")


def test_narrower_files_are_smaller(model):
    size = {bits: len(quantize(model, bits)) for bits in WIDTHS}
    assert size["4"] < size["rec4"] < size["8"] < size["16"] < size["32"]
    assert size["8"] < size["rec8"] < size["32"]


@pytest.mark.parametrize(("bits", "kind", "nbytes"), [("8", "INT8", 1.0), ("rec4", "INT4", 0.5)])
def test_unrolled_steps_share_one_stored_matrix_and_no_float_copy_stays(model, bits, kind, nbytes):
    shape = (4 * UNITS, UNITS)
    uses = [use for use in matrices(quantize(model, bits)) if use.role == "recurrent"]
    assert len(uses) == STEPS
    ((tensor, data),) = stored(quantize(model, bits), shape)
    assert tensor.type == getattr(schema.TensorType, kind)
    assert len(data) == nbytes * np.prod(shape)


def test_eight_bit_weights_lie_within_half_a_step_of_the_floats_channel_by_channel(model, weights):
    ((tensor, data),) = stored(quantize(model, "rec8"), (4 * UNITS, UNITS))
    scale = tensor.quantization.scale[:, None]
    assert len(scale) == 4 * UNITS
    assert not np.any(tensor.quantization.zeroPoint)
    restored = data.view(np.int8).reshape(4 * UNITS, UNITS) * scale
    assert np.all(np.abs(restored - weights["layer1"][1].T) <= scale / 2 + 1e-7)


def test_the_head_is_narrowed_only_where_it_is_asked_for(model):
    assert realised_bits(quantize(model, "8", head=True)) == dict.fromkeys(REALISED["8"], 8)
    assert realised_bits(quantize(model, "4", head=True))["head"] == 4
    assert quantize(model, "32", head=True) == model


def test_a_request_that_came_to_nothing_is_shown():
    """A scan has no recurrent matrix, and the tool cannot reach inside a fused LSTM: both files say so."""
    signature, architecture = Signature("classification", 6, 16, 3), Architecture("mingru", 8)
    scan = lower(architecture, signature, weights_of(build(architecture, signature, 1)), Deployment("scan"))
    assert quantize(scan, "rec8") == scan
    assert realised_bits(scan) == {"input": 32, "head": 32}
    assert realised_bits(quantize(scan, "4")) == {"input": 4, "head": 32}

    inputs = keras.Input(batch_shape=(1, 6, 16))
    fused = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.LSTM(32)(inputs)))
    content = tf.lite.TFLiteConverter.from_keras_model(fused).convert()
    assert realised_bits(quantize(content, "8")) == {"input": 32, "recurrent": 32, "head": 32}


def test_what_cannot_be_asked_for_is_refused(model):
    with pytest.raises(ValueError, match="bits must be one of 32, 16, 8, rec8, rec4, 4, but got 'int8'"):
        quantize(model, "int8")
    with pytest.raises(ValueError, match="quantised already"):
        quantize(quantize(model, "8"), "4")
