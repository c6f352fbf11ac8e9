"""The A/A claim: one model measured under two names ties, in 19 of 20 tries, while another process trains.

    python -m experiments.claims.aa --out DIR [--tries 20]

A try is one sitting of a model of about 20 us and one of about 150 us, each under two names. A tie is a difference of
at most 3 %, under 30 us of 6 %. The training process is pinned to the first usable core, the meter to the last; on a
machine of one core they share it. Writes DIR/aa.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from objectives.latency.devices.local import Local
from objectives.latency.timing import tie_tolerance
from objectives.outcome import Conditions, Measurement

BUILD = """
import sys
from spaces.backend import keras, tf
for path, steps, features, units in ((sys.argv[1], 16, 16, 64), (sys.argv[2], 80, 32, 128)):
    keras.utils.set_random_seed(7)
    x = keras.Input(batch_shape=(1, steps, features), name="x")
    model = keras.Model(x, keras.layers.Dense(10, activation="softmax")(keras.layers.GRU(units)(x)))
    spec = tf.TensorSpec([1, steps, features], tf.float32, name="x")
    serve = tf.function(lambda x: model(x, training=False), input_signature=[spec]).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve], model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    open(path, "wb").write(converter.convert())
"""
TRAIN = """
import numpy as np
from spaces.backend import configure, keras
configure(1)
model = keras.Sequential([keras.Input((64, 1)), keras.layers.LSTM(64), keras.layers.Dense(10)])
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
x, y = np.random.rand(512, 64, 1).astype("float32"), np.random.randint(0, 10, 512)
model.fit(x, y, batch_size=32, verbose=0)
print("training", flush=True)
while True:
    model.fit(x, y, batch_size=32, verbose=0)
"""


@contextlib.contextmanager
def training(core: int) -> Iterator[subprocess.Popen[str]]:
    """A process that trains on one core until the context ends."""
    process = subprocess.Popen([sys.executable, "-P", "-c", TRAIN], stdout=subprocess.PIPE, text=True)
    heard = process.stdout
    assert heard
    try:
        psutil.Process(process.pid).cpu_affinity([core])
        if heard.readline().strip() != "training":
            raise RuntimeError(f"the training process ended with code {process.wait()}")
        yield process
    finally:
        process.kill()
        process.wait()
        heard.close()


def one_try(models: list[Path], cores: list[int]) -> list[dict[str, Any]]:
    """One sitting with every model under two names: a row a model."""
    results = Local().measure([each for each in models for _ in range(2)], Conditions(), cores=cores)
    rows = []
    for path, one, other in zip(models, results[::2], results[1::2], strict=True):
        if not isinstance(one, Measurement) or not isinstance(other, Measurement):
            raise RuntimeError(f"{path} could not be measured: {one} {other}")
        difference = other.median_ms / one.median_ms - 1
        rows.append(
            {
                "model": path.stem,
                "latency_ms": one.median_ms,
                "difference": difference,
                "tie": abs(difference) <= tie_tolerance(one.median_ms),
                "converged": one.converged and other.converged,
                "processes": max(one.processes, other.processes),
            }
        )
    return rows


def main() -> None:
    """Run the tries, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tries", type=int, default=20)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    models = [asked.out / "small.tflite", asked.out / "large.tflite"]
    subprocess.run([sys.executable, "-P", "-c", BUILD, *map(str, models)], check=True)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    tries: list[dict[str, Any]] = []
    with training(cores[0]) as trainer:
        for number in range(asked.tries):
            started, load = time.monotonic(), psutil.getloadavg()[0]
            rows = one_try(models, cores)
            tries.append({"rows": rows, "load": load, "seconds": time.monotonic() - started})
            said = ", ".join(
                f"{row['model']} {row['difference']:+.2%}{'' if row['tie'] else ' NO TIE'}" for row in rows
            )
            print(f"{number + 1:2}/{asked.tries}  {said}  ({tries[-1]['seconds']:.1f} s, load {load:.1f})", flush=True)
            assert trainer.poll() is None, "the training process ended early"
    report: dict[str, Any] = {"cores": cores, "tries": tries, "ties": {}}
    for place, path in enumerate(models):
        rows = [each["rows"][place] for each in tries]
        report["ties"][path.stem] = sum(row["tie"] for row in rows)
        middle = sorted(row["latency_ms"] for row in rows)[len(rows) // 2]
        print(f"{path.stem}: {middle * 1000:.1f} us, {report['ties'][path.stem]} ties in {len(rows)} tries")
    (asked.out / "aa.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
