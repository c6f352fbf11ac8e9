"""What the page tells of a study's trials, held against studies in which it is known."""

import math
import random
import re
import warnings
from dataclasses import replace

import pytest
from rehearsed import plan
from sample_study import outcome

from experiments import insight, plots
from objectives.outcome import FORETOLD
from search.history import History
from search.ledger import child_row
from search.summary import summarise
from spaces.gene import Condition, Gene
from spaces.genotype import HYPERMODEL, Architecture, Deployment, Genotype, Training
from spaces.record import to_json
from spaces.signature import Signature
from spaces.space import Space

SIGNATURE = Signature("classification", 64, 1, 10)
PREPARED = {"signature": to_json(SIGNATURE), "trivial_error": 0.9}
SPACE = Space(cell=("lstm", "mingru"), units=(16, 128, 16), bits=("32", "8", "rec4"), steps=(1, 4))


def candidate(genotype, error, ms, *, seconds=1.0, state="complete"):
    """An outcome of these figures; its size is alike for all."""
    known = outcome(1)
    return replace(
        known,
        genotype=genotype,
        state=state,
        quality=replace(known.quality, validation=1 - error, error=error),
        measurement=replace(known.measurement, median_ms=ms, ci_ms=(ms * 0.99, ms * 1.01)),
        seconds={"train": seconds},
    )


def history(at, outcomes, *, space=SPACE, **changes):
    """A study that holds these trials, and a larger baseline."""
    stock = candidate(Genotype(Architecture("lstm", 128), Training(), Deployment("keras", 1, "8")), 0.1, 9.0)
    stock = replace(stock, artifact=replace(stock.artifact, size_bytes=10**6))
    settings = {
        "name": "s", "plan": plan(at, space=space), "prepared": PREPARED, "running": {}, "duplicates": 0,
        "baseline": stock, "outcomes": dict(enumerate(outcomes)), "finals": {},
        "wall_s": 0.0, "training_s": 0.0, "measuring_s": 0.0, "ended": "",
    }  # fmt: skip
    return History(**(settings | changes))


def telling(count):
    """Trials whose latency is a matter of the units alone, and whose error of the learning rate alone."""
    draw = random.Random(0)
    for _ in range(count):
        cell, units, rate = draw.choice(SPACE.cell), draw.choice(range(16, 129, 16)), 10 ** draw.uniform(-3, -2)
        built = Architecture(cell, units)
        genotype = Genotype(built, Training(learning_rate=rate), draw.choice(SPACE.deployments(built, SIGNATURE)))
        yield candidate(genotype, 0.05 + (math.log10(rate) + 2.5) ** 2, units / 100)


def test_what_alone_decides_an_objective_is_the_most_important_for_it(tmp_path):
    trials = insight.tried(history(tmp_path, telling(120)))
    for objective, cause in (("latency", "units"), ("quality", "learning_rate")):
        shares = insight.importance(trials, objective)
        assert max(shares, key=shares.__getitem__) == cause
        assert shares[cause] > 0.7
        assert sum(shares.values()) == pytest.approx(1)
    assert insight.importance(trials, "size") == {}  # it is alike for all


def test_parameters_go_by_their_keys_whatever_there_was_to_choose_from(tmp_path):
    told = list(telling(60))
    trials = insight.tried(history(tmp_path, told))
    assert {key for one in trials for key in one.chosen} == {
        "cell", "units", "learning_rate", "lowering", "steps", "bits"
    }  # fmt: skip
    for one, found in zip(trials, told, strict=True):
        served = found.genotype.deployment
        assert (one.values["bits"], one.values["steps"]) == (served.bits, served.steps)
        assert ("steps" in one.chosen) == (served.lowering == "loop")
    assert len({one.chosen["bits"][1] for one in trials}) > 1  # sets of choices that Optuna has as parameters apart


def test_genes_of_the_users_own_code_go_by_its_names(tmp_path):
    scopes = [("a", (1, 2)), ("b", (3, 4))]
    genes = (
        Gene("kind", "choice", ("a", "b")),
        *(Gene("units", "grid", values, conditions=(Condition("kind", (kind,)),)) for kind, values in scopes),
        Gene("steps", "grid", (5, 6)),
    )
    space = Space(lowering=("loop",), bits=("32",), steps=(1,), hypermodel="mine:build")
    points = [(kind, width, steps) for kind, values in scopes for width in values for steps in (5, 6)]
    told = [
        candidate(
            Genotype(
                Architecture(
                    f"{HYPERMODEL}mine:build", 0, values=tuple(zip(("kind", "units", "steps"), one, strict=True))
                ),
                Training(0.0),
                Deployment("loop", 1, "32"),
            ),
            0.1,
            one[1],
        )
        for one in points
    ]
    explored = {"hypermodel": {"padding": None, "compiled": True, "genes": [to_json(gene) for gene in genes]}}
    trials = insight.tried(history(tmp_path, told, space=space, prepared=PREPARED | explored))
    shown = [tuple(one.values[key] for key in ("kind", "units", "hp.steps")) for one in trials]
    assert shown == points
    assert all(one.chosen.keys() == {"kind", "units", "hp.steps"} for one in trials)
    assert all(one.values["steps"] == 1 for one in trials)


