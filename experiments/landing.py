"""Where a command writes: a folder that takes its place when all went well, and vanishes when not."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spaces.errors import InputError


@contextmanager
def landing(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all went well, and vanishes when not.

    Raises InputError where `out` is a file, is not empty (unless `overwrite`) or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: a file is in the way; name a folder that does not exist yet")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise InputError(f"--out {out}: the folder is not empty; name another one, or add --overwrite")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=".brisk-export-"))
    except OSError as error:
        raise InputError(
            f"--out {out}: cannot write there ({error.strerror}); name a folder you may write to"
        ) from None
    try:
        yield folder
        if out.exists():
            shutil.rmtree(out)
        folder.chmod(0o755)
        folder.rename(out.absolute())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
