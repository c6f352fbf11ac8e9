"""The outbox: ships a study's trials to MLflow off the critical path, and never troubles the study."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from objectives.outcome import Outcome
from search.ledger import Key

TRIES = 3  # failures within one attempt after which the sink is taken for dead
REST = 9  # times the processor time that it took, the thread then stands still: the search needs it more
LAST_S = 1.0  # for the trial that is being shipped when time is up; a server that hangs has no more


class Sink(Protocol):
    """Where trials are shipped to: `search.tracking.Projection`, or a stand-in."""

    def trial(self, number: Key, outcome: Outcome) -> None: ...
    def front(self, summary: Mapping[str, Any], outcomes: list[tuple[Key, Outcome]]) -> None: ...


class Outbox:
    """A thread that opens a sink and ships what it is handed, newest state of each trial only.

    Nothing here blocks or raises: `put` and `show` return at once, a failure keeps what was not shipped and is tried
    again every `retry_s`. `pending` counts the trials not shipped yet, `reason` says why the last attempt failed ("" if
    it did not). What is still pending when the process ends is not lost: the study holds it, `brisk sync` sends it.
    """

    def __init__(self, open_sink: Callable[[], Sink], *, retry_s: float = 30.0) -> None:
        self._open, self._retry_s = open_sink, retry_s
        self._sink: Sink | None = None
        self._waiting: dict[Key, Outcome] = {}
        self._told: dict[Key, Outcome] = {}
        self._summary: Mapping[str, Any] | None = None
        self._closing = self._leaving = False
        self._wake = threading.Condition()
        self.reason = ""
        self._thread = threading.Thread(target=self._run, name="brisk-outbox", daemon=True)
        self._thread.start()

    def put(self, trial: Key, outcome: Outcome) -> None:
        """Hand over a trial; a later outcome of the same trial replaces it."""
        with self._wake:
            self._told[trial] = self._waiting[trial] = outcome
            self._wake.notify()

    def show(self, summary: Mapping[str, Any]) -> None:
        """Hand over the study as it stands (the JSON of `show`); only the newest is shipped."""
        with self._wake:
            self._summary = summary
            self._wake.notify()

    @property
    def pending(self) -> int:
        """How many trials have not been shipped."""
        return len(self._waiting)

    def close(self, timeout_s: float = 20.0) -> bool:
        """Ship what is left, for at most `timeout_s`, and not a trial more; whether everything went."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout_s)
        self._leaving = True  # who goes on with the rest must not take turns with this thread
        self._thread.join(LAST_S)
        return not self._waiting and self._summary is None and not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closing or self._waiting or self._summary is not None)
                last = self._closing
            try:
                self._ship()
                self.reason = ""
            except Exception as error:  # whatever the tracking library raises; the study must not see it
                self.reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
                with self._wake:
                    self._wake.wait_for(lambda: self._closing, timeout=self._retry_s)
            if last:
                return

    def _ship(self) -> None:
        if self._sink is None:
            self._sink = self._open()
        failures: list[Exception] = []
        shown: Mapping[str, Any] | None = None
        while waiting := self._newest():
            for number, outcome in waiting:
                if self._leaving:
                    return
                spent = time.thread_time()  # a server far away costs none
                if self._summary is not shown and not self._closing:  # it must not wait where trials never end
                    shown = self._ship_front(self._sink)
                try:
                    self._sink.trial(number, outcome)
                except Exception as error:  # a bad trial must not hold up the rest
                    failures.append(error)
                    if len(failures) == TRIES:
                        raise
                    continue
                with self._wake:
                    if self._waiting.get(number) is outcome:
                        del self._waiting[number]
                    self._wake.wait_for(lambda: self._closing, timeout=REST * (time.thread_time() - spent))
            if failures:
                raise failures[0]
        shown = self._ship_front(self._sink)
        with self._wake:
            if self._summary is shown:
                self._summary = None

    def _newest(self) -> list[tuple[Key, Outcome]]:
        with self._wake:
            return list(self._waiting.items())

    def _ship_front(self, sink: Sink) -> Mapping[str, Any] | None:
        """Ship the newest summary, which is given back."""
        with self._wake:
            summary, told = self._summary, list(self._told.items())
        if summary is not None:
            sink.front(summary, told)
        return summary
