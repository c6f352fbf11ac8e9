"""Sequences without labels: read like the labelled ones, held against them, and what depends on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rehearsed import BASELINE, bench

from objectives import data as loading
from objectives.bench import TaskSpec
from objectives.data import Dataset, load
from objectives.trained import training_key
from objectives.unlabelled import UNKNOWN
from spaces.errors import DataError
from spaces.genotype import Training
from spaces.signature import PADDING

rng = np.random.default_rng(0)
X, Y = rng.normal(size=(30, 5, 2)).astype(np.float32), np.arange(30) % 3
MORE = rng.normal(size=(7, 5, 2)).astype(np.float32)
TOKENS = rng.integers(1, 6, (30, 5))


def loaded(folder: Path, more: dict[str, Any], kind: str = "classification", **labelled: Any) -> Dataset:
    """The data of two .npz files."""
    np.savez(folder / "labelled.npz", **({"x": X, "y": Y} | labelled))
    np.savez(folder / "more.npz", **more)
    return load(TaskSpec(kind, "labelled.npz", unlabelled="more.npz"), seed=0, root=str(folder))


def test_every_kind_of_file_gives_the_same_and_labels_are_ignored(tmp_path: Path) -> None:
    np.savez(tmp_path / "labelled.npz", x=X, y=Y)
    np.savez(tmp_path / "with_labels.npz", x=MORE, y=["what"] * 7)
    np.save(tmp_path / "more.npy", MORE)
    rows = {"sequence": np.repeat(range(7), 5), "a": MORE[..., 0].ravel(), "b": MORE[..., 1].ravel()}
    pd.DataFrame(rows).to_parquet(tmp_path / "more.parquet")
    pd.DataFrame(rows | {"label": np.nan, "split": "?"}).to_csv(tmp_path / "more.csv", index=False)
    (tmp_path / "unlabelled_here.py").write_text(
        "import pathlib, numpy\ndef x():\n    return {'x': numpy.load(pathlib.Path(__file__).parent / 'more.npy')}\n"
    )
    plain = load(TaskSpec(data="labelled.npz"), seed=0, root=str(tmp_path))
    for name in ("with_labels.npz", "more.npy", "more.parquet", "more.csv", "unlabelled_here:x"):
        found = load(TaskSpec(data="labelled.npz", unlabelled=name), seed=0, root=str(tmp_path))
        assert found.unlabelled
        np.testing.assert_allclose(found.unlabelled.x, MORE, rtol=1e-6)
        assert (found.unlabelled.y == UNKNOWN).all()
        assert (found.signature, found.digest) == (plain.signature, plain.digest)
        assert found.whole != found.digest == plain.whole
        assert found.summary["unlabelled"] == 7
        np.testing.assert_array_equal(found.taught_x, np.concatenate([plain.train.x, found.unlabelled.x]))


def test_targets_that_are_not_there(tmp_path: Path) -> None:
    short = loaded(
        tmp_path, {"x": MORE[:, :4], "lengths": [4, 2, 4, 4, 1, 4, 4]}, "tagging", y=TOKENS, lengths=[5] * 29 + [3]
    )
    assert short.unlabelled
    assert short.unlabelled.y[:2].tolist() == [[UNKNOWN] * 4 + [-1], [UNKNOWN] * 2 + [-1] * 3]
    assert (short.unlabelled.x[1, 2:] == np.float32(PADDING)).all()
    values = loaded(tmp_path, {"x": MORE}, "regression", y=X[:, 0])
    assert values.unlabelled
    assert values.unlabelled.y.shape == (7, 2)
    assert np.isnan(values.unlabelled.y).all()


@pytest.mark.parametrize(
    ("labelled", "more", "words"),
    [
        (
            {},
            {"x": MORE[..., :1]},
            r"task\.unlabelled: more\.npz: x has 1 features, the labelled data 2; give the same",
        ),
        ({}, {"x": TOKENS}, r"x holds tokens \(whole numbers\), the labelled data features \(floats\)"),
        ({}, {"x": np.zeros((3, 6, 2))}, r"its longest sequence has 6 steps, of the labelled ones 5; cut it"),
        ({}, {"x": MORE[:, :3]}, r"its shortest sequence has 3 steps, but the labelled ones have 5 each"),
        ({"x": TOKENS}, {"x": TOKENS + 1}, r"its tokens go up to 6, those of the labelled data to 5; leave out"),
        ({}, {"y": Y}, r"x: missing; the data hold y"),
        ({}, {"x": np.full((3, 5, 2), np.nan)}, r"x: 30 values are NaN or infinite"),
    ],
)
def test_sequences_that_do_not_fit_are_refused_in_words(tmp_path: Path, labelled: Any, more: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        loaded(tmp_path, more, **labelled)


def test_a_file_that_is_not_there_is_told_by_its_key(tmp_path: Path) -> None:
    np.savez(tmp_path / "labelled.npz", x=X, y=Y)
    for name, words in (
        ("m.txt", r"task\.unlabelled: got 'm\.txt', which is no \.npz"),
        ("no:f", r"task\.unlabelled: got"),
    ):
        with pytest.raises(DataError, match=words):
            load(TaskSpec(data="labelled.npz", unlabelled=name), seed=0, root=str(tmp_path))


def test_distilled_weights_depend_on_them_others_do_not_and_the_study_on_both(tmp_path: Path) -> None:
    one, other = (loaded(tmp_path, {"x": MORE + shift}) for shift in (0, 1))
    where = bench(tmp_path, teacher=BASELINE)
    distilled = replace(BASELINE, training=Training(distillation=0.5))

    def keys(genotype: Any, teachers: Any) -> set[str]:
        return {training_key(where, each, genotype, teachers) for each in (one, other)}

    assert len(keys(BASELINE, ())) == 1
    assert len(keys(distilled, (BASELINE,))) == 2
    assert keys(distilled, (BASELINE,)).isdisjoint(
        keys(distilled, (BASELINE, replace(BASELINE, training=Training(1e-3))))
    )
    task = TaskSpec(data="labelled.npz", unlabelled="more.npz")
    begun = replace(where, task=task, root=str(tmp_path), data_digest=one.whole)
    with pytest.raises(DataError, match=r"labelled\.npz or more\.npz has changed since"):
        loading.loaded(begun)
