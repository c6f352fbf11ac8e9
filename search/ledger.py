"""What MLflow is told: the study's records as rows of plain parameters, metrics and tags, without MLflow."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from objectives.objective import OBJECTIVES
from objectives.outcome import FORETOLD, Outcome
from search.front import extended
from search.growth import volume
from spaces.genotype import HYPERMODEL, MODEL, Architecture, Genotype

Key = int | str
"""A trial's number, "baseline", or "rewrite-1" and so on."""

BEST = {"quality": "best_error", "latency": "best_latency_ms", "size": "best_size_kib", "memory": "best_memory_kib"}
"""The curve of each objective."""

EMBEDDING = Architecture("", 0).embedding
"""The width that goes without saying."""

TITLE_LIMIT = 160  # characters of a hypermodel's values: MLflow's names of runs hold 250
UNNAMED = re.compile(r"[^\w\-. /]")
"""What the name of a parameter may not hold in MLflow."""

TAG_LIMIT = 4900  # characters; the SQL stores' older schemas hold 5,000


@dataclass(frozen=True)
class Row:
    """What one run shows."""

    name: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def title(genotype: Mapping[str, Any]) -> str:
    """A candidate's architecture in a few characters, from the genotype's JSON: "gru 32 x2 bi fs8", "mine.keras".

    "r8" is the rank of its recurrent matrices, "brick8" the steps of a brick, "emb16" the width of its embedding. How
    it was trained follows: "do0.1" for dropout, "sp80%" for zeros, "x4" if in rows of four, "pu50%" for units cut out,
    "qat4" for the bits it was trained for, "kd0.5" for the teacher's share, "hint0.1" for the weight of its hints.
    """
    built = genotype["architecture"]
    if str(built["cell"]).startswith(MODEL):
        return str(built["cell"]).removeprefix(MODEL)
    if str(built["cell"]).startswith(HYPERMODEL):
        said = " ".join(f"{name}={_short(value)}" for name, value in built["values"])
        return (said if len(said) <= TITLE_LIMIT else f"{said[:TITLE_LIMIT]}…") or built["cell"].rpartition(":")[2]
    parts = [str(built["cell"]), str(built["units"])]
    parts += [f"x{built['layers']}"] if built.get("layers", 1) > 1 else []
    parts += ["bi"] if built.get("bidirectional") else []
    parts += [f"fs{built['frame_stack']}"] if built.get("frame_stack", 1) > 1 else []
    parts += [str(built["readout"])] if built.get("readout", "last") != "last" else []
    parts += [f"r{built['rank']}"] if built.get("rank") else []
    parts += ["residual"] if built.get("residual") else []
    parts += [f"brick{built['brick']}"] if built.get("brick") else []
    parts += [f"emb{built['embedding']}"] if built.get("embedding", EMBEDDING) != EMBEDDING else []
    parts += [f"do{built['dropout']:g}"] if built.get("dropout") else []
    trained = genotype.get("training", {})
    rows = f"x{trained['block']}" if trained.get("block", 1) > 1 else ""
    parts += [f"sp{trained['sparsity']:.0%}{rows}"] if trained.get("sparsity") else []
    parts += [f"pu{trained['pruned_units']:.0%}"] if trained.get("pruned_units") else []
    parts += [f"qat{trained['qat']}"] if trained.get("qat") else []
    parts += [f"kd{trained['distillation']:g}"] if trained.get("distillation") else []
    parts += [f"hint{trained['hints']:g}"] if trained.get("hints") else []
    return " ".join(parts)


def form(genotype: Mapping[str, Any]) -> str:
    """How a candidate is served, in a few characters: "loop/4", "scan", "keras b8"."""
    served = genotype["deployment"]
    steps, batch = served.get("steps", 1), served.get("batch", 1)
    return str(served["lowering"]) + (f"/{steps}" if steps > 1 else "") + (f" b{batch}" if batch > 1 else "")


