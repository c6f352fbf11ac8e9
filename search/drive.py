"""The loop of a study: groups of candidates go out to workers, outcomes come back, and whatever dies is replaced.

Optuna is spoken to from this thread alone. Each lane is a thread with one child process on its own cores; what a child
says comes back through one queue. A lane that dies costs the candidate it was at work on, and nothing else.
"""

from __future__ import annotations

import gc
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from objectives.bench import Bench
from objectives.outcome import Outcome
from search import batches, seeds, twins
from search.budget import Limits, reached
from search.clock import IDLE, Clock
from search.finish import finish
from search.health import guessing
from search.isolate import STAGE_ENDS, CallFailed, Child, ChildDied, Event, waits
from search.lane import BEGINNING, Abandoned, Lane, News, Work
from search.study import PATIENCE, STRUCK, Group, SpaceExhausted, Study, named_at_work
from search.summary import batches_left
from spaces.errors import BriskError, CandidateError, DeviceError, InputError, StudyError, disk_trouble
from spaces.genotype import Genotype
from spaces.record import from_json, to_json

Tell = Callable[[Event], None]

UNFINISHED = {"timeout", "interrupted", "target", "settled"}
"""Ends at which there is more to try."""

LATER = "later"
"""No end: others were told what is foretold of them, and there may be something to try yet."""

SELDOM = 4  # times what it took to hold the study against `stop_when`, till it is done again
TRIES = 2  # of a group whose worker is killed
UNREADY = 3  # times that a work may come to nothing before anything was done for its candidates
UNBEGUN = (BEGINNING, "load")  # stages at which it has not
AHEAD = 2  # groups that a lane has been given, at times one more: the next one is there when one is done
QUIET_S = 300.0  # the longest time for which workers stand still
NEWS_S = 0.5  # how long to wait for news before looking at the clock


def drive(
    study: Study,
    limits: Limits,
    on_event: Tell = lambda event: None,
    wind_down: threading.Event | None = None,
) -> str:
    """Work on the study, judge its front once more, and say why it ended: "trials", "timeout", "exhausted", "target" or
    "settled" (what `stop_when` asked for), "missed" (a target that does not hold when it is measured again), or
    "interrupted".

    Around the judging (`search.finish`) what the record needs beside the trials is made: the twins of the front's
    members (`search.twins`), their repeats from other seeds (`search.seeds`) where the plan wants them, and the chosen
    one at several batch sizes (`search.batches`).

    `on_event` gets what `evaluate` emits, with "trials" (the numbers of its group), "trial" (of its form) and "lane"
    put in; before that {"event": "group", "genotypes"}; {"event": "told", "outcome", "counts"} for each outcome; and
    {"event": "idle"} where a lane has nothing to do.
    Once `wind_down` is set, each worker finishes its stage and is ended, the front is judged, and it ended
    "interrupted", whatever was being done. KeyboardInterrupt ends the workers at once and goes on to the caller. Either
    way, what they were at stays running in the storage and is taken up by the next session. Raises the user's errors
    (data that changed or cannot be read, a baseline that fails, threads that a worker does not have).
    """
    driver = _Driver(study, limits, on_event, wind_down or threading.Event())
    ended = "error"
    gc.freeze()  # or each full collection looks through all that was imported, a quarter of a second
    try:
        driver.prepare()
        driver.baseline()
        driver.rewrites()
        stopped = driver.search()
        ended = driver.reached_at_last(stopped)
        driver.twins()
        driver.seeds()
        driver.finish()
        if ended == "target" and not reached(limits.stop_when, study.history()):  # by the figures of the end
            missed = "missed" if len(study.outcomes) < limits.trials else "trials"
            ended = missed if stopped == "target" else stopped
        driver.batches()
        if driver.wound_down:
            ended = "interrupted"
    except KeyboardInterrupt:
        ended = "interrupted"
        raise
    finally:
        gc.unfreeze()
        driver.stop(ended)
    return ended


