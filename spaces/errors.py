"""Everything brisk raises on purpose, and the exit code each ends a command with.

BriskError
├── InputError            2  what the user gave is wrong: said in one paragraph, never with a traceback
│   ├── SpecError            a key or value of a spec
│   ├── DataError            the arrays, their shapes, their values
│   ├── ModelError           a model file or an artifact
│   ├── DeviceError          where it is to be measured: nothing can be, whatever the model
│   └── StudyError           a study or a home: absent, busy, or made for another space
├── NothingFeasible       3  the study ended and no candidate kept within the bounds
├── VerificationError     4  what was written does not do what the trained model does
└── CandidateError           one candidate failed at one stage; the study records it and goes on
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable

DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Of an OSError that is no candidate's fault, and no other's luck."""


def disk_trouble(error: BaseException | None) -> str:
    """Why nothing more can be written, if an error or what it came of says that; TensorFlow's say so in words alone."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        for number in DISK_TROUBLE:
            words = os.strerror(number)
            if (isinstance(error, OSError) and error.errno == number) or words in str(error):
                return words
        seen.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return ""


class BriskError(Exception):
    """The root; `exit_code` is what a command ends with."""

    exit_code = 1


class InputError(BriskError):
    """The user's input is wrong: the message says what, where, what was got and what to do."""

    exit_code = 2


class SpecError(InputError):
    """A key or a value of a spec is wrong."""


class DataError(InputError):
    """The data cannot be used as they are."""


class ModelError(InputError):
    """A model file cannot be used as it is."""


class DeviceError(InputError):
    """A device can measure nothing now, whatever the model."""


class StudyError(InputError):
    """A study or a home is absent, busy, or was made for something else."""


class NothingFeasible(BriskError):
    """No candidate of a finished study keeps within its bounds."""

    exit_code = 3


class VerificationError(BriskError):
    """An exported artifact differs from the model it was made of."""

    exit_code = 4


class CandidateError(BriskError):
    """One candidate failed at `stage` for `reason`; nothing else is touched."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage = stage
        self.reason = reason


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause for an error about an unknown name: the nearest known one, else all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known names: {', '.join(names)}"
