"""TensorFlow-free facts of each cell and each bit width: what the space may name, and what each means."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CellFacts:
    """What the search must know of a cell; `place` is where its class is found."""

    place: str
    lowerings: tuple[str, ...]
    recurrent_matrix: bool  # whether a step multiplies the state by a matrix (else "rec8", "rec4", rank mean nothing)
    removable: bool = True  # whether whole units can be cut out of a trained layer, by the axes its weights declare


CELLS: dict[str, CellFacts] = {
    "lstm": CellFacts("spaces.cells.gated:LSTM", ("loop", "keras"), True),
    "gru": CellFacts("spaces.cells.gated:GRU", ("loop", "keras"), True),
    "simple_rnn": CellFacts("spaces.cells.gated:SimpleRNN", ("loop", "keras"), True),
    "fastgrnn": CellFacts("spaces.cells.fast:FastGRNN", ("loop",), True),
    "fastrnn": CellFacts("spaces.cells.fast:FastRNN", ("loop",), True),
    "lstmp": CellFacts("spaces.cells.light:LSTMP", ("loop",), True, removable=False),
    "cifg": CellFacts("spaces.cells.light:CIFG", ("loop",), True),
    "mgu": CellFacts("spaces.cells.light:MGU", ("loop",), True),
    "ligru": CellFacts("spaces.cells.light:LiGRU", ("loop",), True),
    "indrnn": CellFacts("spaces.cells.elementwise:IndRNN", ("loop",), False),
    "sru": CellFacts("spaces.cells.elementwise:SRU", ("loop",), False, removable=False),
    "qrnn": CellFacts("spaces.cells.linear:QRNN", ("scan", "loop"), False),
    "mingru": CellFacts("spaces.cells.linear:MinGRU", ("scan", "loop"), False),
    "qrnn_f": CellFacts("spaces.cells.linear:QRNNF", ("scan", "loop"), False),
    "qrnn_ifo": CellFacts("spaces.cells.linear:QRNNIFO", ("scan", "loop"), False),
    "sru1": CellFacts("spaces.cells.linear:SRU1", ("scan", "loop"), False, removable=False),
    "minlstm": CellFacts("spaces.cells.linear:MinLSTM", ("scan", "loop"), False),
    "mingru_signed": CellFacts("spaces.cells.linear:SignedMinGRU", ("scan", "loop"), False),
    "lru": CellFacts("spaces.cells.state_space:LRU", ("scan", "loop"), False),
    "mamba": CellFacts("spaces.cells.state_space:Mamba", ("scan", "loop"), False, removable=False),
    "tcn": CellFacts("spaces.cells.tcn:TCN", ("parallel",), False, removable=False),
    "attention": CellFacts("spaces.cells.attention:Attention", ("parallel",), False, removable=False),
    "linear_attention": CellFacts("spaces.cells.attention:LinearAttention", ("parallel",), False, removable=False),
}


@dataclass(frozen=True)
class Step:
    """What a time step of a cell costs: matrices of units x units, elementwise operations, transcendentals a unit."""

    gates: int
    operations: int
    transcendentals: int


STEPS: dict[str, Step] = {
    "lstm": Step(4, 11, 5),
    "gru": Step(3, 9, 3),
    "simple_rnn": Step(1, 2, 1),
    "fastgrnn": Step(1, 7, 2),
    "fastrnn": Step(1, 5, 1),
    "lstmp": Step(10, 11, 10),
    "cifg": Step(3, 9, 4),
    "mgu": Step(2, 9, 2),
    "ligru": Step(2, 6, 1),
    "indrnn": Step(1, 3, 0),
    "sru": Step(4, 12, 2),
    "qrnn": Step(3, 4, 2),
    "mingru": Step(2, 4, 1),
    "tcn": Step(2, 2, 0),
    "attention": Step(8, 12, 2),
    "linear_attention": Step(8, 10, 2),
    "qrnn_f": Step(2, 3, 2),
    "qrnn_ifo": Step(4, 4, 4),
    "sru1": Step(4, 7, 2),
    "minlstm": Step(3, 5, 2),
    "mingru_signed": Step(3, 5, 3),
    "lru": Step(3, 3, 2),
    "mamba": Step(5, 12, 5),
}

BITS: dict[str, str] = {
    "32": "float32",
    "16": "float16 weights, float32 arithmetic: smaller, not faster",
    "8": "int8 weights of every matrix but the head, activations quantised at each call",
    "rec8": "int8 recurrent matrices, the rest float32",
    "rec4": "int4 recurrent matrices, int8 input projections, float32 head",
    "4": "int4 weights of every matrix but the head",
    "full8": "static int8, weights and activations, by the stock converter (kills its process on a WHILE graph)",
    "full16x8": "static int8 weights and int16 activations, likewise: for accelerators, slow on a CPU",
}

WEIGHT_BYTES = {"32": 4.0, "16": 2.0, "8": 1.0, "rec8": 1.2, "rec4": 0.6, "4": 0.5, "full8": 1.0, "full16x8": 1.0}
"""Bytes a weight that a step reads, about: of "rec8" and "rec4" the mean over matrices."""

STATIC_BITS = ("full8", "full16x8")
"""What the stock converter makes of any lowering, calibrated on data: every operation in integers."""

STOCK_BITS = ("32", "16", "8", *STATIC_BITS)
"""What the stock converter can be asked for, on the "keras" lowering."""

QAT_BITS = ("8", "rec8", "rec4", "4")
"""What weights can be trained for: the widths on integer grids that brisk's own lowerings are narrowed to."""

ROLES = ("embedding", "input", "recurrent", "head")
"""The parts that a matrix can play."""

_ASKED: dict[str, dict[str, int]] = {
    "16": dict.fromkeys(ROLES, 16),
    "8": {"embedding": 8, "input": 8, "recurrent": 8},
    "rec8": {"recurrent": 8},
    "rec4": {"embedding": 8, "input": 8, "recurrent": 4},
    "4": {"embedding": 4, "input": 4, "recurrent": 4},
    **{bits: dict.fromkeys(ROLES, 8) for bits in STATIC_BITS},
}
_HEAD = {"8": 8, "rec8": 8, "rec4": 8, "4": 4}  # where the head is asked for too


def asked_bits(bits: str, *, head: bool = False) -> dict[str, int]:
    """The width that a request asks for by role of a matrix; roles not named are left as they are.

    `head` asks for a narrow head too, where the width alone does not.
    """
    return _ASKED.get(bits, {}) | ({"head": _HEAD[bits]} if head and bits in _HEAD else {})


def legal_bits(cell: str, lowering: str) -> tuple[str, ...]:
    """The bit widths that mean something for this cell in this lowering."""
    if lowering == "keras":
        return STOCK_BITS
    if CELLS[cell].recurrent_matrix:
        return tuple(BITS)
    return tuple(bits for bits in BITS if not bits.startswith("rec"))
