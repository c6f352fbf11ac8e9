"""What a person reads: the front as a table, and what a running study is doing."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.figures import number, times
from experiments.tables import COMPRESSION, batch, batch_title, chosen, compression, drawn, gains, luck
from search.ledger import form, title
from spaces.catalog import asked_bits

NARROW, SLIM = 100, 78  # columns: below the first, bits and form share one; below the second, less is shown
PIPE_COLUMNS = 120  # where nobody's window limits the width

NOISY = "~ its interval is wider than asked for: the machine was noisy"

UNSURE = "^"
"""Before a figure of the search where others are of the end."""

REHEARSAL = "REHEARSAL: invented figures"

MOST_BAD = 5  # lines of the health block: more are in the JSON

ENDED = {
    "timeout": "It ended because its time was up; the same command goes on with it.",
    "exhausted": "It ended because the sampler found nothing in the space that was not tried yet.",
    "target": "It ended because a point reached what stop_when asks for.",
    "missed": "It ended because a point reached what stop_when asks for; measured again, none does. The same command "
    "goes on with it.",
    "settled": "It ended because the hypervolume has settled.",
    "interrupted": "It was interrupted; the same command goes on with it.",
}
"""Why a study ended before its trials were told."""

ASCII = str.maketrans({"±": "+-", "→": "->", "·": "-", "×": "x", "✓": "*", "…": "..."})


class Page(Console):
    """A console that leaves what a vanished reader means to its owner; rich itself would end the process."""

    def __init__(self, stream: IO[str], *, forgiving: bool) -> None:
        tty = bool(getattr(stream, "isatty", lambda: False)())
        width = None if tty else PIPE_COLUMNS
        super().__init__(file=stream, force_terminal=tty, width=width, highlight=False, markup=False, emoji=False)
        self._forgiving = forgiving

    def on_broken_pipe(self) -> None:
        """Called while a BrokenPipeError is handled: fall silent, or let it through."""
        self.quiet = True
        if not self._forgiving:
            raise


def console(stream: IO[str] | None = None, *, forgiving: bool = False) -> Console:
    """A console on a stream (standard output); one that is no terminal gets wide plain lines without control codes.

    Where the reader has gone, a `forgiving` one falls silent, another raises BrokenPipeError.
    """
    return Page(stream or sys.stdout, forgiving=forgiving)


class Speaker:
    """Prints plain lines, and makes plain rows, in ASCII where the stream has nothing better."""

    def __init__(self, to: Console) -> None:
        self.to = to
        self._ascii_only = not to.encoding.lower().replace("-", "").startswith("utf")

    def __call__(self, line: str, style: str = "", whole: bool = False) -> None:
        """One line; a `whole` one is never wrapped, for it is there to be copied."""
        self.to.print(Text(self.plain(line), style=style), soft_wrap=whole)

    def row(self, drawn: Table, cells: Sequence[str], style: str = "") -> None:
        """Add a row to a table."""
        drawn.add_row(*(Text(self.plain(cell)) for cell in cells), style=style)

    def plain(self, line: str) -> str:
        """The line as the stream can print it."""
        return line.translate(ASCII) if self._ascii_only else line


def write(summary: Mapping[str, Any], to: Console) -> None:
    """The whole report of a study: baseline, front, counts, failures, wall time, health, and what to do next."""
    say = Speaker(to)
    name, front, baseline = summary["study"], summary["front"], summary.get("baseline")
    rehearsal = summary.get("rehearsal", False)
    if rehearsal:
        say(REHEARSAL, style="bold")
    if baseline:
        say(f"Baseline: {provenance(baseline)}; speedup and drop are against it.")
    if front or baseline:
        to.print(table(summary, say))
        for line in footnotes(summary, [*shown(front), *([baseline] if baseline else [])]):
            say(line, style="dim")
        if any(_as_good(point, front) for point in shown(front)):
            say(
                "+ as many points as good in all, within noise; --json names them",
                style="dim",
            )
    for point in _models(shown(front)):
        for line in luck(point):
            say(line)
    _write_beside(summary, say)
    say("")
    say(counts_line(summary))
    if why := ENDED.get(summary.get("ended", "")):
        say(why)
    if summary["counts"].get("running") and summary.get("driven") is False:
        say("No process drives it now; the same command goes on with it.")
    for line in failure_lines(summary["failures"]):
        say(line, style="red")
    for line in (split_line(summary), training_line(summary), *economy_lines(summary)):
        if line:
            say(line)
    _write_health(summary, say)
    if rehearsal:
        say("Next: the same command without --rehearse")
    elif front:
        say(f"Next: brisk ui {name}    (a closer look)", whole=True)
        say(f"      brisk export {name} --pick knee --to tflite --out DIR", whole=True)
    elif any(summary["counts"].values()) and not summary["counts"].get("running"):
        say("Nothing is on the front: loosen a bound under [objectives], or give it more trials with --trials.")


def _write_beside(summary: Mapping[str, Any], say: Speaker) -> None:
    """What each technique bought, and the chosen model by batch size."""
    width = say.to.width
    padding = 1 if width < NARROW else 2
    if summary.get("compression"):
        say("")
        say(COMPRESSION)
        shown = chosen(compression(summary), (0, 2, 5)) if width < SLIM else compression(summary)
        say.to.print(drawn(shown, say.plain, padding=padding))
    if curve := summary.get("batch_curve"):
        say("")
        say(batch_title(curve))
        shown = chosen(batch(summary), (0, 1, 3, 5)) if width < SLIM else batch(summary)
        say.to.print(drawn(shown, say.plain, padding=padding, left=(-1,)))
        if any(cell.startswith("~") for row in shown[1] for cell in row):
            say(NOISY, style="dim")
        if curve["text"]:
            say(curve["text"])


def _write_health(summary: Mapping[str, Any], say: Speaker) -> None:
    """The checks, a line each, and the advice."""
    if rows := health_rows(summary):
        grid = Table.grid(padding=(0, 2, 0, 0))
        for row in rows:
            say.row(grid, row)
        say("")
        say("Health")
        say.to.print(grid)
    if advice := summary.get("advice"):
        say(f"Advice: {advice['verdict']}, for {advice['text']}")


def provenance(baseline: Mapping[str, Any]) -> str:
    """The baseline and who exported it: a user's own model is named by its exporter."""
    name = title(baseline["genotype"])
    exporter = baseline["artifact"].get("exporter") or f"the {form(baseline['genotype'])} exporter"
    return str(exporter) if str(exporter).startswith(f"{name} by ") else f"{name}, exported by {exporter}"


