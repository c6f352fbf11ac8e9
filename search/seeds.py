"""Members of the front trained again from other seeds: how much of what was found is luck."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from search.front import RULES, pick
from search.history import History
from search.summary import front_of, point_of
from spaces.genotype import Genotype

MOST = 6  # trained models


def wanted(history: History) -> dict[str, Genotype]:
    """What is trained again, by the names it is to have: "seed-1-12", the first repeat of trial 12.

    By the figures of the search, so that a study that is run again wants the same: the knee, the fastest, the best, and
    then the others, of at most six trained models.
    """
    searched = replace(history, finals={})
    names = [name for name in front_of(searched) if isinstance(name, int)]
    points = [point_of(searched, name) for name in names]
    chief = [pick(points, rule)["trial"] for rule in RULES] if points else []
    members = {name: searched.candidates[name].genotype for name in dict.fromkeys([*chief, *names])}
    models = list(dict.fromkeys(genotype.group for genotype in members.values()))[:MOST]
    return {
        f"seed-{repeat}-{name}": genotype
        for repeat in range(1, history.plan.confirm_seeds)
        for name, genotype in members.items()
        if genotype.group in models
    }


def left(history: History) -> dict[str, Genotype]:
    """Those of them that are not in the record yet."""
    return {name: genotype for name, genotype in wanted(history).items() if name not in history.seeds}


def groups(named: Mapping[str, Genotype]) -> dict[int, list[dict[str, Genotype]]]:
    """By repeat, counted from 1 (0 is the search's own training), the forms of each trained model together."""
    found: dict[int, dict[str, dict[str, Genotype]]] = {}
    for name, genotype in named.items():
        repeat = int(name.split("-")[1])
        found.setdefault(repeat, {}).setdefault(genotype.group, {})[name] = genotype
    return {repeat: list(models.values()) for repeat, models in found.items()}
