"""What every cell learns, and how fast it is: `python -m experiments.claims.cells learn`, then `time`, then no word.

    learn [--share 1/2] [--task T]... [--cell C]...   trains what was not trained yet, three seeds; two shares side by
                                                      side use two cores (an hour); learned.jsonl keeps every figure
    time                                              measures all cells in one sitting, on an idle machine (10 minutes)
    (nothing)                                         prints the table; ends with 1 where a promise is missed or open

Every cell has the same budget on a task (`tasks.py`): as many epochs, one learning rate, one width.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.claims.cells.tasks import TASKS
from spaces.catalog import CELLS

HERE = Path(__file__).parent
LEARNED, TIMED = HERE / "learned.jsonl", HERE / "timed.json"
SEEDS = (0, 1, 2)
GATED = ("lstm", "gru", "lstmp", "cifg", "mgu", "ligru", "fastgrnn", "qrnn", "qrnn_f", "qrnn_ifo", "sru", "sru1",
         "minlstm", "mingru", "mingru_signed", "mamba")  # fmt: skip
FASTEST = {"mingru": 5.0, "lru": 20.0, "tcn": 25.0}  # of the last state, over the LSTM's loop
WITHIN = 0.85


def main() -> int:
    """Do one part, or print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["learn", "time"])
    parser.add_argument("--share", default="1/1")
    parser.add_argument("--task", action="append", choices=list(TASKS))
    parser.add_argument("--cell", action="append", choices=list(CELLS))
    asked = parser.parse_args()
    if asked.part == "learn":
        learn(asked.task or list(TASKS), asked.cell or list(CELLS), *map(int, asked.share.split("/")))
        return 0
    if asked.part == "time":
        from experiments.claims.cells.speed import timed

        TIMED.write_text(json.dumps(timed(), indent=1) + "\n", encoding="utf-8")
        return 0
    return told()


def learn(tasks: list[str], cells: list[str], share: int, of: int) -> None:
    """Train what is missing of a share, first seeds first."""
    rows = [
        (task, cell, seed)
        for seed, task, cell in itertools.product(SEEDS, tasks, cells)
        if not TASKS[task].cells or cell in TASKS[task].cells
    ]
    for task, cell, seed in rows[share - 1 :: of]:
        if (task, cell, seed) in learned():
            continue
        figures = TASKS[task].learn(cell, seed)
        line = json.dumps({"task": task, "cell": cell, "seed": seed, **figures})
        print(line, flush=True)
        with LEARNED.open("a", encoding="utf-8") as kept:
            kept.write(line + "\n")


def learned() -> dict[tuple[str, str, int], dict[str, Any]]:
    """Every figure kept."""
    lines = LEARNED.read_text(encoding="utf-8").splitlines() if LEARNED.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["task"], row["cell"], row["seed"]): row for row in rows}


def told() -> int:
    """Print the table and what was promised."""
    rows, times = learned(), json.loads(TIMED.read_text(encoding="utf-8"))["cells"] if TIMED.exists() else {}
    print("| cell | last, us | x LSTM | sequence, us | digits | parity 20 | parity 60 | adding, x | characters |")
    print("|---|---|---|---|---|---|---|---|---|")
    shown = (("digits", "accuracy"), ("parity", "accuracy"), ("parity", "longer"), ("adding", "times_better"),
             ("characters", "accuracy"))  # fmt: skip
    for cell in CELLS:
        fast = times.get(cell, {"last": {}, "sequence": {}})
        speed = [fast["last"].get("us"), fast["last"].get("over_lstm"), fast["sequence"].get("us")]
        figures = [_shown(_seeds(rows, task, cell, name), name) for task, name in shown]
        print("| " + " | ".join([cell, *(f"{each:.3g}" if each else "-" for each in speed), *figures]) + " |")
    failed = 0
    print()
    for promise, value, limit in promises(rows, times):
        kept = value is not None and value >= limit
        failed += not kept
        print(f"{'kept  ' if kept else 'MISSED'} {promise}: {'not known yet' if value is None else f'{value:.4g}'}")
    return int(failed > 0)


def promises(rows: dict[Any, Any], times: dict[str, Any]) -> Iterator[tuple[str, float | None, float]]:
    """(what was promised, what was found, the least it may be)."""
    for name in ("accuracy", "longer"):
        found = _seeds(rows, "parity", "mingru_signed", name)
        yield f"signed minGRU on parity, {name}, worst of seeds, >= 0.99", min(found, default=None), 0.99
    for cell in GATED:
        found = _seeds(rows, "adding", cell, "times_better")
        yield f"{cell} on adding over the constant, median, >= 10", statistics.median(found) if found else None, 10.0
    found = _seeds(rows, "addition", "lstm", "accuracy")
    yield "LSTM on addition, median, >= 0.99", statistics.median(found) if found else None, 0.99
    for cell, promised in FASTEST.items():
        ratio = times.get(cell, {}).get("last", {}).get("over_lstm")
        yield f"{cell} over the LSTM's loop, last state, >= {WITHIN} of {promised:g}", ratio, WITHIN * promised


def _seeds(rows: dict[Any, Any], task: str, cell: str, name: str) -> list[float]:
    found = [rows.get((task, cell, seed), {}).get(name) for seed in SEEDS]
    return [value for value in found if value is not None]


def _shown(values: list[float], name: str) -> str:
    """The median over seeds, and the range where there are several."""
    if not values:
        return "-"
    scale, places = (1.0, 0) if name == "times_better" else (100.0, 1)
    low, middle, high = (
        f"{scale * value:.{places}f}" for value in (min(values), statistics.median(values), max(values))
    )
    return middle if len(values) == 1 else f"{middle} ({low}-{high})"


if __name__ == "__main__":
    sys.exit(main())
