"""The training claim: what XLA saves and costs a step, what a short sequence saves without its loop, and how two
workers of one core compare with one of two.

    python -m experiments.claims.training --out DIR

Digits as pixels, 64 steps, batch 32, Adam. XLA: a step of the same model, plain and compiled in turns, in a process
with all the cores and in one with a single core; the break-even is where the time saved has paid for compiling.
Loops: whole trainings by `objectives.training.fit` of frames of 16, 8 and 4 pixels, on one core, with a loop over time
and with its steps written out, in turns: the first epoch, which is traced, and the median of the others. Workers: whole
epochs by the same, in turns; the pair trains at the same time. Takes about five minutes on two idle cores. Writes
DIR/training.json and prints its tables.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from objectives.latency.devices.local import processor

MODELS: dict[str, dict[str, Any]] = {
    "minGRU 64 x2": {"cell": "mingru", "units": 64, "layers": 2, "readout": "mean"},
    "QRNN 48 x2": {"cell": "qrnn", "units": 48, "layers": 2},
    "LSTM 128": {"cell": "lstm", "units": 128},
}
BATCH, STEPS, TURNS = 32, 34, 7
SHORT = {f"{cell} {64 // stack}": (cell, stack) for cell in ("gru", "lstm", "fastgrnn") for stack in (16, 8, 4)}
"""By cell and steps, with how many pixels a step."""
LOOP_STEPS = 2  # of a compiled loop over time, of which more would take minutes
EPOCHS, SHORT_EPOCHS, ROUNDS = 25, 8, 3


def main() -> None:
    """Ask the children, print and write what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        answer()
        return
    cores = sorted(os.sched_getaffinity(0))
    report: dict[str, Any] = {
        "xla": [],
        "loops": [],
        "workers": [],
        "load_before": os.getloadavg()[1],
        "processor": processor(),
    }
    for share in dict.fromkeys([tuple(cores), (cores[0],)]):
        with child(share) as ask:
            for name in MODELS:
                row = {"model": name, "cores": len(share), **heard(ask("compare", name))}
                report["xla"].append(row)
                pays = f"pays from step {row['break_even_steps'] or 'never'}"
                print(
                    f"{name:13} on {len(share)} of the cores: plain {row['plain_ms']:.2f} ms a step, XLA "
                    f"{row['xla_ms']:.2f} ms, compiled in {row['compile_s']:.1f} s, {pays}",
                    flush=True,
                )
    with child(cores[:1]) as ask:
        for name in SHORT:
            turns = [(heard(ask("looped", name)), heard(ask("written", name))) for _ in range(ROUNDS)]
            looped, written = (
                {key: statistics.median(turn[side][key] for turn in turns) for key in turns[0][side]} for side in (0, 1)
            )
            report["loops"].append({"model": name, "looped": looped, "written_out": written})
            print(
                f"{name:13} steps: an epoch of a loop {looped['epoch_s']:.3f} s, written out {written['epoch_s']:.3f} "
                f"s; the first one {looped['first_s']:.2f} and {written['first_s']:.2f} s",
                flush=True,
            )
    with child(cores) as one, child(cores[:1]) as left, child(cores[1:2] or cores) as right:
        for name in MODELS:
            rates: dict[str, list[float]] = {"one_worker": [], "two_workers": []}
            for _ in range(ROUNDS):
                rates["one_worker"].append(heard(one("train", name))["rate"])
                both = [left("train", name), right("train", name)]  # both are at work before either is waited for
                rates["two_workers"].append(sum(heard(each)["rate"] for each in both))
            row = {"model": name, **{key: statistics.median(found) for key, found in rates.items()}, "rates": rates}
            report["workers"].append(row)
            print(
                f"{name:13} one worker with {len(cores)} cores {row['one_worker']:,.0f} sequences/s, two with one each "
                f"{row['two_workers']:,.0f}: {row['two_workers'] / row['one_worker']:.2f} times as many",
                flush=True,
            )
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


