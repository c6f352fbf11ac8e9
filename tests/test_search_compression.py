"""The sums of the ledger of techniques, on candidates made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rehearsed import bench

from objectives.outcome import Outcome
from objectives.rehearsal import invented
from search.compression import TECHNIQUES, Pair, _one_sided, ledger, pairs, verdict
from spaces.genotype import Architecture, Deployment, Genotype, Training


def outcome(
    ms: float = 1.0,
    *,
    kib: float = 10,
    error: float = 0.1,
    width: float = 0.01,
    tested: tuple[float, float] | None = None,
    packed: int = 0,
    training: Training | None = None,
    units: int = 32,
    **served: Any,
) -> Outcome:
    """Latency `ms` a call with an interval of `width` on both sides; `tested` is (test accuracy, standard error)."""
    genotype = Genotype(Architecture("gru", units), training or Training(), Deployment(**served))
    made = invented(bench(Path("home")), genotype)
    assert made.quality
    assert made.measurement
    assert made.artifact
    test, stderr = tested or (None, None)
    interval = (ms * (1 - width), ms * (1 + width))
    return replace(
        made,
        quality=replace(made.quality, validation=1 - error, error=error, test=test, test_stderr=stderr),
        measurement=replace(made.measurement, median_ms=ms, ci_ms=interval),
        artifact=replace(made.artifact, size_bytes=int(1024 * kib), compressed_bytes=packed),
    )


def found(*outcomes: Outcome, **more: Any) -> list[Pair]:
    return list(pairs(dict(enumerate(outcomes)), more.pop("finals", {}), **more))


def test_a_pair_differs_in_its_technique_alone() -> None:
    """Of four forms of one model, by hand: int8 against float in each loop, four steps against one at each width."""
    forms = [
        outcome(4.0, kib=40, steps=1), outcome(2.0, kib=40, steps=4),
        outcome(2.0, kib=10, steps=1, bits="8"), outcome(1.6, kib=10, steps=4, bits="8"),
    ]  # fmt: skip
    assert {(pair.technique, pair.used, pair.unused, pair.latency_ratio) for pair in found(*forms)} == {
        ("bits", 2, 0, 2.0), ("bits", 3, 1, 1.25), ("steps", 1, 0, 2.0), ("steps", 3, 2, 1.25),
    }  # fmt: skip
    stranger = outcome(9.0, units=48, steps=4)
    assert len(found(*forms, stranger)) == 4
    bits, steps = ledger(found(*forms))
    assert (bits.technique, bits.setting, bits.pairs, bits.latency_ratio) == ("bits", "8", 2, 1.625)
    assert bits.latency_range == (1.25, 2.0)
    assert (bits.bytes_ratio, steps.bytes_ratio) == (4.0, 1.0)
    assert (bits.verdict, steps.verdict) == ("1.6× faster, smaller", "1.6× faster")


def test_forms_and_batches_are_compared_with_the_plain_loop_of_one_sequence() -> None:
    forms = [
        outcome(2.0), outcome(1.0, lowering="scan"), outcome(3.0, lowering="keras"), outcome(4.0, batch=8),
    ]  # fmt: skip
    ratios = {(pair.technique, pair.setting): pair.latency_ratio for pair in found(*forms)}
    assert ratios == {("scan", "over loop"): 2.0, ("loop", "over keras"): 1.5, ("batch", "8"): 4.0}


def test_a_form_without_a_file_is_paired_where_its_error_is_known() -> None:
    """Its loops have the weights of those that were deployed; what other bits would have answered nobody knows."""

    def undeployed(form: Outcome) -> Outcome:
        assert form.quality
        return replace(form, state="stopped", stage="deploy", quality=None, trained_error=form.quality.error)

    plain, slow = outcome(2.0, steps=1, error=0.2), undeployed(outcome(4.0, steps=4, error=0.2))
    narrow = undeployed(outcome(9.0, steps=1, bits="8", error=0.1))
    (pair,) = found(plain, slow, narrow)
    assert (pair.technique, pair.latency_ratio, pair.error_change) == ("steps", 0.5, 0.0)
    (pair,) = found(undeployed(plain), slow)
    assert (pair.technique, pair.latency_ratio, pair.error_change) == ("steps", 0.5, 0.0)
    (entry,) = ledger([pair])
    assert entry.verdict == "no gain: 2.0× slower"


def test_what_trains_differently_is_paired_with_its_twin() -> None:
    taught = Training(distillation=0.5, hints=0.1, sparsity=0.8)
    twin, other = replace(taught, distillation=0.0, hints=0.0), replace(taught, sparsity=0.0)
    got = found(outcome(training=taught), outcome(training=twin), outcome(training=other))
    assert [(pair.technique, pair.setting, pair.unused) for pair in got] == [
        ("distillation", "0.5", 1), ("sparsity", "80%", 2)
    ]  # fmt: skip
    assert found(outcome(training=taught), outcome(training=replace(twin, sparsity=0.0))) == []


def test_every_technique_is_off_in_what_it_leaves() -> None:
    all_on = Training(distillation=0.5, hints=0.1, sparsity=0.8, block=4, pruned_units=0.5, qat="4")
    for served in (Deployment("loop", 4, "4", 8), Deployment("scan", 1, "8", 1), Deployment("stacked", 2, "8", 1)):
        genotype = Genotype(Architecture("gru", 32), all_on, served)
        for technique in TECHNIQUES:
            assert technique.setting(technique.without(genotype)) == ""


def test_figures_of_two_sittings_are_never_compared() -> None:
    plain, narrow = outcome(4.0, tested=(0.9, 0.01)), outcome(2.0, bits="8")
    (both,) = found(plain, narrow, finals={0: outcome(3.0, tested=(0.88, 0.03)), 1: outcome(1.0, tested=(0.92, 0.04))})
    assert both.final
    assert both.tested
    assert both.latency_ratio == 3.0
    assert both.error_change == pytest.approx(-0.04)
    assert both.error_noise == pytest.approx(0.05)
    (one,) = found(plain, narrow, finals={0: outcome(3.0)})
    assert not one.final
    assert one.latency_ratio == 2.0


def test_a_validation_figure_is_as_sure_as_its_part_is_large() -> None:
    (pair,) = found(outcome(error=0.1), outcome(error=0.2, bits="8"), rows=400)
    assert pair.error_noise == pytest.approx(math.hypot(math.sqrt(0.09 / 400), math.sqrt(0.16 / 400)), rel=0.01)
    (perfect,) = found(outcome(error=0.0), outcome(error=1 / 400, bits="8"), rows=400)
    assert perfect.error_noise > 1 / 400  # one more wrong of so many says nothing


def say(*candidates: Outcome, **more: Any) -> str:
    return verdict(found(*candidates, **more))


def test_verdicts_in_words() -> None:
    plain = outcome(2.0, kib=40)
    assert say(plain, outcome(1.0, kib=40, bits="8")) == "2.0× faster"
    assert say(plain, outcome(1.98, kib=40, bits="8")) == "no gain"  # within the noise of latency
    assert say(plain, outcome(1.8, kib=40, bits="8", width=0.15)) == "no gain"  # within the interval
    assert say(plain, outcome(2.0, kib=10, bits="8")) == "smaller only"
    assert say(plain, outcome(2.5, kib=40, bits="8")) == "no gain: 1.2× slower"
    assert say(plain, outcome(1.0, kib=10, error=0.2, bits="8"), rows=400) == "2.0× faster, smaller, but less accurate"
    assert say(plain, outcome(2.0, kib=40, error=0.11, bits="8"), rows=400) == "no gain"  # one of 400 is 1.5 points
    sparse = outcome(2.0, kib=40, packed=20_000, training=Training(sparsity=0.8))
    assert say(outcome(2.0, kib=40, packed=40_000), sparse) == "smaller when packed (2.0×) only"


def test_small_changes_of_one_sign_in_many_models_are_no_chance() -> None:
    """Six models lose 0.1 points each, which is noise for one; two-sided, six of one sign have a chance of 1 in 32."""
    many = [
        one for units in range(8, 56, 8) for one in (outcome(units=units), outcome(error=0.101, units=units, bits="8"))
    ]
    assert say(*many, rows=400) == "no gain: less accurate"
    assert say(*many[:-2], rows=400) == "no gain"
    forms = [outcome(steps=steps) for steps in range(1, 7)]
    narrow = [outcome(error=0.101, steps=steps, bits="8") for steps in range(1, 7)]
    (bits, *_) = ledger(found(*forms, *narrow, rows=400))
    assert (bits.pairs, bits.verdict) == (6, "no gain")  # six forms of one model are one draw


def test_some_faster_and_some_slower_is_said() -> None:
    got = found(
        *(outcome(2.0, units=units) for units in (8, 16, 24, 32)),
        *(outcome(ms, units=units, bits="8") for ms, units in ((1.0, 8), (2.0, 16), (2.0, 24), (3.0, 32))),
    )
    assert verdict(got) == "faster in 1 of 4, but slower in 1 of 4"


def test_the_sign_test_holds_for_thousands_of_models() -> None:
    """By hand: 1,000 of 2,100 is within chance (2.2 standard deviations), 900 is not (6.5); neither fits a float."""
    plain, other = outcome(1.0, kib=40), outcome(1.0, kib=40, bits="8")

    def told(better: int) -> bool:
        (pair,) = found(plain, other)
        changes = [-1e-6] * better + [1e-6] * (2100 - better)
        return _one_sided([replace(pair, model=str(at), error_change=change) for at, change in enumerate(changes)])

    assert not told(1010)
    assert told(900)
    assert not told(1050)
