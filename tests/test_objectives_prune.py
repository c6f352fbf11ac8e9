"""Sparsity: the zeros asked for, in the matrices meant, for every cell and any number of steps."""

import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives.bench import TrainingSpec
from objectives.training.fit import fit
from objectives.training.prune import sparsify
from spaces.backend import keras, tf
from spaces.catalog import CELLS
from spaces.cells.cell import find_cell
from spaces.genotype import Training
from spaces.signature import Signature

L = keras.layers


def zeros_wanted(size, sparsity):
    return size - max(1, int(np.round(np.float32(size) * np.float32(1 - np.float32(sparsity)))))


def assert_exact(model, sparsity):
    """Kernels hold just the zeros asked for, everything else none that it did not start with; how many there are."""
    seen = 0
    for layer in model.layers:
        for weight in layer.weights:
            zeros = int(np.sum(weight.numpy() == 0.0))
            if "kernel" in weight.name and layer.name not in ("embedding", "head"):
                assert zeros == zeros_wanted(weight.numpy().size, sparsity), weight.name
                seen += 1
            elif layer.name in ("embedding", "head") and "bias" not in weight.name:
                assert zeros == 0, weight.name
    assert seen
    return seen


def tokens_dataset():
    rng = np.random.default_rng(0)

    def split(n):
        x = rng.integers(1, 6, (n, 8)).astype(np.int32)
        return types.SimpleNamespace(x=x, y=(x == 1).any(axis=1).astype(np.int64))

    signature = Signature("classification", 8, 0, 2, vocabulary=6)
    return types.SimpleNamespace(signature=signature, train=split(96), validation=split(40), test=split(8))


def tokens_model(layer):
    x = keras.Input((8,), dtype="int32")
    return keras.Model(x, L.Dense(2, name="head")(layer(L.Embedding(6, 4, name="embedding")(x))))


@pytest.mark.parametrize("cell", ["lstm", "gru", "lstmp", "ligru", "indrnn", "mingru", "mamba", "tcn", "attention"])
def test_every_kind_of_cell_is_pruned_exactly_and_best_epoch_has_all_zeros(cell):
    keras.utils.set_random_seed(0)
    model = tokens_model(L.Bidirectional(find_cell(cell).layer(6, name="layer1"), name="both"))
    epochs = []
    spec = TrainingSpec(epochs=8, batch_size=32, patience=1)
    history = fit(model, tokens_dataset(), Training(3e-2, sparsity=0.7), spec, seed=0, emit=epochs.append)
    matrices = assert_exact(model, 0.7)
    assert history["best_epoch"] >= 0.75 * 8
    assert history["realised_sparsity"] == pytest.approx(0.7, abs=0.03)  # small matrices: a weight is a large share
    assert all(share == pytest.approx(0.7, abs=0.04) for share in history["sparsity_by_matrix"].values())  # 4 of 6
    assert len(history["sparsity_by_matrix"]) == matrices >= 2 * (1 + CELLS[cell].recurrent_matrix)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 130), st.floats(0.05, 0.99))
def test_all_zeros_are_there_after_any_number_of_steps(total_steps, sparsity):
    model = keras.Sequential([keras.Input((4, 3)), L.SimpleRNN(7, name="layer1"), L.Dense(2, name="head")])
    zeros = sparsify(model, sparsity, total_steps)
    assert not zeros.settled
    rng = np.random.default_rng(total_steps)
    for _ in range(total_steps):
        for weight in model.trainable_variables:  # an optimiser that moves everything
            weight.assign_add(rng.normal(size=weight.shape).astype(np.float32))
        zeros.after_step()
    assert zeros.settled
    assert_exact(model, sparsity)
    counted = [np.sum(w.numpy() == 0.0) for w in model.get_layer("layer1").weights[:2]]
    assert zeros.realised() == pytest.approx(sum(counted) / (3 * 7 + 7 * 7))


def test_without_sparsity_nothing_is_touched():
    model = keras.Sequential([keras.Input((4, 3)), L.SimpleRNN(7, name="layer1"), L.Dense(2, name="head")])
    before = model.get_weights()
    zeros = sparsify(model, 0.0, 10)
    zeros.after_step()
    assert zeros.settled
    assert zeros.realised() == 0.0
    assert zeros.by_matrix() == {}
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("shape", [(1, 12), (8, 4), (8, 1), (3, 10), (2, 3, 8)])
def test_zeros_come_in_rows_of_any_matrix(shape):
    """By hand: blocks of four weights of one input, the last of a row shorter; those of the largest mean stay."""
    weight = tf.Variable(np.random.default_rng(0).normal(size=shape).astype(np.float32), name="kernel")
    model = types.SimpleNamespace(layers=[], trainable_variables=[weight])
    start = weight.numpy()
    sparsity = sparsify(model, 0.5, 8, block=4)
    for _ in range(8):
        sparsity.after_step()
    rows, left = start.reshape(-1, shape[-1]), weight.numpy().reshape(-1, shape[-1])
    blocks = [(at, slice(begin, begin + 4)) for at in range(len(rows)) for begin in range(0, shape[-1], 4)]
    by_size = sorted(blocks, key=lambda one: -np.abs(rows[one]).mean())
    kept = max(1, int(np.round(len(blocks) * 0.5)))
    expected = np.zeros_like(rows)
    for one in by_size[:kept]:
        expected[one] = rows[one]
    np.testing.assert_array_equal(left, expected)
