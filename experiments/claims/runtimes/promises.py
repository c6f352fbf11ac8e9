"""The report of the runtimes claim: tables, and which promise is kept."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.claims.runtimes.cases import CASES, Case


@dataclass(frozen=True)
class Ratio:
    """How many times one time is another: the median over rounds, and where the middle 80 % of them lie."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Three digits."""
        return f"{self.median:.3g}"


class Results:
    """The rows of one case, asked for by what they are: `brisk 8`, `keras3 8`, `onnxruntime`."""

    def __init__(self, rows: dict[str, dict[str, Any]]) -> None:
        self.rows = rows

    def best(self, *starts: str) -> str | None:
        """The fastest candidate whose name starts so; None where there is none, or its figure is broken."""
        found = [name for name, row in self.rows.items() if name.startswith(starts) and not row.get("broken")]
        return min(found, key=lambda name: float(self.rows[name]["ms"]), default=None)

    def over(self, fast: str | None, slow: str | None) -> Ratio | None:
        """How many times faster `fast` is than `slow`, by pairs of the same round."""
        if fast is None or slow is None:
            return None
        pairs = zip(self.rows[fast]["rounds_ms"], self.rows[slow]["rounds_ms"], strict=False)  # glacial ones have fewer
        found = sorted(second / first for first, second in pairs)
        low, high = (found[round(share * (len(found) - 1))] for share in (0.1, 0.9))
        return Ratio(statistics.median(found), low, high)

    def figure(self, name: str | None, key: str, digits: str) -> str:
        """One figure of a candidate, as text."""
        return "–" if name is None or key not in self.rows[name] else format(self.rows[name][key], digits)


EIGHT, FOUR, LOSSLESS = "brisk 8 ", "brisk rec4 ", ("brisk 32 ", "brisk 8 ", "brisk rec8 ")
ORDINARY, FLOAT_ORDINARY = (
    ("keras3", "tf_keras", "predict", "tf.function", "xla", "savedmodel"),
    ("keras3 32", "tf_keras 32", "predict", "tf.function", "xla", "savedmodel"),
)
OTHER = ("onnxruntime", "openvino", "torch")
TIE = 0.97
COLUMNS = (
    "model T-F-H", "brisk w8 ms", "steps", "over Keras 3 static, dyn", "over tf_keras dyn, as shipped", "clean",
    "over predict", "over the best other runtime", "rec4 over w8", "error w8 / rec4", "floor ms", "hand-written ms",
    "w8 time of hand-written",
)  # fmt: skip


def table_row(name: str, results: Results) -> list[str]:
    """A case in the table; ratios say how many times faster brisk's best 8-bit form is, but for the last."""
    eight, four, other = results.best(EIGHT), results.best(FOUR), results.best(*OTHER)
    ordinary = ("keras3 8", "tf_keras 8 shipped", "tf_keras 8 clean", "predict")
    ratios = [results.over(eight, results.best(slow)) for slow in ordinary]
    against = [results.over(eight, other), results.over(four, eight), results.over(results.best("hand"), eight)]
    rival, gain, hand = (str(ratio or "–") for ratio in against)
    wrong = " / ".join(results.figure(each, "relative_rms_error", ".1e") for each in (eight, four))
    return [
        name,
        results.figure(eight, "ms", ".4f"),
        eight.removeprefix(EIGHT) if eight else "–",
        *(str(ratio or "–") for ratio in ratios),
        f"{rival} ({other})",
        gain,
        wrong,
        results.figure(eight, "floor_ms", ".4f"),
        results.figure(results.best("hand"), "ms", ".4f"),
        hand,
    ]


BRIEF = ("LSTM or GRU, T-F-H", "Keras 3, int8", "brisk, int8", "faster", "than fused, as shipped", "than predict",
         "than the best other", "int4 recurrence")  # fmt: skip


def brief_row(name: str, results: Results) -> list[str]:
    """A case as the README shows it: milliseconds, and how many times faster brisk's best 8-bit form is."""
    eight, four, other = results.best(EIGHT), results.best(FOUR), results.best(*OTHER)
    stock = results.best("keras3 8")
    ratios = [results.over(eight, results.best(slow)) for slow in ("keras3 8", "tf_keras 8 shipped", "predict")]
    rival, narrow = results.over(eight, other), results.over(four, stock)
    words = " ".join((other or "").split()[:2]).replace("onnxruntime", "ONNX Runtime").replace(" 8", " int8")
    return [
        name.replace("-b32", ", batch 32"),
        *(results.figure(each, "ms", ".3f") for each in (stock, eight)),
        *(f"{float(f'{ratio.median:.3g}'):,.4g}×" if ratio else "–" for ratio in ratios),
        f"{rival.median:.2f}× ({words.replace(' 32', '')})" if rival else "–",
        f"{narrow.median:.2f}×" if narrow else "–",
    ]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def steps_row(name: str, results: Results) -> list[str]:
    """The 8-bit time at each number of steps an iteration, the best of a layer and stacked."""
    found = [results.best(f"brisk 8 k{k}") for k in (1, 2, 4, 8, 50)]
    return [name, *(results.figure(each, "ms", ".4f") for each in found)]


