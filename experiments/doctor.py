"""`brisk doctor`: what the machine is, whether brisk is whole on it, and whether latency measured on it means much."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import platform
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from experiments.report import Speaker, console
from experiments.show import print_json
from objectives.latency import timing
from objectives.latency.devices import DEVICES, device
from objectives.latency.devices.local import REFERENCE, Candidate, Local, processor
from objectives.outcome import Conditions, MeasureFailure, Measurement
from spaces.errors import BriskError, DeviceError

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("spaces", "objectives", "search", "experiments")
FREE_BYTES = 2 << 30  # a study with its MLflow store and cache stays well under it
TWICE = 0.03  # how far from 2.0 a model run twice a call may be
WIDTH = 80

Compare = Callable[[Sequence[Candidate], Conditions], list[Measurement | MeasureFailure]]


def doctor(*, as_json: bool = False) -> dict[str, Any]:
    """Examine, print and return the report."""
    report = examine()
    if as_json:
        print_json(report)
    else:
        Speaker(console())(render(report), whole=True)
    return report


def examine(folder: Path | None = None, compare: Compare | None = None) -> dict[str, Any]:
    """Everything that is looked at, with `problems` in words and `ok`.

    `folder` is where a home would be (the current one), `compare` measures candidates (on this machine).
    """
    folder = folder or Path.cwd()
    report: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(),
        "shadowed": shadowed(ROOT, [str(folder), *sys.path]),
        "disk": {"folder": str(folder), "free_bytes": shutil.disk_usage(folder).free},
        "clock": clock_noise(),
        "devices": devices(),
        "self_check": self_check(compare or Local().compare),
    }
    report["problems"] = problems(report)
    return {**report, "ok": not report["problems"]}


def machine() -> dict[str, Any]:
    """Processor, cores, memory, load and Python."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    return {
        "processor": processor(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "memory_bytes": psutil.virtual_memory().total,
        "load": round(psutil.getloadavg()[0], 2),
    }


def versions() -> dict[str, str | None]:
    """The version of brisk and of each direct dependency; None where it is not installed."""
    wanted = importlib.metadata.requires("brisk-rnn") or []
    names = [re.split(r"[^A-Za-z0-9._-]", each, maxsplit=1)[0] for each in wanted if "extra ==" not in each]
    return {name: _version(name) for name in ("brisk-rnn", *names)}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def shadowed(root: Path, paths: Sequence[str]) -> list[dict[str, str]]:
    """Other packages or modules with the name of one of ours, in any of the folders that Python imports from."""
    found = {}
    for folder in dict.fromkeys(Path(path or ".").resolve() for path in paths):
        for name in PACKAGES:
            for place in (folder / name / "__init__.py", folder / f"{name}.py"):
                if folder != root and place.is_file():
                    found[str(place)] = name
    return [{"name": name, "place": place} for place, name in found.items()]


