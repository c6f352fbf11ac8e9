"""How small a model of digits can be: `python -m experiments.claims.fastgrnn`.

FastGRNN (Kusupati 2018, arXiv 1901.02358) compressed as its authors do, on digits read row by row: recurrent and input
matrices of low rank from the start, half of their weights brought to zero, 8 bits at last, the head's included, with
training that knows of them. Held against the same cell whole and in float32, by the test part, over three seeds, which
split the data too. The size is that of the whole .tflite file, graph included, as it is and packed with zlib (zeros
save nothing else). Ends with 1 where a file reaches 8 KiB, or the mean loss two points. Takes half a minute on two idle
cores.
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

UNITS, RANK, SPARSITY, EPOCHS, SEEDS = 24, 8, 0.5, 60, (0, 1, 2)
MOST_BYTES, MOST_POINTS = 8192, 2.0


def main() -> int:
    """Print the table, write `fastgrnn.json`; 0 where the claim holds."""
    rows: list[dict[str, Any]] = []
    print("| seed | form | test % | bytes | packed |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as home:
        for seed in SEEDS:
            where = bench(str(Path(home) / str(seed)), "digits-rows", seed, EPOCHS, quantize_head=True)
            for form, genotype in forms().items():
                file = made(where, genotype)
                test = 100.0 * file.test
                rows.append({"seed": seed, "form": form, "test": test, "bytes": file.size_bytes, "packed": file.packed})
                print(f"| {seed} | {form} | {test:.2f} | {file.size_bytes} | {file.packed} |", flush=True)
    means = {form: statistics.mean(row["test"] for row in rows if row["form"] == form) for form in forms()}
    lost = means["whole"] - means["compressed"]
    largest = max(row["bytes"] for row in rows if row["form"] == "compressed")
    asked = {"data": "digits-rows", "units": UNITS, "rank": RANK, "sparsity": SPARSITY, "epochs": EPOCHS}
    promised = {"largest_bytes": MOST_BYTES, "lost_points": MOST_POINTS}
    figures = {"largest_bytes": largest, "lost_points": lost, "test": means}
    tell(__file__, {"asked": asked, "promised": promised, "figures": figures, "rows": rows})
    print(f"The largest file has {largest} bytes, and the compressed models lose {lost:.2f} points in the mean.")
    return int(largest >= MOST_BYTES or lost >= MOST_POINTS)


def forms() -> dict[str, Genotype]:
    """The model whole and in float32; and compressed."""
    whole = Genotype(Architecture("fastgrnn", UNITS), Training(6e-3), Deployment("loop"))
    small = Genotype(
        replace(whole.architecture, rank=RANK),
        replace(whole.training, sparsity=SPARSITY, qat="8"),
        replace(whole.deployment, bits="8"),
    )
    return {"whole": whole, "compressed": small}


if __name__ == "__main__":
    sys.exit(main())
