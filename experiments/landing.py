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
    place = out.absolute()
    if place.is_dir() and _entries(place):
        within = {**needed, "the folder that you are in": Path.cwd()}
        held = [what for what, path in within.items() if path and path.resolve().is_relative_to(place.resolve())]
        if held:
            raise InputError(f"--out {out}: the folder is not empty, and {held[0]} is in it; name another one")
        if not overwrite:
            raise InputError(f"--out {out}: the folder is not empty; name another one, or add --overwrite")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        stays = place.is_dir()
        folder = Path(tempfile.mkdtemp(dir=place if stays else place.parent, prefix=".brisk-export-"))
    except OSError as error:
        raise InputError(
            f"--out {out}: cannot write there ({error.strerror}); name a folder you may write to"
        ) from None
    try:
        yield folder
        if stays:
            _replace(place, folder)
        else:
            folder.chmod(0o755)
            folder.rename(place)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _entries(place: Path) -> list[Path]:
    """What is in a folder, but for what a disk of its own has, and what a killed command left."""
    return [one for one in place.iterdir() if one.name != "lost+found" and not one.name.startswith(".brisk-")]


def _replace(place: Path, folder: Path) -> None:
    """Put what is in `folder`, within `place`, in place of all else there; where that fails, all is as it was."""
    old = Path(tempfile.mkdtemp(dir=place, prefix=".brisk-old-"))
    away = [(one, old / one.name) for one in _entries(place)]
    done: list[tuple[Path, Path]] = []
    try:
        for here, there in (*away, *((one, place / one.name) for one in [*folder.iterdir()])):
            here.rename(there)
            done.append((here, there))
    except BaseException as error:
        for here, there in reversed(done):
            there.rename(here)
        old.rmdir()
        if isinstance(error, OSError):
            raise InputError(
                f"--out {place}: {error.filename} cannot be moved out of the way ({error.strerror}); name another "
                "folder"
            ) from None
        raise
    folder.rmdir()
    shutil.rmtree(old, ignore_errors=True)
