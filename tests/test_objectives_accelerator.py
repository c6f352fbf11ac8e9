"""What training runs on: several devices give what one gives, XLA what plain TensorFlow gives, and the rest is said."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rehearsed import bench

from objectives.bench import TaskSpec, TrainingSpec
from objectives.judge import prepare
from objectives.training.accelerator import BREAK_EVEN_STEPS, compiled, strategy_of
from objectives.training.fit import fit
from spaces.backend import keras, tf
from spaces.build import build, recurrent
from spaces.cells.recurrent import WRITTEN_OUT
from spaces.errors import SpecError
from spaces.genotype import Architecture, Training
from spaces.record import to_json
from spaces.signature import Signature

L = keras.layers
SUMS = Signature("classification", 7, 2, 2)
TWO_DEVICES = """
import json, types
import numpy as np
from spaces.backend import tf
processor = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
from objectives.bench import TrainingSpec
from objectives.training.accelerator import strategy_of
from objectives.training.fit import fit
from spaces.build import build
from spaces.genotype import Architecture, Training
from spaces.signature import Signature

rng = np.random.default_rng(0)
def tagged(n):  # padded sequences of very different lengths, so that the devices' shares differ in labelled steps
    x = rng.normal(size=(n, 3, 2)).astype(np.float32)
    y = (x[:, :, 0] > 0).astype(np.int64)
    y[::3, 1:], x[::3, 1:] = -1, -1e9
    return types.SimpleNamespace(x=x, y=y)
signature = Signature("tagging", 3, 2, 2, masked=True)
data = types.SimpleNamespace(signature=signature, train=tagged(40), validation=tagged(20))

def trained(strategy, batch_size):
    with strategy.scope():
        model = build(Architecture("mingru", 4), signature, seed=0)
    spec = TrainingSpec(epochs=4, batch_size=batch_size, clipnorm=0.05)
    told = fit(model, data, Training(2e-2, sparsity=0.5), spec, seed=0)
    return told, np.concatenate([array.ravel() for array in model.get_weights()])

one, weights = trained(tf.distribute.get_strategy(), 16)
two, others = trained(strategy_of("cpu"), 15)  # 15 cannot be halved: 16
print(json.dumps({
    "replicas": [one["replicas"], two["replicas"]], "loss": [one["loss"], two["loss"]],
    "sparsity": [one["realised_sparsity"], two["realised_sparsity"]],
    "largest": float(np.abs(weights).max()), "differ": float(np.abs(weights - others).max()),
}))
"""


def test_two_devices_give_what_one_gives() -> None:
    """In a process of its own: TensorFlow's logical devices must be set before anything runs."""
    command = [sys.executable, "-P", "-c", TWO_DEVICES]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    assert told["replicas"] == [1, 2]
    assert told["sparsity"] == [0.5, 0.5]
    assert told["loss"][1] == pytest.approx(told["loss"][0], rel=1e-5)
    assert told["differ"] < 1e-5 < 0.1 < told["largest"]


def batch_of(rows: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(rows, 7, 2)).astype(np.float32)
    return x, (x[:, :, 0].sum(1) > 0).astype(np.int32)


def stepping(model: Any) -> Any:
    """A step of training, with everything it needs kept alive."""
    optimizer, weights = keras.optimizers.Adam(1e-2, clipnorm=1.0), model.trainable_variables
    optimizer.build(weights)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=model(x, training=True))
            value = tf.reduce_mean(each)
        optimizer.apply_gradients(zip(tape.gradient(value, weights), weights, strict=True))
        return value

    step.kept = optimizer
    return step


BATCH = [tf.TensorSpec([16, 7, 2]), tf.TensorSpec([16], tf.int32)]


def test_a_compiled_step_does_what_the_plain_one_does() -> None:
    x, y = batch_of(16)
    architecture = Architecture("mingru", 5, readout="mean")
    plain, fast = (build(architecture, SUMS, seed=0) for _ in range(2))
    one, kept = stepping(plain), stepping(fast)
    two = compiled(kept, BATCH, BREAK_EVEN_STEPS)
    for _ in range(5):
        assert float(two(x, y)) == pytest.approx(float(one(x, y)), rel=1e-5)
    for left, right in zip(plain.get_weights(), fast.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def test_nothing_is_compiled_where_it_would_not_pay_or_not_repeat() -> None:
    scanned = stepping(build(Architecture("mingru", 5), SUMS, seed=0))
    assert compiled(scanned, BATCH, BREAK_EVEN_STEPS - 1) is None
    long = stepping(build(Architecture("simple_rnn", 5), replace(SUMS, time_steps=WRITTEN_OUT + 1), seed=0))
    longer = [tf.TensorSpec([16, WRITTEN_OUT + 1, 2]), BATCH[1]]
    assert compiled(long, longer, BREAK_EVEN_STEPS) is None
    dropping = stepping(build(Architecture("mingru", 5, dropout=0.2), SUMS, seed=0))
    assert compiled(dropping, BATCH, BREAK_EVEN_STEPS) is None


def told_of(function: Any, first: Any = None) -> dict[str, Any]:
    """How training a small model went that has this function inside; planned to be long, and soon over."""
    x = keras.Input((7, 2))
    h = L.Lambda(function)(L.Dense(8, activation="tanh")((first or L.Flatten())(x)))
    part = types.SimpleNamespace(**dict(zip("xy", batch_of(32), strict=True)))
    data: Any = types.SimpleNamespace(signature=SUMS, train=part, validation=part)
    spec = TrainingSpec(epochs=BREAK_EVEN_STEPS, patience=1)
    return fit(keras.Model(x, L.Dense(2, name="head")(h)), data, Training(0.5), spec, seed=0)


def test_steps_that_wait_for_each_other_are_not_compiled_written_out_or_not() -> None:
    assert told_of(lambda t: 2.0 * t, L.GRU(4, unroll=True))["graph"] == "plain"
    for name, waits in (("lstm", True), ("fastgrnn", True), ("mingru", False), ("tcn", False)):
        for more in ({}, {"bidirectional": True}, {"brick": 3}) if name != "tcn" else ({},):
            assert recurrent(build(Architecture(name, 4, **more), SUMS, seed=0)) == waits, (name, more)


def test_fit_compiles_long_trainings_and_goes_on_plainly_where_xla_cannot() -> None:
    assert told_of(lambda t: 2.0 * t)["graph"] == "xla"
    told = told_of(lambda t: 2.0 * t + tf.ensure_shape(tf.numpy_function(np.zeros_like, [t], tf.float32), t.shape))
    assert told["graph"].startswith("plain, for XLA cannot compile it: ")
    assert told["validation_loss"] < 0.6
    assert told["sequences_per_s"] == pytest.approx(32 / told["epoch_s"])


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="of a machine without a GPU")
def test_an_accelerator_that_is_not_there_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    asked = replace(bench(tmp_path), task=TaskSpec(data="digits-rows"))
    for kind, words in (
        ("gpu", 'got "gpu", but TensorFlow sees none'),
        ("tpu", 'got "tpu", but TensorFlow reaches none'),
    ):
        plain = to_json(replace(asked, training=replace(asked.training, accelerator=kind)))
        with pytest.raises(SpecError, match=rf'training\.accelerator: {words}.*; give "auto" or "cpu"'):
            prepare(plain)
    assert strategy_of("auto").num_replicas_in_sync == strategy_of("cpu").num_replicas_in_sync == 1
