from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rehearsed import BASELINE, plan
from scipy.stats import spearmanr

from objectives.objective import OBJECTIVES
from objectives.outcome import Outcome
from objectives.rehearsal import invented, prepare
from search.health import columns, guessing, predictability, rank_correlation
from search.history import NO_CLOCK, History
from search.summary import summarise
from spaces.gene import Gene
from spaces.genotype import HYPERMODEL, Architecture, Deployment, Genotype, Training
from spaces.record import to_json
from spaces.space import Space

SPACE = Space(cell=("lstm", "gru"), units=(16, 64, 16), layers=(1, 2), steps=(1, 4), frame_stack=(1, 2, 4))
FORMS = [Deployment("loop", steps, bits) for steps in (1, 4) for bits in ("32", "8")]


def models(count: int, seed: int = 0) -> list[Genotype]:
    """Distinct models of the space, at random."""
    draw = random.Random(seed)
    return [
        Genotype(
            Architecture(draw.choice(SPACE.cell), draw.randrange(16, 65, 16), draw.choice(SPACE.layers)),
            Training(learning_rate=10 ** draw.uniform(-3, -2)),
            FORMS[0],
        )
        for _ in range(count)
    ]


def formed(genotypes: list[Genotype]) -> Iterator[Genotype]:
    """Each in all its forms."""
    return (replace(genotype, deployment=form) for genotype in genotypes for form in FORMS)


def study(home: Path, outcomes: list[Outcome], *, space: Space = SPACE, **more: Any) -> History:
    made = plan(home, space=space, bounds=more.pop("bounds", {}))
    known: dict[str, Any] = {
        **NO_CLOCK,
        "name": "s",
        "plan": made,
        "prepared": prepare(to_json(made.bench)),
        "baseline": invented(made.bench, BASELINE),
        "outcomes": dict(enumerate(outcomes)),
        "running": {},
        "duplicates": 0,
        "finals": {},
    }
    return History(**(known | more))


def trained(home: Path, count: int, **more: Any) -> list[Outcome]:
    return [invented(plan(home).bench, genotype) for genotype in formed(models(count, **more))]


def checked(history: History) -> dict[str, tuple[str, str]]:
    found = summarise(history)["health"]
    return {check["check"]: (check["verdict"], check["text"]) for check in found}


# Does a figure follow from the genotype? ------------------------------------------------------------------------------


def test_a_number_that_some_do_not_have_is_a_column_and_whether_there_is_one() -> None:
    """As a hypermodel's under a condition; else each number would be a kind of its own."""
    asked = [(("cell", "gru"), ("rate", rate)) for rate in (1.0, 10.0, 100.0)] + [(("cell", "lstm"),)]
    served = [Architecture(HYPERMODEL + "own:build", 0, values=values) for values in asked]
    built = [Genotype(one, Training(), FORMS[0]) for one in served]
    found = columns(built, squares=False)
    np.testing.assert_allclose(found[:, -2], [-math.sqrt(1.5), 0.0, math.sqrt(1.5), 0.0], atol=1e-12)
    np.testing.assert_array_equal(found[:, -1], [1, 1, 1, 0])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_the_rank_correlation_is_that_of_scipy(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, dtype=float).T
    found = rank_correlation(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(a, b).statistic)


def test_what_the_genes_decide_is_predictable_and_chance_is_not_however_many_forms_share_it() -> None:
    genotypes = list(formed(models(24)))
    luck = {genotype.group: random.Random(genotype.group).random() for genotype in genotypes}
    figures = np.array(
        [
            [
                genotype.architecture.units**1.5 * genotype.architecture.layers / genotype.deployment.steps,
                luck[genotype.group],  # the same in every form of a model: to know one is to know them all
                7.0,
            ]
            for genotype in genotypes
        ]
    )
    ruled, lucky, same = predictability(genotypes, figures)
    assert ruled is not None
    assert ruled > 0.95
    assert lucky is not None
    assert lucky < 0.5
    assert same is None


def test_an_objective_that_is_luck_is_called_so(tmp_path: Path) -> None:
    outcomes = trained(tmp_path, 24)
    lucky = []
    for outcome in outcomes:
        assert outcome.quality
        error = random.Random(outcome.genotype.group).uniform(0.05, 0.1)
        lucky.append(replace(outcome, quality=replace(outcome.quality, error=error, validation=1 - error)))
    sound, found = checked(study(tmp_path, outcomes)), checked(study(tmp_path, lucky))
    assert {sound[f"predictable {name}"][0] for name in ("quality", "latency", "size")} == {"good"}
    assert found["predictable quality"][0] == "bad"
    assert "24 models" in found["predictable quality"][1]
    assert found["predictable latency"] == sound["predictable latency"]
    assert checked(study(tmp_path, lucky[: 4 * 12]))["predictable quality"][0] == "unknown"
    assert "too few" in checked(study(tmp_path, outcomes[:36]))["predictable size"][1]


