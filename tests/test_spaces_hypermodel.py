"""A hypermodel's hyperparameters as genes: KerasTuner's own container is the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FixedTrial

from spaces import hypermodel
from spaces.errors import SpecError
from spaces.gene import Gene, draw, parameters
from spaces.genotype import Genotype
from spaces.hypermodel import found, genes_of, kt, with_values
from spaces.record import from_json, to_json
from spaces.signature import Signature
from spaces.space import Space

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of Keras 3, with NumPy 2


class Asks(kt.HyperModel):
    """A hypermodel that builds nothing."""

    def __init__(self, ask: Callable[[kt.HyperParameters], Any]) -> None:
        super().__init__()
        self.build = ask


def genes_asked(ask: Callable[[kt.HyperParameters], Any]) -> tuple[Gene, ...]:
    hyper = Asks(ask)
    return genes_of(hyper, hyper.build)


class Dice:
    """A trial that draws at random, ends often."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.params: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self.params.setdefault(name, choices[self.rng.integers(len(choices))])

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        assert (high - low) % step == 0, "Optuna would warn"
        return int(self.params.setdefault(name, int(self.rng.choice(np.arange(low, high + 1, step)))))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        place = self.rng.choice([0.0, self.rng.uniform(), 1.0])
        return float(self.params.setdefault(name, min(low + place * (high - low), high)))


ints = st.builds(
    lambda low, span, step, sampling: {
        "min_value": low,
        "max_value": low + span,
        "sampling": sampling,
        "step": None if step == 1 else step,
    },
    *(st.integers(1, 9), st.integers(0, 90), st.integers(1, 5), st.sampled_from(["linear", "log", "reverse_log"])),
)
floats = st.builds(
    lambda low, span, step, sampling: {
        "min_value": low,
        "max_value": low + span,
        "sampling": sampling,
        "step": step and (step if sampling == "linear" else 1 + step),
    },
    st.floats(0.01, 2.0),
    st.floats(0.0, 50.0),
    st.one_of(st.none(), st.floats(0.1, 3.0)),
    st.sampled_from(["linear", "log", "reverse_log"]),
)
choices = st.one_of(
    st.lists(st.integers(-5, 5), min_size=1, max_size=4),
    st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4),
).map(lambda values: {"values": values})
asked = st.one_of(
    st.tuples(st.just("Int"), ints),
    st.tuples(st.just("Float"), floats),
    st.tuples(st.just("Choice"), choices),
    st.tuples(st.just("Boolean"), st.just({})),
    st.tuples(st.just("Fixed"), st.sampled_from([{"value": 3}, {"value": "x"}, {"value": 0.5}])),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(asked, min_size=1, max_size=4), st.lists(asked, min_size=2, max_size=2), st.integers(0, 2**32 - 1))
def test_what_is_drawn_is_what_kerastuner_could_have_drawn(always: Any, scoped: Any, seed: int) -> None:
    def ask(hp: kt.HyperParameters) -> None:
        for place, (kind, options) in enumerate(always):
            getattr(hp, kind)(f"p{place}", **options)
        hp.Choice("which", ["one", "two"])
        for which, (kind, options) in zip(("one", "two"), scoped, strict=True):
            with hp.conditional_scope("which", [which]):
                getattr(hp, kind)("same", **options)

    genes, dice = genes_asked(ask), Dice(seed)
    values = draw(genes, dice)
    hp = with_values(Asks(ask), dict(values))
    ask(hp)
    assert dict(values) == hp.values
    for one in hp.space:
        if hp.is_active(one):
            value = hp.values[one.name]
            finite = not isinstance(one, kt.engine.hyperparameters.Float | kt.engine.hyperparameters.Int) or one.step
            if finite:
                assert value in list(map(type(value), one.values))
            else:
                assert one.min_value <= value <= one.max_value
                assert isinstance(value, int if isinstance(one, kt.engine.hyperparameters.Int) else float)
    assert draw(genes, FixedTrial(parameters(genes, values))) == values


