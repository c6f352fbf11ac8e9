"""The search against other searches of the same space, at equal wall time on two cores.

    python -m experiments.claims.search run SYSTEM TASK SEED [--minutes 4]
    python -m experiments.claims.search all [--minutes 4] [--seeds 0,1,2] [--systems brisk,...]   what is not kept yet
    python -m experiments.claims.search ablation TASK SEED [--minutes 4]                          what is not kept yet
    python -m experiments.claims.search workers TASK SEED [--minutes 4]                           what is not kept yet
    python -m experiments.claims.search report

SYSTEM is "brisk", one of `experiments.claims.rivals`, "brisk:halving" and so on for brisk without one of its economies
(`OFF`) and "brisk:whole" for what those are held against, or "brisk:two" and "brisk:one" for two workers, and one on
one core, that are given the same candidates in the same order (`ALIKE`), for what a search tries, and how long that
takes, depends on what it has found. TASK is "digits" (pixels) or "adding". Every part is kept in `search.json` with
what it was run on; parts of several durations do not compare, and the report says so, and where those of a seed are of
several machines or commits; it holds an economy and a second worker against parts of the same commit alone, and one
that is kept is done anew by `run`. MOASHA needs `pip install syne-tune`.

What is scored: every candidate that a system finished within its minutes, start-up included, by validation error of the
deployed bytes, latency and size, which all systems are given as their objectives. No system trains a baseline, for the
rivals have none. Latencies are not the system's own: all that was ever on its front is measured again with brisk's
meter, a graph once, interleaved, in units of the frozen reference model, so that hours and systems compare; a graph
that several parts of a task met on one kind of processor has the median of what they measured (`agreed`). The
hypervolume is that of (error, log latency, log size) as a share of a box, from a reference point down to no error and a
share of its latency and size. There are two (`BOXES`), and what is promised is kept where it is kept in both: "wide"
holds all that is better than a constant predictor, "near" what could take the baseline's place. What was measured is
kept, so that another box needs no other runs.

Promised, for three seeds: a higher final hypervolume than each rival's, and the best rival's reached in a quarter of
its time; at most 5 % of wall time neither training nor measuring; two workers bring as many outcomes as one 1.7 times
sooner. Of the run without halving it is told what its rungs would have stopped: at most 2 % of the hypervolume of those
whose cell can be scanned, which learn slowly and are fast.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import psutil

from experiments.claims.digits import BRISK, conditions
from experiments.claims.rivals.__main__ import SYSTEMS as RIVALS
from experiments.spec import PRESETS
from objectives.bench import ECONOMIES
from objectives.cache import Cache
from objectives.latency.devices import device
from objectives.objective import OBJECTIVES
from objectives.outcome import Conditions, Measurement, Outcome
from search.front import dominates, front, hypervolume
from search.history import History, read
from search.summary import front_of
from search.worth import Trainings, at_rung
from spaces.catalog import CELLS
from spaces.genotype import Genotype
from spaces.record import digest, from_json, to_json

KEPT = Path(__file__).with_suffix(".json")
ROOT = Path(__file__).parents[2]
TASKS = ("digits", "adding")
BOXES: dict[str, dict[str, tuple[float | None, float, float, float]]] = {
    "wide": {"digits": (None, 0.2, 256.0, 1000.0), "adding": (None, 1.0, 256.0, 1000.0)},
    "near": {"digits": (0.1, 0.09, 85.0, 100.0), "adding": (0.2, 0.15, 64.0, 100.0)},
}
"""Error (None: a constant predictor's), latency in ms and size in KiB of the reference point, and how many times less
latency and size count as none. The baselines have 0.09 ms and 85 KiB (digits), 0.07 ms and 32 KiB (adding): near is
about there, with an error that few would still take; wide is 2 and 3 times that for digits, as 0.2 ms is the preset's
own bound, and for adding 15 and 8 times, so that no candidate lies outside.
"""
REFERENCE_MS = 0.05  # what a call of the frozen reference model is taken to last
SITTING = 8  # models
ROOM_S = 120.0  # after its time, a system has to come to its end
NEITHER, SOONER, TWICE, LOST = 0.05, 0.25, 1.7, 0.02
SEEDS = (0, 1, 2)
OFF = {one: f'search.without=["{one}"]' for one in ECONOMIES} | {"warm": "search.warm_start=[]"}
"""What switches an economy off; "warm" are the points that the search begins with."""

ALIKE = ('search.sampler="random"', 'search.without=["halving", "deploy", "prior"]')
"""What makes of a search a list of candidates, none of which is spared for what came of another."""

Point = dict[str, Any]
Run = dict[str, Any]


def main() -> int:
    """Do what was asked for; 1 where a part fails, or the report finds a promise missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "all", "ablation", "workers", "report"])
    parser.add_argument("which", nargs="*", help="SYSTEM TASK SEED of run, TASK SEED of ablation and workers")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--systems", default=",".join(("brisk", *RIVALS)))
    asked = parser.parse_args()
    if asked.what == "report":
        return report(agreed(kept()))
    if len(asked.which) != {"run": 3, "all": 0}.get(asked.what, 2):
        parser.error(f"{asked.what} takes {'SYSTEM TASK SEED' if asked.what == 'run' else 'TASK SEED'}")
    if asked.what == "all":
        seeds, systems = asked.seeds.split(","), asked.systems.split(",")
        parts = [f"{system} {task} {seed}" for seed in seeds for task in TASKS for system in systems]
    else:
        ablated = ["brisk:whole", *(f"brisk:{one}" for one in OFF)]
        systems = {"run": asked.which[:1], "ablation": ablated, "workers": ["brisk:two", "brisk:one"]}[asked.what]
        parts = [" ".join((system, *asked.which[-2:])) for system in systems]
    known = ("brisk", *(f"brisk:{one}" for one in ("two", "one", "whole", *OFF)), *RIVALS)
    for system, task, _ in map(str.split, parts):
        if system not in known or task not in TASKS:
            parser.error(f"{system} on {task}: systems are {', '.join(known)}; tasks are {', '.join(TASKS)}")
    if asked.what != "run":
        parts = [part for part in parts if part not in kept()]
    return int([done(part, 60 * asked.minutes) for part in parts].count(False) > 0)


