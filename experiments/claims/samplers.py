"""Which sampler finds the most in how many outcomes, and what proposals cost: `python -m experiments.claims.samplers`.

    python -m experiments.claims.samplers [--seeds 6] [--only NAME ...] [--untimed]

Studies on the rehearsal's invented figures, in memory, so that one takes seconds; its errors are smooth, with a luck of
their own for each seed. A figure is the hypervolume of (error, log of ms, log of KiB) below `REFERENCE`, at three
budgets of outcomes. "known" studies begin with the known points, as is the default, "own" ones with the sampler's.
Then the default is timed on disk, in a space of one form a model, so that every outcome is asked of the sampler.
Runs that `samplers.json` has are not done again. Ends with 1 where the default has less than another sampler by more
than two standard errors, or where asking and telling take longer than promised or were not timed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import TPESampler

from experiments.claims.digits import conditions
from objectives.bench import Bench, TaskSpec, TrainingSpec
from objectives.objective import OBJECTIVES
from objectives.outcome import Conditions, Outcome
from objectives.rehearsal import invented, prepare
from search.front import front, hypervolume
from search.history import Plan, database
from search.samplers import AUTO, SAMPLERS, Make, SeededSampler, named
from search.study import SpaceExhausted, Study
from search.warm import KNOWN
from spaces.catalog import CELLS
from spaces.record import to_json
from spaces.space import Space

KEPT = Path(__file__).with_suffix(".json")
BUDGETS = (30, 100, 300)
REFERENCE = (0.3, math.log(2.0), math.log(2e3))  # error, ms, KiB: what is beyond is not wanted
PROMISED_MS = {1000: 200.0, 5000: 1000.0}
TIMED = (100, 1000, 2500, 5000)
WINDOW = 5  # proposals that are timed at each of these

SPACES = {
    "digits": Space(
        cell=("gru", "lstm", "fastgrnn", "mingru", "qrnn"),
        units=(16, 64, 16),
        frame_stack=(4, 8, 16),
        readout=("last", "mean"),
        learning_rate=(4e-3, 1.6e-2),
        lowering=("loop", "scan"),
        steps=(1, 8),
        bits=("32", "8", "rec4"),
    ),
    "wide": Space(
        cell=tuple(CELLS),
        units=(8, 256, 8),
        layers=(1, 2, 3),
        bidirectional=(False, True),
        frame_stack=(1, 2, 4, 8, 16),
        readout=("last", "mean", "attention"),
        dropout=(0.0, 0.4),
        rank=(0, 8, 16),
        residual=(False, True),
        learning_rate=(1e-4, 1e-1),
        sparsity=(0.0, 0.5, 0.8),
        pruned_units=(0.0, 0.25, 0.5),
        qat=("", "8", "rec4"),
        bits=("32", "8", "rec8", "rec4"),
        lowering=("loop", "scan", "parallel"),
        steps=(1, 4, 8),
    ),
    "small": Space(
        cell=("lstm", "gru"), units=(8, 128, 8), learning_rate=(1e-3, 3e-2), lowering=("loop",), bits=("32", "8")
    ),
}
LOOPED = tuple(cell for cell, row in CELLS.items() if "loop" in row.lowerings)
ONE_FORM = replace(SPACES["wide"], cell=LOOPED, qat=("",), bits=("32",), lowering=("loop",), steps=(4,))
RIVALS: dict[str, Make] = {
    **{name: SAMPLERS[name] for name in (AUTO, "tpe", "nsga2", "random")},
    "tpe, 40 random first": lambda seed: TPESampler(seed=seed, n_startup_trials=40),
    "tpe, multivariate": lambda seed: TPESampler(seed=seed, multivariate=True, group=True),
}
STARTS = {"known": (KNOWN,), "own": ()}


def main() -> int:
    """Do the runs that are missing, print both tables, keep them; 1 where the default is behind or slow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--only", nargs="*", choices=SPACES, default=list(SPACES), help="spaces to do")
    parser.add_argument("--untimed", action="store_true", help="leave the timing as it is")
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    kept: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    if kept.get("reference") != [*REFERENCE]:  # figures of another box do not compare
        kept = {"reference": [*REFERENCE], "runs": {}}
    kept["conditions"] = conditions()
    for seed, start, space, sampler in product(range(asked.seeds), STARTS, asked.only, RIVALS):
        found = kept["runs"].setdefault(f"{space}, {start}: {sampler}", {})
        if str(seed) not in found:
            found[str(seed)] = [round(volume, 3) for volume in run(sampler, space, start, seed)]
            _keep(kept)
    print(_table(kept["runs"]))
    if not asked.untimed:
        kept["timed"] = timed(AUTO)
        _keep(kept)
    missed = [*_behind(kept["runs"]), *_late(kept.get("timed", {}))]
    for one in missed:
        print(f"MISSED {one}")
    return int(bool(missed))


