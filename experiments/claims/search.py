"""The search against other searches of the same space, at equal wall time on two cores.

    python -m experiments.claims.search run SYSTEM TASK SEED [--minutes 4]
    python -m experiments.claims.search all [--minutes 4] [--seeds 0,1,2]    what `search.json` does not have yet
    python -m experiments.claims.search report

SYSTEM is "brisk", one of `experiments.claims.rivals`, "brisk:halving" and so on for brisk without one of its economies
(`search.without`), or "brisk:one" for one worker on one core. TASK is "digits" (pixels) or "adding".

What is scored: every candidate that a system finished within its minutes, start-up included, by validation error of the
deployed bytes, latency and size. Latencies are not the system's own: all that was ever on its front is measured again
with brisk's meter, interleaved. The hypervolume is that of (error, log latency, log size), as a share of the box from
the reference point (LIMITS) down to no error and a hundredth of the others.

Promised: a higher final hypervolume than each rival's, and the best rival's reached in a quarter of its time; at most
5 % of wall time neither training nor measuring; two workers bring 1.7 times the outcomes of one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from experiments.claims.digits import BRISK, conditions, said
from objectives.bench import ECONOMIES
from objectives.cache import Cache
from objectives.latency.devices import device
from objectives.objective import OBJECTIVES
from objectives.outcome import Conditions, Measurement, Outcome
from search.front import dominates, front, hypervolume
from search.history import read

KEPT = Path(__file__).with_suffix(".json")
RIVALS = ("optuna-nsga2", "optuna-tpe", "kerastuner", "moasha")
TASKS = ("digits", "adding")
LIMITS = {"digits": (0.1, 0.09, 85.0), "adding": (0.2, 0.15, 64.0)}
"""The reference point: a validation error (1 - accuracy, rmse) that few would still take, and about what the baseline
takes as it is exported today: latency in ms, size in KiB.
"""

SPAN = 100.0
SITTING = 8  # models
ROOM_S = 60.0  # after its time, a system has to come to its end
Point = dict[str, Any]


def main() -> int:
    """Run what was asked for; 1 where the report finds a promise missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "all", "report"])
    parser.add_argument("which", nargs="*", help="of run: SYSTEM TASK SEED")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--systems", default=",".join(("brisk", *RIVALS)))
    asked = parser.parse_args()
    if asked.what == "report":
        return report(kept())
    if asked.what == "run":
        system, task, seed = asked.which
        parts = [(system, task, int(seed))]
    else:
        parts = list(missing(asked.systems.split(","), [int(seed) for seed in asked.seeds.split(",")]))
    for system, task, seed in parts:
        print(f"{system} on {task}, seed {seed}: {asked.minutes:g} min", flush=True)
        found = run(system, task, seed, 60 * asked.minutes)
        KEPT.write_text(json.dumps(kept() | {f"{system} {task} {seed}": found}, indent=1) + "\n", encoding="utf-8")
        print(f"  {found['outcomes']} candidates, hypervolume {found['final']:.4f}", flush=True)
    return 0


def kept() -> dict[str, Any]:
    """What was measured before."""
    found: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    return found


def missing(systems: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, str, int]]:
    """The parts that are not kept yet, seed by seed, so that what is there compares."""
    before = kept()
    for seed in seeds:
        for task in TASKS:
            yield from ((one, task, seed) for one in systems if f"{one} {task} {seed}" not in before)


def run(system: str, task: str, seed: int, seconds: float) -> dict[str, Any]:
    """Let a system search, and score what it found."""
    folder = Path(tempfile.mkdtemp(prefix="brisk-claim-"))
    told, began = conditions(), time.time()
    try:
        searched = searched_by_brisk if system.startswith("brisk") else searched_by_rival
        points, facts = searched(system, task, seed, seconds, folder, began)
        points = sorted((point for point in points if point["t"] <= seconds), key=lambda point: float(point["t"]))
        curve = scored(points, task)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    final = curve[-1][1] if curve else 0.0
    return {"conditions": told, "seconds": seconds, "outcomes": len(points), "final": final, "curve": curve, **facts}