# Bounds, failures, models ---------------------------------------------------------------------------------------------


def test_the_bound_that_refuses_most_is_named(tmp_path: Path) -> None:
    outcomes = trained(tmp_path, 5)
    refused = [Outcome(outcome.genotype, "infeasible", untrained_ms=0.5) for outcome in outcomes[:11]]
    heavy = [replace(outcomes[11], state="infeasible")]
    size = OBJECTIVES["size"].read(heavy[0])
    assert size
    history = study(tmp_path, refused + heavy + outcomes[12:], bounds={"latency": 0.4, "size": size - 1})
    assert checked(history)["bounds"] == (
        "bad",
        "12 of 20 candidates refused: 11 for latency, 1 for size; loosen objectives.latency.max_ms",
    )
    assert checked(study(tmp_path, refused[:9] + outcomes[9:], bounds={"latency": 0.4}))["bounds"][0] == "good"
    assert "bounds" not in checked(study(tmp_path, outcomes))
    assert checked(study(tmp_path, [], bounds={"latency": 0.4}))["bounds"][0] == "unknown"


def test_failures_are_counted_by_stage(tmp_path: Path) -> None:
    outcomes = trained(tmp_path, 5)
    failed = [Outcome(one.genotype, "failed", stage="lower" if n else "train") for n, one in enumerate(outcomes[:3])]
    found = checked(study(tmp_path, failed + outcomes[3:]))["failures"]
    assert found == ("bad", "3 of 20 candidates failed: 2 at lower, 1 at train")
    assert checked(study(tmp_path, failed[:2] + outcomes[2:]))["failures"][0] == "good"


def test_models_are_counted_not_forms_and_those_that_were_stopped_too(tmp_path: Path) -> None:
    """Five genes of a model vary in the space: cell, units, layers, frame_stack, learning_rate."""
    outcomes = trained(tmp_path, 24)
    assert checked(study(tmp_path, outcomes))["models"] == (
        "bad",
        "24 trained models for 5 searched genes: take 25 or more, with --trials 100",
    )
    assert checked(study(tmp_path, outcomes, ended="timeout"))["models"][1].endswith("with a longer --timeout")
    last = Outcome(models(1, seed=1)[0], "stopped", stage="train", learned=(0.3,))
    assert checked(study(tmp_path, [*outcomes, last]))["models"][0] == "good"
    assert checked(study(tmp_path, outcomes, ended="exhausted"))["models"][0] == "good"


# Ends of the space ----------------------------------------------------------------------------------------------------


def fronted(home: Path, genotypes: list[Genotype]) -> list[Outcome]:
    """All on the front: each is faster and worse than the one before."""
    made = []
    for place, genotype in enumerate(genotypes):
        found, error = invented(plan(home).bench, genotype), 0.05 + 0.05 * place
        assert found.quality
        assert found.measurement
        ms = 0.01 - 0.001 * place
        measured = replace(found.measurement, median_ms=ms, ci_ms=(ms, ms))
        made.append(
            replace(found, quality=replace(found.quality, error=error, validation=1 - error), measurement=measured)
        )
    return made


def of(units: int, layers: int = 1, rate: float = 3e-3, **served: Any) -> Genotype:
    return Genotype(
        Architecture("lstm", units, layers, frame_stack=2), Training(rate), Deployment(**({"steps": 1} | served))
    )


def ends(home: Path, genotypes: list[Genotype], space: Space = SPACE) -> list[tuple[str, str]]:
    found = summarise(study(home, fronted(home, genotypes), space=space))["health"]
    return [(check["verdict"], check["text"]) for check in found if check["check"] == "ends"]


def test_a_front_at_the_end_of_a_range_says_which_to_widen(tmp_path: Path) -> None:
    at_64 = [of(64), of(64, rate=4e-3), of(64, rate=5e-3), of(32)]
    assert ends(tmp_path, at_64) == [("bad", "3 of 4 front models have units at the upper end 64: widen space.units")]
    assert ends(tmp_path, [of(64), of(64, rate=4e-3), of(48), of(32)]) == [("good", "the front lies inside the space")]
    assert ends(tmp_path, at_64, replace(SPACE, units=(64,)))[0][0] == "good"  # fixed
    assert ends(tmp_path, at_64[:2])[0][0] == "unknown"
    forms = [of(64), of(64, bits="8"), of(64, bits="rec8"), of(32), of(48)]  # three forms are one model
    assert ends(tmp_path, forms)[0][0] == "good"