def test_the_hypervolume_grows_to_that_of_the_summary_over_the_studys_wall_time(tmp_path):
    first, second, third = list(telling(3))
    told = [replace(first, seconds={"train": 2.0, "lower": 1.0}), replace(second, seconds={"train": 4.0}), third]
    twin = candidate(first.genotype, 0.1, 1.0, seconds=1.0)
    kept = history(tmp_path, told, wall_s=600.0, twins={"twin-1": twin})
    minutes, volumes = insight.growth(kept)
    assert volumes[-1] == summarise(kept)["hypervolume"] > 0
    assert volumes == sorted(volumes)
    assert minutes == [4, 8, 9]  # of 10, the baseline's second and the twin's too
    assert insight.growth(replace(kept, wall_s=0.0)) == ([], volumes)


def test_what_was_foretold_is_shown_nowhere_as_if_it_had_been_measured(tmp_path):
    told = list(telling(30))
    foretold = replace(told[3], state="infeasible", quality=None, measurement=None, artifact=None, untrained_ms=9.0)
    both = [replace(foretold, stage=stage) for stage in ("untrained", FORETOLD)]
    shown = [insight.tried(history(tmp_path, [one])) for one in both]
    assert [[one.costs for one in trials] for trials in shown] == [[{"latency": 9.0}], []]
    assert [child_row(3, one).metrics.get("untrained_ms") for one in both] == [9.0, None]


def test_what_is_not_known_is_left_out(tmp_path):
    told = list(telling(30))
    told[3] = replace(told[3], state="stopped", quality=None, measurement=None, artifact=None)
    told[4] = replace(told[4], state="infeasible", quality=None)
    told[5] = replace(told[5], genotype=replace(told[5].genotype, architecture=Architecture("gru", 32)))  # not in it
    trials = insight.tried(history(tmp_path, told), [0, 1, "rewrite-1"])
    assert [one.number for one in trials] == [n for n in range(30) if n not in (3, 5)]
    assert trials[3].costs.keys() == {"latency", "size"}
    assert [one.number for one in trials if one.front] == [0, 1]


@pytest.mark.parametrize("count", [0, 1, 2, 19, 60])
def test_every_study_has_the_sections_in_drawings_or_in_words(tmp_path, count):
    kept = history(tmp_path, telling(count), wall_s=60.0)
    with warnings.catch_warnings(record=True) as heard:
        page = insight.insight(kept, summarise(kept))
    assert not heard
    assert page.count("<h2>") == 4
    drawn = re.findall(r'id="(importance|hypervolume|parallel|slices)"', page)
    expected = ["hypervolume", "parallel", "slices"] if count > 1 else []
    assert drawn == (["importance", *expected] if count >= insight.FEWEST else expected)
    assert ("; 19 were measured" in page) == (count == 19)
    assert "steps.1-4" not in page


def test_a_study_that_only_looked_at_latencies_is_drawn_of_those(tmp_path):
    told = [replace(one, state="stopped", quality=None, artifact=None) for one in telling(30)]
    kept = history(tmp_path, told)
    page = insight.insight(kept, summarise(kept))
    assert re.findall(r'id="(importance|hypervolume|parallel|slices)"', page) == ["importance", "hypervolume", "slices"]
    assert "Not told of validation error and size: it needs" in page


def test_the_page_holds_the_insight_and_stays_one_file(tmp_path):
    kept = history(tmp_path, telling(25))
    page = plots.front_html(summarise(kept), list(kept.candidates.items()), kept)
    assert "<h2>Which parameters matter</h2>" in page
    assert page.count("plotly.js v") == 1
    assert not re.search(r'<(script|link|img)[^>]+(src|href)=["\']?(https?:)?//', page)


def test_the_page_that_goes_to_mlflow_holds_the_insight(tmp_path):
    kept = history(tmp_path, telling(25))
    page = plots.drawings(summarise(kept), list(kept.candidates.items()), tmp_path, kept)["front.html"]
    for told in ("importance", "hypervolume", "parallel", "slices"):
        assert f'id="{told}"' in page


def test_few_values_lie_side_by_side_in_their_order_and_many_by_size():
    few = insight.axis_of(["rec4", "8", None, "32"])
    assert few.at == [2, 0, -1, 1]
    assert few.ticked == {"tickvals": [-1, 0, 1, 2], "ticktext": ["none", "8", "32", "rec4"]}
    assert [few.place(value) for value in few.values] == [0, 1, 2]
    many = insight.axis_of([10.0**power for power in range(10)])
    assert many.log
    assert many.at == pytest.approx(list(range(10)))
    assert many.place(1e3) == pytest.approx(3)
    flat = insight.axis_of([*range(20, 30), None])
    assert not flat.log
    assert flat.span[0] < flat.at[-1] < 20 < 29 < flat.span[1]
    assert insight.axis_of([True, False]).ticked["ticktext"] == ["no", "yes"]
