"""Sequences as a source gave them, brought to one shape and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces.errors import DataError
from spaces.signature import PADDING

Array = NDArray[Any]
MAX_VOCABULARY = 1_000_000
UNLABELLED = "unlabelled"
"""In place of the task's kind: data whose y, there or not, nobody reads."""


@dataclass(frozen=True)
class Sequences:
    """x: float32 [sequences, time, features] or int32 tokens [sequences, time], padded after `lengths` [sequences].

    y as given, but in rank: [sequences] for classification, float32 [sequences, outputs] for regression,
    [sequences, time] for tagging.
    """

    x: Array
    y: Array
    lengths: Array

    @property
    def tokens(self) -> bool:
        """Whether x holds tokens rather than features."""
        return self.x.ndim == 2

    @property
    def valid(self) -> NDArray[np.bool_]:
        """[sequences, time], False at padded steps."""
        return _before(self.lengths, self.x.shape[1])

    def take(self, rows: Array) -> Sequences:
        """Some of the sequences, in the order of `rows`."""
        return Sequences(self.x[rows], self.y[rows], self.lengths[rows])

    def stretch(self, time_steps: int) -> Sequences:
        """The same, padded to `time_steps` steps; y is left alone."""
        more = [(0, 0), (0, time_steps - self.x.shape[1])] + [(0, 0)] * (self.x.ndim - 2)
        return replace(self, x=np.pad(self.x, more, constant_values=0 if self.tokens else PADDING))


def sequences(arrays: Mapping[str, Any], kind: str, suffix: str = "") -> Sequences:
    """The sequences under the keys `x` and `y` with `suffix`, ended by `lengths`, `mask`, ragged rows or padding.

    Of UNLABELLED data y is NaN [sequences]. Raises DataError, naming the array and the first index, for whatever a
    model could not be trained on.
    """
    for key in ("x",) if kind == UNLABELLED else ("x", "y"):
        if key + suffix not in arrays:
            raise DataError(f"{key}{suffix}: missing; the data hold {', '.join(map(str, arrays)) or 'nothing'}")
    x, ragged = _rectangle(arrays["x" + suffix], f"x{suffix}")
    x = _ranked(x, f"x{suffix}")
    lengths = _lengths(arrays, x, ragged, suffix)
    if (empty := lengths < 1).any():
        raise DataError(
            f"x{suffix}: {empty.sum()} sequences have no steps, first at index {empty.argmax()}; leave them out"
        )
    valid = _before(lengths, x.shape[1])
    (_check_tokens if x.ndim == 2 else _check_floats)(x, valid, f"x{suffix}")
    x = np.where(valid, x, 0) if x.ndim == 2 else np.where(valid[..., None], x, np.float32(PADDING))
    labelled = kind != UNLABELLED
    y = _targets(arrays["y" + suffix], kind, lengths, x.shape[1], f"y{suffix}") if labelled else np.full(len(x), np.nan)
    return Sequences(x.astype(np.int32) if x.ndim == 2 else x, y, lengths)


def _before(lengths: Array, time_steps: int) -> NDArray[np.bool_]:
    before: NDArray[np.bool_] = np.arange(time_steps) < lengths[:, None]
    return before


def _rectangle(values: Any, name: str) -> tuple[Array, Array | None]:
    """A list or object array of rows as one array, zeros after their ends, and lengths; None if all are equal."""
    array = values if isinstance(values, list | tuple) else np.asarray(values)
    if not isinstance(array, list | tuple) and array.dtype != object:
        return array, None
    try:
        rows = [np.asarray(row) for row in array]
    except ValueError as error:
        raise DataError(f"{name}: a sequence is no array of numbers: {error}") from error
    if not rows:
        raise DataError(f"{name}: holds no sequences")
    if not (rows[0].ndim and all(row.ndim == rows[0].ndim and row.shape[1:] == rows[0].shape[1:] for row in rows)):
        found = sorted(
            {f"[{', '.join(['time', *map(str, row.shape[1:])])}]" if row.ndim else "single values" for row in rows}
        )
        raise DataError(
            f"{name}: its sequences differ in form: {', '.join(found)}; give each as [time, features] or [time]"
        )
    lengths = np.array([len(row) for row in rows])
    if (lengths == lengths[0]).all():
        return np.stack(rows), None
    packed = np.zeros((len(rows), lengths.max(), *rows[0].shape[1:]), np.result_type(*{row.dtype for row in rows}))
    for target, row in zip(packed, rows, strict=True):
        target[: len(row)] = row
    return packed, lengths


def _ranked(x: Array, name: str) -> Array:
    if x.dtype == object:
        raise DataError(f"{name}: holds Python objects (dtype object); convert them to numbers")
    if x.dtype.kind not in "biuf":
        raise DataError(f"{name}: has dtype {x.dtype}; give numbers: features as floats, or tokens as integers")
    if x.ndim not in (2, 3):
        raise DataError(
            f"{name}: has shape {list(x.shape)}; give [sequences, time, features], or [sequences, time] for tokens"
        )
    if 0 in x.shape:
        raise DataError(f"{name}: has shape {list(x.shape)}, which holds nothing")
    if x.ndim == 2 and x.dtype.kind in "iu":
        return x
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is told as such
        return (x[..., None] if x.ndim == 2 else x).astype(np.float32)


def _lengths(arrays: Mapping[str, Any], x: Array, ragged: Array | None, suffix: str) -> Array:
    told = [key for key in (f"lengths{suffix}", f"mask{suffix}") if key in arrays]
    if len(told) > 1:
        raise DataError(f"{told[0]}: given beside {told[1]}; give one of them")
    if not told and ragged is not None:
        return ragged
    lengths = _told_lengths(arrays, x, suffix)
    if ragged is not None and (beyond := lengths > ragged).any():
        at = beyond.argmax()
        raise DataError(f"{told[0]}: exceeds the {ragged[at]} steps of x{suffix} at index {at}")
    return lengths


