"""From a genotype to an outcome: the one pipeline, read from top to bottom.

A group of candidates, one architecture trained in one way and deployed in several forms, goes through these stations:

    load -> look: lower and measure -> train -> lower -> quantize -> quality

The look, a sitting of one process, comes before `train` because the latency of a graph does not depend on its weights:
forms over a bound go no further, at its rungs a training can be held against others as fast, and what others beat once
it is trained needs no file. What is not sure enough is measured again after training; what comes near the front is
measured in full at the end of the study (`search.finish`), for the smallest of many figures is too small whatever care
was taken. Lowered files, trained weights and trusted measurements are kept in the home's cache by the digest of what
they depend on, for any study of the home. It runs in a worker process: JSON goes in, outcomes go out as events, and
what only the driver can know is asked. What fails is one form at one stage; a shared stage fails the group.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from objectives.artifact import Artifact
from objectives.bench import Ask, Bench, Emit
from objectives.data import loaded
from objectives.deployment.graph import keeps_state
from objectives.deployment.interpreter import predict
from objectives.deployment.pour import narrowed
from objectives.deployment.quantize import quantize, realised_bits
from objectives.group import Group
from objectives.latency.devices import reached
from objectives.model_file import answered, fed
from objectives.objective import costs_of, over_bound
from objectives.origin import origin_of
from objectives.outcome import UNDEPLOYED, Conditions, MeasureFailure, Measurement, Quality
from objectives.task import TASKS
from objectives.training.rungs import Stopped
from spaces.catalog import STATIC_BITS, asked_bits
from spaces.errors import CandidateError
from spaces.genotype import Deployment, Genotype
from spaces.record import digest, from_json, to_json
from spaces.signature import Signature

SHORT: dict[str, Any] = {"min_processes": 1, "max_processes": 1}
"""What makes a sitting a look."""

LONG_MS = 2.0
"""A call that lasts longer is cut by whatever else runs: such models are measured while other workers stand still."""

LITTLE = 0.5  # of the time that a group has taken: a training that ends within so much more is not stopped

KEEPS = "keeps its state from call to call: its caller must reset it before each"
"""What is said of the fused LSTM of Keras 2's own converter."""

MAKERS = ("tensorflow", "keras", "ai-edge-quantizer", "ai-edge-litert", "brisk-rnn")
"""What a file and its answers depend on beside weights and form."""

ROUNDING = 1e-5  # of each output's largest value, which may be many times its spread
PARITY = 1e-4  # of a float form against Keras, relative to the largest output; contract tests hold the cells to 1e-5


def evaluate(bench: dict[str, Any], genotypes: list[dict[str, Any]], emit: Emit, ask: Ask) -> None:
    """Take one group through the stations; every form's Outcome is emitted as soon as it is known.

    At each rung of the training it asks {"ask": "rung", "rung", "epoch", "of", "forms": costs by objective of each open
    form}, and is told why to stop, or "" to go on. Of what was trained to the end it asks {"ask": "deploy", "forms":
    what each form may come to at best, as an Outcome}, and is told of each whether it need not be deployed.
    """
    group = Group(from_json(Bench, bench), [from_json(Genotype, plain) for plain in genotypes], emit, ask)
    with group.stage("load"):  # which is alike for all candidates: what fails there is the driver's affair
        group.data = loaded(group.bench)
        group.origin = origin_of(group.bench, group.data, group.forms[0])
    looking = "look" not in group.bench.without and not group.bench.in_full
    try:
        if group.origin.trains and looking:
            _look(group)
        if group.open:
            with group.stage("train"):
                group.origin.train(emit, partial(_goes_on, group))
            if looking and "deploy" not in group.bench.without:
                _spare_the_beaten(group)
            group.each(_deploy)
            if group.open and group.origin.trains and not looking and not group.bench.in_full:
                _shortly(group, "measure")  # all that "look" switches off is that this comes first
            _measure(group)
    except Stopped as stopped:
        for form in tuple(group.open):
            group.known[form] |= {"learned": stopped.learned, "measurement": group.looks.get(form)}
            group.settle(form, "stopped", stage="train", reason=stopped.reason)
    except CandidateError as failure:  # of a stage that the forms share
        for form in tuple(group.open):
            group.settle(form, "failed", stage=failure.stage, reason=failure.reason)