def _behind(runs: dict[str, dict[str, list[float]]]) -> Iterator[str]:
    """Where the default has less than another sampler by more than two standard errors of their difference."""
    for (name, found), (place, budget) in product(runs.items(), enumerate(BUDGETS)):
        where, _, sampler = name.rpartition(": ")
        theirs, mine = ([one[place] for one in each.values()] for each in (found, runs[f"{where}: {AUTO}"]))
        error = math.hypot(*(statistics.stdev(one) / math.sqrt(len(one)) for one in (theirs, mine) if len(one) > 1))
        behind = statistics.mean(theirs) - statistics.mean(mine)
        if behind > 2 * error:
            yield f"{where} at {budget}: {sampler} has {behind:.2f} more than the default, +- {error:.2f}"


def _late(found: dict[str, dict[str, float]]) -> Iterator[str]:
    """Where asking and telling took longer than promised, or was not timed."""
    for trials, most in PROMISED_MS.items():
        took = found.get(str(trials), {}).get("wall_ms", math.inf)
        if took > most:
            yield f"asking and telling at {trials} trials: {took:g} ms, promised {most:g}"


def _keep(kept: dict[str, Any]) -> None:
    KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _table(runs: dict[str, dict[str, list[float]]]) -> str:
    """Means with their standard errors."""
    rows = [f"| space, start: sampler | seeds | {' | '.join(map(str, BUDGETS))} |", "|---|---|---|---|---|"]
    for name, found in sorted(runs.items()):
        columns = list(zip(*found.values(), strict=True))
        spread = [statistics.stdev(one) / math.sqrt(len(one)) if len(one) > 1 else math.nan for one in columns]
        means = [f"{statistics.mean(one):.2f} +- {error:.2f}" for one, error in zip(columns, spread, strict=True)]
        rows.append(f"| {name} | {len(found)} | {' | '.join(means)} |")
    return "\n".join(rows)


def plan(home: Path, space: Space, seed: int, start: str, sampler: str = "tpe") -> Plan:
    """A study of digits; the seed is the sampler's and, by `repeat`, that of the luck."""
    task, training = TaskSpec(data="digits-pixels"), TrainingSpec()
    bench = Bench(task, training, seed, "local", Conditions(), {}, str(home), repeat=seed + 1)
    return Plan(bench, space, ("quality", "latency", "size"), None, sampler, "objectives.rehearsal", "", STARTS[start])


def run(sampler: str, space: str, start: str, seed: int) -> list[float]:
    """The hypervolume that one study has found at each budget."""
    kept = optuna.create_study(directions=["minimize"] * 3, sampler=SeededSampler(RIVALS[sampler], seed))
    volumes = []
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        home = Path(folder)
        asked = plan(home, SPACES[space], seed, start, AUTO if sampler == AUTO else "tpe")
        with Study(home, asked, kept, contextlib.ExitStack()) as study:
            study.keep_prepared(prepare(to_json(asked.bench)))
            for budget in BUDGETS:
                _tell(study, budget)
                costs = {number: costs_of(outcome) for number, outcome in study.outcomes.items()}
                volumes.append(hypervolume([costs[number] for number in front(costs)], REFERENCE))
    return volumes


def costs_of(outcome: Outcome) -> list[float]:
    """Error, and the logarithms of latency and size."""
    error, latency, size = (OBJECTIVES[name].read(outcome) for name in ("quality", "latency", "size"))
    assert error is not None
    assert latency
    assert size
    return [round(cost, 4) for cost in (error, math.log(latency), math.log(size))]


def timed(sampler: str) -> dict[str, dict[str, float]]:
    """What a proposal and its telling cost at each number of trials in a study on disk, in ms: wall and CPU time.

    The trials before come of random proposals, told in memory and copied: the storage would take minutes for them.
    """
    found = {}
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        home = Path(folder)
        asked = plan(home, ONE_FORM, 0, "own", sampler)
        drawn = optuna.create_study(directions=["minimize"] * 3, sampler=SeededSampler(named("random"), 0))
        with (
            Study(home, asked, drawn, contextlib.ExitStack()) as source,
            Study.start(home, "timed", asked) as begun,
        ):
            for study in (source, begun):
                study.keep_prepared(prepare(to_json(asked.bench)))
            _tell(source, max(TIMED))
        kept = optuna.load_study(study_name="timed", storage=f"sqlite:///{database(home)}")
        for trials in TIMED:
            have = len(kept.get_trials(deepcopy=False))
            kept.add_trials([trial for trial in drawn.get_trials(deepcopy=False)[have:trials] if trial.values])
            with Study.start(home, "timed", asked) as study:
                _tell(study, len(study.outcomes) + 1)  # reads the trials once, as a start does
                wall, cpu, had = time.perf_counter(), time.process_time(), len(study.outcomes)
                _tell(study, had + WINDOW)
                spent = {"wall_ms": time.perf_counter() - wall, "cpu_ms": time.process_time() - cpu}
            found[str(trials)] = {name: round(1000 * seconds / WINDOW, 1) for name, seconds in spent.items()}
            print(f"{sampler} at {trials} trials: {found[str(trials)]}", flush=True)
    return found


def _tell(study: Study, trials: int) -> None:
    with contextlib.suppress(SpaceExhausted):
        while group := study.next_group(trials):
            for number, genotype in zip(group.numbers, group.genotypes, strict=True):
                study.tell(number, invented(study.plan.bench, genotype))


def _memory() -> str | None:
    """A folder in memory, where the machine has one: the promise is about the search, not the disk."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    sys.exit(main())
