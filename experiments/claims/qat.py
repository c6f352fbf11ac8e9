"""What training for narrow weights saves: `python -m experiments.claims.qat`.

Digits read pixel by pixel, 64 steps. Each model is trained in float32, and its file judged on the test part in three
forms: float32; with int4 recurrent matrices and int8 input projections, rounded after training; and the same after up
to nine epochs more on rounded weights (`qat = "rec4"`). Three seeds, which split the data too. Ends with 1 where
rounding alone loses no more than half a point in the mean, or training for it does. Takes a minute on two idle cores.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.claims.files import bench, made, tell
from spaces.genotype import Architecture, Deployment, Genotype, Training

BITS, SEEDS, EPOCHS, ALLOWED = "rec4", (0, 1, 2), 30, 0.5
MODELS = {"fastgrnn": 32, "gru": 16}


def main() -> int:
    """Print the table, write `qat.json`; 0 where the claim holds."""
    rows = []
    print("| cell | units | seed | float32 % | rounded, points | trained for it, points |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as home:
        for cell, units in MODELS.items():
            for seed in SEEDS:
                row = compared(home, cell, units, seed)
                rows.append(row)
                shown = [f"{row['float32']:.2f}", f"{row['rounded']:+.2f}", f"{row['trained_for']:+.2f}"]
                print("| " + " | ".join([cell, str(units), str(seed), *shown]) + " |", flush=True)
    means = {
        cell: {
            form: statistics.mean(row[form] for row in rows if row["cell"] == cell)
            for form in ("float32", "rounded", "trained_for")
        }
        for cell in MODELS
    }
    missed = [
        f"{cell}: {mean['rounded']:+.2f} rounded, {mean['trained_for']:+.2f} trained for it"
        for cell, mean in means.items()
        if not (mean["rounded"] < -ALLOWED <= mean["trained_for"])
    ]
    asked = {"data": "digits-pixels", "bits": BITS, "epochs": EPOCHS, "seeds": SEEDS, "allowed_points": -ALLOWED}
    tell(__file__, {"asked": asked, "means": means, "missed": missed, "rows": rows})
    print("\n".join([str(means), *(f"MISSED {one}" for one in missed)]))
    return int(bool(missed))


def compared(home: str, cell: str, units: int, seed: int) -> dict[str, Any]:
    """The test accuracy in percent of one model in float32, and what the narrow forms differ from it by."""
    where = bench(str(Path(home) / str(seed)), "digits-pixels", seed, EPOCHS)
    plain = Genotype(Architecture(cell, units), Training(8e-3), Deployment("loop", 1, "32", 32))
    narrow = replace(plain, deployment=replace(plain.deployment, bits=BITS))
    for_it = replace(narrow, training=replace(narrow.training, qat=BITS))
    floats, rounded, trained = (100.0 * made(where, one).test for one in (plain, narrow, for_it))
    return {
        "cell": cell,
        "units": units,
        "seed": seed,
        "float32": floats,
        "rounded": rounded - floats,
        "trained_for": trained - floats,
    }


if __name__ == "__main__":
    sys.exit(main())
