"""The ranges a study searches, and how a point is drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any, Protocol

from spaces.catalog import BITS, CELLS, legal_bits
from spaces.errors import SpecError, nearest
from spaces.genotype import Architecture, Deployment, Genotype, Training
from spaces.signature import Signature

LOWERINGS = ("loop", "scan", "keras")
READOUTS = ("last", "mean")
MAX_LAYERS = 3
MAX_UNITS = 4096


class Trial(Protocol):
    """What `Space.sample` asks of an Optuna trial."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...


@dataclass(frozen=True)
class Space:
    """The `[space]` table: tuples of choices, except the ranges `units`, `dropout` and `learning_rate`.

    A range is (low, high), for `units` perhaps (low, high, step); one of one number, or with equal ends, is fixed.
    `steps` are the time steps per WHILE iteration that the loop lowering is tried with. The methods take the signature
    of the data because it narrows what is legal: a loop has no more steps than the sequence has frames, only tokens
    are embedded. `quantize_head` is no choice but holds for all: whether brisk's own lowerings narrow the head too.
    """

    cell: tuple[str, ...] = ("lstm", "gru", "mingru")
    units: tuple[int, ...] = (16, 128, 16)
    layers: tuple[int, ...] = (1,)
    bidirectional: tuple[bool, ...] = (False,)
    frame_stack: tuple[int, ...] = (1,)
    readout: tuple[str, ...] = ("last",)
    embedding: tuple[int, ...] = (32,)
    dropout: tuple[float, ...] = (0.0,)
    learning_rate: tuple[float, ...] = (1e-3, 1e-2)
    sparsity: tuple[float, ...] = (0.0,)
    bits: tuple[str, ...] = ("32", "8")
    lowering: tuple[str, ...] = ("loop", "scan")
    steps: tuple[int, ...] = (1, 4)
    batch: tuple[int, ...] = (1,)
    quantize_head: bool = False

    def check(self, kind: str, time_steps: int | None = None) -> None:
        """Raise SpecError, naming key and value, where the space asks for what cannot be built for the task.

        `kind` is the task's; `time_steps` the length of its sequences, once the data are known.
        """
        for key, problem in self.problems(kind, time_steps):
            raise SpecError(f"space.{key}: {problem}")

    def problems(self, kind: str, time_steps: int | None = None) -> Iterator[tuple[str, str]]:
        """Every (key, what is wrong with its value and what to do), those of single keys before those between keys."""
        faulty = list(self._own_problems())
        yield from faulty
        if not faulty:
            yield from self._joint_problems(kind, time_steps)

    def sample(self, trial: Trial, signature: Signature, *, distillation: Sequence[float] = (0.0,)) -> Genotype:
        """Draw a point; the same trial gives the same point again. `distillation` are the alphas of `[training]`.

        A choice that depends on the cell or the lowering is named after what there is to choose from
        ("bits.32-8-rec8"), because Optuna freezes the choices of a name for a whole study.
        """
        embedding = self.embedding if signature.vocabulary else (Architecture.embedding,)
        architecture = Architecture(
            cell=_choose(trial, "cell", self.cell),
            units=_whole(trial, "units", self.units),
            layers=_choose(trial, "layers", self.layers),
            bidirectional=_choose(trial, "bidirectional", self.bidirectional),
            frame_stack=_choose(trial, "frame_stack", self.frame_stack),
            readout=_choose(trial, "readout", self.readout),
            embedding=_choose(trial, "embedding", embedding),
            dropout=_real(trial, "dropout", self.dropout),
        )
        training = Training(
            learning_rate=_real(trial, "learning_rate", self.learning_rate, log=True),
            distillation=_choose(trial, "distillation", tuple(distillation)),
            sparsity=_choose(trial, "sparsity", self.sparsity),
        )
        lowering = _choose_named(trial, "lowering", self._lowerings(architecture.cell))
        deployment = Deployment(
            lowering=lowering,
            steps=_choose_named(trial, "steps", self._steps(lowering, architecture, signature)),
            bits=_choose_named(trial, "bits", self._bits(architecture.cell, lowering)),
            batch=_choose(trial, "batch", self.batch),
        )
        return Genotype(architecture, training, deployment)

    def parameters(
        self, genotype: Genotype, signature: Signature, *, distillation: Sequence[float] = (0.0,)
    ) -> dict[str, Any]:
        """The inverse of `sample`: the Optuna parameters that draw this genotype. Raises SpecError if none do."""
        replay = _Replay(genotype)
        if self.sample(replay, signature, distillation=distillation) != genotype:
            raise SpecError(f"the candidate {genotype} lies outside the space; widen [space] to hold it")
        return replay.parameters

    def deployments(self, architecture: Architecture, signature: Signature) -> tuple[Deployment, ...]:
        """Every legal form in which a trained model of this architecture can be served, in a fixed order."""
        return tuple(
            Deployment(lowering, steps, bits, batch)
            for lowering in self._lowerings(architecture.cell)
            for steps, bits, batch in product(
                self._steps(lowering, architecture, signature), self._bits(architecture.cell, lowering), self.batch
            )
        )

    def _lowerings(self, cell: str) -> tuple[str, ...]:
        legal = (lowering for lowering in self.lowering if lowering in CELLS[cell].lowerings)
        return tuple(lowering for lowering in legal if self._bits(cell, lowering))

    def _bits(self, cell: str, lowering: str) -> tuple[str, ...]:
        legal = legal_bits(cell, lowering)
        return tuple(bits for bits in self.bits if bits in legal)

    def _steps(self, lowering: str, architecture: Architecture, signature: Signature) -> tuple[int, ...]:
        if lowering != "loop":
            return (1,)
        frames = -(-signature.time_steps // architecture.frame_stack)
        return tuple(dict.fromkeys(min(steps, frames) for steps in self.steps))

    def _own_problems(self) -> Iterator[tuple[str, str]]:
        for row in fields(self):
            if row.name == "quantize_head":
                continue
            values = getattr(self, row.name)
            if not values:
                yield row.name, "got an empty list; name at least one value"
            elif row.name in _RANGES:
                yield from ((row.name, problem) for problem in _range_problems(row.name, values))
            else:
                wrong = [value for value in values if not _LEGAL[row.name][0](value)]
                yield from ((row.name, f"got {value!r}; {_advice(row.name, value)}") for value in wrong)
                if len(set(values)) < len(values):
                    yield row.name, f"got {list(values)!r}, where a value is named twice; name each once"

    def _joint_problems(self, kind: str, time_steps: int | None) -> Iterator[tuple[str, str]]:
        if kind == "tagging" and self.frame_stack != (1,):
            yield (
                "frame_stack",
                f"got {list(self.frame_stack)}; tagging answers at every step, so leave the key out",
            )
        if kind == "tagging" and self.readout != ("last",):
            yield "readout", f"got {list(self.readout)}; tagging reads every step, so leave the key out"
        if self.quantize_head and set(self.lowering) <= {"keras"}:
            yield "quantize_head", "got true, but the stock converter decides that itself; leave the key out"
        if time_steps is not None and max(self.frame_stack) > time_steps:
            yield "frame_stack", f"got {max(self.frame_stack)}; the sequences have only {time_steps} time steps"
        for cell in self.cell:
            lowerings = CELLS[cell].lowerings
            if not set(lowerings) & set(self.lowering):
                yield "lowering", f"got {list(self.lowering)}; {cell} can be served by {' or '.join(lowerings)} only"
            elif not self._lowerings(cell):
                legal = dict.fromkeys(bits for lowering in lowerings for bits in legal_bits(cell, lowering))
                yield "bits", f"got {list(self.bits)}, none of which fits {cell}; it takes {', '.join(legal)}"


@dataclass(frozen=True)
class _Replay:
    """A trial that answers as the genotype says and keeps what it was asked."""

    genotype: Genotype
    parameters: dict[str, Any] = field(default_factory=dict)

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
        key = name.split(".")[0]
        groups = (self.genotype.architecture, self.genotype.training, self.genotype.deployment)
        self.parameters[name] = next(getattr(group, key) for group in groups if hasattr(group, key))
        return self.parameters[name]


_RANGES: dict[str, tuple[float, float, str]] = {
    "units": (1, MAX_UNITS, f"whole numbers from 1 to {MAX_UNITS}, as [low, high] or [low, high, step]"),
    "dropout": (0.0, 0.9, "shares from 0 to 0.9, as [low, high]"),
    "learning_rate": (1e-7, 1.0, "numbers from 1e-7 to 1, as [low, high]"),
}

_LEGAL: dict[str, tuple[Callable[[Any], bool], str | Iterable[str]]] = {
    "cell": (CELLS.__contains__, CELLS),
    "layers": (lambda n: 1 <= n <= MAX_LAYERS, f"from 1 to {MAX_LAYERS} layers can be stacked"),
    "bidirectional": (lambda _: True, ""),
    "frame_stack": (lambda n: n >= 1, "frames are stacks of 1 or more time steps"),
    "readout": (READOUTS.__contains__, READOUTS),
    "embedding": (lambda n: 1 <= n <= MAX_UNITS, f"tokens are embedded in 1 to {MAX_UNITS} numbers"),
    "sparsity": (lambda share: 0 <= share < 1, "the share of zeros is at least 0 and less than 1"),
    "bits": (BITS.__contains__, BITS),
    "lowering": (LOWERINGS.__contains__, LOWERINGS),
    "steps": (lambda n: n >= 1, "an iteration works off 1 or more time steps"),
    "batch": (lambda n: n >= 1, "a call takes 1 or more sequences"),
}


def _advice(key: str, value: Any) -> str:
    if key == "cell" and ":" in value:
        return f"cells of your own are not searched yet; name some of {', '.join(CELLS)}"
    remedy = _LEGAL[key][1]
    return remedy if isinstance(remedy, str) else nearest(value, remedy)


def _range_problems(key: str, values: tuple[float, ...]) -> Iterator[str]:
    lowest, highest, shape = _RANGES[key]
    if len(values) > (3 if key == "units" else 2):
        yield f"got {list(values)}, which has too many numbers; give {shape}"
    elif len(values) == 3 and values[2] < 1:
        yield f"got a step of {values[2]}; give {shape}, the step at least 1"
    elif len(values) > 1 and values[0] > values[1]:
        yield f"got {list(values)}, where low exceeds high; swap them"
    elif not lowest <= values[0] <= values[min(1, len(values) - 1)] <= highest:
        yield f"got {list(values)}; give {shape}"


def _choose(trial: Trial, name: str, choices: Sequence[Any]) -> Any:
    return choices[0] if len(choices) == 1 else trial.suggest_categorical(name, choices)


def _choose_named(trial: Trial, name: str, choices: Sequence[Any]) -> Any:
    return _choose(trial, f"{name}.{'-'.join(map(str, choices))}", choices)


def _whole(trial: Trial, name: str, values: tuple[int, ...]) -> int:
    low, high = values[0], values[min(1, len(values) - 1)]
    step = values[2] if len(values) == 3 else 1
    return low if high - low < step else trial.suggest_int(name, low, high - (high - low) % step, step=step)


def _real(trial: Trial, name: str, values: tuple[float, ...], *, log: bool = False) -> float:
    low, high = values[0], values[-1]
    return low if low == high else trial.suggest_float(name, low, high, log=log)
