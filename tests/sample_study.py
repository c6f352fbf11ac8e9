"""A made-up study for the tests of what a person sees: its outcomes, and the JSON of `show` that goes with them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from objectives.artifact import Artifact
from objectives.outcome import Measurement, Outcome, Quality
from spaces.genotype import Architecture, Deployment, Genotype, Training

STOCK = "Keras 3, static batch, TFLite dynamic range"
Told = list[tuple[int | str, Outcome]]
SHAPES = [
    ("gru", 16, 1, 8), ("gru", 32, 1, 8), ("mingru", 64, 2, 4), ("lstm", 48, 1, 4), ("fastgrnn", 32, 1, 8),
    ("gru", 96, 1, 2), ("qrnn", 64, 1, 1), ("lstm", 96, 2, 1), ("mingru", 128, 3, 1),
]  # fmt: skip


def outcome(number: int, *, state: str = "complete", tested: bool = False) -> Outcome:
    """0 is the baseline, a stock LSTM; the others grow slower and better with their number, with some losers."""
    if number == 0:
        genotype = Genotype(Architecture("lstm", 128), Training(), Deployment("keras", 1, "8"))
        return _measured(genotype, 5.31, 0.968, 81_000, STOCK, tested)
    cell, units, layers, stack = SHAPES[number % len(SHAPES)]
    served = Deployment(
        "scan" if cell in ("mingru", "qrnn") else "loop", 4 if number % 2 else 1, ("32", "8", "rec8")[number % 3]
    )
    sparsity = 0.5 if number % 7 == 6 else 0.0
    genotype = Genotype(Architecture(cell, units, layers, frame_stack=stack), Training(sparsity=sparsity), served)
    if state != "complete":
        why = {
            "failed": ("lower", "the converter ended with signal 11"),
            "infeasible": ("untrained", "latency 3.1 ms > 2 ms"),
        }
        stage, reason = why.get(state, ("train", "cannot reach the front"))
        return Outcome(genotype, state, stage=stage, reason=reason, seconds={"lower": 1.5})
    latency = 0.021 * 1.33 ** (number % 17)
    worse = (0.05 if number % 3 == 2 else 0.0) + 0.02 * (number // 17)
    accuracy = 0.985 - 0.12 * math.exp(-0.35 * (number % 17)) - worse
    return _measured(
        genotype, latency, accuracy, 9_000 + 2_500 * (number % 17), "brisk loop, 4 steps an iteration", tested
    )


def _measured(genotype: Genotype, latency: float, accuracy: float, size: int, exporter: str, tested: bool) -> Outcome:
    served = genotype.deployment
    converged = genotype.architecture.cell != "qrnn"
    spread = 0.012 if converged else 0.09
    return Outcome(
        genotype,
        "complete",
        quality=Quality("accuracy", accuracy, 1 - accuracy, *((accuracy - 0.004, 0.008) if tested else (None, None))),
        measurement=Measurement(
            "local", "burst", 1, served.batch, latency, (latency * (1 - spread), latency * (1 + spread)), latency,
            converged, True, "" if converged else "wider than 2 %", 3, 40, latency * 9, 0.8, 512_000, "f00d",
        ),
        artifact=Artifact(
            genotype.key * 4, size, served.batch,
            {"input": 8 if served.bits == "8" else 32, "recurrent": 8 if served.bits == "8" else 32, "head": 32},
            exporter,
        ),
        seconds={"train": 6.0, "lower": 0.5, "measure": 2.0},
    )  # fmt: skip


def point(number: int | str, found: Outcome, baseline: Outcome | None) -> dict[str, Any]:
    """The POINT of the contract for one outcome."""
    assert found.quality
    assert found.measurement
    assert found.artifact
    quality, measured, plain = found.quality, found.measurement, dataclasses.asdict(found.genotype)
    gain = baseline.measurement.median_ms / measured.median_ms if baseline and baseline.measurement else None
    drop = baseline.quality.validation - quality.validation if baseline and baseline.quality else None
    return {
        "trial": number,
        "genotype": plain,
        "quality": {
            "metric": quality.metric, "validation": quality.validation,
            "test": quality.test, "test_stderr": quality.test_stderr,
        },
        "latency_ms": {
            "median": measured.median_ms, "ci": list(measured.ci_ms), "converged": measured.converged,
            "scenario": "burst", "batch": 1, "threads": 1, "device": "local",
        },
        "throughput_per_s": 1000 / measured.median_ms,
        "size_bytes": found.artifact.size_bytes,
        "peak_memory_bytes": measured.peak_memory_bytes,
        "speedup": gain,
        "drop": drop,
        "artifact": {
            "format": "tflite", "sha256": found.artifact.sha256, "realised_bits": found.artifact.realised_bits,
            "exporter": found.artifact.exporter,
        },
    }  # fmt: skip


def study(trials: int = 24, *, baseline: bool = True, tested: bool = True) -> tuple[dict[str, Any], Told]:
    """(summary, outcomes): the JSON of `show` and every told trial, two failed and one infeasible among them."""
    states = {5: "failed", 9: "infeasible", 13: "failed"}
    told: Told = [("baseline", outcome(0, tested=tested))] if baseline else []
    told += [(n, outcome(n, state=states.get(n, "complete"), tested=tested)) for n in range(1, trials)]
    done = [(n, o) for n, o in told if o.state == "complete" and n != "baseline"]
    first = told[0][1] if baseline else None
    cost = {n: (o.measurement.median_ms, o.quality.error) for n, o in done if o.measurement and o.quality}
    front = [
        (n, o) for n, o in done
        if not any(a <= cost[n][0] and b <= cost[n][1] and (a, b) != cost[n] for a, b in cost.values())
    ]  # fmt: skip
    counts = {
        state: sum(o.state == state for _, o in told) for state in ("complete", "infeasible", "stopped", "failed")
    }
    summary = {
        "study": "digits",
        "task": {"kind": "classification", "data": "digits-pixels", "metric": "accuracy"},
        "counts": {**counts, "complete": counts["complete"] - baseline, "running": 0},
        "failures": [{"trial": n, "stage": o.stage, "reason": o.reason} for n, o in told if o.state == "failed"],
        "hypervolume": 0.813,
        "reference": {"quality": 0.9, "latency": 5.31},
        "wall_s": 231.4,
        "seconds": {
            "stages": {"train": 120.0, "untrained": 4.0, "measure": 86.0, "lower": 12.0},
            "training": 120.0, "measuring": 90.0, "other": 21.4, "other_share": 21.4 / 231.4,
        },
        "training": {"sequences": 1_234_567, "epochs_s": 293.2, "sequences_per_s": 4210.4, "wall_share": 0.52},
        "baseline": point("baseline", first, first) if first else None,
        "front": sorted((point(n, o, first) for n, o in front), key=lambda p: p["latency_ms"]["median"]),
        "compression": [
            entry("distillation", "0.5", 2, 1.001, (0.98, 1.02), 1.0, -0.012, "more accurate"),
            entry("bits", "8", 9, 1.42, (0.91, 2.31), 3.61, 0.002, "1.4× faster, smaller, but less accurate"),
            entry("loop", "over keras", 1, 1.97, (1.92, 2.02), 1.0, 0.0, "2.0× faster"),
            entry("sparsity", "80%", 1, 1.0, (0.98, 1.02), 1.0, 0.03, "no gain: less accurate"),
        ],
        "batch_curve": {
            "trial": 3, "knee": 4, "text": "From a batch of 4 on, throughput grows by less than 10 %.",
            "rows": [
                batch_row(1, 0.05, 600_000), batch_row(4, 0.1, 700_000), batch_row(16, 0.39, 1_100_000),
                batch_row(32, 0.77, 9_100_000, "memory 8887 KiB is over the bound of 4096"),
                {**batch_row(64, 1.0, 0, "failed at lower: died by signal 11 (SIGSEGV)"), "latency_ms": None},
            ],
        },
    }  # fmt: skip
    return summary, told


def entry(technique: str, setting: str, pairs: int, ratio: float, span: Any, *rest: Any) -> dict[str, Any]:
    """An entry of the ledger of techniques."""
    names = ("bytes_ratio", "error_change", "verdict")
    known = {"technique": technique, "setting": setting, "pairs": pairs, "latency_ratio": ratio}
    return {**known, "latency_range": list(span), **dict(zip(names, rest, strict=True))}


def batch_row(batch: int, median_ms: float, memory: int, excluded: str = "") -> dict[str, Any]:
    """A row of the curve over batch sizes."""
    ci = [median_ms * 0.99, median_ms * 1.01]
    return {
        "batch": batch,
        "latency_ms": {"median": median_ms, "ci": ci, "converged": batch != 16, "trusted": True, "why": ""},
        "ms_per_sequence": median_ms / batch,
        "throughput_per_s": 1000 * batch / median_ms,
        "peak_memory_bytes": memory,
        "size_bytes": 30_000,
        "excluded": excluded,
    }
