from __future__ import annotations

import importlib.util

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState, create_trial

from search import samplers
from search.samplers import SAMPLERS, SeededSampler, named
from spaces.errors import SpecError

HAVE = [name for name in SAMPLERS if name != "gp" or importlib.util.find_spec("torch")]


def half_drawn(sampler: SeededSampler, stop_after: int) -> dict[str, object]:
    """Six told trials and one that is given up after some parameters and drawn again by another process's sampler."""
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    for _ in range(30):
        trial = study.ask()
        x, c = trial.suggest_float("x", 0, 1), trial.suggest_categorical("c", ["a", "b", "c"])
        trial.set_constraint("bound", 0.0)
        study.tell(trial, [x, len(c) - x])
    trial = study.ask()
    for name in ("x", "y")[:stop_after]:
        trial.suggest_float(name, 0, 1)
    again = optuna.trial.Trial(study, trial._trial_id)
    drawn = {name: again.suggest_float(name, 0, 1) for name in ("x", "y")}
    return drawn | {"c": again.suggest_categorical("c", ["a", "b", "c"])}


@pytest.mark.parametrize("name", HAVE)
def test_a_draw_does_not_depend_on_where_an_earlier_one_stopped(name: str) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    draws = [half_drawn(SeededSampler(named(name), 5), stop) for stop in (0, 1, 2)]
    assert draws[0] == draws[1] == draws[2]
    assert half_drawn(SeededSampler(named(name), 6), 0) != draws[0]


def test_tpe_learns_of_what_was_stopped_though_it_has_no_values() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    line = FloatDistribution(0, 1)

    def share_near(stopped: int) -> float:
        """Of the draws, those where the stopped ones were: in the middle of the points that nothing dominates."""
        study = optuna.create_study(directions=["minimize"] * 2, sampler=SeededSampler(named("tpe"), 3))
        for x in (step / 40 for step in range(40)):
            values = [abs(x - 0.3), abs(x - 0.7)]
            study.add_trial(create_trial(values=values, params={"x": x}, distributions={"x": line}))
        for step in range(stopped):
            at = {"x": 0.45 + 0.1 * step / stopped}
            study.add_trial(create_trial(state=TrialState.PRUNED, params=at, distributions={"x": line}))
        drawn = [study.ask().suggest_float("x", 0, 1) for _ in range(100)]
        return sum(abs(x - 0.5) < 0.06 for x in drawn) / len(drawn)

    assert share_near(40) < 0.5 * share_near(0)


def test_siblings_belong_to_the_genetic_population() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=SeededSampler(named("nsga2"), 1))
    study.enqueue_trial({"x": 0.5})
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    study.tell(trial, [0, 0])
    assert study.trials[0].system_attrs["NSGAIISampler:generation"] == 0


def test_tpe_draws_as_if_only_the_newest_trials_had_been(monkeypatch: pytest.MonkeyPatch) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    monkeypatch.setattr(samplers, "SEEN", 20)
    long, short = (optuna.create_study(directions=["minimize"] * 2) for _ in range(2))
    line = FloatDistribution(0, 1)
    for step in range(50):
        x = step * 0.37 % 1
        long.add_trial(create_trial(values=[x, (x - 0.8) ** 2 + step], params={"x": x}, distributions={"x": line}))
    short.add_trials(long.trials[-19:])  # the twentieth is the one that is asked
    asked = [study.ask() for study in (long, short)]
    frozen = [study.trials[trial.number] for study, trial in zip((long, short), asked, strict=True)]
    plain = [
        TPESampler(seed=3).sample_independent(one, two, "x", line)
        for one, two in zip((long, short), frozen, strict=True)
    ]
    drawn = named("tpe")(3).sample_independent(long, frozen[0], "x", line)
    assert drawn == plain[1] != plain[0]


def test_tpe_draws_as_if_copies_had_been_one() -> None:
    """What is trained again and comes to the same values is no further proof of anything."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    often, once = (optuna.create_study(directions=["minimize"] * 2) for _ in range(2))
    line = FloatDistribution(0, 1)
    for step in range(60):
        values = [step % 7.0, step % 5.0]  # 35 pairs, the first 25 of which come again
        often.add_trial(create_trial(values=values, params={"x": step / 60}, distributions={"x": line}))
    once.add_trials(often.trials[25:])
    asked = [study.ask() for study in (often, once)]
    frozen = [study.trials[trial.number] for study, trial in zip((often, once), asked, strict=True)]
    plain = [
        TPESampler(seed=3).sample_independent(one, two, "x", line)
        for one, two in zip((often, once), frozen, strict=True)
    ]
    assert named("tpe")(3).sample_independent(often, frozen[0], "x", line) == plain[1] != plain[0]


def test_unknown_names_and_absent_packages_are_said() -> None:
    with pytest.raises(SpecError, match=r"search.sampler: got 'tpes'; did you mean 'tpe'"):
        named("tpes")
    with pytest.raises(SpecError, match="cannot be had: ModuleNotFoundError"):
        named("nowhere:make")
    with pytest.raises(SpecError, match="'builtins:dict' cannot be had: TypeError"):
        named("builtins:dict")
    with pytest.raises(SpecError, match="'builtins:str', called with a seed, gives a str"):
        named("builtins:str")
    if importlib.util.find_spec("torch") is None:
        with pytest.raises(SpecError, match="pip install torch"):
            named("gp")


def test_a_factory_of_the_users_own() -> None:
    for name in ("RandomSampler", "NSGAIISampler"):  # one that takes its seed by place, one that does not
        assert isinstance(named(f"optuna.samplers:{name}")(3), getattr(optuna.samplers, name))
    assert isinstance(named(f"{__name__}:placed")(3), optuna.samplers.RandomSampler)


def placed(number: int, /) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(number)
