"""Finished stages, kept in the home by the digest of what they depend on; a torn or corrupt entry counts as absent."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


class Cache:
    """The folder `cache/` of a home: `<stage>/<key>.json` and `.npz`, and `artifacts/<sha256>.tflite`."""

    def __init__(self, home: str | Path) -> None:
        self.folder = Path(home).resolve() / "cache"

    def record(self, stage: str, key: str) -> dict[str, Any] | None:
        """The JSON kept under `key`, or None."""
        try:
            found = json.loads((self.folder / stage / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def keep_record(self, stage: str, key: str, record: dict[str, Any], *, lasting: bool = True) -> None:
        """Keep JSON under `key`; what is soon made again need not be `lasting` (`_write`)."""
        _write(self.folder / stage / f"{key}.json", json.dumps(record).encode(), lasting=lasting)

    def first_record(self, stage: str, key: str, record: dict[str, Any]) -> dict[str, Any]:
        """The JSON kept under `key`: this, unless another process was first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".first", "wb") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if (found := self.record(stage, key)) is not None:
                return found
            self.keep_record(stage, key, record)
            return record

    def arrays(self, stage: str, key: str) -> Arrays | None:
        """The named arrays kept under `key`, or None."""
        try:
            content = (self.folder / stage / f"{key}.npz").read_bytes()  # NumPy leaves a torn file of its own open
            with np.load(io.BytesIO(content), allow_pickle=False) as found:
                return {name: found[name] for name in found.files}
        except Exception:  # zipfile and what unpacks for it say in many ways that a file is torn
            return None

    def keep_arrays(self, stage: str, key: str, arrays: Arrays, *, lasting: bool = True) -> None:
        """Keep named arrays under `key`; `lasting` as in `keep_record`."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        _write(self.folder / stage / f"{key}.npz", buffer.getvalue(), lasting=lasting)

    def forget(self, stage: str, key: str) -> None:
        """Take away the arrays kept under `key`, if there are any."""
        (self.folder / stage / f"{key}.npz").unlink(missing_ok=True)

    def artifact(self, sha256: str) -> Path:
        """Where the model file of this sha256 is kept."""
        return self.folder / "artifacts" / f"{sha256}.tflite"

    def content(self, sha256: str) -> bytes | None:
        """The model file of this sha256, or None where it is not there whole."""
        try:
            content = self.artifact(sha256).read_bytes()
        except OSError:
            return None
        return content if hashlib.sha256(content).hexdigest() == sha256 else None

    def keep_artifact(self, content: bytes, *, lasting: bool = True) -> str:
        """Keep a model file under its own sha256, which is given back; `lasting` as in `keep_record`."""
        sha256 = hashlib.sha256(content).hexdigest()
        if self.content(sha256) is None:
            _write(self.artifact(sha256), content, lasting=lasting)
        return sha256


def _write(path: Path, content: bytes, *, lasting: bool = True) -> None:
    """Write all or nothing: a reader sees the old file, the new one or none, whenever the process is killed; and what
    is `lasting` whenever the machine stops, which takes the disk some milliseconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        os.replace(name, path)
        if lasting:
            _on_disk(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _on_disk(folder: Path) -> None:
    """Wait till the disk has the names in a folder; some file systems cannot be asked for that."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)
