"""How long every cell takes at equal width, in one interleaved sitting; ratios to the LSTM in brisk's own loop."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from objectives.deployment.lower import lower
from objectives.deployment.quantize import quantize
from objectives.latency.devices.local import Local, processor
from objectives.outcome import Conditions, Measurement
from spaces.build import build, weights_of
from spaces.catalog import CELLS
from spaces.genotype import Architecture, Deployment
from spaces.signature import Signature

TIME, FEATURES, UNITS, STEPS = 100, 32, 128, 4
KINDS = {"last": "classification", "sequence": "tagging"}
CONDITIONS = Conditions(timeout_s=240.0, half_width=0.03)


def timed() -> dict[str, Any]:
    """Microseconds of every cell, last state and whole sequence, weights in 8 bits, and times the LSTM's."""
    found: dict[str, Any] = {}
    for read, kind in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = {cell: _file(Path(folder), cell, kind) for cell in CELLS}
            sitting = Local().measure(list(paths.values()), CONDITIONS)
        figures = dict(zip(paths, sitting, strict=True))
        loop = figures["lstm"]
        assert isinstance(loop, Measurement)
        for cell, figure in figures.items():
            assert isinstance(figure, Measurement), figure
            found.setdefault(cell, {})[read] = {
                "us": round(1000 * figure.median_ms, 2),
                "over_lstm": round(loop.median_ms / figure.median_ms, 2),
                "relative_interval": round((figure.ci_ms[1] - figure.ci_ms[0]) / figure.median_ms, 3),
            }
    where = {"time": TIME, "features": FEATURES, "units": UNITS, "batch": 1, "threads": 1, "bits": "8"}
    return {"conditions": {**where, "processor": processor()}, "cells": found}


def _file(folder: Path, cell: str, kind: str) -> Path:
    """A .tflite of one layer with random weights, in the cell's own first lowering."""
    signature = Signature(kind, TIME, FEATURES, 10)
    architecture = Architecture(cell, UNITS)
    weights = weights_of(build(architecture, signature, 0))
    lowering = CELLS[cell].lowerings[0]
    form = Deployment(lowering, STEPS if lowering == "loop" else 1)
    path = folder / f"{cell}.tflite"
    path.write_bytes(quantize(lower(architecture, signature, weights, form), "8"))
    return path
