"""A rehearsal: invented figures in place of training and measuring, to see in seconds how a study would go.

It stands where `objectives.judge` stands, with the same four functions, and needs no TensorFlow. Latency follows
the analytic model that was fitted to LiteRT on one Zen 5 core, per step of a loop (mean error 5.5 % on what it was
fitted to): 0.339 us, 0.026 us for each elementwise operation, 0.281 us for 1000 transcendentals, and the weights at
153 GB/s. The errors are made up altogether.

`bench.extra` may ask for real faults of the process it runs in, by the stage and what the candidate is, for instance
{"crash": "quantize:full8"}: keys "crash" (a segmentation fault), "hang", "eat" (memory without end), "raise", and
"pause_s", a number of seconds that every group takes. A place is "stage:word"; the word is a cell, a lowering, a bit
width, "distilled" or "undistilled", or "*".
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from objectives.artifact import Artifact
from objectives.bench import Ask, Bench, Emit
from objectives.objective import costs_of
from objectives.outcome import UNDEPLOYED, Measurement, Outcome, Quality
from objectives.sources import importable
from objectives.training.rungs import epochs_of
from spaces.catalog import CELLS, STEPS, WEIGHT_BYTES, asked_bits
from spaces.errors import CandidateError
from spaces.genotype import Architecture, Deployment, Genotype
from spaces.record import digest, from_json, to_json
from spaces.signature import Signature

NOTE = "rehearsal: invented figures"
TRIVIAL_ERROR = 0.9

_FLOOR = {
    "lstm": 0.020,
    "gru": 0.022,
    "simple_rnn": 0.060,
    "fastgrnn": 0.030,
    "fastrnn": 0.045,
    "lstmp": 0.020,
    "cifg": 0.021,
    "mgu": 0.025,
    "ligru": 0.026,
    "indrnn": 0.045,
    "sru": 0.036,
    "qrnn": 0.035,
    "mingru": 0.040,
    "tcn": 0.028,
    "attention": 0.026,
    "linear_attention": 0.030,
    "qrnn_f": 0.037,
    "qrnn_ifo": 0.034,
    "sru1": 0.037,
    "minlstm": 0.039,
    "mingru_signed": 0.036,
    "lru": 0.034,
    "mamba": 0.033,
}
"""The error that each cell comes down to; all of them invented."""

_BITS_ERROR = {"32": 0.0, "16": 0.0, "8": 0.001, "rec8": 0.0005, "rec4": 0.006, "4": 0.02}
_BITS_ERROR |= {"full8": 0.015, "full16x8": 0.002}
_LENGTHS = {"digits-pixels": (64, 1, 10), "digits-rows": (8, 8, 10)}


def prepare(bench: dict[str, Any]) -> dict[str, Any]:
    """What the study needs to know of the data, guessed from their name."""
    where = from_json(Bench, bench)
    task = where.task
    steps, features, outputs = _LENGTHS.get(task.data, (100, 8, 10))
    signature = Signature(task.kind, steps, features, outputs if task.kind != "regression" else 1)
    found = {
        "signature": to_json(signature),
        "digest": digest(task.kind, task.data),
        "summary": {"kind": task.kind, "data": task.data, "note": NOTE},
        "trivial_error": TRIVIAL_ERROR,
    }
    if where.model:
        forms = [Deployment("loop", count, bits) for count in (1, 2, 4) for bits in ("32", "8", "rec8", "rec4")]
        found["model"] = {"padding": None, "forms": [to_json(form) for form in forms]}
    if where.hypermodel:
        found["hypermodel"] = _explored(where.root, where.hypermodel.path)
    return found


def warm() -> None:
    """Nothing: there is nothing to wait for."""


def _explored(root: str, place: str) -> dict[str, Any]:
    """The genes of a hypermodel, for which its models must be built: with TensorFlow, for once."""
    from spaces.hypermodel import build, found, genes_of

    importable(root)
    hyper = found(place)
    genes = genes_of(hyper, lambda hp: build(hyper, hp, place))
    return {"padding": None, "compiled": True, "genes": [to_json(gene) for gene in genes]}


def evaluate(bench: dict[str, Any], genotypes: list[dict[str, Any]], emit: Emit, ask: Ask) -> None:
    """Take one group through the stages of `objectives.evaluate`; every form's invented Outcome is emitted."""
    where = from_json(Bench, bench)
    forms = [from_json(Genotype, plain) for plain in genotypes]
    _stage(where, emit, "load", forms)
    _stage(where, emit, "train", forms)
    time.sleep(float(where.extra.get("pause_s", "0")))
    for rung, epoch in enumerate(epochs_of(where.training.rungs, where.training.epochs)):
        learned = _learned(where, forms[0], rung + 1)
        known = [replace(invented(where, form), quality=Quality("accuracy", math.nan, learned[-1])) for form in forms]
        shown = [costs_of(outcome) for outcome in known]
        question = {"ask": "rung", "rung": rung, "epoch": epoch, "of": where.training.epochs, "forms": shown}
        if reason := ask(question):
            for index, outcome in enumerate(known):
                ms = outcome.measurement.median_ms if outcome.measurement else outcome.untrained_ms
                blank = replace(outcome, quality=None, untrained_ms=ms, learned=learned)
                _emit_outcome(emit, index, replace(blank, state="stopped", stage="train", reason=reason))
            return
    beaten = _beaten(where, forms, emit, ask)
    ready = []
    for index, genotype in enumerate(forms):
        if index in beaten:
            continue
        try:
            for stage in ("lower", "quantize", "quality"):
                _stage(where, emit, stage, [genotype], index)
            ready.append((index, genotype))
        except CandidateError as failure:
            _emit_outcome(emit, index, Outcome(genotype, "failed", stage=failure.stage, reason=failure.reason))
    _stage(where, emit, "measure", [genotype for _, genotype in ready])
    for index, genotype in ready:
        _emit_outcome(emit, index, invented(where, genotype))