def _look(group: Group) -> None:
    """Lower every form with random weights, measure them shortly, and settle those whose bound is out of reach, or that
    cannot be measured.
    """
    group.each(_lower_untrained)
    if not group.open:
        return
    for form, look in _shortly(group, "untrained").items():
        group.known[form]["untrained_ms"] = look.median_ms
        lowest = replace(look, median_ms=look.ci_ms[0])
        if reason := over_bound(replace(group.outcome(form), measurement=lowest), group.bench.bounds):
            group.known[form]["measurement"] = look  # or a bound on memory is not among its figures
            group.settle(form, "infeasible", stage="untrained", reason=f"{reason}, measured before training")


def _shortly(group: Group, stage: str) -> dict[int, Measurement]:
    """The looks: all open forms measured in a sitting of one process; those that cannot be measured are settled."""
    with group.stage(stage):
        measured = _sitting(group, group.open, stage, replace(group.bench.conditions, **SHORT))
    for form, figure in zip(tuple(group.open), measured, strict=True):
        if isinstance(figure, Measurement):
            group.looks[form] = figure
        else:
            group.settle(form, "failed", stage=stage, reason=figure.reason)
    return group.looks


def _lower_untrained(group: Group, form: int) -> None:
    with group.stage("lower", form):
        group.known[form]["artifact"] = _artifact(group, form, "untrained")
    if reason := over_bound(group.outcome(form), group.bench.bounds):
        group.settle(form, "infeasible", stage="untrained", reason=f"{reason}, known before training")


def _goes_on(group: Group, rung: int, epoch: int, error: float, left_s: float) -> str:
    """Ask whether what is trained is still worth it, by what is known of its forms.

    Where little is left to do it goes on whatever the answer: to come as far with another model costs more.
    """
    quality = Quality(TASKS[group.data.signature.kind].metric, math.nan, error)
    known = [replace(group.outcome(form), measurement=group.looks.get(form)) for form in group.open]
    forms = [costs_of(replace(outcome, quality=quality)) for outcome in known]
    question = {"ask": "rung", "rung": rung, "epoch": epoch, "of": group.bench.training.epochs, "forms": forms}
    reason = group.ask(question) or ""
    if left_s < LITTLE * (time.perf_counter() - group.began):
        reason = ""
    told = {"event": "rung", "epoch": epoch, "of": group.bench.training.epochs, "error": error}
    group.emit({**told, "goes_on": not reason})
    return str(reason)


def _spare_the_beaten(group: Group) -> None:
    """Settle the forms that others beat, now that the error is known: they need no file, unless the home has it.

    Narrow bits change an error, now and then for the better: it is taken a standard error lower. One that may be over
    a bound, or whose look is not to be relied on, is deployed nevertheless, for a file is what is judged.
    """
    unmade = [form for form in group.open if form in group.looks and _kept_deployed(group, form) is None]
    unmade = [form for form in unmade if not (_unsure(group, form) or _over_when_looked_at(group, form))]
    if not unmade:
        return
    task, true = TASKS[group.data.signature.kind], group.data.validation.y
    try:
        with group.stage("quality"):
            score, stderr = task.score(true, group.reference), task.stderr(true, group.reference)
    except CandidateError:  # each form meets it again
        return
    error = task.error(score)
    if error > group.bench.bounds.get("quality", math.inf):
        return
    hoped = []
    for form in unmade:
        least = error if group.forms[form].deployment.bits == "32" else error - (stderr or 0.0)
        quality = Quality(task.metric, score, max(least, 0.0))
        hoped.append(replace(group.outcome(form), quality=quality, measurement=group.looks[form]))
    beaten = group.ask({"ask": "deploy", "forms": [to_json(outcome) for outcome in hoped]}) or ()
    learned = tuple(group.origin.history.get("learned", ()))
    for form, lost in zip(unmade, beaten, strict=False):
        if lost:
            artifact = replace(group.known[form]["artifact"], sha256="", compressed_bytes=0)  # of random weights
            known = {"artifact": artifact, "measurement": group.looks[form], "learned": learned, "trained_error": error}
            group.known[form] |= known
            reason = f"with an error of {error:.3g} it was behind another that is as good in all else"
            group.settle(form, "stopped", stage=UNDEPLOYED, reason=reason)


