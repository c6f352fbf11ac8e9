"""The training loss against its formula in NumPy, and what a teacher does to a student."""

import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives.bench import TrainingSpec
from objectives.training.distill import Lesson, hidden_states, hinted, loss_of, mean_of, normalised, teacher_logits
from objectives.training.fit import fit
from objectives.unlabelled import UNKNOWN
from spaces.backend import keras, tf
from spaces.build import build, weights_of
from spaces.errors import CandidateError
from spaces.genotype import Architecture, Training
from spaces.signature import Signature

KINDS = ("classification", "tagging", "regression")
SHAPES = {"classification": (5, 3), "tagging": (4, 6, 3), "regression": (5, 2)}


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def oracle(kind, y, output, teacher, alpha, temperature):
    """The formula, one step that counts at a time; one without a label (-2, NaN) has the teacher's share alone."""
    if kind == "regression":
        labelled = ~np.isnan(y)
        hard = np.sum((y[labelled] - output[labelled]) ** 2) / y.size
        return (1 - alpha) * hard + alpha * np.mean((teacher - output) ** 2)
    losses = []
    for at in np.argwhere(y != -1):
        label, said, told = y[tuple(at)], output[tuple(at)], teacher[tuple(at)]
        p = np.exp(log_softmax(told / temperature))
        divergence = np.sum(p * (np.log(p) - log_softmax(said / temperature)))
        hard = -log_softmax(said)[label] if label >= 0 else 0.0
        losses.append((1 - alpha) * hard + alpha * temperature**2 * divergence)
    return np.mean(losses)


def labels(kind, rng):
    if kind == "regression":
        return rng.normal(size=SHAPES[kind]).astype(np.float32)
    y = rng.integers(0, 3, SHAPES[kind][:-1]).astype(np.int32)
    if kind == "tagging":
        y[1:, 4:] = -1
    return y


def some_without_label(kind, y):
    """The same, the last two sequences unlabelled."""
    y = y.copy()
    y[-2:] = np.nan if kind == "regression" else np.where(y[-2:] == -1, -1, UNKNOWN)
    return y


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.floats(0.01, 1),
    st.sampled_from([1.0, 2.0, 4.0, 8.0]),
    st.booleans(),
    st.integers(0, 2**20),
)
def test_loss_is_its_formula(kind, alpha, temperature, unlabelled, seed):
    rng = np.random.default_rng(seed)
    output, teacher = (3 * rng.normal(size=SHAPES[kind]).astype(np.float32) for _ in range(2))
    y = labels(kind, rng)
    y = some_without_label(kind, y) if unlabelled else y
    found = float(loss_of(kind, alpha=alpha, temperature=temperature)(y, output, teacher))
    assert found == pytest.approx(
        oracle(kind, y, output.astype(float), teacher.astype(float), alpha, temperature), rel=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_hint_adds_its_weight_times_the_mean_squared_error_of_the_steps_that_count(kind):
    rng = np.random.default_rng(1)
    output, teacher = (rng.normal(size=SHAPES[kind]).astype(np.float32) for _ in range(2))
    hidden, projected = (rng.normal(size=(*SHAPES[kind][:-1], 7)).astype(np.float32) for _ in range(2))
    y = some_without_label(kind, labels(kind, rng))
    without = float(loss_of(kind, alpha=0.4)(y, output, teacher))
    found = float(loss_of(kind, alpha=0.4, hints=0.3)(y, (output, projected), teacher, hidden.astype(np.float16)))
    counted = y != -1 if kind == "tagging" else slice(None)
    assert found == pytest.approx(without + 0.3 * np.mean((projected - hidden)[counted] ** 2), rel=1e-3)


def test_an_ensemble_of_two_says_the_mean_of_their_probabilities():
    one, two = (4 * np.random.default_rng(seed).normal(size=(5, 6, 3)).astype(np.float32) for seed in (0, 1))
    mean = (np.exp(log_softmax(one)) + np.exp(log_softmax(two))) / 2
    np.testing.assert_allclose(np.exp(mean_of("tagging", [one, two])), mean, rtol=1e-5)
    np.testing.assert_allclose(mean_of("regression", [one, two]), (one + two) / 2, rtol=1e-6)
    assert mean_of("classification", [one]) is one


def test_states_are_normalised_unit_by_unit_and_a_dead_unit_stays_at_zero():
    states = np.random.default_rng(0).normal(50.0, 3.0, (40, 6, 4)).astype(np.float32)
    states[..., 2] = 1.0
    found = normalised(states).astype(float)
    np.testing.assert_allclose(found.mean((0, 1)), 0.0, atol=1e-3)
    np.testing.assert_allclose(found.std((0, 1)), [1, 1, 0, 1], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hint_moves_projection_and_cells_and_is_no_part_of_the_model(kind):
    data = Signature(kind, 5, 2, 3)
    model = build(Architecture("gru", 4, readout="last" if kind == "tagging" else "mean"), data, seed=0)
    before = weights_of(model)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 5, 2)).astype(np.float32)
    hidden = rng.normal(size=(8, 5, 6) if kind == "tagging" else (8, 6)).astype(np.float16)
    lesson = Lesson(np.zeros((8, 5, 3) if kind == "tagging" else (8, 3), np.float32), hidden)
    pupil = hinted(model, Training(distillation=0.5, hints=1.0), lesson)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((pupil(x)[1] - tf.cast(hidden, tf.float32)) ** 2)
    moved = {
        variable.name: gradient
        for variable, gradient in zip(
            pupil.trainable_variables, tape.gradient(loss, pupil.trainable_variables), strict=True
        )
        if gradient is not None
    }
    assert any(name.startswith("hint/") for name in moved)
    assert any(name.startswith("layer1/") for name in moved)
    assert not any(name.startswith("head/") for name in moved)
    assert weights_of(model).keys() == before.keys()
    assert sum(array.size for arrays in weights_of(model).values() for array in arrays) == model.count_params()
    np.testing.assert_allclose(pupil(x)[0], model(x), atol=1e-6)
    np.testing.assert_allclose(hidden_states(model, x) @ model.get_layer("head").kernel, model(x), atol=1e-5)
    assert hinted(model, Training(distillation=0.5), lesson) is hinted(model, Training(hints=1.0), lesson) is model


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_zero_never_looks_at_the_teacher(kind):
    rng = np.random.default_rng(0)
    output, y = rng.normal(size=SHAPES[kind]).astype(np.float32), labels(kind, rng)
    plain = float(loss_of(kind)(y, output))
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
        fit(student(), data, Training(0.05, alpha), spec, seed=0, lesson=Lesson(taught(data.train.x)))
        for alpha in (0.0, 1.0)
    ]
    labels_alone, teacher_alone = (history["validation_metric"] for history in told)
    assert teacher_alone > 0.9 > labels_alone + 0.2


