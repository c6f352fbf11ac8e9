"""Turns at one SQLite store: brisk processes of one home write it one after another."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


@contextlib.contextmanager
def alone(uri: str) -> Iterator[TextIO | None]:
    """Hold a SQLite store against other brisk processes; gives the lock file. A server needs no such care: None."""
    if not uri.startswith("sqlite:///"):
        yield None
        return
    path = Path(uri.removeprefix("sqlite:///") + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def swap(file: TextIO, stamp: str) -> str:
    """Write our stamp, if it is not the one there; returns the one that was."""
    file.seek(0)
    found = file.read()
    if found != stamp:
        file.truncate(0)
        file.write(stamp)
        file.flush()
    return found
