"""A hypermodel's hyperparameters as records, and how a point of them is drawn, without KerasTuner.

`spaces.hypermodel` finds them in a worker by building the user's models; the parent draws from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, Protocol

from spaces.record import digest

Value = bool | int | float | str
Values = tuple[tuple[str, Value], ...]
"""(name, value) of every hyperparameter that counts for a point, in the order in which they were met."""

PREFIX = "hp:"
"""What the Optuna names of genes begin with: a user's may be called as one of ours."""

LONGEST = 200  # characters of a name as it is; Optuna's tables hold 512
DIGITS = 12  # significant, of a value that a formula gives: a value then goes to its parameter and back


class Trial(Protocol):
    """What is asked of an Optuna trial, for genes and by `Space.sample`."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...


@dataclass(frozen=True)
class Condition:
    """Holds where the gene `parent` counts and has one of `values`."""

    parent: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Gene:
    """One hyperparameter under its conditions; several may share a name, each in a scope of its own.

    `kind`: "choice" of `values` without an order, "grid" of `values` in theirs, which a sampler searches by index (a
    fixed value is a grid of one), or a range from `low` to `high` of "int" (in steps of `step`) or "float". `sampling`
    of a range: "linear", "log", or "reverse_log", dense at its upper end.
    """

    name: str
    kind: str
    values: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: int = 1
    sampling: str = "linear"
    conditions: tuple[Condition, ...] = ()

    @property
    def key(self) -> str:
        """The Optuna name: it tells scopes apart, because Optuna freezes the range of a name for a whole study."""
        scopes = (f"@{one.parent}={'|'.join(map(str, one.values))}" for one in self.conditions)
        name = PREFIX + self.name + "".join(scopes)
        return name if len(name) <= LONGEST else f"{name[:LONGEST]}#{digest(name)}"

    @property
    def range(self) -> str:
        """What there is to choose from, in words."""
        if self.kind in ("choice", "grid"):
            return ", ".join(map(str, self.values))
        kind = "" if self.sampling == "linear" else f", {self.sampling.replace('_', ' ')}"
        return f"{self.low:g} to {self.high:g}" + (f" in steps of {self.step}" if self.step > 1 else "") + kind

    def counts(self, values: Mapping[str, Value]) -> bool:
        """Whether its conditions hold, given the values of those before it."""
        return all(one.parent in values and values[one.parent] in one.values for one in self.conditions)

    def suggest(self, trial: Trial) -> Value:
        """A value that the trial proposes; one that has no alternative is not asked for."""
        if self.kind == "choice":
            chosen: Value = trial.suggest_categorical(self.key, self.values)
            return chosen
        if self.kind == "grid":
            return self.values[trial.suggest_int(self.key, 0, len(self.values) - 1) if len(self.values) > 1 else 0]
        if self.sampling == "reverse_log":
            return self._mirrored(trial.suggest_float(self.key, 0.0, 1.0))
        if self.kind == "int":
            low, high = int(self.low), int(self.high)
            if self.sampling == "log":
                return trial.suggest_int(self.key, low, high, log=True)
            return trial.suggest_int(self.key, low, high, step=self.step)
        return trial.suggest_float(self.key, self.low, self.high, log=self.sampling == "log")

    def parameter(self, value: Value) -> Any:
        """The inverse of `suggest`: what the trial proposed for this value, or for the first where it has no such."""
        if self.kind == "grid":
            return self.values.index(value) if value in self.values else 0
        if self.kind == "choice" or self.sampling != "reverse_log":
            return value
        return self._place(float(value))

    def _mirrored(self, share: float) -> Value:
        """As KerasTuner has it, low + high - low (high / low)^(1 - share); whole numbers reach to high + 1."""
        top = self.high + (self.kind == "int")
        value = top + self.low - self.low * (top / self.low) ** (1.0 - share)
        if self.kind == "int":
            return min(int(value), int(self.high))
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def _place(self, value: float) -> float:
        """Where in 0 .. 1 a mirrored value lies; of a whole number its middle."""
        whole = self.kind == "int"
        top, value = self.high + whole, value + 0.5 * whole
        return min(max(1.0 - log((top + self.low - value) / self.low) / log(top / self.low), 0.0), 1.0)


def draw(genes: Iterable[Gene], trial: Trial) -> Values:
    """A value for every gene that counts, asked for in their order; the first of a name that counts decides."""
    values: dict[str, Value] = {}
    for gene in genes:
        if gene.name not in values and gene.counts(values):
            values[gene.name] = gene.suggest(trial)
    return tuple(values.items())


def parameters(genes: Iterable[Gene], values: Values) -> dict[str, Any]:
    """The inverse of `draw`: the Optuna parameters that draw these values, those that have no alternative included."""
    given, found, seen = dict(values), {}, set()
    for gene in genes:
        if gene.name in given and gene.name not in seen and gene.counts(given):
            seen.add(gene.name)
            found[gene.key] = gene.parameter(given[gene.name])
    return found
