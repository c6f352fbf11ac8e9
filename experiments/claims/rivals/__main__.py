"""Other searches of the same space by the same training and the same exporters: `experiments.claims.search` runs them.

    python -m experiments.claims.rivals SYSTEM TASK SEED ENDS FOLDER

SYSTEM searches until the second ENDS of the epoch. Each has two processes, a core each, and every candidate is one
trained model in one form, as its users have it:

optuna-nsga2, optuna-tpe   two processes of `study.optimize` on one storage; train, convert, time in the process.
kerastuner                 BayesianOptimization on validation error alone, a chief and two workers; what was trained is
                           converted and timed afterwards, the best first: the search stops in time for all of it.
moasha                     Syne Tune's MOASHA with its local backend: a process for each trial.
moasha-warm                the same scheduler without the local backend, over two processes that stay: TensorFlow is
                           imported twice and not for every trial. No user gets this without writing it.

MOASHA is told error, latency and size after every epoch; latency and size are those of the untrained file, which has
the same operators. Each finished candidate becomes a line of `FOLDER/found.jsonl`, its file beside it; each that
failed, with the reason, a line of `FOLDER/failed.jsonl`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.claims.rivals.ground import Ground, Where

SYSTEMS = ("optuna-nsga2", "optuna-tpe", "kerastuner", "moasha", "moasha-warm")


def main() -> None:
    """Search until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("task")
    parser.add_argument("seed", type=int)
    parser.add_argument("ends", type=float)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    where = Where(asked.task, asked.seed, asked.ends, str(asked.folder))
    if asked.system.startswith("optuna"):
        from experiments.claims.rivals.trials import search

        search(asked.system, where)
    elif asked.system == "kerastuner":
        from experiments.claims.rivals.tuned import search as tune

        tune(where)
    else:
        from experiments.claims.rivals.halved import search as halve

        halve(Ground(where), warm=asked.system == "moasha-warm")


if __name__ == "__main__":
    main()
