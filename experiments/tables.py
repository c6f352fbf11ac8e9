"""The tables beside the front: what each technique bought, and the chosen model by batch size. Heads and rows of text,
which the terminal, the page and MLflow each set in their own way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from experiments.figures import change, number, times

Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""The heads, and as many cells in each row."""

COMPRESSION = "What each technique bought: medians over pairs of the same model with it and without it."


def compression(summary: Mapping[str, Any]) -> Rows:
    """The ledger, an entry a row; "faster" with the range of its pairs, or the interval of the only one."""
    metric = metric_of(summary)
    rows: list[tuple[str, ...]] = []
    for entry in summary.get("compression") or []:
        low, high = entry["latency_range"]
        rows.append(
            (
                f"{entry['technique']} {entry['setting']}",
                str(entry["pairs"]),
                f"{times(entry['latency_ratio'])} ({times(low)[:-1]}-{times(high)[:-1]})",
                times(entry["bytes_ratio"]),
                change(entry["error_change"], metric),
                str(entry["verdict"]),
            )
        )
    return ("technique", "pairs", "faster", "smaller", "error", "verdict"), rows


def batch(summary: Mapping[str, Any]) -> Rows:
    """The curve of the chosen model; "~" before a latency that did not converge, "!" one not to be trusted."""
    heads = ("batch", "ms a call", "ms a sequence", "sequences/s", "memory KiB", "")
    return heads, [_batch(row) for row in (summary.get("batch_curve") or {"rows": []})["rows"]]


def batch_title(curve: Mapping[str, Any]) -> str:
    """What the curve is of."""
    return f"{_named(curve)} at each batch size, measured in one sitting:"


def luck(point: Mapping[str, Any]) -> list[str]:
    """What a point's model came to when it was trained again from other seeds."""
    if not (seeds := point.get("seeds")):
        return []
    own, *others = (f"{figure:.3f}" for figure in seeds["validation"])
    metric = point["quality"]["metric"]
    return [f"{_named(point)} from other seeds: validation {metric} {', '.join(others)}; {own} in the search"]


def gains(point: Mapping[str, Any]) -> list[str]:
    """What each technique a point was trained with bought it, against its twin."""
    metric = point["quality"]["metric"]
    return [
        f"{twin['technique']} {twin['setting']}: {twin['verdict']} ({times(twin['latency_ratio'])} in time, "
        f"{change(twin['error_change'], metric)} in error{' on test data' * twin['tested']}), against the same model "
        f"trained without ({twin['twin']})"
        for twin in point.get("twins") or []
    ]


def metric_of(summary: Mapping[str, Any]) -> str:
    """The metric of the study's points, "" where it has none."""
    points = [*summary["front"], *([summary["baseline"]] if summary.get("baseline") else [])]
    return str(points[0]["quality"]["metric"]) if points else ""


def chosen(rows: Rows, columns: Sequence[int]) -> Rows:
    """Some columns only, for a narrow window."""
    heads, cells = rows
    return tuple(heads[index] for index in columns), [tuple(row[index] for index in columns) for row in cells]


def drawn(rows: Rows, plain: Callable[[str], str], *, padding: int = 2, left: Sequence[int] = (0, -1)) -> Table:
    """A table for the terminal, `left` columns to the left, the last one wrapped; `plain` makes a cell printable."""
    heads, cells = rows
    made = Table(box=None, padding=(0, padding, 0, 0), header_style="bold", pad_edge=False)
    sided = {index % len(heads) for index in left}
    for index, head in enumerate(heads):
        last = index == len(heads) - 1
        made.add_column(head, justify="left" if index in sided else "right", no_wrap=not last, overflow="fold")
    for row in cells:
        made.add_row(*(Text(plain(cell)) for cell in row))
    return made


def markdown(title: str, rows: Rows) -> str:
    """A table for MLflow and for the README of an export; "" where there are no rows."""
    heads, cells = rows
    if not cells:
        return ""
    lines = [heads, ("---",) * len(heads), *cells]
    return "\n".join([title, "", *("| " + " | ".join(line) + " |" for line in lines), ""])


def _named(of: Mapping[str, Any]) -> str:
    return f"Trial {of['trial']}" if isinstance(of["trial"], int) else str(of["trial"])


def _batch(row: Mapping[str, Any]) -> tuple[str, ...]:
    measured = row["latency_ms"]
    if measured is None:
        return str(row["batch"]), "", "", "", "", row["excluded"]
    sign = "!" if measured["trusted"] is False else "" if measured["converged"] else "~"
    return (
        str(row["batch"]),
        sign + number(measured["median"]),
        number(row["ms_per_sequence"]),
        f"{row['throughput_per_s']:,.0f}",
        f"{row['peak_memory_bytes'] / 1024:,.0f}",
        f"excluded: {row['excluded']}" if row["excluded"] else "",
    )
