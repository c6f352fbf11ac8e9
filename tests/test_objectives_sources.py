from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from objectives.bench import TaskSpec
from objectives.data import Dataset, load
from spaces.errors import DataError
from spaces.signature import PADDING

rng = np.random.default_rng(0)
X, Y = rng.normal(size=(30, 5, 2)).astype(np.float32), np.arange(30) % 3


def loaded(folder: Path, data: str, kind: str = "classification", **task: Any) -> Dataset:
    return load(TaskSpec(kind, data, **task), seed=0, root=str(folder))


def long_table(x: np.ndarray, y: np.ndarray) -> pd.DataFrame:
    steps = x.shape[1]
    table = pd.DataFrame({"sequence": np.repeat(np.arange(len(x)), steps), "step": np.tile(np.arange(steps), len(x))})
    for feature in range(x.shape[2]):
        table[f"f{feature}"] = x[..., feature].ravel()
    table["label"] = np.repeat(y, steps) if y.ndim == 1 else y.ravel()
    return table


def test_every_kind_of_file_gives_the_same_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", x=X, y=Y)
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    table = long_table(X, Y)
    table.to_parquet(tmp_path / "all.parquet")
    table.sort_values(["step", "sequence"]).to_csv(tmp_path / "all.csv", index=False)
    (tmp_path / "given_data.py").write_text(
        "import pathlib, numpy\ndef make():\n    return dict(numpy.load(pathlib.Path(__file__).parent / 'all.npz'))\n"
    )
    found = [
        loaded(tmp_path, "all.npz"),
        loaded(tmp_path, "x.npy", targets="y.npy"),
        loaded(tmp_path, "all.parquet"),
        loaded(tmp_path, "all.csv"),
        loaded(tmp_path, "given_data:make"),
        loaded(tmp_path, str(tmp_path / "all.npz")),
    ]
    sys.path.remove(str(tmp_path.resolve()))
    assert len({one.digest for one in found}) == 1


def test_a_table_holds_ragged_tokens_tags_text_and_splits(tmp_path: Path) -> None:
    words = [("train", [3, 1], ["n", "v"]), ("train", [2, 2, 1], ["v", "v", "n"]), ("test", [4], ["n"])]
    words += [("validation", [1, 2], ["n", "v"])]
    rows = [
        {"sequence": f"s{i}", "split": split, "token": token, "label": tag}
        for i, (split, tokens, tags) in enumerate(words)
        for token, tag in zip(tokens, tags, strict=True)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "tags.csv", index=False)
    found = loaded(tmp_path, "tags.csv", "tagging")
    assert found.summary["sequences"] == {"train": 2, "validation": 1, "test": 1}
    assert sorted(map(tuple, found.train.x)) == [(2, 2, 1), (3, 1, 0)]
    np.testing.assert_array_equal(found.test.y, [[0, -1, -1]])
    assert found.signature.labels == ("n", "v")


def test_steps_that_are_times_are_put_in_their_order(tmp_path: Path) -> None:
    table = long_table(X, Y)
    zones = ["+10:00", "+07:00", "+04:00", "+01:00", "-02:00"]  # so that the text falls as time goes on
    times = table.assign(step=[f"2026-01-31T{20 - step}:59:00{zones[step]}" for step in table["step"]])
    times.sort_values(["sequence", "step"]).to_csv(tmp_path / "times.csv", index=False)
    table.to_csv(tmp_path / "steps.csv", index=False)
    assert loaded(tmp_path, "times.csv").digest == loaded(tmp_path, "steps.csv").digest


def test_a_table_may_have_several_targets(tmp_path: Path) -> None:
    table = long_table(X, Y * 1.0).rename(columns={"label": "label_a"})
    table["label_b"] = -table["label_a"]
    table.to_parquet(tmp_path / "two.parquet")
    found = loaded(tmp_path, "two.parquet", "regression")
    assert found.signature.outputs == 2
    np.testing.assert_array_equal(found.train.y[:, 0], -found.train.y[:, 1])


def test_sequences_of_a_table_may_differ_in_length(tmp_path: Path) -> None:
    table = long_table(X, Y)
    table[(table["sequence"] != 4) | (table["step"] < 2)].to_csv(tmp_path / "short.csv", index=False)
    found = loaded(tmp_path, "short.csv")
    assert found.summary["lengths"] == [2, 5.0, 5]
    assert sum((part.x == np.float32(PADDING)).sum() for part in (found.train, found.validation, found.test)) == 6


def test_what_is_nowhere_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"task.data: got 'digits-row', which is no preset.*did you mean 'digits-rows'\?"
    ):
        loaded(tmp_path, "digits-row")
    with pytest.raises(DataError, match=r"none\.npz: no such file; relative paths of \[task\] start from"):
        loaded(tmp_path, "none.npz")
    with pytest.raises(DataError, match="importing no_such_module failed with ModuleNotFoundError"):
        loaded(tmp_path, "no_such_module:make")
    with pytest.raises(DataError, match="module json has no function 'make'"):
        loaded(tmp_path, "json:make")
    with pytest.raises(DataError, match="time_steps: got 1; the adding problem marks two steps"):
        loaded(tmp_path, "adding", "regression", time_steps=1)


