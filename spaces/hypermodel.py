"""The one door to KerasTuner: the user's `HyperModel` or `build(hp)`, the genes it asks for, a model of given values.

Importing this module loads TensorFlow and Keras 3, so only what runs in a worker may. KerasTuner's Tuners and Oracles
are not used: values come from `spaces.gene`, and go in as KerasTuner itself puts them in, before `build` is called.
"""

from __future__ import annotations

import importlib
import inspect
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spaces.backend import keras, keras3
from spaces.errors import SpecError
from spaces.gene import Condition, Gene, Value

keras3()  # before KerasTuner, with the warnings of its import kept quiet
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import keras_tuner as kt
    from keras_tuner.engine import hyperparameters as kinds

SURE_VALUES = 3  # of a hyperparameter that are tried in finding others; more where they make a difference,
MOST_VALUES = 12  # unless it has more than these
MOST_BUILDS = 100  # of models, to find hyperparameters that stand in no conditional scope
EXPLORE_S = 60.0  # after which no further ones are looked for either

Values = Mapping[str, Value]
Run = Callable[[kt.HyperParameters], object]


def found(place: str) -> kt.HyperModel:
    """The `HyperModel` that "module:name" means: an instance, a class that needs no arguments, or a `build(hp)`.

    Raises SpecError where there is none.
    """
    module, _, name = place.partition(":")
    where = f"space.hypermodel: got {place!r}, but"
    try:
        thing = getattr(importlib.import_module(module), name, None)
    except Exception as error:
        raise SpecError(f"{where} importing {module} failed with {told(error)}") from error
    if thing is None:
        raise SpecError(f"{where} module {module} has no {name!r}")
    if inspect.isclass(thing):
        try:
            thing = thing()
        except Exception as error:
            raise SpecError(
                f"{where} {name} cannot be made without arguments ({told(error)}); make one in a module of yours, as "
                f"in hyper = {name}(...), and give that"
            ) from error
    if isinstance(thing, kt.HyperModel):
        return thing
    if not callable(thing):
        raise SpecError(
            f"{where} {name} is of type {type(thing).__name__}; give a function build(hp) that returns a Keras model, "
            "or a KerasTuner HyperModel"
        )
    return _Built(thing)


class _Built(kt.HyperModel):  # type: ignore[misc]
    """A `build(hp)` function as a HyperModel."""

    def __init__(self, build: Callable[[Any], Any]) -> None:
        super().__init__()
        self.build = build


def own_fit(hyper: kt.HyperModel) -> bool:
    """Whether it trains in a way of its own, perhaps by hyperparameters that `build` does not know."""
    return getattr(hyper.fit, "__func__", None) is not kt.HyperModel.fit


def with_values(hyper: kt.HyperModel, values: Values) -> kt.HyperParameters:
    """KerasTuner's container, set to these values; what is met beside them gets its default."""
    hp = kt.HyperParameters()
    hp.values.update(values)
    hyper.declare_hyperparameters(hp)
    return hp


def build(hyper: kt.HyperModel, hp: kt.HyperParameters, place: str) -> tuple[Any, Any]:
    """The model that the user's code at `place` builds, and the Keras it lives in. Raises SpecError where it fails."""
    where = f"space.hypermodel: {place}"
    try:
        model = hyper.build(hp)
    except Exception as error:
        given = ", ".join(f"{name} = {value}" for name, value in hp.values.items()) or "no hyperparameters"
        raise SpecError(f"{where} failed with {told(error)}, of {given}") from error
    for module in (keras, keras3()):
        if isinstance(model, module.Model):
            return model, module
    raise SpecError(
        f"{where} returned {type(model).__name__}; it must return a Keras model, of Keras 3 (`import keras`) or of "
        "Keras 2 (`import tf_keras`)"
    )


def fresh() -> None:
    """Let layers count from one again, so that names do not depend on what this process built before."""
    keras.backend.clear_session()
    keras3().utils.clear_session()


def genes_of(hyper: kt.HyperModel, run: Run) -> tuple[Gene, ...]:
    """All hyperparameters that are met, parents first. `run(hp)` builds a model with them; its first call may raise.

    Every conditional scope is entered once, as KerasTuner does. Those that depend on plain Python branches or loops
    are looked for by trying the values of each other one, and count only where they were met, as far as that is clear.
    """
    explored = _Explored(hyper, run)
    explored.scopes()
    explored.branches()
    return _parents_first([explored.gene(hp) for hp, _ in explored.hps])


@dataclass(frozen=True)
class _Met:
    """One model that was built: the values it had, and the names of the hyperparameters that it asked for."""

    values: dict[str, Value]
    names: set[str]


