from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FixedTrial

from spaces.catalog import BITS, CELLS, legal_bits
from spaces.errors import SpecError
from spaces.genotype import Architecture, Deployment, Genotype, Training
from spaces.signature import Signature
from spaces.space import LOWERINGS, Space


def some(values: Any, most: int = 4) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(st.sampled_from(list(values)), min_size=1, max_size=most, unique=True).map(tuple)


signatures = st.builds(
    Signature,
    kind=st.sampled_from(["classification", "regression"]),
    time_steps=st.integers(8, 100),
    features=st.just(3),
    outputs=st.just(2),
    vocabulary=st.sampled_from([None, 50]),
)
spaces = st.builds(
    Space,
    cell=some(CELLS),
    units=st.sampled_from([(32,), (8, 8), (16, 128), (16, 100, 16), (7, 9, 5)]),
    layers=some([1, 2, 3]),
    bidirectional=some([False, True]),
    frame_stack=some([1, 2, 3, 8]),
    readout=some(["last", "mean"]),
    embedding=some([8, 16, 32]),
    dropout=st.sampled_from([(0.0,), (0.0, 0.5), (0.2, 0.2)]),
    rank=some([0, 2, 4, 40]),
    residual=some([False, True]),
    brick=some([0, 2, 4]),
    learning_rate=st.sampled_from([(1e-3,), (1e-4, 1e-2)]),
    sparsity=some([0.0, 0.5, 0.9]),
    block=some([1, 16]),
    pruned_units=some([0.0, 0.3, 0.5]),
    qat=some(["", "rec4", "8"]),
    bits=some(BITS, len(BITS)),
    lowering=some(LOWERINGS),
    steps=some([1, 2, 4, 7, 50]),
    batch=some([1, 8, 32]),
).filter(lambda space: not list(space.problems("classification", 8)))
alphas = some([0.0, 0.5, 0.9])


def drawn(space: Space, signature: Signature, seed: int, distillation: tuple[float, ...] = (0.0,)) -> Genotype:
    return space.sample(Dice(seed), signature, distillation=distillation)


