"""Where a search begins: points that are good to know first, in place of random ones."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from search.history import read
from search.summary import front_of
from spaces.catalog import CELLS
from spaces.errors import SpecError, StudyError
from spaces.genotype import Genotype
from spaces.record import from_json, to_json
from spaces.signature import Signature
from spaces.space import Space

KNOWN = "known"
"""The name of the table that brisk brings along: of each cell of the space a plain model and a small one."""

MOST = 5  # cells of which it has them: all are tried before anything is searched
STEPS = 4  # that a plain model has left, where there are so many


def points(
    names: Sequence[str],
    home: Path,
    root: str,
    space: Space,
    signature: Signature,
    teaching: Mapping[str, tuple[float, ...]] | None = None,
) -> Iterator[Genotype]:
    """What to try first: of `KNOWN`, of the fronts of other studies of the home, of tables of points (.toml).

    `teaching` is what `Space.sample` takes beside the signature. Raises SpecError for a table that cannot be read,
    StudyError for a study that is not there.
    """
    for name in names:
        if name == KNOWN:
            yield from known(space, signature, **(teaching or {}))
        elif name.endswith(".toml"):
            yield from table(Path(root) / name)
        else:
            history = read(home, name)
            yield from (history.candidates[point].genotype for point in front_of(history))


def known(space: Space, signature: Signature, **teaching: tuple[float, ...]) -> Iterator[Genotype]:
    """A plain model of each cell, of a third of the units, one layer, frames stacked as far as accuracy usually bears,
    and one of the fewest units and steps, read by its mean, for what is fast is foretold from what is known to be. Both
    are served in the form that usually is the fastest. A hypermodel's values are the user's own, so nothing is known of
    them.
    """
    if space.own is None:
        for cell, small in product(_cells(space.cell), (False, True)):
            yield space.sample(_Usual(cell, small, signature.time_steps), signature, **teaching)


def _cells(named: Sequence[str]) -> list[str]:
    """At most `MOST` of the cells: in turn one of each kind, which are told apart by how they can be served."""
    kinds: dict[object, list[str]] = {}
    for cell in named:
        kinds.setdefault(CELLS[cell].lowerings, []).append(cell)
    turns = zip_longest(*kinds.values())
    return [cell for turn in turns for cell in turn if cell][:MOST]


def table(path: Path) -> list[Genotype]:
    """The points of a TOML file: [[point]] with the tables architecture, training, deployment of a candidate's JSON."""
    form = 'a table has [[point]] entries, as in architecture = { cell = "gru", units = 32 }'
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        if odd := next((key for key in found if key != "point"), ""):
            raise ValueError(f"{odd}: there is no such key")
        return [_point(entry) for entry in found.get("point", [])]
    except (OSError, ValueError, TypeError, ValidationError) as error:
        why = f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}" if isinstance(error, ValidationError) else error
        raise SpecError(f"search.warm_start: {path} cannot be used: {why}; {form}") from None


def _point(entry: dict[str, Any]) -> Genotype:
    """Raises ValueError where it has a key that none has."""
    genotype = from_json(Genotype, {"training": {}, "deployment": {}} | entry)
    known = to_json(genotype)
    for group, keys in entry.items():
        for key in keys if group in known else [""]:
            if key not in known.get(group, {}):
                raise ValueError(f"{f'{group}.{key}'.strip('.')}: there is no such key")
    return genotype


def outside(
    names: Sequence[str], root: str, space: Space, signature: Signature, teaching: Mapping[str, tuple[float, ...]]
) -> Iterator[str]:
    """Which points of the user's tables are not tried, for they lie outside the space, and why."""
    for name in names:
        for number, point in enumerate(table(Path(root) / name) if name.endswith(".toml") else (), start=1):
            try:
                space.parameters(point, signature, **teaching)
            except SpecError as error:
                yield f"search.warm_start: point {number} of {name} lies outside the space and is not tried: {error}"


def missing(names: Sequence[str], home: Path) -> None:
    """Raise StudyError where a study that is named is not there."""
    for name in names:
        if name != KNOWN and not name.endswith(".toml"):
            try:
                read(home, name)
            except StudyError as error:
                raise StudyError(f"search.warm_start: {error}") from None


@dataclass(frozen=True)
class _Usual:
    """A trial that answers with what usually is good, of one cell; `small`: with the fewest units and steps. Sequences
    have `time_steps`.
    """

    cell: str
    small: bool
    time_steps: int

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        key = name.partition(".")[0]
        if key == "cell":
            return self.cell
        if key == "frame_stack":
            fits = [choice for choice in choices if self.small or choice * STEPS <= self.time_steps]
            return max(fits, default=min(choices))
        if key == "steps":
            return max(choices)
        if key == "layers":
            return min(choices)
        readout = ("mean",) if self.small else ("last",)  # so that both are known
        usual = {"bits": ("8", "32"), "lowering": ("scan", "loop"), "readout": readout, "distillation": (0.0,)}
        return next((value for value in usual.get(key, ()) if value in choices), choices[0])

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return low if self.small else low + (high - low) // 3 // step * step

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return math.sqrt(low * high) if log else low
