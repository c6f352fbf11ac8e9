"""Data that need no file: scikit-learn's digits, problems that are generated, and the standard library's own source."""

from __future__ import annotations

import functools
import io
import keyword
import sysconfig
import tokenize
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.bench import TaskSpec
from spaces.errors import DataError

Arrays = dict[str, Any]


def digits_rows(task: TaskSpec, rng: np.random.Generator) -> Arrays:
    """scikit-learn's 1797 handwritten digits, top to bottom: [1797, 8, 8], values 0 to 16, labels 0 to 9.

    Its file is read, for to import scikit-learn takes a second, in each worker.
    """
    package = find_spec("sklearn")
    assert package, "a dependency of brisk"
    kept = np.loadtxt(Path(str(package.origin)).parent / "datasets/data/digits.csv.gz", delimiter=",")
    return {"x": kept[:, :-1].reshape(-1, 8, 8).astype(np.float32), "y": kept[:, -1].astype(np.int64)}


def digits_pixels(task: TaskSpec, rng: np.random.Generator) -> Arrays:
    """The same digits a pixel at a time: [1797, 64, 1]."""
    rows = digits_rows(task, rng)
    return {"x": rows["x"].reshape(-1, 64, 1), "y": rows["y"]}


def adding(task: TaskSpec, rng: np.random.Generator) -> Arrays:
    """The adding problem: the sum of the two marked numbers, one in each half (Hochreiter and Schmidhuber, 1997).

    x [samples, time_steps, 2]: numbers from 0 to 1, and a mark that is 1 at two steps; y [samples].
    """
    steps, samples = task.time_steps or 64, task.samples or 3000
    if steps < 2:
        raise DataError(f"task.time_steps: got {steps}; the adding problem marks two steps, so give 2 or more")
    numbers, marks = rng.random((samples, steps)), np.zeros((samples, steps))
    first, second = rng.integers(0, steps // 2, samples), rng.integers(steps // 2, steps, samples)
    rows = np.arange(samples)
    marks[rows, first] = marks[rows, second] = 1.0
    return {"x": np.stack([numbers, marks], axis=-1), "y": numbers[rows, first] + numbers[rows, second]}


def parity(task: TaskSpec, rng: np.random.Generator) -> Arrays:
    """Whether the ones so far are odd in number: at every step for tagging, else at the last.

    x [samples, time_steps] of tokens: 1 for a zero, 2 for a one; y 0 or 1.
    """
    ones = rng.integers(0, 2, (task.samples or 2000, task.time_steps or 24))
    odd = ones.cumsum(axis=1) % 2
    return {"x": ones + 1, "y": odd if task.kind == "tagging" else odd[:, -1]}


def addition(task: TaskSpec, rng: np.random.Generator) -> Arrays:
    """Sums read and answered character by character, after the addition example of Keras (Zaremba and Sutskever 2014).

    x [samples, 3 n + 2]: the question "12+7", filled up with blanks and turned round, so that it ends with its first
    digit, and then n + 1 blanks; y: blanks beside the question, then the sum. n, the digits of a number, follows from
    `time_steps`. Every question is there once, and so is never asked in two parts.
    """
    steps = task.time_steps or 8
    if steps < 5 or (steps - 2) % 3:
        raise DataError(f"task.time_steps: got {steps}; numbers of n digits take 3 n + 2 steps, so 5, 8, 11 or 14")
    digits, samples = (steps - 2) // 3, task.samples or 5000
    most = 10**digits
    if samples > most * most:
        raise DataError(f"task.samples: got {samples}; there are only {most * most} sums of {digits} digits")
    x, y = np.zeros((samples, steps), np.int32), np.full((samples, steps), " ", dtype="<U1")
    letters = {letter: token for token, letter in enumerate(" +0123456789", start=1)}
    for row, question in enumerate(rng.choice(most * most, samples, replace=False)):
        left, right = divmod(int(question), most)
        asked = f"{left}+{right}".ljust(2 * digits + 1)[::-1] + " " * (digits + 1)
        x[row] = [letters[letter] for letter in asked]
        y[row, -digits - 1 :] = list(str(left + right).ljust(digits + 1))
    return {"x": x, "y": y}


def characters(task: TaskSpec, rng: np.random.Generator) -> Arrays:
    """The standard library's own source, each character labelled with the kind of token it is part of.

    x [samples, time_steps] of tokens 1 to 97 (printable ASCII, line ends, all else); y "blank", "comment", "keyword",
    "name", "number", "operator" or "text". Stretches of files, a file in one part only: whether a character is inside a
    string is told by what came long before it.
    """
    steps, samples = task.time_steps or 100, task.samples or 3000
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    files = [path for path in modules if path.stat().st_size > 4 * steps]
    order = rng.permutation(len(files))
    wanted = dict(zip(("train", "validation", "test"), _whole(samples, task.splits), strict=True))
    ends = dict(zip(wanted, np.cumsum(_whole(len(files), task.splits)), strict=True))
    found, start = {}, 0
    for part, count in wanted.items():
        rows = [_stretch(files[at], steps, rng) for at in np.resize(order[start : ends[part]], count)]
        found[f"x_{part}"], found[f"y_{part}"] = (np.stack(each) for each in zip(*rows, strict=True))
        start = int(ends[part])
    return found


def _whole(total: int, shares: tuple[float, ...]) -> list[int]:
    """Whole numbers in these shares, one at least each, that make up the total."""
    counts = [max(1, round(total * share / sum(shares))) for share in shares]
    return [total - sum(counts[1:]), *counts[1:]]


def _stretch(path: Path, steps: int, rng: np.random.Generator) -> tuple[NDArray[np.int32], NDArray[np.str_]]:
    """Some characters in a row of a source file, as tokens, and what each is."""
    tokens, kinds = _labelled(path)
    at = int(rng.integers(0, len(tokens) - steps + 1))
    return tokens[at : at + steps], kinds[at : at + steps]


@functools.cache
def _labelled(path: Path) -> tuple[NDArray[np.int32], NDArray[np.str_]]:
    """All characters of a source file, as tokens, and what each is."""
    text = path.read_text(encoding="utf-8")
    kinds = np.full(len(text), "blank", dtype="<U8")
    lines = np.cumsum([0, *(len(line) + 1 for line in text.split("\n"))])
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if kind := _kind(token):
            (from_line, first), (to_line, last) = token.start, token.end
            kinds[lines[from_line - 1] + first : lines[to_line - 1] + last] = kind
    codes = np.array([ord(letter) for letter in text])
    tokens = np.where(codes == ord("\n"), 96, np.where((codes >= 32) & (codes < 127), codes - 31, 97))
    return tokens.astype(np.int32), kinds


def _kind(token: tokenize.TokenInfo) -> str:
    if token.type == tokenize.NAME:
        return "keyword" if keyword.iskeyword(token.string) else "name"
    name = tokenize.tok_name[token.type]
    if name.startswith("FSTRING"):  # one token up to Python 3.11, several from 3.12 on
        return "text"
    return {"NUMBER": "number", "OP": "operator", "COMMENT": "comment", "STRING": "text"}.get(name, "")


PRESETS: dict[str, Callable[[TaskSpec, np.random.Generator], Arrays]] = {
    "digits-rows": digits_rows,
    "digits-pixels": digits_pixels,
    "adding": adding,
    "parity": parity,
    "addition": addition,
    "characters": characters,
}
GENERATED = ("adding", "parity", "addition", "characters")