def kept() -> dict[str, Run]:
    """What was measured before, by "SYSTEM TASK SEED"."""
    found: dict[str, Run] = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    return found


def done(part: str, seconds: float) -> bool:
    """Whether a part could be run; it is kept then."""
    system, task, seed = part.split()
    print(f"{system} on {task}, seed {seed}: {seconds / 60:g} min", flush=True)
    try:
        run = searched(system, task, int(seed), seconds)
    except RuntimeError as error:
        print(f"  not kept: {error}", flush=True)
        return False
    written = KEPT.with_suffix(".tmp")
    each = (f"{json.dumps(name)}: {json.dumps(one)}" for name, one in (kept() | {part: run}).items())
    written.write_text("{\n" + ",\n".join(each) + "\n}\n", encoding="utf-8")
    written.replace(KEPT)
    alone = agreed({part: run})[part]
    volumes = ", ".join(f"{final(alone, task, box):.4f} ({box})" for box in BOXES)
    print(f"  {run['outcomes']} candidates, {run['failed']} failed, hypervolume {volumes}", flush=True)
    return True


def searched(system: str, task: str, seed: int, seconds: float) -> Run:
    """Let a system search, and score what it found. Raises RuntimeError where it found nothing at all."""
    folder = Path(tempfile.mkdtemp(prefix="brisk-claim-"))
    told = {
        "date": date.today().isoformat(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "commit": commit(),
        **conditions(),
    }
    began = time.time()
    try:
        search = by_brisk if system.startswith("brisk") else by_rival
        points, facts = search(system, task, seed, seconds, folder, began)
        told["load_after"] = os.getloadavg()[1]
        points = sorted((point for point in points if point["t"] <= seconds), key=lambda point: float(point["t"]))
        facts["points"] = again(points)
        facts["trivial_error"] = trivial_error(task, seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    told["whole_s"] = round(time.time() - began)
    return {"conditions": told, "seconds": seconds, "outcomes": len(points), **facts}


def commit() -> str:
    """Of the code that is run; with "-dirty" where the code is not that."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py", "*.toml"], check=False).returncode
    return head.stdout.strip() + ("-dirty" if changed else "")


def ran(command: Sequence[str], folder: Path, seconds: float, home: Path) -> None:
    """Run a system to its end, or to the end of its time and some; no process of it is left.

    Raises RuntimeError, with what it said last, where it fails. 3 is brisk's "nothing feasible".
    """
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "BRISK_HOME": str(home), "TF_CPP_MIN_LOG_LEVEL": "3"}
    said = folder / "said.txt"
    with open(said, "wb") as to:
        process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=to, stderr=to)
        try:
            code = process.wait(seconds + ROOM_S)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code not in (0, 3, None):
        raise RuntimeError(f"it ended with {code}: {said.read_text(errors='replace')[-1500:]}")


def by_rival(
    system: str, task: str, seed: int, seconds: float, folder: Path, began: float
) -> tuple[list[Point], dict[str, Any]]:
    """The candidates that another search finished."""
    ends = f"{began + seconds:.3f}"
    command = [sys.executable, "-m", "experiments.claims.rivals", system, task, str(seed), ends, str(folder)]
    ran(command, folder, seconds, folder)
    found, failed = lines(folder / "found.jsonl"), lines(folder / "failed.jsonl")
    reasons = [str(one["reason"]).strip().splitlines()[-1][:200] for one in failed]
    if not found:
        raise RuntimeError(f"{system} found nothing. {reasons[:3]} {(folder / 'said.txt').read_text()[-1500:]}")
    points = [
        {
            **one,
            "t": one["t"] - began,
            "path": folder / one["file"],
            "graph": graph_of(from_json(Genotype, one["genotype"])),
        }
        for one in found
    ]
    return points, {"failed": len(failed), "failures": sorted(set(reasons))[:5]}


def lines(file: Path) -> list[dict[str, Any]]:
    """The records in a file of JSON lines, [] where there is none; one that was cut off by the end is left out."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def by_brisk(
    system: str, task: str, seed: int, seconds: float, folder: Path, began: float
) -> tuple[list[Point], dict[str, Any]]:
    """The candidates that brisk finished, whole or without one of its economies."""
    lacking, home = system.partition(":")[2], folder / "home"
    home.mkdir()
    one = lacking == "one"
    spec = folder / f"{task}.toml"
    spec.write_text(without_baseline((PRESETS / spec.name).read_text(encoding="utf-8")), encoding="utf-8")
    command = [*BRISK, "run", str(spec), "--json", "--trials", "100000", "--workers", "1" if one else "2"]
    command += ["--timeout", f"{seconds:g}s", "--set", f"study.seed={seed}", "--set", "objectives.size={}"]
    command += ["--set", OFF[lacking]] if lacking in OFF else []
    command += [word for each in ALIKE if lacking in ("one", "two") for word in ("--set", each)]
    if one:
        command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *command]
    ran(command, folder, seconds, home)
    history = read(home, task)
    shown = subprocess.run([*BRISK, "show", task, "--json", "--home", str(home)], check=True, capture_output=True)
    summary = json.loads(shown.stdout)
    points = list(told_points(history, home, began))
    ended = [number for number, at in told_at(home, began).items() if number in history.outcomes and at <= seconds]
    facts = {"counts": summary["counts"], "spent": summary["seconds"], "wall_s": summary["wall_s"]}
    facts["models"] = len({history.outcomes[number].genotype.group for number in ended})
    if lacking in ("one", "two"):
        facts["told_s"] = sorted(round(at, 1) for at in told_at(home, began).values() if at <= seconds)
    if lacking == "halving":
        facts["halved"] = halved(history, task)
    return points, facts | {"told": len(ended), "failed": summary["counts"]["failed"]}


