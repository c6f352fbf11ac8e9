"""A causal model, frame by frame, gives what it gives on the whole sequence; one that is not causal is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objectives.deployment.convert import convert_streaming, fixed
from objectives.deployment.interpreter import answers
from spaces.backend import keras, keras3
from spaces.errors import ModelError
from spaces.lowering.form import Form
from spaces.lowering.load import load
from spaces.lowering.streaming import kept_states

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of Keras 3, with NumPy 2
STEPS = 6


def tower(k: Any) -> Any:
    x = k.Input((STEPS, 3), name="x")
    h = k.layers.Conv1D(4, 3, padding="causal", dilation_rate=2, activation="relu")(x)
    h = k.layers.LSTM(4, return_sequences=True)(h)
    h = k.layers.LayerNormalization()(k.layers.Dropout(0.5)(h))
    h = k.layers.RNN([k.layers.GRUCell(3), k.layers.LSTMCell(2)], return_sequences=True)(h)
    return k.Model(x, k.layers.Dense(2, name="y")(h))


def masked(k: Any) -> Any:
    x = k.Input((STEPS, 3), name="x")
    h = k.layers.SimpleRNN(4, return_sequences=True)(k.layers.Masking(0.0)(x))
    return k.Model(x, k.layers.GRU(3, return_sequences=True, name="y", reset_after=False)(h))


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("build", [tower, masked])
@pytest.mark.parametrize("k", [keras3, lambda: keras], ids=["Keras 3", "Keras 2"])
def test_a_stream_gives_the_whole_sequence_step_by_step(k: Any, build: Any, frames: int, tmp_path: Path) -> None:
    model = build(k())
    random = np.random.default_rng(0)
    model.set_weights([random.normal(0, 0.6, np.shape(each)) for each in model.get_weights()])
    model.save(tmp_path / "m.keras")
    loaded = load(tmp_path / "m.keras")
    x = random.normal(size=(3, STEPS, 3)).astype(np.float32)
    x[0, :2] = x[1, 3] = 0.0
    whole = np.asarray(model(x))
    states = kept_states(loaded)
    (port,) = fixed(loaded, 3, frames)
    path = tmp_path / "stream.tflite"
    shorter = type(port)(port.name, (3, frames, 3), port.dtype)
    path.write_bytes(convert_streaming(loaded, Form(steps=frames), [shorter], states))
    state = {each.name: np.zeros((3, *each.shape), np.float32) for each in states}
    for at in range(0, STEPS, frames):
        answer = answers(path, {port.name: x[:, at : at + frames], **state})
        state = {name: answer[name] for name in state}
        (output,) = loaded.outputs
        assert answer[output] == pytest.approx(whole[:, at : at + frames], abs=1e-5)


def after(layer: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def build(k: Any) -> Any:
        x = k.Input((STEPS, 3))
        return k.Model(x, layer(k)(k.layers.GRU(3, return_sequences=True)(x)))

    return build


def twice(k: Any) -> Any:
    x, shared = k.Input((STEPS, 3)), k.layers.GRU(3, return_sequences=True)
    return k.Model(x, k.layers.Add()([shared(x), shared(x)]))


def fed(k: Any) -> Any:
    x = k.Input((STEPS, 3))
    _, h = k.layers.GRU(3, return_state=True)(x)
    return k.Model(x, k.layers.GRU(3)(x, initial_state=h))


def attending(k: Any) -> Any:
    x = k.Input((STEPS, 3))
    h = k.layers.GRU(3, return_sequences=True)(x)
    return k.Model(x, k.layers.Attention()([h, h]))


def filming(k: Any) -> Any:
    x = k.Input((STEPS, 3))
    h = k.layers.ConvLSTM1D(2, 2, return_sequences=True)(k.layers.Reshape((STEPS, 3, 1))(x))
    return k.Model(x, k.layers.GRU(3)(k.layers.TimeDistributed(k.layers.Flatten())(h)))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (after(lambda k: k.layers.Bidirectional(k.layers.GRU(2))), r"\(Bidirectional\) needs steps that have not"),
        (after(lambda k: k.layers.GlobalAveragePooling1D()), r"\(GlobalAveragePooling1D\) needs steps that have not"),
        (after(lambda k: k.layers.Flatten()), r"\(Flatten\) needs steps that have not come yet"),
        (attending, r"\(Attention\) needs steps that have not come yet"),
        (filming, r"\(ConvLSTM1D\) is left as it is"),
        (after(lambda k: k.layers.GRU(2, go_backwards=True)), "works backwards in time"),
        (after(lambda k: k.layers.Conv1D(2, 3)), r"\(Conv1D\) must have padding='causal', stride 1 and one group"),
        (lambda k: k.Sequential([k.Input((STEPS, 3)), k.layers.Dense(2)]), "keeps nothing from one step to the next"),
        (twice, "is used more than once"),
        (fed, "starts from a state that the model computes"),
    ],
)  # fmt: skip
def test_what_is_not_causal_is_refused_by_its_layer(build: Any, said: str, tmp_path: Path) -> None:
    build(keras3()).save(tmp_path / "m.keras")
    loaded = load(tmp_path / "m.keras")
    (port,) = fixed(loaded, 1, STEPS)
    with pytest.raises(ModelError, match=said):
        convert_streaming(loaded, Form(), [type(port)(port.name, (1, 1, 3), port.dtype)], kept_states(loaded))


def test_a_graph_without_layers_cannot_stream(tmp_path: Path) -> None:
    tower(keras3()).export(tmp_path / "folder", verbose=False)
    with pytest.raises(ModelError, match="a SavedModel without layers does not show its states"):
        kept_states(load(tmp_path / "folder"))