def write_point(summary: Mapping[str, Any], point: Mapping[str, Any], to: Console) -> None:
    """One point of a study, below its baseline."""
    say = Speaker(to)
    if summary.get("rehearsal"):
        say(REHEARSAL, style="bold")
    alone = {**point, "ties": [], "tie_of": None}
    to.print(table({**summary, "front": [alone]}, say))
    for line in footnotes(summary, [alone, *([summary["baseline"]] if summary.get("baseline") else [])]):
        say(line, style="dim")
    for line in (*luck(point), *gains(point)):
        say(line)


def table(summary: Mapping[str, Any], say: Speaker) -> Table:
    """The front, fastest first, the baseline above it; test figures where there are any, validation until then.

    Of points that tie, the one that stands for the others.
    """
    width = say.to.width
    baseline = summary.get("baseline")
    points = sorted(shown(summary["front"]), key=lambda point: -point["throughput_per_s"])
    points = [*([baseline] if baseline else []), *points]
    metric = points[0]["quality"]["metric"] if points else "metric"
    shapes = [] if width < SLIM else ["bits, form"] if width < NARROW else ["bits", "form"]
    drawn = Table(box=None, padding=(0, 1 if width < NARROW else 2, 0, 0), header_style="bold", pad_edge=False)
    drawn.add_column("trial", justify="right", no_wrap=True)
    drawn.add_column("model", overflow="fold", min_width=8)
    for heading in shapes:
        drawn.add_column(heading, no_wrap=True)
    for heading in ("latency ms", "faster", metric, *(("drop", "KiB") if width >= SLIM else ())):
        drawn.add_column(heading, justify="right", no_wrap=True)
    for point in points:
        named = " (baseline)" if point is baseline and width >= NARROW else ""
        if more := _as_good(point, summary["front"]):
            named = f" +{more} tie{'' if more == 1 else 's'}"
        cells = ["base" if point["trial"] == "baseline" else str(point["trial"]), title(point["genotype"]) + named]
        served = [bits(point), form(point["genotype"])]
        cells += [" ".join(served)] if len(shapes) == 1 else served if shapes else []
        cells += [timed(summary, point), times(point.get("speedup")), quality(point["quality"])]
        if width >= SLIM:
            cells += [_drop(point), f"{point['size_bytes'] / 1024:.1f}"]
        say.row(drawn, cells, style="bold" if point is baseline else "")
    return drawn