def child_row(number: Key, outcome: Outcome) -> Row:
    """One candidate's run: every gene a parameter, every figure a metric, state and reason tags."""
    plain = dataclasses.asdict(outcome.genotype)
    metrics = _quality(outcome) | _latency(outcome)
    if outcome.artifact:
        metrics["size_kib"] = outcome.artifact.size_bytes / 1024
    if outcome.untrained_ms is not None and outcome.stage != FORETOLD:
        metrics["untrained_ms"] = outcome.untrained_ms
    metrics |= {f"seconds_{stage}": seconds for stage, seconds in outcome.seconds.items()}
    tags = {"brisk.state": outcome.state, "brisk.feasible": str(outcome.weighed).lower()}
    if outcome.reason:
        tags["brisk.stage"], tags["brisk.reason"] = outcome.stage, outcome.reason[:TAG_LIMIT]
    if outcome.notes:
        tags["brisk.notes"] = "\n".join(outcome.notes)[:TAG_LIMIT]
    if outcome.artifact:
        tags["brisk.exporter"] = outcome.artifact.exporter
        tags |= {"brisk.sha256": outcome.artifact.sha256} if outcome.artifact.sha256 else {}
        tags["brisk.realised_bits"] = json.dumps(outcome.artifact.realised_bits)
    if outcome.measurement:
        tags["brisk.device"], tags["brisk.scenario"] = outcome.measurement.device, outcome.measurement.scenario
    name = f"{number} · {title(plain)} · {outcome.genotype.deployment.bits} · {form(plain)}"
    return Row(name, genes(outcome.genotype), metrics, tags)


def genes(genotype: Genotype) -> dict[str, str]:
    """Every gene by its own name; the three groups share none.

    A hypermodel's go by the names that the user's code gives them, or "hp.name" where the deployment has such a one.
    """
    training, deployment = dataclasses.asdict(genotype.training), dataclasses.asdict(genotype.deployment)
    built = dataclasses.asdict(genotype.architecture)
    values = dict(built.pop("values"))
    found = {**built, **training, **deployment}
    if place := genotype.architecture.hypermodel:
        own = {f"hp.{name}" if name in deployment else name: value for name, value in values.items()}
        found = {"hypermodel": place, **training, **deployment, **own}
    return {UNNAMED.sub("_", key): str(gene) for key, gene in found.items()}


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def point_row(point: Mapping[str, Any] | None, mark: str) -> Row:
    """What a candidate's run shows of being on the front (a POINT), or of having left it (None)."""
    gains = {key: point[key] for key in ("speedup", "drop", "test_drop") if point.get(key) is not None} if point else {}
    return Row(metrics=gains, tags={"brisk.pareto": str(bool(point)).lower(), "brisk.point": mark})


def curve(
    summary: Mapping[str, Any], outcomes: Sequence[tuple[Key, Outcome]], since: int = 0
) -> list[tuple[int, dict[str, float]]]:
    """(step, figures) after each told trial past the first `since`: the best of each objective, and the hypervolume.

    Baseline and rewrites are no trials, but rewrites are points from the start. The hypervolume is that
    below `summary["reference"]` (objective -> cost), as in `summary["hypervolume"]`; left out where there is none yet.
    """
    reference: Mapping[str, float] = summary.get("reference") or {}
    curves: list[tuple[int, dict[str, float]]] = []
    best: dict[str, float] = {}
    rewritten = [(name, outcome) for name, outcome in outcomes if str(name).startswith("rewrite-")]
    points, share = _with({}, rewritten, reference), 0.0
    told = [(number, outcome) for number, outcome in outcomes if isinstance(number, int)]
    for step, (number, outcome) in enumerate(told, start=1):
        before = points
        if outcome.state == "complete":
            costs = {name: cost for name, row in OBJECTIVES.items() if (cost := row.read(outcome)) is not None}
            best |= {name: min(cost, best.get(name, cost)) for name, cost in costs.items()}
            points = _with(points, [(number, outcome)], reference)
        if step > since:
            shown = {BEST[name]: cost for name, cost in best.items()} | {"pareto_size": float(len(points))}
            if reference:
                if points is not before or not curves:
                    share = volume(points.values(), reference)
                shown["hypervolume"] = share
            curves.append((step, shown))
    return curves


def _with(
    points: Mapping[Key, Sequence[float]], more: Sequence[tuple[Key, Outcome]], reference: Mapping[str, float]
) -> Mapping[Key, Sequence[float]]:
    """The costs, in the order of `reference`, of those that no other dominates, `more` finished ones put in; the same
    `points` where that changes nothing.
    """
    for name, outcome in more:
        costs = [cost for objective in reference if (cost := OBJECTIVES[objective].read(outcome)) is not None]
        if outcome.state == "complete" and len(costs) == len(reference):
            points = extended(points, name, costs)
    return points


