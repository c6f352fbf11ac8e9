import signal
import subprocess
import sys
import tempfile
import textwrap

import numpy as np
import pytest

from experiments.claims.lowering import by_stock, told
from objectives.deployment.interpreter import Interpreter, predict
from objectives.deployment.lower import exporter_name, lower
from objectives.deployment.quantize import realised_bits
from objectives.deployment.twin import twin
from spaces.backend import tf
from spaces.build import build, serving_model, weights_of
from spaces.catalog import STATIC_BITS
from spaces.cells.gated import GRU
from spaces.genotype import Architecture, Deployment
from spaces.signature import PADDING, Signature

FLOATS = Signature("classification", 7, 3, 4, mean=(1.0, 0.5, 0.0), std=(2.0, 3.0, 1.0))
MASKED = Signature("classification", 10, 3, 4, masked=True, mean=(1.0, 0.5, 0.0), std=(2.0, 3.0, 1.0))
VALUES = Signature("regression", 8, 2, 2, target_mean=(5.0, -3.0), target_std=(2.0, 7.0))
TOKENS = Signature("classification", 9, 0, 3, vocabulary=20, masked=True)
TAGS = Signature("tagging", 9, 2, 3, masked=True)


def sequences(signature, count=5, seed=0):
    """Raw inputs with short sequences where the signature has them."""
    rng = np.random.default_rng(seed)
    if signature.vocabulary:
        x = rng.integers(1, signature.vocabulary, (count, signature.time_steps)).astype(np.int32)
    else:
        x = rng.normal(1, 3, (count, signature.time_steps, signature.features)).astype(np.float32)
    if signature.masked:
        for row in x:
            row[rng.integers(1, signature.time_steps + 1) :] = 0 if signature.vocabulary else PADDING
    return x


@pytest.mark.parametrize(
    ("architecture", "signature", "deployment"),
    [
        (Architecture("lstm", 16), FLOATS, Deployment("loop", 3, "32", 4)),
        (Architecture("lstm", 16), FLOATS, Deployment("keras", 1, "32", 4)),
        (Architecture("gru", 8, 1, True, 3, "mean"), MASKED, Deployment("keras", 1, "32", 2)),
        (Architecture("gru", 8, 1, True, 3, "mean"), MASKED, Deployment("loop", 1, "8", 2)),
        (Architecture("simple_rnn", 8, 2, False, 3), VALUES, Deployment("keras", 1, "32", 1)),
        (Architecture("lstm", 8, 2), TOKENS, Deployment("keras", 1, "32", 2)),
        (Architecture("gru", 8, 1, False, 4), TOKENS, Deployment("keras", 1, "32", 2)),
        (Architecture("gru", 8, 2), TAGS, Deployment("keras", 1, "32", 1)),
        (Architecture("mingru", 8, 2), TOKENS, Deployment("scan", 1, "32", 2)),
    ],
    ids=lambda each: getattr(each, "lowering", getattr(each, "kind", getattr(each, "cell", None))),
)
def test_a_float_lowering_answers_as_the_keras_model_does(architecture, signature, deployment, tmp_path):
    model, x = build(architecture, signature, seed=1), sequences(signature)
    path = tmp_path / "model.tflite"
    path.write_bytes(lower(architecture, signature, weights_of(model), deployment))
    expected = serving_model(model, signature)(x).numpy()
    for _ in range(2):
        np.testing.assert_allclose(predict(path, x), expected, atol=1e-5)
    assert set(realised_bits(path.read_bytes()).values()) == {32}  # "loop" and "scan" are narrowed afterwards

    interpreter = Interpreter(model_path=str(path))
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["x"], "outputs": ["y"]}}
    (given,), (answered,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (given["name"], answered["name"]) == ("x", "y")
    assert tuple(given["shape"]) == (deployment.batch, *x.shape[1:])


def test_the_stock_converter_narrows_by_itself_and_says_nothing_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    architecture = Architecture("lstm", 32)
    weights = weights_of(build(architecture, FLOATS, seed=1))
    made = {bits: lower(architecture, FLOATS, weights, Deployment("keras", 1, bits, 1)) for bits in ("32", "16", "8")}
    assert len(made["8"]) < len(made["16"]) < len(made["32"])
    assert realised_bits(made["16"]) == {"input": 16, "recurrent": 16, "head": 16}
    # it passes over matrices of fewer than 1024 numbers without a word: 3 x 128 and 32 x 4 here
    assert realised_bits(made["8"]) == {"input": 32, "recurrent": 8, "head": 32}
    assert capsys.readouterr() == ("", "")
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    ("architecture", "signature", "deployment"),
    [
        (Architecture("gru", 5, layers=2, bidirectional=True), MASKED, Deployment("loop", 3)),
        (Architecture("lru", 6, layers=2, bidirectional=True), FLOATS, Deployment("scan")),
        (Architecture("attention", 4), FLOATS, Deployment("parallel")),
    ],
    ids=lambda one: getattr(one, "cell", ""),
)
def test_a_graph_without_variables_becomes_the_file_that_the_stock_converter_makes(architecture, signature, deployment):
    """But for the places that equal constants, which are stored once, have in it."""
    weights = weights_of(build(architecture, signature, 0))
    stock = by_stock(architecture, signature, weights, deployment)
    mine = lower(architecture, signature, weights, deployment)
    assert len(mine) == len(stock)
    assert told(mine) == told(stock)


