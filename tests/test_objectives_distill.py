"""The training loss against its formula in NumPy, and what a teacher does to a student."""

import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives.bench import TrainingSpec
from objectives.training.distill import loss_of, teacher_logits
from objectives.training.fit import fit
from spaces.backend import keras
from spaces.errors import CandidateError
from spaces.genotype import Training
from spaces.signature import Signature

KINDS = ("classification", "tagging", "regression")
SHAPES = {"classification": (5, 3), "tagging": (4, 6, 3), "regression": (5, 2)}


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def oracle(kind, y, output, teacher, alpha, temperature):
    """The formula, one labelled step at a time."""
    if kind == "regression":
        return (1 - alpha) * np.mean((y - output) ** 2) + alpha * np.mean((teacher - output) ** 2)
    losses = []
    for at in np.argwhere(y >= 0):
        label, said, told = y[tuple(at)], output[tuple(at)], teacher[tuple(at)]
        p = np.exp(log_softmax(told / temperature))
        divergence = np.sum(p * (np.log(p) - log_softmax(said / temperature)))
        losses.append((1 - alpha) * -log_softmax(said)[label] + alpha * temperature**2 * divergence)
    return np.mean(losses)


def labels(kind, rng):
    if kind == "regression":
        return rng.normal(size=SHAPES[kind]).astype(np.float32)
    y = rng.integers(0, 3, SHAPES[kind][:-1]).astype(np.int32)
    if kind == "tagging":
        y[1:, 4:] = -1
    return y


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(KINDS), st.floats(0, 1), st.sampled_from([1.0, 2.0, 4.0, 8.0]), st.integers(0, 2**20))
def test_loss_is_its_formula(kind, alpha, temperature, seed):
    rng = np.random.default_rng(seed)
    output, teacher = (3 * rng.normal(size=SHAPES[kind]).astype(np.float32) for _ in range(2))
    y = labels(kind, rng)
    found = float(loss_of(kind, alpha=alpha, temperature=temperature)(y, output, teacher))
    assert found == pytest.approx(
        oracle(kind, y, output.astype(float), teacher.astype(float), alpha, temperature), rel=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_zero_never_looks_at_the_teacher(kind):
    rng = np.random.default_rng(0)
    output, y = rng.normal(size=SHAPES[kind]).astype(np.float32), labels(kind, rng)
    plain = float(loss_of(kind)(y, output, None))
    assert float(loss_of(kind, alpha=0.0)(y, output, np.full(SHAPES[kind], np.nan))) == plain


def test_what_is_said_at_padded_steps_changes_nothing():
    rng = np.random.default_rng(0)
    y, teacher = labels("tagging", rng), rng.normal(size=SHAPES["tagging"]).astype(np.float32)
    output = rng.normal(size=SHAPES["tagging"]).astype(np.float32)
    other = np.where((y >= 0)[..., None], output, 100.0).astype(np.float32)
    loss = loss_of("tagging", alpha=0.5)
    assert float(loss(y, output, teacher)) == float(loss(y, other, teacher))


def student():
    keras.utils.set_random_seed(3)
    x = keras.Input((5, 2))
    return keras.Model(x, keras.layers.Dense(3, name="head")(keras.layers.Flatten()(x)))


def dataset(rng):
    def split(n):
        return types.SimpleNamespace(x=rng.normal(size=(n, 5, 2)).astype(np.float32), y=rng.integers(0, 3, n))

    return types.SimpleNamespace(
        signature=Signature("classification", 5, 2, 3), train=split(200), validation=split(60), test=split(60)
    )


def test_teacher_logits_keep_the_order_whatever_the_batch():
    x = np.random.default_rng(0).normal(size=(23, 5, 2)).astype(np.float32)
    model = student()
    expected = x.reshape(23, 10) @ model.layers[-1].kernel.numpy() + model.layers[-1].bias.numpy()
    for batch_size in (4, 23, 64):
        np.testing.assert_allclose(teacher_logits(model, x, batch_size), expected, atol=1e-5)


def test_a_student_of_the_teacher_alone_learns_what_the_teacher_says_not_the_labels():
    rng = np.random.default_rng(0)
    data, rule = dataset(rng), rng.normal(size=(10, 3))  # the training labels are noise

    def taught(x):
        return (x.reshape(len(x), 10) @ rule).astype(np.float32)

    data.validation.y = taught(data.validation.x).argmax(-1)
    spec = TrainingSpec(epochs=15, patience=100)
    told = [
        fit(student(), data, Training(0.05, alpha), spec, seed=0, teacher_logits=taught(data.train.x))
        for alpha in (0.0, 1.0)
    ]
    labels_alone, teacher_alone = (history["validation_metric"] for history in told)
    assert teacher_alone > 0.9 > labels_alone + 0.2


@pytest.mark.parametrize("given", [None, np.zeros((7, 3), np.float32)])
def test_a_missing_or_misshapen_teacher_is_refused(given):
    data = dataset(np.random.default_rng(0))
    with pytest.raises(CandidateError, match=r"distillation 0.5 needs teacher outputs \(200, 3\), got"):
        fit(student(), data, Training(distillation=0.5), TrainingSpec(epochs=1), seed=0, teacher_logits=given)
