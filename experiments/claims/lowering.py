"""What a file takes to make, on one core, where TensorFlow is imported: `python -m experiments.claims.lowering`.

Of the cells, frames and forms of the preset `digits`, 32 units: a float file by brisk and by TFLiteConverter of the
same graph (`deployment.lower`); one with other weights, converted anew and poured; and a narrow file of that, by the
quantizer and filled (`deployment.pour`). Each pair in turns, medians of `ROUNDS`. Promised: in each pair one has the
graph and the constants of the other, poured and narrow files to the byte. Writes `lowering.json`; ends with 1 where one
differs.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

from experiments.claims.files import tell
from experiments.spec import read
from objectives.deployment.interpreter import read_graph
from objectives.deployment.lower import finished, lower, traced
from objectives.deployment.pour import distinct, narrowed, plain, poured
from objectives.deployment.quantize import quantize
from spaces.backend import tf
from spaces.build import Weights, build, cell_of, weights_of
from spaces.catalog import STATIC_BITS
from spaces.genotype import Architecture, Deployment
from spaces.signature import Signature

UNITS, ROUNDS = 32, 5
SIGNATURE = Signature("classification", 64, 1, 10, mean=(4.9,), std=(6.0,))


def main() -> int:
    """Time each pair on each graph, and say by how much one is faster."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    space = read("digits", ()).space
    widths = [bits for bits in space.bits if bits not in ("32", *STATIC_BITS)]
    rows: list[dict[str, Any]] = []
    differing: list[str] = []
    for cell, frames in product(space.cell, space.frame_stack):
        architecture = Architecture(cell, UNITS, frame_stack=frames)
        for form in dict.fromkeys(replace(one, bits="32") for one in space.deployments(architecture, SIGNATURE)):
            row: dict[str, Any] = {"cell": cell, "frames": frames, "lowering": form.lowering, "steps": form.steps}
            pairs = measured(architecture, form, widths)
            differing += [f"{row}: {name}" for name, (_, _, alike) in pairs.items() if not alike]
            rows.append(row | {name: [theirs, mine] for name, (theirs, mine, _) in pairs.items()})
    print("| | brisk, ms | in place of, ms | times faster | of graphs |\n|---|---|---|---|---|")
    summary = {}
    for name in ("converted", "poured", "narrow"):
        theirs, mine = (statistics.median(1e3 * row[name][place] for row in rows) for place in (0, 1))
        gains = [row[name][0] / row[name][1] for row in rows]
        summary[name] = {"ms": mine, "in_place_of_ms": theirs, "faster": statistics.median(gains)}
        print(f"| {name} | {mine:.1f} | {theirs:.1f} | {min(gains):.1f} to {max(gains):.1f} | {len(rows)} |")
    tell(__file__, {"rounds": ROUNDS, "summary": summary, "differing": differing, "graphs": rows})
    for one in differing:
        print(f"MISSED {one}")
    return int(bool(differing))


def measured(architecture: Architecture, form: Deployment, widths: list[str]) -> dict[str, tuple[float, float, bool]]:
    """By pair: seconds of the usual way and of brisk's, and whether they come to the same."""
    cell, weights = cell_of(architecture), weights_of(build(architecture, SIGNATURE, 0))
    first, other = distinct(weights), distinct(weights, seed=1)
    known, converted = lower(architecture, SIGNATURE, first, form), partial(lower, architecture, SIGNATURE)
    stock, mine = in_turns(lambda: by_stock(architecture, SIGNATURE, first, form), lambda: converted(first, form))
    anew, filled = in_turns(
        lambda: converted(other, form),
        lambda: poured(known, SIGNATURE, plain(first, cell), plain(other, cell)),
    )
    narrow = [
        in_turns(partial(quantize, anew[1], bits), partial(narrowed, quantize(known, bits), known, anew[1]))
        for bits in widths
    ]
    return {
        "converted": (stock[0], mine[0], told(stock[1]) == told(mine[1])),
        "poured": (anew[0], filled[0], anew[1] == filled[1]),
        "narrow": (
            statistics.mean(theirs[0] for theirs, _ in narrow),
            statistics.mean(ours[0] for _, ours in narrow),
            all(theirs[1] == ours[1] for theirs, ours in narrow),
        ),
    }


def in_turns(*ways: Callable[[], bytes | None]) -> list[tuple[float, bytes]]:
    """The median seconds of each, and what it made."""
    seconds: list[list[float]] = [[] for _ in ways]
    made = [b""] * len(ways)
    for _ in range(ROUNDS):
        for place, way in enumerate(ways):
            began = time.perf_counter()
            made[place] = way() or b""
            seconds[place].append(time.perf_counter() - began)
    return [(statistics.median(each), content) for each, content in zip(seconds, made, strict=True)]


def by_stock(architecture: Architecture, signature: Signature, weights: Weights, form: Deployment) -> bytes:
    """The same graph by TFLiteConverter, by the shortest way that it has."""
    function = traced(architecture, signature, weights, form)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
    converter.experimental_lower_to_saved_model, converter.exclude_conversion_metadata = False, True
    return finished(converter.convert())


def told(content: bytes) -> list[Any]:
    """A graph but for the places of its constants in the file."""
    graph = read_graph(content)
    data = [None if each.data is None else bytes(each.data) for each in graph.buffers]
    return [
        (
            [(op.opcodeIndex, list(op.inputs), list(op.outputs)) for op in part.operators],
            [
                (one.name, one.type, [] if one.shape is None else list(one.shape), data[one.buffer])
                for one in part.tensors
            ],
        )
        for part in graph.subgraphs
    ]


if __name__ == "__main__":
    sys.exit(main())
