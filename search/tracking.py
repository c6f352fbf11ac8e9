"""MLflow, a projection of the study: rebuilt from it at any time, never read to decide anything.

One experiment per task, one parent run per study, one child run per candidate. Every write may be repeated: a run is
found by its tags (`brisk.study`, `brisk.trial`) and carries a digest of what it shows, written last, so that a process
killed half-way leaves a run that is completed, not doubled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from objectives.outcome import Outcome
from search.ledger import Key, Row, child_row, curve, point_row, study_metrics, study_tags, view_state
from search.registered import travelling_code
from search.turns import alone, swap
from spaces.record import digest
from spaces.signature import Signature

log = logging.getLogger("brisk.tracking")

MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default of 7 blocks 247 s for each call to a dead server
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # saves 15 s of start-up and several processes (`brisk ui`)
}
"""MLflow's own switches, as brisk needs them; a user's own values win."""

STATUS = {"complete": "FINISHED", "infeasible": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
PAGE = 1000  # MLflow's largest batch of metrics, and our page of runs
OLDEST_FIRST = ["attributes.start_time"]
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)
"""Where MLflow's tables hold whole paths."""

EXPERIMENT_NOTE = "Recurrent models searched by brisk: a parent run per study, whose front the Views menu opens."


def home_store(home: Path) -> tuple[str, str]:
    """The tracking URI and the artifact folder of a home, both absolute."""
    return f"sqlite:///{home.resolve() / 'mlflow.db'}", str(home.resolve() / "mlartifacts")


def task_name(task: Mapping[str, Any]) -> str:
    """The experiment's name: the data's, without folders or ending."""
    data = str(task.get("data") or task.get("kind") or "task")
    return "brisk/" + (Path(data).stem if data.endswith((".npz", ".npy", ".csv", ".parquet")) else data)


@dataclasses.dataclass(frozen=True)
class _Shown:
    """What a candidate's run shows, as we wrote or read it: asking MLflow for it takes time."""

    run_id: str
    artifact_uri: str
    status: str
    tags: Mapping[str, str]
    params: frozenset[str]

    @classmethod
    def of(cls, run: Any) -> _Shown:
        return cls(run.info.run_id, run.info.artifact_uri, run.info.status, run.data.tags, frozenset(run.data.params))

    def with_more(self, row: Row, status: str) -> _Shown:
        tags, params = {**self.tags, **row.tags}, self.params | row.params.keys()
        return dataclasses.replace(self, tags=tags, params=params, status=status)