def test_a_teacher_on_unlabelled_sequences_teaches_what_few_labels_cannot():
    rng = np.random.default_rng(0)
    data, rule = dataset(rng), rng.normal(size=(10, 3))
    for part in (data.train, data.validation):
        part.y = (part.x.reshape(len(part.x), 10) @ rule).argmax(-1)
    data.train = types.SimpleNamespace(x=data.train.x[:8], y=data.train.y[:8])
    more = types.SimpleNamespace(x=rng.normal(size=(400, 5, 2)).astype(np.float32), y=np.full(400, UNKNOWN))
    spec, told = TrainingSpec(epochs=15, patience=100), []
    for unlabelled in (None, more):
        x = data.train.x if unlabelled is None else np.concatenate([data.train.x, more.x])
        lesson = Lesson((x.reshape(len(x), 10) @ rule).astype(np.float32), None, unlabelled)
        told.append(fit(student(), data, Training(0.03, 0.9), spec, seed=0, lesson=lesson)["validation_metric"])
    assert told[1] > 0.9 > told[0] + 0.1


@pytest.mark.parametrize("given", [None, Lesson(np.zeros((7, 3), np.float32))])
def test_a_missing_or_misshapen_teacher_is_refused(given):
    data = dataset(np.random.default_rng(0))
    with pytest.raises(CandidateError, match=r"distillation 0.5 needs teacher outputs \(200, 3\), got"):
        fit(student(), data, Training(distillation=0.5), TrainingSpec(epochs=1), seed=0, lesson=given)


def test_hints_without_states_are_refused():
    lesson = Lesson(np.zeros((200, 3), np.float32), np.zeros((7, 4), np.float16))
    with pytest.raises(CandidateError, match=r"hints 0.1 need the teacher's states \(200, width\), got \(7, 4\)"):
        fit(
            student(),
            dataset(np.random.default_rng(0)),
            Training(distillation=0.5, hints=0.1),
            TrainingSpec(epochs=1),
            seed=0,
            lesson=lesson,
        )