def test_an_end_that_cannot_be_moved_is_none(tmp_path: Path) -> None:
    single = [of(32), of(48), of(32, rate=4e-3)]
    assert ends(tmp_path, single)[0][0] == "good"  # 1 layer, 1 step
    deep = [replace(one, architecture=replace(one.architecture, layers=3)) for one in single]
    assert ends(tmp_path, deep, replace(SPACE, layers=(1, 3)))[0][0] == "good"  # there are no more layers than 3
    assert "layers at the upper end 2" in ends(tmp_path, [of(32, 2), of(48, 2), of(32, 2, 4e-3)])[0][1]


def test_ends_are_read_where_they_mean_something(tmp_path: Path) -> None:
    looped = [of(32, steps=4), of(48, steps=4), of(32, rate=4e-3, steps=4)]
    assert "steps at the upper end 4: widen space.steps" in ends(tmp_path, looped)[0][1]
    mixed = [*looped[:2], of(48, rate=4e-3, steps=1, lowering="keras")]
    assert ends(tmp_path, mixed)[0][0] == "good"  # 2 of 3, for the stock converter has no steps
    whole = [replace(one, architecture=replace(one.architecture, frame_stack=16)) for one in looped]
    stacked = replace(SPACE, frame_stack=(1, 2, 16, 32))
    assert ends(tmp_path, whole, stacked)[0][0] == "good"  # 64 steps in frames of 16: 4 is all of the loop
    bricks = [replace(one, architecture=replace(one.architecture, frame_stack=4, brick=8)) for one in looped]
    assert ends(tmp_path, bricks, replace(SPACE, steps=(4,), frame_stack=(4,), brick=(4, 8)))[0][0] == "good"
    slow = [of(32, rate=1.02e-3), of(48, rate=1e-3), of(32, rate=1.05e-3)]
    assert "learning_rate at the lower end 0.001" in ends(tmp_path, slow)[0][1]
    ranked = [replace(one, architecture=replace(one.architecture, rank=8)) for one in looped]
    single = replace(SPACE, steps=(4,))
    assert "rank at the lower end 8" in ends(tmp_path, ranked, replace(single, rank=(0, 8, 16)))[0][1]
    assert ends(tmp_path, ranked, replace(single, rank=(0, 4, 8)))[0][0] == "good"  # beyond 8 are whole matrices
    assert "rank at the upper end 8" in ends(tmp_path, ranked, replace(single, rank=(4, 8)))[0][1]


def test_the_numbers_of_a_hypermodel_have_ends_too(tmp_path: Path) -> None:
    genes = (Gene("width", "int", low=8, high=64), Gene("kind", "choice", ("a", "b")))
    space = Space(hypermodel="mine:build", learning_rate=(3e-3,))
    made = [
        Genotype(
            Architecture(f"{HYPERMODEL}mine:build", 0, values=(("width", width), ("kind", kind))),
            Training(),
            Deployment(),
        )
        for width, kind in ((64, "a"), (64, "b"), (63, "a"))
    ]
    explored = {"hypermodel": {"compiled": False, "genes": [to_json(gene) for gene in genes]}}
    history = study(tmp_path, fronted(tmp_path, made), space=space)
    found = checked(replace(history, prepared={**history.prepared, **explored}))
    assert found["ends"][1] == "3 of 3 front models have width at the upper end 64: widen it in mine:build"
    assert "for 2 searched genes" in found["models"][1]


# Baseline and advice --------------------------------------------------------------------------------------------------


def against(home: Path, *figures: tuple[float, float, float]) -> tuple[str, str]:
    """What is said of candidates of (error, its standard error, ms) and of 10 KiB; the baseline has 0.05, 0.01, 1 ms
    and 9 KiB, so that none is better in all.
    """
    first, *made = (
        replace(
            found,
            quality=replace(found.quality, error=error, validation=1 - error, stderr=stderr),
            measurement=replace(found.measurement, median_ms=ms, ci_ms=(ms, ms)),
            artifact=replace(found.artifact, size_bytes=kib * 1024),
        )
        for found, (error, stderr, ms, kib) in zip(
            trained(home, 4), [(0.05, 0.01, 1.0, 9), *((*figure, 10) for figure in figures)], strict=False
        )
        if found.quality and found.measurement and found.artifact
    )
    return checked(study(home, made, baseline=first))["baseline"]