def _told_lengths(arrays: Mapping[str, Any], x: Array, suffix: str) -> Array:
    count, time_steps = x.shape[:2]
    if "lengths" + suffix in arrays:
        lengths = np.asarray(arrays["lengths" + suffix])
        if lengths.shape != (count,) or lengths.dtype.kind not in "iu":
            raise DataError(f"lengths{suffix}: is {lengths.dtype} {list(lengths.shape)}; give {count} whole numbers")
        if (wrong := (lengths < 1) | (lengths > time_steps)).any():
            raise DataError(
                f"lengths{suffix}: {wrong.sum()} are out of range, first {lengths[wrong.argmax()]} at index "
                f"{wrong.argmax()}; x{suffix} has from 1 to {time_steps} steps"
            )
        return lengths.astype(np.int64)
    if "mask" + suffix in arrays:
        mask = np.asarray(arrays["mask" + suffix])
        if mask.shape != (count, time_steps):
            raise DataError(f"mask{suffix}: has shape {list(mask.shape)}; x{suffix} needs {[count, time_steps]}")
        mask = mask.astype(bool)
        lengths = mask.sum(axis=1)
        if (gaps := (mask != _before(lengths, time_steps)).any(axis=1)).any():
            raise DataError(
                f"mask{suffix}: has a gap at index {gaps.argmax()}; it must be true up to the end, then false"
            )
        return np.asarray(lengths)
    padded = x == 0 if x.ndim == 2 else (x == np.float32(PADDING)).all(axis=-1)
    return np.where(padded.all(axis=1), 0, time_steps - (~padded[:, ::-1]).argmax(axis=1))


def check_padding(given: Sequences, name: str) -> None:
    """Raise DataError where a value that is no padding looks like it; for data that have padding somewhere."""
    wrong = given.valid & (given.x == 0 if given.tokens else (given.x <= PADDING / 2).any(axis=-1))
    if wrong.any():
        first = _first(wrong)
        if given.tokens:
            raise DataError(
                f"{name}: {wrong.sum()} tokens are 0, first at {first}; 0 stands for padding and may only follow a "
                "sequence's end; number tokens from 1, or give floats if these are measured values"
            )
        raise DataError(
            f"{name}: values below {PADDING / 2:g}, first at {first}, stand for padding; rescale the feature"
        )


def _check_tokens(x: Array, valid: Array, name: str) -> None:
    wrong = valid & ((x < 0) | (x >= MAX_VOCABULARY))
    if wrong.any():
        first = _first(wrong)
        raise DataError(
            f"{name}: {wrong.sum()} tokens are out of range, first {x[tuple(first)]} at {first}; give them "
            f"numbers from 1 to {MAX_VOCABULARY - 1}, or give floats if these are measured values"
        )


def _check_floats(x: Array, valid: Array, name: str) -> None:
    wrong = valid[..., None] & ~np.isfinite(x)
    if wrong.any():
        first = _first(wrong)
        raise DataError(
            f"{name}: {wrong.sum()} values are NaN or infinite in float32, first {x[tuple(first)]} at {first}; "
            "fill them in, or leave the sequences out"
        )


def _first(wrong: Array) -> list[int]:
    return [int(i) for i in np.argwhere(wrong)[0]]


def _targets(y: Any, kind: str, lengths: Array, time_steps: int, name: str) -> Array:
    ends = None
    if kind == "tagging" and not (isinstance(y, np.ndarray) and y.ndim > 1):
        y, ends = _rectangle(y, name)
    try:
        y = np.asarray(y)
    except ValueError as error:
        raise DataError(f"{name}: is no array of targets, one for each sequence: {error}") from error
    if y.ndim == 0 or len(y) != len(lengths):
        raise DataError(
            f"{name}: has shape {list(y.shape)}, but x has {len(lengths)} sequences; give a target for each"
        )
    if ends is not None and (odd := ends != lengths).any():
        at = odd.argmax()
        raise DataError(f"{name}: has {ends[at]} labels at index {at}, where the sequence has {lengths[at]} steps")
    if kind == "tagging" and y.ndim > 1 and y.shape[1] < time_steps and (lengths <= y.shape[1]).all():
        y = np.concatenate([y, np.repeat(y[:, -1:], time_steps - y.shape[1], axis=1)], axis=1)  # x was padded further
    if y.ndim == (3 if kind == "tagging" else 2) and y.shape[-1] == 1:
        y = y[..., 0]
    if kind == "regression":
        return _values(y, name)
    wanted = [len(lengths), time_steps] if kind == "tagging" else [len(lengths)]
    if list(y.shape) != wanted:
        hint = "one label for every step" if kind == "tagging" else "one label for each sequence, not one-hot"
        raise DataError(f"{name}: has shape {list(y.shape)}; a {kind} task needs {wanted}, {hint}")
    return np.asarray(y)


def _values(y: Array, name: str) -> Array:
    y = y[:, None] if y.ndim == 1 else y
    if y.ndim != 2 or y.shape[1] == 0 or y.dtype.kind not in "biuf":
        raise DataError(f"{name}: is {y.dtype} {list(y.shape)}; a regression task needs numbers [sequences, outputs]")
    with np.errstate(over="ignore"):
        values: Array = y.astype(np.float32)
    if (wrong := ~np.isfinite(values)).any():
        raise DataError(f"{name}: {wrong.sum()} targets are NaN or infinite in float32, first at {_first(wrong)}")
    return values