def _as_good(point: Mapping[str, Any], front: Sequence[Mapping[str, Any]]) -> int:
    """How many others a point stands for: of the front, and what noise alone keeps off it."""
    names = {each["trial"] for each in front}
    merged = [each for each in front if each.get("tie_of") == point["trial"]]
    return len(merged) + len([name for name in point.get("ties", ()) if name not in names])


def shown(front: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The points of a front without those that another of them stands for."""
    names = {point["trial"] for point in front}
    return [point for point in front if point.get("tie_of") not in names]


def _models(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One point of each trained model, the first."""
    found: dict[str, Mapping[str, Any]] = {}
    for point in points:
        genotype = point["genotype"]
        found.setdefault(json.dumps([genotype["architecture"], genotype["training"]]), point)
    return list(found.values())


def bits(point: Mapping[str, Any]) -> str:
    """The bit width asked for, and what it became where that differs: "8", "rec8→32", "8→inp 32"."""
    asked = str(point["genotype"]["deployment"]["bits"])
    realised = point["artifact"].get("realised_bits") or {}
    wanted = {role: width for role, width in asked_bits(asked).items() if role in realised}
    wrong = {role: realised[role] for role, width in wanted.items() if realised[role] != width}
    if not wrong:
        return asked
    if len(wrong) == len(wanted) and len(set(wrong.values())) == 1:
        return f"{asked}→{next(iter(wrong.values()))}"
    return f"{asked}→" + ",".join(f"{role[:3]} {width}" for role, width in wrong.items())


def latency(measured: Mapping[str, Any]) -> str:
    """Median and the wider half of its 95 % interval; "~" before one that did not converge, "!" one not trusted."""
    median, (low, high) = measured["median"], measured["ci"]
    half = max(high - median, median - low) / median if median else 0.0
    sign = "!" if measured.get("trusted") is False else "" if measured["converged"] else "~"
    return f"{sign}{number(median)} ±{100 * half:.1f}%"


def timed(summary: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    """The latency of a point, "^" before one of the search where others were measured again."""
    return (UNSURE if _searched(summary, point) else "") + latency(point["latency_ms"])


def _searched(summary: Mapping[str, Any], point: Mapping[str, Any]) -> bool:
    return bool(summary.get("final")) and point.get("final") is False


def footnotes(summary: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the marks in a table of these points mean."""
    lines = []
    if any(point["latency_ms"]["batch"] > 1 for point in points):
        lines.append("latency is of a call of as many sequences as b says; faster, bounds and rules count one sequence")
    if any(latency(point["latency_ms"]).startswith("~") for point in points):
        lines.append(NOISY)
    distrusted = {point["latency_ms"].get("why", "") for point in points if point["latency_ms"].get("trusted") is False}
    lines += [f"! not to be relied on: {why}" for why in sorted(distrusted)]
    unsure = [point for point in points if _searched(summary, point)]
    reasons = {note for point in unsure for note in point.get("notes", ()) if "measured again" in note}
    reasons |= {"not measured again at the end"} if unsure and not reasons else set()
    lines += [f"{UNSURE} of the search: {why}" for why in sorted(reasons)]
    if any("→" in bits(point) for point in points):
        lines.append("→ the bit width asked for became the one after the arrow")
    stateful = [str(point["trial"]) for point in points if point["artifact"].get("keeps_state")]
    if stateful:
        lines.append(f"{', '.join(stateful)}: keeps its state from call to call, reset it before each")
    if points and all(point["quality"].get("test") is None for point in points):
        lines.append("quality on validation data; the test part is read once, at the end of the study")
    return lines


def quality(found: Mapping[str, Any]) -> str:
    """The test figure with its standard error, or the validation figure where the test has not been read."""
    part = ("validation", "stderr") if found.get("test") is None else ("test", "test_stderr")
    figure, error = (found.get(key) for key in part)
    return f"{figure:.3f}" + (f"±{error:.3f}" if error is not None else "")


def counts_line(summary: Mapping[str, Any]) -> str:
    """How many trials ended how, the hypervolume and the wall time."""
    counts = {state: count for state, count in summary["counts"].items() if count}
    parts = [
        f"{sum(counts.values())} trials: " + (", ".join(f"{n} {state}" for state, n in counts.items()) or "none yet")
    ]
    if summary.get("hypervolume") is not None:
        parts.append(f"hypervolume {summary['hypervolume']:.4g}")
    parts.append(duration(summary["wall_s"]))
    return " · ".join(parts)


def failure_lines(failures: Sequence[Mapping[str, Any]], most: int = 6) -> list[str]:
    """One line for each stage and reason, the commonest first, with the trials it took."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for failure in failures:
        groups[failure["stage"], " ".join(str(failure["reason"]).split())[:200]].append(failure["trial"])
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    lines = [f"{len(trials)} failed at {stage}: {why} ({_trials(trials)})" for (stage, why), trials in ordered[:most]]
    return lines + ([f"and {len(ordered) - most} other kinds of failure: see --json"] if len(ordered) > most else [])


def split_line(summary: Mapping[str, Any]) -> str:
    """What share of the wall time went where, from `summary["seconds"]`; "" where it is not known."""
    spent = summary.get("seconds") or {}
    shares = {"training": spent.get("training", 0.0), "measuring": spent.get("measuring", 0.0)}
    shares["neither"] = spent.get("other", 0.0)
    total = sum(shares.values())
    if not total:
        return ""
    idle = f"; workers idle {spent['idle_share']:.0%}" if spent.get("idle_share") else ""
    return "Wall time: " + ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in shares.items()) + idle


def training_line(summary: Mapping[str, Any]) -> str:
    """How fast the study trained; "" where it trained nothing."""
    training = summary.get("training") or {}
    if not training.get("sequences"):
        return ""
    return f"Trained on {training['sequences']:,} sequences, {training['sequences_per_s']:,.0f} a second in each worker"


def economy_lines(summary: Mapping[str, Any]) -> list[str]:
    """What the study was spared, from `summary["economy"]` (`search.economy`), and what its latency model is worth."""
    spared = summary.get("economy") or {}
    whole = f" ({spared['epochs_spared']:.1f} whole ones)" if spared.get("epochs_spared") else ""
    kinds = {
        "stopped_models": f"training{'s' * (spared.get('stopped_models') != 1)} stopped early{whole}",
        "undeployed": f"trained form{'s' * (spared.get('undeployed') != 1)} not deployed",
        "foretold": "foretold over a bound",
        "duplicates": "tried before",
        "known_crashes": "known to crash",
    }
    parts = [f"{spared[kind]:,} {words}" for kind, words in kinds.items() if spared.get(kind)]
    lines = ["Spared: " + ", ".join(parts)] if parts else []
    if model := spared.get("latency_model"):
        unused = "" if model["used"] else ", which is too far to skip any"
        foretold = f"Latency foretold from {model['outcomes']:,} candidates: 9 of 10 within {model['error']:.0%}"
        lines.append(foretold + unused)
    return lines


def health_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(verdict, words) of the checks of `search.health`: what is bad in full, the others by name."""
    checks = summary.get("health") or []
    bad = [check["text"] for check in checks if check["verdict"] == "bad"]
    rows = [("bad", text) for text in bad[:MOST_BAD]]
    rows += [("bad", f"{len(bad) - MOST_BAD} more: see --json")] if len(bad) > MOST_BAD else []
    for verdict in ("good", "unknown"):
        if names := [check["check"] for check in checks if check["verdict"] == verdict]:
            rows.append((verdict, _named(names)))
    return rows


def _named(checks: Sequence[str]) -> str:
    """The names of checks, those of objectives together: "predictable quality, latency; bounds; models"."""
    groups: dict[str, list[str]] = defaultdict(list)
    for check in checks:
        name, _, of = check.partition(" ")
        groups[name].append(of)
    return "; ".join(f"{name} {', '.join(of)}".strip() for name, of in groups.items())


def duration(seconds: float) -> str:
    """A duration as a person says it: "48 s", "3 min 51 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _drop(point: Mapping[str, Any]) -> str:
    """Against the baseline, on the data that the quality beside it is of."""
    drop = point.get("drop") if point["quality"].get("test") is None else point.get("test_drop", point.get("drop"))
    return "" if drop is None else f"{drop:+.3f}"


def _trials(trials: Sequence[int], most: int = 8) -> str:
    shown = ", ".join(str(trial) for trial in trials[:most]) + ("…" if len(trials) > most else "")
    return f"trial{'s' if len(trials) > 1 else ''} {shown}"