def test_the_baseline_is_beaten_within_one_standard_error_of_the_difference(tmp_path: Path) -> None:
    """Of two independent errors of 0.01 that is 0.0141."""
    words = "is 4.0 times as fast as the baseline, and as good within one standard error"
    assert against(tmp_path, (0.064, 0.01, 0.25), (0.08, 0.01, 0.1)) == ("good", f"trial 0 {words}")
    assert against(tmp_path, (0.065, 0.01, 0.25), (0.08, 0.01, 0.1)) == (
        "bad",
        "none is as good as the baseline: the nearest, trial 0, is 0.015 worse, 4.0 times as fast",
    )
    slow = against(tmp_path, (0.05, 0.01, 0.98))  # within the noise of timing
    assert slow == ("bad", "no point that is as good as the baseline is faster")
    assert "baseline" not in checked(study(tmp_path, trained(tmp_path, 2), baseline=None))


def test_what_dominates_the_baseline_beats_it(tmp_path: Path) -> None:
    found = invented(plan(tmp_path).bench, BASELINE)
    assert found.measurement
    half = replace(found.measurement, median_ms=found.measurement.median_ms / 2)
    better = replace(found, genotype=of(32), measurement=half)
    verdict, text = checked(study(tmp_path, [better]))["baseline"]
    assert (verdict, text.split(", and ")[1]) == ("good", "no worse in any objective")
    hardly = replace(better, measurement=replace(half, median_ms=found.measurement.median_ms * 0.999))
    assert checked(study(tmp_path, [hardly]))["baseline"][1].startswith("trial 0 is 1.0 times as fast")
    assert found.quality
    worse = replace(better, quality=replace(found.quality, test=found.quality.validation - 0.02, test_stderr=0.03))
    base = replace(found, quality=replace(found.quality, test=found.quality.validation, test_stderr=0.01))
    tested = study(tmp_path, [worse], finals={0: worse, "baseline": base})
    assert checked(tested)["baseline"][1].endswith("as good within one standard error")


def advised(history: History) -> tuple[str, str]:
    found: dict[str, str] = summarise(history)["advice"]
    return found["verdict"], found["text"]


def test_it_is_worth_going_on_until_the_hypervolume_has_settled(tmp_path: Path) -> None:
    """The same first and best models, then many that bring nothing; or the best of them last."""
    best, *others = trained(tmp_path, 40)
    poor = [replace(one, quality=replace(one.quality, error=0.5)) for one in others[3:] if one.quality]
    assert advised(study(tmp_path, poor[:40])) == ("worth going on", "it is too early to tell (10 trained models)")
    assert advised(study(tmp_path, [*poor, best])) == ("worth going on", "the hypervolume still grows")
    assert advised(study(tmp_path, [best, *poor])) == ("stop now", "the hypervolume has settled")
    few = [best, *poor[: 4 * 20]]
    assert advised(study(tmp_path, few)) == (
        "worth going on",
        "the hypervolume has settled, but on 21 trained models only",
    )


def test_other_reasons_to_stop(tmp_path: Path) -> None:
    outcomes = trained(tmp_path, 5)
    assert advised(study(tmp_path, outcomes, ended="exhausted"))[0] == "stop now"
    assert advised(study(tmp_path, outcomes, ended="target"))[0] == "stop now"
    refused = [Outcome(outcome.genotype, "infeasible", untrained_ms=0.5) for outcome in trained(tmp_path, 20)]
    said = advised(study(tmp_path, refused, bounds={"latency": 0.4}))
    assert said == ("stop now", "none of 80 candidates is on the front, see the checks")
    few = advised(study(tmp_path, refused[:20], bounds={"latency": 0.4}))  # forms of five models say nothing of others
    assert few[0] == "worth going on"
    assert advised(study(tmp_path, []))[0] == "worth going on"


def test_a_baseline_that_guesses_is_said_to(tmp_path: Path) -> None:
    history = study(tmp_path, trained(tmp_path, 5))
    assert "guessing" not in checked(history)
    assert history.baseline
    assert history.baseline.quality
    trivial = history.prepared["trivial_error"]
    chance = replace(history.baseline, quality=replace(history.baseline.quality, error=trivial))
    assert checked(replace(history, baseline=chance))["guessing"][0] == "bad"
    assert "labels numbered otherwise" in guessing(chance, history.prepared)
