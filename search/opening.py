"""Opening a study: its tables in the home, and the plan that it was started with."""

from __future__ import annotations

import contextlib
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.samplers import BaseSampler

from search.history import Plan, database
from search.lock import alone, connection
from search.owned import OwnedStorage
from spaces.errors import StudyError
from spaces.record import from_json, to_json


@contextlib.contextmanager
def opened(home: Path, name: str, sampler: BaseSampler, objectives: int) -> Iterator[optuna.Study]:
    """The study in the storage, made where it is not there yet."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with alone(home / "locks" / "optuna.tables"):  # two first studies of a home would make its tables twice
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{database(home).resolve()}", engine_kwargs={"creator": lambda: connection(database(home))}
        )
    try:
        with contextlib.closing(connection(database(home))) as tables:
            yield optuna.create_study(
                storage=OwnedStorage(storage, tables),
                study_name=name,
                directions=["minimize"] * objectives,
                sampler=sampler,
                load_if_exists=True,
            )
    finally:
        storage.remove_session()
        storage.engine.dispose()


def take_plan(kept: optuna.Study, plan: Plan) -> None:
    """Keep the plan, or its new places and sampler. Raises StudyError where it differs from that of the start in more.

    A baseline that failed may be mended; before data and model were looked at, anything.
    """
    name, before = kept.study_name, kept.user_attrs.get("plan")
    begun = bool(kept.get_trials(deepcopy=False))
    if before == to_json(plan):
        return
    if before is None:
        if begun:
            raise StudyError(f"the storage has a study {name!r} that brisk did not make; choose another --name")
        kept.set_user_attr("id", uuid.uuid4().hex)
    else:
        changed = from_json(Plan, before).differences(plan)
        failed = kept.user_attrs.get("baseline")
        if not begun and not failed and "prepared" not in kept.user_attrs:
            changed = []
        if not begun:
            changed = [one for one in changed if not one.startswith("bench.hypermodel")]
        if failed and failed["state"] != "complete":  # what was tried meanwhile owes it nothing: it did not teach
            mended = [one for one in changed if one.startswith(("baseline", "bench.teacher", "bench.model"))]
            changed = [one for one in changed if one not in mended]
            if mended and not changed:
                kept.set_user_attr("baseline", None)
        if any(one.startswith("bench.model.sha256") for one in changed) and plan.bench.model:
            raise StudyError(
                f"the model {plan.bench.model.path} of study {name!r} has changed since it was started; put the old "
                "file back, or give a study of the new one a name of its own with --name"
            )
        if any(one.startswith("bench.hypermodel.sha256") for one in changed) and plan.bench.hypermodel:
            raise StudyError(
                f"the code of {plan.bench.hypermodel.path}, or what it imports beside it, has changed since study "
                f"{name!r} was started; take the change back, or give a study of the new code a name of its own with "
                "--name"
            )
        if changed:
            raise StudyError(
                f"the study {name!r} was started with another plan: {'; '.join(changed[:5])}. "
                "Give the study of the new plan a name of its own with --name, or take the change back"
            )
    if kept.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            kept.set_metric_names([*plan.objectives])  # for Optuna's dashboard
    kept.set_user_attr("plan", to_json(plan))