@contextmanager
def child(cores: Sequence[int]) -> Iterator[Callable[[str, str], subprocess.Popen[str]]]:
    """A process on these cores, and what has it begun: a duty and a model's name."""
    command = [sys.executable, "-P", "-m", "experiments.claims.training", "--out", ".", "--child"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        os.sched_setaffinity(process.pid, cores)

        def ask(duty: str, name: str) -> subprocess.Popen[str]:
            assert process.stdin
            process.stdin.write(f"{duty} {name}\n")
            process.stdin.flush()
            return process

        yield ask
        assert process.stdin
        process.stdin.close()


def heard(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a child answers."""
    assert process.stdout
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def answer() -> None:
    """A child's main."""
    for line in sys.stdin:
        duty, _, name = line.strip().partition(" ")
        print(json.dumps(DUTIES[duty](name)), flush=True)


def train(name: str) -> dict[str, Any]:
    """Sequences a second of the epochs after the first, validation included."""
    from objectives.bench import TaskSpec, TrainingSpec
    from objectives.data import load
    from objectives.training.fit import fit
    from spaces.build import build
    from spaces.genotype import Architecture, Training

    data = load(TaskSpec(data="digits-pixels"), seed=0, root="")
    model = build(Architecture(**MODELS[name]), data.signature, seed=0)
    spec = TrainingSpec(epochs=EPOCHS, batch_size=BATCH, patience=EPOCHS)
    return {"rate": fit(model, data, Training(4e-3), spec, seed=0)["sequences_per_s"]}


def looped(name: str) -> dict[str, Any]:
    """Seconds of the first epoch and of the others, with a loop over time."""
    from spaces.cells import recurrent

    usual, recurrent.WRITTEN_OUT = recurrent.WRITTEN_OUT, 0
    try:
        return written(name)
    finally:
        recurrent.WRITTEN_OUT = usual


def written(name: str) -> dict[str, Any]:
    """The same, the steps written out."""
    from objectives.bench import TaskSpec, TrainingSpec
    from objectives.data import load
    from objectives.training.fit import fit
    from spaces.build import build
    from spaces.genotype import Architecture, Training

    cell, stack = SHORT[name]
    data = load(TaskSpec(data="digits-pixels"), seed=0, root="")
    model = build(Architecture(cell, 32, frame_stack=stack), data.signature, seed=0)
    spec = TrainingSpec(epochs=SHORT_EPOCHS, batch_size=BATCH, patience=SHORT_EPOCHS)
    history = fit(model, data, Training(4e-3), spec, seed=0)
    return {"first_s": history["first_epoch_s"], "epoch_s": history["epoch_s"]}


def compare(name: str) -> dict[str, Any]:
    """Milliseconds a step, plain and compiled, in turns of `STEPS` steps."""
    import numpy as np

    from objectives.training.distill import loss_of
    from spaces.backend import keras, tf
    from spaces.build import build
    from spaces.genotype import Architecture
    from spaces.signature import Signature

    model = build(Architecture(**MODELS[name]), Signature("classification", 64, 1, 10), seed=0)
    loss, weights = loss_of("classification"), model.trainable_variables
    optimizer = keras.optimizers.Adam(4e-3, clipnorm=1.0)
    optimizer.build(weights)

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        optimizer.apply_gradients(zip(tape.gradient(value, weights), weights, strict=True))
        return value

    rng = np.random.default_rng(0)
    batch = tf.constant(rng.random((BATCH, 64, 1), np.float32)), tf.constant(rng.integers(0, 10, BATCH), tf.int32)
    traced = tf.function(step).get_concrete_function(*batch)
    loops = "While" in str(traced.graph.as_graph_def())
    fast = tf.function(step if loops else traced, jit_compile=True)  # XLA must see loops being traced
    traced(*batch)
    started = time.perf_counter()
    fast(*batch)
    compile_s = time.perf_counter() - started
    plain, xla = [], []
    for _ in range(1 if loops else TURNS):
        plain.append(step_ms(lambda: traced(*batch), STEPS))
        xla.append(step_ms(lambda: fast(*batch), LOOP_STEPS if loops else STEPS))
    plain_ms, xla_ms = statistics.median(plain), statistics.median(xla)
    saved_ms = plain_ms - xla_ms
    found = {"plain_ms": plain_ms, "xla_ms": xla_ms, "compile_s": compile_s, "loops": loops}
    return {**found, "break_even_steps": round(1000 * compile_s / saved_ms) if saved_ms > 0 else None}


def step_ms(work: Callable[[], Any], steps: int) -> float:
    """Milliseconds that one of so many steps takes."""
    started = time.perf_counter()
    for _ in range(steps):
        value = work()
    float(value)
    return 1000 * (time.perf_counter() - started) / steps


DUTIES = {"compare": compare, "train": train, "looped": looped, "written": written}

if __name__ == "__main__":
    main()
