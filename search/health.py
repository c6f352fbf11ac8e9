"""Whether a study goes well, and whether it is worth going on with: checks of what it has found, in words for a person.

Each check is {"check", "verdict": "good" | "bad" | "unknown", "text"}. A check that does not apply, such as that of the
baseline in a study without one, is left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.objective import OBJECTIVES, learned_cost, violations
from objectives.outcome import Outcome
from search.front import dominates
from search.growth import FEWEST, settled
from search.history import History, known_space
from spaces.genotype import Architecture, Genotype, Training
from spaces.space import MAX_LAYERS, MAX_UNITS, Space, looped

Check = dict[str, str]
Floats = NDArray[np.float64]

FOLLOWS = 0.5  # rank correlation from which on an objective is said to follow from the genotype
REFUSED = 0.5  # share of candidates refused for a bound
FAILED = 0.1  # share of candidates that failed
AT_AN_END = 0.75  # share of the front's models with a gene at one end of its range,
FEW = 3  # of so many at least
NEAR = 0.05  # of a range: what lies so near to its end lies at it
OUTSIDE = "no model is better in every objective than the corner that the hypervolume is measured from"

MANY = 2**31  # time steps, where they are not known

A_GENE = 5  # trained models for each gene that is searched: a rule of thumb


def health(history: History, found: Mapping[str, Any], corner: Mapping[str, float]) -> list[Check]:
    """All checks. `found` is the JSON of `show` so far: "front" and "baseline" are read. `corner` is what the
    hypervolume of the search's figures is measured from.
    """
    return [
        *_predictable(history),
        *_bounds(history),
        *_ends(history, found["front"]),
        *_guesses(history),
        *_beaten(found["front"], found["baseline"]),
        _growth(history, corner),
        _models(history),
        _failures(history),
    ]


def advice(history: History, found: Mapping[str, Any], checks: Sequence[Check]) -> Check:
    """{"verdict": "stop now" | "worth going on", "text": the reason}."""
    verdict = {check["check"]: check["verdict"] for check in checks}
    told, models = len(history.outcomes), len(_trained(history))
    tried = {_model(outcome.genotype) for outcome in history.outcomes.values()}
    stop = {
        "exhausted": "all that the sampler finds in the space was tried",
        "target": "a point reached what stop_when asks for",
    }.get(history.ended)
    if not stop and not found["front"] and len(tried) >= 2 * FEWEST:
        why = ", see the checks" if "bad" in (verdict["failures"], verdict.get("bounds")) else ""
        stop = f"none of {told} candidates is on the front{why}"
    if not stop and verdict["settled"] == "good" and verdict["models"] == "good":
        wider = verdict.get("ends") == "bad"
        stop = "the hypervolume has settled" + ("; a study of a wider space may find more" if wider else "")
    if stop:
        return {"verdict": "stop now", "text": stop}
    if history.ended == "missed":
        reason = "measured again, no point reaches what stop_when asks for"
    elif verdict["settled"] == "bad":
        reason = "the hypervolume still grows"
    elif verdict["settled"] == "good":
        reason = f"the hypervolume has settled, but on {models} trained models only"
    elif found["reference"] and models >= 2 * FEWEST:
        reason = OUTSIDE
    else:
        reason = f"it is too early to tell ({models} trained models)"
    return {"verdict": "worth going on", "text": reason}


def _check(name: str, good: bool | None, text: str) -> Check:
    return {"check": name, "verdict": "unknown" if good is None else "good" if good else "bad", "text": text}


def _model(genotype: Genotype) -> tuple[Architecture, Training]:
    """What candidates of one trained model share; made faster than the name of the group."""
    return genotype.architecture, genotype.training


def _trained(history: History) -> set[tuple[Architecture, Training]]:
    """The trained models, those stopped at a rung among them."""
    return {
        _model(outcome.genotype)
        for outcome in history.outcomes.values()
        if outcome.error is not None or outcome.state in ("complete", "stopped")
    }


# Does a figure follow from the genotype? ------------------------------------------------------------------------------


def _predictable(history: History) -> Iterator[Check]:
    done = [outcome for outcome in history.outcomes.values() if outcome.weighed]
    names, models = history.plan.objectives, len({_model(outcome.genotype) for outcome in done})
    enough = models >= FEWEST
    figures = [[learned_cost(outcome, name) or 0.0 for name in names] for outcome in done] if enough else []
    found = predictability([outcome.genotype for outcome in done], np.array(figures)) if enough else [None] * len(names)
    for name, correlation in zip(names, found, strict=True):
        check = f"predictable {name}"
        if not enough:
            yield _check(check, None, f"{models} finished models are too few to say whether {name} is predictable")
        elif correlation is None:
            yield _check(check, None, f"{name} is the same in all {models} models")
        else:
            good = correlation >= FOLLOWS
            words = "follows" if good else "hardly follows"
            text = f"{name} {words} from the genotype: rank correlation {max(correlation, 0):.2f} over {models} models"
            yield _check(check, None if not good and models < 2 * FEWEST else good, text)


def predictability(genotypes: Sequence[Genotype], figures: Floats) -> list[float | None]:
    """The rank correlation of each column of `figures` [candidates, columns] with what is foretold of it, over trained
    models; None where all are equal.

    Each model is foretold by a ridge regression on the genes of all others, so that no form of it helps to foretell
    another; the forms of a model are one draw and count by their mean. Positive figures by their logarithm. What does
    not follow from the genotype comes out at 0 or below: without a model, the mean of the others leans away from it.
    """
    x, y = columns(genotypes), figures.astype(np.float64)
    positive = y.min(axis=0) > 0
    y[:, positive] = np.log(y[:, positive])
    places: dict[Any, list[int]] = {}
    for place, genotype in enumerate(genotypes):
        places.setdefault(_model(genotype), []).append(place)
    penalty = np.eye(x.shape[1])
    penalty[0, 0] = 0.0  # the constant
    gram, moment = x.T @ x + penalty, x.T @ y
    foretold, true = np.empty((2, len(places), y.shape[1]))
    for model, mine in enumerate(places.values()):
        weights = np.linalg.solve(gram - x[mine].T @ x[mine], moment - x[mine].T @ y[mine])
        foretold[model], true[model] = (x[mine] @ weights).mean(axis=0), y[mine].mean(axis=0)
    return [rank_correlation(*columns) for columns in zip(foretold.T, true.T, strict=True)]


def rank_correlation(a: Floats, b: Floats) -> float | None:
    """Spearman's, equal values sharing their mean rank; None where all of one are equal."""
    if not np.ptp(a) or not np.ptp(b):
        return None
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: Floats) -> Floats:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks


