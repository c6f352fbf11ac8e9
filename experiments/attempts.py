"""What `brisk rewrite` asks of TensorFlow, in children that may die: a form each, the proof in a fresh one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from objectives.rewriting.tried import Request, Tried, Way
from search.isolate import CallFailed, Child, ChildDied
from spaces.errors import ModelError, VerificationError
from spaces.record import from_json, to_json

LOOK_S, WAY_S = 300.0, 180.0
WORK = "objectives.rewriting.work"

Say = Callable[[str], None]


@contextmanager
def children() -> Iterator[tuple[Child, Child]]:
    """Two children, which share the work."""
    both = Child(name="rewrite-1"), Child(name="rewrite-2")
    try:
        yield both
    finally:
        for child in both:
            child.close()


def look(one: Child, other: Child | None, request: Request) -> dict[str, Any]:
    """The facts of the model; the other child opens it meanwhile."""
    warming = threading.Thread(target=_warm, args=(other, request), daemon=True) if other else None
    if warming:
        warming.start()
    try:
        facts: dict[str, Any] = one.call(f"{WORK}:look", {"request": to_json(request)}, timeout_s=LOOK_S)
    except ChildDied as death:
        raise ModelError(f"{request.model}: opening it {death.reason}") from death
    except CallFailed as failure:
        raise ModelError(f"{request.model}: {failure}") from failure
    if warming:
        warming.join()
    return facts


def _warm(child: Child, request: Request) -> None:
    try:
        child.call(f"{WORK}:warm", {"request": to_json(request)}, timeout_s=LOOK_S)
    except Exception:  # whatever it is, the other child meets it too and tells it
        return


def try_all(children: Sequence[Child], request: Request, every: Sequence[Way], say: Say) -> list[Tried]:
    """Every way, by whichever child is free; the rows in the order of the ways."""
    waiting = list(enumerate(every))
    found: dict[int, list[Tried]] = {}
    turn = threading.Lock()
    errors: list[BaseException] = []

    def lane(child: Child) -> None:
        while True:
            with turn:
                if not waiting or errors:
                    return
                place, way = waiting.pop(0)
            say(f"making {way.name} ({len(every) - len(waiting)} of {len(every)} ways)")
            try:
                found[place] = one_way(child, request, way)
            except BaseException as error:
                errors.append(error)
                return

    lanes = [threading.Thread(target=lane, args=(child,), daemon=True) for child in children]
    for each in lanes:
        each.start()
    for each in lanes:
        while each.is_alive():
            each.join(0.2)  # so that Ctrl-C is heard
    if errors:
        raise errors[0]
    return [row for place in sorted(found) for row in found[place]]


def one_way(child: Child, request: Request, way: Way, *, timeout_s: float = WAY_S) -> list[Tried]:
    """One way in all its widths; what kills the child is listed, and the rest goes on in a fresh one."""
    rows: list[Tried] = []

    def hear(event: dict[str, Any]) -> None:
        if event.get("event") == "tried":
            rows.append(from_json(Tried, event["tried"]))

    while left := way.bits[len(rows) :]:
        arguments = {"request": to_json(request), "way": to_json(replace(way, bits=left))}
        try:
            child.call(f"{WORK}:make", arguments, timeout_s=timeout_s, on_event=hear)
        except (ChildDied, CallFailed) as death:
            bits = way.bits[len(rows)]
            reason = death.reason if isinstance(death, ChildDied) else str(death)
            rows.append(Tried(f"{way.name} {bits}", way.name, bits, way.stock, reason=f"the conversion {reason}"))
    return rows


def stream(child: Child, request: Request, frames: int) -> dict[str, Any]:
    """The streaming form in every width, judged. Raises ModelError where the model cannot stream."""
    arguments = {"request": to_json(request), "frames": frames}
    try:
        found: dict[str, Any] = child.call("objectives.rewriting.stream:stream", arguments, timeout_s=LOOK_S)
    except (ChildDied, CallFailed, ModelError) as error:
        raise ModelError(f"--streaming {frames}: {error}; leave the option out, or give a causal model") from error
    return found


def save(child: Child, request: Request, folder: Path) -> None:
    """The model as a SavedModel of the request's batch and length; where it cannot be saved, it is not there."""
    with suppress(ChildDied, CallFailed):
        child.call(f"{WORK}:save_model", {"request": to_json(request), "folder": str(folder)}, timeout_s=LOOK_S)


def prove(request: Request, file: Path, seconds: float) -> dict[str, Any]:
    """The file as it was written, opened in a fresh process and held against the original on every row there is.

    `seconds` are what running it on all of them should take. Raises VerificationError where it cannot be run.
    """
    child = Child(name="rewrite-proof")
    try:
        arguments = {"request": to_json(request), "file": str(file.absolute())}
        found: dict[str, Any] = child.call(f"{WORK}:prove", arguments, timeout_s=LOOK_S + 10 * seconds)
    except (ChildDied, CallFailed) as error:
        raise VerificationError(
            f"{file.name}, chosen and written, could not be run: {error}; nothing was kept"
        ) from None
    finally:
        child.close()
    return found
