"""The data of a study: gathered, checked, split and described, before anything is trained."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.bench import Bench, TaskSpec
from objectives.sequences import Sequences, check_padding, sequences
from objectives.sources import PARTS, gather
from objectives.unlabelled import unlabelled
from spaces.errors import DataError, nearest
from spaces.record import digest
from spaces.signature import Signature

Array = NDArray[Any]
Parts = dict[str, Sequences]
ARRAYS = ("x", "y", "lengths", "mask")  # that a source may give, for each part if it comes split
CONSTANT = 1e-6  # a feature that varies by less than this share of its size is constant in float32


@dataclass(frozen=True)
class Split:
    """One part of the data, in raw units.

    x: float32 [sequences, time, features] with PADDING, or int32 [sequences, time] with token 0, after an early end.
    y: int64 [sequences] (classification), float32 [sequences, outputs] (regression) or int64 [sequences, time] with -1
    at padded steps (tagging).
    """

    x: Array
    y: Array


@dataclass(frozen=True)
class Dataset:
    """What a study is trained, searched and tested on; `summary` is for people.

    `digest` changes with any of it but the `unlabelled` sequences (`objectives.unlabelled`), which have their own.
    """

    signature: Signature
    train: Split
    validation: Split
    test: Split
    digest: str
    summary: dict[str, Any]
    unlabelled: Split | None = None
    unlabelled_digest: str = ""

    @property
    def whole(self) -> str:
        """Names all of the data."""
        return digest(self.digest, self.unlabelled_digest) if self.unlabelled else self.digest

    @property
    def taught_x(self) -> Array:
        """What a teacher is asked: x of the training part, then of the unlabelled sequences."""
        return np.concatenate([self.train.x, self.unlabelled.x]) if self.unlabelled else self.train.x


def loaded(bench: Bench) -> Dataset:
    """The data of a bench, read once in the life of a process: a worker's candidates all see the same.

    Raises DataError where they are not those that the study was begun on.
    """
    data = _loaded(bench.task, bench.seed, bench.root)
    if bench.data_digest not in ("", data.whole):
        names = " or ".join(filter(None, (bench.task.data, bench.task.unlabelled)))
        raise DataError(
            f"task.data: {names} has changed since the study read it (digest {bench.data_digest} then, "
            f"{data.whole} now); put the old data back, or give a study of the new ones a name of its own with --name"
        )
    return data


@functools.lru_cache(maxsize=1)
def _loaded(task: TaskSpec, seed: int, root: str) -> Dataset:
    return load(task, seed=seed, root=root)


def load(task: TaskSpec, *, seed: int, root: str) -> Dataset:
    """The data that `task` names, split by `seed` unless they come split; relative paths start from `root`.

    Classes are split in proportion, and each is in every part. Raises DataError, in words, where a source cannot be
    read or its arrays cannot be trained on.
    """
    given = _given(gather(task, seed=seed, root=root), task.kind)
    labels: tuple[str, ...] = ()
    if task.kind != "regression":
        given, labels = _encoded(given, task.kind)
    parts = _parts(given, task, labels, np.random.default_rng(seed))
    _check_targets(parts, task.kind, labels)
    signature = _signature(parts, task.kind, labels)
    splits = {name: Split(parts[name].x, parts[name].y) for name in PARTS}
    arrays = [array for split in splits.values() for array in (split.x, split.y)]
    forms = [(array.dtype.str, array.shape) for array in arrays]
    more = unlabelled(task, signature, root=root) if task.unlabelled else None
    return Dataset(
        signature=signature,
        **splits,
        digest=digest(dataclasses.asdict(signature), forms, *(array.tobytes() for array in arrays)),
        summary=_summary(parts, signature, task) | ({"unlabelled": len(more.x)} if more else {}),
        unlabelled=Split(more.x, more.y) if more else None,
        unlabelled_digest=digest(more.x.tobytes(), more.y.tobytes()) if more else "",
    )


def _given(arrays: Mapping[str, Any], kind: str) -> Parts:
    """The parts as the source gave them, under "" where it leaves the splitting to us; all of one form and length."""
    named = [part for part in PARTS if f"x_{part}" in arrays]
    known = [name + part for part in ([f"_{part}" for part in named] or [""]) for name in ARRAYS]
    every = [name + part for part in ("", *(f"_{part}" for part in PARTS)) for name in ARRAYS]
    for name in arrays:
        if name not in known:
            raise DataError(
                f"the data have an array {name!r}, which nothing reads, so that it is to be left out; "
                + nearest(name, [one for one in every if one != name])
            )
    if named and not {"train", "test"} <= set(named):
        found = " and ".join(named)
        raise DataError(f"the data come split into {found}; give train and test (validation can be cut off train)")
    parts = {part: sequences(arrays, kind, f"_{part}") for part in named} or {"": sequences(arrays, kind)}
    forms = {part: "tokens" if given.tokens else f"{given.x.shape[2]} features" for part, given in parts.items()}
    if len(set(forms.values())) > 1:
        told = ", ".join(f"x_{part} has {form}" for part, form in forms.items())
        raise DataError(f"the parts differ in form: {told}; give all the same")
    if kind == "regression" and len({part.y.shape[1] for part in parts.values()}) > 1:
        raise DataError("the parts differ in the number of outputs of y; give all the same")
    time_steps = max(part.x.shape[1] for part in parts.values())
    parts = {name: part.stretch(time_steps) for name, part in parts.items()}
    if not all(part.valid.all() for part in parts.values()):
        for name, part in parts.items():
            check_padding(part, f"x_{name}" if name else "x")
    return parts


def _encoded(given: Parts, kind: str) -> tuple[Parts, tuple[str, ...]]:
    """Labels as 0, 1, ... in sorted order (-1 at padded steps), and their names."""
    flat = {}
    for p, part in given.items():
        y = part.y[part.valid[:, : part.y.shape[1]]] if kind == "tagging" else part.y
        flat[p] = _plain(y, f"y_{p}" if p else "y", kind)
    if len({labels.dtype.kind for labels in flat.values()}) > 1:
        raise DataError("the parts differ in the kind of their labels, numbers in one and text in another")
    classes = np.unique(np.concatenate(list(flat.values())))
    if len(classes) < 2:
        raise DataError(f"y: every label is {classes[0]}; at least two classes are needed to tell apart")
    encoded = {}
    for p, part in given.items():
        y = np.searchsorted(classes, flat[p])
        if kind == "tagging":
            steps = np.full(part.valid.shape, -1)
            steps[part.valid] = y
            y = steps
        encoded[p] = dataclasses.replace(part, y=y.astype(np.int64))
    return encoded, tuple(str(label) for label in classes)


def _plain(labels: Array, name: str, kind: str) -> Array:
    """Labels as integers or text."""
    if labels.dtype == object:
        missing = np.array([label is None or label != label for label in labels])
        if missing.any():
            raise DataError(f"{name}: {missing.sum()} labels are missing, first at index {missing.argmax()}")
        labels = np.array(labels.tolist()) if len({isinstance(label, str) for label in labels}) == 1 else labels
    if labels.dtype.kind == "f":
        if (missing := ~np.isfinite(labels)).any():
            raise DataError(f"{name}: {missing.sum()} labels are NaN or infinite, first at label {missing.argmax()}")
        if (odd := labels != np.rint(labels)).any():
            advice = "is this a regression task?" if kind == "classification" else "give whole numbers or text"
            raise DataError(f"{name}: labels are fractional, for instance {labels[odd.argmax()]}; {advice}")
    if labels.dtype.kind not in "biufUS":
        raise DataError(f"{name}: labels have dtype {labels.dtype}; give whole numbers, or text, but no mixture")
    return labels.astype(str) if labels.dtype.kind in "bUS" else labels.astype(np.int64)


def _parts(given: Parts, task: TaskSpec, labels: Sequence[str], rng: np.random.Generator) -> Parts:
    """Train, validation and test: as given, or split by `rng`."""
    if min(task.splits) <= 0 or abs(sum(task.splits) - 1) > 1e-6:
        raise DataError(f"task.splits: got {list(task.splits)}; give three shares above 0 that sum to 1")
    if "" in given:
        parts = split(given[""], PARTS, task, labels, rng)
    elif "validation" not in given:
        parts = {**split(given["train"], PARTS[:2], task, labels, rng), "test": given["test"]}
    else:
        parts = {**given, "train": given["train"].take(rng.permutation(len(given["train"].x)))}
    return {name: parts[name] for name in PARTS}


def split(
    whole: Sequences, names: Sequence[str], task: TaskSpec, labels: Sequence[str], rng: np.random.Generator
) -> Parts:
    """Shares of each class (of everything, where sequences have no class), shuffled."""
    strata = whole.y if task.kind == "classification" else np.zeros(len(whole.x), int)
    shares = np.array([task.splits[PARTS.index(name)] for name in names])
    classes, sizes = np.unique(strata, return_counts=True)
    if sizes.min() < len(names):
        raise DataError(
            _too_few(classes[sizes.argmin()], int(sizes.min()), names, labels if task.kind == "classification" else ())
        )
    rows: dict[str, list[Array]] = {name: [] for name in names}
    for stratum, size in zip(classes, sizes, strict=True):
        counts = _counts(int(size), shares / shares.sum())
        shuffled = rng.permutation(np.flatnonzero(strata == stratum))
        for name, some in zip(names, np.split(shuffled, np.cumsum(counts)[:-1]), strict=True):
            rows[name].append(some)
    return {name: whole.take(rng.permutation(np.concatenate(rows[name]))) for name in names}


def _too_few(stratum: Any, size: int, names: Sequence[str], labels: Sequence[str]) -> str:
    parts = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    if not labels:
        return f"the data have {size} sequences; {parts} need at least one each"
    return (
        f"class {labels[stratum]!r} has {size} of the {len(names)} sequences it needs, one each for {parts}; "
        "add some, merge it into another class, leave it out, or give the splits yourself (x_train, ...)"
    )


def _counts(size: int, shares: Array) -> Array:
    """`size` in whole parts of about these shares, none of them empty."""
    exact = size * shares
    counts: Array = np.maximum(np.floor(exact), 1).astype(int)
    while counts.sum() > size:
        counts[counts.argmax()] -= 1
    while counts.sum() < size:
        counts[(exact - counts).argmax()] += 1
    return counts


def _check_targets(parts: Parts, kind: str, labels: Sequence[str]) -> None:
    """Raise DataError where the training part cannot teach what the others ask."""
    y = parts["train"].y
    if kind == "regression":
        if (constant := np.ptp(y, axis=0) == 0).any():
            raise DataError(f"y: output {constant.argmax()} is {y[0, constant.argmax()]} in all of train")
        return
    for name, part in parts.items():
        strange = np.setdiff1d(part.y[part.y >= 0], y)
        if strange.size:
            raise DataError(
                f"class {labels[strange[0]]!r} is in {name} but never in train; add sequences of it, or leave it out"
            )


def _signature(parts: Parts, kind: str, labels: tuple[str, ...]) -> Signature:
    """What the models take and give; the constants of normalisation are those of the training part alone."""
    train = parts["train"]
    mean, std = ((), ()) if train.tokens else _moments(train.x[train.valid])
    target_mean, target_std = _moments(train.y) if kind == "regression" else ((), ())
    return Signature(
        kind=kind,
        time_steps=train.x.shape[1],
        features=0 if train.tokens else train.x.shape[2],
        outputs=len(labels) or train.y.shape[1],
        vocabulary=max(int(part.x.max()) for part in parts.values()) + 1 if train.tokens else None,
        masked=not all(part.valid.all() for part in parts.values()),
        mean=mean,
        std=std,
        target_mean=target_mean,
        target_std=target_std,
        labels=labels,
    )


def _moments(values: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each column; 1 instead of the latter where a column is constant."""
    mean, std = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
    constant = np.ptp(values, axis=0) <= CONSTANT * np.abs(values).max(axis=0)
    return tuple(mean.tolist()), tuple(np.where(constant, 1.0, std).tolist())


def _summary(parts: Parts, signature: Signature, task: TaskSpec) -> dict[str, Any]:
    """The data in a few figures, as plain JSON values; classes are counted over all parts, by sequence or by step."""
    lengths = np.concatenate([part.lengths for part in parts.values()])
    found: dict[str, Any] = {
        "data": task.data,
        "kind": signature.kind,
        "sequences": {name: len(part.x) for name, part in parts.items()},
        "time_steps": signature.time_steps,
        "features": signature.features,
        "vocabulary": signature.vocabulary,
        "outputs": signature.outputs,
        "masked": signature.masked,
        "lengths": [int(lengths.min()), float(np.median(lengths)), int(lengths.max())],
    }
    if signature.labels:
        y = np.concatenate([part.y.ravel() for part in parts.values()])
        counts = np.bincount(y[y >= 0], minlength=len(signature.labels)).tolist()
        found["classes"] = dict(zip(signature.labels, counts, strict=True))
    return found
