"""Who may write: one driver a study, one maker of the storage's tables a home, and connections that wait their turn."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from spaces.errors import InputError, StudyError, disk_trouble

STORAGE_TIMEOUT_S = 60


def locked(home: Path, name: str) -> int:
    """The open file that keeps other drivers off the study until it is closed, by us or by our end."""
    folder = home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(lock, 32, 0).decode().strip() or "unknown"
        os.close(lock)
        raise StudyError(
            f"the study {name!r} in {home} is being driven by process {owner}; wait for it, stop it, or choose "
            "another --name (`brisk show` works meanwhile)"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def driven(home: Path, name: str) -> bool:
    """Whether a process drives the study now."""
    try:
        lock = os.open(home / "locks" / f"{name}.lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the file against other processes that come this way."""
    with open(path, "wb") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def disk_trouble_told(home: Path) -> Iterator[None]:
    """Turn a storage that cannot be written any more (a full disk, most often) into a StudyError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        full = disk_trouble(error)
        if not full and not type(error).__module__.startswith(("sqlite3", "sqlalchemy", "optuna.exceptions")):
            raise
        why = full or (str(error).splitlines() or [type(error).__name__])[0]
        if "locked" in why:
            raise StudyError(
                f"the study in {home} cannot be written: another process has held the home's storage for "
                f"{STORAGE_TIMEOUT_S} s ({why}); see which that is, then run it again: everything finished is kept"
            ) from error
        raise StudyError(
            f"the study in {home} cannot be written any more ({why}); see whether the disk is full, then run it again: "
            "everything finished before is kept"
        ) from error


def connection(path: Path) -> sqlite3.Connection:
    """With a write-ahead log a commit costs no wait for the disk: a killed process loses nothing, a machine that loses
    its power what came after `on_disk`, never the file. Raises StudyError where the file is no database.
    """
    connection = sqlite3.connect(path, timeout=STORAGE_TIMEOUT_S, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise StudyError(
            f"{path} cannot be used ({error}); see whether the disk is full, put a copy of it back, or name another "
            "--home"
        ) from None
    return connection


def on_disk(path: Path) -> None:
    """Wait till the disk has what was committed to a database so far."""
    with contextlib.suppress(FileNotFoundError), open(path.with_name(f"{path.name}-wal"), "rb") as log:
        os.fsync(log.fileno())
