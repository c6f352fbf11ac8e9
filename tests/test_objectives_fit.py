"""Training: what is learned, what is kept, when it stops, and that it can be repeated."""

import types

import numpy as np
import pytest

from objectives.bench import TrainingSpec
from objectives.training.distill import outputs_of
from objectives.training.fit import _constants, _optimizer, fit
from spaces.backend import keras, tf
from spaces.cells.cell import find_cell
from spaces.errors import CandidateError
from spaces.genotype import Training
from spaces.signature import Signature

L = keras.layers


def parts(make, sizes=(150, 60, 10)):
    """A dataset without its file; `make(n)` gives x and y."""
    named = zip(("train", "validation", "test"), sizes, strict=True)
    return {name: types.SimpleNamespace(**dict(zip("xy", make(n), strict=True))) for name, n in named}


def sums(seed=0, noise=False):
    """Sequences [7, 2]; the label says whether the first feature's sum is positive, or nothing at all."""
    rng = np.random.default_rng(seed)

    def make(n):
        x = rng.normal(size=(n, 7, 2)).astype(np.float32)
        return x, rng.integers(0, 2, n) if noise else (x[:, :, 0].sum(1) > 0).astype(np.int64)

    return types.SimpleNamespace(signature=Signature("classification", 7, 2, 2), **parts(make))


def recurrent(outputs=2, seed=0, layer=None, dropout=0.0):
    keras.utils.set_random_seed(seed)
    x = keras.Input((7, 2))
    h = L.Dropout(dropout)((layer or L.SimpleRNN(8, name="layer1"))(x))
    return keras.Model(x, L.Dense(outputs, name="head")(h))


def cross_entropy(y, logits):
    logits = logits.astype(float)
    return float(np.mean(np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, y[:, None], -1)[:, 0]))


def test_learns_tells_each_epoch_and_leaves_the_best_epochs_weights():
    data, model, events = sums(), recurrent(), []
    spec = TrainingSpec(epochs=12, batch_size=32)
    history = fit(model, data, Training(2e-2), spec, seed=0, emit=events.append)
    logits = outputs_of(model)(data.validation.x)
    assert history["validation_loss"] == pytest.approx(cross_entropy(data.validation.y, logits), rel=1e-4)
    assert history["validation_metric"] == np.mean(logits.argmax(-1) == data.validation.y) > 0.85
    assert history["validation_loss"] == min(event["validation_loss"] for event in events)
    assert [event["epoch"] for event in events] == list(range(1, history["epochs_run"] + 1))
    best = events[history["best_epoch"] - 1]
    assert best["event"] == "epoch"
    assert best["of"] == 12
    assert best["loss"] == history["loss"]
    assert best["metric"] == history["validation_metric"]
    assert history["metric"] == "accuracy"
    assert history["train_s"] >= history["first_epoch_s"] > history["epoch_s"] > 0
    assert history["realised_sparsity"] == 0.0


def weights_after(seed, batch_size=32):
    model = recurrent(layer=find_cell("mingru").layer(6, name="layer1"), dropout=0.2)
    fit(model, sums(), Training(2e-2), TrainingSpec(epochs=2, batch_size=batch_size), seed=seed)
    return model.get_weights()


def test_the_optimizer_moves_as_kerass_own_adam():
    rng = np.random.default_rng(0)
    spec = TrainingSpec(epochs=2, clipnorm=0.5)
    starts = [rng.normal(size=shape).astype(np.float32) for shape in ((3, 4), (4,), (5, 2))]
    gradients = [[rng.normal(size=start.shape).astype(np.float32) for start in starts[:2]] for _ in range(6)]

    def moved(make):
        variables = [tf.Variable(start) for start in starts]
        optimizer = make(variables)

        @tf.function
        def step(dense):
            rows = tf.IndexedSlices(tf.ones((2, 2)), tf.constant([4, 1]), dense_shape=tf.constant([5, 2]))
            optimizer.apply_gradients(zip([*dense, rows], variables, strict=True))

        for each in gradients:
            step([tf.constant(one) for one in each])
        return [*variables, *optimizer.variables]

    def stock(variables):
        schedule = keras.optimizers.schedules.CosineDecay(0.1, 3 * spec.epochs, alpha=0.01)
        optimizer = keras.optimizers.Adam(schedule, clipnorm=spec.clipnorm)
        optimizer.build(variables)
        return optimizer

    mine = moved(lambda variables: _optimizer(variables, tf.Variable(0.1), spec, steps=3))
    for one, other in zip(mine, moved(stock), strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=1e-6)
    assert np.abs(mine[0].numpy() - starts[0]).max() > 0.05


def test_the_same_seed_gives_the_same_weights_dropout_included():
    first, again, other = (weights_after(seed) for seed in (5, 5, 6))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert any(np.any(one != two) for one, two in zip(first, other, strict=True))


