"""The arithmetic of trustworthy latency: what runs in which order, when enough is known, and what may be said.

Pure: arrays in, figures out, the clock injected. A sitting is several processes; a process is several rounds; in a
round every model, the frozen reference among them, has one block of calls, in random order. The figure is the median
over blocks of (model / reference of the same round), so that a drift of the machine cancels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.outcome import Conditions, Measurement
from spaces.errors import SpecError

Array = NDArray[np.float64]

QUIET = 1.05  # wall time / CPU time of a long call that was not cut
ONE_PROCESS = 0.03  # relative half-width that one process alone may claim: processes differ more than blocks do
DRIFT = 0.05  # paired and plain medians that differ by more were taken on a machine that changed meanwhile
LOOSE = 0.10  # relative half-width beyond which a figure should not be relied on
SHORT_S = 4.0  # the most that a short sitting's blocks may take
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5 % of t with 1..9 degrees of freedom
REFERENCE = 0  # the reference's place among the models of a process


def tie_tolerance(median_ms: float) -> float:
    """The relative difference below which two models count as equally fast: 3 %, under 30 us 6 %."""
    return 0.03 if median_ms >= 0.030 else 0.06


@dataclass(frozen=True)
class Plan:
    """How one process spends its time. `period_s` is None for burst."""

    rounds: int
    block_s: float
    block_calls: int
    discarded: int  # calls at the start of a block that bring the model's own caches and registers back
    warmup_s: float
    warmup_calls: int
    budget_s: float
    period_s: float | None


@dataclass(frozen=True)
class Visit:
    """What one process saw of one model: the median of each round's block, with the reference's beside it.

    `quiet` is False where a long model's calls were cut by other work, so that CPU time stands for wall time.
    """

    blocks_ns: Array  # [rounds]
    reference_ns: Array  # [rounds]
    first_ns: float = 0.0
    load_ns: float = 0.0
    quiet: bool = True


@dataclass(frozen=True)
class Estimate:
    """A median ratio with its 95 % interval."""

    ratio: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """The wider side of the interval, relative to the ratio."""
        return max(self.high - self.ratio, self.ratio - self.low) / self.ratio


@dataclass(frozen=True)
class Sitting:
    """What a sitting saw: the visits of each model, or why there are none, and the reference's blocks."""

    models: list[list[Visit] | str]
    reference_ns: float


def period_s(scenario: str) -> float | None:
    """Seconds from call to call of "paced:10ms"; None for "burst". Raises SpecError on anything else."""
    if scenario == "burst":
        return None
    paced = re.fullmatch(r"paced:(\d+(?:\.\d+)?)ms", scenario)
    if not paced or not 0 < float(paced[1]) <= 10_000:
        raise SpecError(f"latency scenario {scenario!r} is not known; write 'burst', or 'paced:10ms'")
    return float(paced[1]) / 1000


def plan(conditions: Conditions) -> Plan:
    """How each process of a sitting spends its time; a sitting of one process is a short one, mostly under a second."""
    short = conditions.max_processes == 1
    period = period_s(conditions.scenario)
    paced = period is not None
    return Plan(
        rounds=(4 if short else 6) if paced else (20 if short else 10),  # one process shows its spread by rounds alone
        block_s=0.0 if paced else (0.0006 if short else 0.004),
        block_calls=6 if paced else 5,
        discarded=2,
        warmup_s=0.05 if short else 0.3,
        warmup_calls=10 if short else 20,
        budget_s=min(conditions.timeout_s / (conditions.min_processes + 1), SHORT_S if short else math.inf),
        period_s=period,
    )


def schedule(call_s: Sequence[float], plan: Plan, seed: int) -> list[tuple[int, int]]:
    """(model, calls) block by block, every model once a round in random order, for models of `call_s` seconds a call.

    Where that would cost more than the plan's budget, blocks get shorter, then rounds fewer, never under three of each.
    """
    cost_s = [max(s, plan.period_s or 0.0) for s in call_s]
    calls = [max(plan.block_calls, math.ceil(plan.block_s / s)) for s in cost_s]
    free_s = plan.budget_s / plan.rounds - plan.discarded * sum(call_s)
    excess = sum(n * s for n, s in zip(calls, cost_s, strict=True)) / max(free_s, 1e-9)
    if excess > 1:
        calls = [max(3, int(n / excess)) for n in calls]
    round_s = sum(n * s for n, s in zip(calls, cost_s, strict=True)) + plan.discarded * sum(call_s)
    rounds = min(plan.rounds, max(3, int(plan.budget_s / round_s)))
    random = np.random.default_rng(seed)
    return [(int(model), calls[model]) for _ in range(rounds) for model in random.permutation(len(calls))]


def block_median(wall_ns: Array, cpu_ns: Array | None) -> tuple[float, float]:
    """The median of a block's calls [calls] that were not cut (NaN where all were), and the median of their CPU time.

    Where CPU time was not taken, because calls are short, no call counts as cut: the median sees to them.
    """
    if cpu_ns is None:
        return float(np.median(wall_ns)), math.nan
    whole = wall_ns[wall_ns < QUIET * np.maximum(cpu_ns, 1.0)]
    return (float(np.median(whole)) if whole.size else math.nan), float(np.median(cpu_ns))


def visit(
    blocks: Sequence[tuple[float, float]], reference_ns: Array, first_ns: float = 0.0, load_ns: float = 0.0
) -> Visit:
    """One process's Visit from the `block_median` of each round."""
    walls, cpus = np.array(blocks, dtype=float).T
    seen = np.isfinite(walls)
    if seen.sum() * 2 >= len(walls):
        return Visit(walls[seen], reference_ns[seen], first_ns, load_ns)
    return Visit(cpus, reference_ns, first_ns, load_ns, quiet=False)