class Dice:
    """A trial that draws evenly and, like Optuna, answers a name it has heard before with the same value."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.params: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self.params.setdefault(name, choices[self.rng.integers(len(choices))])

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return int(self.params.setdefault(name, int(self.rng.choice(np.arange(low, high + 1, step)))))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return float(self.params.setdefault(name, float(self.rng.uniform(low, high))))


@settings(max_examples=40, deadline=None)
@given(spaces, signatures, alphas, st.integers(0, 2**32 - 1))
def test_every_point_drawn_is_legal(space: Space, signature: Signature, alphas: Any, seed: int) -> None:
    point = drawn(space, signature, seed, alphas)
    architecture, deployment = point.architecture, point.deployment
    assert architecture.cell in space.cell
    assert space.units[0] <= architecture.units <= space.units[min(1, len(space.units) - 1)]
    assert deployment.lowering in CELLS[architecture.cell].lowerings
    assert deployment.bits in legal_bits(architecture.cell, deployment.lowering)
    frames = -(-signature.time_steps // architecture.frame_stack)
    assert deployment.steps <= frames
    assert architecture.rank <= architecture.units * CELLS[architecture.cell].recurrent_matrix / 2
    assert not architecture.residual or (architecture.layers > 1 and not architecture.bidirectional)
    assert 2 * architecture.brick <= frames
    assert architecture.stock or deployment.lowering != "keras"
    assert deployment.lowering == "loop" or deployment.steps == 1
    assert signature.vocabulary or architecture.embedding == Architecture.embedding
    assert point.training.distillation in alphas
    assert not point.training.qat or (deployment.bits == point.training.qat and deployment.lowering != "keras")
    assert point.training.sparsity or point.training.block == 1
    if point.training.pruned_units:
        assert CELLS[architecture.cell].removable
        assert max(3, 2 * architecture.rank - 1) < point.served.units < architecture.units


@settings(max_examples=40, deadline=None)
@given(spaces, signatures, alphas, st.integers(0, 2**32 - 1))
def test_the_parameters_of_a_point_draw_it_again(space: Space, signature: Signature, alphas: Any, seed: int) -> None:
    point = drawn(space, signature, seed, alphas)
    for deployment in space.deployments(point.architecture, signature, point.training.qat):
        sibling = replace(point, deployment=deployment)
        trial = FixedTrial(space.parameters(sibling, signature, distillation=alphas))
        assert space.sample(trial, signature, distillation=alphas) == sibling


@settings(max_examples=40, deadline=None)
@given(spaces, signatures, st.integers(0, 2**32 - 1))
def test_deployments_hold_what_can_be_drawn_in_a_fixed_order(space: Space, signature: Signature, seed: int) -> None:
    point = drawn(space, signature, seed)
    forms = space.deployments(point.architecture, signature, point.training.qat)
    assert point.deployment in forms
    assert len(set(forms)) == len(forms)
    assert forms == space.deployments(point.architecture, signature, point.training.qat)


def test_training_for_narrow_weights_and_cut_units_are_drawn_where_they_mean_something() -> None:
    shares, widths = (0.0, 0.2, 0.4, 0.5), ("", "rec4")
    space = Space(cell=("gru", "mingru"), units=(32,), bits=("32", "rec4"), pruned_units=shares, qat=widths)
    signature = Signature("classification", 10, 1, 2)
    for seed in range(30):
        point = drawn(space, signature, seed)
        assert point.training.pruned_units in (0.0, 0.4)  # a fifth of 32 is none, and half comes to the same 16
        assert point.training.qat in (widths if point.architecture.cell == "gru" else ("",))
    narrow = space.deployments(Architecture("gru", 32), signature, "rec4")
    assert {form.bits for form in narrow} == {"rec4"}
    assert {form.bits for form in space.deployments(Architecture("gru", 32), signature)} == {"32", "rec4"}


def test_one_study_never_sees_the_choices_of_a_name_change() -> None:
    space = Space(cell=tuple(CELLS), frame_stack=(1, 3, 8), bits=tuple(BITS), lowering=LOWERINGS, steps=(1, 4, 8))
    signature = Signature("classification", 10, 3, 2)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(60):
        trial = study.ask()
        point = space.sample(trial, signature)
        assert space.parameters(point, signature) == trial.params
        study.tell(trial, 0.0)


def test_hints_are_drawn_for_the_distilled_alone() -> None:
    space, signature = Space(cell=("gru",)), Signature("classification", 10, 3, 2)
    teaching: dict[str, Any] = {"distillation": (0.0, 0.5), "hints": (0.0, 0.1, 1.0)}
    for seed in range(20):
        dice = Dice(seed)
        point = space.sample(dice, signature, **teaching)
        assert ("hints" in dice.params) == (point.training.distillation > 0)
        assert space.parameters(point, signature, **teaching) == dice.params
        twin = replace(point, training=replace(point.training, distillation=0.0, hints=0.0))
        assert "hints" not in space.parameters(twin, signature, **teaching)
    orphan = replace(point, training=replace(point.training, distillation=0.0, hints=0.1))
    with pytest.raises(SpecError, match="outside the space"):
        space.parameters(orphan, signature, **teaching)


def test_steps_stop_at_the_end_of_the_sequence_after_stacking() -> None:
    space = Space(cell=("gru",), frame_stack=(4,), bits=("32",), lowering=("loop",), steps=(1, 2, 4, 8))
    forms = space.deployments(Architecture("gru", 16, frame_stack=4), Signature("classification", 10, 1, 2))
    assert [form.steps for form in forms] == [1, 2, 3]


def test_deployments_of_a_cell_without_a_recurrent_matrix() -> None:
    space = Space(cell=("qrnn",), bits=("32", "rec8"), lowering=("keras", "scan"), batch=(1, 8))
    forms = space.deployments(Architecture("qrnn", 16), Signature("classification", 10, 1, 2))
    assert forms == (Deployment("scan", 1, "32", 1), Deployment("scan", 1, "32", 8))


@pytest.mark.parametrize(
    "other",
    [
        Genotype(Architecture("lstm", 16), Training(1e-3), Deployment()),
        Genotype(Architecture("gru", 24), Training(1e-3), Deployment()),
        Genotype(Architecture("gru", 16), Training(0.5), Deployment()),
        Genotype(Architecture("gru", 16), Training(1e-3), Deployment(bits="rec8")),
        Genotype(Architecture("gru", 16), Training(1e-3), Deployment(batch=8)),
    ],
)
def test_a_point_outside_the_space_has_no_parameters(other: Genotype) -> None:
    space, signature = Space(cell=("gru",), units=(16, 32, 16)), Signature("classification", 10, 1, 2)
    with pytest.raises(SpecError, match="outside the space"):
        space.parameters(other, signature)


@pytest.mark.parametrize(
    ("space", "kind", "words"),
    [
        (Space(cell=()), "classification", "space.cell: got an empty list; name at least one value"),
        (Space(cell=("gruu",)), "classification", "space.cell: got 'gruu'; did you mean 'gru'?"),
        (Space(cell=("my.cells:Cell",)), "classification", "cells of your own are not searched yet; name some of lstm"),
        (Space(cell=("gru", "gru")), "classification", "where a value is named twice; name each once"),
        (Space(bits=("rec9",)), "classification", "space.bits: got 'rec9'; did you mean 'rec"),
        (
            Space(lowering=("whlie",)),
            "classification",
            "space.lowering: got 'whlie'; known names: keras, loop, parallel, scan",
        ),
        (Space(readout=("first",)), "classification", "space.readout: got 'first'; known names: attention, last, mean"),
        (Space(units=(64, 16)), "classification", "space.units: got .64, 16., where low exceeds high; swap them"),
        (Space(units=(0, 16)), "classification", "space.units: got .0, 16.; give whole numbers from 1 to 4096"),
        (Space(units=(16, 64, 0)), "classification", "got a step of 0; give whole numbers .* the step at least 1"),
        (Space(units=(1, 2, 3, 4)), "classification", "has too many numbers; give whole numbers"),
        (Space(dropout=(0.0, 1.5)), "classification", "space.dropout: got .0.0, 1.5.; give shares from 0 to 0.9"),
        (Space(learning_rate=(0.0, 0.1)), "classification", "space.learning_rate: got .* from 1e-7 to 1"),
        (Space(learning_rate=(float("nan"),)), "classification", "space.learning_rate: got .nan.; give numbers"),
        (Space(layers=(4,)), "classification", "space.layers: got 4; from 1 to 3 layers can be stacked"),
        (
            Space(sparsity=(1.0,)),
            "classification",
            "space.sparsity: got 1.0; the share of zeros is at least 0 and less",
        ),
        (Space(qat=("9",)), "classification", "space.qat: got '9'; known names: 4, 8, rec4, rec8"),
        (Space(qat=("", "4")), "classification", "space.qat: got '4', which only serves '4'; name it in bits too"),
        (Space(qat=("8",), lowering=("keras",), cell=("gru",)), "tagging", "space.qat: .* leave the key out"),
        (Space(block=(16,)), "classification", "space.block: got .16., but no zeros are asked for"),
        (Space(pruned_units=(1.0,)), "classification", "space.pruned_units: got 1.0; the share of units cut out is"),
        (Space(pruned_units=(0.5,), cell=("lstmp",)), "tagging", "space.pruned_units: .* no units to cut; leave"),
        (Space(steps=(0,)), "classification", "space.steps: got 0; an iteration works off 1 or more"),
        (Space(batch=(0,)), "classification", "space.batch: got 0; a call takes 1 or more sequences"),
        (Space(frame_stack=(1, 4)), "tagging", "space.frame_stack: got .1, 4.; tagging answers at every step"),
        (Space(readout=("mean",)), "tagging", "space.readout: got .'mean'.; tagging reads every step"),
        (
            Space(frame_stack=(1, 40)),
            "classification",
            "space.frame_stack: got 40; the sequences have only 10 time steps",
        ),
        (Space(cell=("fastgrnn",), lowering=("keras",)), "classification", "fastgrnn can be served by loop only"),
        (Space(cell=("gru", "qrnn"), bits=("rec8",)), "regression", "none of which fits qrnn; it takes 32, 16, 8, 4"),
    ],
)
def test_what_cannot_be_built_is_said_in_words(space: Space, kind: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        space.check(kind, time_steps=10)


def test_the_default_space_is_legal_for_every_kind_of_task() -> None:
    for kind in ("classification", "regression", "tagging"):
        Space().check(kind, time_steps=1)
