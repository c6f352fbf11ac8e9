"""The runtimes claim: one set of weights in brisk's forms, in the ordinary exports and in other runtimes, side by side.

    python -m experiments.claims.runtimes --out DIR [--quick] [--again] [--only lstm-100-32-128 ...]

A case is one model at one batch size, in a process of its own, pinned to one core, one thread. Every candidate of a
case is checked against Keras and then timed in rounds: each round visits all in random order, so a ratio is the median
over rounds of two figures of the same round. The head is Dense(10), linear; weights are drawn at random, so an error
is one of arithmetic and not of a task. Beside the times stands the floor: the recurrent weights, as they are stored,
read once a step at the peak bandwidth of this core; a time under it is a broken measurement. `roofline.c` measures that
bandwidth, and holds an int8 loop by hand. Needs `pip install -e '.[claims]'`; what is missing is noted and left out.

Writes DIR/runtimes.json as cases end, and DIR/runtimes.md. Cases that are there already are not run `--again`.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims.runtimes.cases import (
    BYTES,
    CASE_TIMEOUT_S,
    CASES,
    GLACIAL_S,
    HERE,
    OTHERS,
    PACKAGES,
    SLOT_S,
    SLOW_S,
    Candidate,
    Case,
    Maker,
    Subject,
)
from experiments.claims.runtimes.limits import bandwidth_gb_s, by_hand, roofline
from experiments.claims.runtimes.ordinary import brisk_forms, ordinary_tensorflow, ordinary_tflite
from experiments.claims.runtimes.promises import verdicts, written
from experiments.claims.runtimes.rivals import onnx_runtimes, openvino_runtimes, torch_runtimes
from objectives.latency.meter import cleaner
from spaces.backend import configure


def makers(subject: Subject, library: Any, notes: dict[str, str]) -> dict[str, Maker]:
    """Every candidate's maker; why a whole runtime is left out goes into `notes`."""
    found = brisk_forms(subject) | ordinary_tflite(subject) | ordinary_tensorflow(subject)
    for runtime in (onnx_runtimes, openvino_runtimes, torch_runtimes):
        try:
            found |= runtime(subject)
        except ImportError as error:
            notes[runtime.__name__] = reason(error)
    return found | by_hand(subject, library)


def reason(error: Exception) -> str:
    """One line of an error; the cause rather than where it was found."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "not supported" in line or "No conversion" in line] or lines[:1]
    return f"{type(error).__name__}: {' '.join(told)[:240]}"


def measured(case: Case, rounds: int) -> dict[str, Any]:
    """All that is known of one case: each candidate's errors, times by round and floor; what failed, and why."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = roofline(folder)
        notes: dict[str, str] = {} if library else {"roofline": "not compiled: no gcc, or none that can"}
        if library and not library.has_vnni():
            notes["hand 8"] = "this processor has no AVX-512 VNNI"
        subject = Subject(case, folder)
        ready, rows = {}, {}
        for label, make in makers(subject, library, notes).items():
            try:
                candidate = make()
                rows[label] = errors(np.asarray(candidate.answer(subject.x)), subject.expected)
                ready[label] = candidate
            except Exception as error:
                notes[label] = reason(error)
        for label, times in timed(ready, rounds).items():
            rows[label] |= {"ms": statistics.median(times), "rounds_ms": times}
        peaks = bandwidths(case, library) if library else {}
        for label, row in rows.items():
            bits = label.split()[1] if " " in label else "32"
            if label.startswith("onnxruntime 8") and case.cell == "gru":
                bits = "32"
            if bits in peaks:
                row["floor_ms"] = case.time * case.matrices * case.matrix_weights * BYTES[bits] / peaks[bits] / 1e6
                row["broken"] = row["ms"] < row["floor_ms"]
    return {"rows": rows, "notes": notes, "read_gb_s": peaks, "load": os.getloadavg()[0]}


def errors(got: Any, expected: Any) -> dict[str, Any]:
    """How far outputs are from those of Keras."""
    difference = np.abs(got.astype(np.float64).reshape(expected.shape) - expected)
    relative = np.sqrt((difference**2).mean() / (expected.astype(np.float64) ** 2).mean())
    return {"max_abs_error": float(difference.max()), "relative_rms_error": float(relative)}


