"""Any graph of recurrent layers, rewritten, gives what Keras gives: a seeded grid of graphs of either Keras."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import SHAPES, ending, shaped

from experiments.claims.graphs import FORMS, TOLERANCE, difference, draw, form_of, original
from objectives.deployment.convert import convert, fixed
from objectives.deployment.interpreter import answers
from objectives.deployment.quantize import quantize, realised_bits
from spaces.backend import keras, keras3, tf
from spaces.lowering.form import Form
from spaces.lowering.load import Loaded, load
from spaces.lowering.rewrite import recurrent_layers, rewriting

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # of Keras 3, with NumPy 2
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5"),
    pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask"),  # Keras 3, of models in models
]
GRAPHS, A_TEST = 30, 10  # `experiments/claims/graphs.py` takes 240 all the way to a file


def opened(model: Any, folder: Path, ending: str = ".keras") -> Loaded:
    path = folder / f"model{ending}"
    model.save(path)
    return load(path)


def rewritten(loaded: Loaded, form: Form, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    forward = tf.function(lambda *tensors: loaded.call(tensors), autograph=False)
    tensors = [tf.constant(array) for array in inputs]
    with rewriting(loaded, form):
        graph = forward.get_concrete_function(*(tf.TensorSpec(each.shape, each.dtype) for each in tensors))
    return [each.numpy() for each in graph(*tensors)]


@pytest.mark.parametrize("first", range(0, GRAPHS, A_TEST))
def test_a_rewritten_graph_gives_what_keras_gives(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + A_TEST):
        drawn = draw(seed)
        loaded = opened(drawn.model, tmp_path)
        wanted = original(loaded, drawn.inputs)
        form = form_of(seed)
        gap = difference(rewritten(loaded, form, drawn.inputs), wanted)
        assert gap <= TOLERANCE, f"{drawn.words}: {form} differs by {gap:.2g}"
        if seed == first:
            assert difference(original(loaded, drawn.inputs), wanted) == 0.0, f"{drawn.words}: the model was changed"


@pytest.mark.parametrize("round_of", range(2))
def test_states_wrappers_and_shared_layers_come_through(round_of: int, tmp_path: Path) -> None:
    """Each shape of `graphs.py`, in brisk's loop and in the loop of the other Keras."""
    for seed in range(round_of * len(SHAPES), (round_of + 1) * len(SHAPES)):
        drawn = shaped(seed)
        loaded = opened(drawn.model, tmp_path, ending(seed))
        wanted = original(loaded, drawn.inputs)
        other = Form("fused" if loaded.family == "Keras 3" else "keras3")
        for form in [FORMS[(seed + round_of) % len(FORMS)], *[other] * (seed % 3 == 0)]:
            gap = difference(rewritten(loaded, form, drawn.inputs), wanted)
            assert gap <= TOLERANCE, f"{drawn.words}: {form} differs by {gap:.2g}"
        assert difference(original(loaded, drawn.inputs), wanted) == 0.0, f"{drawn.words}: the model was changed"


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def plain(kind: str, weights: Sequence[np.ndarray], x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The recurrences as their papers write them, one row and one step after the other."""
    w, r, b = (each.astype(np.float64) for each in weights)
    units = r.shape[0]
    outputs = np.zeros((*x.shape[:2], units))
    for row in range(len(x)):
        h, c = np.zeros(units), np.zeros(units)
        for t in range(x.shape[1]):
            if mask[row, t]:
                if kind == "LSTM":
                    i, f, g, o = np.split(x[row, t] @ w + h @ r + b, 4)
                    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                    h = sigmoid(o) * np.tanh(c)
                elif kind == "GRU":
                    (xz, xr, xn), (hz, hr, hn) = np.split(x[row, t] @ w + b[0], 3), np.split(h @ r + b[1], 3)
                    z, n = sigmoid(xz + hz), np.tanh(xn + sigmoid(xr + hr) * hn)
                    h = z * h + (1 - z) * n
                elif kind == "GRU before":
                    xz, xr, xn = np.split(x[row, t] @ w + b, 3)
                    rz, rr, rn = np.split(r, 3, axis=1)
                    z = sigmoid(xz + h @ rz)
                    n = np.tanh(xn + (sigmoid(xr + h @ rr) * h) @ rn)
                    h = z * h + (1 - z) * n
                else:
                    h = np.tanh(x[row, t] @ w + h @ r + b)
            outputs[row, t] = h
    return outputs


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "GRU before", "SimpleRNN"])
def test_keras_and_the_rewriting_are_the_papers_recurrence(kind: str, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    more = {"reset_after": False} if kind == "GRU before" else {}
    k = keras3()
    layer = getattr(k.layers, kind.split()[0])(5, return_sequences=True, **more)
    model = k.Sequential([k.Input((8, 3)), k.layers.Masking(0.0), layer])
    model.set_weights([random.normal(0, 0.7, np.shape(each)) for each in model.get_weights()])
    x = random.normal(size=(4, 8, 3)).astype(np.float32)
    x[random.random((4, 8)) < 0.3] = 0.0
    wanted = plain(kind, layer.get_weights(), x, (x != 0).any(-1))
    loaded = opened(model, tmp_path)
    assert original(loaded, [x])[0] == pytest.approx(wanted, abs=1e-5)
    for form in FORMS:
        assert rewritten(loaded, form, [x])[0] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("k", [keras3, lambda: keras], ids=["Keras 3", "Keras 2"])
def test_layers_that_follow_one_another_share_a_loop(k: Any, tmp_path: Path) -> None:
    layers = k().layers
    x = k().Input((20, 3))
    h = layers.LSTM(4, return_sequences=True)(x)
    h = layers.Dropout(0.5)(h)
    h = layers.GRU(4, return_sequences=True)(h)
    loaded = opened(k().Model(x, layers.LSTM(4)(h)), tmp_path)
    counts = {}
    for stacked in (False, True):
        forward = tf.function(lambda x: loaded.call([x]), autograph=False)
        with rewriting(loaded, Form(steps=2, stacked=stacked)):
            graph = forward.get_concrete_function(tf.TensorSpec((1, 20, 3)))
        kept = tf.compat.v1.graph_util.extract_sub_graph(graph.graph.as_graph_def(), [graph.outputs[0].op.name])
        counts[stacked] = sum("While" in node.op for node in kept.node)
    assert counts == {False: 3, True: 1}


def test_a_long_sequence_is_written_in_two_stages_and_stays_equal(tmp_path: Path) -> None:
    k = keras3()
    model = k.Sequential([k.Input((301, 2)), k.layers.GRU(3, return_sequences=True)])
    x = np.random.default_rng(0).normal(size=(1, 301, 2)).astype(np.float32)
    loaded = opened(model, tmp_path)
    for steps in (1, 4, 7):
        assert difference(rewritten(loaded, Form(steps=steps), [x]), original(loaded, [x])) <= TOLERANCE


@pytest.mark.parametrize("k", [keras3, lambda: keras], ids=["Keras 3", "Keras 2"])
def test_zeros_for_masked_steps_stand_where_keras_puts_them(k: Any, tmp_path: Path) -> None:
    """Where it unrolls backwards, that is at the steps masked in the order of the input, not in that of the output."""
    layers, x = k().layers, k().Input((4, 2))
    flags = {"return_sequences": True, "zero_output_for_mask": True, "go_backwards": True}
    h = [layers.LSTM(3, unroll=unroll, **flags)(layers.Masking()(x)) for unroll in (True, False)]
    loaded = opened(k().Model(x, h), tmp_path)
    data = np.random.default_rng(0).normal(size=(2, 4, 2)).astype(np.float32)
    data[0, 3] = data[1, :2] = 0.0
    assert difference(rewritten(loaded, Form(), [data]), original(loaded, [data])) <= TOLERANCE


@pytest.mark.parametrize("lowering", ["loop", "keras3", "fused"])
@pytest.mark.parametrize("k", [keras3, lambda: keras], ids=["Keras 3", "Keras 2"])
def test_stateful_layers_start_at_zero_in_every_form_and_remember_afterwards(
    k: Any, lowering: str, tmp_path: Path
) -> None:
    layers, x = k().layers, k().Input((4, 3, 2), batch_size=2)
    h = layers.ConvLSTM1D(2, 2, return_sequences=True, stateful=True)(x)  # is left as it is
    h = layers.TimeDistributed(layers.Flatten())(h)
    loaded = opened(k().Model(x, layers.GRU(3, stateful=True)(h)), tmp_path)
    data = np.random.default_rng(0).normal(size=(2, 4, 3, 2)).astype(np.float32)
    wanted, again = original(loaded, [data]), loaded.call([tf.constant(data)])
    assert difference([np.asarray(again[0])], wanted) > 100 * TOLERANCE
    assert difference(rewritten(loaded, Form(lowering), [data]), wanted) <= TOLERANCE
    path = tmp_path / "model.tflite"
    path.write_bytes(convert(loaded, Form(lowering), fixed(loaded, 2, None)))
    for _ in range(2):
        (got,) = answers(path, {loaded.inputs[0].name: data}).values()
        assert difference([got], wanted) <= TOLERANCE
    assert difference([np.asarray(each) for each in loaded.call([tf.constant(data)])], wanted) > 100 * TOLERANCE


class Doubling(keras.layers.SimpleRNNCell):  # type: ignore[misc]
    """A cell of a user's own, which may compute anything."""

    def call(self, inputs: Any, states: Any, training: Any = None) -> Any:
        output, after = super().call(inputs, states, training=training)
        return 2 * output, after


def test_what_brisk_does_not_know_by_heart_is_left_alone(tmp_path: Path) -> None:
    x = keras.Input((5, 4, 2))
    h = keras.layers.ConvLSTM1D(3, 2, return_sequences=True)(x)
    h = keras.layers.TimeDistributed(keras.layers.Flatten())(h)
    h = keras.layers.RNN(Doubling(4), return_sequences=True)(h)
    model = keras.Model(x, keras.layers.LSTM(4)(h))
    model.save(tmp_path / "model.keras")
    from spaces.lowering import load as loading

    with keras.saving.custom_object_scope({"Doubling": Doubling}):
        loaded = loading.load(tmp_path / "model.keras")
    known, left = recurrent_layers(loaded)
    assert [type(layer).__name__ for layer in known] == ["LSTM"]
    assert [type(layer).__name__ for layer in left] == ["ConvLSTM1D", "RNN"]
    data = np.random.default_rng(0).normal(size=(2, 5, 4, 2)).astype(np.float32)
    assert difference(rewritten(loaded, Form(), [data]), original(loaded, [data])) <= TOLERANCE


def bidirectional_classifier(k: Any) -> tuple[Any, list[np.ndarray]]:
    x = k.Input((None,), dtype="int32")
    h = k.layers.Embedding(50, 8)(x)
    h = k.layers.Bidirectional(k.layers.LSTM(6, return_sequences=True))(h)
    h = k.layers.Bidirectional(k.layers.LSTM(6))(h)
    tokens = np.random.default_rng(0).integers(0, 50, (2, 12)).astype(np.int32)
    return k.Model(x, k.layers.Dense(1, activation="sigmoid")(h)), [tokens]


def addition(k: Any) -> tuple[Any, list[np.ndarray]]:
    layers = [k.Input((7, 12)), k.layers.LSTM(8), k.layers.RepeatVector(4), k.layers.LSTM(8, return_sequences=True)]
    x = np.eye(12)[np.random.default_rng(0).integers(0, 12, (2, 7))].astype(np.float32)
    return k.Sequential([*layers, k.layers.Dense(12, activation="softmax")]), [x]


def forecaster(k: Any) -> tuple[Any, list[np.ndarray]]:
    x = np.random.default_rng(0).normal(size=(2, 12, 7)).astype(np.float32)
    return k.Sequential([k.Input((12, 7)), k.layers.LSTM(8), k.layers.Dense(1)]), [x]


def speech(k: Any) -> tuple[Any, list[np.ndarray]]:
    x = k.Input((10, 9), name="spectrogram")
    h = k.layers.Reshape((10, 9, 1))(x)
    for _ in range(2):
        h = k.layers.Conv2D(3, 3, strides=(1, 2), padding="same", use_bias=False)(h)
        h = k.layers.ReLU()(k.layers.BatchNormalization()(h))
    h = k.layers.Reshape((10, h.shape[-2] * h.shape[-1]))(h)
    for place in range(3):
        h = k.layers.Bidirectional(k.layers.GRU(4, return_sequences=True, reset_after=True))(h)
        h = k.layers.Dropout(0.5)(h) if place < 2 else h
    data = np.random.default_rng(0).normal(size=(2, 10, 9)).astype(np.float32)
    return k.Model(x, k.layers.Dense(6, activation="softmax")(k.layers.Dense(8, activation="relu")(h))), [data]


def captioner(k: Any) -> tuple[Any, list[np.ndarray]]:
    picture, words = k.Input((9,), name="picture"), k.Input((6,), dtype="int32", name="words")
    seen = k.layers.Dense(8, activation="relu")(k.layers.Dropout(0.5)(picture))
    said = k.layers.LSTM(8)(k.layers.Embedding(20, 5, mask_zero=True)(words))
    h = k.layers.Dense(8, activation="relu")(k.layers.Add()([seen, said]))
    random = np.random.default_rng(0)
    data = [random.normal(size=(2, 9)).astype(np.float32), random.integers(0, 20, (2, 6)).astype(np.int32)]
    data[1][:, 4:] = 0
    return k.Model([picture, words], k.layers.Dense(20, activation="softmax")(h)), data


def translator(k: Any) -> tuple[Any, list[np.ndarray]]:
    source, target = k.Input((None, 5), name="source"), k.Input((None, 6), name="target")
    _, h, c = k.layers.LSTM(8, return_state=True)(source)
    decoded, _, _ = k.layers.LSTM(8, return_sequences=True, return_state=True)(target, initial_state=[h, c])
    random = np.random.default_rng(0)
    data = [random.normal(size=(2, 7, size)).astype(np.float32) for size in (5, 6)]
    return k.Model([source, target], k.layers.Dense(6, activation="softmax")(decoded)), data


@pytest.mark.parametrize("example", [bidirectional_classifier, addition, forecaster, speech, captioner, translator])
@pytest.mark.parametrize("k", [keras3, lambda: keras], ids=["Keras 3", "Keras 2"])
def test_the_public_examples_of_keras_rewrite(example: Any, k: Any, tmp_path: Path) -> None:
    model, inputs = example(k())
    loaded = opened(model, tmp_path)
    wanted = original(loaded, inputs)
    content = convert(loaded, Form(steps=2, stacked=True), fixed(loaded, 2, inputs[0].shape[1]))
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    got = answers(path, {port.name: array for port, array in zip(loaded.inputs, inputs, strict=True)})
    assert difference([got[name] for name in loaded.outputs], wanted) <= TOLERANCE
    path.write_bytes(quantize(content, "8"))
    assert realised_bits(path.read_bytes())["recurrent"] == 8


@pytest.mark.parametrize("older", [True, False])
def test_each_step_of_time_distributed_has_its_own_mask(older: bool, tmp_path: Path) -> None:
    """A mean over the words that count, and over no padding."""
    k = keras if older else keras3()
    x = k.Input((3, 4), dtype="int32")
    words = k.layers.Embedding(9, 5, mask_zero=True)(x)
    sentences = k.layers.TimeDistributed(k.layers.GlobalAveragePooling1D())(words)
    loaded = opened(k.Model(x, k.layers.LSTM(4)(sentences)), tmp_path)
    tokens = np.random.default_rng(0).integers(1, 9, (2, 3, 4)).astype(np.int32)
    tokens[:, :, 2:] = 0
    wanted = original(loaded, [tokens])
    assert difference(rewritten(loaded, Form("loop"), [tokens]), wanted) <= TOLERANCE
    assert difference(original(loaded, [np.where(tokens, tokens, 1)]), wanted) > TOLERANCE  # padding would be seen
