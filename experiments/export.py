"""`brisk export`: write the chosen candidate, prove in a fresh process that it does what was measured, describe it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from experiments.card import card_of, plain_name, readme
from experiments.publish import register
from experiments.report import console, write_point
from experiments.show import print_json
from objectives.bench import Bench
from objectives.outcome import Outcome
from search.front import pick
from search.history import History, read
from search.isolate import Child
from search.summary import latest, point_of, summarise
from spaces.errors import InputError, VerificationError, nearest
from spaces.record import from_json, to_json
from spaces.signature import Signature

FORMS = ("tflite", "savedmodel", "tfserving", "keras")
FLOAT_TOLERANCE = 1e-5  # of outputs, relative to the largest; float32 forms
TIMEOUT_S = 600.0


def export_point(
    home: Path,
    study: str,
    *,
    rule: str | None,
    trial: str | None,
    to: str,
    out: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Export the point that `rule` or `trial` names, register it with MLflow, and say where it is.

    Raises InputError for what cannot be chosen or written, VerificationError as `export` does.
    """
    if rule and trial:
        raise InputError("--pick and --trial both choose; give one of them")
    history = read(home, study)
    name, point = _chosen(history, rule or "knee", trial)
    signature = from_json(Signature, history.prepared["signature"])
    outcome = latest(history, name)
    bench = replace(history.plan.bench, home=str(home.resolve()))
    card = export(bench, signature, outcome, point, study=study, to=to, out=out, overwrite=overwrite)
    registered = register(home, history, name, out / "model.tflite", signature) if to == "tflite" else ""
    if as_json:
        print_json({**card, "out": str(out), "registered": registered})
        return
    write_point(summarise(history), point, console())
    checked = card["verification"]
    click.echo(
        f"Written to {out} and verified in a fresh process on {checked['rows']} held-out rows: largest difference from "
        f"the trained Keras model {checked['max_difference']:.2g}, score {checked['score']:.4f} against its "
        f"{checked['keras_score']:.4f}."
    )
    if registered:
        click.echo(registered)
    click.echo(f"How to call it: {out / 'README.md'}")


def _chosen(history: History, rule: str, trial: str | None) -> tuple[int | str, dict[str, Any]]:
    """The trial's name and its POINT."""
    if trial is None:
        point = dict(pick(summarise(history)["front"], rule))
        return point["trial"], point
    if trial == "baseline" and history.baseline:
        return "baseline", point_of(history, "baseline")
    number = int(trial) if trial.isdigit() else -1
    if number not in history.outcomes:
        raise InputError(
            f"--trial {trial}: study {history.name!r} has no such trial; `brisk show {history.name}` lists the front"
        )
    outcome = history.outcomes[number]
    if outcome.state not in ("complete", "infeasible") or not outcome.measurement:
        why = f"it is {outcome.state} ({outcome.reason})" if outcome.reason else f"it is {outcome.state}"
        raise InputError(f"--trial {trial}: cannot be exported, for {why}; choose one that was trained and measured")
    return number, point_of(history, number)


def export(
    bench: Bench,
    signature: Signature,
    outcome: Outcome,
    point: dict[str, Any],
    *,
    study: str,
    to: str,
    out: Path,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write `outcome` in form `to` into `out` and return its card; `point` is its entry in the JSON of `show`.

    Raises InputError where `to` is unknown or `out` is taken, VerificationError where what was written is not what was
    trained; nothing is left in `out` then.
    """
    if to not in FORMS:
        raise InputError(f"--to {to}: no such form; {nearest(to, FORMS)}")
    with _landing(out, overwrite) as folder:
        request = {"bench": to_json(bench), "outcome": to_json(outcome), "to": to, "folder": str(folder)}
        written = _fresh(bench.home, "experiments.exporters:write", {**request, "name": plain_name(study)})
        found = _fresh(
            bench.home,
            "experiments.exporters:verify",
            {"kind": signature.kind, "to": to, "path": written["path"], "folder": str(folder)},
        )
        (folder / "held-out.npz").unlink()
        _judge(found, to, outcome)
        card = card_of(signature, outcome, point, found, study=study, to=to)
        (folder / "model.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(readme(card), encoding="utf-8")
        if signature.labels:
            (folder / "labels.txt").write_text("\n".join(signature.labels) + "\n", encoding="utf-8")
    return card


@contextmanager
def _landing(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all went well, and vanishes when not."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: a file is in the way; name a folder that does not exist yet")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise InputError(f"--out {out}: the folder is not empty; name another one, or add --overwrite")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=".brisk-export-"))
    except OSError as error:
        raise InputError(
            f"--out {out}: cannot write there ({error.strerror}); name a folder you may write to"
        ) from None
    try:
        yield folder
        if out.exists():
            shutil.rmtree(out)
        folder.chmod(0o755)
        folder.rename(out.absolute())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _fresh(home: str, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    child = Child(home=Path(home), name="export")
    try:
        done: dict[str, Any] = child.call(function, arguments, timeout_s=TIMEOUT_S)
        return done
    finally:
        child.close()


def _judge(found: dict[str, Any], to: str, outcome: Outcome) -> None:
    """Raise VerificationError unless the written model answers as the trained one: float forms number by number,
    quantised ones by their score, which must be what was recorded for them.
    """
    if to != "tflite" or outcome.genotype.deployment.bits == "32":
        allowed = FLOAT_TOLERANCE * max(1.0, found["largest_output"])
        if not found["max_difference"] <= allowed:
            raise VerificationError(
                f"the written {to} model differs from the trained Keras model by {found['max_difference']:.3g} on "
                f"{found['rows']} held-out rows; {allowed:.1g} is allowed. Nothing was left in place; "
                "please report this"
            )
        return
    assert outcome.quality, "only candidates with a quality are exported"
    recorded = outcome.quality.test if outcome.quality.test is not None else outcome.quality.validation
    allowed = 3 * max(found["stderr"], 1e-9) + 1e-6
    if not abs(found["score"] - recorded) <= allowed:
        raise VerificationError(
            f"the written {to} model scores {found['score']:.4f} on {found['rows']} held-out rows, where the study "
            f"recorded {recorded:.4f} (+-{allowed:.4f} is allowed). Nothing was left in place; please report this"
        )