def test_embeddings_and_dropout_train_reproducibly_on_masked_tokens():
    rng = np.random.default_rng(0)

    def make(n):
        x = rng.integers(1, 5, (n, 9)).astype(np.int32)
        x[: n // 2, 5:] = 0
        return x, (x == 1).any(1).astype(np.int64)

    data = types.SimpleNamespace(
        signature=Signature("classification", 9, 0, 2, vocabulary=5, masked=True), **parts(make, (70, 30, 4))
    )

    def trained():
        keras.utils.set_random_seed(1)
        x = keras.Input((9,), dtype="int32")
        h = L.SimpleRNN(6, name="layer1")(L.Embedding(5, 4, mask_zero=True, name="embedding")(x))
        h = L.Dropout(0.3)(h)
        model = keras.Model(x, L.Dense(2, name="head")(h))
        fit(model, data, Training(1e-2), TrainingSpec(epochs=2), seed=0)
        return model.get_weights()

    for one, two in zip(trained(), trained(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_batch_larger_than_the_data_is_the_data():
    for one, two in zip(weights_after(0, batch_size=150), weights_after(0, batch_size=10_000), strict=True):
        np.testing.assert_array_equal(one, two)


def test_every_sequence_is_seen_in_every_epoch():
    """Each row has a feature of its own, whose weights move if the row is seen; the last batch is a partial one."""

    def make(n):
        x = np.zeros((n, 1, n if n > 20 else 33), np.float32)
        np.fill_diagonal(x[:, 0, :], 1.0)
        return x[:, :, :33], np.arange(n) % 2

    data = types.SimpleNamespace(signature=Signature("classification", 1, 33, 2), **parts(make, (33, 10, 4)))
    x = keras.Input((1, 33))
    model = keras.Model(x, L.Dense(2, name="head", kernel_initializer="zeros")(L.Flatten()(x)))
    fit(model, data, Training(1e-2), TrainingSpec(epochs=1, batch_size=8), seed=0)
    assert np.all(model.get_layer("head").kernel.numpy() != 0.0)


def test_patience_does_not_count_at_chance_but_counts_once_something_was_learned():
    spec = TrainingSpec(epochs=14, patience=2)
    flat = fit(recurrent(), sums(noise=True), Training(1e-2), spec, seed=0)
    assert flat["epochs_run"] == 14
    x = keras.Input((7, 2))
    wide = keras.Model(x, L.Dense(2, name="head")(L.Dense(64, activation="relu")(L.Flatten()(x))))
    learned = fit(wide, sums(), Training(3e-2), TrainingSpec(epochs=60, patience=2), seed=0)
    assert learned["epochs_run"] == learned["best_epoch"] + 2 < 60


def test_a_loss_that_is_no_number_is_refused_in_words():
    data = sums()
    data.train.x[3, 2, 1] = np.nan
    with pytest.raises(CandidateError, match=r"the loss became nan at epoch 1; lower learning_rate \(it is 0.01\)"):
        fit(recurrent(), data, Training(1e-2), TrainingSpec(epochs=3), seed=0)


def test_regression_learns_normalised_values_and_is_scored_in_raw_units():
    rng = np.random.default_rng(0)

    def make(n):
        x = rng.normal(size=(n, 7, 2)).astype(np.float32)
        return x, (1000.0 + 50.0 * x[:, :, 0].sum(1, keepdims=True)).astype(np.float32)

    signature = Signature("regression", 7, 2, 1, target_mean=(1000.0,), target_std=(132.0,))
    data, model = types.SimpleNamespace(signature=signature, **parts(make)), recurrent(outputs=1)
    history = fit(model, data, Training(2e-2), TrainingSpec(epochs=20), seed=0)
    raw = outputs_of(model)(data.validation.x) * 132.0 + 1000.0
    assert history["validation_metric"] == pytest.approx(np.sqrt(np.mean((raw - data.validation.y) ** 2)), rel=1e-3)
    assert history["validation_metric"] < 66.0  # half of what a constant leaves
    assert history["metric"] == "rmse"


def test_tagging_learns_from_labelled_steps_alone():
    rng = np.random.default_rng(0)

    def make(n):
        x = rng.normal(size=(n, 7, 2)).astype(np.float32)
        y = (x[:, :, 0] > 0).astype(np.int64)
        y[: n // 2, 4:] = -1
        x[: n // 2, 4:] = 1e4  # would ruin everything if it counted
        return x, y

    data = types.SimpleNamespace(signature=Signature("tagging", 7, 2, 2, masked=True), **parts(make))
    keras.utils.set_random_seed(0)
    x = keras.Input((7, 2))
    model = keras.Model(x, L.Dense(2, name="head")(x * tf.cast(tf.abs(x) < 1e3, tf.float32)))
    history = fit(model, data, Training(5e-2), TrainingSpec(epochs=15), seed=0)
    assert history["validation_metric"] > 0.9


def test_trainings_on_the_same_sequences_share_them() -> None:
    """A kept model keeps its columns: of large data there must not be a copy for each."""
    x, y = np.random.default_rng(0).normal(size=(20, 4, 2)).astype(np.float32), np.arange(20, dtype=np.int32)
    first = _constants((x, y))
    assert all(one is other for one, other in zip(_constants((x, y.copy())), first, strict=True))
    taught = np.concatenate([x, x])
    _constants((taught, np.concatenate([y, y]), np.ones((40, 3), np.float32)))
    assert all(one is other for one, other in zip(_constants((x, y.copy())), first, strict=True))
    assert _constants((x, y + 1))[1] is not first[1]
