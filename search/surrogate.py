"""Proposals by a model of what was found: the candidate that is expected to add most to the front.

Two Gaussian processes over the genes (Rasmussen and Williams 2006, algorithm 2.1), one of trained models' errors, in
the best of their forms, one of latencies and sizes of their forms, which hardly vary by luck; what narrower bits add to
an error is the median of what they added. Of a pool of random points and of neighbours of the front that one is
proposed whose forms, its error taken at the hopeful end of what is foretold, would dominate most of what the front does
not (expected improvement of hypervolume, by counting points of the box; after Emmerich 2006).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.objective import learned_cost
from objectives.outcome import FORETOLD, Outcome
from search.front import front
from search.health import columns
from spaces.genotype import Deployment, Genotype
from spaces.signature import Signature
from spaces.space import Space

FEWEST = 8  # trained models that it learns from
MOST = 200  # of models, the newest; of forms, the newest and those on the front
POOL = 240
NEIGHBOURS = 0.6  # the share of them that are like a member of the front,
KEPT = 0.75  # but for one gene in four
HOPE = 1.0  # standard deviations below the mean
POINTS = 1000  # of the box
SCALES = (0.5, 1.0, 2.0, 4.0)
NOISES = (1e-3, 1e-2, 1e-1)
TINY = 1e-12  # of which there is a logarithm

Floats = NDArray[np.float64]


def proposed(
    outcomes: Collection[Outcome],
    under_way: Collection[Genotype],
    space: Space,
    signature: Signature,
    objectives: Sequence[str],
    seed: int,
    teaching: Mapping[str, Any],
    *,
    alone: bool = False,
) -> Genotype | None:
    """The candidate that promises most, of a model that was not tried yet; None where too little is known.

    `under_way` are those that nothing is known of yet; they are taken to come to what is foretold of them, so that the
    next is not like them. A model is to be served in all its forms, or, with `alone`, in that of the proposal. The same
    history and seed give the same one.
    """
    told = [outcome for outcome in outcomes if outcome.error is not None and _costs(outcome, objectives)]
    done = [outcome for outcome in told if outcome.weighed]
    models = _best(told)
    if len(models) < FEWEST or not done:
        return None
    luck = random.Random(seed)
    known = tried(outcomes, under_way, alone=alone)
    best = [done[place] for place in front({i: _costs(each, objectives) for i, each in enumerate(done)})]
    likes = [space.parameters(each.genotype, signature, **teaching) for each in best if _within(each, space, signature)]
    pool: dict[Any, list[Genotype]] = {}
    for _ in range(POOL):
        like = luck.choice(likes) if likes and luck.random() < NEIGHBOURS else {}
        drawn = space.sample(_Drawn(like, luck), signature, **teaching)
        served = (drawn.deployment,) if alone else space.deployments(drawn.architecture, signature, drawn.training.qat)
        new = [form for form in served if not {(drawn.alike, form), (drawn.alike, None)} & known.keys()]
        if new:
            pool[likeness(drawn, alone=alone)] = [replace(drawn, deployment=form) for form in new]
    if not pool:
        return None
    candidates = [form for forms in pool.values() for form in forms]
    every = _foretold(models, best, done, told, [*candidates, *under_way], objectives)
    foretold, hoped = every[: len(candidates)], every[len(candidates) :]
    taken = np.array([*(_costs(each, objectives) for each in best), *hoped])
    gains = _gains(taken, foretold, done, objectives)
    owner = np.repeat(np.arange(len(pool)), [len(forms) for forms in pool.values()])
    counts = np.array([gains[owner == place].any(axis=0).sum() for place in range(len(pool))])
    chosen = int(counts.argmax())
    forms = np.flatnonzero(owner == chosen)
    return candidates[int(forms[gains[forms].sum(axis=1).argmax()])]


Likeness = tuple[str, Deployment | None]
"""Names a model, at about this rate, in one form or in all."""


def likeness(genotype: Genotype, *, alone: bool) -> Likeness:
    """What a candidate stands for: its model in all forms, or with `alone` in this one."""
    return genotype.alike, genotype.deployment if alone else None


def tried(outcomes: Iterable[Outcome], under_way: Iterable[Genotype], *, alone: bool) -> dict[Likeness, Genotype]:
    """What was tried, or is to be, the first of each `likeness`. What was foretold, was so in one form."""
    found: dict[Likeness, Genotype] = {}
    for one in outcomes:
        found.setdefault(likeness(one.genotype, alone=alone or one.stage == FORETOLD), one.genotype)
    for genotype in under_way:
        found.setdefault(likeness(genotype, alone=alone), genotype)
    return found


def _foretold(
    models: Mapping[Any, Outcome],
    best: Sequence[Outcome],
    done: Sequence[Outcome],
    told: Sequence[Outcome],
    candidates: Sequence[Genotype],
    objectives: Sequence[str],
) -> Floats:
    """The costs of candidates [candidates, objectives] as they are foretold, errors at their hopeful end.

    What a graph of those told has cost is known.
    """
    newest = list(models.values())[-MOST:]
    taught = [outcome.genotype for outcome in newest]
    blank = [replace(one, deployment=candidates[0].deployment) for one in (*taught, *candidates)]
    x = columns(blank, squares=False)
    learned = np.log(_floored([[one.error] for one in newest]))
    mean, deviation = _regressed(x[: len(taught)], learned, x[len(taught) :])
    done = [*best, *done[-MOST:]]
    costs = np.array([_costs(outcome, objectives) for outcome in done])
    x = columns([*(outcome.genotype for outcome in done), *candidates], squares=False)
    served = [place for place, name in enumerate(objectives) if name != "quality"]
    found = np.empty((len(candidates), len(objectives)))
    found[:, served] = np.exp(_regressed(x[: len(done)], np.log(_floored(costs[:, served])), x[len(done) :])[0])
    known = {(one.genotype.served, one.genotype.deployment): np.array(_costs(one, objectives)) for one in told}
    for row, candidate in zip(found, candidates, strict=True):
        # A graph that is foretold to be faster than it was would be taken for a gain again and again.
        row[served] = known.get((candidate.served, candidate.deployment), row)[served]
    if "quality" in objectives:
        added = _added(models, told)
        lost = np.array([added.get(candidate.deployment.bits, 0.0) for candidate in candidates])
        found[:, objectives.index("quality")] = np.exp(mean - HOPE * deviation)[:, 0] + lost
    return found


def _best(told: Iterable[Outcome]) -> dict[Any, Outcome]:
    """By model, that of its forms which has the smallest error; the models in the order of their last news."""
    found: dict[Any, Outcome] = {}
    for outcome in told:
        before = found.pop(outcome.genotype.group, outcome)
        found[outcome.genotype.group] = min(before, outcome, key=_error_of)
    return found


def _added(models: Mapping[Any, Outcome], told: Iterable[Outcome]) -> dict[str, float]:
    """By bits, how much more error forms in them have than the best of their models."""
    more: dict[str, list[float]] = defaultdict(list)
    for outcome in told:
        if outcome.quality:
            more[outcome.genotype.deployment.bits].append(
                _error_of(outcome) - _error_of(models[outcome.genotype.group])
            )
    return {bits: median(each) for bits, each in more.items()}


def _gains(taken: Floats, foretold: Floats, done: Sequence[Outcome], objectives: Sequence[str]) -> NDArray[np.bool_]:
    """Which points of the box between the best and the worst costs each candidate would be the first to dominate, those
    left out that `taken` does.
    """
    every = np.log(_floored([_costs(outcome, objectives) for outcome in done]))
    low, high = np.minimum(every.min(axis=0), np.log(_floored(foretold)).min(axis=0)), every.max(axis=0)
    points = np.random.default_rng(0).uniform(low, np.maximum(high, low + 1e-9), (POINTS, len(objectives)))
    free = ~(np.log(_floored(taken))[:, None, :] <= points).all(axis=2).any(axis=0)
    return np.asarray((np.log(_floored(foretold))[:, None, :] <= points[free]).all(axis=2), dtype=np.bool_)


def _regressed(x: Floats, y: Floats, asked: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation at `asked`, [asked, columns] both, of a Gaussian process through x and each column
    of y, its scale and noise by likelihood.
    """
    centre, spread = y.mean(axis=0), np.where(y.std(axis=0) > 0, y.std(axis=0), 1.0)
    z = (y - centre) / spread
    near, far = _distances(x, x), _distances(asked, x)
    fits = []
    for scale in SCALES:
        kernel = np.exp(-near / (2 * scale**2))
        for noise in NOISES:
            lower = np.linalg.cholesky(kernel + noise * np.eye(len(x)))
            inner = np.linalg.solve(lower, z)
            fits.append((-0.5 * (inner**2).sum(axis=0) - np.log(np.diag(lower)).sum(), scale, lower, inner))
    mean, deviation = np.empty((2, len(asked), y.shape[1]))
    for column in range(y.shape[1]):
        _, scale, lower, inner = max(fits, key=lambda fit: float(fit[0][column]))
        cross = np.linalg.solve(lower, np.exp(-far / (2 * scale**2)).T)
        mean[:, column] = cross.T @ inner[:, column]
        deviation[:, column] = np.sqrt(np.maximum(1.0 - (cross**2).sum(axis=0), 1e-9))
    return centre + spread * mean, spread * deviation


