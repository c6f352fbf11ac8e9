"""The ranges a study searches, and how a point is drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from typing import Any

from spaces.catalog import BITS, CELLS, QAT_BITS, legal_bits
from spaces.errors import SpecError, nearest
from spaces.gene import Gene, Trial
from spaces.genotype import Architecture, Deployment, Genotype, Training, kept_units
from spaces.hyperspace import KEYS, Hyperspace
from spaces.signature import Signature

LOWERINGS = ("loop", "scan", "parallel", "keras")
READOUTS = ("last", "mean", "attention")
MAX_LAYERS = 3
MAX_UNITS = 4096


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
    rank: tuple[int, ...] = (0,)
    residual: tuple[bool, ...] = (False,)
    brick: tuple[int, ...] = (0,)
    learning_rate: tuple[float, ...] = (1e-3, 1e-2)
    sparsity: tuple[float, ...] = (0.0,)
    block: tuple[int, ...] = (1,)
    pruned_units: tuple[float, ...] = (0.0,)
    qat: tuple[str, ...] = ("",)
    bits: tuple[str, ...] = ("32", "8")
    lowering: tuple[str, ...] = ("loop", "scan", "parallel")
    steps: tuple[int, ...] = (1, 4)
    batch: tuple[int, ...] = (1,)
    quantize_head: bool = False
    hypermodel: str = ""  # "module:build", whose models are searched in place of cells
    genes: tuple[Gene, ...] = field(default=(), metadata={"unwritten": True})  # its hyperparameters, once known

    @property
    def own(self) -> Hyperspace | None:
        """What there is to choose of the user's hypermodel and its deployment; None where the cells are brisk's."""
        if not self.hypermodel:
            return None
        chosen = (self.learning_rate, self.bits, self.lowering, self.steps, self.batch)
        return Hyperspace(self.hypermodel, self.genes, *chosen)

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
            yield from self.own.problems() if self.own else self._joint_problems(kind, time_steps)

    def sample(
        self,
        trial: Trial,
        signature: Signature,
        *,
        distillation: Sequence[float] = (0.0,),
        hints: Sequence[float] = (0.0,),
    ) -> Genotype:
        """Draw a point; the same trial gives the same point again. `distillation` and `hints` are `[training]`'s.

        Hints are drawn for what is distilled alone: without a teacher they would be trials of one and the same thing.

        A choice that depends on the cell or the lowering is named after what there is to choose from
        ("bits.32-8-rec8"), because Optuna freezes the choices of a name for a whole study.
        """
        if self.own:
            return self.own.sample(trial, signature)
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
        architecture = self._with_knobs(trial, architecture, signature)
        alpha = _choose(trial, "distillation", tuple(distillation))
        sparsity = _choose(trial, "sparsity", self.sparsity)
        training = Training(
            learning_rate=_real(trial, "learning_rate", self.learning_rate, log=True),
            distillation=alpha,
            hints=_choose(trial, "hints", tuple(hints)) if alpha > 0 else 0.0,
            sparsity=sparsity,
            block=_choose(trial, "block", self.block) if sparsity else 1,
            pruned_units=_choose_named(trial, "pruned_units", self._pruned(architecture)),
            qat=_choose_named(trial, "qat", self._trained_for(architecture)),
        )
        lowering = _choose_named(trial, "lowering", self._lowerings(architecture, training.qat))
        deployment = Deployment(
            lowering=lowering,
            steps=_choose_named(trial, "steps", self._steps(lowering, architecture, signature)),
            bits=_choose_named(trial, "bits", self._bits(architecture.cell, lowering, training.qat)),
            batch=_choose(trial, "batch", self.batch),
        )
        return Genotype(architecture, training, deployment)

    def parameters(
        self,
        genotype: Genotype,
        signature: Signature,
        *,
        distillation: Sequence[float] = (0.0,),
        hints: Sequence[float] = (0.0,),
    ) -> dict[str, Any]:
        """The inverse of `sample`: the Optuna parameters that draw this genotype. Raises SpecError if none do."""
        if self.own:
            return self.own.parameters(genotype, signature)
        replay = _Replay(genotype)
        if self.sample(replay, signature, distillation=distillation, hints=hints) != genotype:
            raise SpecError(f"the candidate {genotype} lies outside the space; widen [space] to hold it")
        return replay.parameters

    def deployments(self, architecture: Architecture, signature: Signature, qat: str = "") -> tuple[Deployment, ...]:
        """Every legal form in which a trained model of this architecture can be served, in a fixed order.

        One whose weights were trained for some bits (`qat`) is served in those alone.
        """
        if self.own:
            return self.own.deployments(signature)
        return tuple(
            Deployment(lowering, steps, bits, batch)
            for lowering in self._lowerings(architecture, qat)
            for steps, bits, batch in product(
                self._steps(lowering, architecture, signature), self._bits(architecture.cell, lowering, qat), self.batch
            )
        )

    def _with_knobs(self, trial: Trial, plain: Architecture, signature: Signature) -> Architecture:
        """With the knobs that mean something for this cell, depth, width and data, each drawn from what is legal."""
        if not self._lowerings(replace(plain, rank=1)):  # the stock converter alone serves it: no layer of ours
            return plain
        ranks = tuple(rank for rank in self.rank if rank == 0 or self._factors(plain, rank))
        frames = -(-signature.time_steps // plain.frame_stack)
        bricks = tuple(brick for brick in self.brick if 2 * brick <= frames and not (brick and signature.sequences))
        deep = plain.layers > 1 and not plain.bidirectional
        return replace(
            plain,
            rank=_choose_named(trial, "rank", ranks or (0,)),
            residual=_choose(trial, "residual", self.residual) if deep else False,
            brick=_choose_named(trial, "brick", bricks or (0,)),
        )

    def _factors(self, architecture: Architecture, rank: int) -> bool:
        """Whether factors of this rank are fewer weights than the matrix; for a square one, below half its side."""
        return CELLS[architecture.cell].recurrent_matrix and 2 * rank <= architecture.units

    def _pruned(self, architecture: Architecture) -> tuple[float, ...]:
        """The shares of units that can be cut out of its layers, one for every number of units that is left."""
        shares: dict[int, float] = {}
        for share in self.pruned_units if CELLS[architecture.cell].removable else ():
            units = kept_units(architecture.units, share)
            factors = not architecture.rank or self._factors(replace(architecture, units=units), architecture.rank)
            if not share or (units < architecture.units and factors):
                shares.setdefault(units, share)
        return tuple(shares.values()) or (0.0,)

    def _trained_for(self, architecture: Architecture) -> tuple[str, ...]:
        """The bits that its weights can be trained for: those that one of our own lowerings serves."""
        return tuple(qat for qat in self.qat if self._lowerings(architecture, qat)) or ("",)

    def _lowerings(self, architecture: Architecture, qat: str = "") -> tuple[str, ...]:
        cell = architecture.cell
        legal = (lowering for lowering in self.lowering if lowering in CELLS[cell].lowerings)
        buildable = (lowering for lowering in legal if lowering != "keras" or architecture.stock)
        return tuple(lowering for lowering in buildable if self._bits(cell, lowering, qat))

    def _bits(self, cell: str, lowering: str, qat: str = "") -> tuple[str, ...]:
        legal = legal_bits(cell, lowering)
        if qat:  # the stock converter rounds other matrices, on a grid of its own
            legal = (qat,) if qat in legal and lowering != "keras" else ()
        return tuple(bits for bits in self.bits if bits in legal)

    def _steps(self, lowering: str, architecture: Architecture, signature: Signature) -> tuple[int, ...]:
        if lowering != "loop":
            return (1,)
        whole = looped(architecture, signature.time_steps)
        return tuple(dict.fromkeys(min(steps, whole) for steps in self.steps))

    def _own_problems(self) -> Iterator[tuple[str, str]]:
        for row in fields(self):
            if row.name in ("quantize_head", "hypermodel", "genes"):
                continue
            if self.own and (row.name not in KEYS or row.name == "lowering"):
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
        if kind == "tagging" and self.brick != (0,):
            yield "brick", f"got {list(self.brick)}; tagging answers at every step, so leave the key out"
        if time_steps is not None and 2 * max(self.brick) * min(self.frame_stack) > time_steps:
            yield "brick", f"got {max(self.brick)}; the sequences have only {time_steps} time steps, so two do not fit"
        if time_steps is not None and max(self.frame_stack) > time_steps:
            yield "frame_stack", f"got {max(self.frame_stack)}; the sequences have only {time_steps} time steps"
        if max(self.rank) and not any(CELLS[cell].recurrent_matrix for cell in self.cell):
            yield "rank", f"got {list(self.rank)}, but no cell here has a recurrent matrix; leave the key out"
        if max(self.rank) and not any(0 < 2 * rank <= self.units[min(1, len(self.units) - 1)] for rank in self.rank):
            yield "rank", f"got {list(self.rank)}; a rank above half the units saves nothing, and units ends earlier"
        if max(self.pruned_units) and not any(CELLS[cell].removable for cell in self.cell):
            cells = ", ".join(self.cell)
            yield "pruned_units", f"got {list(self.pruned_units)}, but {cells} has no units to cut; leave the key out"
        if missing := [qat for qat in self.qat if qat and qat not in self.bits]:
            yield "qat", f"got {missing[0]!r}, which only serves {missing[0]!r}; name it in bits too"
        if any(self.qat) and set(self.lowering) <= {"keras"}:
            yield "qat", f"got {list(self.qat)}, but the stock converter has a grid of its own; leave the key out"
        if max(self.block) > 1 and not max(self.sparsity):
            yield "block", f"got {list(self.block)}, but no zeros are asked for; name a share in sparsity"
        if True in self.residual and (max(self.layers) == 1 or False not in self.bidirectional):
            yield "residual", "got true; it joins layers of one direction, so ask for 2 or more layers, or leave it out"
        for cell in self.cell:
            lowerings = CELLS[cell].lowerings
            if not set(lowerings) & set(self.lowering):
                yield "lowering", f"got {list(self.lowering)}; {cell} can be served by {' or '.join(lowerings)} only"
            elif not self._lowerings(Architecture(cell, units=0)):
                legal = dict.fromkeys(bits for lowering in lowerings for bits in legal_bits(cell, lowering))
                yield "bits", f"got {list(self.bits)}, none of which fits {cell}; it takes {', '.join(legal)}"
            elif "attention" in self.readout and not self._lowerings(Architecture(cell, units=0, readout="attention")):
                yield "readout", f'got "attention", which "keras", the only lowering of {cell} here, does not have'


def looped(architecture: Architecture, time_steps: int) -> int:
    """How many steps a loop over sequences of so many time steps takes in all; of bricks, the longer of its two."""
    frames = -(-time_steps // architecture.frame_stack)
    return max(architecture.brick, -(-frames // architecture.brick)) if architecture.brick else frames


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
    "rank": (lambda rank: 0 <= rank <= MAX_UNITS, "the rank of the factors is at least 1, or 0 for whole matrices"),
    "residual": (lambda _: True, ""),
    "brick": (lambda n: n == 0 or n >= 2, "a brick has 2 or more time steps, or is 0 for none"),
    "sparsity": (lambda share: 0 <= share < 1, "the share of zeros is at least 0 and less than 1"),
    "block": (lambda n: 1 <= n <= MAX_UNITS, "zeros come in rows of 1 or more weights"),
    "pruned_units": (lambda share: 0 <= share < 1, "the share of units cut out is at least 0 and less than 1"),
    "qat": (("", *QAT_BITS).__contains__, QAT_BITS),
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
    elif len(values) == 3 and values[0] < values[1] < values[0] + values[2]:
        yield (
            f"got {list(values)}, whose third number is the step, and leaves {values[0]} alone; "
            f"give {shape}: a range, not a list of choices"
        )


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