def clock_noise(seconds: float = 0.2) -> dict[str, float]:
    """The clock's cost and smallest step, and the share of time that other work took from a loop that only reads it."""
    reads = [time.perf_counter_ns()]
    until = reads[0] + int(seconds * 1e9)
    while reads[-1] < until:
        reads.append(time.perf_counter_ns())
    steps = sorted(later - earlier for earlier, later in itertools.pairwise(reads))
    lost = [step for step in steps if step > 20_000]
    return {
        "cost_ns": steps[len(steps) // 2],
        "step_ns": next((step for step in steps if step), 0),
        "longest_gap_ms": steps[-1] / 1e6,
        "share_lost": sum(lost) / (reads[-1] - reads[0]),
    }


def devices() -> list[dict[str, Any]]:
    """The devices that brisk ships, and whether each can be had."""
    rows = []
    for name in DEVICES:
        try:
            rows.append({"name": name, "ok": True, "fingerprint": device(name).fingerprint(Conditions())})
        except (BriskError, OSError, ImportError) as error:
            rows.append({"name": name, "ok": False, "why": str(error)})
    return rows


def self_check(compare: Compare) -> dict[str, Any]:
    """The reference model under two names, which must tie, and run twice a call, which must take twice as long."""
    three = [Candidate(REFERENCE), Candidate(REFERENCE), Candidate(REFERENCE, twice=True)]
    try:
        results = compare(three, Conditions())
    except DeviceError as error:
        return {"ok": False, "why": str(error)}
    failed = [result.reason for result in results if isinstance(result, MeasureFailure)]
    if failed:
        return {"ok": False, "why": failed[0]}
    one, other, double = (result for result in results if isinstance(result, Measurement))
    ratio = other.median_ms / one.median_ms
    twice = double.median_ms * 2 / (one.median_ms + other.median_ms)
    allowed = timing.tie_tolerance(one.median_ms)
    return {
        "ok": abs(ratio - 1) <= allowed and abs(twice / 2 - 1) <= TWICE,
        "ratio": ratio,
        "allowed": allowed,
        "twice": twice,
        "latency_ms": [one.median_ms, *one.ci_ms],
        "converged": all(each.converged for each in (one, other, double)),
        "processes": max(each.processes for each in (one, other, double)),
        "why": "; ".join(dict.fromkeys(each.why for each in (one, other, double) if each.why)),
    }


def problems(report: dict[str, Any]) -> list[str]:
    """What is wrong, in words, each with what to do."""
    said = [
        f"{name} is not installed; install brisk again" for name, version in report["versions"].items() if not version
    ]
    for each in report["shadowed"]:
        said.append(f"{each['place']} may be imported in place of brisk's own {each['name']!r}; move or uninstall it")
    if report["disk"]["free_bytes"] < FREE_BYTES:
        said.append(f"{report['disk']['folder']} has under 2 GiB free; make room, or choose another --home")
    said += [f"device {each['name']} cannot be used: {each['why']}" for each in report["devices"] if not each["ok"]]
    check = report["self_check"]
    if "ratio" not in check:
        said.append(f"the reference model could not be measured: {check['why']}")
    elif not check["ok"]:
        said.append("two measurements of one model do not agree; close other programs, or measure on another machine")
    return said


def render(report: dict[str, Any]) -> str:
    """The report as text for 80 columns."""
    where, clock, check = report["machine"], report["clock"], report["self_check"]
    facts = [
        ("machine", f"{where['processor']}, {where['memory_bytes'] / (1 << 30):.0f} GiB, {where['system']}"),
        ("cores", f"{where['cores']}, usable {_listed(where['usable_cores'])}; load {where['load']}"),
        ("python", where["python"]),
        ("versions", ", ".join(f"{name} {version or 'MISSING'}" for name, version in report["versions"].items())),
        ("shadowed", ", ".join(each["place"] for each in report["shadowed"]) or "nothing"),
        ("free disk", f"{report['disk']['free_bytes'] / (1 << 30):.1f} GiB in {report['disk']['folder']}"),
        ("clock", f"{clock['cost_ns']:.0f} ns a reading; other work took {clock['share_lost']:.1%} of 0.2 s, "
         f"at most {clock['longest_gap_ms']:.2g} ms at once"),
        ("devices", ", ".join(each["name"] + ("" if each["ok"] else " (no)") for each in report["devices"])),
        *_check_lines(check),
    ]  # fmt: skip
    lines = []
    for name, text in facts:
        lines += _wrapped(text, f"{name:<12}")
    lines.append("")
    for problem in report["problems"]:
        lines += _wrapped(problem, "! ")
    if report["ok"]:
        lines += _wrapped("All is well: latency figures from this machine can be relied on.", "")
        if not check["converged"]:
            busy = f"It is busy now: {check['processes']} processes did not bring every interval within ±2%."
            lines += _wrapped(f"{busy} Figures will say so themselves.", "")
    return "\n".join(lines)


def _wrapped(text: str, start: str) -> list[str]:
    after = " " * len(start)
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=after, break_on_hyphens=False)


def _check_lines(check: dict[str, Any]) -> list[tuple[str, str]]:
    if "ratio" not in check:
        return [("A/A test", f"failed: {check['why']}")]
    verdict = "a tie" if abs(check["ratio"] - 1) <= check["allowed"] else "NOT a tie"
    doubled = "as it must" if abs(check["twice"] / 2 - 1) <= TWICE else "NOT 2.00"
    difference = f"{check['ratio'] - 1:+.1%} (allowed ±{check['allowed']:.0%})"
    return [
        ("A/A test", f"one model under two names differs by {difference}: {verdict}"),
        ("", f"the same run twice a call takes {check['twice']:.3f} times as long: {doubled}"),
    ]


def _listed(cores: Sequence[int]) -> str:
    return ", ".join(map(str, cores)) if len(cores) <= 8 else f"{cores[0]}..{cores[-1]}"
