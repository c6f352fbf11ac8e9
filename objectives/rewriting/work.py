"""What a rewriting asks of a worker process: look at the model, make it in one way, prove the file that was chosen.

The model is opened once in the life of a process. What the original answers is kept in the shared folder, so that every
process judges by the same arrays.
"""

from __future__ import annotations

import functools
import hashlib
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.bench import Emit
from objectives.deployment.convert import convert, fixed, save
from objectives.deployment.graph import keeps_state
from objectives.deployment.interpreter import answers
from objectives.deployment.quantize import quantize, realised_bits
from objectives.rewriting.examples import Examples, Question, invented, of_the_user, question
from objectives.rewriting.tried import JUDGED_ROWS, JUDGED_S, Request, Tried, Way
from objectives.sources import importable
from spaces.errors import BriskError, ModelError
from spaces.lowering.form import Form
from spaces.lowering.load import Loaded, Port, load
from spaces.lowering.recurrence import joins
from spaces.lowering.rewrite import recurrent_layers, stacks
from spaces.record import from_json, to_json

Array = NDArray[Any]


def warm(request: dict[str, Any]) -> None:
    """Open the model ahead of the first question."""
    opened(from_json(Request, request))


def look(request: dict[str, Any]) -> dict[str, Any]:
    """Open and check model and data, let the original answer, and tell what there is to rewrite.

    Raises ModelError or DataError for what cannot be used.
    """
    asked = from_json(Request, request)
    loaded = opened(asked)
    examples = of_the_user(asked, loaded) if asked.data else None
    ports = fixed(loaded, asked.batch, steps_of(loaded, asked, examples.inputs if examples else {}))
    length = next((port.shape[1] for port in ports if has_time(port, loaded)), 1)
    if asked.time_steps and asked.time_steps != length:
        raise ModelError(
            f"--time-steps {asked.time_steps}: {asked.model} takes sequences of {length} steps and no others; leave "
            "the option out, or save the model with its length free"
        )
    if examples is None or not _same_length(examples, ports):
        examples = invented(loaded, ports)
    started = time.perf_counter()
    outputs = dict(zip(loaded.outputs, loaded.answers(list(examples.inputs.values())), strict=True))
    affordable = int(examples.rows * JUDGED_S / (time.perf_counter() - started))
    rows = min(examples.rows, max(JUDGED_ROWS[0], min(JUDGED_ROWS[1], affordable)))
    if not all(np.isfinite(each).all() for each in outputs.values()):
        raise ModelError(f"{asked.model}: the model itself gives NaN or infinity on {examples.source}; nothing to hold")
    questions = questions_of(asked, examples, outputs)
    _keep(Path(asked.folder), examples, outputs, rows)
    known, left = recurrent_layers(loaded) if loaded.keras else ([], [])
    return {
        "family": loaded.family,
        "inputs": [{"name": port.name, "shape": list(port.shape), "dtype": port.dtype} for port in ports],
        "outputs": [{"name": name, "shape": list(outputs[name].shape[1:])} for name in loaded.outputs],
        "parameters": int(sum(np.prod(each.shape) for each in loaded.model.variables)) if loaded.keras else None,
        "recurrent": [f"{layer.name} ({type(layer).__name__})" for layer in known],
        "left": [f"{layer.name} ({type(layer).__name__})" for layer in left],
        "stateful": [layer.name for layer in known if getattr(layer, "stateful", False)],
        "stacked": bool(known) and stacks(loaded, ports),
        "joins": any(joins(layer, loaded.keras) for layer in known),
        "time_steps": length,
        "judged_on": examples.source,
        "rows": rows,
        "all_rows": examples.rows,
        "judged": bool(questions),
        "original": {name: _figures(each, outputs[name]) for name, each in questions.items()},
    }


def has_time(port: Port, loaded: Loaded) -> bool:
    """Whether an input's second axis is time: it is free in some input, else those of rank 3 and of tokens have it."""
    declared = {each.name: each.shape for each in loaded.inputs}
    if any(len(shape) > 1 and shape[1] is None for shape in declared.values()):
        shape = declared[port.name]
        return len(shape) > 1 and shape[1] is None
    return len(port.shape) > 2 or (len(port.shape) == 2 and "int" in port.dtype)


def make(request: dict[str, Any], way: dict[str, Any], emit: Emit) -> None:
    """Convert the model in one way, in each bit width, and judge every file; a `Tried` is emitted for each."""
    asked, how = from_json(Request, request), from_json(Way, way)
    loaded = opened(asked)
    inputs, outputs, labels = kept(Path(asked.folder))
    questions = questions_of(asked, Examples(inputs, labels, ""), outputs)
    ports = fixed(loaded, asked.batch, steps_of(loaded, asked, inputs))
    form = Form(how.lowering, how.steps, how.stacked, how.projection)
    floats: bytes | None = None
    for bits in how.bits:
        blank = Tried(f"{how.name} {bits}", how.name, bits, how.stock)
        emit({"event": "stage", "stage": "convert", "form": blank.name})
        try:
            if how.stock or bits == "full8":
                content = convert(loaded, form, ports, bits=bits, representative=inputs if bits == "full8" else None)
            else:
                floats = floats or convert(loaded, form, ports)
                content = quantize(floats, bits)
            row = judged(blank, content, Path(asked.folder), inputs, outputs, questions)
        except Exception as error:
            row = replace(blank, reason=_words(error))
        emit({"event": "tried", "tried": to_json(row)})