def halved(history: History, task: str) -> dict[str, Any]:
    """What the rungs would have stopped of a run in which every training came to its end: [stopped, all] of trained
    models, of the points of its front, and of those points whose cell can be scanned; and what hypervolume is lost
    with them, as a share, in each box and by the search's own figures, of all and of what can be scanned.

    The most that it may be: trainings that are nearly done (`objectives.evaluate.LITTLE`) are never stopped.
    """
    trainings, told, stopped = Trainings(history.plan.objectives), dict[int, Outcome](), set[str]()
    groups = {outcome.genotype.group: outcome for outcome in history.outcomes.values() if outcome.learned}
    for group, lead in groups.items():
        every = history.outcomes.items()
        forms = {number: one for number, one in every if one.genotype.group == group and one.learned}
        for rung in range(len(lead.learned)):
            known = [at_rung(one, rung) for one in forms.values()]
            if trainings.stop(group, {"rung": rung, "epoch": 0, "of": 0, "forms": known}, told):
                stopped.add(group)
                learned = lead.learned[: rung + 1]
                forms = {number: replace(one, quality=None, learned=learned) for number, one in forms.items()}
                break
        trainings.over(group)
        told |= forms
    best = [history.outcomes[name].genotype for name in front_of(history) if isinstance(name, int)]
    whole = [one for one in history.outcomes.values() if one.state == "complete"]
    scanned = [one for one in whole if scannable(one.genotype)]
    worst = float(history.prepared["trivial_error"])

    def lost(outcomes: Sequence[Outcome], box: str) -> float:
        left = [one for one in outcomes if one.genotype.group not in stopped]
        before, after = (
            volume([scaled(own(point_of(one)), task, box, worst) for one in each]) for each in (outcomes, left)
        )
        return 1 - after / before if before else 0.0

    return {
        "models": [len(stopped), len(groups)],
        "front": [sum(one.group in stopped for one in best), len(best)],
        "scannable": [sum(one.group in stopped for one in best if scannable(one)), sum(map(scannable, best))],
        "volume": {box: lost(whole, box) for box in BOXES},
        "scannable_volume": {box: lost(scanned, box) for box in BOXES},
    }


