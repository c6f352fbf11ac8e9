import numpy as np
import pytest

from objectives.deployment.interpreter import Interpreter, predict, read_graph, write_graph
from spaces.backend import keras, tf

BATCH, TIME, FEATURES = 2, 6, 16


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    """A tf_keras LSTM and its conversion, in which TFLite's fused operation keeps its state between calls."""
    keras.utils.set_random_seed(1)
    x = keras.Input(batch_shape=(BATCH, TIME, FEATURES), name="x")
    model = keras.Model(x, keras.layers.Dense(3)(keras.layers.LSTM(32)(x)))
    path = tmp_path_factory.mktemp("fused") / "model.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    return model, path


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(5, TIME, FEATURES)).astype(np.float32)


def test_the_state_of_a_fused_lstm_does_not_leak_from_call_to_call(fused, x):
    model, path = fused
    expected = np.concatenate([model(x[:2]), model(x[2:4]), model(x[3:5])[1:]])
    np.testing.assert_allclose(predict(path, x), expected, atol=1e-5)
    np.testing.assert_array_equal(predict(path, x), predict(path, x))

    interpreter = Interpreter(model_path=str(path))  # without a reset it does leak, else this test proves nothing
    interpreter.allocate_tensors()
    answers = []
    for _ in range(2):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x[:2])
        interpreter.invoke()
        answers.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    assert np.abs(answers[0] - answers[1]).max() > 1e-3


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_the_last_call_is_filled_up_and_the_filling_thrown_away(fused, x, count):
    answers = predict(fused[1], x[:count])
    assert answers.shape == (count, 3)
    np.testing.assert_allclose(answers, predict(fused[1], x)[:count], atol=1e-6)


def test_inputs_that_do_not_fit_are_refused(fused, x):
    with pytest.raises(ValueError, match=r"takes sequences of shape \[6, 16\], got \[6, 15\]"):
        predict(fused[1], x[:, :, 1:])
    with pytest.raises(ValueError, match="takes float32, got complex64"):
        predict(fused[1], x.astype(np.complex64))
    np.testing.assert_array_equal(predict(fused[1], x.astype(np.float64)), predict(fused[1], x))


def test_a_graph_survives_reading_and_writing(fused, x, tmp_path):
    again = tmp_path / "again.tflite"
    again.write_bytes(write_graph(read_graph(fused[1].read_bytes())))
    np.testing.assert_array_equal(predict(again, x), predict(fused[1], x))
