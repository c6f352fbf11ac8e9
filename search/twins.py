"""The twins of a front: its members that were trained with a compression technique, trained once more without it."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest

from objectives.outcome import Outcome
from search.compression import TRAINING
from search.front import RULES, pick
from search.history import History
from search.summary import front_of, point_of
from spaces.genotype import Genotype

MOST = 6  # trained models


def wanted(history: History) -> list[Genotype]:
    """The twins that tell what training techniques bought, of at most six trained models.

    The techniques take turns, each with the knee's first, then the fastest's and the best's. A twin that is on the
    front itself is none. By the figures of the search, so that a study that is run again, or was killed between its
    twins, wants the same.
    """
    searched = replace(history, finals={})
    names = front_of(searched)
    points = [point_of(searched, name) for name in names]
    chief = [pick(points, rule)["trial"] for rule in RULES] if points else []
    members = [searched.candidates[name].genotype for name in dict.fromkeys([*chief, *names])]
    by_technique = [
        [twin for one in members if technique.setting(one) and (twin := technique.without(one)) not in members]
        for technique in TRAINING
    ]
    in_turns = [twin for turn in zip_longest(*by_technique) for twin in turn if twin is not None]
    models = list(dict.fromkeys(twin.group for twin in in_turns))[:MOST]
    return [twin for twin in dict.fromkeys(in_turns) if twin.group in models]


def left(history: History) -> dict[str, Genotype]:
    """The twins that are not in the record yet, by the names they are to have: "twin-1" and so on."""
    kept = {outcome.genotype for outcome in history.twins.values()}
    missing = [genotype for genotype in wanted(history) if genotype not in kept]
    count = len(missing) + len(history.twins)
    free = [name for index in range(1, count + 1) if (name := f"twin-{index}") not in history.twins]
    return dict(zip(free, missing, strict=False))


def told(history: History, genotype: Genotype) -> Outcome | None:
    """What the search itself found of a twin, if it has all its figures."""
    for outcome in history.candidates.values():
        if outcome.genotype == genotype and outcome.quality and outcome.measurement and outcome.artifact:
            return outcome
    return None