def scannable(genotype: Genotype) -> bool:
    """Whether its cell can be served as a scan."""
    return "scan" in CELLS[genotype.architecture.cell].lowerings


def without_baseline(spec: str) -> str:
    """A spec as the rivals search it: none of them trains a baseline."""
    return re.sub(r"^\[baseline\].*?(?=^\[)", "", spec, flags=re.MULTILINE | re.DOTALL)


def told_points(history: History, home: Path, began: float) -> Iterable[Point]:
    """What was made and measured, over its bounds or not, for rivals have none."""
    ends = told_at(home, began)
    for number, outcome in history.outcomes.items():
        if outcome.quality and outcome.measurement and outcome.artifact and number in ends:
            yield point_of(outcome) | {"t": ends[number], "path": Cache(home).artifact(outcome.artifact.sha256)}


def told_at(home: Path, began: float) -> dict[int, float]:
    """The seconds after which Optuna was told of each trial; it keeps the time of Greenwich."""
    with closing(sqlite3.connect(home / "optuna.db")) as tables:
        ends = tables.execute("SELECT number, datetime_complete FROM trials WHERE datetime_complete IS NOT NULL")
        return {number: datetime.fromisoformat(f"{at}+00:00").timestamp() - began for number, at in ends}


def point_of(outcome: Outcome) -> Point:
    """Its figures, by the search's own measurement."""
    error, latency, size = (OBJECTIVES[name].read(outcome) for name in ("quality", "latency", "size"))
    return {"error": error, "latency_ms": latency, "size_kib": size, "graph": graph_of(outcome.genotype)}


def graph_of(genotype: Genotype) -> str:
    """Names what latency depends on, which is not the weights."""
    return digest(genotype.served, genotype.deployment)


# Scoring -------------------------------------------------------------------------------------------------------------