def bandwidths(case: Case, library: Any) -> dict[str, float]:
    """The peak read bandwidth for one recurrent matrix in each width; a smaller one is never slower to read."""
    sizes = {bits: case.matrix_weights * width for bits, width in BYTES.items()}
    peaks = {size: bandwidth_gb_s(library, size) for size in set(sizes.values())}
    return {bits: max(peak for other, peak in peaks.items() if other >= size) for bits, size in sizes.items()}


def timed(ready: dict[str, Candidate], rounds: int) -> dict[str, list[float]]:
    """Each candidate's milliseconds a call in each round, the medians of blocks; the glacial ones have three rounds."""
    clean, order, taken = cleaner(), random.Random(7), {name: list[float]() for name in ready}
    seconds = {}
    for name, candidate in ready.items():
        seconds[name] = min(block(candidate, clean, 0, 1)[0] / 1e9 for _ in range(2))
    gc.collect()
    gc.freeze()
    gc.disable()
    for turn in range(rounds):
        names = [name for name, spent in seconds.items() if turn < 3 or spent < GLACIAL_S]
        order.shuffle(names)
        for name in names:
            calls = max(1, min(400, round(SLOT_S / seconds[name])))
            walls = block(ready[name], clean, 2 if seconds[name] < SLOW_S else 1, calls)
            taken[name].append(statistics.median(walls) / 1e6)
    gc.enable()
    return taken


def block(candidate: Candidate, clean: Callable[[], Any], discarded: int, calls: int) -> list[int]:
    """Nanoseconds of each call: clean registers, fresh state, a few calls discarded, then those that count."""
    call, clock, walls = candidate.call, time.perf_counter_ns, []
    clean()
    candidate.before()
    for _ in range(discarded):
        call()
    for _ in range(calls):
        started = clock()
        call()
        walls.append(clock() - started)
    return walls


def child(case: Case, rounds: int) -> None:
    """The life of a case's process, pinned by its parent before any thread was born; it answers in its last line."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    configure(1)
    out = os.dup(1)
    os.dup2(2, 1)  # whatever the libraries print
    answer = measured(case, rounds)
    os.write(out, ("\n" + json.dumps(answer)).encode())
    os._exit(0)  # what dies while it is torn down has been timed all the same


def run_case(case: Case, rounds: int) -> dict[str, Any]:
    """A case in a fresh process; a note where it died."""
    command = [sys.executable, "-P", "-m", "experiments.claims.runtimes", "--child", case.name, "--rounds", str(rounds)]
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[2])}
    try:
        ended = subprocess.run(command, capture_output=True, timeout=CASE_TIMEOUT_S, env=environment, text=True)
    except subprocess.TimeoutExpired:
        return {"died": f"took longer than {CASE_TIMEOUT_S} s"}
    if ended.returncode:
        return {"died": f"ended with {ended.returncode}: {ended.stderr[-600:]}"}
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return {**answer, "seconds": time.monotonic() - started}


def conditions() -> dict[str, Any]:
    """What the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        **{name: version(name) for name in PACKAGES + OTHERS},
    }


def version(name: str) -> str | None:
    """The installed version of a package; None where it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Run the cases that are asked for and not there yet, then print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the folder to write to")
    parser.add_argument("--quick", action="store_true", help="a third of the rounds")
    parser.add_argument("--again", action="store_true", help="run the cases that are there too")
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE", help=", ".join(case.name for case in CASES))
    parser.add_argument("--rounds", type=int, default=12, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    cases = {case.name: case for case in CASES}
    if asked.child:
        child(cases[asked.child], asked.rounds)
    if not asked.out or any(name not in cases for name in asked.only):
        parser.error("--out is needed, and --only takes " + ", ".join(cases))
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / "runtimes.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"cases": {}}
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the children inherit it
    for name in asked.only or cases:
        if asked.again or name not in report["cases"]:
            report["cases"][name] = run_case(cases[name], 4 if asked.quick else asked.rounds)
            report["conditions"] = conditions()
            path.write_text(json.dumps(report, indent=1) + "\n")
            row = report["cases"][name]
            print(f"{name}: {row.get('died') or format(row['seconds'], '.0f') + ' s'}", flush=True)
    report["verdicts"] = verdicts(report["cases"])
    path.write_text(json.dumps(report, indent=1) + "\n")
    text = written(report)
    (asked.out / "runtimes.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
