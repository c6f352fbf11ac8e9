"""The ensemble that teaches: the best models of a study's first half, settled once and for all."""

from __future__ import annotations

from collections.abc import Iterable

from objectives.outcome import Outcome
from spaces.genotype import Genotype


def best(outcomes: Iterable[Outcome], count: int) -> tuple[Genotype, ...]:
    """Genotypes of the `count` trained models of least validation error, each by its best form; () if there are fewer.

    Only those that learnt from labels alone: what an ensemble says must not depend on another teacher. Ties go by the
    digest of the group, so that the order of the outcomes does not matter.
    """
    kept: dict[str, tuple[float, str, Genotype]] = {}
    for outcome in outcomes:
        genotype = outcome.genotype
        trained = outcome.quality or outcome.weighed
        if trained and outcome.error is not None and not genotype.training.distillation:
            ranked = (outcome.error, genotype.key, genotype)
            kept[genotype.group] = min(kept.get(genotype.group, ranked), ranked, key=lambda one: one[:2])
    ordered = sorted(kept.items(), key=lambda item: (item[1][0], item[0]))
    return tuple(genotype for _, (_, _, genotype) in ordered[:count]) if len(ordered) >= count else ()
