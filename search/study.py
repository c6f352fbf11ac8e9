"""A study in its storage: what to try next, what came of it, and how it goes on after any kind of end.

Optuna proposes and remembers; this module alone talks to it, from one thread of one driver process, which holds the
study's lock. All else that a study must know is kept in user attributes, so that a home is complete by itself.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FixedTrial, Trial, TrialState

from objectives.bench import Bench
from objectives.latency.devices import reached
from objectives.objective import OBJECTIVES, learned_cost, over_bound, violations
from objectives.outcome import FORETOLD, Outcome
from search.crashes import Crashes
from search.ensemble import best
from search.history import BESIDE, History, Plan, assembled, clock_of, database, known_bench, known_space
from search.lock import locked, on_disk
from search.opening import opened, take_plan
from search.prior import Prior, fitted
from search.samplers import AUTO, SeededSampler, named
from search.surrogate import Surrogate
from search.warm import missing, outside, points
from search.worth import Trainings
from spaces.errors import SpecError, StudyError
from spaces.genotype import Deployment, Genotype
from spaces.record import digest, from_json, to_json
from spaces.signature import Signature
from spaces.space import Space

PATIENCE = 5  # times that a group may be at work when its driver is killed: it may be what kills the machine
STRUCK = f"it was at work {PATIENCE} times when the study was killed"
ANEW = 1.05  # times as many outcomes, and the latency model is fitted again
AT_ONCE = 20  # proposals that may be told as they are foretold, before the driver has a look at the rest
DUPLICATES = 100  # proposals in a row that are known already, after which the space counts as exhausted


class SpaceExhausted(Exception):
    """Whatever the sampler proposes has been tried."""


@dataclass(frozen=True)
class Group:
    """Trials that share one trained model: Optuna's numbers and what each stands for."""

    numbers: tuple[int, ...]
    genotypes: tuple[Genotype, ...]


def named_at_work(name: int | str, genotype: Genotype) -> int | str:
    """What a study notes of what is at work: a trial's number, or a name with what it stands for, which may change."""
    return name if isinstance(name, int) else f"{name} {genotype.key}"