def _distances(a: Floats, b: Floats) -> Floats:
    found: Floats = np.maximum((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T, 0.0)
    return found


def _floored(values: Any) -> Floats:
    """With something in place of 0, no more than the least of the others: an error may be none, and memory unknown to
    the kernel.
    """
    given = np.asarray(values, dtype=np.float64)
    least = np.minimum(1e-3 * given.max(axis=0), np.where(given > 0, given, np.inf).min(axis=0))
    floored: Floats = np.maximum(given, np.maximum(least, TINY))
    return floored


def _error_of(outcome: Outcome) -> float:
    """Of one of which it is known."""
    assert outcome.error is not None
    return outcome.error


def _costs(outcome: Outcome, objectives: Sequence[str]) -> list[float]:
    """By objective, with what it had learned for an error; [] where something is not known."""
    costs = [learned_cost(outcome, name) for name in objectives]
    found = [cost for cost in costs if cost is not None]
    return found if len(found) == len(costs) else []


def _within(outcome: Outcome, space: Space, signature: Signature) -> bool:
    served = space.deployments(outcome.genotype.architecture, signature, outcome.genotype.training.qat)
    return outcome.genotype.deployment in served


@dataclass(frozen=True)
class _Drawn:
    """A trial that answers by chance, or as another did, now and then."""

    like: Mapping[str, Any]
    luck: random.Random

    def _same(self, name: str) -> bool:
        return name in self.like and self.luck.random() < KEPT

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        same = self._same(name) and self.like[name] in choices
        return self.like[name] if same else self.luck.choice(list(choices))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        if self._same(name):
            return int(self.like[name])
        return low + step * self.luck.randint(0, (high - low) // step)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        if self._same(name):
            return float(self.like[name])
        share = self.luck.random()
        return low * (high / low) ** share if log else low + (high - low) * share
