"""From a genotype to an outcome: the one pipeline, read from top to bottom.

A group of candidates, one architecture trained in one way and deployed in several forms, goes through these stations:

    load -> untrained: lower and measure -> train -> lower -> quantize -> quality -> measure

`untrained` comes before `train` because the latency of a dense graph does not depend on its weights; it is left out
where no bound could refuse a candidate. Trained weights, artifacts and trusted measurements are kept in the
home's cache, so that a killed study repeats no more than the lowering and the judging. It runs in a worker process:
JSON goes in, outcomes go out as events. What fails is one form at one stage; a shared stage fails the group.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from objectives.artifact import Artifact
from objectives.bench import Bench, Emit
from objectives.data import loaded
from objectives.deployment.interpreter import predict
from objectives.deployment.quantize import quantize, realised_bits
from objectives.group import Group
from objectives.latency.devices import device
from objectives.model_file import answered, fed
from objectives.objective import OBJECTIVES
from objectives.origin import origin_of
from objectives.outcome import Conditions, MeasureFailure, Measurement, Outcome, Quality
from objectives.task import TASKS
from spaces.catalog import STATIC_BITS, asked_bits
from spaces.errors import CandidateError
from spaces.genotype import Genotype
from spaces.record import digest, from_json, to_json
from spaces.signature import Signature

PARITY = 1e-4  # of a float form against Keras, relative to the largest output; contract tests hold the cells to 1e-5


def evaluate(bench: dict[str, Any], genotypes: list[dict[str, Any]], emit: Emit) -> None:
    """Take one group through the stations; every form's Outcome is emitted as soon as it is known."""
    group = Group(from_json(Bench, bench), [from_json(Genotype, plain) for plain in genotypes], emit)
    try:
        with group.stage("load"):
            group.data = loaded(group.bench)
            group.origin = origin_of(group.bench, group.data, group.forms[0])
        if group.origin.trains and any(name != "quality" for name in group.bench.bounds):
            _refuse_untrained(group)
        if group.open:
            with group.stage("train"):
                group.origin.train(emit)
            group.each(_deploy)
            _measure(group)
    except CandidateError as failure:  # of a stage that the forms share
        for form in tuple(group.open):
            group.settle(form, "failed", stage=failure.stage, reason=failure.reason)


def _refuse_untrained(group: Group) -> None:
    """Lower every form with random weights, measure them shortly, and settle those whose bound is out of reach."""
    with group.stage("build"):
        group.origin.start()
    group.each(_lower_untrained)
    if not group.open:
        return
    with group.stage("untrained"):
        measured = _sitting(group, "untrained", replace(group.bench.conditions, min_processes=1, max_processes=1))
    for form, measurement in zip(tuple(group.open), measured, strict=True):
        known = group.known[form]
        if isinstance(measurement, Measurement):
            known["untrained_ms"] = measurement.median_ms
            lowest = replace(measurement, median_ms=measurement.ci_ms[0])
            reason = _over(group, replace(group.outcome(form), measurement=lowest))
            if reason:
                group.settle(form, "infeasible", stage="untrained", reason=f"{reason}, measured before training")
                continue
        known.pop("artifact")  # it was the untrained one


def _lower_untrained(group: Group, form: int) -> None:
    with group.stage("lower", form):
        group.known[form]["artifact"] = _artifact(group, form, "untrained")
    if reason := _over(group, group.outcome(form)):
        group.settle(form, "infeasible", stage="untrained", reason=f"{reason}, known before training")


def _artifact(group: Group, form: int, stage: str) -> Artifact:
    """The file of one form with the group's weights of the moment; `stage` tells trained weights from untrained."""
    asked = group.forms[form].deployment
    group.emit({"event": "stage", "stage": "lower", "form": form, "detail": stage})
    ours = asked.lowering != "keras" and asked.bits not in STATIC_BITS  # else the stock converter does the quantising
    converted = replace(asked, bits="32") if ours else asked
    if (content := group.lowered.get((stage, converted))) is None:
        content = group.origin.lower(converted)
        if converted.bits == "32" and stage == "trained":  # once for all widths that are made of it
            path = group.cache.artifact(group.cache.keep_artifact(content))
            check_parity(_answers(group, path), group.reference, group.data.signature)
        group.lowered[stage, converted] = content
    if ours:
        group.emit({"event": "stage", "stage": "quantize", "form": form, "detail": stage})
        content = quantize(content, asked.bits, head=group.bench.quantize_head)
    sha256 = group.cache.keep_artifact(content)
    packed = len(zlib.compress(content))
    made = group.origin.exporter(asked)
    return Artifact(sha256, len(content), asked.batch, realised_bits(content), made, compressed_bytes=packed)