class Study:
    """A study that this process drives. Make one with `start`; `close` it, or use it as a context."""

    def __init__(self, home: Path, plan: Plan, kept: optuna.Study, held: contextlib.ExitStack) -> None:
        self.home = home
        self.plan = plan
        self.name = kept.study_name
        self._optuna = kept
        self.prepared: dict[str, Any] = self._attributes.get("prepared", {})  # what `prepare` gave; {} before
        self._at_once = getattr(kept._storage, "at_once", contextlib.nullcontext)  # in memory nothing is written
        self._held = held
        self._trials: dict[int, Trial] = {}  # asked and not told
        self._asked: dict[int, Genotype] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._known: dict[str, int] = {}  # genotype's key -> the trial that has it
        self._rest_of: set[int] = set()  # trials of earlier sessions, which had no room for the model's other forms
        self._cut_short: list[Genotype] = []  # those of them that were told
        self._adopted: list[Group] | None = None  # what a dead driver left; None until looked for
        self._trainings = Trainings(plan.objectives)
        self._crashes = Crashes(home)
        self._prior: tuple[int, Prior | None] | None = None  # fitted to so many outcomes
        self._struck: dict[str, int] = {}  # how often something was at work when a driver was killed, by its name

    @classmethod
    def start(cls, home: Path, name: str, plan: Plan) -> Study:
        """Begin the study, or go on with it.

        Raises StudyError where another process drives it, or where it was started with another plan.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise StudyError(f"a study's name is made of letters, digits, '.', '_' and '-', but got {name!r}")
        sampler = SeededSampler(named(plan.sampler), plan.bench.seed)
        with contextlib.ExitStack() as held:
            held.callback(os.close, locked(home, name))
            kept = held.enter_context(opened(home, name, sampler, len(plan.objectives)))
            take_plan(kept, plan)
            study = cls(home, plan, kept, held.pop_all())
        try:
            study._recall()
            if "beginning" not in study._attributes:
                missing(plan.warm_start, home)
        except BaseException:
            study.close()
            raise
        return study

    def close(self) -> None:
        """Let go of the study; what runs stays running in the storage and is taken up by the next start."""
        self._held.close()

    def __enter__(self) -> Study:
        """The study itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    # What is known ---------------------------------------------------------------------------------------------------

    @property
    def bench(self) -> Bench:
        """The plan's bench, with what is known of data and model since they were looked at, and who teaches."""
        return known_bench(self.plan, self.prepared, self.ensemble)

    @property
    def ensemble(self) -> tuple[Genotype, ...]:
        """The models that teach every distilled candidate of this study; () before `gather_ensemble` settled them."""
        return tuple(from_json(Genotype, plain) for plain in self._attributes.get("ensemble", []))

    @property
    def baseline(self) -> Outcome | None:
        """The baseline's outcome; it is none of the trials, because one without parameters would blind the samplers."""
        kept = self._attributes.get("baseline")
        return from_json(Outcome, kept) if kept else None

    @property
    def rewrites(self) -> dict[str, Outcome]:
        """What came of the user's model rewritten, by name; no trials either, and for the same reason."""
        kept = self._attributes.get("rewrites", {})
        return {name: from_json(Outcome, plain) for name, plain in kept.items()}

    @property
    def clock(self) -> dict[str, Any]:
        """What `keep_clock` kept last."""
        return clock_of(self._attributes)

    @property
    def outcomes(self) -> Mapping[int, Outcome]:
        """What was told, by trial number; duplicates left out."""
        return self._outcomes

    def history(self) -> History:
        """All that the study holds, as the storage has it."""
        trials = self._optuna.get_trials(deepcopy=False)
        rows = ((trial.number, trial.state.name, trial.user_attrs) for trial in trials)
        return assembled(self.name, self._attributes, rows)

    @property
    def _attributes(self) -> dict[str, Any]:
        """What is kept beside the trials, to be read only: Optuna's own way to it copies all of it each time."""
        return self._optuna._storage.get_study_user_attrs(self._optuna._study_id)

    # What is kept beside the trials ----------------------------------------------------------------------------------

    def keep_prepared(self, prepared: Mapping[str, Any]) -> None:
        """Keep what data and model are; one mended after a failed start is looked at anew.

        Raises StudyError where the study was begun on other data.
        """
        before = self.prepared
        if before and before["digest"] != prepared["digest"]:
            raise StudyError(
                f"the data of study {self.name!r} have changed since it was started (digest {before['digest']} then, "
                f"{prepared['digest']} now); give a study of the new data a name of its own with --name"
            )
        known_space(self.plan, prepared)  # raises where it makes no sense
        if not (before and (self._outcomes or self.rewrites)):
            self._optuna.set_user_attr("prepared", dict(prepared))
            self.prepared = dict(prepared)

    def keep_baseline(self, outcome: Outcome) -> None:
        """Keep what every speedup and drop is measured against."""
        self._optuna.set_user_attr("baseline", to_json(outcome))

    def rewrites_left(self) -> dict[str, Genotype]:
        """The forms of the user's model that were not tried yet; none where the baseline is not the user's."""
        forms = self.prepared.get("model", {}).get("forms", [])
        name = self.plan.baseline.architecture.model if self.plan.baseline else ""
        asked = {
            f"rewrite-{index}": Genotype.of_model(name, from_json(Deployment, form))
            for index, form in enumerate(forms, start=1)
        }
        return {key: genotype for key, genotype in asked.items() if key not in self.rewrites}

    def keep_beside(self, name: str, outcome: Outcome) -> Outcome:
        """Keep what came of a rewrite, a twin, a repeat or a batch, in place of an earlier one of that name.

        A form of the user's model is judged like a trial, for it may be on the front; gives the outcome as it is kept.
        """
        kind = BESIDE[name.partition("-")[0]]
        outcome = self._judged(outcome) if kind == "rewrites" else outcome
        kept = self._attributes.get(kind, {})
        self._optuna.set_user_attr(kind, {**kept, name: to_json(outcome)})
        return outcome

    def keep_final(self, outcomes: Mapping[int | str, Outcome]) -> None:
        """Keep the front and "baseline" as measured again at the end; they hold until another trial is told."""
        plain = {str(key): to_json(outcome) for key, outcome in outcomes.items()}
        self._optuna.set_user_attr("final", {"told": len(self._outcomes), "outcomes": plain})

    def keep_clock(self, clock: Mapping[str, Any], at_work: Sequence[int | str] = ()) -> None:
        """Keep how long the study has run so far, over all its sessions, and why this one ended; or, while it runs,
        what is at work. All that was told is on the disk then.
        """
        self._optuna.set_user_attr("clock", {**self.clock, **clock, "at_work": [*at_work], "struck": self._struck})
        on_disk(database(self.home))

    # What to try next ------------------------------------------------------------------------------------------------

    def next_group(self, trials: int) -> Group | None:
        """What to evaluate next, first of all what a dead driver left; None once `trials` are told or under way, and a
        group of nobody where all proposals for a while could be told without a trial: ask again.

        Every trial of the group is RUNNING in the storage, its genotype with it, before this returns; all are put there
        at one stroke. Raises SpaceExhausted.
        """
        if self._adopted is None:
            self._adopted = self._adopt()
        if self._adopted:
            return self._adopted.pop(0)
        known_already, foretold = 0, 0
        while known_already < DUPLICATES:
            if foretold == AT_ONCE:
                return Group((), ())
            told = len(self._outcomes)
            room = trials - told - len(self._asked)
            if room <= 0:
                return None
            with self._at_once():
                group = self._form(self._propose(), room)
            if group:
                return group
            if len(self._outcomes) == told:
                known_already += 1
            else:
                known_already, foretold = 0, foretold + 1
        raise SpaceExhausted

    def strikes(self, name: str, genotype: Genotype) -> int:
        """How often what is no trial was at work when a driver was killed."""
        return self._struck.get(str(named_at_work(name, genotype)), 0)

    def forgive(self, name: str, genotype: Genotype) -> None:
        """Count anew how often what is no trial is at work when a driver is killed."""
        self._struck.pop(str(named_at_work(name, genotype)), None)

    def given_up(self, name: str, genotype: Genotype) -> bool:
        """Whether what is no trial was at work too often when a driver was killed; it is kept as failed then."""
        if self.strikes(name, genotype) < PATIENCE:
            return False
        self.keep_beside(name, Outcome(genotype, "failed", stage="start", reason=STRUCK))
        return True

    def gather_ensemble(self) -> bool:
        """Settle whose mean teaches from now on, if the plan wants that and enough is known; whether this did."""
        if not self._gathering:
            return False
        may_teach = [self.baseline] if self.plan.bench.teacher and self.baseline else []
        found = best([*may_teach, *self._outcomes.values()], self.plan.bench.training.ensemble)
        if found:
            self._optuna.set_user_attr("ensemble", [to_json(genotype) for genotype in found])
        return bool(found)

    def _propose(self) -> Trial:
        """The next trial: first forms that there was no room for, then those that the search begins with; none that is
        distilled while there is no teacher.
        """
        for genotype in self._cut_short:
            for sibling in self._siblings(genotype):
                return self._started(sibling)
        for genotype in self._beginning:
            if genotype.key not in self._known and not self._crashes.known(genotype):
                return self._started(genotype)
        if self._gathering:
            self._optuna.enqueue_trial({"distillation": 0.0})
        elif promising := self._promising():
            return self._started(promising)
        return self._optuna.ask()

    def _promising(self) -> Genotype | None:
        """Half of the time, and where the last proposal was no news, what a model of the outcomes proposes
        (`search.surrogate`), if the plan leaves it to us.
        """
        trials = self._optuna.get_trials(deepcopy=False)
        known_already = bool(trials and {"duplicate_of", "skipped"} & trials[-1].user_attrs.keys())
        luck = int(digest(self.plan.bench.seed, len(trials))[:8], 16)
        if self.plan.sampler != AUTO or (luck % 2 and not known_already):
            return None
        return self._informed().proposed(self._asked.values(), luck)

    def _informed(self) -> Surrogate:
        """The model of the outcomes, once it has learned of them all."""
        for outcome in islice(self._outcomes.values(), self._surrogate.told, None):
            self._surrogate.learn(outcome)
        return self._surrogate

    @functools.cached_property
    def _surrogate(self) -> Surrogate:
        return Surrogate(
            self._space,
            self._signature,
            self.plan.objectives,
            self._teaching,
            trivial_error=float(self.prepared["trivial_error"]),
            refused=self._crashes.known,
            alone=self._alone,
        )

    @functools.cached_property
    def _beginning(self) -> list[Genotype]:
        """The points that the search begins with, settled with its first proposal."""
        if "beginning" not in self._attributes:
            found = []
            if not self._known:
                asked = (self.plan.warm_start, self.home, self.plan.bench.root, self._space, self._signature)
                known = points(*asked, self._teaching)
                found = [one for one in dict.fromkeys(known) if self._within(one)]
            self._optuna.set_user_attr("beginning", [to_json(genotype) for genotype in found])
        return [from_json(Genotype, plain) for plain in self._attributes["beginning"]]

    def left_out(self) -> list[str]:
        """What is said of the user's points that lie outside the space, before the search begins."""
        if "beginning" in self._attributes:
            return []
        return list(outside(self.plan.warm_start, self.plan.bench.root, self._space, self._signature, self._teaching))

    def elsewhere(self) -> list[str]:
        """What is said where the study goes on with another processor or runtime than it was begun with."""
        asked = self.plan.bench
        if self.plan.rehearsal:
            return []
        with reached(asked.device) as tool:
            now, before = tool.fingerprint(asked.conditions), self._attributes.get("fingerprint")
        if before is None:
            self._optuna.set_user_attr("fingerprint", now)
        if before in (None, now):
            return []
        return [
            "this study was begun on another machine, or with another runtime: its latencies and those from now on do "
            "not compare; a study with a --name of its own measures all anew"
        ]

    def _within(self, genotype: Genotype) -> bool:
        """Whether a point lies in the space, and needs no teacher that there is not."""
        with contextlib.suppress(SpecError):
            self._space.parameters(genotype, self._signature, **self._teaching)
            return not (self._gathering and genotype.training.distillation)
        return False

    @property
    def _gathering(self) -> bool:
        return self.plan.bench.training.teacher == "ensemble" and not self.ensemble

    def _form(self, trial: Trial, room: int) -> Group | None:
        """Make a proposal the first of a group of at most `room`; None, and told so, where it is known already."""
        genotype = self._sample(trial)
        if (twin := self._twin(genotype)) is not None:
            trial.set_user_attr("duplicate_of", twin)
            self._optuna.tell(trial, state=TrialState.FAIL)
            return None
        if reason := self._crashes.known(genotype):
            trial.set_user_attr("skipped", reason)
            self._optuna.tell(trial, state=TrialState.FAIL)
            return None
        self._note(trial, genotype)
        trial.set_user_attr("genotype", to_json(genotype))
        if foretold := self._hopeless(genotype):
            self.tell(trial.number, foretold)
            return None
        siblings = self._siblings(genotype)
        if len(siblings) >= room:
            trial.set_user_attr("cut_short", True)  # a session with more room takes up the rest
        group = {trial.number: genotype}
        for sibling in siblings[: room - 1]:
            beside = self._started(sibling, lead=trial.number, genotype=to_json(sibling))
            self._note(beside, sibling)
            group[beside.number] = sibling
        return Group(tuple(group), tuple(group.values()))

    def _twin(self, genotype: Genotype) -> int | None:
        """The trial of the same candidate, or of its model trained at nearly its rate, which would tell nothing new."""
        first = self._informed().tried(genotype, self._asked.values()) or genotype
        meant = genotype in self._beginning or genotype.group in {one.group for one in self._cut_short}
        if first.group == genotype.group or meant:
            first = genotype
        return self._known.get(first.key)

    @property
    def _alone(self) -> bool:
        """Whether each form goes its own way."""
        return "siblings" in self.plan.bench.without

    def _siblings(self, genotype: Genotype) -> list[Genotype]:
        """The other forms that its trained model can be served in and that are worth a try."""
        if self._alone:
            return []
        served = self._space.deployments(genotype.architecture, self._signature, genotype.training.qat)
        others = [replace(genotype, deployment=deployment) for deployment in served]
        return [
            other
            for other in others
            if other != genotype
            and other.key not in self._known
            and not self._crashes.known(other)
            and not self._hopeless(other)
        ]

    def _hopeless(self, genotype: Genotype) -> Outcome | None:
        """The outcome of a candidate that is foretold to be far over its bound (`search.prior`)."""
        bound = self.plan.bench.bounds.get("latency")
        if bound is None or "prior" in self.plan.bench.without or genotype.architecture.hypermodel:
            return None
        tried = [number for number, outcome in self._outcomes.items() if outcome.stage != FORETOLD]
        # What it is fitted to depends on their number alone, not on how often a study was killed.
        first = math.floor(ANEW ** math.floor(math.log(len(tried), ANEW))) if tried else 0
        if self._prior is None or self._prior[0] != first:
            told = [self._outcomes[number] for number in sorted(tried)[:first]]
            self._prior = (first, fitted(told, self._signature))
        prior = self._prior[1]
        if prior is None or not prior.hopeless(genotype, self._signature, bound):
            return None
        ms = prior.predict_ms(genotype, self._signature)
        reason = f"foretold to take {ms / genotype.deployment.batch:.3g} ms, over the bound of {bound:g}; not tried"
        return Outcome(genotype, "infeasible", untrained_ms=ms, stage=FORETOLD, reason=reason)

    def _started(self, of: Genotype, **kept: Any) -> Trial:
        """A trial of a genotype, RUNNING, with all its parameters: no sampler is asked."""
        fixed = FixedTrial(self._space.parameters(of, self._signature, **self._teaching))
        self._sample(fixed)
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING, params=fixed.params, distributions=fixed.distributions, user_attrs=kept
        )
        self._optuna._thread_local.cached_all_trials = None  # as `ask` does: NSGA-II reads its generations off them
        storage = self._optuna._storage  # Study.add_trial does not tell which trial it made
        return Trial(self._optuna, storage.create_new_trial(self._optuna._study_id, template_trial=template))

    def _sample(self, trial: Trial | FixedTrial) -> Genotype:
        return self._space.sample(trial, self._signature, **self._teaching)

    def _note(self, trial: Trial, genotype: Genotype) -> None:
        self._trials[trial.number] = trial
        self._asked[trial.number] = genotype
        self._known[genotype.key] = trial.number

    @property
    def _space(self) -> Space:
        return known_space(self.plan, self.prepared)

    @property
    def _signature(self) -> Signature:
        return from_json(Signature, self.prepared["signature"])

    @property
    def _teaching(self) -> dict[str, tuple[float, ...]]:
        training = self.plan.bench.training
        return {"distillation": training.distillation, "hints": training.hints}

    # What is worth going on with ------------------------------------------------------------------------------------

    def stop(self, group: str, question: Mapping[str, Any]) -> str:
        """Why the training of a group ends at a rung, "" where it goes on; the question is of `objectives.evaluate`.

        Any thread may ask: nothing of Optuna is touched.
        """
        return "" if "halving" in self.plan.bench.without else self._trainings.stop(group, question, self._outcomes)

    def beaten(self, question: Mapping[str, Any]) -> list[bool]:
        """Which forms of a trained model need not be deployed; the question is of `objectives.evaluate`. As for `stop`,
        any thread may ask.
        """
        return self._trainings.beaten([from_json(Outcome, plain) for plain in question["forms"]], self._outcomes)

    # What came of it -------------------------------------------------------------------------------------------------

    def tell(self, number: int, outcome: Outcome) -> Outcome:
        """Keep what came of a trial and let the sampler learn of it; gives the outcome as it was judged.

        A finished candidate that is over a bound is infeasible; one with an objective unknown has failed, and whatever
        has a figure that is no number.
        """
        outcome = self._judged(outcome)
        state, values = self._told(outcome)
        trial = self._trials.pop(number)
        with self._at_once():
            trial.set_user_attr("outcome", to_json(outcome))
            if state != TrialState.FAIL:
                for name, over in self._constraints(outcome).items():
                    trial.set_constraint(name, over)
            self._optuna.tell(number, values, state=state)
        self._outcomes[number] = outcome
        self._take_up_rest(number)
        del self._asked[number]
        if outcome.weighed:
            self._crashes.well(outcome.genotype)
        if not any(other.group == outcome.genotype.group for other in self._asked.values()):
            self._trainings.over(outcome.genotype.group)
        return outcome

    def withdraw(self, numbers: Iterable[int]) -> None:
        """Take trials back that were not begun; they may be proposed again."""
        with self._at_once():
            for number in numbers:
                trial = self._trials.pop(number)
                trial.set_user_attr("withdrawn", True)
                self._optuna.tell(number, state=TrialState.FAIL)
                del self._known[self._asked.pop(number).key]

    def _judged(self, outcome: Outcome) -> Outcome:
        if outcome.state not in ("complete", "infeasible"):
            return outcome
        for name in (*self.plan.objectives, *self.plan.bench.bounds):
            value = OBJECTIVES[name].read(outcome)
            if not math.isfinite(value) if value is not None else outcome.state == "complete":
                return replace(outcome, state="failed", stage="measure", reason=f"its {name} is {value}, not a number")
        reason = over_bound(outcome, self.plan.bench.bounds) if outcome.state == "complete" else ""
        return replace(outcome, state="infeasible", reason=reason) if reason else outcome

    def died(self, genotype: Genotype, stage: str, reason: str) -> None:
        """Learn that a candidate killed its process."""
        self._crashes.died(genotype, stage, reason)

    def _told(self, outcome: Outcome) -> tuple[TrialState, list[float] | None]:
        """A candidate that is not deployed is told with the error of its model, an infeasible one with what is known,
        and the worst for the rest, if there is a worst yet: all samplers learn of it.
        """
        if outcome.state == "stopped" and not outcome.weighed:
            return TrialState.PRUNED, None
        if outcome.state == "failed":
            return TrialState.FAIL, None
        values = [self._cost(name, outcome) for name in self.plan.objectives]
        known = [value for value in values if value is not None]
        return (TrialState.COMPLETE, known) if len(known) == len(values) else (TrialState.PRUNED, None)

    def _cost(self, name: str, outcome: Outcome) -> float | None:
        value = learned_cost(outcome, name)
        if value is not None and math.isfinite(value):
            return value
        if name == "quality":
            return float(self.prepared["trivial_error"])
        told = [OBJECTIVES[name].read(other) for other in self._outcomes.values()]
        known = [value for value in told if value is not None and math.isfinite(value)]
        bound = self.plan.bench.bounds.get(name)
        return max([*known, *([2 * bound] if bound is not None else [])], default=None)

    def _constraints(self, outcome: Outcome) -> dict[str, float]:
        """Every bound's violation, on every trial: GP refuses a study in which one is missing."""
        over = dict.fromkeys(self.plan.bench.bounds, 0.0) | violations(outcome, self.plan.bench.bounds)
        if outcome.state == "infeasible" and over and max(over.values()) <= 0:
            over[next(iter(over))] = 1.0  # refused for what is not among its figures
        return over

    # What was left ---------------------------------------------------------------------------------------------------

    def _recall(self) -> None:
        """Take up what the storage has."""
        kept_clock: dict[str, Any] = self._attributes.get("clock", {})
        self._struck = {**kept_clock.get("struck", {})}
        if at_work := kept_clock.get("at_work"):  # the last session was killed, then
            self._struck |= {str(number): self._struck.get(str(number), 0) + 1 for number in at_work}
            self.keep_clock({})
        told = []
        for frozen in self._optuna.get_trials(deepcopy=False):
            kept = frozen.user_attrs
            if "genotype" in kept and "withdrawn" not in kept:
                if "cut_short" in kept:
                    self._rest_of.add(frozen.number)
                self._known[from_json(Genotype, kept["genotype"]).key] = frozen.number
            if frozen.state.is_finished() and "outcome" in kept:
                told.append((frozen.datetime_complete or datetime.min, frozen.number, kept["outcome"]))
        for _, number, outcome in sorted(told, key=lambda one: one[:2]):  # in the order in which they were told
            self._outcomes[number] = from_json(Outcome, outcome)
            self._take_up_rest(number)

    def _take_up_rest(self, number: int) -> None:
        """Have the other forms of a model that was made tried, if there was no room for them."""
        if number in self._rest_of and self._outcomes[number].state != "failed":
            self._cut_short.append(self._outcomes[number].genotype)

    def _adopt(self) -> list[Group]:
        """The groups that a dead driver left unfinished; what an older brisk wrote bit by bit, and not whole, fails."""
        while any(trial.state == TrialState.WAITING for trial in self._optuna.get_trials(deepcopy=False)):
            self._optuna.ask()
        groups: dict[int, dict[int, Genotype]] = {}
        for frozen in self._optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "genotype" not in frozen.user_attrs or "withdrawn" in frozen.user_attrs:
                self._optuna.tell(frozen.number, state=TrialState.FAIL)
                continue
            genotype = from_json(Genotype, frozen.user_attrs["genotype"])
            self._note(Trial(self._optuna, frozen._trial_id), genotype)  # Optuna has no public way to one
            groups.setdefault(frozen.user_attrs.get("lead", frozen.number), {})[frozen.number] = genotype
        return self._without_suspects([Group(tuple(group), tuple(group.values())) for group in groups.values()])

    def _without_suspects(self, groups: list[Group]) -> list[Group]:
        """Those that are to be gone on with: what was at work too often when a driver was killed is given up."""
        suspects = [
            group for group in groups if any(self._struck.get(str(one), 0) >= PATIENCE for one in group.numbers)
        ]
        for group in suspects:
            self._give_up(group)
        return [group for group in groups if group not in suspects]

    def _give_up(self, group: Group) -> None:
        for number, genotype in zip(group.numbers, group.genotypes, strict=True):
            self.tell(number, Outcome(genotype, "failed", stage="start", reason=STRUCK))
