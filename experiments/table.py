"""A table of TOML to a frozen record, every mistake told with its file, its key, the value got and what to do."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from spaces.errors import SpecError, nearest

R = TypeVar("R")
UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}
WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": 'text in quotes, "..."',
    "bool_type": "true or false",
    "tuple_type": "a list, [...]",
    "missing": "more values",
    "too_long": "fewer values",
}


@dataclass(frozen=True)
class Place:
    """Where a value stands: its dotted key, and the file, or the `--set` that overrode it."""

    file: str
    key: str = ""
    sets: tuple[str, ...] = ()

    def at(self, key: str) -> Place:
        """The place of a key within this table."""
        return dataclasses.replace(self, key=f"{self.key}.{key}" if self.key else key)

    def error(self, problem: str) -> SpecError:
        """What is wrong here, as an error."""
        overridden = any(f"{self.key}.".startswith(f"{key}.") for key in self.sets)
        places = ["--set" if overridden else self.file, self.key, problem]
        return SpecError(": ".join(filter(None, places)))


def record(kind: type[R], table: Any, place: Place) -> R:
    """The record of dataclass `kind` that a table says; tables within it are records too.

    A field `..._s` is a duration, or durations by name, and written without the suffix: `timeout = "20m"`. A list of
    one may be written as the value alone. Raises SpecError on an unknown key, a wrong type, a missing key.
    """
    if not isinstance(table, dict):
        raise place.error(f"got {table!r}; it must be a table of keys")
    hints: dict[str, Any] = get_type_hints(kind)
    values: dict[str, Any] = {}
    names = dict(_keys(kind))
    for key, value in table.items():
        if key not in names:
            raise place.at(key).error(f"there is no such key; {nearest(key, names)}")
        name = names[key]
        by_name = next(
            (one for one in get_args(hints[name]) if get_origin(one) is dict and isinstance(value, dict)), None
        )
        read = duration_s if name != key else partial(_value, get_args(by_name)[1] if by_name else hints[name])
        if by_name:
            values[name] = {one: read(given, place.at(key).at(one)) for one, given in value.items()}
        else:
            values[name] = read(value, place.at(key))
    for key, name in names.items():
        if name not in values and _required(kind, name):
            raise place.at(key).error("is missing; give it")
    return kind(**values)


def duration_s(value: Any, place: Place) -> float:
    """Seconds in "90s", "20m", "1h" or "1h30m". Raises SpecError on anything else."""
    found = re.findall(r"(\d+(?:\.\d+)?)([smh])", value) if isinstance(value, str) else []
    seconds = sum(float(count) * UNITS_S[unit] for count, unit in found)
    if not seconds or "".join(map("".join, found)) != value:
        raise place.error(f'got {value!r}; give a duration such as "90s", "20m" or "1h30m"')
    return seconds


def override(tables: dict[str, Any], item: str) -> str:
    """Put `key.path=value` of a `--set` into the tables; gives the dotted key. The value is TOML, else plain text."""
    key, equals, text = item.partition("=")
    *path, last = key.strip().split(".")
    if not equals or not path or not all([*path, last]):
        raise SpecError(f"--set: got {item!r}; write table.key=value, for instance study.trials=20")
    try:
        parsed = tomllib.loads(f"value = {text}")
        value = parsed["value"] if len(parsed) == 1 else text
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = tables
    for step in path:
        table = table.setdefault(step, {})
        if not isinstance(table, dict):
            raise SpecError(f"--set: got {item!r}, but {step} is a value and no table; set it as a whole")
    table[last] = value
    return key.strip()


def _keys(kind: type[Any]) -> Iterator[tuple[str, str]]:
    for field in dataclasses.fields(kind):
        if not field.metadata.get("unwritten"):
            yield field.name.removesuffix("_s"), field.name


def _required(kind: type[Any], name: str) -> bool:
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _value(hint: Any, value: Any, place: Place) -> Any:
    for kind in (hint, *get_args(hint)):  # `Baseline`, or `Baseline | None`
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return record(kind, value, place)
    given = str(value) if place.key.endswith((".bits", ".qat")) and type(value) is int else value  # bits = 8
    if get_origin(hint) is tuple:
        given = value if isinstance(value, list) else [value]
        if get_args(hint)[0] is str:  # bits = [32, "rec8"]
            given = [str(one) if type(one) is int else one for one in given]
    try:
        return TypeAdapter(hint).validate_json(json.dumps(given, default=str), strict=True)
    except ValidationError as error:
        wanted = WANTED.get(error.errors()[0]["type"], "another value")
        listed = get_origin(hint) is tuple and error.errors()[0]["loc"]
        within = " in the list" if listed and "value" not in wanted else ""
        raise place.error(f"got {value!r}; give {wanted}{within}") from error
