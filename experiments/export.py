"""`brisk export`: write the chosen candidate, prove in a fresh process that it does what was measured, describe it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.text import Text

from experiments.batching import curve_for
from experiments.card import card_of, held_to, plain_name, readme
from experiments.landing import landing
from experiments.publish import register
from experiments.report import console, write_point
from experiments.show import print_json
from objectives.bench import Bench
from objectives.cache import Cache
from objectives.outcome import Outcome
from search.front import pick
from search.history import History, read
from search.isolate import CallFailed, Child, ChildDied
from search.summary import latest, point_of, summarise
from spaces.catalog import STATIC_BITS
from spaces.errors import DataError, InputError, ModelError, VerificationError, nearest
from spaces.record import from_json, to_json
from spaces.signature import Signature

FORMS = ("tflite", "savedmodel", "tfserving", "keras", "streaming")
FLOAT_TOLERANCE = 1e-5  # of outputs, relative to the largest; float32 forms
SCORE_TOLERANCE = 1e-6  # of what the same bytes score on the same data
STREAM_TOLERANCE = 0.02  # of what a stream in narrow bits scores, which rounds its activations call by call
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
    frames: int | None,
    as_json: bool,
) -> None:
    """Export the point that `rule` or `trial` names, register it with MLflow, and say where it is.

    Raises InputError for what cannot be chosen or written, VerificationError as `export` does.
    """
    if rule and trial:
        raise InputError("--pick and --trial both choose; give one of them")
    if frames and to != "streaming":
        raise InputError(f"--frames {frames}: only a stream takes so many time steps a call; add --to streaming")
    history = read(home, study)
    if history.plan.evaluator != "objectives.judge":
        raise InputError(
            f"{study}: its figures are invented and nothing was trained; export from a study without --rehearse"
        )
    name, point = chosen(history, rule or "knee", trial)
    signature = from_json(Signature, history.prepared["signature"])
    outcome = latest(history, name)
    bench = replace(history.bench, home=str(home.resolve()))
    try:
        card = export(
            bench,
            signature,
            outcome,
            point,
            study=study,
            to=to,
            out=out,
            overwrite=overwrite,
            frames=frames,
            curve=lambda child: curve_for(history, bench, name, outcome, child),
        )
    except (DataError, ModelError) as error:
        if Path(bench.root).is_dir():
            raise
        where = f"the folder of the spec, {bench.root}, is not there any more"
        raise type(error)(f"{error}; {where}: `brisk run SPEC --trials 1`, where it is now, tells the study") from None
    registered = register(home, history, name, Cache(home).artifact(point["artifact"]["sha256"]), signature)
    if as_json:
        print_json({**card, "out": str(out), "registered": registered})
        return
    page, checked = console(), card["verification"]
    write_point(summarise(history), point, page)
    page.print(Text(f"Written to {out}"), soft_wrap=True)  # whole, to be copied
    page.print(
        Text(
            f"Verified in a fresh process on {checked['rows']} held-out rows: largest difference from the trained "
            f"Keras model {checked['max_difference']:.2g}, score {checked['score']:.4f} against its "
            f"{checked['keras_score']:.4f}; {card['quality']['metric']} {card['quality']['test']:.4f} on the test part."
        )
    )
    page.print(Text(registered))
    page.print(Text(f"How to call it: {out / 'README.md'}"), soft_wrap=True)


def chosen(history: History, rule: str, trial: str | None) -> tuple[int | str, dict[str, Any]]:
    """The name of the trial that `trial`, or else `rule`, names, and its POINT.

    Raises InputError where there is none, or where it was not trained and measured to its end.
    """
    if trial is None:
        point = dict(pick(summarise(history)["front"], rule))
        return point["trial"], point
    number = int(trial) if trial.isdecimal() else -1
    if number in history.running:
        raise InputError(f"--trial {trial}: it is still being trained or measured; try again when it is done")
    name: int | str = number if trial.isdecimal() else trial
    outcome = history.baseline if trial == "baseline" else history.candidates.get(name)
    if outcome is None:
        raise InputError(
            f"--trial {trial}: study {history.name!r} has no such trial; `brisk show {history.name}` lists the front"
        )
    done = outcome.state in ("complete", "infeasible") and outcome.quality and outcome.measurement and outcome.artifact
    if not done:
        why = f"it is {outcome.state} ({outcome.reason})" if outcome.reason else f"it is {outcome.state}"
        raise InputError(f"--trial {trial}: cannot be exported, for {why}; choose one that is complete")
    return name, point_of(history, name)


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
    frames: int | None = None,
    curve: Callable[[Child], dict[str, Any] | None] = lambda child: None,
) -> dict[str, Any]:
    """Write `outcome` in form `to` into `out` and return its card; `point` is its entry in the JSON of `show`, `curve`
    gives its "batch_curve", in the process that wrote, once what was written is verified.

    Raises InputError where `to` is unknown, `out` is taken or what was trained is no longer there, VerificationError
    where what was written is not what was trained; nothing is left in `out` then.
    """
    if to not in FORMS:
        raise InputError(f"--to {to}: no such form; {nearest(to, FORMS)}")
    file = bench.file_of(outcome.genotype)
    if to == "streaming" and outcome.genotype.architecture.hypermodel:
        raise InputError(
            f"--to streaming: {point['trial']} is built by your own {file and file.name}; export it --to keras, and "
            "give that file to `brisk rewrite --streaming`"
        )
    if to == "streaming" and (bits := outcome.genotype.deployment.bits) in STATIC_BITS:
        raise InputError(
            f"--to streaming: {point['trial']} is of {bits}, activations too, which a stream cannot have; choose a "
            "trial of other bits, or another form"
        )
    if to != "tflite" and file and outcome.genotype.architecture.model:
        raise InputError(
            f"--to {to}: {point['trial']} is your own {file.name}, of which brisk makes .tflite files only; "
            f"give --to tflite, and use {file.path} itself for the rest"
        )
    root = Path(bench.root)
    files = {"data": bench.task.data, "file of targets": bench.task.targets, "unlabelled data": bench.task.unlabelled}
    needed: dict[str, Path | None] = {
        "the home": Path(bench.home),
        **{f"the {what}": root / name for what, name in files.items() if name and (root / name).is_file()},
        "the model": root / bench.model.path if bench.model else None,
        "the folder of the spec": root if bench.root else None,
    }
    maker = Child(home=Path(bench.home), name="export")
    with landing(out, overwrite, needed) as folder, closing(maker):
        request = {"bench": to_json(bench), "to": to, "folder": str(folder)}
        made = {
            **request,
            "outcome": to_json(outcome),
            "name": plain_name(study),
            "frames": frames or outcome.genotype.architecture.frame_stack,
        }
        try:
            written = maker.call("experiments.exporters:write", made, timeout_s=TIMEOUT_S)
        except (ChildDied, CallFailed) as error:
            raise VerificationError(
                f"the {to} model could not be written: {error}. Nothing was left in place; please report this"
            ) from None
        asked = {**request, "path": written["path"], "genotype": to_json(outcome.genotype)}
        found = proof(bench.home, "experiments.exporters:verify", asked)
        (folder / "oracle.npy").unlink()
        judge(found, to, outcome)
        card = card_of(signature, outcome, point, found, study=study, to=to, model=bench.file_of(outcome.genotype))
        card["batch_curve"] = curve(maker)
        (folder / "model.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(readme(card), encoding="utf-8")
        if signature.labels:
            (folder / "labels.txt").write_text("\n".join(signature.labels) + "\n", encoding="utf-8")
    return card


def proof(home: str, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a function finds of the written model in a fresh process; VerificationError where it cannot even look."""
    try:
        with closing(Child(home=Path(home), name="export-proof")) as child:
            found: dict[str, Any] = child.call(function, arguments, timeout_s=TIMEOUT_S)
            return found
    except (ChildDied, CallFailed) as error:
        raise VerificationError(
            f"what was written could not be loaded and run: {error}. Nothing was left in place; please report this"
        ) from None


def judge(found: dict[str, Any], to: str, outcome: Outcome) -> None:
    """Raise VerificationError unless the written model answers as the trained one: float forms number by number, and
    the measured file, of any bits, by its score on the validation part, which must be the recorded one.
    """
    assert outcome.quality, "only candidates with a quality are exported"
    wrong = []
    allowed = FLOAT_TOLERANCE * max(1.0, found["largest_output"])
    held = held_to(to, outcome)
    if "outputs" in held and not found["max_difference"] <= allowed:
        wrong.append(
            f"differs from the trained Keras model by {found['max_difference']:.3g} on {found['rows']} held-out rows "
            f"({allowed:.1g} is allowed)"
        )
    scored, recorded = found["quality"]["validation"], outcome.quality.validation
    near = STREAM_TOLERANCE if to == "streaming" else SCORE_TOLERANCE
    if "validation score" in held and not abs(scored - recorded) <= near * max(1.0, abs(recorded)):
        wrong.append(f"scores {scored:.7g} on the validation part, where the study recorded {recorded:.7g}")
    if wrong:
        raise VerificationError(
            f"the written {to} model {' and '.join(wrong)}. Nothing was left in place; please report this"
        )