class Tabled(GRU):
    """A cell with a tensor of its own, which is not a constant of the graph: TensorFlow hands it in."""

    table = tf.ones((16, 16))

    def project(self, weights, x):
        return super().project(weights, x) * self.table[0, 0]


@pytest.mark.parametrize("bits", ["32", "8"])
def test_a_tensor_of_a_cell_is_stored_in_the_file(bits, monkeypatch, tmp_path):
    architecture, deployment = Architecture("gru", 4), Deployment("loop", bits=bits)
    weights = weights_of(build(architecture, FLOATS, 0))
    plain = lower(architecture, FLOATS, weights, deployment)
    monkeypatch.setattr("spaces.build.find_cell", lambda name: Tabled())
    x = sequences(FLOATS)
    for name, content in {"plain": plain, "tabled": lower(architecture, FLOATS, weights, deployment)}.items():
        (tmp_path / name).write_bytes(content)
        assert set(realised_bits(content).values()) == {32}  # brisk narrows it afterwards
    np.testing.assert_allclose(predict(tmp_path / "tabled", x), predict(tmp_path / "plain", x), atol=1e-6)


@pytest.mark.parametrize("bits", STATIC_BITS)
def test_static_integers_calibrate_on_fewer_sequences_than_one_call_takes(bits, tmp_path):
    architecture, x = Architecture("mingru", 8), sequences(FLOATS, count=3)
    model = build(architecture, FLOATS, seed=1)
    deployment = Deployment("scan", 1, bits, 4)
    path = tmp_path / "model.tflite"
    path.write_bytes(lower(architecture, FLOATS, weights_of(model), deployment, representative=x))
    assert realised_bits(path.read_bytes()) == {"input": 8, "head": 8}
    np.testing.assert_allclose(predict(path, x), serving_model(model, FLOATS)(x), atol=0.05)


def test_full_int8_of_a_while_kills_its_process():
    """A bug of TensorFlow 2.21's converter that brisk lives with; when this test fails, the bug is gone."""
    script = """
        import numpy as np
        from objectives.deployment.lower import lower
        from spaces.build import build, weights_of
        from spaces.genotype import Architecture, Deployment
        from spaces.signature import Signature
        signature, architecture = Signature("classification", 6, 2, 2), Architecture("lstm", 4)
        weights = weights_of(build(architecture, signature, seed=1))
        x = np.zeros((2, 6, 2), np.float32)
        print("reached", flush=True)
        lower(architecture, signature, weights, Deployment("loop", 1, "full8"), representative=x)
    """
    died = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, timeout=300, check=False
    )
    assert died.stdout.strip() == b"reached"
    assert died.returncode == -signal.SIGSEGV


def test_full_int8_without_inputs_to_calibrate_on_is_refused():
    architecture = Architecture("lstm", 4)
    weights = weights_of(build(architecture, FLOATS, seed=1))
    for nothing in (None, np.empty((0, 7, 3), np.float32)):
        with pytest.raises(ValueError, match="representative"):
            lower(architecture, FLOATS, weights, Deployment("loop", 1, "full8"), representative=nothing)


def test_a_cell_that_keras_has_no_layer_for_has_no_twin():
    with pytest.raises(ValueError, match="no fastgrnn layer"):
        twin(Architecture("fastgrnn", 4), FLOATS, {}, 1)


@pytest.mark.parametrize(
    ("deployment", "name"),
    [
        (Deployment("keras", 1, "8"), "Keras 3, static batch, TFLite dynamic range"),
        (Deployment("keras", 1, "32"), "Keras 3, static batch, TFLite float32"),
        (Deployment("loop", 4, "rec4"), "brisk loop, 4 steps an iteration"),
        (Deployment("loop", 1, "8"), "brisk loop, 1 step an iteration"),
        (Deployment("scan", 1, "8"), "brisk scan"),
        (Deployment("scan", 1, "full8"), "brisk scan, TFLite full int8"),
        (Deployment("scan", 1, "full16x8"), "brisk scan, TFLite int16 activations, int8 weights"),
    ],
)
def test_the_exporter_is_named(deployment, name):
    assert exporter_name(deployment) == name
