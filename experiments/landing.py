"""Where a command writes: a folder that takes its place when all went well, and vanishes when not."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from spaces.errors import InputError


@contextmanager
def landing(out: Path, overwrite: bool, needed: Mapping[str, Path | None]) -> Iterator[Path]:
    """A folder whose files come to be those of `out` when all went well, and which vanishes when not.

    A folder that is there stays the same one, for it may be a link, or a disk of its own. Raises InputError where `out`
    is a file, is not empty (unless `overwrite`), holds what is `needed` (what it is -> where) or the folder that the
    command was given in, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: a file is in the way; name a folder that does not exist yet")
    if out.is_dir() and any(out.iterdir()):
        within = {**needed, "the folder that you are in": Path.cwd()}
        held = [what for what, path in within.items() if path and path.resolve().is_relative_to(out.resolve())]
        if held:
            raise InputError(f"--out {out}: the folder is not empty, and {held[0]} is in it; name another one")
        if not overwrite:
            raise InputError(f"--out {out}: the folder is not empty; name another one, or add --overwrite")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        stays = out.is_dir()
        folder = Path(tempfile.mkdtemp(dir=out if stays else out.absolute().parent, prefix=".brisk-export-"))
    except OSError as error:
        raise InputError(
            f"--out {out}: cannot write there ({error.strerror}); name a folder you may write to"
        ) from None
    try:
        yield folder
        if stays:
            _replace(out, folder)
        else:
            folder.chmod(0o755)
            folder.rename(out.absolute())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _replace(out: Path, folder: Path) -> None:
    """Put what is in `folder`, within `out`, in place of all else there."""
    old = Path(tempfile.mkdtemp(dir=out, prefix=".brisk-old-"))
    for entry in [one for one in out.iterdir() if one not in (folder, old)]:
        entry.rename(old / entry.name)
    for entry in [*folder.iterdir()]:
        entry.rename(out / entry.name)
    folder.rmdir()
    shutil.rmtree(old)