class _Explored:
    """The models that were built in looking for hyperparameters; what was found, each with the model it was met in."""

    def __init__(self, hyper: kt.HyperModel, run: Run) -> None:
        self._hyper, self._run = hyper, run
        self.hps: list[tuple[Any, _Met]] = []
        self._closed: list[tuple[Any, dict[str, Value]]] = []  # scopes (lists of conditions) that were not entered yet
        self._entered: list[Any] = []
        self._builds = 0
        self._met: list[_Met] = []
        self._build({}, first=True)

    def scopes(self) -> None:
        """Enter every scope once, as far as it can be: set what it depends on, and build."""
        tried: list[Any] = []
        while left := [(scope, values) for scope, values in self._closed if scope not in tried]:
            scope, values = left[0]
            tried.append(scope)
            self._build(values | {one.name: one.values[0] for one in scope})

    def branches(self) -> None:
        """Try the values of every hyperparameter, one at a time; what is found by that is tried too.

        Of numbers in order the rest are left out where the ends and the middle ask for the same hyperparameters.
        """
        until = time.monotonic() + EXPLORE_S
        for hp, first in self.hps:  # which grows on the way
            matters = isinstance(hp, kinds.Choice) and not hp.ordered
            for place, value in enumerate(_ends_first(hp)):
                spent = self._builds >= MOST_BUILDS or time.monotonic() > until
                if spent or (place >= SURE_VALUES and not matters):
                    break
                if value != first.values[hp.name]:
                    matters |= self._build(first.values | {hp.name: value}).names != first.names
        self.scopes()

    def gene(self, hp: Any) -> Gene:
        """The record, with the condition that plain Python put it under, where one other alone tells when it is met."""
        gene = _gene(hp)
        open_to_it = [met for met in self._met if gene.counts(met.values)]
        for parent, _ in self.hps[: [one is hp for one, _ in self.hps].index(True)]:
            both = [met for met in open_to_it if parent.name in met.names]
            here = {met.values[parent.name] for met in both if gene.name in met.names}
            gone = {met.values[parent.name] for met in both if gene.name not in met.names}
            values = _few_values(parent)
            if gone and not here & gone and here | gone == set(values):
                needed = Condition(parent.name, tuple(value for value in values if value in here))
                return replace(gene, conditions=(*gene.conditions, needed))
        return gene

    def _build(self, asked: dict[str, Value], first: bool = False) -> _Met:
        """Build with these values, and defaults for what is not among them. Only the first build must succeed."""
        hp = with_values(self._hyper, self._counting(asked))
        self._builds += 1
        failed = False
        try:
            self._run(hp)
        except Exception:
            if first:
                raise
            failed = True
        met = _Met(dict(hp.values), {one.name for one in hp.space if hp.is_active(one)})
        self._met += [] if failed else [met]
        for one in hp.space:
            if hp.is_active(one) and not any(_same(one, other) for other, _ in self.hps):
                self.hps.append((one, met))
        self._entered += [scope for scope in hp.active_scopes if scope not in self._entered]
        self._closed += [(scope, met.values) for scope in hp.inactive_scopes]
        self._closed = [(scope, values) for scope, values in self._closed if scope not in self._entered]
        return met

    def _counting(self, asked: dict[str, Value]) -> dict[str, Value]:
        """Without the values of those that do not count any more, now that a parent of theirs is another."""
        kept: dict[str, Value] = {}
        for hp, _ in self.hps:
            if hp.name in asked and all(condition.is_active(kept) for condition in hp.conditions):
                kept[hp.name] = asked[hp.name]
        return kept


def _parents_first(genes: list[Gene]) -> tuple[Gene, ...]:
    """In the order given, but none before one that its conditions name: a parent may stand in several scopes."""
    ordered: list[Gene] = []
    waiting = list(genes)
    while waiting:
        names = {gene.name for gene in waiting}
        free = (gene for gene in waiting if not names & {one.parent for one in gene.conditions})
        ordered.append(next(free, waiting[0]))
        waiting.remove(ordered[-1])
    return tuple(ordered)


def _same(one: Any, other: Any) -> bool:
    return bool(one.name == other.name and one.conditions == other.conditions)


def _few_values(hp: Any) -> list[Value]:
    """All values of a hyperparameter that has few, else none."""
    if isinstance(hp, kinds.Int | kinds.Float) and hp.step is None:
        return []
    values = _values(hp)
    return values if len(values) <= MOST_VALUES else []


def _ends_first(hp: Any) -> list[Value]:
    """The values worth trying in the search for others: both ends, the middle, and of few the rest."""
    outer = [hp.prob_to_value(share) for share in (0.0, 1.0 - 1e-9, 0.5)]
    return list(dict.fromkeys([*outer, *_few_values(hp)]))


def _values(hp: Any) -> list[Value]:
    """Those of a finite hyperparameter, each once, in order."""
    plain = [value.item() if hasattr(value, "item") else value for value in hp.values]  # NumPy's scalars
    return list(dict.fromkeys(int(value) if isinstance(hp, kinds.Int) else value for value in plain))


def _gene(hp: Any) -> Gene:
    """A hyperparameter of KerasTuner as a record. Raises SpecError on a kind that KerasTuner does not have."""
    conditions = tuple(Condition(one.name, tuple(one.values)) for one in hp.conditions)
    if isinstance(hp, kinds.Fixed | kinds.Choice | kinds.Boolean):
        ordered = isinstance(hp, kinds.Fixed) or getattr(hp, "ordered", False) or len(set(hp.values)) == 1
        return Gene(hp.name, "grid" if ordered else "choice", tuple(_values(hp)), conditions=conditions)
    if isinstance(hp, kinds.Int | kinds.Float):
        whole = isinstance(hp, kinds.Int)
        if hp.step is not None and not (whole and hp.sampling == "linear"):
            return Gene(hp.name, "grid", tuple(_values(hp)), conditions=conditions)
        low, high, step = float(hp.min_value), float(hp.max_value), int(hp.step or 1)
        high = low + (high - low) // step * step if whole else high
        if low == high:
            return Gene(hp.name, "grid", (int(low) if whole else low,), conditions=conditions)
        return Gene(hp.name, "int" if whole else "float", (), low, high, step, hp.sampling, conditions)
    raise SpecError(
        f"space.hypermodel: the hyperparameter {hp.name!r} is of kind {type(hp).__name__}, which brisk cannot search; "
        "use Choice, Int, Float, Boolean or Fixed"
    )


def told(error: Exception) -> str:
    """An error of the user's code in one line, with the last line of it that is not a library's."""
    frames = traceback.extract_tb(error.__traceback__)
    place = ([frame for frame in frames if "site-packages" not in frame.filename] or frames)[-1]
    said = (str(error).strip().splitlines() or [""])[0][:300]
    return f"{type(error).__name__}: {said} ({Path(place.filename).name}, line {place.lineno})"
