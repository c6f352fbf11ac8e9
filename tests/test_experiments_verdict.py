"""Which form is taken and why the others are not, on figures made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from experiments import verdict
from objectives.outcome import MeasureFailure, Measurement
from objectives.rewriting.tried import Tried
from spaces.errors import ModelError, VerificationError


def figure(ms: float, half: float = 0.01) -> Measurement:
    return Measurement(
        device="fake",
        scenario="burst",
        threads=1,
        batch=1,
        median_ms=ms,
        ci_ms=(ms * (1 - half), ms * (1 + half)),
        raw_ms=ms,
        converged=True,
        trusted=True,
        why="",
        processes=3,
        blocks=30,
        first_ms=ms,
        load_ms=1.0,
        peak_memory_bytes=1,
        fingerprint="",
    )


def row(name: str, *, error: float = 0.0, drop: float | None = None, size: int = 100, **more: object) -> Tried:
    way, _, bits = name.rpartition(" ")
    made = Tried(name, way, bits, file=f"{name}.tflite", size_bytes=size, sha256=name, output_error=error)
    return replace(made, max_difference=error, drop=drop, **more)  # type: ignore[arg-type]


STOCK = row("Keras 3 8", error=1e-3, drop=0.0, stock=True)
FIGURES = {"Keras 3 8.tflite": figure(0.2)}
FACTS = {"time_steps": 10}


def decide(rows: list[Tried], times: dict[str, float], max_drop: float = 0.005, allow_lossy: bool = False) -> dict:
    figures = {f"{name}.tflite": figure(ms) for name, ms in times.items()}
    said = verdict.usable(rows, figures, max_drop, allow_lossy, None)
    final = set(verdict.finalists(rows, said, figures, 6))
    return verdict.decided(rows, said, figures, final, FACTS, 1)


def reasons(report: dict) -> dict[str, str]:
    return {entry["name"]: entry["reason"] for entry in report["forms"]}


def test_the_fastest_within_the_drop_is_chosen_and_all_others_are_told_why() -> None:
    rows = [
        STOCK,
        row("loop 8", error=1e-2, drop=0.001),
        row("loop 4", error=0.1, drop=0.02),
        row("loop 32"),
        Tried("loop full8", "loop", "full8", reason="the conversion died by signal 11 (SIGSEGV)"),
    ]
    report = decide(rows, {"Keras 3 8": 0.2, "loop 8": 0.1, "loop 4": 0.05, "loop 32": 0.15})
    assert report["chosen"] == "loop 8"
    assert report["forms"][0]["chosen"]
    assert report["forms"][0]["speedup"] == pytest.approx(2.0)
    told = reasons(report)
    assert told["loop 8"] == "the fastest that may be used"
    assert told["loop 4"] == "too lossy: drops by 0.0200, over the 0.005 allowed"
    assert told["loop 32"] == "slower: 1.5 times the chosen one's time"
    assert told["loop full8"] == "failed: the conversion died by signal 11 (SIGSEGV)"


def test_of_those_that_tie_the_one_that_errs_least_is_taken() -> None:
    rows = [STOCK, row("loop rec4", error=5e-2, drop=0.0), row("loop rec8", error=2e-3, drop=0.0)]
    report = decide(rows, {"Keras 3 8": 0.2, "loop rec4": 0.100, "loop rec8": 0.101})
    assert report["chosen"] == "loop rec8"
    assert reasons(report)["loop rec4"] == "no gain: a tie with the chosen one, with more error"


def test_without_labels_nothing_lossy_is_chosen_unless_allowed() -> None:
    rows = [replace(STOCK, drop=None), row("loop 8", error=1e-2), row("loop 32")]
    times = {"Keras 3 8": 0.2, "loop 8": 0.1, "loop 32": 0.15}
    report = decide(rows, times)
    assert report["chosen"] == "loop 32"
    assert reasons(report)["loop 8"] == "unjudged: needs --data or --allow-lossy"
    assert decide(rows, times, allow_lossy=True)["chosen"] == "loop 8"


def test_the_ordinary_form_is_taken_where_nothing_beats_it() -> None:
    report = decide([STOCK, row("loop 8", error=1e-3, drop=0.0)], {"Keras 3 8": 0.1, "loop 8": 0.2})
    assert report["chosen"] == "Keras 3 8"


def test_a_form_that_keeps_its_state_is_never_taken() -> None:
    rows = [STOCK, row("Keras 2 8", drop=0.0, stock=True, keeps_state=True)]
    report = decide(rows, {"Keras 3 8": 0.2, "Keras 2 8": 0.01})
    assert report["chosen"] == "Keras 3 8"
    assert reasons(report)["Keras 2 8"] == "keeps its state: wrong unless that is reset before each call"


def test_answers_that_are_no_numbers_are_never_taken() -> None:
    rows = [STOCK, row("loop 8", error=float("inf"), drop=0.0)]
    assert decide(rows, {"Keras 3 8": 0.2, "loop 8": 0.1})["chosen"] == "Keras 3 8"


def test_a_file_that_cannot_be_measured_is_told() -> None:
    rows = [STOCK, row("loop 8", drop=0.0)]
    figures = {**FIGURES, "loop 8.tflite": MeasureFailure("died by SIGABRT in open")}
    said = verdict.usable(rows, figures, 0.005, False, None)
    assert said["loop 8"] == "failed: not measured, died by SIGABRT in open"


def test_nothing_usable_is_an_error_that_lists_why() -> None:
    rows = [Tried("loop 32", "loop", "32", reason="ConverterError: no such kernel")]
    with pytest.raises(
        ModelError, match=r"none of the forms can be used \(loop 32: failed: ConverterError: no such kernel\)"
    ):
        verdict.decided(rows, verdict.usable(rows, {}, 0.0, False, None), {}, set(), FACTS, 1)


def test_the_ladder_says_how_much_faster_the_chosen_form_is_than_each_runtime() -> None:
    report = decide([STOCK, row("loop 8", drop=0.0)], {"Keras 3 8": 0.2, "loop 8": 0.1})
    rungs = verdict.ladder([("model.predict", figure(40.0)), ("tf.function", MeasureFailure("no"))], report)
    named = {rung["runtime"]: rung["chosen_is_faster"] for rung in rungs}
    assert named["model.predict"] == pytest.approx(400.0)
    assert named["tf.function"] is None
    assert named["Keras 3, TFLite dynamic range"] == pytest.approx(2.0)


def test_a_form_that_drops_more_on_all_rows_gives_way_to_the_next() -> None:
    rows = [STOCK, row("loop 4", error=0.1, drop=0.0), row("loop 8", error=1e-2, drop=0.001), row("loop 32")]
    figures = {f"{each.name}.tflite": figure(ms) for each, ms in zip(rows, (0.2, 0.05, 0.1, 0.15), strict=True)}
    said = verdict.usable(rows, figures, 0.005, False, None)
    drops, asked, off = {"loop 4": 0.02, "loop 8": 0.006, "loop 32": 0.01}, [], {"loop 32": 1e-6}

    def prove(part: dict) -> dict:
        asked.append(part["chosen"])
        difference = off.get(part["chosen"], 0.1)
        return {"drop": drops[part["chosen"]], "rows": 9000, "max_difference": difference, "output_error": difference}

    report = verdict.proved(rows, said, figures, set(figures), FACTS, 1, 0.005, prove)
    assert asked == ["loop 4", "loop 8", "loop 32"], "what is exact is never too lossy"
    assert report["chosen"] == "loop 32"
    assert report["proof"]["drop"] == 0.01
    assert report["refuted"] == {"4", "8"}, "widths that other lengths, which have no labels, are not to trust either"
    assert reasons(report)["loop 4"] == "too lossy: drops by 0.0200 on all 9000 rows, over the 0.005 allowed"

    off["loop 32"] = 0.1  # exact on some rows, and on all of them not
    drops["Keras 3 8"] = 0.3
    with pytest.raises(
        VerificationError, match=r"loop 32: too lossy: drops by 0.0100 on all 9000.*allow a little more"
    ):
        verdict.proved(rows, said, figures, set(figures), FACTS, 1, 0.005, prove)


def test_a_runtime_that_takes_another_batch_is_compared_by_the_sequence() -> None:
    report = decide([STOCK], {"Keras 3 8": 0.2})
    rungs = verdict.ladder([("model.predict", replace(figure(64.0), batch=32))], report)
    assert rungs[0]["chosen_is_faster"] == pytest.approx(10.0)