def columns(genotypes: Sequence[Genotype], *, squares: bool = True) -> Floats:
    """[candidates, columns]: a constant; numbers, standardised, positive ones by logarithm, and their squares if asked
    for, and whether there is one where some have none; one column for each value of the other genes. What does not vary
    is left out.
    """
    rows = [_genes(genotype) for genotype in genotypes]
    found = [np.ones(len(rows))]
    for name in dict.fromkeys(chain.from_iterable(rows)):
        values = [row.get(name) for row in rows]
        kinds = list(dict.fromkeys(values))
        if len(kinds) == 1:
            continue
        numbers = [kind for kind in kinds if isinstance(kind, int | float) and not isinstance(kind, bool)]
        if len(numbers) > 2 and {*kinds} <= {None, *numbers}:
            known = np.array([value is not None for value in values])
            column = np.array([0.0 if value is None else value for value in values])
            column = np.log(column, where=known, out=np.zeros(len(rows))) if min(numbers) > 0 else column
            column[known] = (column[known] - column[known].mean()) / column[known].std()
            column[~known] = 0.0  # the mean of those that have one
            found += [column, column**2] if squares else [column]
            found += [known.astype(np.float64)] if not known.all() else []
        else:
            places = {kind: place for place, kind in enumerate(kinds)}
            found += list(np.eye(len(kinds))[:, [places[value] for value in values]])
    return np.stack(found, axis=1)


