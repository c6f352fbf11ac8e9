"""Studies of a quarter of an hour: `brisk run digits`, `brisk run characters` in empty homes, and three picks of each.

    python -m experiments.claims.studies digits|characters [--minutes 15] [--keep DIR]

Writes what came of it into `studies.json` beside this script, one entry a study: the conditions, the picks as the
README shows them, and the whole summary. Promised: a point at least 15 times as fast as the baseline's ordinary export,
its test quality no worse than the baseline's by more than one standard error. Ends with 1 where there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.claims.digits import BRISK, conditions, said

HERE = Path(__file__).parent
KEPT = HERE / "studies.json"
PROMISED = 15.0


def main() -> int:
    """Run one study, pick, keep; 0 where the promise is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["digits", "characters"])
    parser.add_argument("--minutes", type=int, default=15)
    parser.add_argument("--keep", type=Path, help="leave the home here")
    asked = parser.parse_args()
    home = asked.keep or Path(tempfile.mkdtemp(prefix="brisk-claim-"))
    os.environ["BRISK_HOME"] = str(home)
    before = conditions()
    try:
        budget = ["--timeout", f"{asked.minutes}m", "--trials", "5000"]
        subprocess.run([*BRISK, "run", asked.study, *budget], check=True)
        summary = json.loads(said("show", asked.study, "--json"))
        table = said("show", asked.study)
    finally:
        if not asked.keep:
            shutil.rmtree(home)
    chosen = picks(summary)
    found = {"conditions": before, "minutes": asked.minutes, "picks": chosen, "table": table, "summary": summary}
    everything = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    KEPT.write_text(json.dumps({**everything, asked.study: found}, indent=1) + "\n", encoding="utf-8")
    print(markdown(asked.study, summary, chosen))
    kept = "as good, fastest" in chosen and chosen["as good, fastest"]["speedup"] >= PROMISED
    print(f"{'kept  ' if kept else 'MISSED'} a point as good as the baseline, promised {PROMISED:g} times as fast")
    return int(not kept)


def picks(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The fastest that is as good as the baseline, the best, and the fastest within two points of the baseline."""
    front, base = summary["front"], summary["baseline"]["quality"]
    within = {"as good, fastest": base["test_stderr"], "two points worse, fastest": 0.02}
    found = {}
    for name, allowed in within.items():
        good = [point for point in front if point["quality"]["test"] >= base["test"] - allowed]
        if good:
            found[name] = max(good, key=lambda point: float(point["speedup"]))
    found["best"] = max(front, key=lambda point: float(point["quality"]["validation"]))
    return found


def markdown(study: str, summary: dict[str, Any], chosen: dict[str, dict[str, Any]]) -> str:
    """The rows of the README's table."""
    rows = [f"| {study} | pick | model | test | latency, us | speedup | KiB |", "|---|---|---|---|---|---|---|"]
    for name, point in {"baseline": summary["baseline"], **chosen}.items():
        quality, built = point["quality"], point["genotype"]["architecture"]
        told = {" x {layers}": built["layers"] > 1, " both ways": built["bidirectional"],
                ", {frame_stack} steps at once": built["frame_stack"] > 1}  # fmt: skip
        model = f"{built['cell']} {built['units']}" + "".join(word for word, so in told.items() if so).format(**built)
        score = f"{quality['test']:.4f} +- {quality['test_stderr']:.4f}"
        latency_us, size_kib = 1000 * point["latency_ms"]["median"], point["size_bytes"] / 1024
        rows.append(f"| | {name} | {model} | {score} | {latency_us:.1f} | {point['speedup']:.1f} | {size_kib:.0f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