def judged(
    row: Tried,
    content: bytes,
    folder: Path,
    inputs: dict[str, Array],
    outputs: dict[str, Array],
    questions: dict[str, Question],
) -> Tried:
    """The file written, run on every row and compared with the original."""
    sha256 = hashlib.sha256(content).hexdigest()
    path = folder / f"{sha256[:16]}.tflite"
    path.write_bytes(content)
    got = answers(path, inputs)
    difference, error = compared(got, outputs)
    return replace(
        row,
        file=path.name,
        size_bytes=len(content),
        sha256=sha256,
        realised_bits=realised_bits(content),
        max_difference=difference,
        output_error=error,
        scores={name: each.score(got[name]) for name, each in questions.items()},
        drop=dropped(questions, got, outputs),
        keeps_state=keeps_state(content),
    )


def save_model(request: dict[str, Any], folder: str) -> None:
    """The model as a SavedModel of this batch and length, as its own Keras runs it."""
    asked = from_json(Request, request)
    loaded = opened(asked)
    inputs, _, _ = kept(Path(asked.folder))
    save(loaded, fixed(loaded, asked.batch, steps_of(loaded, asked, inputs)), Path(folder))


def prove(request: dict[str, Any], file: str) -> dict[str, Any]:
    """The chosen file on every row there is, as its user would call it: scores, drop and difference."""
    asked = from_json(Request, request)
    inputs, outputs, labels = kept(Path(asked.folder), every=True)
    questions = questions_of(asked, Examples(inputs, labels, ""), outputs)
    got = answers(Path(file), inputs)
    difference, error = compared(got, outputs)
    return {
        "rows": len(next(iter(inputs.values()))),
        "max_difference": difference,
        "output_error": error,
        "drop": dropped(questions, got, outputs),
        "scores": {name: _figures(each, got[name]) for name, each in questions.items()},
    }


def dropped(questions: dict[str, Question], got: dict[str, Array], wanted: dict[str, Array]) -> float | None:
    """How much worse the answers are than the original's, of several outputs the worst; None without labels."""
    drops = [each.error(got[name]) - each.error(wanted[name]) for name, each in questions.items()]
    return float(np.max(drops)) if drops else None


def compared(got: dict[str, Array], wanted: dict[str, Array]) -> tuple[float, float]:
    """The largest difference, relative to the largest output where that is over 1, and the relative RMS difference;
    of several outputs the worst, NaN counting as infinite.
    """
    largest, relative = [], []
    for name, oracle in wanted.items():
        gap = np.abs(got[name].astype(np.float64) - oracle)
        largest.append(float(gap.max(initial=0.0)) / max(1.0, float(np.abs(oracle).max(initial=0.0))))
        size = float(np.sqrt(np.mean(np.square(oracle, dtype=np.float64)))) or 1.0
        relative.append(float(np.sqrt(np.mean(np.square(gap)))) / size)
    worst = [float(np.max(values)) for values in (largest, relative)]  # Python's own max may lose a NaN
    return worst[0] if np.isfinite(worst[0]) else np.inf, worst[1] if np.isfinite(worst[1]) else np.inf


def opened(asked: Request) -> Loaded:
    """The model, opened once."""
    importable(asked.root)
    return _cached(asked.model, asked.custom, asked.unsafe)


@functools.lru_cache(maxsize=1)
def _cached(model: str, custom: tuple[str, ...], unsafe: bool) -> Loaded:
    return load(Path(model), custom=custom, unsafe=unsafe)


def steps_of(loaded: Loaded, asked: Request, inputs: dict[str, Array]) -> int | dict[str, int]:
    """The length asked for, else that of the data, for each input that leaves it free."""
    free = [port.name for port in loaded.inputs if len(port.shape) > 1 and port.shape[1] is None]
    return asked.time_steps or {name: inputs[name].shape[1] for name in free if name in inputs}


def _same_length(examples: Examples, ports: tuple[Port, ...]) -> bool:
    return all(list(examples.inputs[port.name].shape[1:]) == list(port.shape[1:]) for port in ports)


def questions_of(asked: Request, examples: Examples, outputs: dict[str, Array]) -> dict[str, Question]:
    return {
        name: question(labels, outputs[name], asked.kind, f"{asked.data}: labels of {name}")
        for name, labels in examples.labels.items()
    }


def _figures(each: Question, output: Array) -> dict[str, Any]:
    metric = "rmse" if each.kind == "regression" else "accuracy"
    return {"metric": metric, "kind": each.kind, "score": each.score(output), "stderr": each.stderr(output)}


def _keep(folder: Path, examples: Examples, outputs: dict[str, Array], judged: int) -> None:
    """All rows for the proof, and those that every form is judged on, spread over all, in a file of their own."""
    groups = {"x": examples.inputs, "y": examples.labels, "o": outputs}
    arrays = {f"{letter}/{name}": each for letter, group in groups.items() for name, each in group.items()}
    some = np.linspace(0, examples.rows - 1, judged).astype(int)
    np.savez(folder / "every.npz", **arrays)  # type: ignore[arg-type]
    np.savez(folder / "judged.npz", **{name: each[some] for name, each in arrays.items()})


def kept(folder: Path, *, every: bool = False) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """Inputs, what the original gave, and labels, of the rows that forms are judged on or of every row."""
    groups: dict[str, dict[str, Array]] = {"x": {}, "o": {}, "y": {}}
    with np.load(folder / ("every.npz" if every else "judged.npz")) as archive:
        for name in archive.files:
            letter, _, port = name.partition("/")
            groups[letter][port] = archive[name]
    return groups["x"], groups["o"], groups["y"]


def _words(error: Exception) -> str:
    if isinstance(error, BriskError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if "rror" in line), lines[0] if lines else "no message")
    told = re.sub(r"loc\(.*?\)+:? ?", "", told)
    return f"{type(error).__name__}: {told[:200]}"
