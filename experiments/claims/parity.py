"""Every cell in every form against Keras, and the table of what they differ by: `python -m experiments.claims.parity`.

Each row is one .tflite in float32, its weights, biases included, moved at random, and invoked twice on each of 64
inputs; the figure is the largest difference of a probability from the float Keras model's. One layer is tried over
every length, the deeper shapes over one. Ends with 1 where a difference exceeds 1e-5.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from objectives.deployment.interpreter import predict
from objectives.deployment.lower import lower
from spaces.build import build, put_weights, serving_model, weights_of
from spaces.catalog import CELLS
from spaces.contract import constrained
from spaces.genotype import Architecture, Deployment
from spaces.signature import PADDING, Signature

TOLERANCE, INPUTS, FEATURES, UNITS = 1e-5, 64, 4, 8
TIMES, DEEP_TIMES, BATCHES, STEPS = (1, 7, 64, 100), (7,), (1, 4), (1, 5)
SHAPES: dict[str, dict[str, Any]] = {
    "one layer": {},
    "mean": {"readout": "mean"},
    "attention pooling": {"readout": "attention"},
    "two layers, both ways": {"layers": 2, "bidirectional": True},
    "three layers": {"layers": 3},
    "frames of 3": {"frame_stack": 3},
}


def main() -> int:
    """Print the table; 0 where all is within tolerance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cell", action="append", choices=list(CELLS), help="only this cell; may be repeated")
    cells = parser.parse_args().cell or list(CELLS)
    worst, rows = 0.0, 0
    print("| cell | shape | time | mask | form | batch | largest difference |\n|---|---|---|---|---|---|---|")
    grid = [(shape, time) for shape, more in SHAPES.items() for time in (TIMES if not more else DEEP_TIMES)]
    for cell, (shape, time), masked in itertools.product(cells, grid, (False, True)):
        for form, difference in differences(Architecture(cell, UNITS, **SHAPES[shape]), time, masked):
            worst, rows = max(worst, difference), rows + 1
            name = form.lowering + (f", {form.steps} a round" if form.lowering == "loop" else "")
            told = [cell, shape, time, "yes" if masked else "no", name, form.batch, f"{difference:.1e}"]
            print("| " + " | ".join(map(str, told)) + " |", flush=True)
    print(f"\n{rows} graphs, the largest difference of all {worst:.1e}, allowed {TOLERANCE:.0e}")
    return int(worst > TOLERANCE)


def differences(architecture: Architecture, time: int, masked: bool) -> Iterator[tuple[Deployment, float]]:
    """Each form of one model, and its largest difference from Keras."""
    random = np.random.default_rng(time)
    signature = Signature("classification", time, FEATURES, 5, masked=masked)
    x = random.normal(size=(INPUTS, time, FEATURES)).astype(np.float32)
    if masked:
        x[np.arange(time) >= random.integers(1, time + 1, INPUTS)[:, None]] = PADDING
    model = build(architecture, signature, 0)
    start = weights_of(model)
    drawn = {
        name: [(w + random.normal(scale=0.2, size=w.shape)).astype(np.float32) for w in arrays]
        for name, arrays in start.items()
    }
    put_weights(model, drawn)
    drawn = weights_of(constrained(model))
    expected = np.asarray(serving_model(model, signature)(x))
    for form in forms(architecture.cell):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.tflite"
            path.write_bytes(lower(architecture, signature, drawn, form))
            got = predict(path, np.concatenate([x, x]))
        yield form, float(np.abs(got - np.concatenate([expected, expected])).max())


def forms(cell: str) -> Iterator[Deployment]:
    """Every form of brisk's own that this cell has, at each batch and number of steps a round."""
    for lowering, batch in itertools.product(CELLS[cell].lowerings, BATCHES):
        for steps in {"loop": STEPS, "scan": (1,), "parallel": (1,)}.get(lowering, ()):
            yield Deployment(lowering, steps, "32", batch)


if __name__ == "__main__":
    sys.exit(main())
