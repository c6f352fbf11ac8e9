"""`brisk rewrite`: the user's trained model with the same weights, in every form that could be fast; the best is kept.

TensorFlow works in two children that take one way of making the model after another; one that dies costs the file it
was at. Then they end, everything is measured while nothing else runs, and the fastest file that is good enough lands.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments import attempts, verdict
from experiments.attempts import Say
from experiments.landing import landing
from experiments.measure import check_model
from experiments.rewritten import card_of, readme, waiting, write
from experiments.show import json_text, print_json
from objectives.latency.devices import reached
from objectives.latency.devices.local import Candidate, Local
from objectives.latency.timing import period_s
from objectives.outcome import Conditions, MeasureFailure, Measurement
from objectives.presets import PRESETS
from objectives.rewriting.tried import Request, Tried, Way, ways
from objectives.sources import READERS
from spaces.errors import DataError, DeviceError, InputError, ModelError, SpecError, nearest
from spaces.record import from_json

LADDER_S = 6.0  # twice what the calls of TensorFlow's own runtimes may take
FINALISTS = 6
RUNGS = {"predict": "model.predict", "call": "model(x)", "function": "tf.function", "xla": "tf.function, XLA"}


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

    Raises InputError for what the user got wrong, VerificationError where no file does in a fresh process, on every
    row, what it did when it was judged.
    """
    _check(wish)
    needed = {"the model": wish.model, "the data": Path(wish.data) if wish.data else None}
    with landing(out, overwrite, needed) as folder, tempfile.TemporaryDirectory(prefix="brisk-rewrite-") as shared:
        with waiting() as say:
            report = _rewritten(wish, folder, Path(shared), say)
        (folder / "rewrite.json").write_text(json_text(report, indent=2) + "\n", encoding="utf-8")
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
    kind = Path(wish.data).suffix.lower()
    if kind == ".npy":
        raise DataError(f"--data {wish.data}: one array has no labels beside it; save x and y in one .npz file")
    if kind in READERS and not Path(wish.data).exists():
        raise DataError(f"--data {wish.data}: there is no such file")
    if wish.data and not (kind in READERS or ":" in wish.data or wish.data in PRESETS):
        raise DataError(
            f"--data {wish.data}: is no file of rows (.npz, .csv, .parquet), no module:function and no preset; "
            + nearest(wish.data, PRESETS)
        )
    with reached(wish.device) as tool:  # what cannot be had is refused before the work begins
        tool.measure([], _conditions(wish, wish.batches[0]))
    if wish.streaming is not None:
        try:
            period_s(f"paced:{wish.period}")
        except SpecError:
            raise InputError(f"--period {wish.period}: give milliseconds, up to 10000ms, as in 10ms") from None


def _conditions(wish: Wish, batch: int) -> Conditions:
    return Conditions(scenario=wish.scenario, threads=wish.threads, batch=batch)


def _rewritten(wish: Wish, folder: Path, shared: Path, say: Say) -> dict[str, Any]:
    first, *others = _requests(wish, shared)
    stream: dict[str, Any] = {}
    with attempts.children() as both:
        say(f"opening {wish.model.name}")
        facts = attempts.look(*both, first)
        if wish.data and not facts["judged"]:
            raise InputError(
                f"--time-steps {first.time_steps}: the data have another length, so that no drop can be measured; "
                "name the data's own length first, or leave the option out"
            )
        if wish.streaming is not None:
            say("making the streaming form")
            stream = attempts.stream(both[0], first, wish.streaming)
        rows = attempts.try_all(both, first, ways(facts, batch=first.batch, calibrate=bool(wish.data)), say)
        allowed = {row.bits for row in rows if verdict.good_enough(row, wish.max_drop, wish.allow_lossy)}
        sets = [(first, facts, rows)]
        for request in others:
            its_facts = attempts.look(both[0], None, request)
            wanted = _narrowed(ways(its_facts, batch=request.batch), allowed)
            sets.append((request, its_facts, attempts.try_all(both, request, wanted, say)))
        if wish.device == "local" and facts["family"] != "SavedModel":
            attempts.save(both[0], first, shared / "saved_model")
    parts = []
    for request, its_facts, its_rows in sets:
        lossy = allowed if request is not first else None
        name = f"model-b{request.batch}-t{its_facts['time_steps']}.tflite" if others else "model.tflite"
        part = _chosen(wish, request, its_facts, its_rows, lossy, folder / name, say)
        allowed -= part.pop("refuted")
        parts.append(part | {"file": name})
    report = card_of(wish, facts, parts)
    report["ladder"] = verdict.ladder(_ladder(wish, first, facts, rows, shared, say), parts[0])
    if stream:
        report["streaming"] = _streaming(wish, first, stream, allowed, folder, say)
    return report


