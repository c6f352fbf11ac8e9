"""When a study has found enough: `study.stop_when`."""

from __future__ import annotations

from search.front import pick
from search.growth import settled
from search.history import History
from search.summary import front_of, point_of, reference_of
from spaces.errors import InputError, NothingFeasible

SETTLED = "settled"
"""In place of bounds: once the hypervolume does not grow any more (`search.growth`)."""


def problem(text: str) -> str:
    """What is wrong with a rule and what to do; "" with one that is legal."""
    if text in ("", SETTLED):
        return ""
    if "=" not in text:
        return f'got {text!r}; give bounds as in "drop<=0.005, latency_ms<=0.05", or "{SETTLED}"'
    try:
        pick([], text)
    except NothingFeasible:
        return ""
    except InputError as error:
        return f"got {text!r}: {error}"
    return ""


def reached(text: str, history: History) -> str:
    """Why a study may end, as `drive` says it: "target" once a point keeps within the bounds, "settled"; else ""."""
    if not text:
        return ""
    if text == SETTLED:
        done = settled(history.outcomes.values(), reference_of(history))
        return SETTLED if done else ""
    if history.plan.baseline and history.baseline is None:  # still in training: drop and speedup are against it
        return ""
    names = front_of(history)
    try:
        pick([point_of(history, name) for name in names], text)
    except NothingFeasible:
        return ""
    return "target"