class Projection:
    """One study in one MLflow store.

    Opening it connects, migrates a new database, and finds or makes the study's parent run. Writers of one SQLite store
    take turns under a file lock, for two first openings at once would race through the migration, and two writers would
    give a candidate two runs.
    """

    def __init__(self, uri: str, artifact_root: str, study: str, task: Mapping[str, Any], identity: str = "") -> None:
        self._uri, self._study, self._stamp = uri, study, f"{os.getpid()}-{time.time_ns()}"
        self._view_key = _view_key(study, identity)
        self._runs: dict[Key, _Shown] = {}
        self._unread = True
        with alone(uri):
            self._client = _client(uri)
            if artifact_root:  # the home's own, not one of the user's, which may lie on a network
                _log_ahead(uri)
                _settle_in(uri, artifact_root)
            self._experiment = _experiment(self._client, task_name(task), artifact_root)
            mine = {"brisk.kind": "study", "brisk.study": study, **({"brisk.id": identity} if identity else {})}
            self._parent = _parent(self._client, self._experiment, study, identity) or self._client.create_run(
                self._experiment, run_name=study, tags=mine
            )
        self._parent_id: str = self._parent.info.run_id
        with self._turn():
            self._log(self._parent_id, Row(params=_new_params(self._parent.data.params, {**task, "study": study})))

    def trial(self, number: Key, outcome: Outcome) -> None:
        """Show one candidate as it stands now; nothing is written where its run already shows just that."""
        with self._turn():
            row = child_row(number, outcome)
            mark = digest(dataclasses.asdict(outcome))
            run = self._runs.get(number)
            status = STATUS.get(outcome.state, "FINISHED")
            if run and run.tags.get("brisk.digest") == mark and run.status == status:
                return
            if run is None:
                tags = {"brisk.kind": "trial", "brisk.study": self._study, "brisk.trial": str(number)}
                created = self._client.create_run(
                    self._experiment,
                    start_time=int((time.time() - sum(outcome.seconds.values())) * 1000),
                    tags={**tags, "brisk.pareto": "false", "mlflow.parentRunId": self._parent_id},
                    run_name=row.name,
                )
                run = self._runs[number] = _Shown.of(created)  # found again, should the rest fail
            fresh = dataclasses.replace(
                row, params=_new_params(run.params, row.params), tags={**row.tags, "brisk.digest": mark}
            )
            self._log(run.run_id, fresh)
            self._client.set_terminated(run.run_id, status)
            self._runs[number] = run.with_more(fresh, status)

    def front(self, summary: Mapping[str, Any], outcomes: Sequence[tuple[Key, Outcome]]) -> None:
        """Tag the candidates on the front, untag those that left it, and draw the study's curves on the parent run."""
        with self._turn():
            points = {point["trial"]: point for point in summary["front"]}
            for number, run in list(self._runs.items()):
                mark = digest(points[number]) if number in points else ""
                if run.tags.get("brisk.point", "") == mark:
                    continue
                row = point_row(points.get(number), mark)
                self._log(run.run_id, row)
                self._runs[number] = run.with_more(row, run.status)
            self._parent = self._client.get_run(self._parent_id)
            self._draw_curves(summary, outcomes)
            tags, metrics, mine = study_tags(summary), study_metrics(summary), self._parent.data
            fresh = Row(
                metrics={key: figure for key, figure in metrics.items() if mine.metrics.get(key) != figure},
                tags={key: tag for key, tag in tags.items() if mine.tags.get(key) != tag},
            )
            self._log(self._parent_id, fresh)
            self._save_view(summary)

    def attach(self, files: Mapping[str, str | bytes]) -> None:
        """Put files (name -> contents) on the parent run, in place of earlier ones of the same names."""
        with self._turn(), tempfile.TemporaryDirectory(prefix="brisk-") as folder:
            for name, contents in files.items():
                path = Path(folder, name)
                path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
                self._client.log_artifact(self._parent_id, str(path))

    def finished(self) -> None:
        """Mark the study's run as such."""
        with self._turn():
            self._client.set_terminated(self._parent_id)

    def register(
        self,
        trial: Key,
        model: Path,
        signature: Signature,
        *,
        name: str,
        aliases: Sequence[str] = (),
    ) -> int:
        """Make an exported .tflite the newest version of the registered model `name`; returns the version.

        It is kept on its candidate's run with the few files that run it, so that
        `mlflow.pyfunc.load_model("models:/name@alias")` needs numpy and ai-edge-litert where it is loaded, not brisk.
        """
        import mlflow

        with self._turn(), tempfile.TemporaryDirectory(prefix="brisk-") as folder:
            run = self._runs.get(trial) or _Shown.of(self._parent)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its own type hints, and of the missing example
                mlflow.pyfunc.save_model(
                    Path(folder, "model"),
                    loader_module="search.registered",
                    data_path=str(model),
                    code_paths=travelling_code(Path(folder, "code")),
                    signature=_model_signature(signature),
                    pip_requirements=["numpy", "ai-edge-litert"],
                )
            self._client.log_artifacts(run.run_id, str(Path(folder, "model")), "model")
            with contextlib.suppress(mlflow.MlflowException):  # it exists already
                self._client.create_registered_model(name)
            about = {"brisk.study": self._study, "brisk.trial": str(trial)}
            source = f"{run.artifact_uri}/model"
            version = self._client.create_model_version(name, source, run_id=run.run_id, tags=about)
            for alias in aliases:
                self._client.set_registered_model_alias(name, alias, version.version)
            return int(version.version)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the store; where another process has written since our last turn, read the study's runs again."""
        with alone(self._uri) as lock:
            others_wrote = lock is not None and swap(lock, self._stamp) != self._stamp
            if others_wrote or self._unread:
                self._read_runs()
                self._unread = False
            yield

    def _read_runs(self) -> None:
        self._runs = {}
        for run in _search(self._client, self._experiment, f"tags.`mlflow.parentRunId` = '{self._parent_id}'"):
            tag = run.data.tags.get("brisk.trial", "")
            number: Key = int(tag) if tag.isdigit() else tag
            if number in self._runs:  # two writers on a server without our lock: keep the older
                self._client.delete_run(run.info.run_id)
            elif tag:
                self._runs[number] = _Shown.of(run)

    def _draw_curves(self, summary: Mapping[str, Any], outcomes: Sequence[tuple[Key, Outcome]]) -> None:
        """The steps that are not drawn yet; timed from the study's start, so that drawing one twice changes nothing."""
        start = self._parent.info.start_time
        steps = curve(summary, outcomes, since=int(self._parent.data.tags.get("brisk.drawn", "0")))
        metrics = [(key, value, start + step, step) for step, values in steps for key, value in values.items()]
        if steps:
            self._log(self._parent_id, Row(tags={"brisk.drawn": str(steps[-1][0])}), metrics)

    def _log(self, run_id: str, row: Row, steps: Iterable[tuple[str, float, int, int]] = ()) -> None:
        """One `log_batch` (more only past MLflow's limit); the tags are written last, as `brisk.digest` needs."""
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, 0) for key, value in row.metrics.items()]
        metrics += [Metric(*step) for step in steps]
        params = [Param(key, value) for key, value in row.params.items()]
        tags = [RunTag(key, tag) for key, tag in row.tags.items()]
        while len(metrics) > PAGE:
            self._client.log_batch(run_id, metrics[:PAGE])
            metrics = metrics[PAGE:]
        if metrics or params or tags:
            self._client.log_batch(run_id, metrics, params, tags)

    def _save_view(self, summary: Mapping[str, Any]) -> None:
        """A saved view that opens the UI on the front. Its format is the UI's own and undocumented: never required."""
        try:
            tags = self._client.get_experiment(self._experiment).tags
            if "mlflow.note.content" not in tags:
                self._client.set_experiment_tag(self._experiment, "mlflow.note.content", EXPERIMENT_NOTE)
            key = f"mlflow.sharedViewState.{self._view_key}"
            if not summary["front"]:
                return
            state = view_state(self._parent_id, f"validation_{summary['front'][0]['quality']['metric']}")
            if key in tags and json.loads(tags[key])["state"] == state:
                return
            view = {"name": f"{self._study}: front", "createdAt": int(time.time() * 1000), "state": state}
            self._client.set_experiment_tag(self._experiment, key, json.dumps(view))
        except Exception as error:
            log.warning("the saved view of MLflow's UI was not written: %s", error)