Wanted = tuple[str, Callable[[Case], bool], Callable[[Results], Ratio | None], str, Callable[[Case], float]]


def wanted() -> list[Wanted]:
    """What is promised: its words, of which cases, the figure, and its limit."""

    def over(fast: str | Sequence[str], *slow: str) -> Callable[[Results], Ratio | None]:
        starts = (fast,) if isinstance(fast, str) else fast
        return lambda results: results.over(results.best(*starts), results.best(*slow))

    def one(case: Case) -> bool:
        return case.batch == 1 and case.shape == "last"

    def tie(case: Case) -> float:
        return TIE

    shapes = {"sequences": 4.0, "two": 3.0, "bidirectional": 1.35}
    stock, rivals, hand, narrow = (
        over(*pair) for pair in ((EIGHT, "keras3 8"), (EIGHT, *OTHER), ("hand", EIGHT), (FOUR, EIGHT))
    )
    return [
        ("w8 over Keras 3 static, dyn", lambda c: one(c) and c.units in (128, 256), stock, ">=", lambda c: 1.25),
        ("w8 over Keras 3 static, dyn", lambda c: one(c) and c.units == 512, stock, ">=", lambda c: 1.15),
        ("w8 over Keras 3 static, dyn", lambda c: c.shape in shapes, stock, ">=", lambda c: shapes[c.shape]),
        ("rec4 over w8", lambda c: one(c) and (c.cell, c.units) == ("lstm", 512), narrow, ">=", lambda c: 1.8),
        ("w8 over predict", lambda c: one(c) and c.units <= 128, over(EIGHT, "predict"), ">=", lambda c: 100.0),
        ("32, 8 or rec8 over the best ordinary", lambda c: True, over(LOSSLESS, *ORDINARY), ">=", tie),
        ("32 over the best ordinary float", lambda c: True, over("brisk 32 ", *FLOAT_ORDINARY), ">=", tie),
        ("w8 over the best other runtime", lambda c: one(c) and (c.units > 64 or c.cell == "gru"), rivals, ">=", tie),
        ("w8 time of the hand-written", lambda c: one(c) and c.units == 256, hand, "<=", lambda c: 1.3),
        ("w8 time of the hand-written", lambda c: one(c) and c.units == 128, hand, "<=", lambda c: 1.5),
    ]


def verdicts(cases: dict[str, Any]) -> list[dict[str, Any]]:
    """Every promise of every case that was measured, and whether it is kept."""
    found = []
    for words, of, figure, sign, limit in wanted():
        for case in CASES:
            if case.name not in cases or "rows" not in cases[case.name] or not of(case):
                continue
            ratio, bound = figure(Results(cases[case.name]["rows"])), limit(case)
            if ratio is not None:
                hit = ratio.median >= bound if sign == ">=" else ratio.median <= bound
                row = {"promise": words, "case": case.name, "figure": ratio.median, "low": ratio.low}
                found.append({**row, "high": ratio.high, "wanted": f"{sign} {bound:g}", "hit": hit})
    return found


def written(report: dict[str, Any]) -> str:
    """The tables, the promises, and what failed or cannot be trusted, as markdown."""
    done = {case: report["cases"][case.name] for case in CASES if "rows" in report["cases"].get(case.name, {})}
    rows = {case: Results(found["rows"]) for case, found in done.items()}
    parts = [", ".join(f"{name} {value}" for name, value in report["conditions"].items())]
    for batch in (1, 32):
        parts.append(f"Batch {batch}: ratios say how many times faster brisk's best 8-bit form is")
        parts.append(markdown(COLUMNS, [table_row(c.name, r) for c, r in rows.items() if c.batch == batch]))
    parts.append("In brief, as the README shows it")
    parts.append(markdown(BRIEF, [brief_row(c.name, r) for c, r in rows.items()]))
    parts.append("brisk w8, ms by steps an iteration")
    parts.append(markdown(("case", "1", "2", "4", "8", "all"), [steps_row(c.name, r) for c, r in rows.items()]))
    marks = [
        f"- {'hit ' if each['hit'] else 'MISS'} {each['case']}: {each['promise']} {each['figure']:.3g} "
        f"({each['low']:.3g}–{each['high']:.3g}), wanted {each['wanted']}"
        for each in report["verdicts"]
    ]
    parts.append("\n".join(["Promises (median of the ratio over rounds, p10–p90)", *marks]))
    notes = [f"- {case.name}: {name}: {why}" for case, found in done.items() for name, why in found["notes"].items()]
    notes += [f"- {name}: {found['died']}" for name, found in report["cases"].items() if "died" in found]
    notes += [
        f"- {case.name}: {name}: {row['ms']:.4f} ms is under its floor of {row['floor_ms']:.4f}: not a measurement"
        for case, found in done.items()
        for name, row in found["rows"].items()
        if row.get("broken")
    ]
    return "\n\n".join([*parts, "\n".join(["Left out", *notes])]) + "\n" if notes else "\n\n".join(parts) + "\n"