def test_a_function_that_fails_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "failing_data.py").write_text(
        "def make():\n    raise RuntimeError('disk on fire')\ndef text():\n    return 'x'\n"
        "def quits():\n    raise SystemExit('no file')\n"
    )
    with pytest.raises(DataError, match=r"RuntimeError: disk on fire \(failing_data.py, line 2\)"):
        loaded(tmp_path, "failing_data:make")
    with pytest.raises(
        DataError, match=r"failing_data:quits failed with SystemExit: no file \(failing_data.py, line 6"
    ):
        loaded(tmp_path, "failing_data:quits")
    with pytest.raises(DataError, match="failing_data:text gave str; it must return a dict of arrays"):
        loaded(tmp_path, "failing_data:text")
    sys.path.remove(str(tmp_path.resolve()))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("a.npz", "a.npy", "a.parquet", "empty.csv"):
        (tmp_path / name).write_text("" if name == "empty.csv" else "not this format")
        with pytest.raises(DataError, match=f"{name}: cannot be read as|{name}: holds Python objects"):
            loaded(tmp_path, name, targets="a.npy" if name == "a.npy" else "")
    with pytest.raises(DataError, match=r"task.targets: not given, and a\.npy holds x only"):
        loaded(tmp_path, "a.npy")


def test_pickles_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", x=np.array([[1], [1, 2]], object), y=Y[:2])
    with pytest.raises(DataError, match="holds Python objects; save padded arrays of numbers, and `lengths`"):
        loaded(tmp_path, "objects.npz")


def without(column: str) -> pd.DataFrame:
    return long_table(X, Y).drop(columns=column)


def having(column: str, place: Any, value: Any) -> pd.DataFrame:
    table = long_table(X, Y).astype({column: object}) if isinstance(value, str) else long_table(X, Y)
    table.loc[place, column] = value
    return table


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (without("sequence"), "has no 'sequence' column; the columns are step, f0, f1, label"),
        (without("label"), "has no 'label' column; the columns are sequence, step, f0, f1"),
        (long_table(X, Y)[["sequence", "step", "label"]], "has no feature column"),
        (having("f1", 7, np.nan), "column 'f1' is empty in 1 rows, first in data row 7"),
        (having("f1", 0, "high"), "column 'f1' holds text, for instance 'high'; give numbers"),
        (having("label", 6, 9), "'label' varies within sequence '1'; give it one value, or make it a tagging task"),
        (having("step", 6, 0), "a step is given twice in sequence '1'"),
        (having("step", 0, "t10"), "column 'step' holds text, for instance 't10'; give numbers, or times such as 2026"),
        (long_table(X, Y)[:0], "has no rows; the columns are sequence, step"),
        (long_table(X, Y).assign(label_b=1), "has 2 label columns, label, label_b; a classification task takes one"),
        (long_table(X, Y).assign(token=1), "has a token column and features beside it"),
        (
            long_table(X, Y).assign(split="dev"),
            r"column 'split' holds \['dev'\]; the parts are train, validation, test",
        ),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, table: pd.DataFrame, words: str) -> None:
    table.to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(DataError, match=f"bad.csv: {words}"):
        loaded(tmp_path, "bad.csv")


def test_addition_asks_each_sum_once_and_answers_behind_the_question(tmp_path: Path) -> None:
    data = loaded(tmp_path, "addition", "tagging", time_steps=8, samples=300)
    names, letters = data.signature.labels, " +0123456789"
    asked = set()
    for part in (data.train, data.validation, data.test):
        for x, y in zip(part.x, part.y, strict=True):
            question = "".join(letters[token - 1] for token in x)
            left, right = question[:5][::-1].split("+")
            asked.add(question)
            assert question[5:] == " " * 3
            assert "".join(names[label] for label in y).strip() == str(int(left) + int(right))
    assert len(asked) == 300
    with pytest.raises(DataError, match=r"task\.time_steps: got 9; numbers of n digits take 3 n \+ 2 steps"):
        loaded(tmp_path, "addition", "tagging", time_steps=9)


def test_characters_are_labelled_by_the_token_they_are_part_of(tmp_path: Path) -> None:
    data = loaded(tmp_path, "characters", "tagging", time_steps=40, samples=60)
    names = data.signature.labels
    assert names == ("blank", "comment", "keyword", "name", "number", "operator", "text")
    for x, y in zip(data.train.x, data.train.y, strict=True):
        for token, label in zip(x, y, strict=True):
            letter, kind = chr(token + 31), names[label]
            assert kind not in ("keyword", "name") or letter.isalnum() or letter == "_" or token == 97
            assert kind != "number" or letter.isalnum() or letter in "._+-"
            assert token != 96 or kind in ("blank", "text")
    again = loaded(tmp_path, "characters", "tagging", time_steps=40, samples=60)
    assert again.digest == data.digest


def test_columns_of_several_kinds_of_numbers_are_numbers(tmp_path: Path) -> None:
    """Whether something is so, beside how much."""
    table = long_table(X, Y)
    first = next(name for name in table.columns if name not in ("sequence", "label", "step", "split"))
    table[first] = table[first] > 0
    table.to_csv(tmp_path / "mixed.csv", index=False)
    assert set(np.unique(loaded(tmp_path, "mixed.csv").train.x[..., 0])) <= {0.0, 1.0}


@pytest.mark.parametrize("index", ["Unnamed: 0", "__index_level_0__"])
def test_the_number_of_a_row_is_no_feature(tmp_path: Path, index: str) -> None:
    """Where rows are sorted by label it would tell the label."""
    table = long_table(X, Y)
    table.insert(0, index, np.arange(len(table)))
    table.to_parquet(tmp_path / "indexed.parquet")
    with pytest.raises(DataError, match=f"the column '{index}' looks like the number of a row"):
        loaded(tmp_path, "indexed.parquet")