def project(
    uri: str,
    artifact_root: str,
    study: str,
    summary: Mapping[str, Any],
    outcomes: Sequence[tuple[Key, Outcome]],
    files: Mapping[str, str | bytes] | None = None,
    identity: str = "",
    searched: tuple[Mapping[str, float], Sequence[tuple[Key, Outcome]]] | None = None,
) -> Projection:
    """Make the store show the study as it is now: what `brisk sync` does. Idempotent.

    `summary` is the JSON of `show`; `outcomes` every told trial, by number; `files` go on the parent run, beside
    `front.json`. The curves are of `searched`, where that is given: the corner and the outcomes as the search saw them,
    for figures of the end are of another sitting. Raises whatever MLflow raises where the store cannot be reached.
    """
    corner, told = searched or (summary.get("reference") or {}, outcomes)
    projection = Projection(uri, artifact_root, study, summary["task"], identity)
    for number, outcome in outcomes:
        projection.trial(number, outcome)
    projection.front({**summary, "reference": corner}, told)
    projection.attach({"front.json": json.dumps(summary, indent=1), **(files or {})})
    projection.finished()
    return projection


def pages_of(uri: str, study: str, identity: str = "", artifact_root: str = "") -> tuple[str, str] | None:
    """Two addresses in the UI, after the server's: the saved view of the front, and its interactive drawing.

    None where the store has nothing of the study.
    """
    with alone(uri):
        client = _client(uri)
        if artifact_root:
            _settle_in(uri, artifact_root)
        for found in client.search_experiments(filter_string="name LIKE 'brisk/%'"):
            parent = _parent(client, found.experiment_id, study, identity)
            if parent:
                at = f"/#/experiments/{found.experiment_id}/runs"
                view = f"{at}?viewStateShareKey={quote(_view_key(study, identity))}&compareRunsMode=CHART"
                kind = "workflowType=machine_learning"  # else the UI shows its pages for language models
                return f"{view}&{kind}", f"{at}/{parent.info.run_id}/artifacts/front.html?{kind}"
    return None


