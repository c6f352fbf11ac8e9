"""A lane: a thread with one child process on its own cores, which takes one call after another."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from search.budget import Limits
from search.isolate import Child, ChildDied, Event, waits
from spaces.genotype import Architecture, Genotype

BEGINNING = "start"
"""The stage of who has told of none yet: nothing of a candidate has run."""

Name = int | str
"""A trial's number, "baseline", or "rewrite-1", "twin-1", "batch-4" and so on."""


@dataclass
class Work:
    """What a lane is at: the candidates it was given, those still open, and the last stage it told of."""

    names: tuple[Name, ...]
    genotypes: tuple[Genotype, ...]
    bench: dict[str, Any]
    stage: str = BEGINNING
    form: int | None = None
    since: float = field(default_factory=time.monotonic)
    hurried: bool = False  # others do not stand still for it any more
    tried: int = 1  # times
    unready: int = 0  # times that it came to nothing before anything was done for it

    def __post_init__(self) -> None:
        self.open = set(range(len(self.names)))


class Abandoned(ChildDied):
    """A worker was ended between two stages, because the session winds down."""


Answer = Callable[[Event], Any]


class News(NamedTuple):
    """What a lane tells: that it takes up a call ("begin"), what the child emits ("event"), and how the call ended
    ("done" with its result, "error"); `at` is when (`time.monotonic`).
    """

    lane: Lane
    kind: str
    what: Any
    at: float


class Lane:
    """A thread with a child, which takes one call after another, and tells of it.

    What the child asks is answered in this thread, once the driver has taken in all outcomes that came before: it does
    not wait for a proposal that the driver is at. Once `abandon` is set, its next stage is not begun.
    """

    def __init__(self, child: Child, news: queue.SimpleQueue[News]) -> None:
        self.child = child
        self.works: deque[Work] = deque()  # what it is at, and what it goes on with
        self.met: set[Architecture] = set()  # what it was given models of, whose graphs its child may still have
        self.abandon = threading.Event()
        self.warming = False  # getting its imports done, which nobody waits for
        self._news = news
        self._ahead = 0  # outcomes told that were not taken in
        self._at: Any = None  # the stage, and whose
        self._closed = False
        self._taken_in = threading.Condition()
        self._calls: queue.Queue[tuple[str, dict[str, Any], Limits, Answer] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def work(self) -> Work | None:
        """What it is at."""
        return self.works[0] if self.works else None

    def submit(
        self, function: str, arguments: dict[str, Any], limits: Limits, answer: Answer = lambda question: None
    ) -> None:
        self._calls.put((function, arguments, limits, answer))

    def take_back(self) -> Work | None:
        """What it was to go on with, if it has not begun."""
        with self._calls.mutex:  # the newest, not the next: the one before may wait there too
            if len(self.works) < 2 or not self._calls.queue:
                return None
            self._calls.queue.pop()
        return self.works.pop()

    def warmed(self, kind: str) -> bool:
        """Whether news of this kind only say that it has its imports done, or not; the next call tells."""
        was, self.warming = self.warming, self.warming and kind == "event"
        return was

    def taken_in(self) -> None:
        """An outcome was."""
        with self._taken_in:
            self._ahead -= 1
            self._taken_in.notify()

    def close(self) -> None:
        self._calls.put(None)
        with self._taken_in:
            self._closed = True
            self._taken_in.notify()
        self.child.close()
        self._thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            function, arguments, limits, answer = call
            self._say("begin")
            self._at = None
            try:
                result = self.child.call(
                    function,
                    arguments,
                    timeout_s=limits.group_timeout_s,
                    stage_timeouts=limits.stage_timeouts,
                    stage_memory_bytes=limits.stage_memory_bytes,
                    on_event=self._tell,
                    on_ask=partial(self._ask, answer),
                )
                self._say("done", result)
            except BaseException as error:  # nothing may end this thread without the driver's hearing of it
                self._say("error", error)

    def _say(self, kind: str, what: Any = None) -> None:
        self._news.put(News(self, kind, what, time.monotonic()))

    def _tell(self, event: Event) -> None:
        with self._taken_in:
            self._ahead += event["event"] == "outcome"
        self._say("event", event)
        before = self._at
        if event["event"] == "stage":
            self._at = event["stage"], event.get("form")
        further = self._at != before or event["event"] == "outcome" or waits(event)  # else it tells how far it is
        if self.abandon.is_set() and further:
            raise Abandoned("abandoned", "the session winds down")

    def _ask(self, answer: Answer, question: Event) -> Any:
        with self._taken_in:
            self._taken_in.wait_for(lambda: not self._ahead or self._closed)
        if self._closed:
            raise ChildDied("crashed", "the driver has gone")
        return answer(question)