def _over_when_looked_at(group: Group, form: int) -> str:
    return over_bound(replace(group.outcome(form), measurement=group.looks[form]), group.bench.bounds)


def _artifact(group: Group, form: int, stage: str) -> Artifact:
    """The file of one form with the group's weights of the moment; `stage` tells trained weights from untrained."""
    asked = group.forms[form].deployment
    group.emit({"event": "stage", "stage": "lower", "form": form, "detail": stage})
    look = None if "pour" in group.bench.without and stage != "untrained" else _kept_look(group, asked)
    if look and stage == "untrained":
        return look
    ours = asked.lowering != "keras" and asked.bits not in STATIC_BITS  # else the stock converter does the quantising
    converted = replace(asked, bits="32") if ours else asked
    if (content := group.lowered.get((stage, converted))) is None:
        content = _untrained(group, converted) if stage == "untrained" else _converted(group, converted)
        group.lowered[stage, converted] = content
    if ours:
        group.emit({"event": "stage", "stage": "quantize", "form": form, "detail": stage})
        if look and (filled := _filled(group, look, asked, converted, content)):
            return _kept_artifact(group, asked, filled, stage, look.realised_bits)
        content = quantize(content, asked.bits, head=group.bench.quantize_head)
    return _kept_artifact(group, asked, content, stage, realised_bits(content))


def _filled(group: Group, look: Artifact, asked: Deployment, converted: Deployment, content: bytes) -> bytes | None:
    """The file of the look with the weights of the float file `content` in it, where that was poured too."""
    if converted not in group.poured:
        return None
    if asked == converted:
        return content
    if (of := _kept_look(group, converted)) is None:
        return None
    known, float_of_known = (group.cache.artifact(one.sha256).read_bytes() for one in (look, of))
    return narrowed(known, float_of_known, content)


def _kept_artifact(group: Group, asked: Deployment, content: bytes, stage: str, bits: dict[str, int]) -> Artifact:
    """What is known of a file, which the cache keeps; one with random weights any training of the architecture has."""
    looked = stage == "untrained"
    sha256 = group.cache.keep_artifact(content, lasting=not looked)
    packed = len(zlib.compress(content))
    made = group.origin.exporter(asked)
    keeps = not group.origin.blueprint and keeps_state(content)  # graphs that are all brisk's never do
    artifact = Artifact(sha256, len(content), asked.batch, bits, made, keeps_state=keeps, compressed_bytes=packed)
    if looked and group.origin.blueprint:
        group.cache.keep_record("looked", _look_key(group, asked), to_json(artifact), lasting=False)
    return artifact


def _look_key(group: Group, asked: Deployment) -> str:
    return digest(group.origin.blueprint, asked, group.bench.quantize_head, _made_with())


def _kept_look(group: Group, asked: Deployment) -> Artifact | None:
    """The file of a form with random weights, if the cache has it."""
    if not group.origin.blueprint:
        return None
    with contextlib.suppress(ValidationError):  # nothing there, or of an older brisk
        kept = from_json(Artifact, group.cache.record("looked", _look_key(group, asked)))
        return kept if group.cache.content(kept.sha256) else None
    return None


def _untrained(group: Group, asked: Deployment) -> bytes:
    """The content of such a file, before anything is narrowed."""
    if kept := _kept_look(group, asked):
        return group.cache.artifact(kept.sha256).read_bytes()
    group.origin.start()
    content = group.origin.lower(asked)
    _kept_artifact(group, asked, content, "untrained", realised_bits(content))
    return content


def _converted(group: Group, asked: Deployment) -> bytes:
    """The file with trained weights; a float one answers as the Keras model does, however it was made."""
    checked = asked.bits == "32"
    if checked and "pour" not in group.bench.without and (look := _kept_look(group, asked)):
        known = group.cache.artifact(look.sha256).read_bytes()
        with contextlib.suppress(CandidateError):  # of weights that are not where they seem to be
            if content := group.origin.poured(known, asked):
                content = _checked(group, content)
                group.poured.add(asked)
                return content
    content = group.origin.lower(asked)
    return _checked(group, content) if checked else content