def _beaten(bench: Bench, forms: list[Genotype], emit: Emit, ask: Ask) -> set[int]:
    """The forms that need no file, as the driver says, once their outcomes are emitted."""
    known = {index: outcome for index, form in enumerate(forms) if (outcome := invented(bench, form)).quality}
    error = _error(replace(forms[0], deployment=Deployment()))
    if {"look", "deploy"} & {*bench.without} or error > bench.bounds.get("quality", math.inf):
        return set()
    hoped = []
    for outcome in known.values():
        least = error - (0.01 if outcome.genotype.deployment.bits != "32" else 0.0)  # the standard error, as invented
        hoped.append(replace(outcome, quality=Quality("accuracy", 1 - error, least)))
    answer = ask({"ask": "deploy", "forms": [to_json(outcome) for outcome in hoped]}) or ()
    beaten = {index: known[index] for index, lost in zip(known, answer, strict=False) if lost}
    for index, outcome in beaten.items():
        blank = replace(outcome, quality=None, trained_error=error)
        _emit_outcome(emit, index, replace(blank, state="stopped", stage=UNDEPLOYED, reason=NOTE))
    return {*beaten}


def final(
    bench: dict[str, Any], genotypes: list[dict[str, Any]], outcomes: list[dict[str, Any]], emit: Emit
) -> dict[str, Any]:
    """Invented test figures, and the measurements once more."""
    del bench, genotypes
    emit({"event": "stage", "stage": "quality", "form": None, "detail": "test"})
    qualities, measurements = [], []
    for outcome in (from_json(Outcome, plain) for plain in outcomes):
        assert outcome.quality, "only finished outcomes come here"
        assert outcome.measurement, "only finished outcomes come here"
        plain = to_json(outcome.quality)
        qualities.append(plain | {"test": outcome.quality.validation - 0.002, "test_stderr": 0.01})
        measurements.append(to_json(outcome.measurement))
    return {"quality": qualities, "measurement": measurements}


def invented(bench: Bench, genotype: Genotype) -> Outcome:
    """The outcome of one candidate, always the same for the same one."""
    _, features, outputs = _LENGTHS.get(bench.task.data, (100, 8, 10))
    error = _error(genotype)
    error += 0.004 * _chance(genotype, f"repeat {bench.repeat}") if bench.repeat else 0.0
    latency_ms = _latency_us(genotype, *_LENGTHS.get(bench.task.data, (100, 8, 10))) / 1000
    size_bytes = 4000 + int(_weights(genotype, features) * WEIGHT_BYTES[genotype.deployment.bits]) + 4 * outputs
    conditions = bench.conditions
    outcome = Outcome(
        genotype,
        "complete",
        quality=Quality("accuracy", 1 - error, error, stderr=0.01),
        measurement=Measurement(
            device=bench.device,
            scenario=conditions.scenario,
            threads=conditions.threads,
            batch=genotype.deployment.batch,
            median_ms=latency_ms,
            ci_ms=(latency_ms * 0.99, latency_ms * 1.01),
            raw_ms=latency_ms,
            converged=True,
            trusted=False,
            why=NOTE,
            processes=0,
            blocks=0,
            first_ms=2 * latency_ms,
            load_ms=0.5,
            peak_memory_bytes=2 * size_bytes + _activations(genotype),
            fingerprint="rehearsal",
        ),
        artifact=Artifact(
            sha256=digest(genotype),
            size_bytes=size_bytes,
            batch=genotype.deployment.batch,
            realised_bits=asked_bits(genotype.deployment.bits),
            exporter=NOTE,
            compressed_bytes=int(size_bytes * (1 - 0.6 * genotype.training.sparsity)),
        ),
        seconds={"train": 0.0, "measure": 0.0},
        notes=(NOTE,),
        learned=_learned(bench, genotype, len(bench.training.rungs)),
    )
    over = latency_ms / genotype.deployment.batch - bench.bounds.get("latency", math.inf)
    if over <= 0:
        return outcome
    return Outcome(genotype, "infeasible", untrained_ms=latency_ms, stage="untrained", reason=NOTE, notes=(NOTE,))


