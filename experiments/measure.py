"""`brisk measure`: the latency of model files, of any kind, interleaved in one sitting so that they compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from experiments.report import NOISY, Speaker, console
from experiments.show import print_json
from objectives.latency import timing
from objectives.latency.devices import reached
from objectives.latency.devices.local import Candidate, Local
from objectives.outcome import Conditions, MeasureFailure, Measurement
from spaces.errors import InputError, ModelError
from spaces.record import to_json

MAGIC = {".tflite": (4, b"TFL3"), ".keras": (0, b"PK"), ".h5": (0, b"\x89HDF"), ".hdf5": (0, b"\x89HDF")}
KINDS = "a .tflite file, a SavedModel folder, or a .keras or .h5 file"


def measure_models(
    models: Sequence[Path],
    *,
    device: str = "local",
    batch: int = 1,
    threads: int = 1,
    scenario: str = "burst",
    as_json: bool = False,
    **opening: Any,
) -> dict[str, Any]:
    """Measure, print and return the rows; `opening` is as for `measured`.

    Raises ModelError for a file that is no model, or where none can be run.
    """
    report = measured(models, device, Conditions(scenario=scenario, threads=threads, batch=batch), **opening)
    if as_json:
        print_json(report)
    else:
        _print(report)
    return report


def measured(models: Sequence[Path], device: str, conditions: Conditions, **opening: Any) -> dict[str, Any]:
    """One row a model, in order: its figures, its ratio to the fastest and whether they tie, or why it failed.

    `opening` is what a file may need: time_steps, of a Keras file also custom and unsafe (`Candidate`).
    """
    for path in models:
        check_model(path)
    needed = {key: value for key, value in opening.items() if value}
    opened = [Candidate(path, **needed) for path in models]
    options = " and ".join(f"--{key.replace('_', '-')}" for key in needed)
    may_need = {"keras", "tflite"} if needed.keys() == {"time_steps"} else {"keras"}
    if needed and not any(each.kind in may_need for each in opened):
        raise InputError(f"{options}: of use to none of these files; leave it out")
    with reached(device) as tool:
        if needed and not isinstance(tool, Local):
            raise InputError(
                f"{options}: --device {device} takes no such option; leave it out, or measure on --device local"
            )
        results = tool.compare(opened, conditions) if isinstance(tool, Local) else tool.measure(models, conditions)
    figures = [result for result in results if isinstance(result, Measurement)]
    failures = [result.reason for result in results if isinstance(result, MeasureFailure)]
    if not figures:
        raise ModelError(f"no model could be measured; {models[0]}: {failures[0]}")
    fastest = min(figures, key=lambda figure: figure.median_ms / figure.batch)
    rows = [_row(path, result, fastest) for path, result in zip(models, results, strict=True)]
    asked = {"scenario": conditions.scenario, "threads": conditions.threads, "batch": conditions.batch}
    return {"device": device, **asked, "models": rows}


def check_model(path: Path) -> None:
    """Raise ModelError where `path` is not a model that can be measured, as far as its name and first bytes tell."""
    if not path.exists():
        raise ModelError(f"there is no model at {path}; give {KINDS}")
    if path.is_dir():
        if not (path / "saved_model.pb").exists():
            raise ModelError(f"{path} is a folder without saved_model.pb, so no SavedModel; give {KINDS}")
        return
    if path.suffix not in MAGIC:
        raise ModelError(f"{path} must end in {', '.join(MAGIC)}, but ends in {path.suffix!r}; give {KINDS}")
    start, magic = MAGIC[path.suffix]
    with path.open("rb") as file:
        found = file.read(8)[start : start + len(magic)]
    if found != magic:
        raise ModelError(f"{path} must have {magic!r} at byte {start}, but got {found!r}; it is damaged or misnamed")


def _row(path: Path, result: Measurement | MeasureFailure, fastest: Measurement) -> dict[str, Any]:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    row: dict[str, Any] = {"model": str(path), "size_bytes": sum(each.stat().st_size for each in files)}
    if isinstance(result, MeasureFailure):
        return {**row, "failed": result.reason}
    known = to_json(result)
    latency = {"median": result.median_ms, "ci": list(result.ci_ms), "raw": result.raw_ms}
    latency |= {key: known[key] for key in ("converged", "scenario", "batch", "threads", "device")}
    slower = result.median_ms / result.batch / (fastest.median_ms / fastest.batch)
    overlap = result.ci_ms[0] / result.batch <= fastest.ci_ms[1] / fastest.batch
    tie = overlap or slower - 1 <= timing.tie_tolerance(fastest.median_ms)
    return {
        **row,
        "latency_ms": latency,
        "throughput_per_s": 1000 * result.batch / result.median_ms,
        "times_fastest": slower,
        "ties_with_fastest": tie,
        **{key: known[key] for key in ("first_ms", "load_ms", "peak_memory_bytes", "processes", "blocks")},
        **{key: known[key] for key in ("trusted", "why", "fingerprint")},
    }


def _print(report: dict[str, Any]) -> None:
    say = Speaker(console())
    batch, threads = report["batch"], report["threads"]
    say(f"{report['device']}, {report['scenario']}, {threads} thread{'s' * (threads > 1)}, batch {batch}\n")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("model", overflow="fold")
    for heading in ("ms a call", say.plain("±"), "x fastest", "first ms", "load ms", "mem KiB", "KiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = report["models"]
    for row in rows:
        say.row(table, [row["model"], *_cells(row)])
    say.to.print(table)
    if any(_sign(row) == "~" for row in rows):
        say(NOISY)
    for row in rows:
        doubt = "! not to be relied on: " if row.get("trusted") is False else ""
        notes = [row["failed"]] if "failed" in row else [f"{doubt}{row['why']}"] if row["why"] else []
        if "latency_ms" in row and row["latency_ms"]["batch"] != batch:
            notes.append(f"its own batch is {row['latency_ms']['batch']}")
        if notes:
            say(f"\n{row['model']}: {'; '.join(notes)}")


def _sign(row: dict[str, Any]) -> str:
    """The mark before a latency, as in the table of a study."""
    return "" if "failed" in row else "!" if not row["trusted"] else "" if row["latency_ms"]["converged"] else "~"


def _cells(row: dict[str, Any]) -> list[str]:
    size = f"{row['size_bytes'] / 1024:.0f}"
    if "failed" in row:
        return ["failed", *[""] * 5, size]
    latency = row["latency_ms"]
    median, (low, high) = latency["median"], latency["ci"]
    width = max(high - median, median - low) / median
    times = "tie" if row["ties_with_fastest"] and row["times_fastest"] > 1 else f"{row['times_fastest']:.2f}"
    return [
        f"{_sign(row)}{median:.4g}",
        f"{width:.1%}",
        times,
        f"{row['first_ms']:.3g}",
        f"{row['load_ms']:.3g}",
        f"{row['peak_memory_bytes'] / 1024:.0f}",
        size,
    ]
