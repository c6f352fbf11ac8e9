"""The README's study: `brisk run digits` in an empty home, timed, watched, and held to what was promised of it.

Writes `digits.json` (every figure, its conditions, and the table that the README shows) and `digits.png` beside this
script. Ends with 1 where a promise is missed; `--keep DIR` keeps the home. Takes about three minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
BRISK = [sys.executable, "-P", "-c", "from experiments.cli import main; main()"]
PROMISES = {
    "run_s": ("<=", 360.0),
    "front_points": (">=", 4),
    "best_speedup_at_test_0.95": (">=", 10.0),
    "parent_peak_mib": ("<=", 400.0),
    "neither_training_nor_measuring": ("<=", 0.10),
    "help_s": ("<=", 0.5),
    "show_s": ("<=", 2.0),
}


def main() -> None:
    """Run, look, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="leave the home here")
    home = parser.parse_args().keep or Path(tempfile.mkdtemp(prefix="brisk-claim-"))
    os.environ["BRISK_HOME"] = str(home)
    try:
        run_s, parent_peak_mib = watched_run()
        summary = json.loads(said("show", "digits", "--json"))
        said("show", "digits", "--png", str(HERE / "digits.png"))
        table = said("show", "digits").split("\n\n")[0]
        figures = {
            "run_s": run_s,
            "front_points": len(summary["front"]),
            "best_speedup_at_test_0.95": best_speedup(summary, accuracy=0.95),
            "parent_peak_mib": parent_peak_mib,
            "neither_training_nor_measuring": summary["seconds"]["other_share"],
            "help_s": median_s("--help"),
            "show_s": median_s("show", "digits"),
        }
    finally:
        if home.name.startswith("brisk-claim-"):
            shutil.rmtree(home)
    missed = [name for name, (sign, limit) in PROMISES.items() if not kept(figures[name], sign, limit)]
    for name, (sign, limit) in PROMISES.items():
        print(f"{'MISSED' if name in missed else 'kept  '}  {name} {figures[name]:.4g}, promised {sign} {limit:g}")
    print(table)
    claim = {"conditions": conditions(), "figures": figures, "missed": missed, "table": table, "summary": summary}
    (HERE / "digits.json").write_text(json.dumps(claim, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if missed else 0)


def watched_run() -> tuple[float, float]:
    """Seconds that `brisk run digits` takes, and the parent's largest resident memory in MiB."""
    started, peak = time.monotonic(), 0
    with subprocess.Popen([*BRISK, "run", "digits"]) as running:
        parent = psutil.Process(running.pid)
        while running.poll() is None:
            try:
                peak = max(peak, parent.memory_info().rss)
            except psutil.Error:
                break
            time.sleep(0.2)
    if running.returncode:
        sys.exit(f"`brisk run digits` ended with {running.returncode}")
    return time.monotonic() - started, peak / 2**20


def best_speedup(summary: dict[str, Any], accuracy: float) -> float:
    """The largest speedup among the front's points of at least so much test accuracy; 0 where there is none."""
    good = [point["speedup"] for point in summary["front"] if point["quality"]["test"] >= accuracy]
    return max(good, default=0.0)


def said(*arguments: str) -> str:
    """What a command prints."""
    return subprocess.run([*BRISK, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def median_s(*arguments: str) -> float:
    """Seconds that a command takes, the median of five runs."""
    spent = []
    for _ in range(5):
        started = time.monotonic()
        said(*arguments)
        spent.append(time.monotonic() - started)
    return statistics.median(spent)


def kept(figure: float, sign: str, limit: float) -> bool:
    """Whether a figure keeps its promise."""
    return figure <= limit if sign == "<=" else figure >= limit


def conditions() -> dict[str, Any]:
    """What the figures depend on."""
    from importlib import metadata

    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[1],
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("tensorflow", "ai-edge-litert", "optuna", "brisk-rnn")},
    }


if __name__ == "__main__":
    main()
