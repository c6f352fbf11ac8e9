"""Records: frozen dataclasses with JSON both ways and a digest that names what depends on them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter

R = TypeVar("R")


def to_json(record: Any) -> dict[str, Any]:
    """The record as plain JSON values (tuples become lists)."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(record)))
    return plain


def from_json(kind: type[R], plain: Any) -> R:
    """The record of type `kind` that `to_json` gave; raises pydantic's ValidationError on anything else."""
    record: R = _adapter(cast(Any, kind)).validate_python(plain)
    return record


def digest(*parts: Any) -> str:
    """Sixteen hexadecimal digits that change when any part does; parts are records, JSON values or bytes."""
    seen = hashlib.sha256()
    for part in parts:
        if not isinstance(part, bytes):
            plain = dataclasses.asdict(part) if dataclasses.is_dataclass(part) and not isinstance(part, type) else part
            part = json.dumps(plain, sort_keys=True).encode()
        seen.update(len(part).to_bytes(8, "big") + part)
    return seen.hexdigest()[:16]


@functools.cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
