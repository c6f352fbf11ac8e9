"""A group of candidates on its way through the stations: which forms are still open, and what is known of each."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.bench import Ask, Bench, Emit
from objectives.cache import Cache
from objectives.data import Dataset
from objectives.origin import Origin
from objectives.outcome import Measurement, Outcome
from objectives.training.rungs import Stopped
from spaces.errors import CandidateError, InputError, StudyError, disk_trouble
from spaces.genotype import Deployment, Genotype
from spaces.record import to_json


@dataclass
class Group:
    """One group on its way: which forms are still open, and what is known of each."""

    bench: Bench
    forms: list[Genotype]
    emit: Emit
    ask: Ask
    data: Dataset = field(init=False)
    origin: Origin = field(init=False)

    def __post_init__(self) -> None:
        self.cache = Cache(self.bench.home)
        self.open = list(range(len(self.forms)))
        self.known: dict[int, dict[str, Any]] = {form: {} for form in self.open}  # fields of its Outcome so far
        self.seconds: dict[int, dict[str, float]] = {form: {} for form in self.open}
        self.lowered: dict[tuple[str, Deployment], bytes] = {}
        self.poured = set[Deployment]()  # forms whose float file is the one with random weights but for its constants
        self.looks: dict[int, Measurement] = {}  # the short measurements before training
        self.began = time.perf_counter()

    @contextmanager
    def stage(self, name: str, form: int | None = None) -> Iterator[None]:
        """Announce and time a stage of one form, or of all; what it raises becomes a CandidateError of that stage."""
        self.emit({"event": "stage", "stage": name, "form": form, "detail": ""})
        started = time.perf_counter()
        try:
            yield
        except (InputError, CandidateError, Stopped):
            raise
        except Exception as error:
            if why := disk_trouble(error):
                raise StudyError(
                    f"the home, or the folder for temporary files, cannot be written any more ({why}); free some space "
                    "and run the study again, everything finished is kept"
                ) from error
            raise CandidateError(name, f"{type(error).__name__}: {_first_line(error)}") from error
        finally:
            paid = self.seconds[form if form is not None else (self.open or [0])[0]]
            paid[name] = paid.get(name, 0.0) + time.perf_counter() - started

    @functools.cached_property
    def reference(self) -> NDArray[np.float32]:
        """What the float Keras model answers on the validation part: the oracle of every form."""
        return self.origin.answer(self.data.validation.x)

    def each(self, station: Callable[[Group, int], None]) -> None:
        """Take every open form through a station; the failure of one is no other's."""
        for form in tuple(self.open):
            try:
                station(self, form)
            except CandidateError as failure:
                self.settle(form, "failed", stage=failure.stage, reason=failure.reason)

    def settle(self, form: int, state: str, *, stage: str = "", reason: str = "") -> None:
        """Close a form and emit its outcome."""
        self.open.remove(form)
        self.emit({"event": "outcome", "form": form, "outcome": to_json(self.outcome(form, state, stage, reason))})

    def outcome(self, form: int, state: str = "complete", stage: str = "", reason: str = "") -> Outcome:
        """What is known of a form by now."""
        known = self.known[form]
        return Outcome(self.forms[form], state, stage=stage, reason=reason, seconds=self.seconds[form], **known)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no message"
