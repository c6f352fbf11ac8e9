"""A running study: live on a terminal, a line per told candidate anywhere else. It never stops the study."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiments.figures import number
from experiments.report import Speaker, console, duration
from objectives.objective import OBJECTIVES
from objectives.outcome import Outcome
from search.ledger import form, title
from spaces.record import from_json, to_json

REFRESH_PER_S = 2.0  # slow: the terminal shares the machine with the measuring


@dataclass
class Working:
    """What one worker does now."""

    model: str = ""
    stage: str = "starting"
    detail: str = ""
    since: float = 0.0


class Progress:
    """Shows a study as it goes; a context manager.

    Call it with the events of `search.drive`; or `asked` says which candidates a worker has been given, `event` takes
    what it emits, `told` the outcome. `trials` and `timeout_s` are the budget (None: none), `before` what was told in
    earlier sessions. A closed pipe or a broken terminal only ends the display.
    """

    def __init__(
        self,
        tty: bool | None = None,
        *,
        trials: int | None = None,
        timeout_s: float | None = None,
        stream: IO[str] | None = None,
        before: Sequence[Outcome] = (),
    ) -> None:
        self._console: Console = console(stream or sys.stderr, forgiving=True)
        self._tty = self._console.is_terminal if tty is None else tty
        self._plain = Speaker(self._console).plain
        self._trials, self._timeout_s, self._done = trials, timeout_s, 0
        self._before, self._started = len(before), time.monotonic()
        self._workers: dict[Any, Working] = {}
        self._counts: dict[str, int] = {}
        self._best: dict[str, float] = {}
        self._lock = threading.RLock()
        self._broken = False
        self._live: Live | None = None
        for outcome in before:
            self._count(outcome)

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        if self._tty:
            self._live = Live(
                console=self._console, get_renderable=self._render, refresh_per_second=REFRESH_PER_S, transient=True
            )
            self._try(self._live.start)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._try(self._live.stop)

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take an event of `search.drive`: "group", "stage", "epoch", "told", "idle" or "warning", with its "lane"."""
        lane, kind = event.get("lane"), event.get("event")
        if kind == "group" and event.get("genotypes"):
            self.asked(lane, event["genotypes"][0], siblings=len(event["genotypes"]))
        elif kind == "told":
            self.told(event["trial"], from_json(Outcome, event["outcome"]))
        elif kind == "idle":
            with self._lock:
                self._workers[lane] = Working(stage="idle", since=time.monotonic())
        elif kind == "warning":
            self.say(f"warning: {event.get('text', '')}")
        else:
            self.event(lane, event)

    def asked(self, worker: Any, genotype: Mapping[str, Any], siblings: int = 1) -> None:
        """A worker starts on a candidate (its JSON), or on a group of siblings of which this is the first."""
        model = title(genotype) + (f" ({siblings} forms)" if siblings > 1 else "")
        with self._lock:
            self._workers[worker] = Working(model=model, since=time.monotonic())

    def event(self, worker: Any, event: Mapping[str, Any]) -> None:
        """A worker says what it does: "stage" events carry "stage" and "detail", "epoch" events "epoch" and "of"."""
        with self._lock:
            working = self._workers.setdefault(worker, Working(since=time.monotonic()))
            if event.get("event") == "stage":
                working.stage, working.detail = str(event.get("stage", "")), str(event.get("detail") or "")
                working.since = time.monotonic()
            elif event.get("event") == "epoch":
                figures = [f"{key} {event[key]:.3f}" for key in ("loss", "metric") if isinstance(event.get(key), float)]
                working.detail = " ".join([f"epoch {event.get('epoch')}/{event.get('of')}", *figures])
            elif event.get("event") == "rung":
                then = "goes on" if event.get("goes_on") else "stops"
                working.detail = f"epoch {event.get('epoch')}/{event.get('of')} error {event.get('error'):.3f}, {then}"

    def told(self, trial: int | str, outcome: Outcome) -> None:
        """A candidate is done; baseline and rewrites are none of the budget's trials."""
        with self._lock:
            if isinstance(trial, int):
                self._count(outcome)
        if not self._tty:
            self.say(f"[{self._tally()}] {told_line(trial, outcome)}")

    def say(self, line: str) -> None:
        """A line above the display, or simply the next line."""
        self._try(lambda: self._console.print(Text(self._plain(line)), soft_wrap=True))

    def _count(self, outcome: Outcome) -> None:
        self._done += 1
        self._counts[outcome.state] = self._counts.get(outcome.state, 0) + 1
        for name, objective in OBJECTIVES.items() if outcome.state == "complete" else ():
            cost = objective.read(outcome)
            if cost is not None and (name not in self._best or cost < self._best[name]):
                self._best[name] = cost

    def _render(self) -> RenderableType:
        """The display: a line per worker, then what is done, the best so far, and the time."""
        try:
            with self._lock:
                now, lines = time.monotonic(), Table.grid(padding=(0, 2))
                lines.add_column(style="bold", no_wrap=True, min_width=9)
                lines.add_column(style="cyan", no_wrap=True)
                lines.add_column(no_wrap=True)
                lines.add_column(no_wrap=True, justify="right")
                for _, working in sorted(self._workers.items(), key=lambda item: str(item[0])):
                    cells = (working.stage, working.model, working.detail, duration(now - working.since))
                    lines.add_row(*(Text(self._plain(cell)) for cell in cells))
                counts = ", ".join(f"{count} {state}" for state, count in self._counts.items()) or "none told yet"
                best = " · ".join(f"{name} {number(cost)} {OBJECTIVES[name].unit}" for name, cost in self._best.items())
                tail = [f"trials {self._tally()}: {counts}", f"best: {best}" if best else "", self._clock()]
            return Group(lines, *(Text(self._plain(line), overflow="ellipsis", no_wrap=True) for line in tail if line))
        except Exception as error:  # a display must not end a study
            return Text(f"(display: {error})")

    def _clock(self) -> str:
        spent = time.monotonic() - self._started
        left = []
        if self._trials and self._done > self._before:
            left.append(spent / (self._done - self._before) * max(0, self._trials - self._done))
        if self._timeout_s:
            left.append(max(0.0, self._timeout_s - spent))
        to_go = min(left, default=0.0)
        return f"{duration(spent)} gone" + (f", about {duration(to_go)} left" if to_go >= 1 else "")

    def _tally(self) -> str:
        return f"{self._done}/{self._trials}" if self._trials else str(self._done)

    def _try(self, act: Any) -> None:
        if self._broken:
            return
        try:
            act()
        except (OSError, ValueError):  # the reader went away, the stream is closed
            self._broken = True


def told_line(trial: int | str, outcome: Outcome) -> str:
    """One candidate in one line."""
    plain = to_json(outcome.genotype)
    name = f"trial {trial}" if isinstance(trial, int) else trial
    what = f"{name} {outcome.state}: {title(plain)} · {outcome.genotype.deployment.bits} · {form(plain)}"
    if outcome.state != "complete":
        stage = f" at {outcome.stage}" if outcome.stage else ""
        return f"{what}{stage}: {' '.join(outcome.reason.split())}"[:300]
    figures = []
    if outcome.measurement:
        figures.append(f"{number(outcome.measurement.median_ms)} ms")
    if outcome.quality:
        figures.append(f"{outcome.quality.metric} {outcome.quality.validation:.3f}")
    if outcome.artifact:
        figures.append(f"{outcome.artifact.size_bytes / 1024:.1f} KiB")
    return what + ", " + ", ".join(figures)
