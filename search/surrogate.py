"""Proposals by a model of what was found: the candidate that is expected to add most to the front.

Gaussian processes over the genes (Rasmussen and Williams 2006, algorithm 2.1): of trained models' errors, in the best
of their forms, those stopped at a rung taken on from there as others went; of the seconds that they took; and of
latencies and sizes of their forms, which hardly vary by luck. What narrower bits add to an error is the median of what
they added. Of a pool of random points and of neighbours of the front that one is proposed which is expected to add most
to the hypervolume of (error, logarithms of the rest) for the time it takes (Emmerich 2006; by second, Snoek et al.
2012, arXiv 1206.2944), counted in points of the box. An error varies by luck too: a model that was tried may do better
at another rate, and takes little time, for it is known.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.objective import OBJECTIVES
from objectives.outcome import FORETOLD, Outcome
from search.front import extended
from search.health import columns
from spaces.genotype import Alike, Architecture, Deployment, Genotype, Training
from spaces.signature import Signature
from spaces.space import Space

FEWEST = 8  # trained models that it learns from
MOST = 200  # of models, the newest; of graphs, the newest and those on the front
POOL = 240
NEIGHBOURS = 0.6  # the share of them that are like a member of the front,
FEW = 3  # models of a cell that say how its trainings go on from a rung
KEPT = (0.5, 1.0)  # in so many of their genes
HOPE = 1.0  # standard deviations below the mean that what is under way is taken to come to
POINTS = 3000  # of the box
FITTED = 120  # rows that scale and noise are chosen by, for that takes one fit for each pair of them
LEAST = 0.2  # of the median time, that a model is taken to need: what the cache had, or a dead worker, tells of less
SCALES = (0.5, 1.0, 2.0, 4.0)
NOISES = (1e-3, 1e-2, 1e-1)
TINY = 1e-12  # of which there is a logarithm

Floats = NDArray[np.float64]
_Graph = tuple[Architecture, Deployment]
"""What is served, but for its weights."""

Likeness = tuple[Alike, Deployment | None]
"""Names a model, at about this rate, in one form or in all."""


@dataclass
class _Model:
    """What is known of a trained model."""

    genotype: Genotype
    error: float  # the least of its forms'
    first: bool  # whether nothing of its architecture was known before
    learned: tuple[float, ...]  # its errors at its rungs
    whole: bool = False  # whether it was trained to its end

    def asked(self, rung: int) -> float:
        """Its error at a rung, NaN where it is not known."""
        return self.learned[rung] if rung < len(self.learned) else math.nan


class Surrogate:
    """What was found so far, in the order in which it was told, and what it lets expect of others.

    An error above `trivial_error`, a constant predictor's, is no better than that; nothing is proposed that is
    `refused`, by its cell (or a hypermodel's values) and form. A model is to be served in all its forms, or, `alone`,
    in that of a proposal.
    """

    def __init__(
        self,
        space: Space,
        signature: Signature,
        objectives: Sequence[str],
        teaching: Mapping[str, Any],
        *,
        trivial_error: float = math.inf,
        refused: Callable[[Genotype], object] = lambda genotype: None,
        alone: bool = False,
    ) -> None:
        self._space, self._signature, self._teaching, self._alone = space, signature, teaching, alone
        self._objectives, self._trivial_error, self._refused = objectives, trivial_error, refused
        self.told = 0  # outcomes
        self._served = [place for place, name in enumerate(objectives) if name != "quality"]
        self._tried: dict[Likeness, Genotype] = {}
        self._models: dict[str, _Model] = {}  # by group, in the order of their last news
        self._took_s: dict[str, float] = defaultdict(float)  # by group
        self._graphs: dict[_Graph, list[float]] = {}  # what each costs, where it is known
        self._by_bits: dict[str, list[tuple[str, float]]] = defaultdict(list)  # the groups and errors of forms
        self._front: Mapping[Genotype, Sequence[float]] = {}
        self._worst = np.empty(0)  # of each objective
        self._architectures: set[Architecture] = set()
        self._likes: dict[Genotype, Mapping[str, Any]] = {}

    def learn(self, outcome: Outcome) -> None:
        """Take in another outcome."""
        self.told += 1
        genotype = outcome.genotype
        like = _likeness(genotype, alone=self._alone or outcome.stage == FORETOLD)  # foretold in one form
        self._tried.setdefault(like, genotype)
        self._took_s[genotype.group] += sum(outcome.seconds.values())
        if outcome.stage == FORETOLD or not (costs := self._served_costs(outcome)):
            return
        self._graphs.pop(_graph(genotype), None)  # the newest come last
        self._graphs[_graph(genotype)] = [*costs]
        if outcome.error is None or not math.isfinite(outcome.error):
            return
        first = genotype.served not in self._architectures
        self._architectures.add(genotype.served)
        whole = outcome.quality is not None or outcome.trained_error is not None
        model = self._models.pop(genotype.group, None) or _Model(genotype, outcome.error, first, outcome.learned)
        model.error, model.whole = min(model.error, outcome.error), model.whole or whole
        model.learned = max(model.learned, outcome.learned, key=len)
        self._models[genotype.group] = model
        if outcome.quality:
            self._by_bits[genotype.deployment.bits].append((genotype.group, outcome.error))
        if outcome.weighed:
            if "quality" in self._objectives:
                costs[self._objectives.index("quality")] = outcome.error
            self._worst = np.maximum(costs, self._worst) if self._front else np.array(costs)
            self._front = extended(self._front, genotype, costs)

    def tried(self, genotype: Genotype, under_way: Iterable[Genotype]) -> Genotype | None:
        """What was tried, or is under way, and would tell the same but for luck."""
        likes = [_likeness(genotype, alone=alone) for alone in (False, True)]
        waiting = {_likeness(one, alone=self._alone): one for one in under_way}
        return next((found[like] for found in (self._tried, waiting) for like in likes if like in found), None)

    def proposed(self, under_way: Collection[Genotype], seed: int) -> Genotype | None:
        """The candidate that promises most, of a model that was not tried yet; None where too little is known.

        `under_way` are those that nothing is known of yet; they are taken to come to what is hoped of them, so that the
        next is not like them. The same history and seed give the same one.
        """
        if len(self._models) < FEWEST or not self._front:
            return None
        pool = self._pool(under_way, random.Random(seed))
        if not pool:
            return None
        models, counts = [*pool, *under_way], [*map(len, pool.values()), *(1 for _ in under_way)]
        forms = [*(form for each in pool.values() for form in each), *under_way]
        owner, count = np.repeat(np.arange(len(models)), counts), len(forms) - len(under_way)
        error, deviation, took_s = self._foretold(models)
        costs = self._costs(forms)
        hoped = costs[count:].copy()
        if "quality" in self._objectives:
            place, added = self._objectives.index("quality"), self._added(forms)
            costs[:, place] = np.exp(error)[owner] + added
            hoped[:, place] = (np.exp(error - HOPE * deviation)[owner] + added)[count:]
        taken = np.array([*self._front.values(), *hoped])
        gains = self._gains(taken, costs[:count], owner[:count], deviation)
        begins = np.cumsum([0, *counts])
        promise = [each.max(axis=0).sum() for each in gains] / took_s[: len(pool)]  # one luck for all forms of a model
        chosen = int(promise.argmax())
        return forms[int(begins[chosen] + gains[chosen].sum(axis=1).argmax())]

    def _pool(self, under_way: Collection[Genotype], luck: random.Random) -> dict[Genotype, list[Genotype]]:
        """Some models that were not tried yet, with their forms that were not."""
        waiting = {_likeness(one, alone=self._alone) for one in under_way}
        awaited = set() if self._alone else {one.alike[:2] for one in under_way}  # at whatever rate
        likes = [like for genotype in self._front if (like := self._like(genotype))]
        found: dict[Likeness, list[Genotype]] = {}
        refused: dict[Any, object] = {}  # by what `refused` goes by
        for _ in range(POOL):
            like = luck.choice(likes) if likes and luck.random() < NEIGHBOURS else {}
            drawn = self._space.sample(_Drawn(like, luck, luck.uniform(*KEPT)), self._signature, **self._teaching)
            served = (drawn.deployment,) if self._alone else self._deployments(drawn)
            if (drawn.alike, None) in self._tried or drawn.alike[:2] in awaited:
                continue
            new = []
            for form in (replace(drawn, deployment=each) for each in served):
                built, this = drawn.architecture, (drawn.alike, form.deployment)
                kind = built.cell, built.values, form.deployment
                if kind not in refused:
                    refused[kind] = self._refused(form)
                if not (refused[kind] or this in self._tried or this in waiting):
                    new.append(form)
            if new:
                found[_likeness(drawn, alone=self._alone)] = new
        return {forms[0]: forms for forms in found.values()}

    def _like(self, genotype: Genotype) -> Mapping[str, Any]:
        """What a trial would have to answer for this member of the front; {} where it is not in the space, as a form of
        the user's model.
        """
        if (found := self._likes.get(genotype)) is None:
            within = genotype.deployment in self._deployments(genotype)
            found = self._space.parameters(genotype, self._signature, **self._teaching) if within else {}
            self._likes[genotype] = found
        return found

    def _deployments(self, genotype: Genotype) -> tuple[Deployment, ...]:
        return self._space.deployments(genotype.architecture, self._signature, genotype.training.qat)

    def _foretold(self, models: Sequence[Genotype]) -> tuple[Floats, Floats, Floats]:
        """The logarithms of the errors of models in the best of their forms, their standard deviation, luck included,
        and the seconds that they take, the first of an architecture more than others; [models] each.
        """
        newest = [*self._models.values()][-MOST:]
        learned, took = self._at_their_ends(newest)
        learned, took = np.minimum(learned, self._trivial_error), np.maximum(took, LEAST * np.median(took))
        first = [*(one.first for one in newest), *(one.served not in self._architectures for one in models)]
        blank = [replace(one, deployment=Deployment()) for one in (*(one.genotype for one in newest), *models)]
        x, count = columns(blank, squares=False), len(newest)
        error, deviation = _Process(x[:count], np.log(_floored(learned))).foretold(x[count:])
        x = np.column_stack([x, first])
        return error, deviation, np.exp(_Process(x[:count], np.log(_floored(took))).mean(x[count:]))

    def _at_their_ends(self, models: Sequence[_Model]) -> tuple[Floats, Floats]:
        """The errors of models, and the seconds that they took; of those that were stopped at a rung what both would
        have come to, by those that went on: to errors as others of the cell, where there are some.
        """
        errors = np.array([one.error for one in models])
        took = np.array([self._took_s[one.genotype.group] for one in models])
        whole = np.array([one.whole for one in models])
        rungs = np.array([-1 if one.whole else len(one.learned) - 1 for one in models])
        ended = [one for one in models if one.whole]
        for rung in {*rungs} - {-1}:
            passed = [one for one in ended if math.isfinite(one.asked(rung))]
            if not passed:
                continue
            stopped = rungs == rung
            took[stopped] *= max(np.median(took[whole]) / max(np.median(took[stopped]), TINY), 1.0)
            for place in map(int, np.flatnonzero(stopped)):
                cell = models[place].genotype.architecture.cell
                alike = [one for one in passed if one.genotype.architecture.cell == cell]
                went_on = [one.error / max(one.asked(rung), TINY) for one in (alike if len(alike) >= FEW else passed)]
                errors[place] *= min(median(went_on), 1.0)
        return errors, took

    def _served_costs(self, outcome: Outcome) -> list[float]:
        """By objective, 0 for an error; [] where another cost is not known, or no number."""
        costs = [0.0 if name == "quality" else OBJECTIVES[name].read(outcome) for name in self._objectives]
        found = [cost for cost in costs if cost is not None and math.isfinite(cost)]
        return found if len(found) == len(costs) else []

    def _costs(self, forms: Sequence[Genotype]) -> Floats:
        """The costs of forms [forms, objectives] but for their errors: what a graph has cost is known.

        One that is foretold to be faster than it was would be taken for a gain again and again.
        """
        asked = [_graph(form) for form in forms]
        unknown = [graph for graph in dict.fromkeys(asked) if graph not in self._graphs]
        foretold: dict[_Graph, Any] = {}
        if unknown:
            met = [*dict.fromkeys([*[*self._graphs][-MOST:], *map(_graph, self._front)])]
            x = columns([Genotype(served, Training(), form) for served, form in (*met, *unknown)], squares=False)
            costs, count = np.log(_floored([self._graphs[graph] for graph in met])), len(met)
            found = np.ones((len(unknown), len(self._objectives)))
            for place in self._served:
                found[:, place] = np.exp(_Process(x[:count], costs[:, place]).mean(x[count:]))
            foretold = dict(zip(unknown, found, strict=True))
        return np.array([self._graphs.get(graph, foretold.get(graph)) for graph in asked])

    def _added(self, forms: Sequence[Genotype]) -> Floats:
        """How much more error forms have than the best of their models, by what their bits have added so far."""
        more = {
            bits: median(error - self._models[group].error for group, error in each)
            for bits, each in self._by_bits.items()
        }
        return np.array([more.get(form.deployment.bits, 0.0) for form in forms])

    def _gains(self, taken: Floats, foretold: Floats, owner: NDArray[np.intp], deviation: Floats) -> list[Floats]:
        """For each model, how likely each of its forms is to be the first to dominate each point of the box between the
        best and the worst costs, those left out that `taken` does: [forms, points]. `owner` says whose forms the rows
        of `foretold` are, in order; `deviation` is that of the logarithm of a model's error.

        Points are spread evenly over errors, and over the logarithms of the other costs.
        """
        error = np.array([name == "quality" for name in self._objectives])
        worst = np.where(error, np.minimum(self._worst, self._trivial_error), self._worst)
        every = np.vstack([worst, taken, foretold])
        every = np.where(error, every, np.log(_floored(every)))
        low = np.where(error, 0.0, every[1:].min(axis=0))
        points = np.random.default_rng(0).uniform(low, np.maximum(every[0], low + TINY), (POINTS, len(error)))
        for cost in every[1 : 1 + len(taken)]:
            points = points[~(cost <= points).all(axis=1)]
        asked = np.log(np.maximum(points[:, error], TINY))
        gains: list[Floats] = []
        for forms, spread in zip(_split(every[1 + len(taken) :], owner), deviation, strict=False):
            within = (forms[:, None, self._served] <= points[:, self._served]).all(axis=2)
            mean = np.log(np.maximum(forms[:, error], TINY))
            likely = _normal((asked[:, 0] - mean) / spread) if error.any() else 1.0
            gains.append(np.asarray(within * likely, dtype=np.float64))
        return gains


def _split(rows: Floats, owner: NDArray[np.intp]) -> list[Floats]:
    """The rows of each owner; they come in their order."""
    return np.split(rows, np.flatnonzero(np.diff(owner)) + 1)


def _likeness(genotype: Genotype, *, alone: bool) -> Likeness:
    """What a candidate stands for: its model in all forms, or with `alone` in this one."""
    return genotype.alike, genotype.deployment if alone else None


def _graph(genotype: Genotype) -> _Graph:
    return genotype.served, genotype.deployment


def _normal(x: Floats) -> Floats:
    """The standard normal distribution function, to 2e-4 (Page 1977, "Approximations to the cumulative normal
    function").
    """
    found: Floats = 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return found


class _Process:
    """A Gaussian process through x [known, columns] and y [known], its scale and noise by the likelihood of the last of
    them.
    """

    def __init__(self, x: Floats, y: Floats) -> None:
        self._x, self._centre, self._spread = x, y.mean(), y.std() or 1.0
        z, near = (y - self._centre) / self._spread, _distances(x, x)
        self._scale, self._noise = max(
            product(SCALES, NOISES), key=lambda fit: _likelihood(near[-FITTED:, -FITTED:], z[-FITTED:], *fit)
        )
        self._lower = np.linalg.cholesky(np.exp(-near / (2 * self._scale**2)) + self._noise * np.eye(len(x)))
        self._weights = np.linalg.solve(self._lower.T, np.linalg.solve(self._lower, z))

    def mean(self, asked: Floats) -> Floats:
        """What it foretells there."""
        found: Floats = self._centre + self._spread * (self._cross(asked) @ self._weights)
        return found

    def foretold(self, asked: Floats) -> tuple[Floats, Floats]:
        """The mean, and the standard deviation of another draw there."""
        cross = self._cross(asked)
        known = (np.linalg.solve(self._lower, cross.T) ** 2).sum(axis=0)
        deviation = self._spread * np.sqrt(np.maximum(1.0 - known, 0.0) + self._noise)
        return self._centre + self._spread * (cross @ self._weights), deviation

    def _cross(self, asked: Floats) -> Floats:
        found: Floats = np.exp(-_distances(asked, self._x) / (2 * self._scale**2))
        return found


def _likelihood(near: Floats, z: Floats, scale: float, noise: float) -> float:
    """The logarithm of it, but for a constant."""
    lower = np.linalg.cholesky(np.exp(-near / (2 * scale**2)) + noise * np.eye(len(z)))
    return float(-0.5 * (np.linalg.solve(lower, z) ** 2).sum() - np.log(np.diag(lower)).sum())


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


@dataclass(frozen=True)
class _Drawn:
    """A trial that answers by chance, or as another did, now and then."""

    like: Mapping[str, Any]
    luck: random.Random
    kept: float

    def _same(self, name: str) -> bool:
        return name in self.like and self.luck.random() < self.kept

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        same = self._same(name) and self.like[name] in choices
        return self.like[name] if same else self.luck.choice(list(choices))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        if self._same(name):
            return int(self.like[name])
        if log:
            return int(min(round(low * (high / low) ** self.luck.random()), high))
        return low + step * self.luck.randint(0, (high - low) // step)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        if self._same(name):
            return float(self.like[name])
        share = self.luck.random()
        return low * (high / low) ** share if log else low + (high - low) * share