def _deploy(group: Group, form: int) -> None:
    """Make the artifact of one form, and judge the artifact, not the model it was made of."""
    genotype, data = group.forms[form], group.data
    with group.stage("lower", form):
        artifact = _artifact(group, form, "trained")
    with group.stage("quality", form):
        output = _answers(group, group.cache.artifact(artifact.sha256))
        oracle = group.reference
        task = TASKS[data.signature.kind]
        score = task.score(data.validation.y, output)
        error = float(np.sqrt(np.mean((output - oracle) ** 2) / np.mean(oracle**2)))
        quality = Quality(task.metric, score, task.error(score), output_error=error)
    notes = _notes(genotype, artifact, group.origin.history, quantize_head=group.bench.quantize_head)
    group.known[form] |= {"artifact": artifact, "quality": quality, "notes": notes}


def _answers(group: Group, path: Path) -> NDArray[Any]:
    """What a file answers on the validation part."""
    x = fed(group.data.validation.x, group.bench.file_of(group.forms[0]))
    return answered(predict(path, x), group.data.signature)


def _measure(group: Group) -> None:
    """Measure all open forms in one interleaved sitting, and settle every one of them."""
    if not group.open:
        return
    with group.stage("measure"):
        measured = _sitting(group, "measure", group.bench.conditions)
    for form, measurement in zip(tuple(group.open), measured, strict=True):
        if not isinstance(measurement, Measurement):
            group.settle(form, "failed", stage="measure", reason=measurement.reason)
            continue
        group.known[form]["measurement"] = measurement
        reason = _over(group, group.outcome(form))
        group.settle(form, "infeasible" if reason else "complete", reason=reason)


def _over(group: Group, outcome: Outcome) -> str:
    """Which bound the outcome is over, in words; "" where it keeps within all of them."""
    for name, bound in group.bench.bounds.items():
        objective = OBJECTIVES[name]
        value = objective.read(outcome)
        if value is not None and value > bound:
            return f"{name} {value:.4g} {objective.unit} is over the bound of {bound:g}"
    return ""


def check_parity(output: NDArray[np.float32], oracle: NDArray[np.float32], signature: Signature) -> None:
    """Raise CandidateError where a float form's outputs are not the Keras model's, in units of the targets' spread."""
    spread = np.asarray(signature.target_std or 1.0, dtype=np.float32)
    worst = float(np.max(np.abs(output - oracle) / spread))
    allowed = PARITY * max(1.0, float(np.max(np.abs(oracle) / spread)))
    if not worst <= allowed:
        raise CandidateError("parity", f"the lowered form differs from Keras by {worst:.3g}; {allowed:.1g} is allowed")


def _notes(genotype: Genotype, artifact: Artifact, history: dict[str, Any], *, quantize_head: bool) -> tuple[str, ...]:
    """What a reader of the outcome should know: bits that came to nothing, the sparsity that was reached."""
    notes = list(history.get("notes", ()))  # of the training
    for role, bits in asked_bits(genotype.deployment.bits, head=quantize_head).items():
        realised = artifact.realised_bits.get(role)
        if realised is not None and realised != bits:
            notes.append(f"asked for {bits} bits in the {role} matrices, the file has {realised}")
    if genotype.training.sparsity:
        notes.append(f"realised sparsity {history['realised_sparsity']:.3f}")
    return tuple(notes)


def _sitting(group: Group, stage: str, conditions: Conditions) -> list[Measurement | MeasureFailure]:
    """Measure the open forms' artifacts in one sitting; a figure of the same bytes, device and conditions is reused."""
    tool = device(group.bench.device)
    fingerprint = tool.fingerprint(conditions)
    artifacts = [group.known[form]["artifact"] for form in group.open]
    keys = [digest(artifact.sha256, fingerprint) for artifact in artifacts]
    found = {key: kept for key in keys if (kept := _kept(group, key))}
    paths = [group.cache.artifact(artifact.sha256) for artifact in artifacts]
    missing = {key: path for key, path in zip(keys, paths, strict=True) if key not in found}
    paths = list(missing.values())
    figures = tool.measure(paths, conditions, emit=lambda event: group.emit({**event, "stage": stage})) if paths else []
    fresh = dict(zip(missing, figures, strict=True))
    for key, measurement in fresh.items():
        if isinstance(measurement, Measurement):
            fresh[key] = measurement = _comparable(group, tool.fingerprint(group.bench.conditions), measurement)
            if measurement.trusted:
                group.cache.keep_record("measured", key, to_json(measurement))
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
