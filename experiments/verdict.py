"""Which of the forms that were tried is taken, and why each of the others is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from objectives.latency.timing import tie_tolerance
from objectives.outcome import MeasureFailure, Measurement
from objectives.rewriting.tried import Tried, only_rounded
from spaces.errors import ModelError, VerificationError
from spaces.record import to_json

LEFT = "slower, measured shortly"
"""Of a form that might be used: others were faster, and taken to the measurement at length."""

Figures = Mapping[str, Measurement | MeasureFailure]


def good_enough(row: Tried, max_drop: float, allow_lossy: bool) -> bool:
    """Whether its answers are: exact, or within the drop, or, unjudged, allowed to be otherwise."""
    return not _objection(row, max_drop, allow_lossy, None)


def usable(
    rows: Sequence[Tried], figures: Figures, max_drop: float, allow_lossy: bool, widths: set[str] | None
) -> dict[str, str]:
    """Name -> "" for rows that may be chosen, else why not. `widths`: where there are no labels at this length, those
    that kept within the drop at the data's own.
    """
    said = {}
    for row in rows:
        figure = figures.get(row.file)
        unmeasured = f"failed: not measured, {figure.reason}" if isinstance(figure, MeasureFailure) else ""
        said[row.name] = unmeasured or _objection(row, max_drop, allow_lossy, widths)
    return said


def _objection(row: Tried, max_drop: float, allow_lossy: bool, widths: set[str] | None) -> str:
    """Why not, in a word or two, a colon, and the particulars; "" where it may be chosen."""
    if row.reason or row.max_difference is None:
        return f"failed: {row.reason or 'it was not judged'}"
    if row.keeps_state:
        return "keeps its state: wrong unless that is reset before each call"
    if row.exact:
        return ""
    if row.output_error == float("inf"):
        return "wrong: gives NaN or infinity"
    if row.drop is not None:
        return "" if row.drop <= max_drop else f"too lossy: drops by {row.drop:.4f}, over the {max_drop:g} allowed"
    if allow_lossy or (widths is not None and row.bits in widths):
        return ""
    return "unjudged: needs --data or --allow-lossy"


def finalists(rows: Sequence[Tried], said: Mapping[str, str], figures: Figures, most: int) -> list[str]:
    """Files worth measuring at length: the fastest usable ones, and the stock forms that they are held against."""
    timed = [row for row in rows if isinstance(figures.get(row.file), Measurement)]
    fast = sorted((row for row in timed if not said[row.name]), key=lambda row: _median(figures, row))
    stock = sorted((row for row in timed if row.stock), key=lambda row: _median(figures, row))
    exact = [row for row in fast if row.exact][:2]
    usual = [row for row in stock if row.bits in ("8", "32")][:4]
    return list(dict.fromkeys(row.file for row in [*fast[:most], *exact, *stock[:1], *usual]))


def decided(
    rows: Sequence[Tried],
    said: Mapping[str, str],
    figures: Figures,
    final: set[str],
    facts: Mapping[str, Any],
    batch: int,
) -> dict[str, Any]:
    """The ledger of one batch and length: every form, the chosen one first, then by latency.

    Chosen is the fastest usable form; of those that tie with it, the one whose outputs err least, then the smallest.
    Raises ModelError where none is usable.
    """
    candidates = [row for row in rows if not said[row.name] and row.file in final]
    candidates = [row for row in candidates if isinstance(figures.get(row.file), Measurement)]
    if not candidates:
        why = "; ".join(f"{row.name}: {said[row.name] or LEFT}" for row in rows if row.file or row.reason)[:600]
        raise ModelError(f"none of the forms can be used ({why})")
    fastest = min(candidates, key=lambda row: _median(figures, row))
    ties = [row for row in candidates if _ties(_figure(figures, row), _figure(figures, fastest))]
    best = min(ties, key=lambda row: (not row.exact, _rounded(row.output_error), row.size_bytes, row.name))
    usual = _usual(rows, figures)
    entries = [_entry(row, said, figures, final, best, usual, ties) for row in rows]
    entries.sort(key=lambda each: (not each["chosen"], _sort_key(each)))
    return {
        "batch": batch,
        "time_steps": facts["time_steps"],
        "chosen": best.name,
        "chosen_file": best.file,
        "usual": usual.name if usual else None,
        "forms": entries,
    }


def proved(
    rows: Sequence[Tried],
    said: Mapping[str, str],
    figures: Figures,
    final: set[str],
    facts: Mapping[str, Any],
    batch: int,
    max_drop: float,
    prove: Callable[[dict[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    """`decided`, and what `prove` found of the chosen form on every row, its "proof".

    A form that drops more there than on the rows all were judged by is out, unless it is exact, and the next is chosen;
    "refuted" are the widths of those, but for the chosen one's. Raises VerificationError where none is left.
    """
    said, refuted = dict(said), set[str]()
    while True:
        try:
            part = decided(rows, said, figures, final, facts, batch)
        except ModelError as error:
            raise VerificationError(f"{error}; allow a little more or less") if refuted else error from None
        proof, chosen = prove(part), part["forms"][0]
        exact = chosen["exact"] and only_rounded(proof["max_difference"], proof["output_error"], chosen["bits"])
        if exact or proof["drop"] is None or proof["drop"] <= max_drop:
            return part | {"proof": proof, "refuted": refuted - {chosen["bits"]}}
        why = f"too lossy: drops by {proof['drop']:.4f} on all {proof['rows']} rows, over the {max_drop:g} allowed"
        said |= {row.name: why for row in rows if row.file == part["chosen_file"]}
        refuted.add(chosen["bits"])


def _usual(rows: Sequence[Tried], figures: Figures) -> Tried | None:
    """What people export today, which the others are held against: the model's own Keras, dynamic range, else float."""
    stock = [row for row in rows if row.stock and isinstance(figures.get(row.file), Measurement)]
    return next((row for bits in ("8", "32") for row in stock if row.bits == bits), None)


