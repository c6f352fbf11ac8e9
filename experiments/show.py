"""`brisk show` and `brisk pick`: a study as it stands, read beside whoever drives it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from experiments.report import Speaker, console, write, write_point
from search.front import RULES, bounded, pick
from search.history import read
from search.lock import driven
from search.summary import summarise
from spaces.errors import InputError


def show_study(home: Path, study: str, *, html: Path | None, png: Path | None, as_json: bool) -> None:
    """Print the front, the baseline and the counts; draw them where asked. Raises StudyError where there is none."""
    history = read(home, study)
    summary = summarise(history)
    if summary["counts"]["running"]:
        summary["driven"] = driven(home, study)
    outcomes = list(history.candidates.items())
    if html or png:
        from experiments.plots import front_html, front_png

        try:
            if html:
                html.write_text(front_html(summary, outcomes, history), encoding="utf-8")
            if png:
                front_png(summary, png, outcomes)
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be written ({error.strerror}); name another file") from None
    if as_json:
        print_json(summary)
    else:
        write(summary, console())


def pick_point(home: Path, study: str, rule: str, *, as_json: bool) -> None:
    """Print the point that a rule chooses. Raises InputError for a wrong rule, NothingFeasible where none keeps it."""
    summary = summarise(read(home, study))
    point = pick(summary["front"], rule)
    if as_json:
        print_json(point)
    else:
        write_point(summary, point, console())
        quality = point["quality"]
        chosen_by = set() if rule in RULES else {"drop", "validation", quality["metric"]} & {*bounded(rule)}
        if chosen_by and quality["test"] is not None:
            drop = f", drop {point['drop']:+.4f}" if "drop" in chosen_by else ""
            figures = f"{quality['metric']} {quality['validation']:.4f}{drop}"
            Speaker(console())(f"The rule chooses by the validation part: {figures} there; above is the test part.")


def print_json(document: Any) -> None:
    """One JSON document on one line of standard output."""
    click.echo(json_text(document))


def json_text(document: Any, indent: int | None = None) -> str:
    """As JSON has no NaN and no infinity, null stands for them."""
    return json.dumps(_finite(document), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