def _checked(group: Group, content: bytes) -> bytes:
    path = group.cache.artifact(group.cache.keep_artifact(content))
    check_parity(_answers(group, path), group.reference, group.data.signature)
    return content


def _deploy(group: Group, form: int) -> None:
    """Take the artifact of one form and its quality, which are made once in the life of a home."""
    artifact, quality = _kept_deployed(group, form) or _deployed(group, form)
    history, head = group.origin.history, group.bench.quantize_head
    notes, learned = _notes(group.forms[form], artifact, history, quantize_head=head), tuple(history.get("learned", ()))
    group.known[form] |= {"artifact": artifact, "quality": quality, "notes": notes, "learned": learned}


def _deployed(group: Group, form: int) -> tuple[Artifact, Quality]:
    """Make the artifact, and judge the artifact, not the model it was made of."""
    data = group.data
    with group.stage("lower", form):
        artifact = _artifact(group, form, "trained")
    with group.stage("quality", form):
        output = _answers(group, group.cache.artifact(artifact.sha256))
        oracle = group.reference
        task = TASKS[data.signature.kind]
        score, stderr = task.score(data.validation.y, output), task.stderr(data.validation.y, output)
        error = float(np.sqrt(np.mean((output - oracle) ** 2) / np.mean(oracle**2)))
        quality = Quality(task.metric, score, task.error(score), output_error=error, stderr=stderr)
    if group.origin.trained_as:
        record = {"artifact": to_json(artifact), "quality": to_json(quality)}
        group.cache.keep_record("deployed", _deployed_key(group, form), record, lasting=False)
    return artifact, quality


@functools.cache  # looked up in files
def _made_with() -> list[str]:
    return [version(name) for name in MAKERS]


def _deployed_key(group: Group, form: int) -> str:
    return digest(group.origin.trained_as, group.forms[form].deployment, group.bench.quantize_head, _made_with())


def _kept_deployed(group: Group, form: int) -> tuple[Artifact, Quality] | None:
    """What the cache has of a form with these trained weights, if the file is there whole."""
    if not group.origin.trained_as or (kept := group.cache.record("deployed", _deployed_key(group, form))) is None:
        return None
    with contextlib.suppress(ValidationError, KeyError):  # of an older brisk
        artifact, quality = from_json(Artifact, kept["artifact"]), from_json(Quality, kept["quality"])
        return (artifact, quality) if group.cache.content(artifact.sha256) else None
    return None


def _answers(group: Group, path: Path) -> NDArray[Any]:
    """What a file answers on the validation part."""
    x = fed(group.data.validation.x, group.bench.file_of(group.forms[0]))
    return answered(predict(path, x), group.data.signature)


def _measure(group: Group) -> None:
    """Measure what was not looked at, or not well enough, in one interleaved sitting, and settle all open forms."""
    if not group.open:
        return
    unsure = [form for form in group.open if _unsure(group, form)]
    measured: dict[int, Measurement | MeasureFailure] = {**group.looks}
    if unsure:
        with group.stage("measure"):
            measured |= zip(unsure, _sitting(group, unsure, "measure", group.bench.conditions), strict=True)
    for form in tuple(group.open):
        measurement = measured[form]
        if not isinstance(measurement, Measurement):
            group.settle(form, "failed", stage="measure", reason=measurement.reason)
            continue
        group.known[form]["measurement"] = measurement
        reason = over_bound(group.outcome(form), group.bench.bounds)
        group.settle(form, "infeasible" if reason else "complete", reason=reason)


def _unsure(group: Group, form: int) -> bool:
    """Whether a look does not do: there is none, or it is not to be relied on where something hangs on it, as a long
    call was cut by other work, or a bound lies within its interval.

    Elsewhere a wide one stays as it is: what of it is near the front is measured at the end, and a loop of few and tiny
    operations has several speeds, which no number of sittings changes.
    """
    look = group.looks.get(form)
    if look is None or look.trusted:
        return look is None
    slowest = replace(look, median_ms=look.ci_ms[1])
    over = over_bound(replace(group.outcome(form), measurement=slowest), group.bench.bounds)
    return look.median_ms > LONG_MS or bool(over)