def estimate(processes: Sequence[Array], seed: int = 0, draws: int = 1000) -> Estimate:
    """The median of ratios [blocks] of several processes, with its 95 % interval.

    Hierarchical bootstrap: processes are drawn, then blocks within each. With few processes that is too narrow, so a t
    interval over the processes' medians is a floor of the width: plain under five of them, else of the 20 % trimmed
    mean (Tukey and McLaughlin 1963), so that one spoilt process does not spoil the figure.
    """
    lengths = np.array([len(ratios) for ratios in processes])
    table = np.zeros((len(processes), lengths.max()))
    for row, ratios in zip(table, processes, strict=True):
        row[: len(ratios)] = ratios
    random = np.random.default_rng(seed)
    drawn = random.integers(len(processes), size=(draws, len(processes), 1))
    block = (random.random((draws, *table.shape)) * lengths[drawn]).astype(int)
    medians = np.median(table[drawn, block].reshape(draws, -1), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    ratio = float(np.median(np.concatenate(list(processes))))
    floor = math.exp(_between(np.log([np.median(ratios) for ratios in processes])))
    return Estimate(ratio, min(float(low), ratio / floor), max(float(high), ratio * floor))


def _between(log_medians: Array) -> float:
    """Half the width of the t interval over the logarithms of the processes' medians."""
    n = len(log_medians)
    if n == 1:
        return ONE_PROCESS
    cut = n // 5
    ordered = np.sort(log_medians)
    ordered[:cut], ordered[n - cut :] = ordered[cut], ordered[n - cut - 1]
    freedom = n - 2 * cut - 1
    t = STUDENT[freedom - 1] if freedom <= len(STUDENT) else 1.96 + 2.6 / freedom
    return float(t * np.std(ordered, ddof=1) / ((1 - 2 * cut / n) * math.sqrt(n)))


def ratios(visits: Sequence[Visit]) -> list[Array]:
    """Model over reference, by process and round."""
    return [each.blocks_ns / each.reference_ns for each in visits]


def settled(visits: Sequence[Visit], conditions: Conditions) -> bool:
    """Whether enough processes agree closely enough on a model."""
    enough = len(visits) >= conditions.min_processes
    return enough and estimate(ratios(visits)).half_width <= conditions.half_width


def gather(
    look: Callable[[list[int]], dict[int, Visit | str]],
    count: int,
    conditions: Conditions,
    clock: Callable[[], float],
    tell: Callable[[str], None] = lambda detail: None,
) -> Sitting:
    """Start process after process with the models that are not settled, until all are or a cap is reached.

    `look(models)` runs one process and gives each model's Visit, or the reason of its failure; a process that one model
    killed gives that reason alone, and is not counted. `clock` gives seconds.
    """
    started = clock()
    models: list[list[Visit] | str] = [[] for _ in range(count)]
    reference: list[Array] = []
    left, done = list(range(count)), 0
    while left and done < conditions.max_processes:
        if done and clock() - started > conditions.timeout_s:
            break
        seen = look(left)
        for index, found in seen.items():
            kept = models[index]
            if isinstance(found, str):
                models[index] = found
            elif isinstance(kept, list):
                kept.append(found)
        visited = [found for found in seen.values() if isinstance(found, Visit)]
        if visited:
            done += 1
            reference.append(visited[0].reference_ns)
        left = [i for i in left if isinstance(kept := models[i], list) and not settled(kept, conditions)]
        tell(f"process {done} of at most {conditions.max_processes}, {len(left)} of {count} models not settled")
    middle = float(np.median(np.concatenate(reference))) if reference else math.nan
    return Sitting(models, middle)


def conclude(visits: Sequence[Visit], reference_ns: float, conditions: Conditions, **known: Any) -> Measurement:
    """The Measurement of one model from its visits; `known` are the fields that timing does not know."""
    found = estimate(ratios(visits))
    blocks = np.concatenate([each.blocks_ns for each in visits])
    raw_ns = float(np.median(blocks))
    converged = settled(visits, conditions)
    beside_ns = float(np.median(np.concatenate([each.reference_ns for each in visits])))  # while it was measured
    said = doubts(found, raw_ns / (found.ratio * beside_ns) - 1, all(each.quiet for each in visits))
    trusted = not said
    if not converged:
        wanted = f"±{conditions.half_width:.1%} from {conditions.min_processes} or more"
        said.append(f"±{found.half_width:.1%} from {len(visits)} process{'es' * (len(visits) > 1)}, wanted {wanted}")
    return Measurement(
        scenario=conditions.scenario,
        threads=conditions.threads,
        median_ms=found.ratio * reference_ns / 1e6,
        ci_ms=(found.low * reference_ns / 1e6, found.high * reference_ns / 1e6),
        raw_ms=raw_ns / 1e6,
        converged=converged,
        trusted=trusted,
        why="; ".join(said),
        processes=len(visits),
        blocks=len(blocks),
        first_ms=float(np.median([each.first_ns for each in visits])) / 1e6,
        load_ms=float(np.median([each.load_ns for each in visits])) / 1e6,
        reference_ms=reference_ns / 1e6,
        **known,
    )


def doubts(found: Estimate, drift: float, quiet: bool) -> list[str]:
    """Reasons not to rely on a figure; none for one to be trusted. `drift`: plain median over paired median, less 1."""
    said = []
    if not quiet:
        said.append("calls over 2 ms were cut by other work on the core: CPU time is given instead of wall time")
    if abs(drift) > DRIFT:
        said.append(f"the machine drifted: the plain median is {drift:+.0%} off the paired one")
    if found.half_width > LOOSE:
        said.append(f"the interval is as wide as ±{found.half_width:.0%}")
    return said
