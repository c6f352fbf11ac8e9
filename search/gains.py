"""What the record of a study says of each technique, as plain JSON values (`search.compression` does the sums)."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from objectives.outcome import Outcome
from search.compression import TECHNIQUES, TRAINING, Name, Pair, ledger, pairs, verdict
from search.history import History
from spaces.record import to_json


def compression(history: History) -> list[dict[str, Any]]:
    """The ledger: an entry for each technique and setting that some pair of the study tells about."""
    return [to_json(entry) for entry in ledger(_pairs(history))]


def twins_of(history: History, name: Name) -> list[dict[str, Any]]:
    """What each technique that a candidate was trained with bought it, against the same one trained without."""
    genotype = history.candidates[name].genotype if name in history.candidates else None
    if genotype is None or not any(technique.setting(genotype) for technique in TRAINING):
        return []
    return [
        {
            "technique": pair.technique,
            "setting": pair.setting,
            "twin": pair.unused,
            "latency_ratio": pair.latency_ratio,
            "bytes_ratio": pair.bytes_ratio,
            "compressed_ratio": pair.compressed_ratio,
            "error_change": pair.error_change,
            "error_noise": pair.error_noise,
            "tested": pair.tested,
            "verdict": verdict([pair]),
        }
        for pair in _pairs(history, TRAINING, [name])
    ]


def seeds_of(history: History, name: Name) -> dict[str, Any] | None:
    """The validation figures of all trainings of a candidate, its own first; the mean of the others, for it was chosen
    for its own, and the deviation of all. None where it was not trained again.
    """
    outcome = history.candidates.get(name)
    again = [each for key, each in history.seeds.items() if key.split("-", 2)[2] == str(name)]
    own, *others = [each.quality.validation for each in (outcome, *again) if each and each.quality] or [0.0]
    if not others:
        return None
    found = [own, *others]
    return {"validation": found, "mean": statistics.mean(others), "std": statistics.stdev(found)}


def _pairs(history: History, techniques: tuple[Any, ...] = TECHNIQUES, of: list[Name] | None = None) -> Iterator[Pair]:
    """Among all that is known: the trials, the user's model rewritten, the baseline, and the twins."""
    searched: dict[Name, Outcome] = {**history.candidates, **dict(history.twins.items())}
    if history.baseline:
        searched["baseline"] = history.baseline
    sequences = history.prepared.get("summary", {}).get("sequences", {})
    rows = sequences.get("validation", 0)
    finals = {name: outcome for name, outcome in history.finals.items() if not outcome.reason}  # measured again
    return pairs(searched, finals, rows=rows, techniques=techniques, of=of)
