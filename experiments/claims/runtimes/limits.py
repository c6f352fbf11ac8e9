"""What the core allows: the bandwidth of its caches, and a recurrent loop written by hand (`roofline.c`)."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims.runtimes.cases import HERE, OUTPUTS, Candidate, Maker, Subject
from experiments.claims.runtimes.ordinary import by_batch


def roofline(folder: Path) -> Any:
    """`roofline.c`, compiled and opened; None where there is no gcc, or it cannot."""
    library = folder / "roofline.so"
    command = ["gcc", "-O3", "-march=native", "-ffast-math", "-shared", "-fPIC", str(HERE / "roofline.c")]
    if not shutil.which("gcc") or subprocess.run([*command, "-o", str(library)], check=False).returncode:
        return None
    opened = ctypes.CDLL(str(library))
    opened.read_gb_s.restype = ctypes.c_double
    return opened


def aligned(array: Any) -> Any:
    """A copy that starts on a cache line."""
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def bandwidth_gb_s(library: Any, size: float) -> float:
    """Peak read bandwidth of this core over so many bytes."""
    count = max(512, int(size) // 512 * 512)
    buffer = aligned(np.zeros(count, np.uint8))
    passes = max(1, int(100e6 / count))
    found: float = library.read_gb_s(ctypes.c_void_p(buffer.ctypes.data), *map(ctypes.c_long, (count, passes, 15)))
    return found


def packed(matrix: Any) -> list[Any]:
    """A matrix [rows, columns] as `product` in roofline.c reads it: int8 weights, 128 times their sums, scales."""
    scales = np.abs(matrix).max(axis=0) / 127
    whole = np.rint(matrix / scales).astype(np.int8)
    rows, columns = matrix.shape
    blocks = whole.reshape(rows // 4, 4, columns // 64, 64).transpose(2, 0, 3, 1)
    return [blocks, 128 * whole.sum(axis=0, dtype=np.int32), scales.astype(np.float32)]


def by_hand(subject: Subject, library: Any) -> dict[str, Maker]:
    """The int8 loop of roofline.c: one layer, one sequence, the last state."""
    case = subject.case
    if library is None or case.batch > 1 or case.shape != "last" or not library.has_vnni():
        return {}

    def made() -> Candidate:
        ((kernel, recurrent, bias),) = subject.layers[0]
        first, second = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
        gates = 4 if case.cell == "lstm" else 3
        matrices = [*packed(kernel), first, *packed(recurrent), second]
        x, y = aligned(subject.one), aligned(np.zeros(OUTPUTS, np.float32))
        work = aligned(np.zeros((case.time * gates + gates + 2) * case.units, np.float32))
        arrays = [aligned(each) for each in [*matrices, subject.weights[-2].T, subject.weights[-1]]]
        sizes = [ctypes.c_int(size) for size in (case.time, case.features, case.units, gates)]
        tail = [ctypes.c_int(OUTPUTS), *(ctypes.c_void_p(each.ctypes.data) for each in (work, y))]
        pointers = [ctypes.c_void_p(each.ctypes.data) for each in arrays]
        call = partial(library.run, ctypes.c_void_p(x.ctypes.data), *sizes, *pointers, *tail)

        def ask(given: Any, held: Any = (arrays, work)) -> Any:  # C holds pointers only
            x[...] = given
            call()
            return y[None].copy()

        return Candidate(call, by_batch(1, ask))

    return {"hand 8": made}
