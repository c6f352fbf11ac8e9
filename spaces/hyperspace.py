"""The points of a hypermodel: what the user's code leaves open, and the forms in which brisk serves what it builds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from spaces.errors import SpecError, nearest
from spaces.gene import Gene, Trial, draw, parameters
from spaces.genotype import HYPERMODEL, Architecture, Deployment, Genotype, Training
from spaces.signature import Signature

LOWERINGS = ("loop", "stacked", "keras")
"""How a model that brisk did not design is served: recurrent layers as loops, those in a row as one, or as it is."""

LOOP_BITS = ("32", "16", "8", "rec8", "rec4", "4")
STOCK_BITS = ("32", "16", "8", "full8")

KEYS = ("hypermodel", "learning_rate", "bits", "lowering", "steps", "batch", "quantize_head")
"""The keys of `[space]` that go with a hypermodel; `learning_rate` only where it leaves its models uncompiled."""


@dataclass(frozen=True)
class Hyperspace:
    """The points that `genes` span, trained as the user's code does, deployed as `spaces.space.Space` says."""

    place: str  # "module:build"
    genes: tuple[Gene, ...]
    learning_rate: tuple[float, ...]  # (0.0,) where the user's code sets its own
    bits: tuple[str, ...]
    lowering: tuple[str, ...]
    steps: tuple[int, ...]
    batch: tuple[int, ...]

    def sample(self, trial: Trial, signature: Signature) -> Genotype:
        """Draw a point; the same trial gives the same point again."""
        architecture = Architecture(HYPERMODEL + self.place, units=0, values=draw(self.genes, trial))
        low, high = self.learning_rate[0], self.learning_rate[-1]
        rate = low if low == high else trial.suggest_float("learning_rate", low, high, log=True)
        lowering = _choose(trial, "lowering", self._lowerings())
        deployment = Deployment(
            lowering=lowering,
            steps=_choose(trial, "steps", self._steps(lowering, signature)),
            bits=_choose(trial, "bits", self._bits(lowering)),
            batch=_choose(trial, "batch", self.batch),
        )
        return Genotype(architecture, Training(learning_rate=rate), deployment)

    def parameters(self, genotype: Genotype, signature: Signature) -> dict[str, Any]:
        """The inverse of `sample`: the Optuna parameters that draw this genotype. Raises SpecError if none do."""
        deployment = genotype.deployment
        replay = _Replay(
            {
                **parameters(self.genes, genotype.architecture.values),
                "learning_rate": genotype.training.learning_rate,
                _named("lowering", self._lowerings()): deployment.lowering,
                _named("steps", self._steps(deployment.lowering, signature)): deployment.steps,
                _named("bits", self._bits(deployment.lowering)): deployment.bits,
                _named("batch", self.batch): deployment.batch,
            }
        )
        if self.sample(replay, signature) != genotype:
            raise SpecError(f"the candidate {genotype} lies outside the space; widen [space] to hold it")
        return replay.asked

    def deployments(self, signature: Signature) -> tuple[Deployment, ...]:
        """Every legal form in which a trained model can be served, in a fixed order."""
        return tuple(
            Deployment(lowering, steps, bits, batch)
            for lowering in self._lowerings()
            for steps, bits, batch in product(self._steps(lowering, signature), self._bits(lowering), self.batch)
        )

    def problems(self) -> Iterator[tuple[str, str]]:
        """Every (key, what is wrong with its value and what to do) that brisk's own cells do not know."""
        module, colon, name = self.place.partition(":")
        if not (colon and name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
            yield "hypermodel", f'got {self.place!r}; give "module:build", a module beside the spec and a name in it'
        if wrong := [one for one in self.lowering if one not in (*LOWERINGS, "scan", "parallel")]:
            yield "lowering", f"got {wrong[0]!r}; {nearest(wrong[0], LOWERINGS)}"
        elif not set(self.lowering) & set(LOWERINGS):
            yield "lowering", f"got {list(self.lowering)}; a hypermodel is served by {' or '.join(LOWERINGS)}"
        elif not self._lowerings():
            legal = dict.fromkeys(bits for lowering in self.lowering for bits in _legal_bits(lowering))
            yield "bits", f"got {list(self.bits)}, none of which fits; its models take {', '.join(legal)}"

    def _lowerings(self) -> tuple[str, ...]:
        return tuple(lowering for lowering in self.lowering if lowering in LOWERINGS and self._bits(lowering))

    def _bits(self, lowering: str) -> tuple[str, ...]:
        return tuple(bits for bits in self.bits if bits in _legal_bits(lowering))

    def _steps(self, lowering: str, signature: Signature) -> tuple[int, ...]:
        if lowering == "keras":
            return (1,)
        return tuple(dict.fromkeys(min(steps, signature.time_steps) for steps in self.steps))


@dataclass(frozen=True)
class _Replay:
    """A trial that answers with known parameters and keeps those it was asked for."""

    parameters: dict[str, Any]
    asked: dict[str, Any] = field(default_factory=dict)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        value = self._answer(name)
        return value if value in choices else choices[0]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        value: int = self._answer(name)
        return value if low <= value <= high and (value - low) % step == 0 else low

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        value: float = self._answer(name)
        return min(max(value, low), high)

    def _answer(self, name: str) -> Any:
        self.asked[name] = self.parameters.get(name, 0)
        return self.asked[name]


def _legal_bits(lowering: str) -> tuple[str, ...]:
    return STOCK_BITS if lowering == "keras" else LOOP_BITS


def _named(name: str, choices: Sequence[Any]) -> str:
    """After what there is to choose from, because Optuna freezes the choices of a name for a whole study."""
    return f"{name}.{'-'.join(map(str, choices))}"


def _choose(trial: Trial, name: str, choices: Sequence[Any]) -> Any:
    return choices[0] if len(choices) == 1 else trial.suggest_categorical(_named(name, choices), choices)