def again(points: Sequence[Point]) -> list[list[Any]]:
    """(seconds, error, ms, KiB, graph) of what was ever on the system's own front, as measured again."""
    chosen: list[Point] = []
    for point in points:
        if not any(dominates(own(other), own(point)) for other in chosen):
            chosen.append(point)
    graphs = {point["graph"]: point["path"] for point in chosen}
    latencies = dict(zip(graphs, measured(list(graphs.values())), strict=True))
    found: list[list[Any]] = []
    for point in chosen:
        if (latency_ms := latencies[point["graph"]]) is not None:
            figures = (float(f"{figure:.6g}") for figure in (point["error"], latency_ms, point["size_kib"]))
            found.append([round(point["t"], 2), *figures, point["graph"][:12]])
    return found


def agreed(found: dict[str, Run]) -> dict[str, Run]:
    """The parts with (seconds, error, ms, KiB) as points, the ms of a graph the median of those of all parts of its
    task and processor: a loop of tiny operations has several speeds, of which a sitting meets one. Older parts do not
    know their graphs, and keep theirs. What changes how a graph is lowered makes another of it: parts of both do not
    belong in one file.
    """
    measured: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)

    def place(part: str, run: Run, graph: str) -> tuple[str, ...]:
        return part.split()[1], run["conditions"]["processor"], graph

    for part, run in found.items():
        for _, _, latency_ms, _, *graph in run["points"]:
            for one in graph:
                measured[place(part, run, one)][part] = latency_ms
    medians = {where: statistics.median(each.values()) for where, each in measured.items()}
    return {
        part: run
        | {
            "points": [
                [at, error, medians[place(part, run, graph[0])] if graph else latency_ms, size_kib]
                for at, error, latency_ms, size_kib, *graph in run["points"]
            ]
        }
        for part, run in found.items()
    }


def curve(run: Run, task: str, box: str) -> list[tuple[float, float]]:
    """(seconds, hypervolume) whenever it grew."""
    grown: list[tuple[float, float]] = []
    costs: list[tuple[float, ...]] = []
    for at, *figures in run["points"]:
        costs.append(scaled(figures, task, box, run["trivial_error"]))
        costs = [costs[place] for place in front(dict(enumerate(costs)))]
        if (dominated := volume(costs)) > (grown[-1][1] if grown else 0.0):
            grown.append((at, dominated))
    return grown


def scaled(figures: Sequence[float], task: str, box: str, trivial_error: float) -> tuple[float, ...]:
    """(error, ms, KiB) as costs in a box, where the reference point has 1 of each."""
    limit, slowest, largest, span = BOXES[box][task]
    error, latency_ms, size_kib = figures
    ratios = (latency_ms / slowest, size_kib / largest)
    logs = (max(1 + math.log(ratio) / math.log(span), 0.0) for ratio in ratios)
    return (error / (limit or trivial_error), *logs)


def volume(costs: Sequence[Sequence[float]]) -> float:
    """The share of the box that is dominated."""
    best = front(dict(enumerate(map(tuple, costs))))
    return hypervolume([costs[place] for place in best], (1.0, 1.0, 1.0))


def final(run: Run, task: str, box: str) -> float:
    """The hypervolume at the end of the time."""
    return max((volume for _, volume in curve(run, task, box)), default=0.0)


def reached(run: Run, task: str, box: str, volume: float) -> float:
    """The share of its time after which a run had a hypervolume; infinite where it never had."""
    return next((at / run["seconds"] for at, value in curve(run, task, box) if value >= volume), math.inf)


def own(point: Point) -> tuple[float, float, float]:
    """The costs as the system itself has them."""
    return point["error"], point["latency_ms"], point["size_kib"]


def measured(paths: Sequence[Path]) -> list[float | None]:
    """Milliseconds of a sequence, by the same meter for all systems, were the reference as fast as ever."""
    asked = Conditions(min_processes=1, max_processes=2, timeout_s=20.0)
    found: list[float | None] = []
    for at in range(0, len(paths), SITTING):
        for one in device("local").measure(paths[at : at + SITTING], asked):
            if isinstance(one, Measurement) and one.reference_ms > 0:
                found.append(one.median_ms / one.batch * REFERENCE_MS / one.reference_ms)
            else:
                found.append(None)
    return found


