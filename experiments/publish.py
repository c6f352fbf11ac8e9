"""MLflow as the shop window of a study: what is sent while it runs, at its end, and by `brisk sync`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from objectives.outcome import Outcome
from search.history import History, read
from search.ledger import Key
from search.summary import searched_corner, summarise, task_of
from search.tracking import Projection, home_store, project
from spaces.errors import InputError, StudyError
from spaces.signature import Signature


def sink(home: Path, history: History) -> Callable[[], Projection]:
    """What opens the study in MLflow."""
    uri, artifacts = store(home, history.plan.tracking)
    return lambda: Projection(uri, artifacts, history.name, task_of(history), history.id)


def publish(home: Path, history: History) -> str:
    """Make MLflow show the study as it is, its front as page, picture and table; gives why it could not, or ""."""
    summary = summarise(history)
    try:
        from experiments.plots import drawings

        with tempfile.TemporaryDirectory(prefix="brisk-") as folder:
            files = drawings(summary, list(history.candidates.items()), Path(folder), history)
        searched = searched_corner(history), list(history.candidates.items())
        project(*store(home, history.plan.tracking), history.name, summary, shown(history), files, history.id, searched)
    except Exception as error:  # whatever MLflow or a drawing raises: the study is complete without it
        return f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return ""


def sync_study(home: Path, study: str) -> None:
    """`brisk sync`. Raises InputError for a rehearsal, StudyError where there is no study or no MLflow."""
    history = read(home, study)
    if history.plan.rehearsal:
        raise InputError(f"{study}: its figures are invented, and MLflow holds none; take a study without --rehearse")
    if reason := publish(home, history):
        raise StudyError(
            f"MLflow at {history.plan.tracking or home} was not brought up to date: {reason}; mend that and sync again"
        )
    click.echo(f"MLflow shows all {len(history.outcomes)} trials of {study}; `brisk ui {study}` opens it")


def register(home: Path, history: History, trial: Key, model: Path, signature: Signature) -> str:
    """Make a candidate's .tflite the newest version of the study's registered model; says so, or why it could not."""
    uri, artifacts = store(home, history.plan.tracking)
    try:
        projection = Projection(uri, artifacts, history.name, task_of(history), history.id)
        version = projection.register(trial, model, signature, name=history.name, aliases=["exported"])
    except Exception as error:  # the export is complete without it
        return f"It was not registered with MLflow: {type(error).__name__}: {error}".splitlines()[0][:300]
    return f"Its .tflite is registered with MLflow as {history.name} version {version}, alias exported."


def shows(name: Key) -> bool:
    """Whether MLflow gives a candidate a run: those beside the trials that may not be on the front have none."""
    return not str(name).startswith(("twin-", "batch-", "seed-"))


def shown(history: History) -> list[tuple[Key, Outcome]]:
    """Every outcome as it is known best, baseline and rewrites with them."""
    told: dict[Key, Outcome] = {}
    told.update(history.candidates.items())
    told.update((name, outcome) for name, outcome in history.finals.items() if shows(name))
    if history.baseline:
        told.setdefault("baseline", history.baseline)
    return list(told.items())


def store(home: Path, uri: str) -> tuple[str, str]:
    """MLflow's tracking URI and artifact folder of a study: its plan's own `tracking`, or the home's store."""
    return (uri, "") if uri else home_store(home)
