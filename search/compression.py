"""What each compression technique bought: the same candidate with it and without it, compared in pairs.

A pair differs in one technique and shares all else, so that what is left is the technique's own. Figures of two
sittings are never compared: both are those of the end, or both those of the search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from statistics import median

from objectives.artifact import Artifact
from objectives.objective import OBJECTIVES
from objectives.outcome import Measurement, Outcome, Quality
from objectives.task import share_stderr
from spaces.genotype import Deployment, Genotype, Training

Name = int | str
SAME_SIZE = 0.01  # files that differ by less are called equally large
SURE = 0.05  # how likely so many changes of one sign may be by chance


@dataclass(frozen=True)
class Technique:
    """One technique: the setting that a candidate uses it with, "" if it does not, and the candidate without it."""

    name: str
    setting: Callable[[Genotype], str]
    without: Callable[[Genotype], Genotype]


@dataclass(frozen=True)
class Pair:
    """Two candidates. A ratio is the figure without over the figure with: above 1 the technique made it less.

    Latency is per sequence, `latency_ci` of its ratio as wide as both intervals allow. `error_change` is with less
    without, of test data where `tested`; `error_noise` one standard error of such a difference.
    """

    technique: str
    setting: str
    used: Name
    unused: Name
    model: str  # names the trained model with the technique
    latency_ratio: float
    latency_ci: tuple[float, float]
    bytes_ratio: float
    compressed_ratio: float  # of the files packed, as they travel
    error_change: float
    error_noise: float
    final: bool  # measured in one sitting at the end
    tested: bool


@dataclass(frozen=True)
class Entry:
    """A technique in one setting, by the medians of its pairs.

    `latency_range` goes from the least to the greatest of their ratios, or is the interval of a lone one.
    """

    technique: str
    setting: str
    pairs: int
    latency_ratio: float
    latency_range: tuple[float, float]
    bytes_ratio: float
    compressed_ratio: float
    error_change: float
    verdict: str


def _served(**off: object) -> Callable[[Genotype], Genotype]:
    return lambda one: replace(one, deployment=replace(one.deployment, **off))  # type: ignore[arg-type]


def _trained(*fields: str) -> Callable[[Genotype], Genotype]:
    off = {field: getattr(Training(), field) for field in fields}
    return lambda one: replace(one, training=replace(one.training, **off))


def _share(field: str) -> Callable[[Genotype], str]:
    return lambda one: f"{value:.0%}" if (value := getattr(one.training, field)) else ""


def _number(field: str) -> Callable[[Genotype], str]:
    return lambda one: f"{value:g}" if (value := getattr(one.training, field)) else ""


def _sparse(one: Genotype) -> str:
    rows = f" in rows of {one.training.block}" if one.training.block > 1 else ""
    return f"{one.training.sparsity:.0%}{rows}" if one.training.sparsity else ""


def _plain_loop(served: Deployment) -> bool:
    return served.lowering == "loop" and served.steps == 1


TRAINING = (
    Technique("distillation", _number("distillation"), _trained("distillation", "hints")),
    Technique("hints", _number("hints"), _trained("hints")),
    Technique("sparsity", _sparse, _trained("sparsity", "block")),
    Technique("block", lambda one: str(one.training.block) * (one.training.block > 1), _trained("block")),
    Technique("pruned units", _share("pruned_units"), _trained("pruned_units")),
    Technique("qat", lambda one: one.training.qat, _trained("qat")),
)
"""What a model is trained with: the candidate without it is another trained model."""

DEPLOYMENT = (
    Technique("bits", lambda one: one.deployment.bits * (one.deployment.bits != "32"), _served(bits="32")),
    Technique("loop", lambda one: "over keras" * _plain_loop(one.deployment), _served(lowering="keras")),
    Technique("steps", lambda one: str(one.deployment.steps) * (one.deployment.steps > 1), _served(steps=1)),
    Technique("scan", lambda one: "over loop" * (one.deployment.lowering == "scan"), _served(lowering="loop", steps=1)),
    Technique("stacked", lambda one: "over loop" * (one.deployment.lowering == "stacked"), _served(lowering="loop")),
    Technique("batch", lambda one: str(one.deployment.batch) * (one.deployment.batch > 1), _served(batch=1)),
)
"""How a trained model is served: the candidate without it has the same weights."""

TECHNIQUES = (*TRAINING, *DEPLOYMENT)


def pairs(
    searched: Mapping[Name, Outcome],
    finals: Mapping[Name, Outcome],
    *,
    rows: int = 0,
    techniques: Iterable[Technique] = TECHNIQUES,
    of: Iterable[Name] | None = None,
) -> Iterator[Pair]:
    """Every pair among the candidates, each once; `of` limits those that use the technique.

    `searched` has their figures of the search, `finals` those of the end, of some. `rows` are the sequences of the
    validation part (0: unknown), which say how sure a validation figure is.
    """
    known: dict[Genotype, Name] = {}
    for name, outcome in sorted(searched.items(), key=lambda item: item[0] not in finals):
        if (outcome.quality or outcome.weighed) and outcome.measurement and outcome.artifact:
            known.setdefault(outcome.genotype, name)
    asked = None if of is None else {searched[name].genotype for name in of}
    techniques = tuple(techniques)
    for genotype, used in known.items():
        if asked is not None and genotype not in asked:
            continue
        for technique in techniques:
            setting = technique.setting(genotype)
            plain = technique.without(genotype)
            if setting and (unused := known.get(plain)) is not None:
                if not _comparable(searched[used], searched[unused]):
                    continue
                final = used in finals and unused in finals
                figures = finals if final else searched
                yield _pair(technique.name, setting, (used, figures[used]), (unused, figures[unused]), rows, final)


def _comparable(one: Outcome, other: Outcome) -> bool:
    """Whether both were deployed, or have the same weights in the same bits, and so the same error, file or none."""
    mine, its = one.genotype, other.genotype
    same = mine.group == its.group and mine.deployment.bits == its.deployment.bits
    return same or bool(one.quality and other.quality)


def ledger(found: Iterable[Pair]) -> list[Entry]:
    """One entry for each technique and setting that has a pair, in the order of `TECHNIQUES`."""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for pair in found:
        groups.setdefault((pair.technique, pair.setting), []).append(pair)
    order = [technique.name for technique in TECHNIQUES]
    return [_entry(groups[key]) for key in sorted(groups, key=lambda key: (order.index(key[0]), len(key[1]), key[1]))]


def _pair(
    technique: str, setting: str, used: tuple[Name, Outcome], unused: tuple[Name, Outcome], rows: int, final: bool
) -> Pair:
    (with_it, one), (without, other) = used, unused
    measured, artifact = _figures(one)
    plain_measured, plain_artifact = _figures(other)
    known = one.quality or other.quality or Quality("", math.nan, one.error or 0.0)  # of the same weights, if of one
    quality, plain_quality = one.quality or known, other.quality or known
    (low, high), (plain_low, plain_high) = measured.ci_ms, plain_measured.ci_ms
    more = measured.batch / plain_measured.batch
    tested = final and quality.test is not None and plain_quality.test is not None
    (error, stderr), (plain_error, plain_stderr) = (_error(of, tested, rows) for of in (quality, plain_quality))
    return Pair(
        technique,
        setting,
        with_it,
        without,
        one.genotype.group,
        latency_ratio=plain_measured.median_ms / measured.median_ms * more,
        latency_ci=(plain_low / high * more, plain_high / low * more),
        bytes_ratio=plain_artifact.size_bytes / artifact.size_bytes,
        compressed_ratio=_packed_ratio(artifact, plain_artifact),
        error_change=error - plain_error,
        error_noise=math.hypot(stderr, plain_stderr),
        final=final,
        tested=tested,
    )


def _figures(outcome: Outcome) -> tuple[Measurement, Artifact]:
    assert outcome.measurement, "only what was measured is paired"
    assert outcome.artifact, "only what was lowered is paired"
    return outcome.measurement, outcome.artifact


def _packed_ratio(artifact: Artifact, plain: Artifact) -> float:
    """Of the files packed; of those as they are, where there is but one file, or an older brisk made one."""
    if artifact.compressed_bytes and plain.compressed_bytes:
        return plain.compressed_bytes / artifact.compressed_bytes
    return plain.size_bytes / artifact.size_bytes


def _error(quality: Quality, tested: bool, rows: int) -> tuple[float, float]:
    """(the error, its standard error): of the test part as it was found, of the validation part by its size.

    Of a share of n labels that is `share_stderr`, of a root mean square of n normal errors s / sqrt(2 n).
    """
    share = quality.metric == "accuracy"
    if tested:
        assert quality.test is not None, "it is tested"
        return 1 - quality.test if share else quality.test, quality.test_stderr or 0.0
    if not rows:
        return quality.error, 0.0
    error = quality.error
    return error, share_stderr(error, rows) if share else error / math.sqrt(2 * rows)


def _entry(found: list[Pair]) -> Entry:
    ratios = [pair.latency_ratio for pair in found]
    return Entry(
        found[0].technique,
        found[0].setting,
        len(found),
        latency_ratio=median(ratios),
        latency_range=found[0].latency_ci if len(found) == 1 else (min(ratios), max(ratios)),
        bytes_ratio=median(pair.bytes_ratio for pair in found),
        compressed_ratio=median(pair.compressed_ratio for pair in found),
        error_change=median(pair.error_change for pair in found),
        verdict=verdict(found),
    )


def verdict(found: list[Pair]) -> str:
    """What the pairs of one technique come to, in words: "1.8× faster, smaller", "smaller only", "no gain: slower"."""
    words = [*_time(found), *_size(found), *_quality(found)]
    gains = [word for word, good in words if good]
    losses = [word for word, good in words if not good]
    if not gains:
        return ": ".join(["no gain", *([" and ".join(losses)] if losses else [])])
    if losses:
        return f"{', '.join(gains)}, but {' and '.join(losses)}"
    return f"{gains[0]} only" if len(gains) == 1 and gains[0].startswith("smaller") else ", ".join(gains)


def _time(found: list[Pair]) -> list[tuple[str, bool]]:
    """By majority: a pair counts where its whole interval lies on one side of 1, and its ratio beyond the noise."""
    noise, count = 1 + OBJECTIVES["latency"].noise, len(found)
    faster = sum(pair.latency_ratio > noise and pair.latency_ci[0] > 1 for pair in found)
    slower = sum(pair.latency_ratio < 1 / noise and pair.latency_ci[1] < 1 for pair in found)
    middle = median(pair.latency_ratio for pair in found)
    if 2 * faster > count:
        return [(f"{_times(middle)} faster", True)]
    if 2 * slower > count:
        return [(f"{_times(1 / middle)} slower", False)]
    some = [(f"faster in {faster} of {count}", True)] if faster else []
    return some + ([(f"slower in {slower} of {count}", False)] if slower else [])


def _size(found: list[Pair]) -> list[tuple[str, bool]]:
    """Of the file; of the file packed where zeros among its weights show there alone."""
    plain = median(pair.bytes_ratio for pair in found)
    if abs(plain - 1) >= SAME_SIZE:
        return [("smaller", True)] if plain > 1 else [("larger", False)]
    packed = median(pair.compressed_ratio for pair in found)
    return [(f"smaller when packed ({_times(packed)})", True)] if packed >= 1 + SAME_SIZE else []


def _quality(found: list[Pair]) -> list[tuple[str, bool]]:
    """Beyond one standard error, or of one sign for so many models that chance will not do (a sign test, two-sided)."""
    change = median(pair.error_change for pair in found)
    if change and (abs(change) > median(pair.error_noise for pair in found) or _one_sided(found)):
        return [("more accurate", True)] if change < 0 else [("less accurate", False)]
    return []


def _one_sided(found: list[Pair]) -> bool:
    changes: dict[str, list[float]] = {}  # by trained model, whose forms are no draws of their own
    for pair in found:
        changes.setdefault(pair.model, []).append(pair.error_change)
    up = sum(median(each) > 0 for each in changes.values())
    down = sum(median(each) < 0 for each in changes.values())
    count, fewer = up + down, min(up, down)
    tail = sum(math.comb(count, k) for k in range(fewer + 1))  # of a thousand models too large for a float
    return Fraction(2 * tail, 2**count) <= SURE


def _times(ratio: float) -> str:
    digits = 2 if ratio < 1.2 else 1 if ratio < 10 else 0
    return f"{ratio:.{digits}f}×"
