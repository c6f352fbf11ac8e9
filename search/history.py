"""What a study is and what it has found, as plain records; read from a home's SQLite file without Optuna, which takes
two seconds to import and to check its tables, so that `show` answers at once and while the study runs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from objectives.bench import Bench
from objectives.outcome import Outcome
from spaces.errors import SpecError, StudyError, nearest
from spaces.gene import Gene
from spaces.genotype import Genotype
from spaces.record import digest, from_json, to_json
from spaces.space import Space

NO_CLOCK: dict[str, Any] = {
    "wall_s": 0.0,
    "training_s": 0.0,
    "measuring_s": 0.0,
    "workers_s": 0.0,
    "idle_s": 0.0,
    "sequences": 0,
    "epochs_s": 0.0,
    "ended": "",
}
STATES = ("complete", "infeasible", "stopped", "failed")
BESIDE = {"rewrite": "rewrites", "twin": "twins", "batch": "batches", "seed": "seeds"}
"""What is kept beside the trials, by what its names begin with: "twin-1"."""


@dataclass(frozen=True)
class Plan:
    """What a study looks for, and under which conditions; one that goes on must have the plan it was started with.

    `objectives` are two or more names of `objectives.objective.OBJECTIVES`. `evaluator` is the module with the
    functions `prepare`, `warm`, `evaluate` and `final`: "objectives.judge", or "objectives.rehearsal", which invents.
    """

    bench: Bench
    space: Space
    objectives: tuple[str, ...]
    baseline: Genotype | None = None
    sampler: str = "auto"
    evaluator: str = "objectives.judge"
    tracking: str = ""  # MLflow's URI; "" is the home's own store
    warm_start: tuple[str, ...] = ("known",)  # where it begins (`search.warm`)
    confirm_seeds: int = 1  # how often members of the front are trained in all

    def differences(self, other: Plan) -> list[str]:
        """The keys, with both values, in which two plans differ that should be one; where files lie does not count."""
        mine, theirs = _flat(_fixed(self)), _flat(_fixed(other))
        keys = [key for key in mine | theirs if mine.get(key) != theirs.get(key)]
        return [f"{key} was {json.dumps(mine.get(key))}, is {json.dumps(theirs.get(key))}" for key in keys]

    @property
    def rehearsal(self) -> bool:
        """Whether all its figures are invented."""
        return self.evaluator == "objectives.rehearsal"

    @property
    def key(self) -> str:
        """Names the plan."""
        return digest(_fixed(self))


@dataclass(frozen=True)
class History:
    """All that a study holds. Trials are told (`outcomes`), `running`, or duplicates, which count for nothing.

    `prepared` is what the evaluator's `prepare` gave, {} before. `finals` are the outcomes re-measured at the end, by
    name; empty where trials were told since, but `judged` has them still. `wall_s`, the driver's time over all
    sessions, went into `training_s` and `measuring_s` (no moment counts twice, however many workers) and the rest;
    importing before and sending to MLflow after the driver are not in it. `ended` says why the last session ended, ""
    while one runs or after it was killed. No trials either, by name: `rewrites`, the forms of the user's own model
    ("rewrite-1", ...);
    `twins` of members of the front, without a training technique ("twin-1"); `batches`, the chosen candidate at
    several batch sizes ("batch-4"); `seeds`, members of the front trained again ("seed-1-12"). `sequences` were trained
    on, each time one was, in `epochs_s` of the workers' time.
    Of `workers_s`, the wall time of each worker, `idle_s` went by with nothing to do, or waiting for the device.
    `skipped` proposals were of a kind that is known to kill its process; they count for nothing either.
    `ensemble` are the models that teach, where several do, () before they are settled. `id` tells a study from others
    of its name; "" where an older brisk began it.
    """

    name: str
    plan: Plan
    prepared: Mapping[str, Any]
    baseline: Outcome | None
    outcomes: Mapping[int, Outcome]
    running: Mapping[int, Genotype]
    duplicates: int
    finals: Mapping[int | str, Outcome]
    wall_s: float
    training_s: float
    measuring_s: float
    ended: str
    rewrites: Mapping[str, Outcome] = field(default_factory=dict)
    twins: Mapping[str, Outcome] = field(default_factory=dict)
    batches: Mapping[str, Outcome] = field(default_factory=dict)
    seeds: Mapping[str, Outcome] = field(default_factory=dict)
    ensemble: tuple[Genotype, ...] = ()
    sequences: int = 0
    epochs_s: float = 0.0
    workers_s: float = 0.0
    idle_s: float = 0.0
    skipped: int = 0
    judged: Mapping[int | str, Outcome] = field(default_factory=dict)
    id: str = ""

    @property
    def bench(self) -> Bench:
        """The plan's bench, with what is known of data and model since they were looked at."""
        return known_bench(self.plan, self.prepared, self.ensemble)

    @functools.cached_property
    def candidates(self) -> Mapping[int | str, Outcome]:
        """All that may be on the front: the trials, and the user's model rewritten."""
        every: dict[int | str, Outcome] = {}
        every.update(self.outcomes.items())
        every.update(self.rewrites.items())
        return every

    @property
    def counts(self) -> dict[str, int]:
        """How many trials there are in each state; duplicates left out."""
        found = Counter(outcome.state for outcome in self.outcomes.values())
        return {state: found[state] for state in STATES} | {"running": len(self.running)}


