"""What is known of one candidate: its quality, its measurement, or where it stopped and why."""

from __future__ import annotations

from dataclasses import dataclass, field

from objectives.artifact import Artifact
from spaces.genotype import Genotype


@dataclass(frozen=True)
class Conditions:
    """How latency is measured. `scenario` is "burst" (back to back) or "paced:<ms>ms" (one call every so many ms)."""

    scenario: str = "burst"
    threads: int = 1
    half_width: float = 0.02  # the 95 % interval's relative half-width to stop at
    min_processes: int = 3
    max_processes: int = 8
    timeout_s: float = 20.0  # of one sitting, after which the figure is given as not converged
    batch: int = 1  # sequences a call, where a model leaves its batch free; a .tflite file's own batch wins


@dataclass(frozen=True)
class Measurement:
    """Latency of one artifact on one device: per call, in milliseconds, of `batch` sequences.

    `median_ms` is the median over blocks of (candidate / reference) times the reference's median over the sitting, so
    that a drift of the machine cancels; in a study, times what the reference took when its home first measured it.
    `ci_ms` is its 95 % interval over processes and blocks, `raw_ms` the plain median. `trusted` is False, with
    `why`, where the figure should not be relied on.
    """

    device: str
    scenario: str
    threads: int
    batch: int
    median_ms: float
    ci_ms: tuple[float, float]
    raw_ms: float
    converged: bool
    trusted: bool
    why: str  # "" where trusted and converged
    processes: int
    blocks: int
    first_ms: float  # the first call, median over processes
    load_ms: float  # open and allocate, median over processes
    peak_memory_bytes: int  # anonymous memory after load and first call, less before
    fingerprint: str  # machine, runtime and conditions, digested
    reference_ms: float = 0.0  # the frozen reference model's median in the same sitting


@dataclass(frozen=True)
class MeasureFailure:
    """One model of a sitting could not be measured, for instance "died by SIGSEGV in open"; the others were."""

    reason: str


@dataclass(frozen=True)
class Quality:
    """The task's metric of the artifact; `error` is what the search minimises. Test figures are None until the end."""

    metric: str  # "accuracy", "rmse", ...
    validation: float
    error: float
    test: float | None = None
    test_stderr: float | None = None
    output_error: float | None = None  # relative RMS difference of its outputs from the float Keras model's
    stderr: float | None = None  # of the validation figure, for the size of that part


FORETOLD = "foretold"
"""The stage of an outcome that was not tried, for the latency model was sure of it: no figure of it is measured."""

UNDEPLOYED = "deploy"
"""The stage of one that was trained to the end and stopped there, for others beat it whatever its file would answer.
What it has of an artifact is what any weights would give.
"""


@dataclass(frozen=True)
class Outcome:
    """All that is known of one genotype.

    `state`: "complete", "infeasible" (over a bound: `reason` says which), "stopped" or "failed" (at `stage`, for
    `reason`). `seconds` is the wall time of each stage worked for it, shared stages counted once, with the first.
    """

    genotype: Genotype
    state: str
    quality: Quality | None = None
    measurement: Measurement | None = None
    untrained_ms: float | None = None  # of the look before training; of what was foretold, what it was foretold to take
    artifact: Artifact | None = None
    stage: str = ""
    reason: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    learned: tuple[float, ...] = ()  # the validation error at each rung of its training
    trained_error: float | None = None  # of the model that was trained to the end, where it is UNDEPLOYED

    @property
    def error(self) -> float | None:
        """The validation error of its file, or else the last that its training came to; None before that."""
        if self.quality:
            return self.quality.error
        return self.trained_error if self.trained_error is not None else self.learned[-1] if self.learned else None

    @property
    def weighed(self) -> bool:
        """Whether it keeps within the bounds and all its costs are known, deployed or not."""
        return self.state == "complete" or (self.state == "stopped" and self.stage == UNDEPLOYED)
