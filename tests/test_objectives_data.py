from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rehearsed import bench
from sklearn.datasets import load_digits

from objectives import data
from objectives.bench import TaskSpec
from objectives.data import Dataset, load
from objectives.presets import digits_rows
from spaces.errors import DataError
from spaces.signature import PADDING

PARTS = ("train", "validation", "test")
Loader = Callable[..., Dataset]
rng = np.random.default_rng(0)


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loader]:
    """Loads a dict of arrays as a user's function gives them."""
    (tmp_path / "own_data.py").write_text("arrays = None\ndef make():\n    return arrays\n")
    monkeypatch.setattr(sys, "path", list(sys.path))

    def load_arrays(arrays: Any, kind: str = "classification", seed: int = 0, **task: Any) -> Dataset:
        load_module(tmp_path).arrays = arrays  # type: ignore[attr-defined]
        return load(TaskSpec(kind, "own_data:make", **task), seed=seed, root=str(tmp_path))

    yield load_arrays
    sys.modules.pop("own_data", None)


def load_module(folder: Path) -> object:
    import importlib

    sys.path.append(str(folder))
    return importlib.import_module("own_data")


def floats(n: int = 30, time_steps: int = 5, features: int = 2) -> np.ndarray:
    return rng.normal(size=(n, time_steps, features))


def classes(n: int = 30, count: int = 3) -> np.ndarray:
    return np.arange(n) % count


# Presets


@pytest.mark.parametrize(
    ("task", "x", "y"),
    [
        (TaskSpec("classification", "digits-rows"), (8, 8), ()),
        (TaskSpec("classification", "digits-pixels"), (64, 1), ()),
        (TaskSpec("regression", "adding", time_steps=20, samples=50), (20, 2), (1,)),
        (TaskSpec("classification", "parity", time_steps=9, samples=50), (9,), ()),
        (TaskSpec("tagging", "parity", time_steps=9, samples=50), (9,), (9,)),
    ],
)
def test_presets_have_their_shapes_and_depend_on_the_seed_alone(task: TaskSpec, x: Any, y: Any) -> None:
    first, again, other = (load(task, seed=seed, root="") for seed in (1, 1, 2))
    for part in PARTS:
        assert getattr(first, part).x.shape[1:] == x
        assert getattr(first, part).y.shape[1:] == y
    assert first.digest == again.digest != other.digest
    np.testing.assert_array_equal(first.train.x, again.train.x)
    assert json.loads(json.dumps(first.summary)) == first.summary


def test_the_digits_are_those_of_scikit_learn() -> None:
    images, labels = load_digits(return_X_y=True)
    found = digits_rows(TaskSpec(), np.random.default_rng(0))
    np.testing.assert_array_equal(found["x"], images.reshape(-1, 8, 8).astype(np.float32))
    np.testing.assert_array_equal(found["y"], labels)
    assert found["x"].dtype == np.float32


def test_rows_and_pixels_are_the_same_digits() -> None:
    rows, pixels = (load(TaskSpec(data=f"digits-{form}"), seed=3, root="") for form in ("rows", "pixels"))
    np.testing.assert_array_equal(rows.test.x.reshape(-1, 64, 1), pixels.test.x)
    assert rows.signature.labels == tuple("0123456789")
    assert sum(rows.summary["sequences"].values()) == sum(rows.summary["classes"].values()) == 1797
    assert rows.summary["sequences"]["test"] == pytest.approx(0.2 * 1797, abs=10)


def test_the_adding_problem_adds_what_is_marked() -> None:
    found = load(TaskSpec("regression", "adding", time_steps=10, samples=40), seed=0, root="").train
    assert (found.x[..., 1].sum(axis=1) == 2).all()
    np.testing.assert_allclose((found.x[..., 0] * found.x[..., 1]).sum(axis=1), found.y[:, 0], rtol=1e-6)


def test_parity_counts_the_ones() -> None:
    tags = load(TaskSpec("tagging", "parity", time_steps=10, samples=40), seed=0, root="")
    np.testing.assert_array_equal(tags.train.y, (tags.train.x == 2).cumsum(axis=1) % 2)
    assert (tags.signature.vocabulary, tags.signature.features, tags.signature.outputs) == (3, 0, 2)
    last = load(TaskSpec("classification", "parity", time_steps=10, samples=40), seed=0, root="")
    np.testing.assert_array_equal(last.train.y, (last.train.x == 2).sum(axis=1) % 2)