def _entry(
    row: Tried,
    said: Mapping[str, str],
    figures: Figures,
    final: set[str],
    best: Tried,
    usual: Tried | None,
    ties: Sequence[Tried],
) -> dict[str, Any]:
    figure = figures.get(row.file)
    timed = isinstance(figure, Measurement)
    return {
        "name": row.name,
        "form": row.way,
        "bits": row.bits,
        "stock": row.stock,
        "realised_bits": row.realised_bits,
        "latency_ms": latency(figure) if timed else None,
        "measured": ("at length" if row.file in final else "shortly") if timed else None,
        "speedup": _median(figures, usual) / _median(figures, row) if timed and usual else None,
        "size_bytes": row.size_bytes or None,
        "output_error": row.output_error,
        "max_difference": row.max_difference,
        "metric": row.scores or None,
        "drop": row.drop,
        "exact": row.exact,
        "chosen": row is best,
        "reason": _reason(row, said, figures, final, best, ties),
        "sha256": row.sha256 or None,
    }


def _reason(
    row: Tried, said: Mapping[str, str], figures: Figures, final: set[str], best: Tried, ties: Sequence[Tried]
) -> str:
    if row is best:
        others = [each for each in ties if each is not best and each.sha256 != best.sha256]
        return (
            f"the fastest: of {len(others) + 1} that tie, it errs least" if others else "the fastest that may be used"
        )
    if said[row.name]:
        return said[row.name]
    if row.sha256 == best.sha256:
        return "no gain: the same file as the chosen one"
    if row.file not in final:
        return LEFT
    times = _median(figures, row) / _median(figures, best)
    if row in ties:
        return "no gain: a tie with the chosen one" + (", with more error" if _more_error(row, best) else "")
    return f"slower: {times:.3g} times the chosen one's time"


def _more_error(row: Tried, best: Tried) -> bool:
    return (row.output_error or 0.0) > 1.5 * (best.output_error or 0.0) and not row.exact


def latency(figure: Measurement | MeasureFailure | None) -> dict[str, Any] | None:
    """A figure as JSON."""
    if not isinstance(figure, Measurement):
        return {"failed": figure.reason} if figure else None
    known = to_json(figure)
    return {
        "median": figure.median_ms,
        "ci": list(figure.ci_ms),
        **{key: known[key] for key in ("converged", "trusted", "scenario", "batch", "threads", "device", "why")},
    }


def ladder(found: Sequence[tuple[str, Any]], part: Mapping[str, Any]) -> list[dict[str, Any]]:
    """From what people start with to what was chosen: each runtime's figure, and how much faster the chosen one is."""
    chosen = next(entry for entry in part["forms"] if entry["chosen"])
    rungs: list[dict[str, Any]] = [{"runtime": label, "latency_ms": latency(figure)} for label, figure in found]
    stock = [entry for entry in part["forms"] if entry["stock"] and entry["latency_ms"]]
    named = {"32": "float32", "8": "dynamic range", "16": "float16", "full8": "full int8"}
    rungs += [
        {"runtime": f"{entry['form']}, TFLite {named[entry['bits']]}", "latency_ms": entry["latency_ms"]}
        for entry in stock
    ]
    rungs.append({"runtime": f"brisk: {chosen['name']}", "latency_ms": chosen["latency_ms"]})
    least = _a_sequence(chosen["latency_ms"])
    for rung in rungs:
        measured = rung["latency_ms"]
        rung["chosen_is_faster"] = _a_sequence(measured) / least if measured and "median" in measured else None
    return rungs


def _a_sequence(measured: Mapping[str, Any]) -> float:
    """Milliseconds: a model of a fixed batch runs at that in its own Keras, whatever batch the forms have."""
    return float(measured["median"]) / int(measured["batch"])


def _sort_key(entry: Mapping[str, Any]) -> float:
    return float(entry["latency_ms"]["median"]) if entry["latency_ms"] else float("inf")


def _figure(figures: Figures, row: Tried) -> Measurement:
    found = figures[row.file]
    assert isinstance(found, Measurement)
    return found


def _median(figures: Figures, row: Tried) -> float:
    return _figure(figures, row).median_ms


def _ties(one: Measurement, fastest: Measurement) -> bool:
    near = one.median_ms / fastest.median_ms - 1 <= tie_tolerance(fastest.median_ms)
    return near and one.ci_ms[0] <= fastest.ci_ms[1] * (1 + tie_tolerance(fastest.median_ms))


def _rounded(error: float | None) -> float:
    """Errors that agree to one digit are no reason to prefer a file."""
    return float(f"{error:.1g}") if error else 0.0