def _genes(genotype: Genotype) -> dict[str, Any]:
    parts = genotype.architecture, genotype.training, genotype.deployment
    found = {**vars(parts[0]), **vars(parts[1]), **vars(parts[2]), "values": None}
    for name, value in genotype.architecture.values:
        found[f"hp.{name}"] = value
    return found


# Bounds, failures, models ---------------------------------------------------------------------------------------------


def _bounds(history: History) -> Iterator[Check]:
    """How many candidates refused, and for which bound."""
    bounds, told = history.plan.bench.bounds, len(history.outcomes)
    if not bounds:
        return
    if not told:
        yield _check("bounds", None, "no candidate was judged by the bounds yet")
        return
    refused = [outcome for outcome in history.outcomes.values() if outcome.state == "infeasible"]
    over = Counter(name for each in refused for name, over in violations(each, bounds).items() if over > 0)
    text = f"{len(refused)} of {told} candidates refused"
    if over:
        text += ": " + ", ".join(f"{count} for {name}" for name, count in over.most_common())
    good = len(refused) <= REFUSED * told
    if over and not good:
        most = over.most_common(1)[0][0]
        text += f"; loosen objectives.{most}.{OBJECTIVES[most].bound}"
    yield _check("bounds", good, text)


def _failures(history: History) -> Check:
    told = len(history.outcomes)
    stages = Counter(outcome.stage for outcome in history.outcomes.values() if outcome.state == "failed")
    failed = sum(stages.values())
    where = ": " + ", ".join(f"{count} at {stage}" for stage, count in stages.most_common()) if failed else ""
    return _check("failures", failed <= FAILED * told if told else None, f"{failed} of {told} candidates failed{where}")


def _models(history: History) -> Check:
    models, genes = len(_trained(history)), _searched(history)
    enough = max(2 * FEWEST, A_GENE * genes)
    what = f"{models} trained model{'' if models == 1 else 's'} for {genes} searched gene{'' if genes == 1 else 's'}"
    if history.ended == "exhausted":
        return _check("models", True, f"{what}: all that the sampler finds")
    if models >= enough:
        return _check("models", True, what)
    outcomes = f" {math.ceil(enough / models * len(history.outcomes))}" if models else ""
    longer = "a longer --timeout" if history.ended == "timeout" else f"--trials{outcomes}"
    return _check("models", False, f"{what}: take {enough} or more, with {longer}")


def _searched(history: History) -> int:
    """How many genes of a trained model vary; those of its deployment cost no training."""
    space, training = _space(history), history.plan.bench.training
    served = {"bits", "lowering", "steps", "batch", "genes"}
    lists = [getattr(space, row.name) for row in dataclasses.fields(space) if row.name not in served]
    lists = [space.learning_rate] if space.own else lists
    lists += [training.distillation, training.hints]
    genes = {gene.name for gene in space.genes if gene.kind in ("int", "float") or len(gene.values) > 1}
    return len(genes) + sum(isinstance(values, tuple) and len(set(values[:2])) > 1 for values in lists)


def _growth(history: History, corner: Mapping[str, float]) -> Check:
    if not corner:
        return _check("settled", None, "there is nothing to measure the hypervolume from yet")
    done, few = settled(history.outcomes.values(), corner), len(_trained(history)) < 2 * FEWEST
    text = {
        None: f"fewer than {2 * FEWEST} models: too few to say whether the hypervolume has settled" if few else OUTSIDE,
        True: "the last third of the models made the hypervolume grow by less than 1 %",
        False: "the last third of the models made the hypervolume grow by 1 % or more",
    }[done]
    return _check("settled", done, text)


# The baseline ---------------------------------------------------------------------------------------------------------


