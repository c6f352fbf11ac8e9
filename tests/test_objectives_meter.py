"""The meter on its own: what it needs, what it answers, and that it does not outlive whoever asked."""

from __future__ import annotations

import ast
import ctypes
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from objectives.latency import meter
from objectives.latency.devices.local import METER, REFERENCE


def asked(*paths: Path, **changes: Any) -> dict[str, Any]:
    models = [
        {"index": index, "path": str(path), "kind": "tflite", "batch": 1, "twice": False}
        for index, path in enumerate(paths)
    ]
    request = {"models": models, "cores": sorted(os.sched_getaffinity(0))[-1:], "threads": 1, "probe_s": 5}
    request |= {"seed": 1, "period_s": None, "discarded": 1, "warmup_s": 0.01, "warmup_calls": 10}
    return request | changes


def answers(script: Path, request: dict[str, Any], blocks: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """What a meter says from its request to its end."""
    said = json.dumps(request) + "\n" + json.dumps({"blocks": blocks}) + "\n"
    process = subprocess.Popen(
        [sys.executable, "-P", "-B", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin
    process.stdin.write(said.encode())
    process.stdin.flush()  # and left open: its end is the meter's
    heard, _ = _read(process)
    assert process.returncode == 0
    return [json.loads(line) for line in heard.splitlines()]


def _read(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    assert process.stdin
    assert process.stdout
    assert process.stderr
    heard, words = process.stdout.read(), process.stderr.read()
    process.wait(timeout=30)
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()
    return heard, words


def test_it_stands_alone() -> None:
    top = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(METER.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert top - sys.stdlib_module_names == {"numpy", "ai_edge_litert", "spaces"}  # spaces: only for TensorFlow's files
    module_level = [node for node in ast.parse(METER.read_text()).body if isinstance(node, ast.ImportFrom)]
    assert not any(str(node.module).startswith("spaces") for node in module_level)


def test_a_copy_elsewhere_times_every_call_of_the_blocks_asked_for(tmp_path: Path) -> None:
    script = Path(shutil.copy(METER, tmp_path / "travelled.py"))
    said = answers(script, asked(REFERENCE, REFERENCE), [(1, 7), (0, 4), (1, 5)])
    blocks = [each for each in said if "block" in each]
    assert [(each["block"], len(each["wall_ns"])) for each in blocks] == [(1, 7), (0, 4), (1, 5)]
    assert all(1_000 < ns < 1e9 for each in blocks for ns in each["wall_ns"])
    assert [each["probed"] for each in said if "probed" in each] == [0, 1]
    opened = [each for each in said if "opened" in each]
    assert [each["batch"] for each in opened] == [1, 1]
    assert all(0 < each["load_ns"] < 1e10 and each["first_ns"] > 0 for each in opened)
    assert all(10_000 < each["memory_bytes"] < 50_000_000 for each in said if "probed" in each)
    assert said[-1] == {"done": True}


def test_calls_are_spaced_by_the_period() -> None:
    started = time.monotonic()
    answers(METER, asked(REFERENCE, probe_s=0, period_s=0.05), [(0, 12)])
    assert time.monotonic() - started > 12 * 0.05


def test_a_file_that_is_no_model_fails_with_the_runtimes_words(tmp_path: Path) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(REFERENCE.read_bytes()[:100])
    said = answers(METER, asked(REFERENCE, broken), [(0, 3)])
    assert [each["reason"].split(":")[0] for each in said if each.get("failed") == 1] == ["ValueError"]
    assert {each["block"] for each in said if "block" in each} == {0}


def test_it_ends_when_its_input_does() -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", str(METER)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    process.stdin.write(json.dumps(asked(REFERENCE, probe_s=0, warmup_s=60)).encode() + b"\n")
    process.stdin.flush()
    assert b"open" in process.stdout.readline()
    process.stdin.close()
    process.stdout.close()
    assert process.wait(timeout=10) == -signal.SIGKILL


def test_it_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from objectives.latency.devices.local import REFERENCE, Local;"
        "from objectives.outcome import Conditions;"
        "Local().measure([REFERENCE], Conditions(half_width=1e-9, max_processes=50, timeout_s=60))"
    )
    alone = {**os.environ, "TMPDIR": str(tmp_path)}  # nobody else may hold the device
    parent = subprocess.Popen([sys.executable, "-P", "-c", code], stderr=subprocess.DEVNULL, env=alone)
    until = time.monotonic() + 60
    while not (children := psutil.Process(parent.pid).children()) and time.monotonic() < until:
        time.sleep(0.05)
    assert len(children) == 1
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_cleaning_empties_the_upper_vector_registers() -> None:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if " avx2 " not in flags or " xgetbv1 " not in flags:
        pytest.skip("needs an x86-64 CPU that tells which registers are in use")
    cleaner = meter.cleaner()
    assert cleaner.__defaults__, "its machine code"
    (code,) = cleaner.__defaults__
    # One piece of code soils, calls it and looks, for what Python does in between may clean too.
    clean = ctypes.addressof(ctypes.c_char.from_buffer(code)).to_bytes(8, "little")
    soil = b"\xc5\xfd\x76\xc0"  # vpcmpeqd ymm0, ymm0, ymm0: all bits set
    in_use = b"\xb9\x01\x00\x00\x00\x0f\x01\xd0\xc3"  # mov ecx, 1; xgetbv; ret
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    place = ctypes.addressof(ctypes.c_char.from_buffer(page))

    def used(code: bytes) -> int:
        """How often of 50 times the upper halves are in use after it."""
        page[: len(code)] = code
        run = ctypes.CFUNCTYPE(ctypes.c_uint32)(place)
        return sum(run() >> 2 & 1 for _ in range(50))

    assert used(soil + in_use) > 40, "soiling must work for the test to mean anything"
    assert used(soil + b"\x48\xb8" + clean + b"\xff\xd0" + in_use) == 0  # mov rax, clean; call rax


def test_cleaning_changes_no_result() -> None:
    clean = meter.cleaner()
    numbers = np.linspace(0, 1, 1000, dtype=np.float32)
    before = np.exp(numbers).sum()
    clean()
    assert np.exp(numbers).sum() == before


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.int64, np.int8, np.bool_])
def test_inputs_have_the_models_type_and_differ_from_turn_to_turn(kind: type) -> None:
    one, other = meter._draw([3, 40], kind, 0), meter._draw([3, 40], kind, 1)
    assert (one.dtype, one.shape) == (kind, (3, 40))
    assert not np.array_equal(one, other)
    assert np.array_equal(one, meter._draw([3, 40], kind, 0))
