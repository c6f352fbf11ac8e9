"""What a study's time goes to, by the news of its workers: each counts from when it came, not from when it was read.

Quiet alone begins and ends with what the driver does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from search.budget import SITTINGS

IDLE = ""
"""The stage of who has nothing to do, or waits for the device."""


class Clock:
    """The sums of `History`, gone on with from those that were kept."""

    def __init__(self, kept: Mapping[str, Any], workers: int) -> None:
        self.sums = dict(kept)
        self.quiet: int | None = None  # the worker that the others stand still for
        self._stages = [IDLE] * workers
        self._put_down = time.monotonic()

    def turn(self, worker: int, stage: str, at: float) -> None:
        """A worker is at another stage from then on (`time.monotonic`)."""
        self.tick(at)
        self._stages[worker] = stage

    def tick(self, at: float) -> None:
        """Put down what the time till then was: measuring if any worker did, else training if any did."""
        passed = max(at - self._put_down, 0.0)
        self._put_down += passed
        moving = [stage for worker, stage in enumerate(self._stages) if self.quiet in (None, worker)]
        at_work = [stage for stage in moving if stage != IDLE]
        self.sums["wall_s"] += passed
        self.sums["workers_s"] += passed * len(self._stages)
        self.sums["idle_s"] += passed * (len(self._stages) - len(at_work))
        if any(stage in SITTINGS for stage in at_work):
            self.sums["measuring_s"] += passed
        elif "train" in at_work:
            self.sums["training_s"] += passed