def guessing(baseline: Outcome, prepared: Mapping[str, Any]) -> str:
    """What is said of a baseline that answers no better than a constant, "" of one that does."""
    trivial = prepared.get("trivial_error")
    if baseline.quality is None or trivial is None or baseline.quality.error < trivial:
        return ""
    return (
        f"the baseline has an error of {baseline.quality.error:.3g}, where a constant answer has {trivial:.3g}: has it "
        "learned, and are inputs scaled, or labels numbered otherwise, outside the model?"
    )


def _guesses(history: History) -> Iterator[Check]:
    if history.baseline and (text := guessing(history.baseline, history.prepared)):
        yield _check("guessing", False, text)


def _beaten(points: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any] | None) -> Iterator[Check]:
    """Whether a point that is as good as the baseline within one standard error is faster, or else dominates it."""
    if baseline is None:
        return
    as_good = [point for point in points if point["drop"] is not None and _worse(point, baseline) <= 0]
    fast = [point for point in as_good if _speedup(point) > 1 + OBJECTIVES["latency"].noise]
    better = fast or [
        point for point in as_good if dominates(*(list(of["costs"].values()) for of in (point, baseline)))
    ]
    best = max(better, key=_speedup, default=None)
    if best is None:
        yield _check("baseline", False if points else None, _short_of(points, bool(as_good)))
        return
    costs, others = best["costs"], [name for name in best["costs"] if name not in ("quality", "latency")]
    worse = _drop(best) > 0 or any(costs[name] > baseline["costs"][name] for name in others)
    words = "as good within one standard error" if worse else "no worse in any objective"
    yield _check("baseline", True, f"{_named(best)} is {_speedup(best):.1f} times as fast as the baseline, and {words}")


def _short_of(points: Sequence[Mapping[str, Any]], as_good: bool) -> str:
    if not points or as_good:
        return "no point that is as good as the baseline is faster" if points else "no point yet to compare"
    best = min(points, key=_drop)
    rival = f"the nearest, {_named(best)}, is {_drop(best):.2g} worse, {_speedup(best):.1f} times as fast"
    return f"none is as good as the baseline: {rival}"


def _named(point: Mapping[str, Any]) -> str:
    return f"trial {point['trial']}" if isinstance(point["trial"], int) else str(point["trial"])


def _drop(point: Mapping[str, Any]) -> float:
    return float(point["drop"] if point["test_drop"] is None else point["test_drop"])


def _worse(point: Mapping[str, Any], baseline: Mapping[str, Any]) -> float:
    """By how much more than one standard error of the difference it is worse; on test data where they were read."""
    key = "stderr" if point["test_drop"] is None else "test_stderr"
    return _drop(point) - math.hypot(*(each["quality"][key] or 0.0 for each in (point, baseline)))


def _speedup(point: Mapping[str, Any]) -> float:
    return float(point["speedup"])


# The ends of the space ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Range:
    """A searched range of numbers; an end that cannot or need not be moved is None."""

    name: str
    place: str  # where it is widened
    lower: float | None
    upper: float | None
    near: Callable[[float, float], bool]
    read: Callable[[Genotype], Any]

    def end(self, forms: Sequence[Genotype]) -> str:
        """At which end all forms of one model lie that have a value: "lower", "upper", or ""."""
        values = [value for form in forms if (value := self.read(form)) is not None]
        for name, limit in (("lower", self.lower), ("upper", self.upper)):
            if values and limit is not None and all(self.near(value, limit) for value in values):
                return name
        return ""


