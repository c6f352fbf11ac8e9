"""How the next candidate is proposed: Optuna's samplers by name, each draw seeded by what it is a draw of."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from spaces.errors import SpecError, nearest
from spaces.record import digest

Make = Callable[[int], BaseSampler]
"""Makes a sampler of one kind from a seed."""

POPULATION = 24  # of NSGA-II: a study has tens to hundreds of trials, and Optuna's 50 would hardly see a generation


def _gp(seed: int) -> BaseSampler:
    return GPSampler(seed=seed, n_startup_trials=10)


SEEN = 500  # trials that TPE looks back on: it sorts them anew for each parameter


class RecentTPESampler(TPESampler):
    """TPE that looks back on the newest `SEEN` trials, so that the cost of a proposal stops growing; and of trials that
    came to the same values on the newest alone.

    A model that is trained at another rate has the latency and size that it had, and often the very error. Neither
    dominates the other: such copies fill up what TPE takes for good, and it proposes more of them.
    """

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As TPE does, of what came of those trials."""
        recent = cast(optuna.Study, _Recent(study))
        return super().sample_independent(recent, trial, param_name, param_distribution)


class _Recent:
    """A study as it looks to who forgets: Optuna has no public way to show a sampler a part of the trials."""

    def __init__(self, study: optuna.Study) -> None:
        self._whole = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def _get_trials(self, *args: Any, **options: Any) -> list[FrozenTrial]:
        recent = self._whole._get_trials(*args, **options)[-SEEN:]
        newest = {tuple(trial.values) if trial.values else trial.number: trial for trial in recent}
        return sorted(newest.values(), key=lambda trial: trial.number)


AUTO = "auto"
"""The default: in turn by lot, TPE and a model of what was found (`search.surrogate`)."""

SAMPLERS: dict[str, Make] = {
    AUTO: lambda seed: RecentTPESampler(seed=seed),
    "tpe": lambda seed: RecentTPESampler(seed=seed),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=POPULATION),
    "gp": _gp,
    "random": lambda seed: RandomSampler(seed=seed),
}


def named(name: str) -> Make:
    """The maker of a sampler: a row of SAMPLERS, or "module:factory", called with a seed.

    Raises SpecError where the name is unknown, or what the sampler needs is not installed.
    """
    if name == "gp" and importlib.util.find_spec("torch") is None:
        raise SpecError(
            'search.sampler: "gp" needs the package torch, which is not installed; '
            'run `pip install torch`, or take "auto", "tpe", "nsga2" or "random"'
        )
    if name in SAMPLERS:
        return SAMPLERS[name]
    if ":" not in name:
        raise SpecError(f'search.sampler: got {name!r}; {nearest(name, SAMPLERS)}, or give "module:factory"')
    module, _, attribute = name.partition(":")
    try:
        make = _by_seed(getattr(importlib.import_module(module), attribute))
        made = make(0)
    except Exception as error:  # whatever the user's code raises
        raise SpecError(
            f"search.sampler: {name!r} cannot be had: {type(error).__name__}: {error}; it must be importable, and give "
            "one of Optuna's samplers when it is called with a seed"
        ) from error
    if not isinstance(made, BaseSampler):
        raise SpecError(
            f"search.sampler: {name!r}, called with a seed, gives a {type(made).__name__}, none of Optuna's samplers"
        )
    return make


def _by_seed(factory: Any) -> Make:
    """One of Optuna's own takes its seed by name alone, a user's perhaps by place."""
    try:
        taken = inspect.signature(factory).parameters
        optional = all(one.default is not one.empty for one in taken.values() if one.kind < one.VAR_POSITIONAL)
        rest = any(one.kind is one.VAR_KEYWORD for one in taken.values())
        named = "seed" in taken or (rest and optional)
    except ValueError:  # of what is not written in Python
        named = False
    return cast(Make, (lambda seed: factory(seed=seed)) if named else factory)


class SeededSampler(BaseSampler):
    """A sampler that draws the same value again for the same trial, parameter and history.

    Optuna's samplers hold one random state for the life of the process, so that a study killed and resumed would leave
    the way of an undisturbed one. Here every draw is made by a fresh sampler whose seed is a digest of (study's seed,
    trial's number, parameter's name).
    """

    def __init__(self, make: Make, seed: int) -> None:
        self._make = make
        self._seed = seed

    def _fresh(self, trial: FrozenTrial, what: str) -> BaseSampler:
        return self._make(int(digest(self._seed, trial.number, what)[:8], 16))

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Give every trial, those with given parameters too, its place in a genetic sampler's generations."""
        fresh = self._fresh(trial, "before")
        if hasattr(fresh, "get_trial_generation"):  # else siblings would be left out of the population
            fresh.get_trial_generation(study, trial)
        fresh.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the inner sampler does."""
        return self._fresh(trial, "space").infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the inner sampler does, of all parameters of the space at once."""
        fresh = self._fresh(trial, "relative")
        fresh.infer_relative_search_space(study, trial)  # some remember from here what they are asked next
        return fresh.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the inner sampler does, of one parameter."""
        return self._fresh(trial, param_name).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """As the inner sampler does."""
        self._fresh(trial, "after").after_trial(study, trial, state, values)