def trivial_error(task: str, seed: int) -> float:
    """Of the constant predictor, as `brisk run` finds it."""
    from experiments.spec import read as read_spec
    from objectives.judge import prepare

    bench = read_spec(task, (f"study.seed={seed}",)).bench(tempfile.gettempdir())
    return float(prepare(to_json(bench))["trivial_error"])


# Telling -------------------------------------------------------------------------------------------------------------


def report(found: dict[str, Run]) -> int:
    """Print the tables as Markdown, and what was promised and is missed, or not measured; 1 where anything is."""
    missed: list[str] = []
    print("| box | task | system | seeds | candidates | failed | hypervolume | brisk has it after |")
    print("|---|---|---|---|---|---|---|---|")
    for box in BOXES:
        for task in TASKS:
            missed += against_rivals(found, task, box)
    print("\n| task | seed | neither training nor measuring | two workers over one |\n|---|---|---|---|")
    for task in TASKS:
        missed += of_itself(found, task)
    print(f"\n| task | seed | without | trained models | outcomes | {' | '.join(BOXES)} |")
    print("|---|---|---|---|---|---|---|")
    for task in TASKS:
        missed += ablation(found, task)
    compared = [run for part, run in found.items() if not part.startswith(("brisk:one ", "brisk:two "))]
    if len(lengths := {run["seconds"] for run in compared}) > 1:
        missed.append(f"parts of {', '.join(f'{each:g}' for each in sorted(lengths))} s do not compare")
    whole_s = sum(run["conditions"].get("whole_s", run["seconds"]) for run in found.values())
    print(f"\n{len(found)} parts, {whole_s / 3600:.1f} hours")
    for line in strange(found):
        print(line)
    print()
    for one in dict.fromkeys(missed):
        print(f"MISSED {one}")
    if not missed:
        print("all that was promised is kept")
    return int(bool(missed))


def strange(found: dict[str, Run]) -> Iterable[str]:
    """Which parts that are compared were run on several machines, or by several commits."""
    for task in TASKS:
        for seed in SEEDS:
            mine = [run["conditions"] for part, run in found.items() if part.endswith(f" {task} {seed}")]
            for what in ("processor", "commit"):
                if len(several := {each.get(what, "an older one") for each in mine}) > 1:
                    yield f"{task}, seed {seed}: parts of several {what}s: {', '.join(sorted(several))}"


def against_rivals(found: dict[str, Run], task: str, box: str) -> list[str]:
    """The rows of a task in a box, and what is missed."""
    missed = []
    finals = {
        system: {seed: final(run, task, box) for seed, run in runs_of(found, system, task).items()}
        for system in ("brisk", *RIVALS)
    }
    mine = runs_of(found, "brisk", task)
    for system, each in finals.items():
        if unmeasured := {*SEEDS} - each.keys():
            missed.append(f"{task}, {system}: not measured for seed {', '.join(map(str, sorted(unmeasured)))}")
        if not each:
            continue
        runs = runs_of(found, system, task).values()
        shares = [reached(mine[seed], task, box, each[seed]) for seed in sorted(each.keys() & mine.keys())]
        after = "" if system == "brisk" else ", ".join("never" if one > 1 else f"{one:.0%}" for one in shares)
        counts = statistics.mean(run["outcomes"] for run in runs), statistics.mean(run["failed"] for run in runs)
        told = f"{len(each)} | {counts[0]:.0f} | {counts[1]:.0f} | {spread(list(each.values()))} | {after}"
        print(f"| {box} | {task} | {system} | {told} |")
    for seed, run in sorted(mine.items()):
        rivals = {one: finals[one][seed] for one in RIVALS if seed in finals[one]}
        if not rivals:
            continue
        best = max(rivals, key=lambda one: rivals[one])
        where, own_final = f"{box}, {task}, seed {seed}", finals["brisk"][seed]
        if own_final <= rivals[best]:
            missed.append(f"{where}: {best} has {rivals[best]:.4f}, brisk {own_final:.4f}")
        elif (sooner := reached(run, task, box, rivals[best])) > SOONER:
            missed.append(f"{where}: {best}'s hypervolume after {sooner:.0%} of the time")
    return missed