def _ends(history: History, points: Sequence[Mapping[str, Any]]) -> Iterator[Check]:
    """Whether the front lies at an end of a searched range: one check for each such end."""
    models: dict[Any, list[Genotype]] = {}
    for point in points:
        genotype = history.candidates[point["trial"]].genotype
        if not genotype.architecture.model:
            models.setdefault(_model(genotype), []).append(genotype)
    if len(models) < FEW:
        yield _check("ends", None, f"{len(models)} models on the front are too few to say where in the space they lie")
        return
    inside = True
    for one in _ranges(history):
        met = Counter(end for forms in models.values() if (end := one.end(forms)))
        end, count = max(met.items(), key=lambda item: item[1], default=("", 0))
        if count >= AT_AN_END * len(models):
            inside = False
            limit = one.lower if end == "lower" else one.upper
            text = (
                f"{count} of {len(models)} front models have {one.name} at the {end} end {limit:g}: widen {one.place}"
            )
            yield _check("ends", False, text)
    if inside:
        yield _check("ends", True, "the front lies inside the space")


def _ranges(history: History) -> Iterator[_Range]:
    space = _space(history)
    time_steps = history.prepared.get("signature", {}).get("time_steps", MANY)
    if space.own:
        yield from _own_ranges(space)
    widest = {"units": (1, MAX_UNITS), "dropout": (0.0, 0.9), "learning_rate": (1e-7, 1.0)}
    for name, (lowest, highest) in widest.items():
        values = getattr(space, name)
        low, high = values[0], values[:2][-1]
        high -= (high - low) % values[2] if len(values) == 3 else 0
        if low < high and not (space.own and name != "learning_rate"):
            ends = (low if low > lowest else None, high if high < highest else None)
            yield _Range(name, f"space.{name}", *ends, _within(low, high, log=name != "dropout"), _reader(name))
    # 0 is below the others, but for rank and brick, where it stands for the whole matrix and the whole sequence
    lists = {"layers": (1, MAX_LAYERS), "frame_stack": (1, time_steps), "steps": (1, time_steps)}
    lists |= {"rank": (1, math.inf), "brick": (2, time_steps // (2 * min(space.frame_stack))), "block": (1, math.inf)}
    lists |= {"sparsity": (0, 1), "pruned_units": (0, 1)}
    for name, (lowest, highest) in lists.items():
        values = getattr(space, name)
        some = sorted(value for value in values if value)
        if len(values) > 1 and some and not (space.own and name != "steps"):
            beyond = 0 in values and name in ("rank", "brick")
            lower = None if some[0] <= lowest or (0 in values and not beyond) else some[0]
            upper = None if some[-1] >= highest or beyond else some[-1]
            yield _Range(name, f"space.{name}", lower, upper, math.isclose, _reader(name, time_steps))


def _own_ranges(space: Space) -> Iterator[_Range]:
    """Of a hypermodel's numbers, those that have one range whatever the others are."""
    met = Counter(gene.name for gene in space.genes)
    for gene in space.genes:
        if met[gene.name] > 1 or gene.kind not in ("int", "float") or gene.low >= gene.high:
            continue
        near = _within(gene.low, gene.high, log=gene.sampling == "log")
        yield _Range(gene.name, f"it in {space.hypermodel}", gene.low, gene.high, near, _value_reader(gene.name))


def _within(low: float, high: float, *, log: bool) -> Callable[[float, float], bool]:
    def place(value: float) -> float:
        return math.log(value) if log else value

    return lambda value, end: abs(place(value) - place(end)) <= NEAR * (place(high) - place(low))


def _reader(name: str, time_steps: int = MANY) -> Callable[[Genotype], Any]:
    def read(genotype: Genotype) -> Any:
        if name == "steps" and genotype.deployment.lowering not in ("loop", "stacked"):
            return None  # only a loop has them
        if name == "steps" and genotype.deployment.steps >= looped(genotype.architecture, time_steps):
            return math.inf  # more there are not, so that it lies at no end
        groups = (genotype.architecture, genotype.training, genotype.deployment)
        return next(getattr(group, name) for group in groups if hasattr(group, name))

    return read


def _value_reader(name: str) -> Callable[[Genotype], Any]:
    return lambda genotype: dict(genotype.architecture.values).get(name)


def _space(history: History) -> Space:
    return known_space(history.plan, history.prepared)