def _latency_us(genotype: Genotype, steps: int, features: int, outputs: int) -> float:
    built, served = _built(genotype), genotype.deployment
    step = STEPS[built.cell]
    frames = -(-steps // built.frame_stack)
    recurrent = step.gates * built.units**2 if CELLS[built.cell].recurrent_matrix else 0
    weights_us = recurrent * WEIGHT_BYTES[served.bits] / 153e3
    step_us = (
        0.339 / served.steps + 0.026 * step.operations + 0.281 * step.transcendentals * built.units / 1000 + weights_us
    )
    if served.lowering in ("scan", "parallel"):
        step_us /= 4
    if served.lowering == "keras":
        step_us *= 2
    once_us = 2 + outputs * built.units / 83e3 + frames * step.gates * built.units * features * built.frame_stack / 83e3
    directions = built.layers * (2 if built.bidirectional else 1)
    spread = 1 + 0.02 * _chance(genotype, "latency")
    return (directions * frames * step_us * (0.4 + 0.6 * served.batch) + once_us) * spread


def _learned(bench: Bench, genotype: Genotype, rungs: int) -> tuple[float, ...]:
    """The validation errors at the first rungs: what a cell is going to learn, it learns at a rate of its own."""
    final, rate = _error(genotype), 3.0 if CELLS[_built(genotype).cell].recurrent_matrix else 1.5
    shares = [epoch / bench.training.epochs for epoch in epochs_of(bench.training.rungs, bench.training.epochs)]
    return tuple(final + (TRIVIAL_ERROR - final) * math.exp(-rate * 3 * share) for share in shares[:rungs])


def _activations(genotype: Genotype) -> int:
    """Bytes of state and gates for every sequence of a call."""
    built = _built(genotype)
    return 4 * genotype.deployment.batch * built.layers * built.units * (1 + STEPS[built.cell].gates)


def _weights(genotype: Genotype, features: int) -> int:
    built = _built(genotype)
    gates = STEPS[built.cell].gates
    first = features * built.frame_stack
    directions = built.layers * (2 if built.bidirectional else 1)
    return directions * gates * built.units * (first + built.units)


def _error(genotype: Genotype) -> float:
    built, learning_rate = _built(genotype), genotype.training.learning_rate or 4e-3
    floor = _FLOOR[built.cell]
    capacity = 1.2 / (built.units * built.layers)
    rate = 0.01 * abs(math.log10(learning_rate / 4e-3))
    spread = 0.004 * (1 + _chance(genotype, "error"))
    return min(TRIVIAL_ERROR, floor + capacity + rate + spread + _compressed(genotype))


def _compressed(genotype: Genotype) -> float:
    """What its compression adds to the error: narrow bits less where trained for, distillation takes some away."""
    trained, bits = genotype.training, _BITS_ERROR[genotype.deployment.bits]
    bits *= 0.3 if trained.qat == genotype.deployment.bits else 1
    return bits + 0.01 * trained.sparsity + 0.02 * trained.pruned_units - 0.01 * trained.distillation


def _built(genotype: Genotype) -> Architecture:
    """A user's own model, or what a user's code builds, passes for an LSTM of 128 units; pruned units are gone."""
    if genotype.architecture.model or genotype.architecture.hypermodel:
        return Architecture("lstm", 128)
    return genotype.served


def _chance(genotype: Genotype, what: str) -> float:
    """A number in [-1, 1] that depends on architecture and learning rate alone: techniques do not change the luck."""
    return int(digest(genotype.architecture, genotype.training.learning_rate, what)[:8], 16) / 2**31 - 1


def _emit_outcome(emit: Emit, form: int, outcome: Outcome) -> None:
    emit({"event": "outcome", "form": form, "outcome": to_json(outcome)})


def _stage(bench: Bench, emit: Emit, stage: str, forms: list[Genotype], index: int | None = None) -> None:
    emit({"event": "stage", "stage": stage, "form": index, "detail": NOTE})
    for fault, strike in _FAULTS.items():
        asked, _, word = bench.extra.get(fault, "").partition(":")
        if asked == stage and any(word in ("*", *_words(genotype)) for genotype in forms):
            strike(stage)


def _words(genotype: Genotype) -> tuple[str, ...]:
    taught = "distilled" if genotype.training.distillation else "undistilled"
    return genotype.architecture.cell, genotype.deployment.lowering, genotype.deployment.bits, taught


def _crash(_: str) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60)  # the signal is on its way


def _hang(_: str) -> None:
    while True:
        time.sleep(60)


def _eat(_: str) -> None:
    eaten = []
    while True:
        eaten.append(b"x" * 2**24)
        time.sleep(0.01)


def _raise(stage: str) -> None:
    raise CandidateError(stage, "asked for by the rehearsal")


_FAULTS: dict[str, Callable[[str], None]] = {"crash": _crash, "hang": _hang, "eat": _eat, "raise": _raise}
