"""How far a study goes: its limits, and when it has found enough (`study.stop_when`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from objectives.task import TASKS
from search.front import AGAINST, bounded, pick
from search.growth import settled
from search.history import History
from search.summary import front_of, point_of, searched_corner
from spaces.errors import InputError, NothingFeasible

STAGES = ("load", "lower", "quantize", "untrained", "train", "quality", "measure")
"""What a group goes through (`objectives.evaluate`); "untrained" is the look before training."""

STAGE_TIMEOUT_S = 600.0  # of a stage that the spec does not limit

SITTINGS = ("untrained", "measure")
"""Those that measure."""

NOT_YET = "not measured again yet"
"""Why a figure is of the search, beside others of the end."""

SETTLED = "settled"
"""In place of bounds: once the hypervolume does not grow any more (`search.growth`)."""


@dataclass(frozen=True)
class Limits:
    """How far a session goes: `trials` counts outcomes told, those of earlier sessions too; `timeout_s` this session.

    At its end, or once `stop_when` (`reached`) is reached, no new group is begun, those at work are finished.
    `group_timeout_s` and `memory_limit_bytes` hold for one worker with one group, `stage_timeouts` and
    `stage_memory_bytes` for stages by name.
    """

    trials: int = 40
    timeout_s: float | None = None
    workers: int = 1
    group_timeout_s: float | None = 3600.0
    stage_timeouts: Mapping[str, float] = field(default_factory=dict)
    memory_limit_bytes: int | None = None
    stage_memory_bytes: Mapping[str, int] = field(default_factory=dict)
    stop_when: str = ""


def problem(text: str, metric: str, *, baseline: bool) -> str:
    """What is wrong with a rule, in a study of that metric with or without a baseline, and what to do; "" where it is
    legal.
    """
    if text in ("", SETTLED):
        return ""
    if "=" not in text:
        return f'got {text!r}; give bounds as in "drop<=0.005, latency_ms<=0.05", or "{SETTLED}"'
    try:
        fields = set(bounded(text))
    except InputError as error:
        return f"got {text!r}: {error}"
    if (against := fields & {*AGAINST}) and not baseline:
        return f"got {text!r}, but a {min(against)} is against the baseline; give [baseline]"
    if "test" in fields:
        return f"got {text!r}, but the test part is read at the end, and once; bound {metric}"
    if strange := fields & ({task.metric for task in TASKS.values()} - {metric}):
        return f"got {text!r}, but this study is judged by {metric}, not {min(strange)}"
    return ""


def reached(text: str, history: History) -> str:
    """Why a study may end, as `drive` says it: "target" once a point keeps within the bounds, "settled"; else ""."""
    if not text:
        return ""
    if text == SETTLED:
        done = settled(history.outcomes.values(), searched_corner(history))
        return SETTLED if done else ""
    if history.plan.baseline and (history.baseline is None or history.baseline.state != "complete"):
        return ""  # still in training, or tried again: drop and speedup are against it
    # What was measured again counts by that, or its lucky figure of the search would reach the bounds again and again;
    # what was not is held against the baseline as it was in the search, for the two are of different sittings.
    others = {name: replace(one, reason=one.reason or NOT_YET) for name, one in history.candidates.items()}
    known = replace(history, finals=history.finals or {**others, **history.judged})
    try:
        pick([point_of(known, name) for name in front_of(known, final=True)], text)
    except NothingFeasible:
        return ""
    return "target"
