"""What is asked of a rewriting, the ways there are to try, and what is known of each that was tried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

STEPS = (1, 2, 4, 8)
UNROLLED = 64  # time steps up to which a loop without an iteration is tried: longer ones load slowly and gain nothing
JOINED = ("32", "16", "8", "4")  # input and recurrent matrix are one
OURS = ("32", "16", "8", "rec8", "rec4", "4")
STOCK = ("32", "8", "16")
STATIC = ("full8",)
EXACT = 1e-5  # of outputs, relative to the largest: what float32 alone may change
ROUNDED = 1e-2  # of outputs, relative: what rounding may come to where they are small differences of large numbers
JUDGED_ROWS = (50, 2000)  # rows that every form is judged on, at least and at most; the chosen one is judged on all
JUDGED_S = 4.0  # that judging a form as slow as the original may take, between these
STREAMED = ("32", "8", "rec8", "rec4", "4")  # widths of the streaming form


def only_rounded(difference: float, error: float, bits: str) -> bool:
    """Whether a largest and a relative difference (`work.compared`) are what float32 alone may change. Outputs may be
    so small that what is lost to narrow weights is small too: of those it is the relative difference that counts.
    """
    return difference <= EXACT and error <= (ROUNDED if bits == "32" else EXACT)


@dataclass(frozen=True)
class Request:
    """A model, what it is judged on, and the one batch and length that it is rewritten for.

    `data` is as in a spec's `[task]`; `kind` is "" where it follows from labels and outputs. `folder` is where files
    go that the processes share.
    """

    model: str
    folder: str
    custom: tuple[str, ...] = ()
    unsafe: bool = False
    data: str = ""
    kind: str = ""
    root: str = ""
    batch: int = 1
    time_steps: int | None = None


@dataclass(frozen=True)
class Way:
    """A form of the recurrent layers (`spaces.lowering.rewrite.Form`) with the bit widths to try it in.

    `bits` of the stock converter where `stock`, else of brisk's own quantising; "full8" is the stock converter's.
    """

    name: str
    lowering: str
    steps: int = 1
    stacked: bool = False
    projection: str = "ahead"
    stock: bool = False
    bits: tuple[str, ...] = OURS


@dataclass(frozen=True)
class Tried:
    """One file that was made, or was to be made: `reason` says why there is none."""

    name: str  # "loop/4 rec8"
    way: str
    bits: str
    stock: bool = False
    file: str = ""  # in the shared folder
    size_bytes: int = 0
    sha256: str = ""
    realised_bits: dict[str, int] = field(default_factory=dict)
    output_error: float | None = None  # relative root mean square difference from the original's outputs
    max_difference: float | None = None  # relative to the largest output, where that is over 1
    scores: dict[str, float] = field(default_factory=dict)  # the metric by output
    drop: float | None = None  # of the metric, the worst output's; None without labels
    keeps_state: bool = False  # between calls, so that the caller must reset it
    reason: str = ""

    @property
    def exact(self) -> bool:
        """Whether only the rounding of float32 tells it from the original."""
        error = self.output_error or 0.0
        return self.max_difference is not None and only_rounded(self.max_difference, error, self.bits)


def ways(facts: dict[str, Any], *, batch: int = 1, calibrate: bool = False) -> list[Way]:
    """What to try, the slowest to make first, and last what may kill its process; `facts` are those of `work.look`.

    `calibrate`: whether there are data that static integers can be calibrated on.
    """
    if facts["family"] == "SavedModel":
        stock = Way("as it is", "graph", stock=True, bits=STOCK)
        return [stock, Way("brisk", "graph"), *([replace(stock, bits=STATIC)] * calibrate)]
    own, other = ("keras3", "fused") if facts["family"] == "Keras 3" else ("fused", "keras3")
    stock = Way(CONVERTED[own], own, stock=True, bits=STOCK)
    static = [replace(stock, bits=STATIC)] * calibrate
    if not facts["recurrent"]:
        return [stock, Way("brisk", "loop", bits=tuple(bits for bits in OURS if not bits.startswith("rec"))), *static]
    foreign = Way(CONVERTED[other], other, stock=True, bits=STOCK[:2])
    loops = list(_loops(facts, ("ahead" if batch == 1 else "inside", "joined" if facts["joins"] else "inside")))
    return [stock, foreign, *loops, *static, *([Way("loop", "loop", bits=STATIC)] * calibrate)]


CONVERTED = {"keras3": "Keras 3", "fused": "Keras 2"}
"""The lowering that a Keras has -> what people call it."""


def _loops(facts: dict[str, Any], projections: Sequence[str]) -> Iterator[Way]:
    """Loops of brisk's. With a batch over 1 the gates of all steps at once leave the cache, so nothing goes ahead."""
    time = facts["time_steps"]
    for steps in [steps for steps in STEPS if steps == 1 or 2 * steps <= time] + [time] * (1 < time <= UNROLLED):
        unrolled = steps == time > 1
        behind = " unrolled" if unrolled else f"/{steps}" if steps > 1 else ""
        for projection in dict.fromkeys(projections[-1:] if unrolled else projections):
            name, bits = NAMES[projection], JOINED if projection == "joined" else OURS
            yield Way(f"{name}{behind}", "loop", steps, projection=projection, bits=bits)
            if facts["stacked"] and not unrolled:
                yield Way(f"stacked {name}{behind}", "loop", steps, stacked=True, projection=projection, bits=bits)


NAMES = {"ahead": "loop", "inside": "loop in", "joined": "joined"}
"""Where the inputs are multiplied -> what the form is called."""