def known_bench(plan: Plan, prepared: Mapping[str, Any], ensemble: tuple[Genotype, ...] = ()) -> Bench:
    """A plan's bench with what the evaluator's `prepare` found: the data's digest, the padding of the user's model; and
    with the ensemble that teaches, once there is one.
    """
    bench, looked, explored = plan.bench, prepared.get("model"), prepared.get("hypermodel")
    model = replace(bench.model, padding=looked["padding"]) if bench.model and looked else bench.model
    code = bench.hypermodel
    code = replace(code, padding=explored["padding"]) if code and explored else code
    known = {"data_digest": prepared.get("digest", ""), "model": model, "ensemble": ensemble, "hypermodel": code}
    return replace(bench, **known)


def known_space(plan: Plan, prepared: Mapping[str, Any]) -> Space:
    """A plan's space, with the genes that the evaluator's `prepare` found where the user's code spans it.

    Raises SpecError where the space names a learning rate for models that set their own.
    """
    space, explored = plan.space, prepared.get("hypermodel")
    if not explored:
        return space
    if explored["compiled"] and space.learning_rate != Space().learning_rate:
        raise SpecError(
            f"space.learning_rate: got {list(space.learning_rate)}, but {space.hypermodel} trains its models with an "
            "optimizer of its own; leave the key out"
        )
    rates = (0.0,) if explored["compiled"] else space.learning_rate
    return replace(space, genes=tuple(from_json(Gene, gene) for gene in explored["genes"]), learning_rate=rates)


def database(home: Path) -> Path:
    """The home's study storage."""
    return home / "optuna.db"


def read(home: Path, name: str) -> History:
    """A study as it stands now, also while another process drives it. Raises StudyError where there is none."""
    with _tables(home) as tables:
        found = tables.execute("SELECT study_id FROM studies WHERE study_name = ?", [name]).fetchone()
        if found is None:
            others = [other for (other,) in tables.execute("SELECT study_name FROM studies ORDER BY study_id")]
            advice = nearest(name, others) if others else "it has none yet"
            raise StudyError(f"there is no study {name!r} in {home}; {advice}")
        attributes = tables.execute("SELECT key, value_json FROM study_user_attributes WHERE study_id = ?", found)
        kept = {key: json.loads(value) for key, value in attributes}
        rows = tables.execute("SELECT trial_id, number, state FROM trials WHERE study_id = ? ORDER BY number", found)
        trials: dict[int, tuple[int, str, dict[str, Any]]] = {row[0]: (row[1], row[2], {}) for row in rows}
        for trial, key, value in tables.execute(
            "SELECT trial_id, key, value_json FROM trial_user_attributes "
            "WHERE trial_id IN (SELECT trial_id FROM trials WHERE study_id = ?)",
            found,
        ):
            trials[trial][2][key] = json.loads(value)
    return assembled(name, kept, trials.values())