def check_parity(output: NDArray[np.float32], oracle: NDArray[np.float32], signature: Signature) -> None:
    """Raise CandidateError where a float form's outputs are not the Keras model's, in units of the targets' spread."""
    spread = np.asarray(signature.target_std or 1.0, dtype=np.float32)
    mean = np.asarray(signature.target_mean or 0.0, dtype=np.float32)
    steps = tuple(range(oracle.ndim - 1))
    off = np.max(np.abs(output - oracle) / spread, axis=steps)  # of each output by itself
    allowed = PARITY * max(1.0, float(np.max(np.abs(oracle - mean) / spread)))
    allowed = allowed + ROUNDING * np.max(np.abs(oracle) / spread, axis=steps)
    if not np.all(off <= allowed):
        worst = int(np.argmax(off - allowed))  # which is a NaN, where there is one
        told = f"the lowered form differs from Keras by {off[worst]:.3g}; {allowed[worst]:.1g} is allowed"
        raise CandidateError("parity", told)


def _notes(genotype: Genotype, artifact: Artifact, history: dict[str, Any], *, quantize_head: bool) -> tuple[str, ...]:
    """What a reader of the outcome should know: bits that came to nothing, the sparsity that was reached."""
    notes = list(history.get("notes", ()))  # of the training
    for role, bits in asked_bits(genotype.deployment.bits, head=quantize_head).items():
        realised = artifact.realised_bits.get(role)
        if realised is not None and realised != bits:
            notes.append(f"asked for {bits} bits in the {role} matrices, the file has {realised}")
    if artifact.keeps_state:
        notes.append(KEEPS)
    if genotype.training.sparsity:
        notes.append(f"realised sparsity {history['realised_sparsity']:.3f}")
    return tuple(notes)


def _sitting(
    group: Group, forms: Sequence[int], stage: str, conditions: Conditions
) -> list[Measurement | MeasureFailure]:
    """Measure the forms' artifacts in one sitting; a figure of the same bytes, device and conditions is reused.

    The event that it begins says with "quiet" whether others should stand still meanwhile; of what is looked at for
    the first time nobody knows yet that it is long. Raises DeviceError where nothing can be measured.
    """
    artifacts = [group.known[form]["artifact"] for form in forms]
    long = any(look.median_ms > LONG_MS for look in group.looks.values())
    quiet = {"stage": stage, "quiet": conditions.threads > 1 or long}
    with reached(group.bench.device) as tool:
        fingerprint, usual = tool.fingerprint(conditions), tool.fingerprint(group.bench.conditions)
        keys = [digest(artifact.sha256, fingerprint) for artifact in artifacts]
        found = {key: kept for key in keys if (kept := _kept(group, key))}
        paths = [group.cache.artifact(artifact.sha256) for artifact in artifacts]
        missing = {key: path for key, path in zip(keys, paths, strict=True) if key not in found}
        paths = list(missing.values())
        figures = tool.measure(paths, conditions, emit=lambda event: group.emit({**event, **quiet})) if paths else []
    group.emit({"event": "stage", "stage": stage, "form": None, "detail": "measured"})  # others may go on
    fresh = dict(zip(missing, figures, strict=True))
    for key, measurement in fresh.items():
        if isinstance(measurement, Measurement):
            fresh[key] = measurement = _comparable(group, usual, measurement)
            if measurement.trusted or stage == "untrained":  # a look is never more than that
                group.cache.keep_record("measured", key, to_json(measurement), lasting=False)
    return [{**found, **fresh}[key] for key in keys]


def _kept(group: Group, key: str) -> Measurement | None:
    """The figure that the cache has; one that an older brisk kept, in another form, is none."""
    try:
        return from_json(Measurement, group.cache.record("measured", key))
    except ValidationError:
        return None


def _comparable(group: Group, fingerprint: str, measurement: Measurement) -> Measurement:
    """The figure as it would be while the reference takes as long as when the home first measured it.

    Within a sitting all is relative to the reference; between sittings a shared machine may run half as fast again.
    """
    usual = group.cache.first_record("reference", fingerprint, {"reference_ms": measurement.reference_ms})
    faster = usual["reference_ms"] / measurement.reference_ms if measurement.reference_ms else 1.0
    low, high = measurement.ci_ms
    return replace(measurement, median_ms=measurement.median_ms * faster, ci_ms=(low * faster, high * faster))