def searched_by_rival(
    system: str, task: str, seed: int, seconds: float, folder: Path, began: float
) -> tuple[list[Point], dict[str, Any]]:
    """The candidates that another search finished."""
    command = [sys.executable, "-m", "experiments.claims.rivals", system, task, str(seed), str(seconds), str(folder)]
    environment = {**os.environ, "CLAIM_BEGAN": str(began), "TF_CPP_MIN_LOG_LEVEL": "3"}
    with subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            process.wait(seconds + ROOM_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
    lines = (folder / "found.jsonl").read_text(encoding="utf-8").splitlines() if list(folder.glob("*.jsonl")) else []
    found = [json.loads(line) for line in lines]
    return [{**one, "t": one["t"] - began, "path": folder / one["file"]} for one in found], {}


def searched_by_brisk(
    system: str, task: str, seed: int, seconds: float, folder: Path, began: float
) -> tuple[list[Point], dict[str, Any]]:
    """The candidates that brisk finished, whole or without one of its economies."""
    lacking = system.partition(":")[2]
    budget = ["--timeout", f"{seconds:g}s", "--trials", "100000", "--workers", "1" if lacking == "one" else "2"]
    sets = ["--set", f"study.seed={seed}"]
    sets += ["--set", f'search.without=["{lacking}"]'] if lacking in ECONOMIES else []
    command = [*BRISK, "run", task, "--json", *budget, *sets]
    command = ["taskset", "-c", "0", *command] if lacking == "one" else command
    os.environ["BRISK_HOME"] = str(folder)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    history, summary = read(folder, task), json.loads(said("show", task, "--json"))
    with sqlite3.connect(folder / "optuna.db") as tables:
        ends = dict(tables.execute("SELECT number, datetime_complete FROM trials"))
    cache, points = Cache(folder), []
    for number, outcome in history.outcomes.items():
        if outcome.state == "complete":
            ended = datetime.fromisoformat(ends[number]).timestamp() - began
            points.append(point_of(outcome) | {"t": ended, "path": cache.artifact(sha256_of(outcome))})
    facts = {"counts": summary["counts"], "spent": summary["seconds"], "wall_s": summary["wall_s"]}
    facts["models"] = len({outcome.genotype.group for outcome in history.outcomes.values()})
    return points, facts | {"told": len(history.outcomes)}


def sha256_of(outcome: Outcome) -> str:
    """Of the file."""
    assert outcome.artifact, "only finished ones are asked"
    return outcome.artifact.sha256


def point_of(outcome: Outcome) -> Point:
    """Its figures, by the search's own measurement."""
    error, latency, size = (OBJECTIVES[name].read(outcome) for name in ("quality", "latency", "size"))
    return {"error": error, "latency_ms": latency, "size_kib": size}


def scored(points: Sequence[Point], task: str) -> list[tuple[float, float]]:
    """(seconds, hypervolume) whenever it grew, by latencies that are measured again."""
    chosen: list[Point] = []
    for point in points:
        if not any(dominates(own(other), own(point)) for other in chosen):
            chosen.append(point)
    again = measured([point["path"] for point in chosen])
    worst, slowest, largest = LIMITS[task]
    curve: list[tuple[float, float]] = []
    costs: list[tuple[float, float, float]] = []
    for point, latency_ms in zip(chosen, again, strict=True):
        if latency_ms is None:
            continue
        shares = (latency_ms / slowest, point["size_kib"] / largest)
        slow, large = (max(1 + math.log(share) / math.log(SPAN), 0.0) for share in shares)
        costs.append((point["error"] / worst, slow, large))
        costs = [costs[place] for place in front(dict(enumerate(costs)))]
        volume = hypervolume(costs, (1.0, 1.0, 1.0))
        if not curve or volume > curve[-1][1] + 1e-6:
            curve.append((round(point["t"], 2), round(volume, 6)))
    return curve


def own(point: Point) -> tuple[float, float, float]:
    """The costs as the system itself has them."""
    return point["error"], point["latency_ms"], point["size_kib"]


def measured(paths: Sequence[Path]) -> list[float | None]:
    """Milliseconds a call of each file, by the same meter for all systems."""
    asked = Conditions(min_processes=1, max_processes=2, timeout_s=20.0)
    found: list[float | None] = []
    for at in range(0, len(paths), SITTING):
        sitting = device("local").measure(paths[at : at + SITTING], asked)
        found += [one.median_ms / one.batch if isinstance(one, Measurement) else None for one in sitting]
    return found


def report(found: dict[str, Any]) -> int:
    """Print the tables as Markdown, and what was promised; 1 where something is missed."""
    missed = []
    print("| task | system | runs | candidates | hypervolume | time to the best rival's |\n|---|---|---|---|---|---|")
    for task in TASKS:
        runs = {one: runs_of(found, one, task) for one in ("brisk", *RIVALS)}
        shares = []
        for seed, mine in runs["brisk"].items():
            rivals = [runs[one][seed]["final"] for one in RIVALS if seed in runs[one]]
            if rivals:
                shares.append(reached(mine["curve"], max(rivals)) / mine["seconds"])
                missed += [f"{task} {seed}: hypervolume"] * (mine["final"] <= max(rivals))
        for one, each in runs.items():
            if each:
                count = statistics.mean(run["outcomes"] for run in each.values())
                finals = [run["final"] for run in each.values()]
                spread = f" ± {statistics.stdev(finals):.4f}" if len(finals) > 1 else ""
                speed = ", ".join(f"{share:.0%}" for share in shares) if one == "brisk" else ""
                print(
                    f"| {task} | {one} | {len(each)} | {count:.0f} | {statistics.mean(finals):.4f}{spread} | {speed} |"
                )
        missed += [f"{task}: a quarter of the time"] * any(share > 0.25 for share in shares)
        for seed, mine in runs["brisk"].items():
            share = mine["spent"]["other_share"]
            print(f"\n{task} {seed}: neither training nor measuring {share:.1%} of brisk's wall time (promised 5 %)")
            missed += [f"{task} {seed}: neither"] * (share > 0.05)
        alone = runs_of(found, "brisk:one", task)
        for seed in alone.keys() & runs["brisk"].keys():
            gain = runs["brisk"][seed]["told"] / alone[seed]["told"]
            print(f"{task} {seed}: two workers bring {gain:.2f} times the outcomes of one (promised 1.7)\n")
            missed += [f"{task} {seed}: two workers"] * (gain < 1.7)
    print("| without | task | trained models | outcomes | hypervolume |\n|---|---|---|---|---|")
    for lacking in ("", *ECONOMIES):
        name = f"brisk:{lacking}" if lacking else "brisk"
        for task in TASKS:
            for run in runs_of(found, name, task).values():
                print(f"| {lacking or 'nothing'} | {task} | {run['models']} | {run['told']} | {run['final']:.4f} |")
    for one in missed:
        print(f"MISSED {one}")
    return int(bool(missed))


def runs_of(found: dict[str, Any], system: str, task: str) -> dict[int, dict[str, Any]]:
    """The runs of a system on a task, by seed."""
    prefix = f"{system} {task} "
    return {int(key.removeprefix(prefix)): run for key, run in found.items() if key.startswith(prefix)}


def reached(curve: Sequence[Sequence[float]], volume: float) -> float:
    """The seconds after which a hypervolume was reached; infinite where it was not."""
    return next((at for at, value in curve if value >= volume), math.inf)


if __name__ == "__main__":
    sys.exit(main())