# Splits and normalisation


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(3, 40), min_size=2, max_size=6),
    st.sampled_from([(0.6, 0.2, 0.2), (0.8, 0.1, 0.1), (0.34, 0.33, 0.33), (0.1, 0.1, 0.8)]),
    st.integers(0, 1000),
)
def test_splits_share_out_every_class_in_proportion(sizes: list[int], shares: Any, seed: int) -> None:
    from objectives.data import split
    from objectives.sequences import Sequences

    y = np.repeat(np.arange(len(sizes)), sizes)
    x = np.arange(len(y), dtype=np.float32).reshape(-1, 1, 1)
    whole, task = Sequences(x, y, np.ones(len(y), int)), TaskSpec(splits=shares)
    parts = split(whole, PARTS, task, tuple(map(str, range(len(sizes)))), np.random.default_rng(seed))
    rows = np.concatenate([part.x.ravel() for part in parts.values()])
    assert sorted(rows) == list(range(len(y)))  # each sequence once
    for part, share in zip(parts.values(), shares, strict=True):
        assert (y[part.x.ravel().astype(int)] == part.y).all()
        for label, size in enumerate(sizes):
            count = (part.y == label).sum()
            assert count >= 1
            assert abs(count - size * share) <= 2


def test_parts_that_are_given_are_kept(loaded: Loader) -> None:
    arrays = {f"{name}_{part}": array for part in PARTS for name, array in {"x": floats(12), "y": classes(12)}.items()}
    found = loaded(arrays)
    np.testing.assert_array_equal(found.test.x, arrays["x_test"].astype(np.float32))
    np.testing.assert_array_equal(found.validation.y, arrays["y_validation"])
    assert sorted(found.train.x.sum((1, 2))) == sorted(arrays["x_train"].astype(np.float32).sum((1, 2)))


def test_a_missing_validation_part_is_cut_off_train(loaded: Loader) -> None:
    found = loaded({"x_train": floats(40), "y_train": classes(40, 2), "x_test": floats(6), "y_test": classes(6, 2)})
    assert found.summary["sequences"] == {"train": 30, "validation": 10, "test": 6}


def test_normalisation_is_of_train_alone_and_of_its_valid_steps(loaded: Loader) -> None:
    x, lengths = floats(60, 6, 3), rng.integers(1, 7, 60)
    x[..., 2] = 7.0
    found = loaded({"x": x, "y": classes(60), "lengths": lengths})
    valid = found.train.x[(found.train.x != np.float32(PADDING)).all(axis=-1)]
    assert len(valid) < found.train.x.shape[0] * 6
    np.testing.assert_allclose(found.signature.mean, valid.astype(float).mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.signature.std[:2], valid.astype(float).std(axis=0)[:2], rtol=1e-9)
    assert found.signature.std[2] == 1.0


def test_small_units_are_no_constants(loaded: Loader) -> None:
    x = floats(60, 6, 3)
    plain = loaded({"x": x, "y": classes(60)}).signature
    scaled = loaded({"x": x * np.float32(1e-9), "y": classes(60)}).signature
    np.testing.assert_allclose(np.array(scaled.std) * 1e9, plain.std, rtol=1e-5)


def test_regression_targets_are_described_likewise(loaded: Loader) -> None:
    y = rng.normal(5, 3, (40, 2))
    found = loaded({"x": floats(40), "y": y}, "regression")
    assert found.train.y.dtype == np.float32
    np.testing.assert_allclose(found.signature.target_mean, found.train.y.astype(float).mean(axis=0))
    np.testing.assert_allclose(found.signature.target_std, found.train.y.astype(float).std(axis=0))
    assert found.signature.outputs == 2


def test_a_worker_refuses_other_data_than_the_study_was_begun_on(tmp_path: Path) -> None:
    where = bench(tmp_path, task=TaskSpec(data="digits-rows"))
    digest = data.loaded(where).digest
    assert data.loaded(replace(where, data_digest=digest)).digest == digest
    with pytest.raises(DataError, match=f"digits-rows has changed.*digest 0123 then, {digest} now"):
        data.loaded(replace(where, data_digest="0123"))