def _requests(wish: Wish, shared: Path) -> list[Request]:
    """One for every length and batch asked for."""
    return [_request(wish, shared, batch, steps) for steps in wish.time_steps or (None,) for batch in wish.batches]


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


def _narrowed(every: Sequence[Way], allowed: set[str]) -> list[Way]:
    """The same ways in the widths that were good enough at the first batch and length."""
    kept = [replace(way, bits=tuple(bits for bits in way.bits if bits in allowed | {"32"})) for way in every]
    return [way for way in kept if way.bits]


def _chosen(
    wish: Wish, request: Request, facts: dict[str, Any], rows: list[Tried], lossy: set[str] | None, file: Path, say: Say
) -> dict[str, Any]:
    """One batch and length: every file measured shortly, those that matter at length, and one chosen, written to
    `file`, and proved there.
    """
    conditions = _conditions(wish, request.batch)
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
    final = {name for name, each in exact.items() if isinstance(each, Measurement)}
    figures |= exact
    usable = verdict.usable(rows, figures, wish.max_drop, wish.allow_lossy, lossy)

    def prove(part: dict[str, Any]) -> dict[str, Any]:
        say(f"proving {part['chosen']}")
        shutil.copyfile(folder / part["chosen_file"], file)
        seconds = facts["all_rows"] * part["forms"][0]["latency_ms"]["median"] / request.batch / 1000
        return attempts.prove(request, file, seconds)

    return verdict.proved(rows, usable, figures, final, facts, request.batch, wish.max_drop, prove)


def _figures(wish: Wish, paths: list[Path], conditions: Conditions) -> list[Measurement | MeasureFailure]:
    with reached(wish.device) as tool:
        return tool.measure(paths, conditions)


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
        steps = {port["name"]: port["shape"][1] for port in facts["inputs"] if len(port["shape"]) > 1}
        own = Candidate(wish.model, time_steps=steps, custom=wish.custom, unsafe=wish.unsafe)
        named += [(label, replace(own, how=how)) for how, label in RUNGS.items()]
    saved = wish.model if facts["family"] == "SavedModel" else shared / "saved_model"
    named.append(("SavedModel signature", Candidate(saved)))
    named += [
        (f"{row.way} fused, TFLite {row.bits} bits, registers cleaned before each call",
         Candidate(Path(request.folder) / row.file, clean=True))
        for row in rows if row.keeps_state and row.stock and row.bits == "8"
    ]  # fmt: skip
    conditions = replace(_conditions(wish, request.batch), min_processes=1, max_processes=1, timeout_s=LADDER_S)
    try:
        found = Local().compare([candidate for _, candidate in named], conditions)
    except DeviceError as error:  # all is done but for this comparison
        found = [MeasureFailure(str(error)) for _ in named]
    return [(label, figure) for (label, _), figure in zip(named, found, strict=True)]


def _streaming(
    wish: Wish, request: Request, stream: dict[str, Any], allowed: set[str], folder: Path, say: Say
) -> dict[str, Any]:
    """The streaming forms timed as a stream calls them, one call a period; one is chosen like any form, and written.

    Where frames do not divide the length, no label fits: widths then count as good as they were for whole sequences.
    """
    say(f"measuring the streaming form, one call every {wish.period}")
    rows = [from_json(Tried, plain) for plain in stream.pop("rows")]
    where = Path(request.folder)
    conditions = replace(_conditions(wish, request.batch), scenario=f"paced:{wish.period}")
    files = [row.file for row in rows]
    figures = dict(zip(files, _figures(wish, [where / name for name in files], conditions), strict=True))
    usable = verdict.usable(rows, figures, wish.max_drop, wish.allow_lossy, allowed)
    part = verdict.decided(rows, usable, figures, set(files), {"time_steps": stream["frames"]}, request.batch)
    shutil.copyfile(where / part["chosen_file"], folder / "streaming.tflite")
    return {**stream, "file": "streaming.tflite", "period": wish.period, "forms": part["forms"]}
