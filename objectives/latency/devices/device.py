"""A device: where models are timed. The table of those that brisk ships, and the way to a user's own."""

from __future__ import annotations

import contextlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from objectives.outcome import Conditions, MeasureFailure, Measurement
from spaces.errors import BriskError, DeviceError, SpecError, disk_trouble, nearest

Tell = Callable[[dict[str, Any]], None]

DEVICES: dict[str, str] = {
    "local": "objectives.latency.devices.local:Local",
    "fake": "objectives.latency.devices.fake:Fake",
}
"""Name -> place, imported when asked for; anywhere a name is accepted "package.module:Class" is too."""


class Device(ABC):
    """One method, `measure`; `fingerprint` names what two figures must share to be comparable."""

    name: str

    @abstractmethod
    def measure(
        self,
        models: Sequence[Path],
        conditions: Conditions,
        *,
        cores: Sequence[int] | None = None,
        emit: Tell | None = None,
    ) -> list[Measurement | MeasureFailure]:
        """Time all models in one interleaved sitting; one result a model, in order.

        `cores` are those the device may use (the last ones are taken); `emit` hears of progress as stage events.
        """

    @abstractmethod
    def fingerprint(self, conditions: Conditions) -> str:
        """Machine, runtime and conditions, digested."""


@contextlib.contextmanager
def reached(name: str) -> Iterator[Device]:
    """The device called `name`, to be asked. Raises DeviceError for what it raises: of a model it tells instead."""
    tool = device(name)
    try:
        yield tool
    except Exception as error:
        if isinstance(error, BriskError) or disk_trouble(error):
            raise
        raise DeviceError(f"the device {name!r} can measure nothing now: {type(error).__name__}: {error}") from error


def device(name: str) -> Device:
    """The device called `name`. Raises SpecError where there is none, DeviceError where it cannot be reached."""
    place = DEVICES.get(name, name)
    module, separator, attribute = place.partition(":")
    if not separator:
        raise SpecError(f"device {name!r} is not known; {nearest(name, DEVICES)}, or give 'package.module:Class'")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the user's code raises
        raise SpecError(
            f"device {name!r} cannot be had: {type(error).__name__}: {error}; it must be 'package.module:Class'"
        ) from error
    try:
        made = kind()
    except Exception as error:
        raise DeviceError(f"the device {name!r} cannot be reached: {type(error).__name__}: {error}") from error
    if not isinstance(made, Device):
        raise SpecError(
            f"device {name!r} is a {type(made).__name__}, which is not an objectives.latency.devices.Device"
        )
    return made