def test_the_digest_follows_the_content(loaded: Loader) -> None:
    x, y = floats(), classes()
    changed = x.copy()
    changed[3, 2, 1] += 1e-3
    digests = [
        loaded({"x": x, "y": y}).digest,
        loaded({"x": x, "y": y}, seed=1).digest,
        loaded({"x": changed, "y": y}).digest,
        loaded({"x": x, "y": y}, splits=(0.5, 0.25, 0.25)).digest,
        loaded({"x": x, "y": np.array(list("abc"))[y]}).digest,
    ]
    assert len(set(digests)) == 5
    assert loaded({"x": x, "y": y}).digest == digests[0]


# Forms of x and y


def test_lengths_mask_ragged_rows_and_padding_say_the_same(loaded: Loader) -> None:
    x, lengths, y = floats(30, 6, 2), rng.integers(1, 7, 30), classes()
    lengths[0] = 6
    mask = np.arange(6) < lengths[:, None]
    ragged = np.empty(30, object)
    ragged[:] = [row[:end] for row, end in zip(x, lengths, strict=True)]
    forms = [
        {"x": x, "lengths": lengths},
        {"x": x, "mask": mask},
        {"x": ragged},
        {"x": list(ragged)},
        {"x": x.tolist(), "lengths": lengths},
        {"x": np.where(mask[..., None], x, PADDING)},
        {"x": np.where(mask[..., None], x, np.nan), "lengths": lengths},
    ]
    found = [loaded({**form, "y": y}) for form in forms]
    assert len({one.digest for one in found}) == 1
    assert found[0].signature.masked
    assert found[0].summary["lengths"][2] == 6


def test_tokens_end_in_zeros(loaded: Loader) -> None:
    tokens = [rng.integers(1, 9, end).tolist() for end in rng.integers(1, 6, 30)] + [[8] * 5]
    found = loaded({"x": tokens, "y": classes(31)})
    padded = np.array([row + [0] * (5 - len(row)) for row in tokens])
    assert loaded({"x": padded, "y": classes(31)}).digest == found.digest
    assert loaded({"x": padded.tolist(), "y": classes(31)}).digest == found.digest
    assert found.train.x.dtype == np.int32
    assert (found.signature.vocabulary, found.signature.masked, found.signature.mean) == (9, True, ())


def test_a_matrix_of_floats_has_one_feature(loaded: Loader) -> None:
    x = rng.normal(size=(30, 4))
    assert loaded({"x": x, "y": classes()}).digest == loaded({"x": x[..., None], "y": classes()}).digest


def test_whole_numbers_with_features_are_measured_values(loaded: Loader) -> None:
    found = loaded({"x": rng.integers(0, 255, (30, 4, 3)).astype(np.uint8), "y": classes()})
    assert found.train.x.dtype == np.float32
    assert found.signature.vocabulary is None


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (np.array(["no", "yes", "maybe"]), ("maybe", "no", "yes")),
        (np.array(["no", "yes", "maybe"], object), ("maybe", "no", "yes")),
        (np.array([10, -5, 3]), ("-5", "3", "10")),
        (np.array([1.0, 2.0, 4.0]), ("1", "2", "4")),
        (np.array([True, False, True]), ("False", "True")),
    ],
)
def test_labels_of_any_kind_are_numbered_in_order(loaded: Loader, names: np.ndarray, labels: tuple[str, ...]) -> None:
    x = floats()
    x[:, 0, 0] = np.arange(30)
    found = loaded({"x": x, "y": names[classes()]})
    assert found.signature.labels == labels
    for part in (found.train, found.validation, found.test):
        given = names[classes()][part.x[:, 0, 0].astype(int)]
        given = given.astype(int) if given.dtype == float else given
        assert [labels[code] for code in part.y] == [str(label) for label in given]


def test_tags_are_masked_where_the_sequence_has_ended(loaded: Loader) -> None:
    lengths = rng.integers(2, 7, 30)
    x = [rng.normal(size=(end, 2)) for end in lengths]
    y = [np.where(row[:, 0] > 0, "up", "down") for row in x]
    found = loaded({"x": x, "y": y}, "tagging")
    for part in (found.train, found.validation, found.test):
        valid = part.x[..., 0] != np.float32(PADDING)
        np.testing.assert_array_equal(part.y, np.where(valid, part.x[..., 0] > 0, -1))
    padded = np.full((30, lengths.max()), "", object)
    for row, tags in zip(padded, y, strict=True):
        row[: len(tags)] = tags
    assert loaded({"x": x, "y": padded}, "tagging").digest == found.digest


