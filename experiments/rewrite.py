"""`brisk rewrite`: the user's trained model with the same weights, in every form that could be fast; the best is kept.

TensorFlow works in two children that take one way of making the model after another; one that dies costs the file it
was at. Then they end, everything is measured while nothing else runs, and the fastest file that is good enough lands.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments import verdict
from experiments.landing import landing
from experiments.measure import check_model
from experiments.rewritten import card_of, readme, waiting, write
from experiments.show import print_json
from objectives.latency.devices import device as named_device
from objectives.latency.devices.local import Candidate, Local
from objectives.latency.timing import period_s
from objectives.outcome import Conditions, MeasureFailure, Measurement
from objectives.rewriting.tried import Request, Tried, Way, ways
from objectives.sources import READERS
from search.isolate import CallFailed, Child, ChildDied
from spaces.errors import DataError, InputError, ModelError, VerificationError
from spaces.record import from_json, to_json

LOOK_S, WAY_S = 300.0, 180.0
LADDER_S = 6.0  # twice what the calls of TensorFlow's own runtimes may take
FINALISTS = 6
WORK = "objectives.rewriting.work"
RUNGS = {"predict": "model.predict", "call": "model(x)", "function": "tf.function", "xla": "tf.function, XLA"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wish:
    """What the user asked for: see the options of `brisk rewrite`."""

    model: Path
    data: str = ""
    custom: tuple[str, ...] = ()
    unsafe: bool = False
    kind: str = ""
    max_drop: float = 0.005
    allow_lossy: bool = False
    batches: tuple[int, ...] = (1,)
    time_steps: tuple[int, ...] = ()
    streaming: int | None = None
    period: str = "10ms"
    device: str = "local"
    threads: int = 1
    scenario: str = "burst"


def rewrite_model(wish: Wish, *, out: Path, overwrite: bool, as_json: bool) -> dict[str, Any]:
    """Rewrite, measure, choose and write; gives the content of rewrite.json.

    Raises InputError for what the user got wrong, VerificationError where the chosen file does not do in a fresh
    process what it did when it was judged.
    """
    _check(wish)
    with landing(out, overwrite) as folder, tempfile.TemporaryDirectory(prefix="brisk-rewrite-") as shared:
        with waiting() as say:
            report = _rewritten(wish, folder, Path(shared), say)
        (folder / "rewrite.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(readme(report), encoding="utf-8")
    report["out"] = str(out)
    if as_json:
        print_json(report)
    else:
        write(report)
    return report


def _check(wish: Wish) -> None:
    check_model(wish.model)
    if wish.model.suffix == ".tflite":
        raise ModelError(
            f"{wish.model}: a .tflite file has no layers left to rewrite; give the .keras or .h5 file or the "
            "SavedModel it was made of (`brisk measure` times a .tflite)"
        )
    if Path(wish.data).suffix.lower() in READERS and not Path(wish.data).exists():
        raise DataError(f"--data {wish.data}: there is no such file")
    if wish.streaming is not None:
        period_s(f"paced:{wish.period}")
    named_device(wish.device)


def _rewritten(wish: Wish, folder: Path, shared: Path, say: Say) -> dict[str, Any]:
    first = _request(wish, shared, wish.batches[0], wish.time_steps[0] if wish.time_steps else None)
    with _children() as (one, other):
        say(f"opening {wish.model.name}")
        facts = _look(one, other, first)
        if wish.data and not facts["judged"]:
            raise InputError(
                f"--time-steps {wish.time_steps[0]}: the data have another length, so that no drop can be measured; "
                "name the data's own length first, or leave the option out"
            )
        rows = _try_all((one, other), first, ways(facts, batch=first.batch, calibrate=bool(wish.data)), say)
        if wish.device == "local" and facts["family"] != "SavedModel":
            one.call(f"{WORK}:save_model", {"request": to_json(first), "folder": str(shared / "saved_model")})
        more = [(request, _look(one, None, request)) for request in _others(wish, first, shared)]
        allowed = {row.bits for row in rows if verdict.good_enough(row, wish.max_drop, wish.allow_lossy)}
        sets = [(first, facts, rows)]
        for request, its_facts in more:
            wanted = _narrowed(ways(its_facts, batch=request.batch), allowed)
            sets.append((request, its_facts, _try_all((one, other), request, wanted, say)))
        stream = _stream(one, wish, first, allowed, say) if wish.streaming is not None else None
    several = len(sets) > 1
    parts = []
    for request, its_facts, its_rows in sets:
        lossy = allowed if request is not first else None
        part = _judged(wish, request, its_facts, its_rows, lossy, say)
        name = f"model-b{request.batch}-t{its_facts['time_steps']}.tflite" if several else "model.tflite"
        shutil.copyfile(Path(request.folder) / part["chosen_file"], folder / name)
        part |= {"file": name, "proof": _prove(request, folder / name, part, wish)}
        parts.append(part)
    report = card_of(wish, facts, parts)
    report["ladder"] = verdict.ladder(_ladder(wish, first, facts, rows, shared, say), parts[0])
    if stream:
        report["streaming"] = _measured_stream(wish, stream, folder, say)
    return report


def _request(wish: Wish, shared: Path, batch: int, steps: int | None) -> Request:
    own = shared / f"b{batch}-t{steps or 'data'}"
    own.mkdir(exist_ok=True)
    return Request(
        model=str(wish.model.absolute()),
        folder=str(own),
        custom=wish.custom,
        unsafe=wish.unsafe,
        data=wish.data,
        kind=wish.kind,
        root=str(Path.cwd()),
        batch=batch,
        time_steps=steps,
    )


def _others(wish: Wish, first: Request, shared: Path) -> Iterator[Request]:
    """The other batches and lengths asked for."""
    for steps in wish.time_steps or (None,):
        for batch in wish.batches:
            request = _request(wish, shared, batch, steps)
            if request.folder != first.folder:
                yield request


def _narrowed(every: Sequence[Way], allowed: set[str]) -> list[Way]:
    """The same ways in the widths that were good enough at the first batch and length."""
    kept = [replace(way, bits=tuple(bits for bits in way.bits if bits in allowed | {"32"})) for way in every]
    return [way for way in kept if way.bits]


@contextmanager
def _children() -> Iterator[tuple[Child, Child]]:
    children = Child(name="rewrite-1"), Child(name="rewrite-2")
    try:
        yield children
    finally:
        for child in children:
            child.close()


def _look(one: Child, other: Child | None, request: Request) -> dict[str, Any]:
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


def _try_all(children: Sequence[Child], request: Request, every: Sequence[Way], say: Say) -> list[Tried]:
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
                found[place] = _one_way(child, request, way)
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


def _one_way(child: Child, request: Request, way: Way) -> list[Tried]:
    """One way in all its widths; what kills the child is listed, and the rest goes on in a fresh one."""
    rows: list[Tried] = []

    def hear(event: dict[str, Any]) -> None:
        if event.get("event") == "tried":
            rows.append(from_json(Tried, event["tried"]))

    while left := way.bits[len(rows) :]:
        arguments = {"request": to_json(request), "way": to_json(replace(way, bits=left))}
        try:
            child.call(f"{WORK}:make", arguments, timeout_s=WAY_S, on_event=hear)
        except (ChildDied, CallFailed) as death:
            bits = way.bits[len(rows)]
            reason = death.reason if isinstance(death, ChildDied) else str(death)
            rows.append(Tried(f"{way.name} {bits}", way.name, bits, way.stock, reason=f"the conversion {reason}"))
    return rows


def _judged(
    wish: Wish, request: Request, facts: dict[str, Any], rows: list[Tried], lossy: set[str] | None, say: Say
) -> dict[str, Any]:
    """One batch and length: every file measured shortly, those that matter at length, and one chosen."""
    conditions = Conditions(scenario=wish.scenario, threads=wish.threads, batch=request.batch)
    folder = Path(request.folder)
    files = list(dict.fromkeys(row.file for row in rows if row.file))
    if not files:
        remedy = "; give the .keras or .h5 file it was made of" if facts["family"] == "SavedModel" else ""
        raise ModelError(f"{wish.model}: no form of it could be made{remedy}; the first: {rows[0].reason}")
    say(f"measuring {len(files)} files")
    short = replace(conditions, min_processes=1, max_processes=1)
    figures = dict(zip(files, _figures(wish, [folder / name for name in files], short), strict=True))
    usable = verdict.usable(rows, figures, wish.max_drop, wish.allow_lossy, lossy)
    finalists = verdict.finalists(rows, usable, figures, FINALISTS)
    say(f"measuring the fastest {len(finalists)} at length")
    exact = dict(zip(finalists, _figures(wish, [folder / name for name in finalists], conditions), strict=True))
    figures |= {name: each for name, each in exact.items() if isinstance(each, Measurement)}
    return verdict.decided(rows, usable, figures, set(exact), facts, request.batch, wish.max_drop)


def _figures(wish: Wish, paths: list[Path], conditions: Conditions) -> list[Measurement | MeasureFailure]:
    return named_device(wish.device).measure(paths, conditions)


def _prove(request: Request, file: Path, part: dict[str, Any], wish: Wish) -> dict[str, Any]:
    """The file as it was written, opened in a fresh process and held against the original on every row there is."""
    child = Child(name="rewrite-proof")
    try:
        arguments = {"request": to_json(request), "file": str(file.absolute())}
        found: dict[str, Any] = child.call(f"{WORK}:prove", arguments, timeout_s=LOOK_S)
    except (ChildDied, CallFailed) as error:
        raise VerificationError(
            f"{file.name}, chosen and written, could not be run: {error}; nothing was kept"
        ) from None
    finally:
        child.close()
    limit = wish.max_drop if found["drop"] is not None else None
    if limit is not None and found["drop"] > limit:
        raise VerificationError(
            f"{part['chosen']} dropped by {found['drop']:+.4f} on all {found['rows']} rows, over --max-drop {limit:g}, "
            "though it kept within it on those it was judged by; allow a little more, or less, and try again"
        )
    return found


def _ladder(
    wish: Wish, request: Request, facts: dict[str, Any], rows: list[Tried], shared: Path, say: Say
) -> list[tuple[str, Any]]:
    """The ordinary runtimes of TensorFlow with this very model, and Keras 2's fused form with registers cleaned.

    One short sitting: they are many times slower, and the table says by about how much.
    """
    if wish.device != "local":
        return []
    say("measuring TensorFlow's own runtimes")
    named: list[tuple[str, Candidate]] = []
    if facts["family"] != "SavedModel" and not wish.model.is_dir():
        own = Candidate(wish.model, time_steps=facts["time_steps"], custom=wish.custom, unsafe=wish.unsafe)
        named += [(label, replace(own, how=how)) for how, label in RUNGS.items()]
    saved = wish.model if facts["family"] == "SavedModel" else shared / "saved_model"
    named.append(("SavedModel signature", Candidate(saved)))
    named += [
        (f"{row.way} fused, TFLite {row.bits} bits, registers cleaned before each call",
         Candidate(Path(request.folder) / row.file, clean=True))
        for row in rows if row.keeps_state and row.stock and row.bits == "8"
    ]  # fmt: skip
    conditions = Conditions(
        scenario=wish.scenario,
        threads=wish.threads,
        batch=request.batch,
        min_processes=1,
        max_processes=1,
        timeout_s=LADDER_S,
    )
    found = Local().compare([candidate for _, candidate in named], conditions)
    return [(label, figure) for (label, _), figure in zip(named, found, strict=True)]


def _stream(one: Child, wish: Wish, request: Request, allowed: set[str], say: Say) -> dict[str, Any]:
    say("making the streaming form")
    widths = ["32", *(bits for bits in ("8", "rec8", "rec4", "4") if bits in allowed)]
    arguments = {"request": to_json(request), "frames": wish.streaming, "widths": widths}
    try:
        found: dict[str, Any] = one.call("objectives.rewriting.stream:stream", arguments, timeout_s=LOOK_S)
    except ChildDied as death:
        raise ModelError(f"{wish.model}: making the streaming form {death.reason}") from death
    except CallFailed as failure:
        raise ModelError(f"{wish.model}: --streaming {wish.streaming}: {failure}") from failure
    return {**found, "folder": request.folder}


def _measured_stream(wish: Wish, stream: dict[str, Any], folder: Path, say: Say) -> dict[str, Any]:
    """The streaming forms timed as a stream calls them, one call a period; the fastest is written."""
    say(f"measuring the streaming form, one call every {wish.period}")
    where = Path(stream.pop("folder"))
    conditions = Conditions(scenario=f"paced:{wish.period}", threads=wish.threads, batch=wish.batches[0])
    found = _figures(wish, [where / form["file"] for form in stream["forms"]], conditions)
    for form, figure in zip(stream["forms"], found, strict=True):
        form["latency_ms"] = verdict.latency(figure)
    timed = [form for form in stream["forms"] if form["latency_ms"] and "failed" not in form["latency_ms"]]
    if not timed:
        raise ModelError(f"{wish.model}: the streaming form could not be measured: {found[0]}")
    best = min(timed, key=lambda form: form["latency_ms"]["median"])
    shutil.copyfile(where / best["file"], folder / "streaming.tflite")
    for form in stream["forms"]:
        form["chosen"] = form is best
        del form["file"]
    return {**stream, "file": "streaming.tflite", "period": wish.period}