def _client(uri: str) -> Any:
    for key, setting in MLFLOW_SETTINGS.items():
        os.environ.setdefault(key, setting)
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a first opening tells of every migration
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def _log_ahead(uri: str) -> None:
    """Have a SQLite store keep a write-ahead log from now on: a commit waits less for the disk."""
    if uri.startswith("sqlite:///"):
        path = uri.removeprefix("sqlite:///").partition("?")[0]
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as tables:
            tables.execute("PRAGMA journal_mode = WAL")


def _settle_in(uri: str, artifact_root: str) -> None:
    """Have the store of a home that was copied or moved name its own folder: MLflow keeps whole paths, and would write
    where the home came from.
    """
    path = uri.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path)) as tables, tables:
        places = tables.execute("SELECT DISTINCT artifact_location FROM experiments WHERE name LIKE 'brisk/%'")
        for (before,) in places.fetchall():
            scheme = "file://" if before.startswith("file://") else ""
            if before.removeprefix(scheme) == artifact_root:
                continue
            for table, column in PLACES:
                tables.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (scheme + artifact_root, len(before) + 1, len(before), before),
                )


def _view_key(study: str, identity: str) -> str:
    """Names the saved view of a study's front."""
    return f"brisk-{study}-{identity[:8]}" if identity else f"brisk-{study}"


def _experiment(client: Any, name: str, artifact_root: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name, artifact_location=artifact_root or None))
    if found.lifecycle_stage != "active":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _parent(client: Any, experiment: str, study: str, identity: str) -> Any:
    """The study's run; not that of another of its name, as others may have on a server."""
    runs = _search(client, experiment, "tags.`brisk.kind` = 'study'")
    asked = study, identity
    return next(
        (run for run in runs if (run.data.tags.get("brisk.study"), run.data.tags.get("brisk.id", "")) == asked), None
    )


def _search(client: Any, experiment: str, query: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs([experiment], query, max_results=PAGE, order_by=OLDEST_FIRST, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _new_params(before: Collection[str], params: Mapping[str, Any]) -> dict[str, str]:
    """Those that a run does not have yet, and that are known: MLflow's parameters are written once."""
    return {key: str(value)[:6000] for key, value in params.items() if key not in before and value is not None}


def _model_signature(signature: Signature) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    tokens = signature.vocabulary is not None
    shape = (-1, signature.time_steps) if tokens else (-1, signature.time_steps, signature.features)
    output = (-1, signature.time_steps, signature.outputs) if signature.sequences else (-1, signature.outputs)
    x = TensorSpec(np.dtype(np.int32 if tokens else np.float32), shape, name="x")
    return ModelSignature(Schema([x]), Schema([TensorSpec(np.dtype(np.float32), output)]))