def test_parts_of_unequal_length_are_padded_to_the_longest(loaded: Loader) -> None:
    arrays = {}
    for part, steps in {"train": 4, "validation": 6, "test": 5}.items():
        arrays |= {f"x_{part}": floats(10, steps), f"y_{part}": rng.integers(0, 2, (10, steps))}
    found = loaded(arrays, "tagging")
    assert found.train.x.shape == (10, 6, 2)
    assert (found.train.x[:, 4:] == np.float32(PADDING)).all()
    assert (found.test.y[:, 5] == -1).all()
    assert found.signature.masked


# Errors


def changed(array: np.ndarray, place: Any, value: Any) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


TOKENS = np.ones((30, 5), int)
Y = {"y": classes()}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nan": (
        {"x": changed(floats(), (4, slice(1, 3), 0), np.nan), **Y},
        r"x: 2 values are NaN or infinite in float32, first nan at \[4, 1, 0\]; fill them in",
    ),
    "infinite": (
        {"x": changed(floats(), (0, 0, 1), 1e300), **Y},
        r"first inf at \[0, 0, 1\]",
    ),
    "rank": (
        {"x": np.ones(30), **Y},
        r"x: has shape \[30\]; give \[sequences, time, feat",
    ),
    "text": ({"x": np.full((30, 5), "a"), **Y}, "x: has dtype <U1; give numbers"),
    "objects": ({"x": floats().astype(object), **Y}, "x: holds Python objects"),
    "nothing": ({"x": np.ones((0, 5, 2)), "y": []}, r"x: has shape \[0, 5, 2\], which holds nothing"),
    "no rows": ({"x": [], "y": []}, "x: holds no sequences"),
    "mixed rows": (
        {"x": [np.ones((2, 2)), np.ones((2, 3))], "y": [0, 1]},
        r"differ in form: \[time, 2",
    ),
    "broken row": ({"x": [[[1, 2], [3]], [[1, 2]]], "y": [0, 1]}, "x: a sequence is no array"),
    "empty row": (
        {"x": [[1], [], [2]], "y": [0, 1, 0]},
        "x: 1 sequences have no steps, first at index 1",
    ),
    "no y": ({"x": floats(), "mask": np.ones((30, 5))}, "y: missing; the data hold x, mask"),
    "few y": ({"x": floats(), "y": classes(29)}, r"y: has shape \[29\], but x has 30 sequences"),
    "one-hot": (
        {"x": floats(), "y": np.eye(3)[classes()]},
        r"needs \[30\], one label .* not one-hot",
    ),
    "tagging: flat tags": (
        {"x": floats(), "y": classes()[:, None] * [1, 0]},
        r"needs \[30, 5\], one label for every",
    ),
    "tagging: tags": ({"x": [[1, 2], [3]], "y": [["a", "b"], ["a", "b", "a"]]}, "y: has 3 labels at index 1, where"),
    "one class": ({"x": floats(), "y": np.full(30, 7)}, "y: every label is 7; at least two classes"),
    "rare class": (
        {"x": floats(), "y": changed(np.array(["a", "b"])[classes(30, 2)], 0, "z")},
        "class 'z' has 1 of the 3 sequences it needs, one each for train, validation and test; add some, merge it",
    ),
    "regression: few": (
        {"x": floats(2), "y": [0.5, 1.5]},
        "the data have 2 sequences; train, validation and test need",
    ),
    "nan label": (
        {"x": floats(), "y": changed(classes() * 1.0, 3, np.nan)},
        "y: 1 labels are NaN .* 3",
    ),
    "no label": (
        {"x": floats(), "y": changed(classes().astype(object), 3, None)},
        "missing, first at .* 3",
    ),
    "fraction": ({"x": floats(), "y": classes() + 0.5}, "instance 0.5; is this a regression task?"),
    "mixture": ({"x": floats(), "y": changed(classes().astype(object), 3, "a")}, "but no mixture"),
    "regression: nan target": (
        {"x": floats(), "y": changed(classes() * 1.0, 3, np.nan)},
        r"1 targets .* at \[3, 0\]",
    ),
    "regression: text target": ({"x": floats(), "y": np.full(30, "a")}, "a regression task needs numbers"),
    "regression: constant": ({"x": floats(), "y": np.ones(30)}, "y: output 0 is 1.0 in all of train"),
    "long": (
        {"x": floats(), **Y, "lengths": np.full(30, 6)},
        "30 are out of range, first 6 at i",
    ),
    "zero": (
        {"x": floats(), **Y, "lengths": changed(np.full(30, 5), 2, 0)},
        "first 0 at index 2",
    ),
    "lengths": (
        {"x": floats(), **Y, "lengths": [5, 5]},
        "lengths: is int64 .2.; give 30 whole",
    ),
    "beyond": ({"x": [[1], [1, 2]], "y": [0, 1], "lengths": [2, 2]}, "lengths: exceeds the 1 steps of x at index 0"),
    "mask": ({"x": floats(), **Y, "mask": np.ones((30, 4))}, r"needs \[30, 5\]"),
    "gap": (
        {"x": floats(), **Y, "mask": changed(np.ones((30, 5), bool), (7, 1), False)},
        "mask: has a gap at index 7; it must be true up to the end",
    ),
    "both": ({"x": floats(), **Y, "mask": 1, "lengths": 1}, "lengths: given beside mask"),
    "pre-padded": (
        {"x": changed(changed(TOKENS, (3, 0), 0), (4, 4), 0), **Y},
        r"x: 1 tokens are 0, first at \[3, 0\]; 0 stands for padding and may only follow a sequence's end",
    ),
    "negative": (
        {"x": changed(TOKENS, (3, 1), -2), **Y},
        r"out of range, first -2 at \[3, 1\]",
    ),
    "huge": ({"x": TOKENS * 2**40, **Y}, "150 tokens are out of range"),
    "like padding": (
        {"x": changed(floats(), (1, 1, 1), -2e9), **Y, "lengths": np.full(30, 4)},
        r"x: values below -5e\+08, first at \[1, 1\], stand for padding; rescale",
    ),
    "two parts": (
        {"x_train": floats(), "x_validation": 0},
        "come split into train and validation; give",
    ),
    "forms": (
        {"x_train": floats(), "y_train": classes(), "x_test": floats(30, 5, 3), "y_test": classes()},
        "x_train has 2 features, x_test has 3 features; give all the same",
    ),
    "strange": (
        {"x_train": floats(), "y_train": classes(), "x_test": floats(), "y_test": classes() + 1},
        "class '3' is in test but never in train",
    ),
    "kinds": (
        {"x_train": floats(), "y_train": classes(), "x_test": floats(), "y_test": np.full(30, "a")},
        "numbers in one and text in another",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_trained_on_is_said_in_words(loaded: Loader, case: str) -> None:
    arrays, words = BAD[case]
    kind = case.split(":")[0] if ":" in case else "classification"
    with pytest.raises(DataError, match=words):
        loaded(arrays, kind)


@pytest.mark.parametrize("splits", [(0.8, 0.2, 0.0), (0.5, 0.2, 0.2)])
def test_shares_must_make_three_parts(loaded: Loader, splits: Any) -> None:
    with pytest.raises(DataError, match="give three shares above 0 that sum to 1"):
        loaded({"x": floats(), "y": classes()}, splits=splits)


def test_labels_may_be_shorter_than_sequences_that_were_padded_further(loaded: Loader) -> None:
    lengths = rng.integers(1, 5, 30)
    lengths[0] = 4
    x = floats(30, 6, 2)
    labels = [rng.integers(0, 2, end).tolist() for end in lengths]
    square = np.array([row + [0] * (4 - len(row)) for row in labels])
    found = [loaded({"x": x, "lengths": lengths, "y": y}, kind="tagging") for y in (labels, square)]
    assert found[0].digest == found[1].digest
    assert found[0].train.y.shape[1] == 6


@pytest.mark.parametrize(("name", "meant"), [("x_val", "x_validation"), ("length", "lengths"), ("masks", "mask")])
def test_an_array_that_nothing_reads_is_refused(loaded: Loader, name: str, meant: str) -> None:
    """Or a split, or where sequences end, would be lost unseen."""
    with pytest.raises(DataError, match=rf"an array '{name}', which nothing reads.*; did you mean '{meant}'"):
        loaded({"x": floats(30, 6, 2), "y": classes(), name: floats(30, 6, 2)})
    split = {f"{one}_{part}": made for part in ("train", "test") for one, made in (("x", floats()), ("y", classes()))}
    with pytest.raises(DataError, match=r"an array 'lengths', which nothing reads.*; did you mean 'lengths_t"):
        loaded({**split, "lengths": np.full(30, 5)})