class _Driver:
    def __init__(self, study: Study, limits: Limits, on_event: Tell, wind_down: threading.Event) -> None:
        self._study, self._limits, self._on_event, self._wind_down = study, limits, on_event, wind_down
        self._started = time.monotonic()
        self._clock = Clock(study.clock, limits.workers)
        self._quiet: Lane | None = None  # the one that the others stand still for
        self._quiet_since = 0.0
        self._gave_out = 0  # trials' works in a row for which nothing could be done
        self._judged: Any = None  # what `stop_when` was held against,
        self._judge_next = 0.0  # and when it is again
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._lanes = [
            Lane(
                Child(
                    home=study.home,
                    name=f"{study.name}-worker{index}",
                    cores=cores,
                    memory_limit_bytes=limits.memory_limit_bytes,
                ),
                self._news,
            )
            for index, cores in enumerate(shares(limits.workers))
        ]

    @property
    def wound_down(self) -> bool:
        """Whether nothing more is to be begun."""
        return self._wind_down.is_set()

    def prepare(self) -> None:
        """Have the data read and checked, before anything is trained; a worker that crashes is replaced once. It has as
        long as a group.
        """
        for lane in self._lanes[1:]:
            lane.warming = True
            lane.submit(f"{self._study.plan.evaluator}:warm", {}, Limits(group_timeout_s=self._limits.group_timeout_s))
        what = self._prepared(tries=2)
        self._study.plan.space.check(what["signature"]["kind"], what["signature"]["time_steps"])
        self._study.keep_prepared(what)
        for text in (*self._study.left_out(), *self._study.elsewhere()):
            self._on_event({"event": "warning", "text": text})
        self._keep_clock("")

    def _prepared(self, tries: int) -> dict[str, Any]:
        bench = {"bench": to_json(self._study.plan.bench)}
        limits = Limits(group_timeout_s=self._limits.group_timeout_s)
        self._lanes[0].submit(f"{self._study.plan.evaluator}:prepare", bench, limits)
        while (news := self._heard(NEWS_S)) is None or news.lane.warmed(news.kind) or news.kind == "event":
            pass
        what = news.what
        if news.kind == "done":
            found: dict[str, Any] = what
            return found
        if isinstance(what, CallFailed):
            log = self._study.home / "logs"
            raise CallFailed(f"the worker that reads and checks the data failed: {what}; its log in {log} says where")
        if not isinstance(what, ChildDied):
            raise what
        if what.kind == "crashed" and tries > 1:
            return self._prepared(tries - 1)
        longer = "; [search] trial_timeout gives it longer" if what.kind == "timeout" else ""
        raise ChildDied(what.kind, f"the worker that reads and checks the data {what.reason}{longer}") from what

    def baseline(self) -> None:
        """Evaluate the baseline first, under no bound: a slow one is what the study is for.

        The other workers begin to search meanwhile, unless it is to teach. One that failed is tried again in each
        session. Raises StudyError where it fails: it is what was asked for.
        """
        genotype, kept = self._study.plan.baseline, self._study.baseline
        if genotype is None or (kept and kept.state == "complete"):
            return
        if self._study.strikes("baseline", genotype) >= PATIENCE:
            self._study.forgive("baseline", genotype)
            self._judge_baseline(Outcome(genotype, "failed", stage=BEGINNING, reason=STRUCK))
        unbounded = to_json(replace(self._study.bench, bounds={}))
        lane = self._lanes[0]
        self._begin(lane, Work(("baseline",), (genotype,), unbounded))
        while lane.work and self._study.plan.bench.teacher:
            self._receive()

    def _judge_baseline(self, kept: Outcome) -> None:
        self._study.keep_baseline(kept)
        if guess := guessing(kept, self._study.prepared):
            self._on_event({"event": "warning", "text": guess})
        if kept.state != "complete":
            raise StudyError(
                f"the baseline failed at {kept.stage}: {kept.reason}; mend [baseline] in the spec, or its limits in "
                "[search], or leave it out. The same command tries it again"
            )

    def rewrites(self) -> None:
        """Evaluate the forms of the user's own model: the front is never worse than they. One that fails is told."""
        if left := self._study.rewrites_left():
            self._beside([left], self._study.bench)

    def search(self) -> str:
        """Keep every lane at work, and a group or two ahead, until trials, time or candidates run out."""
        ended = ""
        while True:
            if self.wound_down:
                ended = "interrupted"
            for ahead in range(AHEAD):
                for lane in self._lanes:
                    while len(lane.works) <= ahead and not ended:
                        ended = self._next(lane)
            if ended == LATER:
                ended = ""
                while self._receive(0.0):
                    pass
                continue
            if ended:
                self._settle_queues(ended)
            if not any(lane.work for lane in self._lanes):
                return ended
            self._receive()

    def reached_at_last(self, ended: str) -> str:
        """Why the search ended, with a last look at `stop_when`: the last outcomes may have brought it."""
        return (ended != "interrupted" and self._reached(at_last=True)) or ended

    def _settle_queues(self, ended: str) -> None:
        """What was to come next is left undone where time is up, and else goes to who has nothing to do."""
        for lane in self._lanes:
            while lane.works and isinstance(lane.works[-1].names[0], int):  # a baseline that is tried again stays
                idle = [other for other in self._lanes if not other.works]
                if not (ended in UNFINISHED or idle) or (work := lane.take_back()) is None:
                    break
                if ended in UNFINISHED:
                    self._study.withdraw([name for name in work.names if isinstance(name, int)])
                else:
                    self._begin(idle[0], work)

    def twins(self) -> None:
        """Evaluate what members of the front are without a training technique, under no bound; one that fails is told.

        What the search itself has found of one is taken over, so that it is measured with the front.
        """
        groups: dict[str, dict[str, Genotype]] = {}
        for name, genotype in twins.left(history := self._study.history()).items():
            if found := twins.told(history, genotype):
                self._study.keep_beside(name, replace(found, seconds={}))
            else:
                groups.setdefault(genotype.group, {})[name] = genotype
        self._beside(list(groups.values()), replace(self._study.bench, bounds={}))

    def seeds(self) -> None:
        """Train members of the front again from other seeds; one that fails is told."""
        for repeat, groups in seeds.groups(seeds.left(self._study.history())).items():
            self._beside(groups, replace(self._study.bench, bounds={}, repeat=repeat))

    def batches(self) -> None:
        """Lower and measure the chosen candidate at each batch of its curve."""
        left = batches_left(self._study.history())
        self._beside([left], batches.conditions(self._study.bench))

    def _beside(self, groups: list[dict[str, Genotype]], bench: Bench) -> None:
        """Have groups of candidates that are no trials evaluated, on all lanes; none is begun once it winds down."""
        waiting = [part for group in groups for part in self._parts(group) if part]
        while (waiting and not self.wound_down) or any(lane.work for lane in self._lanes):
            for lane in self._lanes:
                if waiting and not lane.works and not self.wound_down:
                    group = waiting.pop(0)
                    self._begin(lane, Work(tuple(group), tuple(group.values()), to_json(bench)))
            self._receive()

    def _parts(self, group: dict[str, Genotype]) -> list[dict[str, Genotype]]:
        """A group without what is given up, and apart what was at work when the study was killed: it may be why."""
        left = {name: one for name, one in group.items() if not self._study.given_up(name, one)}
        alone = [{name: one} for name, one in left.items() if self._study.strikes(name, one)]
        return [{name: one for name, one in left.items() if {name: one} not in alone}, *alone]

    def finish(self) -> None:
        """Judge the front once more, with every worker idle."""

        def say(event: Event) -> None:
            self._on_event({"lane": 0, **event})

        self._clock.sums["measuring_s"] += finish(self._study, self._lanes[0].child, say, self._limits)
        say({"event": "idle"})

    def stop(self, ended: str) -> None:
        """End the workers at once."""
        for lane in self._lanes:
            lane.close()
        self._clock.tick(time.monotonic())
        self._keep_clock(ended)

    def _next(self, lane: Lane) -> str:
        """Give a lane, or the one that knows its architecture, the next group; otherwise say why there is none, or
        `LATER`.
        """
        spent = time.monotonic() - self._started
        if self._limits.timeout_s is not None and spent > self._limits.timeout_s:
            return "timeout"
        if reason := self._reached():
            return reason
        if 2 * len(self._study.outcomes) >= self._limits.trials or 2 * spent > (self._limits.timeout_s or math.inf):
            self._study.gather_ensemble()
        try:
            group = self._proposed(lane)
        except SpaceExhausted:
            return self._next(lane) if self._study.gather_ensemble() else "exhausted"
        if group is None:
            return "trials"
        if not group.numbers:
            return LATER
        work = Work(group.numbers, group.genotypes, to_json(self._study.bench))
        self._begin(self._familiar(work, lane), work)
        return ""

    def _reached(self, *, at_last: bool = False) -> str:
        """Why `stop_when` ends the study, if it does: looked at where something was told, and not all the time."""
        told, since = (len(self._study.outcomes), self._study.baseline), time.monotonic()
        if not self._limits.stop_when or told == self._judged or (since < self._judge_next and not at_last):
            return ""
        reason = reached(self._limits.stop_when, self._study.history())
        took_s = time.monotonic() - since
        self._judged, self._judge_next = told, since + SELDOM * took_s
        return reason

    def _familiar(self, work: Work, lane: Lane) -> Lane:
        """Who may have graphs of the architecture and has not much before him; else `lane`, which waits for nobody."""
        if not lane.works or "graphs" in self._study.plan.bench.without:
            return lane
        knowing = [other for other in self._lanes if work.genotypes[0].architecture in other.met]
        return lane if lane in knowing else next((other for other in knowing if len(other.works) <= AHEAD), lane)

    def _proposed(self, lane: Lane) -> Group | None:
        """The study's next group; that others were told, which need not be tried, is said."""
        told = set(self._study.outcomes)
        group: Group | SpaceExhausted | None
        try:
            group = self._study.next_group(self._limits.trials)
        except SpaceExhausted as exhausted:
            group = exhausted
        for number in sorted(self._study.outcomes.keys() - told):
            outcome = to_json(self._study.outcomes[number])
            place = {"lane": self._lanes.index(lane), "trials": [number], "trial": number, "form": 0}
            self._on_event({"event": "told", "outcome": outcome, "counts": self._counts, **place})
        if isinstance(group, SpaceExhausted):
            raise group
        return group

    def _begin(self, lane: Lane, work: Work) -> None:
        """Give a lane something to do, after what it is at."""
        lane.works.append(work)
        lane.met.add(work.genotypes[0].architecture)
        if work is lane.work:
            self._announce(lane, work)
        arguments = {"bench": work.bench, "genotypes": [to_json(genotype) for genotype in work.genotypes]}
        lane.submit(f"{self._study.plan.evaluator}:evaluate", arguments, self._limits, partial(self._answer, work))

    def _announce(self, lane: Lane, work: Work) -> None:
        work.since = time.monotonic()
        self._keep_clock("")
        self._say(lane, {"event": "group", "genotypes": [to_json(genotype) for genotype in work.genotypes]})

    def _receive(self, wait_s: float = NEWS_S) -> bool:
        """Take in the next news; whether there were any."""
        self._watch_quiet()
        if self.wound_down:
            for each in self._lanes:
                each.abandon.set()
        news = self._heard(wait_s)
        if news is None or news.lane.warmed(news.kind):
            return news is not None
        lane, work = news.lane, news.lane.work
        assert work, "a lane speaks only of its work"
        if news.kind == "event":
            self._hear(lane, work, news)
        elif news.kind == "done":
            self._fail(lane, work, work.open, "the worker ended without an outcome")
            self._end(lane)
        else:
            self._bury(lane, work, news.what)
        return True

    def _heard(self, timeout_s: float) -> News | None:
        """The next news but that a call was taken up, None where there is none for a while; the clock knows of it."""
        try:
            news = self._news.get(timeout=timeout_s)
        except queue.Empty:
            self._clock.tick(time.monotonic())
            return None
        self._clock.tick(news.at)
        stage = {"begin": "start", "done": IDLE, "error": IDLE}.get(news.kind)
        if news.kind == "event" and news.what["event"] == "stage":
            stage = IDLE if waits(news.what) else news.what["stage"]
        if stage is not None:
            self._clock.turn(self._lanes.index(news.lane), stage, news.at)
        return None if news.kind == "begin" else news

    def _answer(self, work: Work, question: Event) -> Any:
        """Why a training ends at a rung, or which forms need not be deployed (`objectives.evaluate`); what is no trial
        goes all the way.
        """
        if not isinstance(work.names[0], int):
            return None
        if question["ask"] == "deploy":
            return self._study.beaten(question)
        return self._study.stop(work.genotypes[0].group, question)

    def _hear(self, lane: Lane, work: Work, news: News) -> None:
        event = news.what
        if event["event"] == "stage":
            begun = event["stage"], event.get("form")
            work.since = work.since if begun == (work.stage, work.form) else news.at  # else it tells how far it is
            work.stage, work.form = begun
            self._keep_quiet(lane, bool(event.get("quiet")) and not waits(event) and not work.hurried)
        if event["event"] == "epoch":
            self._clock.sums["sequences"] += event.get("sequences", 0)
            self._clock.sums["epochs_s"] += event.get("seconds", 0.0)
        self._say(lane, event)
        if event["event"] == "outcome":
            outcome = from_json(Outcome, event["outcome"])
            self._gave_out = 0 if outcome.measurement else self._gave_out
            self._settle(lane, work, event["form"], outcome)
            lane.taken_in()

    def _bury(self, lane: Lane, work: Work, error: BaseException) -> None:
        """A call ended badly: the form it was at fails, or all where they shared the stage; the rest go again. A worker
        that died of what they shared is no fault of theirs, unless it happens again. Where a worker cannot even begin,
        or a device measures nothing, all are tried again, and given up in the end. Raises what `_give_out` does.
        """
        if not isinstance(error, BriskError) or (isinstance(error, InputError) and not isinstance(error, DeviceError)):
            raise error
        if isinstance(error, Abandoned):
            self._end(lane)
            return
        if isinstance(error, CallFailed) and disk_trouble(error):
            raise error
        if isinstance(error, CandidateError):
            work.stage, work.form = error.stage, None
        lost: set[Any] = {work.form} & work.open if isinstance(error, ChildDied) else set()
        reason = error.reason if isinstance(error, ChildDied | CandidateError) else str(error)
        how = error.kind if isinstance(error, ChildDied) else ""
        # Of the time for all, training may have taken most; models that the worker keeps fill memory too; and a SIGKILL
        # comes from elsewhere.
        its_own = (how == "crashed" and "SIGKILL" not in reason) or reason.startswith(STAGE_ENDS)
        for form in lost if its_own else ():
            self._study.died(work.genotypes[form], work.stage, reason)
        begun = work.stage not in UNBEGUN and not isinstance(error, DeviceError)
        unready = work.unready + (not begun)
        if unready == UNREADY and self._given_out(work, reason):
            self._end(lane)
            return
        if lost or unready == UNREADY or (begun and not (how in ("crashed", "memory") and work.tried < TRIES)):
            self._fail(lane, work, lost or work.open, reason)
        rest = sorted(work.open)
        self._end(lane)
        if isinstance(error, ChildDied):
            lane.met = {each.genotypes[0].architecture for each in lane.works}
        if rest:
            names, genotypes = tuple(work.names[i] for i in rest), tuple(work.genotypes[i] for i in rest)
            tried = work.tried + (begun and not lost)
            self._begin(lane, Work(names, genotypes, work.bench, tried=tried, unready=unready))

    def _given_out(self, work: Work, reason: str) -> bool:
        """Whether a work for which nothing could be done is left to the next session, with a word: what is no trial and
        no baseline is. Raises StudyError where that is hardly the work's fault: it is the second trial in a row, with
        no measurement between, or nothing ever came of any.
        """
        if isinstance(work.names[0], str) and work.names[0] != "baseline":
            text = f"{', '.join(map(str, work.names))} not made: {reason}; the same command tries again"
            self._on_event({"event": "warning", "text": text})
            return True
        self._gave_out += 1
        if self._gave_out > 1 or not self._study.outcomes:
            raise StudyError(
                f"no candidate can be evaluated: {reason}; the worker's log in {self._study.home / 'logs'} may tell, "
                "and fewer --workers need less memory. Everything finished is kept, the same command goes on"
            )
        return False

    def _fail(self, lane: Lane, work: Work, forms: set[Any], reason: str) -> None:
        for form in sorted(forms):
            seconds = {work.stage: time.monotonic() - work.since} if form == min(forms) else {}
            outcome = Outcome(work.genotypes[form], "failed", stage=work.stage, reason=reason, seconds=seconds)
            self._settle(lane, work, form, outcome)

    def _settle(self, lane: Lane, work: Work, form: int, outcome: Outcome) -> None:
        if form not in work.open:
            return
        work.open.remove(form)
        name = work.names[form]
        if isinstance(name, int):
            outcome = self._study.tell(name, outcome)
        elif name == "baseline":
            self._judge_baseline(outcome)
        else:
            outcome = self._study.keep_beside(name, outcome)
        self._say(lane, {"event": "told", "form": form, "outcome": to_json(outcome), "counts": self._counts})

    @property
    def _counts(self) -> dict[str, int]:
        return {"told": len(self._study.outcomes), "of": self._limits.trials}

    def _end(self, lane: Lane) -> None:
        lane.works.popleft()
        self._keep_quiet(lane, False)
        if lane.work:
            self._announce(lane, lane.work)
        else:
            self._on_event({"event": "idle", "lane": self._lanes.index(lane)})
            self._keep_clock("")

    def _keep_quiet(self, lane: Lane, wanted: bool) -> None:
        """Have the other workers stand still while this one measures what they would disturb."""
        if wanted and self._quiet is None:
            self._clock.tick(time.monotonic())  # they move till they are stopped
            self._quiet, self._quiet_since = lane, time.monotonic()
            self._clock.quiet = self._lanes.index(lane)
            for other in self._lanes:
                if other is not lane:
                    other.child.pause()
        elif not wanted and self._quiet is lane:
            self._clock.tick(time.monotonic())
            self._quiet = self._clock.quiet = None
            for other in self._lanes:
                other.child.resume()

    def _watch_quiet(self) -> None:
        """Whatever became of a measurement, nobody stands still for ever."""
        if self._quiet and time.monotonic() - self._quiet_since > QUIET_S:
            self._on_event({"event": "warning", "text": f"a measurement took over {QUIET_S:.0f} s; the others go on"})
            if self._quiet.work:
                self._quiet.work.hurried = True
            self._keep_quiet(self._quiet, False)

    def _say(self, lane: Lane, event: Event) -> None:
        assert lane.work
        names, form = lane.work.names, event.get("form")
        place = {"lane": self._lanes.index(lane), "trials": list(names)}
        self._on_event({**event, **place, "trial": None if form is None else names[form]})

    def _keep_clock(self, ended: str) -> None:
        at_work = [lane.work for lane in self._lanes if lane.work]
        names = [
            named_at_work(work.names[form], work.genotypes[form]) for work in at_work for form in sorted(work.open)
        ]
        self._study.keep_clock({**self._clock.sums, "ended": ended}, [] if ended else names)


def shares(workers: int) -> list[list[int]]:
    """The cores that this process may use, shared out among so many workers; more workers than cores share one."""
    cores = sorted(os.sched_getaffinity(0))
    return [cores[index::workers] or [cores[index % len(cores)]] for index in range(workers)]
