"""A device that runs nothing: latency follows from a file's bytes, with known noise. For dry runs and tests."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from objectives.latency import timing
from objectives.latency.devices.device import Device, Tell
from objectives.latency.timing import Visit
from objectives.outcome import Conditions, MeasureFailure, Measurement
from spaces.record import digest, to_json

CALL_NS = 3_000.0  # what an empty model costs
BYTE_NS = 2.0  # what each byte of a file costs
REFERENCE_NS = 60_000.0
ROUNDS = 30


class Fake(Device):
    """Latency is 3 us and 2 ns a byte, 1 % apart by content; blocks have a relative spread of `noise`.

    Equal arguments give equal figures, on any machine; the statistics are those of a real sitting.
    """

    name = "fake"

    def __init__(self, noise: float = 0.005, seed: int = 0) -> None:
        self.noise, self.seed = noise, seed

    def measure(
        self,
        models: Sequence[Path],
        conditions: Conditions,
        *,
        cores: Sequence[int] | None = None,
        emit: Tell | None = None,
    ) -> list[Measurement | MeasureFailure]:
        """Pretend to time all models in one sitting; a file that is absent is a failure."""
        timing.period_s(conditions.scenario)
        contents = [_content(path) for path in models]

        def look(indices: list[int]) -> dict[int, Visit | str]:
            return {index: self._visit(contents[index], models[index], next(processes)) for index in indices}

        processes = itertools.count()
        sitting = timing.gather(look, len(models), conditions, clock=lambda: 0.0)
        return [
            MeasureFailure(visits)
            if isinstance(visits, str)
            else timing.conclude(
                visits,
                sitting.reference_ns,
                conditions,
                device=self.name,
                batch=conditions.batch,
                peak_memory_bytes=65_536 + len(content or b""),
                fingerprint=self.fingerprint(conditions),
            )
            for visits, content in zip(sitting.models, contents, strict=True)
        ]

    def fingerprint(self, conditions: Conditions) -> str:
        """Noise, seed and conditions, digested."""
        return digest([self.noise, self.seed], to_json(conditions))

    def _visit(self, content: bytes | None, path: Path, process: int) -> Visit | str:
        if content is None:
            return f"there is no file {path}"
        name = hashlib.sha256(content).digest()
        random = np.random.default_rng([self.seed, process, *name[:8]])
        call_ns = (CALL_NS + BYTE_NS * len(content)) * (1 + 0.01 * name[0] / 255)
        noisy = np.exp(self.noise * random.standard_normal((2, ROUNDS)))
        reference_ns = np.full(ROUNDS, REFERENCE_NS) * noisy[0]
        return Visit(call_ns * noisy[1], reference_ns, first_ns=1.5 * call_ns, load_ns=50_000 + 0.2 * len(content))


def _content(path: Path) -> bytes | None:
    if path.is_dir():
        return b"".join(each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file())
    return path.read_bytes() if path.exists() else None
