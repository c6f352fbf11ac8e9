"""Units cut out: the smaller model is the larger one with those units unheard, and the weakest are the ones to go."""

from dataclasses import replace

import numpy as np
import pytest

from spaces.backend import tf
from spaces.build import build, cell_of, put_weights, served, weights_of
from spaces.catalog import CELLS
from spaces.errors import ModelError
from spaces.genotype import Architecture, Deployment, Genotype, Training, kept_units
from spaces.signature import Signature
from spaces.slicing import cut, sliced, strongest

FLOATS = Signature("classification", 5, 3, 4, mean=(1.0, 0.5, 0.0), std=(2.0, 3.0, 1.0))
TOKENS = Signature("classification", 5, 0, 4, vocabulary=9, masked=True)
TAGS = replace(FLOATS, kind="tagging")
REMOVABLE = [name for name, facts in CELLS.items() if facts.removable]
MATRIX = [name for name in REMOVABLE if CELLS[name].recurrent_matrix]
CASES = [
    *((Architecture(cell, 12, layers=2, bidirectional=True), TAGS) for cell in REMOVABLE),
    *((Architecture(cell, 12, readout="mean", frame_stack=2), TOKENS) for cell in REMOVABLE),
    *((Architecture(cell, 12, rank=4), FLOATS) for cell in MATRIX),
    (Architecture("gru", 12, layers=3, residual=True), FLOATS),
    (Architecture("fastgrnn", 12, bidirectional=True, readout="attention"), FLOATS),
    (Architecture("lstm", 12, brick=2, rank=1, layers=2, residual=True), FLOATS),
]


def drawn(architecture, signature, seed=2):
    """Weights of random values, in the shapes that the cell declares."""
    random, units, cell = np.random.default_rng(seed), architecture.units, cell_of(architecture)
    ways = 2 if architecture.bidirectional else 1
    features = architecture.frame_stack * (architecture.embedding if signature.vocabulary else signature.features)
    names = ["bricks"] * (architecture.brick > 0)
    for index in range(1, architecture.layers + 1):
        names += [f"layer{index}", f"layer{index}_backward"][:ways]
    weights = {"embedding": [random.normal(size=(signature.vocabulary, 32))]} if signature.vocabulary else {}
    for name in names:
        first = name == "bricks" or (name.startswith("layer1") and not architecture.brick)
        width = features if first else units * (1 if name == "layer1" else ways)
        declared = cell.declared(width, units, 5)
        values = [random.normal(scale=0.4, size=weight.shape(features=width, units=units)) for weight in declared]
        weights[name] = [
            value if weight.trainable else abs(value) for weight, value in zip(declared, values, strict=True)
        ]
    weights["head"] = [random.normal(size=(units * ways, signature.outputs)), random.normal(size=signature.outputs)]
    if architecture.readout == "attention":
        weights["pooling"] = [random.normal(size=(units * ways, 1))]
    return {name: [array.astype(np.float32) for array in arrays] for name, arrays in weights.items()}


def rows(weights, at, ways, units, dead):
    """Set the rows that hear the dead units of each way to zero, in one array of any number of blocks."""
    name, index = at
    blocks = weights[name][index].reshape(-1, len(ways), units, weights[name][index].shape[-1]).copy()
    for way, layer in enumerate(ways):
        blocks[:, way, dead[layer]] = 0.0
    weights[name][index] = blocks.reshape(weights[name][index].shape)


def silenced(architecture, signature, weights, kept):
    """The weights with nobody hearing the units that are not kept: neither their own layer nor the next."""
    units, left = architecture.units, {name: list(arrays) for name, arrays in weights.items()}
    dead = {name: np.setdiff1d(np.arange(units), stay) for name, stay in kept.items()}
    heard = ("bricks",) if architecture.brick else ()
    for index in range(1 - len(heard), architecture.layers + 1):
        names = [name for name in (f"layer{index}", f"layer{index}_backward") if name in weights] or ["bricks"]
        for name in names:
            features = weights[name][0].shape[0] // (2 if architecture.cell == "qrnn" else 1)
            declared = cell_of(architecture).declared(features, units, None)
            for at, weight in enumerate(declared):
                if len(weight.axes) == 2 and weight.axes[0] == "units":
                    rows(left, (name, at), (name,), units, dead)
                if weight.axes[0].endswith("features") and names != ["bricks"] and (index > 1 or architecture.brick):
                    rows(left, (name, at), heard, units, dead)
        heard = tuple(names)
    for name in ("pooling", "head")[architecture.readout != "attention" :]:
        rows(left, (name, 0), heard, units, dead)
    return left


@pytest.mark.parametrize(("architecture", "signature"), CASES, ids=lambda each: getattr(each, "cell", ""))
def test_the_sliced_model_is_the_masked_one(architecture, signature):
    weights, deployment = drawn(architecture, signature), Deployment(CELLS[architecture.cell].lowerings[0])
    kept = strongest(architecture, signature, weights, 8)
    assert kept.keys() == {name for name in weights if name.startswith(("layer", "bricks"))}
    masked = served(architecture, signature, silenced(architecture, signature, weights, kept), deployment)
    small = cut(architecture, signature, weights, kept)
    less = served(replace(architecture, units=8), signature, small, deployment)
    random = np.random.default_rng(0)
    x = random.integers(0, 9, (6, 5)) if signature.vocabulary else random.normal(1, 2, (6, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(less(tf.constant(x)), masked(tf.constant(x)), atol=1e-6)
    if architecture.residual:
        np.testing.assert_array_equal(kept["layer1"], kept["layer2"])


def test_the_units_with_the_longest_weights_stay():
    architecture = Architecture("simple_rnn", 6)
    weights = weights_of(build(architecture, FLOATS, 1))
    for array in (*weights["layer1"], weights["head"][0]):
        array *= 0.01
    weights["layer1"][0][2, 1] = 5.0  # heard by unit 1 from the input,
    weights["layer1"][1][4, 0] = 3.0  # said by unit 4 to unit 0,
    weights["head"][0][5, 3] = 4.0  # and by unit 5 to the head
    weights["layer1"][2][2] = 2.0  # a bias of unit 2, the least of these
    assert strongest(architecture, FLOATS, weights, 4)["layer1"].tolist() == [0, 1, 4, 5]
    small = sliced(architecture, FLOATS, weights, 4)
    put_weights(build(replace(architecture, units=4), FLOATS, 1), small)
    assert small["layer1"][0][2, 1] == 5.0
    assert small["layer1"][1][2, 0] == 3.0
    assert small["head"][0][3, 3] == 4.0


def test_weights_of_another_architecture_are_refused():
    weights = weights_of(build(Architecture("gru", 8), FLOATS, 1))
    with pytest.raises(ModelError, match=r"layer1: kernel is declared as \(3, 32\), but got \(3, 24\)"):
        strongest(Architecture("lstm", 8), FLOATS, weights, 4)


@pytest.mark.parametrize(
    ("units", "share", "left"), [(64, 0.5, 32), (64, 0.4, 32), (48, 0.5, 32), (32, 0.9, 16), (20, 0.5, 12), (6, 0.9, 4)]
)
def test_what_is_left_is_a_multiple_of_what_kernels_work_on(units, share, left):
    assert kept_units(units, share) == left
    genotype = Genotype(Architecture("gru", units), Training(pruned_units=share), Deployment())
    assert genotype.served == Architecture("gru", left)
    assert replace(genotype, training=Training()).served is genotype.architecture