@pytest.mark.parametrize("kind", ["Int", "Float"])
def test_reverse_log_is_kerastuners(kind: str) -> None:
    hp = getattr(kt.engine.hyperparameters, kind)("n", 2, 500, sampling="reverse_log")
    (gene,) = genes_asked(lambda asking: getattr(asking, kind)("n", 2, 500, sampling="reverse_log"))
    for share in np.linspace(0, 1, 201)[:-1]:
        assert gene._mirrored(float(share)) == pytest.approx(hp.prob_to_value(share), rel=1e-9)


def docs_example(hp: kt.HyperParameters) -> dict[str, Any]:
    """KerasTuner's way of choosing among models, and of repeating layers."""
    cell = hp.Choice("cell", ["lstm", "gru"])
    with hp.conditional_scope("cell", ["lstm"]):
        if cell == "lstm":
            hp.Int("units", 32, 128, step=32)
            with hp.conditional_scope("units", [128]):
                hp.Boolean("wide")
    with hp.conditional_scope("cell", ["gru"]):
        if cell == "gru":
            hp.Int("units", 8, 64, step=2, sampling="log")
    for layer in range(hp.Int("layers", 1, 3)):
        with hp.name_scope(f"dense{layer}"):
            hp.Int("units", 4, 8, parent_name=None)
    if hp.Boolean("dropout"):
        hp.Float("rate", 0.1, 0.5, step=0.1)
    return {}


def test_scopes_and_plain_python_become_conditions() -> None:
    keys = {gene.key: gene.range for gene in genes_asked(docs_example)}
    assert keys == {
        "hp:cell": "lstm, gru",
        "hp:units@cell=lstm": "32 to 128 in steps of 32",
        "hp:units@cell=gru": "8, 16, 32, 64",
        "hp:wide@cell=lstm@units=128": "True, False",
        "hp:layers": "1 to 3",
        "hp:dense0/units": "4 to 8",
        "hp:dense1/units@layers=2|3": "4 to 8",
        "hp:dense2/units@layers=3": "4 to 8",
        "hp:dropout": "True, False",
        "hp:rate@dropout=True": "0.1, 0.2, 0.30000000000000004, 0.4, 0.5",
    }


def test_the_tree_of_a_built_in_hypermodel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypermodel, "MOST_BUILDS", 1)
    hyper = kt.applications.HyperXception(input_shape=(71, 71, 3), classes=3)
    genes = {gene.name: gene for gene in genes_of(hyper, hyper.build)}
    declared = kt.HyperParameters()
    hyper.build(declared)
    assert genes.keys() == declared.values.keys()
    assert genes["dropout_rate"].values[:2] == (0.0, 0.1)
    assert (genes["num_residual_blocks"].low, genes["num_residual_blocks"].high) == (2, 8)


def test_a_study_of_genes_repeats_its_points() -> None:
    space = Space(hypermodel="m:build", genes=genes_asked(docs_example), lowering=("loop", "keras"), batch=(1, 8))
    signature = Signature("classification", 10, 3, 2)
    space.check("classification", 10)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(40):
        trial = study.ask()
        point = space.sample(trial, signature)
        assert space.parameters(point, signature) == trial.params
        assert point.deployment in space.deployments(point.architecture, signature)
        back = from_json(Genotype, to_json(point))
        assert (back, back.key) == (point, point.key)
        seen |= {name for name, _ in point.architecture.values}
        study.tell(trial, 0.0)
    assert {"wide", "dense2/units", "rate"} <= seen


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import nowhere", "importing own_code failed with ModuleNotFoundError: No module named 'nowhere'"),
        ("other = 1", "module own_code has no 'build'"),
        ("build = 3", "build is of type int; give a function build.hp."),
        ("class build:\n    def __init__(self, n): pass", "build cannot be made without arguments"),
    ],
)
def test_what_is_no_hypermodel_is_said_in_words(
    source: str, words: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_code.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_code", raising=False)
    with pytest.raises(SpecError, match=words):
        found("own_code:build")
