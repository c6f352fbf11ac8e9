"""A study under fire: something of it is killed every 20 to 60 seconds, and its front is that of an undisturbed one.

    python -m experiments.claims.soak [--minutes 60] [--trials N] [--study digits]

First the study is run undisturbed for half of the minutes, or until it has N outcomes; then another, of the same seed
and as many outcomes, with the fault injector. In turns drawn by lot, it kills the driver (SIGKILL; the same command is
started again), a worker, or a meter; stops a worker for good (SIGSTOP: the limits of time must end it); takes the
driver's terminal away (SIGTERM); and overwrites a file of the cache with rubbish. Figures go to `soak.json` beside this
script.

Promised: every outcome told once, none of them lost between sessions or told twice, no candidate failed but those
at work when something was killed, no process left at the end, and a hypervolume within 5 % of the undisturbed one's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from experiments.claims.digits import BRISK, conditions
from search.history import read
from search.summary import summarise

KEPT = Path(__file__).with_suffix(".json")
PAUSE_S = (20.0, 60.0)
KINDS = ("driver", "worker", "worker", "meter", "hang", "terminate", "cache")
PATIENCE_S = 20.0  # a meter is not always there
NOISE = 0.05


def main() -> int:
    """Run both, compare, write; 1 where a promise is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--study", default="digits")
    asked = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="brisk-soak-"))
    told = conditions()
    try:
        calm = undisturbed(asked.study, home / "calm", asked.trials, asked.minutes / 2)
        trials = sum(calm["counts"].values())
        harsh = disturbed(asked.study, home / "harsh", trials)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    figures = {"conditions": told, "outcomes": trials, "undisturbed": calm, "disturbed": harsh}
    missed = misses(calm, harsh)
    KEPT.write_text(json.dumps({**figures, "missed": missed}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))
    for one in missed:
        print(f"MISSED {one}")
    return int(bool(missed))


def command(study: str, trials: int | None, minutes: float | None) -> list[str]:
    """What is run, with limits of time that a stopped worker comes to soon."""
    limits = ["--set", "search.stage_timeout=45s", "--set", "search.trial_timeout=90s"]
    budget = ["--trials", str(trials or 100_000), "--timeout", f"{minutes}m" if minutes else "10h"]
    return [*BRISK, "run", study, *budget, *limits]


def undisturbed(study: str, home: Path, trials: int | None, minutes: float) -> dict[str, Any]:
    """What the study finds when it is left alone."""
    os.environ["BRISK_HOME"] = str(home)
    subprocess.run(command(study, trials, minutes), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return figures_of(home, study)


def disturbed(study: str, home: Path, trials: int) -> dict[str, Any]:
    """What it finds when it is not."""
    os.environ["BRISK_HOME"] = str(home)
    lot, turns, struck, lost, sessions = random.Random(0), list[str](), Counter[str](), 0, 0
    before: set[int] = set()
    began = time.monotonic()
    while True:
        sessions += 1
        with subprocess.Popen(
            command(study, trials, None), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        ) as driver:
            while driver.poll() is None:
                rest = time.monotonic() + lot.uniform(*PAUSE_S)
                while driver.poll() is None and time.monotonic() < rest:
                    time.sleep(0.5)
                if driver.poll() is None:
                    turns = turns or lot.sample(KINDS, len(KINDS))
                    struck[strike(turns.pop(), driver, home, lot)] += 1
        if (home / "optuna.db").exists():
            now = set(read(home, study).outcomes)
            lost += len(before - now)
            before = now
        if driver.returncode == 0:
            break
    left = [one for one in psutil.process_iter(["cmdline"]) if str(home) in " ".join(one.info["cmdline"] or [])]
    facts = {"struck": dict(struck), "sessions": sessions, "lost": lost, "processes_left": len(left)}
    return {**figures_of(home, study), **facts, "minutes": (time.monotonic() - began) / 60}


def strike(kind: str, driver: subprocess.Popen[bytes], home: Path, lot: random.Random) -> str:
    """Do one of it, once there is something to do it to; says what was done."""
    named = {"worker": "search.worker", "hang": "search.worker", "meter": "meter.py"}.get(kind)
    signals = {"hang": signal.SIGSTOP, "terminate": signal.SIGTERM}
    ends = time.monotonic() + PATIENCE_S
    while driver.poll() is None and time.monotonic() < ends:
        with suppress(psutil.NoSuchProcess):
            if kind == "cache" and (files := sorted((home / "cache").rglob("*.*"))):
                lot.choice(files).write_bytes(b"rubbish")
                return kind
            victims = [psutil.Process(driver.pid)]
            if named:
                victims = [one for one in victims[0].children(recursive=True) if named in " ".join(one.cmdline())]
            if victims and kind != "cache":
                lot.choice(victims).send_signal(signals.get(kind, signal.SIGKILL))
                return kind
        time.sleep(0.05)
    return "nothing there"


def figures_of(home: Path, study: str) -> dict[str, Any]:
    """What is compared."""
    history = read(home, study)
    summary = summarise(history)
    kept = ("counts", "hypervolume", "wall_s")
    keys = {outcome.genotype.key for outcome in history.outcomes.values()}
    reasons = Counter(failure["reason"] for failure in summary["failures"])
    facts = {"front": len(summary["front"]), "repeated": len(history.outcomes) - len(keys), "reasons": reasons}
    return {key: summary[key] for key in kept} | facts


def misses(calm: dict[str, Any], harsh: dict[str, Any]) -> list[str]:
    """The promises that are not kept."""
    counted = {"lost": "an outcome was lost", "repeated": "one was told twice", "processes_left": "a process was left"}
    missed = [words for what, words in counted.items() if harsh[what]]
    if sum(harsh["counts"].values()) != sum(calm["counts"].values()) or harsh["counts"]["running"]:
        missed.append("the counts differ")
    if harsh["hypervolume"] < (1 - NOISE) * calm["hypervolume"]:
        missed.append("the hypervolume is smaller")
    causes = ("SIGKILL", "SIGSEGV", "did not end within", "meter")
    if other := [reason for reason in harsh["reasons"] if not any(cause in reason for cause in causes)]:
        missed.append(f"a candidate failed of something else: {other[0]}")
    return missed


if __name__ == "__main__":
    sys.exit(main())
