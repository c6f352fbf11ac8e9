"""Rungs: the epochs at which a training asks whether it is worth going on, and is kept so that it can be taken up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.cache import Arrays, Cache

GoesOn = Callable[[int, int, float, float], str]
"""Asked at a rung, counted from 0, with the epoch, the validation error so far, and the most seconds that the rest may
take: why to stop there, "" to go on.
"""


def never_stopped(rung: int, epoch: int, error: float, left_s: float) -> str:
    """Go on at every rung."""
    del rung, epoch, error, left_s
    return ""


STAGE = "begun"  # of the cache
State = Callable[[], tuple[Arrays, dict[str, Any]]]
"""What a training is at a rung: its arrays (`packed`), and notes that go into JSON."""


class Stopped(Exception):
    """A training was stopped at a rung for good; `learned` are the validation errors at the rungs that it came to."""

    def __init__(self, reason: str, learned: Sequence[float]) -> None:
        super().__init__(reason)
        self.reason, self.learned = reason, tuple(learned)


def epochs_of(shares: Sequence[float], epochs: int) -> tuple[int, ...]:
    """The epochs of the rungs, rising: each at least 1, and before the last."""
    found = {max(1, round(share * epochs)) for share in shares}
    return tuple(sorted(epoch for epoch in found if epoch < epochs))


def learned_at(history: Mapping[str, Any], epochs: Sequence[int]) -> list[float]:
    """The errors of a kept training at the rungs of another study that it came to: NaN where nobody asked."""
    learned: list[float] = history["learned"]
    if "ran" not in history:  # an older brisk did not say
        return learned
    known = dict(zip(history["rungs"], learned, strict=False))
    return [known.get(epoch, math.nan) for epoch in epochs if epoch in known or epoch < history["ran"]]


@dataclass
class Rungs:
    """The rungs of one training. `error` is that of the best epoch so far, of which it is given what that told; what is
    kept in `cache` goes by `key`.

    A training that was stopped, or whose process died, is taken up at the last rung it was kept at, optimizer and all.
    """

    epochs: tuple[int, ...]
    error: Callable[[dict[str, float]], float]
    goes_on: GoesOn
    cache: Cache
    key: str
    learned: list[float] = field(default_factory=list)

    def taken_up(self, variables: Callable[[], Sequence[Any]]) -> dict[str, Any]:
        """Put what was kept into the variables; gives the notes kept beside them, {} where nothing was, or nothing that
        fits.
        """
        kept = self.cache.arrays(STAGE, self.key)
        if kept is None or "notes" not in kept:
            return {}
        notes: dict[str, Any] = json.loads(kept.pop("notes").tobytes())
        best = [kept[name] for name in sorted(kept) if name.startswith("best")]
        values = [kept[name] for name in sorted(kept) if name.startswith("now")]
        passed = [epoch for epoch in self.epochs if epoch <= notes["epoch"]]
        learned = dict(zip(notes.get("rungs", ()), notes["learned"], strict=False))
        if not learned.keys() >= {*passed}:
            return {}
        found = variables()
        shapes = [tuple(variable.shape) for variable in found]
        # NumPy's files have no bfloat16.
        if [value.shape for value in values] != shapes or any(value.dtype.kind == "V" for value in values):
            return {}
        for variable, value in zip(found, values, strict=True):
            variable.assign(value)
        self.learned = [learned[epoch] for epoch in passed]
        return {**notes, "best": best}

    def due(self, epoch: int) -> bool:
        """Whether the epoch comes to a rung that nobody was asked at yet."""
        return sum(rung <= epoch for rung in self.epochs) > len(self.learned)

    def reached(self, epoch: int, told: dict[str, float], left_s: float, state: State | None) -> None:
        """Where a rung is due, keep the training, unless nobody could take it up, and ask. Raises Stopped."""
        if not self.due(epoch):
            return
        rung, error = sum(each <= epoch for each in self.epochs) - 1, self.error(told)
        self.learned = [*self.learned, *[error] * (rung + 1 - len(self.learned))]
        if state:
            arrays, notes = state()
            notes |= {"epoch": epoch, "learned": self.learned, "rungs": self.epochs[: rung + 1]}
            kept = arrays | {"notes": _bytes(json.dumps(notes))}
            self.cache.keep_arrays(STAGE, self.key, kept, lasting=False)  # a machine that stops costs some epochs
        if reason := self.goes_on(rung, epoch, error, left_s):
            raise Stopped(reason, self.learned)

    def asked_again(self, epoch: int, left_s: float) -> None:
        """Ask once more at the rung that a training was taken up at: it may have been stopped there. Raises Stopped."""
        if epoch not in self.epochs:  # it was another study's rung
            return
        rung = self.epochs.index(epoch)
        if reason := self.goes_on(rung, epoch, self.learned[rung], left_s):
            raise Stopped(reason, self.learned)

    def done(self) -> None:
        """Forget what was kept: the trained weights are."""
        self.cache.forget(STAGE, self.key)


def packed(now: Sequence[Any], best: Sequence[NDArray[Any]]) -> Arrays:
    """Variables as they are, and the weights of the best epoch, by names that sort in their order."""
    return {f"now{place:05d}": np.asarray(variable) for place, variable in enumerate(now)} | {
        f"best{place:05d}": array for place, array in enumerate(best)
    }


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8)
