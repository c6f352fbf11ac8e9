"""What a rewriting tells: the table, rewrite.json, and the README that lies beside the written files."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from experiments.figures import number, times
from experiments.report import NARROW, NOISY, Speaker, console
from objectives.latency.devices.local import processor
from spaces.catalog import asked_bits

LONGEST = 120  # letters of a reason in the table; rewrite.json has the whole
Report = dict[str, Any]


def card_of(wish: Any, facts: Mapping[str, Any], parts: Sequence[dict[str, Any]]) -> Report:
    """The content of rewrite.json, but for the ladder and the stream. `wish` is what was asked for (`rewrite.Wish`)."""
    first = parts[0]
    packages = ("brisk-rnn", "tensorflow", "keras", "tf-keras", "ai-edge-litert", "ai-edge-quantizer")
    return {
        "model": wish.model.name,
        "family": facts["family"],
        "parameters": facts["parameters"],
        "recurrent": facts["recurrent"],
        "left_as_they_are": facts["left"],
        "notes": _notes(facts),
        "inputs": facts["inputs"],
        "outputs": facts["outputs"],
        "judged_on": {"data": facts["judged_on"], "rows": facts["rows"], "labels": facts["judged"]},
        "original": facts["original"],
        "max_drop": wish.max_drop if facts["judged"] else None,
        "allow_lossy": wish.allow_lossy,
        "conditions": {
            "device": wish.device,
            "processor": processor(),
            "scenario": wish.scenario,
            "threads": wish.threads,
            "versions": {name: version(name) for name in packages},
        },
        "batch": first["batch"],
        "time_steps": first["time_steps"],
        "chosen": first["chosen"],
        "held_against": first["usual"],
        "file": first["file"],
        "forms": first["forms"],
        "proof": first["proof"],
        "others": [{key: part[key] for key in ("file", "batch", "time_steps", "chosen", "forms", "proof")}
                   for part in parts[1:]],
    }  # fmt: skip


def _notes(facts: Mapping[str, Any]) -> list[str]:
    said = []
    if facts["family"] == "SavedModel":
        said.append(
            "A SavedModel without Keras layers: its recurrent layers cannot be told apart, so it was converted as it "
            "is and quantised. The .keras or .h5 file it was made of would allow more."
        )
    elif not facts["recurrent"]:
        said.append("No recurrent layer that brisk rewrites: the model was converted, quantised and measured as it is.")
    if facts["left"]:
        said.append(f"Left as they are, in Keras's own form: {', '.join(facts['left'])}.")
    if facts["stateful"]:
        said.append(
            f"Stateful layers ({', '.join(facts['stateful'])}) start at zero in each call of the file; --streaming "
            "writes a form that takes its state and gives it back."
        )
    if not facts["judged"]:
        said.append(f"Outputs were compared on {facts['judged_on']}, which says nothing of accuracy; --data would.")
    return said


def write(report: Report) -> None:
    """Print it all."""
    to = console()
    say = Speaker(to)
    count = f", {report['parameters']:,} parameters" if report["parameters"] else ""
    layers = ", ".join(report["recurrent"]) or "no recurrent layer"
    say(f"{report['model']}: {report['family']}{count}; {layers}")
    for note in report["notes"]:
        say(note)
    for part in (report, *report["others"]):
        say("")
        if report["others"]:
            say(f"{part['file']}: batch {part['batch']}, {part['time_steps']} time steps", style="bold")
        to.print(_table(part, report, say))
        for line in _legend(part, report):
            say(line, style="dim")
    if report["ladder"]:
        say("")
        to.print(_ladder(report["ladder"], say))
    if "streaming" in report:
        found = report["streaming"]
        frames = f"{found['frames']} frame{'s' * (found['frames'] > 1)}"
        say("")
        say(f"{found['file']}: {frames} a call, one call every {found['period']}", style="bold")
        to.print(_table(found, report, say))
        for line in _doubts(found):
            say(line, style="dim")
    say("")
    say(_conclusion(report), style="bold")
    say(f"Written: {report['out']}/ ({', '.join(files(report))}, rewrite.json, README.md)", whole=True)


def files(report: Report) -> list[str]:
    """The model files that were written."""
    more = [report["streaming"]["file"]] if "streaming" in report else []
    return [report["file"], *(part["file"] for part in report["others"]), *more]


def _table(part: Report, report: Report, say: Speaker) -> Table:
    wide = say.to.width >= NARROW
    metrics = list(report["original"]) if wide else []
    drawn = Table(box=None, padding=(0, 2 if wide else 1, 0, 0), header_style="bold", pad_edge=False)
    drawn.add_column("form", no_wrap=True)
    for heading in ("ms a call", "faster", *(("KiB",) if wide else ()), "error"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    for name in metrics:
        metric = report["original"][name]["metric"]
        drawn.add_column(metric if len(metrics) == 1 else f"{metric} {name}", justify="right", no_wrap=True)
    if report["max_drop"] is not None:
        drawn.add_column("drop", justify="right", no_wrap=True)
    drawn.add_column("", overflow="fold")
    for entry in part["forms"]:
        cells = [("* " if entry["chosen"] else "  ") + _label(entry), _ms(entry), times(entry["speedup"])]
        cells += [f"{entry['size_bytes'] / 1024:.1f}" if entry["size_bytes"] else ""] * wide
        cells += [_error(entry)]
        cells += [f"{entry['metric'][name]:.4f}" if entry["metric"] else "" for name in metrics]
        if report["max_drop"] is not None:
            cells += [f"{entry['drop']:+.4f}" if entry["drop"] is not None else ""]
        cells.append(_briefly(entry["reason"], wide))
        say.row(drawn, cells, style="bold" if entry["chosen"] else "")
    return drawn


def _label(entry: Mapping[str, Any]) -> str:
    """The form and its widths, with what they became where nothing was narrowed."""
    realised = [bits for role, bits in entry["realised_bits"].items() if role in asked_bits(entry["bits"])]
    bits = f"{entry['bits']}→32" if realised and min(realised) == 32 else entry["bits"]
    return f"{entry['form']}, TFLite {bits}" if entry["stock"] else f"{entry['form']} {bits}"


def _ms(entry: Mapping[str, Any]) -> str:
    measured = entry["latency_ms"]
    if not measured:
        return "-"
    median, (low, high) = measured["median"], measured["ci"]
    if entry.get("measured") == "shortly":
        return f"{number(median)}      "
    half = max(high - median, median - low) / median
    sign = "!" if not measured["trusted"] else "~" if not measured["converged"] else ""
    return f"{sign}{number(median)} ±{half:4.1%}"


def _error(entry: Mapping[str, Any]) -> str:
    if entry["output_error"] is None:
        return ""
    return "exact" if entry["exact"] else f"{entry['output_error']:.1e}"


def _briefly(reason: str, wide: bool) -> str:
    """The whole reason where there is room, and where it says more than the figures beside it do."""
    brief = reason.split(":")[0]
    return brief if not wide or brief == "slower" else reason[:LONGEST]


def _legend(part: Report, report: Report) -> list[str]:
    against = report["held_against"]
    said = [f"faster: than {against}, as people export it today; error: relative root mean square of the outputs"]
    said[0] += f" on {report['judged_on']['data']}" if not report["judged_on"]["labels"] else ""
    return [*said, "figures without ± are of one short process, all files interleaved", *_doubts(part)]


def _doubts(part: Report) -> list[str]:
    """What the marks before figures mean."""
    shown = [entry["latency_ms"] for entry in part["forms"] if entry["latency_ms"] and entry["measured"] == "at length"]
    said = []
    if any(not each["converged"] and each["trusted"] for each in shown):
        said.append(NOISY)
    said += sorted({f"! not to be relied on: {each['why']}" for each in shown if not each["trusted"]})
    return said


def _ladder(rungs: Sequence[Mapping[str, Any]], say: Speaker) -> Table:
    drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False, title_justify="left")
    drawn.add_column("where the time goes: this model in", overflow="fold")
    drawn.add_column("ms a call", justify="right", no_wrap=True)
    drawn.add_column("the chosen form is faster by", justify="right")
    chosen = rungs[-1]["latency_ms"]
    for rung in rungs:
        measured = rung["latency_ms"]
        median = number(measured["median"]) if measured and "median" in measured else "failed"
        own = measured and measured.get("batch", chosen["batch"]) != chosen["batch"]
        name = f"{rung['runtime']}, {measured['batch']} sequences" if own else rung["runtime"]
        say.row(drawn, [name, median, times(rung["chosen_is_faster"])])
    return drawn


def _conclusion(report: Report) -> str:
    chosen = report["forms"][0]
    rungs = {rung["runtime"]: rung["chosen_is_faster"] for rung in report["ladder"]}
    said = f"Chosen: {chosen['name']}"
    if chosen["speedup"]:
        said += f", {times(chosen['speedup'])} as fast as {report['held_against']}"
    if rungs.get("model.predict"):
        said += f" and {times(rungs['model.predict'])} as model.predict"
    return f"{said}; {_cost(report)}."


def _cost(report: Report) -> str:
    proof = report["proof"]
    if proof["drop"] is not None:
        name, first = next(iter(proof["scores"].items()))
        was = report["original"][name]["score"]
        return f"{first['metric']} {first['score']:.4f} against the original's {was:.4f} on {proof['rows']} rows"
    if report["forms"][0]["exact"]:
        return f"its outputs are the original's to {proof['max_difference']:.1e}"
    return f"its outputs are off by {proof['output_error']:.1e} (relative root mean square)"


def readme(report: Report) -> str:
    """How to call what was written, and what is known of it."""
    chosen, against = report["forms"][0], report["held_against"]
    lines = [
        f"# {Path(report['model']).stem}, rewritten",
        "",
        f"The weights of `{report['model']}` ({report['family']}) in the form `{chosen['name']}`, made by brisk "
        f"{report['conditions']['versions']['brisk-rnn']}.",
        "",
        f"- {number(chosen['latency_ms']['median'])} ms a call of {report['batch']} on "
        f"{report['conditions']['processor']}, {report['conditions']['threads']} thread, "
        f"{report['conditions']['scenario']}"
        + (f"; {chosen['speedup']:.2f} times as fast as {against}" if chosen["speedup"] else ""),
        f"- {_cost(report)}",
        f"- {chosen['size_bytes']} bytes, widths of the weights: "
        + ", ".join(f"{role} {bits}" for role, bits in chosen["realised_bits"].items()),
        "",
        "## Calling it",
        "",
        "```python",
        "import numpy as np",
        "from ai_edge_litert.interpreter import Interpreter",
        "",
        f'run = Interpreter("{report["file"]}").get_signature_runner()',
        "answer = run(",
        *(f"    {port['name']}=np.zeros({port['shape']}, np.{port['dtype']})," for port in report["inputs"]),
        ")",
        *(f'answer["{port["name"]}"]  # {[report["batch"], *port["shape"]]}' for port in report["outputs"]),
        "```",
        "",
        "Every call starts anew: nothing is kept from one to the next.",
    ]
    for part in report["others"]:
        lines.append(f"`{part['file']}` is the same for batch {part['batch']} and {part['time_steps']} time steps.")
    if "streaming" in report:
        lines += _streaming_words(report["streaming"])
    lines += ["", *report["notes"], "", "Every form that was tried stands in `rewrite.json`.", ""]
    return "\n".join(lines)


def _streaming_words(found: Mapping[str, Any]) -> list[str]:
    states = [state["name"] for state in found["states"]]
    return [
        "",
        "## A stream",
        "",
        f"`streaming.tflite` takes the next {found['frames']} time step{'s' * (found['frames'] > 1)} and the state, "
        "and gives the output and the new state by the same names; start with zeros.",
        "",
        "```python",
        'step = Interpreter("streaming.tflite").get_signature_runner()',
        "state = {",
        *(f'    "{state["name"]}": np.zeros({state["shape"]}, np.float32),' for state in found["states"]),
        "}",
        f"answer = step({found['inputs'][0]['name']}=frame, **state)",
        f"state = {{name: answer[name] for name in {states}}}",
        "```",
    ]


@contextmanager
def waiting() -> Iterator[Callable[[str], None]]:
    """A function that says what is being done: on a terminal one line that changes, elsewhere a line each."""
    to, started = console(sys.stderr, forgiving=True), time.monotonic()
    if not to.is_terminal:
        yield lambda line: to.print(Text(f"{time.monotonic() - started:4.0f} s  {line}"))
        return
    columns = SpinnerColumn("line"), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=to, transient=True, refresh_per_second=2) as shown:
        task = shown.add_task("", total=None)
        yield lambda line: shown.update(task, description=line)
