"""Plain Optuna: a study on a journal file, optimised by two processes."""

from __future__ import annotations

import os
from typing import Any

from experiments.claims.rivals.ground import Ground, Where, nothing, side_by_side


def search(kind: str, where: Where) -> None:
    """Until the time is over."""
    side_by_side(optimise, where, kind)


def optimise(where: Where, kind: str, core: int, start: int) -> None:
    """One of the processes that share the study; samplers as they come, seeded."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    os.sched_setaffinity(0, {core})
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    here = Ground(where)
    seed = 1000 * where.seed + 10 * core + start
    samplers = {"optuna-nsga2": optuna.samplers.NSGAIISampler, "optuna-tpe": optuna.samplers.TPESampler}
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(here.folder / "journal.log"))),
        study_name="rival",
        directions=["minimize"] * 3,
        sampler=samplers[kind](seed=seed),
        load_if_exists=True,
    )

    def objective(trial: Any) -> tuple[float, float, float]:
        with here.noting_failures():
            genotype = here.sample(trial)
            origin = here.origin(genotype)
            origin.train(nothing)
            path = here.lowered(origin, genotype)
            return here.found(genotype, path, here.timed_ms(path))

    study.optimize(objective, timeout=max(here.left, 0.1), catch=(Exception,))
