"""What befalls a study between two of its writes: each is done to one, which then goes on as if nothing had been."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rehearsed import plan

from objectives.cache import Cache
from search import history
from search.budget import Limits
from search.drive import drive
from search.history import database
from search.lock import connection, disk_trouble_told
from search.study import Study
from search.summary import front_of, summarise
from spaces.errors import StudyError

TRIALS = 24


def driven(home: Path, trials: int = TRIALS, **changes: Any) -> history.History:
    with Study.start(home, "s", plan(home, **changes)) as study:
        drive(study, Limits(trials=trials))
    return history.read(home, "s")


def found(one: history.History) -> dict[int, tuple[str, str]]:
    return {number: (outcome.genotype.key, outcome.state) for number, outcome in one.outcomes.items()}


def test_what_is_finished_is_on_the_disk_before_another_group_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, disk = tmp_path / "running", tmp_path / "disk"
    disk.mkdir()
    true, told = os.fsync, set[int]()

    def fsync(handle: int) -> None:
        true(handle)
        if os.readlink(f"/proc/self/fd/{handle}").endswith("-wal"):
            for suffix in ("", "-wal"):
                name = database(running).name + suffix
                shutil.copy(running / name, disk / name)

    def hear(event: dict[str, Any]) -> None:
        if event["event"] == "told" and isinstance(event["trial"], int):
            told.add(event["trial"])
        elif event["event"] == "group":
            assert set(history.read(disk, "s").outcomes) == told

    monkeypatch.setattr(os, "fsync", fsync)
    with Study.start(running, "s", plan(running)) as study:
        drive(study, Limits(trials=TRIALS), hear)
    assert len(told) == TRIALS


def test_a_machine_that_stops_in_the_middle_of_a_write_loses_the_last_trials_at_most(tmp_path: Path) -> None:
    """What the disk has then: the database as it was at the last checkpoint, and a write-ahead log that is torn."""
    running, after = tmp_path / "running", tmp_path / "after"
    after.mkdir()
    torn = []

    def pull_the_plug(event: dict[str, Any]) -> None:
        if event["event"] == "told" and event["trial"] == 15 and not torn:
            shutil.copy(database(running), database(after))
            log = database(running).with_name("optuna.db-wal").read_bytes()
            torn.append(len(log))
            database(after).with_name("optuna.db-wal").write_bytes(log[: int(len(log) * 0.97)])

    with Study.start(running, "s", plan(running)) as study:
        drive(study, Limits(trials=TRIALS), pull_the_plug)
    whole, kept = history.read(running, "s"), history.read(after, "s")
    assert torn
    assert 5 < len(kept.outcomes) <= 16
    assert found(kept).items() <= found(whole).items()
    assert found(driven(after)) == found(whole)


def test_a_full_disk_is_told_and_what_was_finished_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Study.start(tmp_path, "s", plan(tmp_path)) as study:
        drive(study, Limits(trials=6))
        before = found(study.history())
    with sqlite3.connect(database(tmp_path)) as tables:
        (pages,) = tables.execute("PRAGMA page_count").fetchone()

    def fill(opened: sqlite3.Connection) -> sqlite3.Connection:
        opened.execute(f"PRAGMA max_page_count = {pages + 2}")  # SQLite's own way to run out of room
        return opened

    with monkeypatch.context() as patched:
        patched.setattr("search.opening.connection", lambda path: fill(connection(path)))
        said = pytest.raises(StudyError, match=r"disk is full.*everything finished before is kept")
        with said, disk_trouble_told(tmp_path):
            driven(tmp_path, 60)
    assert before.items() <= found(history.read(tmp_path, "s")).items()
    assert len(driven(tmp_path, 30).outcomes) == 30
    with pytest.raises(StudyError, match=r"^No space left on device; free some"), disk_trouble_told(tmp_path):
        raise StudyError("No space left on device; free some")  # said already


JUMPS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    static unsigned calls;
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, at);
    if (clock == CLOCK_REALTIME) at->tv_sec -= 86400 * (calls++ % 3);
    return failed;
}
"""
DRIVES = """
import sys, time
from pathlib import Path
sys.path.insert(0, "tests")
import test_search_survival as here

times = [time.time() for _ in range(3)]
assert max(times) - min(times) > 86_000
here.driven(Path(sys.argv[1]))
"""


@pytest.mark.skipif(not shutil.which("gcc"), reason="the clock is bent by a library in C")
def test_a_clock_that_jumps_changes_nothing(tmp_path: Path) -> None:
    """By days, back and forth, at each look, for the driver, its children and whatever library they use."""
    (tmp_path / "jumps.c").write_text(JUMPS)
    library = tmp_path / "jumps.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "jumps.c", "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    home = tmp_path / "jumping"
    done = subprocess.run(
        [sys.executable, "-c", DRIVES, str(home)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    jumped = history.read(home, "s")
    assert found(jumped) == found(driven(tmp_path / "usual"))
    assert 0 < jumped.wall_s < 600


def test_an_older_home_is_taken_up(tmp_path: Path) -> None:
    """One whose plan and outcomes lack what was added since, and whose clock knows what is told no more."""
    driven(tmp_path, 8, without=("halving",))
    with sqlite3.connect(database(tmp_path)) as tables:
        for table in ("study_user_attributes", "trial_user_attributes"):
            key = f"{table[:-1]}_id"
            for row, value in tables.execute(f"SELECT {key}, value_json FROM {table}").fetchall():
                plain = _without(json.loads(value))
                if isinstance(plain, dict) and "wall_s" in plain:
                    plain["lanes"] = 2
                older = json.dumps(plain)
                tables.execute(f"UPDATE {table} SET value_json = ? WHERE {key} = ?", [older, row])
    before = history.read(tmp_path, "s")
    assert len(before.outcomes) == 8
    assert summarise(before)["front"]
    assert not any(outcome.learned for outcome in before.outcomes.values())
    after = driven(tmp_path, 14)
    assert found(before).items() <= found(after).items()
    assert front_of(after)


NEW = {"rungs", "without", "repeat", "learned", "trained_error", "stderr", "warm_start", "confirm_seeds", "workers_s"}
NEW |= {"idle_s"}


def _without(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {key: _without(value) for key, value in plain.items() if key not in NEW}
    return [_without(value) for value in plain] if isinstance(plain, list) else plain


def test_a_corrupt_entry_of_the_cache_counts_as_absent(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.keep_record("measured", "k", {"a": 1})
    sha256 = cache.keep_artifact(b"model")
    for path in (tmp_path / "cache").rglob("*.*"):
        path.write_bytes(b"\x00\x01torn")
    assert cache.record("measured", "k") is None
    assert cache.content(sha256) is None
    assert cache.keep_artifact(b"model") == sha256
    assert cache.content(sha256) == b"model"


def test_a_cache_that_cannot_be_written_is_told_like_tables_that_cannot(tmp_path: Path) -> None:
    said = pytest.raises(StudyError, match=r"No space left on device.*everything finished before is kept")
    with said, disk_trouble_told(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError), disk_trouble_told(tmp_path):
        (tmp_path / "absent").read_bytes()