def assembled(name: str, kept: Mapping[str, Any], trials: Iterable[tuple[int, str, Mapping[str, Any]]]) -> History:
    """The history from a study's user attributes and each trial's (number, Optuna state, user attributes)."""
    if "plan" not in kept:
        raise StudyError(f"the study {name!r} was not made by brisk, or is only just being made")
    outcomes: dict[int, Outcome] = {}
    running: dict[int, Genotype] = {}
    duplicates = skipped = 0
    for number, state, attributes in trials:
        if "duplicate_of" in attributes:
            duplicates += 1
        elif "skipped" in attributes:
            skipped += 1
        elif state in ("RUNNING", "WAITING"):
            if "genotype" in attributes:
                running[number] = from_json(Genotype, attributes["genotype"])
        elif "outcome" in attributes:
            outcomes[number] = from_json(Outcome, attributes["outcome"])
    final = kept.get("final", {"told": -1, "outcomes": {}})
    judged = {int(key) if key.isdigit() else key: from_json(Outcome, plain) for key, plain in final["outcomes"].items()}
    return History(
        name=name,
        plan=from_json(Plan, kept["plan"]),
        prepared=kept.get("prepared", {}),
        baseline=from_json(Outcome, kept["baseline"]) if kept.get("baseline") else None,
        outcomes=outcomes,
        running=running,
        duplicates=duplicates,
        skipped=skipped,
        finals=judged if final["told"] == len(outcomes) else {},
        judged=judged,
        id=kept.get("id", ""),
        **clock_of(kept),
        rewrites=_outcomes(kept.get("rewrites", {})),
        twins=_outcomes(kept.get("twins", {})),
        batches=_outcomes(kept.get("batches", {})),
        seeds=_outcomes(kept.get("seeds", {})),
        ensemble=tuple(from_json(Genotype, plain) for plain in kept.get("ensemble", [])),
    )


def clock_of(kept: Mapping[str, Any]) -> dict[str, Any]:
    """How long a study has run so far, from its user attributes; those of another version may know more or less."""
    clock = kept.get("clock", {})
    return {key: clock.get(key, least) for key, least in NO_CLOCK.items()}


def _outcomes(kept: Mapping[str, Any]) -> dict[str, Outcome]:
    return {name: from_json(Outcome, plain) for name, plain in kept.items()}


@contextlib.contextmanager
def _tables(home: Path) -> Iterator[sqlite3.Connection]:
    """One snapshot of the storage; opened to write where that is allowed, to undo what a kill left half-done.

    Raises StudyError where there is none, or none that can be read.
    """
    path = database(home)
    if not path.exists():
        raise StudyError(
            f"there is no study in {home}: it has no {path.name}; start one with `brisk run`, or name --home"
        )
    alone = "" if path.with_name(f"{path.name}-wal").exists() else "&immutable=1"  # nobody is writing there
    mode = "mode=rw" if os.access(home, os.W_OK) else f"mode=ro{alone}"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, timeout=60)) as tables:
            tables.execute("BEGIN")
            yield tables
    except sqlite3.DatabaseError as error:
        raise StudyError(
            f"{path} cannot be read ({error}); if a first study of the home is just being started, try again in a "
            "moment, else the file is damaged: put a copy of it back, or name another --home"
        ) from None


def _fixed(plan: Plan) -> dict[str, Any]:
    """What of a plan a study may not change: where things lie and run, and how candidates are proposed, it may."""
    plain = to_json(plan)
    for key in ("sampler", "warm_start", "confirm_seeds", "tracking"):
        del plain[key]
    for key in ("home", "root", "data_digest", "ensemble", "repeat", "in_full"):
        del plain["bench"][key]
    del plain["bench"]["training"]["accelerator"]
    if model := plain["bench"]["model"]:
        del model["path"], model["padding"], model["layers"]
    if code := plain["bench"]["hypermodel"]:
        del code["padding"]
    return plain


def _flat(plain: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(plain, dict) or not plain:
        return {path: plain}
    parts = [_flat(value, f"{path}.{key}" if path else key) for key, value in plain.items()]
    return {key: value for part in parts for key, value in part.items()}