def study_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """The study's run: how fast it trained; {} where it trained nothing."""
    training = summary.get("training") or {}
    if not training.get("sequences"):
        return {}
    return {f"training_{key}": float(training[key]) for key in ("sequences", "sequences_per_s", "wall_share")}


def study_tags(summary: Mapping[str, Any]) -> dict[str, str]:
    """The study's run: counts, the baseline's exporter, and a description with the front as a table."""
    name = summary["study"]
    lines = [
        f"**{name}** searched by brisk. The front, fastest first:",
        "",
        "| trial | model | bits | form | latency, ms | speedup | metric | size, KiB |",
        "|---|---|---|---|---|---|---|---|",
        *(_markdown(point) for point in summary["front"][:25]),
        "",
        f"`brisk export {name} --pick knee --to tflite --out DIR` writes and verifies one; `--trial N` names another.",
    ]
    tags = {"mlflow.note.content": "\n".join(lines)[:TAG_LIMIT], "brisk.counts": json.dumps(summary["counts"])}
    if summary.get("baseline"):
        tags["brisk.baseline_exporter"] = str(summary["baseline"]["artifact"].get("exporter", ""))
    return tags


def view_state(parent_id: str, metric: str) -> str:
    """MLflow's UI state for a saved view: the front's scatter charts and its table. An undocumented format."""
    section = "brisk-front"

    def scatter(name: str, x: str, y: str) -> dict[str, Any]:
        axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
        return {"uuid": name, "type": "SCATTER", "runsCountToCompare": 100, **axes, **placed}

    ours = {"deleted": False, "isGenerated": False}
    placed = {"metricSectionId": section, **ours}
    columns = {"selectedParams": ["cell", "units"], "selectedMetrics": ["latency_ms", metric]}
    state = {
        "searchFilter": f"tags.mlflow.parentRunId = '{parent_id}' AND tags.`brisk.pareto` = 'true'",
        "orderByKey": "metrics.`latency_ms`",
        "orderByAsc": True,
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "autoRefreshEnabled": True,
        "compareRunSections": [{"uuid": section, "name": "Front", "display": True, "isReordered": False, **ours}],
        "compareRunCharts": [
            scatter("brisk-latency", "latency_ms", metric),
            scatter("brisk-size", "size_kib", metric),
            {"uuid": "brisk-genes", "type": "PARALLEL", "showAllRuns": True, **columns, **placed},
        ],
    }
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()


def _quality(outcome: Outcome) -> dict[str, float]:
    quality = outcome.quality
    if quality is None:
        return {} if outcome.trained_error is None else {"error": outcome.trained_error}
    figures = {
        "error": quality.error,
        f"validation_{quality.metric}": quality.validation,
        f"test_{quality.metric}": quality.test,
        "test_stderr": quality.test_stderr,
        "output_error": quality.output_error,
    }
    return {key: figure for key, figure in figures.items() if figure is not None}


def _latency(outcome: Outcome) -> dict[str, float]:
    measured = outcome.measurement
    if measured is None:
        return {}
    return {
        "latency_ms": measured.median_ms,
        "latency_low_ms": measured.ci_ms[0],
        "latency_high_ms": measured.ci_ms[1],
        "first_call_ms": measured.first_ms,
        "load_ms": measured.load_ms,
        "peak_memory_kib": measured.peak_memory_bytes / 1024,
        "throughput_per_s": 1000 * measured.batch / measured.median_ms if measured.median_ms else 0.0,
    }


def _markdown(point: Mapping[str, Any]) -> str:
    genotype, quality = point["genotype"], point["quality"]
    shown = quality["validation"] if quality.get("test") is None else quality["test"]
    speedup = f"{point['speedup']:.1f}" if point.get("speedup") else ""
    cells = [
        str(point["trial"]),
        title(genotype),
        str(genotype["deployment"]["bits"]),
        form(genotype),
        f"{point['latency_ms']['median']:.4g}",
        speedup,
        f"{shown:.4g}",
        f"{point['size_bytes'] / 1024:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"