def of_itself(found: dict[str, Run], task: str) -> list[str]:
    """What brisk's own time went into, and what the second worker brings."""
    missed, two = [], runs_of(found, "brisk:two", task)
    alone = of_one_code(found, "brisk:one", task, beside="brisk:two")
    for seed, run in sorted(runs_of(found, "brisk", task).items()):
        other = run["spent"]["other_share"]
        gain = faster(two[seed], alone[seed]) if seed in alone else None
        print(f"| {task} | {seed} | {other:.1%} | {'' if gain is None else f'{gain:.2f}'} |")
        missed += [f"{task}, seed {seed}: {other:.1%} neither training nor measuring"] * (other > NEITHER)
        if gain is not None and gain < TWICE:
            missed.append(f"{task}, seed {seed}: two workers bring {gain:.2f}")
    return missed + [f"{task}: one worker and two not measured by one commit"] * (not alone)


def faster(two: Run, one: Run) -> float:
    """How many times sooner two workers had as many outcomes, of the same list, as one had at its end."""
    count = min(len(one["told_s"]), len(two["told_s"]))
    return float(one["told_s"][count - 1] / two["told_s"][count - 1])


def ablation(found: dict[str, Run], task: str) -> list[str]:
    """The rows of brisk without each economy; nothing is promised of them but to be there."""
    every = {one: of_one_code(found, f"brisk:{one}", task, beside="brisk:whole") for one in OFF}
    for seed in sorted(set().union(*every.values())):
        for one, runs in {"nothing": runs_of(found, "brisk:whole", task), **every}.items():
            if run := runs.get(seed):
                volumes = " | ".join(f"{final(run, task, box):.4f}" for box in BOXES)
                print(f"| {task} | {seed} | {one} | {run['models']} | {run['told']} | {volumes} |")
    missed = [
        f"without {one}: not measured beside brisk of the same code"
        for one in every
        if not any(of_one_code(found, f"brisk:{one}", each, beside="brisk:whole") for each in TASKS)
    ]
    for seed, run in sorted(every["halving"].items()):
        told = run["halved"]
        words = {name: "{} of {}".format(*told[name]) for name in ("models", "front", "scannable")}
        shares = {
            name: ", ".join(f"{share:.2%} ({box})" for box, share in told[name].items())
            for name in ("volume", "scannable_volume")
        }
        print(
            f"\nOn {task}, seed {seed}, rungs would have stopped {words['models']} trainings, and with them "
            f"{words['front']} points of the front, {words['scannable']} of those whose cell can be scanned; "
            f"{shares['volume']} of the hypervolume, and of that of what can be scanned {shares['scannable_volume']}."
        )
        missed += [
            f"{box}, {task}, seed {seed}: halving loses {share:.1%} of what can be scanned"
            for box, share in told["scannable_volume"].items()
            if share > LOST
        ]
    return missed


def of_one_code(found: dict[str, Run], system: str, task: str, beside: str) -> dict[int, Run]:
    """The runs of brisk in another way, by seed, those that were made by the commit that those `beside` were: another
    one's would be held against what it did not do.
    """
    whole = runs_of(found, beside, task)
    return {
        seed: run
        for seed, run in runs_of(found, system, task).items()
        if seed in whole and run["conditions"].get("commit", "") == whole[seed]["conditions"].get("commit")
    }


def spread(figures: Sequence[float]) -> str:
    """Their mean, and standard deviation where there are several."""
    deviation = f" ± {statistics.stdev(figures):.4f}" if len(figures) > 1 else ""
    return f"{statistics.mean(figures):.4f}{deviation}"


def runs_of(found: dict[str, Run], system: str, task: str) -> dict[int, Run]:
    """The runs of a system on a task, by seed."""
    prefix = f"{system} {task} "
    return {int(key.removeprefix(prefix)): run for key, run in found.items() if key.startswith(prefix)}


if __name__ == "__main__":
    sys.exit(main())
