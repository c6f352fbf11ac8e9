"""The streaming form of a user's model: made, narrowed, and proved equal to the whole-sequence model step by step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.deployment.convert import convert_streaming, fixed
from objectives.deployment.interpreter import Session
from objectives.deployment.quantize import quantize, realised_bits
from objectives.rewriting.examples import Examples
from objectives.rewriting.tried import EXACT, ROUNDED, STREAMED, Request, Tried, only_rounded
from objectives.rewriting.work import compared, dropped, has_time, kept, opened, questions_of, steps_of
from spaces.errors import ModelError
from spaces.lowering.form import Form
from spaces.lowering.load import Loaded, Port
from spaces.lowering.streaming import Kept, kept_states
from spaces.record import from_json, to_json

Array = NDArray[Any]
ROWS = 256  # sequences that are streamed
PREFIXES = 8  # lengths at which a model that answers once is asked, spread over the sequence


def stream(request: dict[str, Any], frames: int) -> dict[str, Any]:
    """Write the streaming form for `frames` time steps a call in every width, and judge each on streamed sequences.

    Gives what goes in and out, and a `Tried` a width. Raises ModelError where the model is not causal, or where the
    float form differs from the model on whole sequences.
    """
    asked = from_json(Request, request)
    loaded, folder = opened(asked), Path(asked.folder)
    states = kept_states(loaded)
    inputs, outputs, labels = ({name: x[:ROWS] for name, x in group.items()} for group in kept(folder))
    questions = questions_of(asked, Examples(inputs, labels, ""), outputs)
    whole = fixed(loaded, asked.batch, steps_of(loaded, asked, inputs))
    timed = [port.name for port in whole if has_time(port, loaded)]
    time = next(int(port.shape[1] or 1) for port in whole if port.name in timed)
    if frames > time:
        raise ModelError(f"the sequences have {time} time steps; give as many or fewer")
    ports = [replace(port, shape=_shortened(port, frames)) if port.name in timed else port for port in whole]
    floats = convert_streaming(loaded, Form("loop", frames), ports, states)
    rows = []
    for bits in STREAMED:
        content = quantize(floats, bits)
        path = folder / f"streaming-{bits}.tflite"
        path.write_bytes(content)
        answered = _streamed(path, inputs, states, timed, time // frames * frames, frames)
        difference, error = _compared(answered, loaded, inputs, outputs, timed, frames)
        if bits == "32" and not only_rounded(difference, error, bits):
            raise ModelError(
                f"it cannot stream: step by step it differs from the whole sequence by {difference:.2g} ({EXACT:g} is "
                f"allowed), {error:.2g} of what it gives ({ROUNDED:g}), so something in it looks beyond the frames it "
                "was given"
            )
        judged = {} if time % frames else questions  # labels are of whole sequences
        got = {name: _joined(answered, name, wanted) for name, wanted in outputs.items()}
        rows.append(
            Tried(
                f"streaming {bits}",
                "streaming",
                bits,
                file=path.name,
                size_bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                realised_bits=realised_bits(content),
                output_error=error,
                max_difference=difference,
                scores={name: each.score(got[name]) for name, each in judged.items()},
                drop=dropped(judged, got, outputs),
            )
        )
    return {
        "frames": frames,
        "inputs": [{"name": port.name, "shape": list(port.shape), "dtype": port.dtype} for port in ports],
        "states": [{"name": state.name, "shape": [asked.batch, *state.shape], "dtype": "float32"} for state in states],
        "outputs": list(loaded.outputs),
        "rows": [to_json(row) for row in rows],
    }


def _shortened(port: Port, frames: int) -> tuple[int | None, ...]:
    return (port.shape[0], frames, *port.shape[2:])


def _compared(
    answered: list[dict[str, Array]],
    loaded: Loaded,
    inputs: dict[str, Array],
    outputs: dict[str, Array],
    timed: Sequence[str],
    frames: int,
) -> tuple[float, float]:
    """The largest and the relative difference from the whole-sequence model: of outputs that have a time axis at every
    step, of others after several lengths, at which the model itself is asked.
    """
    whole = inputs[timed[0]].shape[1]
    time = len(answered) * frames
    got: dict[str, list[Array]] = {name: [] for name in outputs}
    want: dict[str, list[Array]] = {name: [] for name in outputs}
    each_step = [name for name, array in outputs.items() if _by_step(array, whole)]
    for name in each_step:
        got[name].append(_joined(answered, name, outputs[name]))
        want[name].append(outputs[name][:, :time])
    once = [name for name in outputs if name not in each_step]
    places = sorted({max(1, round(share * time / frames)) * frames for share in np.linspace(1 / PREFIXES, 1, PREFIXES)})
    for place in places if once else []:
        prefix = [array[:, :place] if name in timed else array for name, array in inputs.items()]
        oracle = dict(zip(outputs, loaded.answers(prefix), strict=True)) if place < whole else outputs
        for name in once:
            got[name].append(answered[place // frames - 1][name])
            want[name].append(oracle[name])
    flat = [{name: np.concatenate([part.reshape(-1) for part in parts]) for name, parts in each.items()}
            for each in (got, want)]  # fmt: skip
    return compared(*flat)


def _by_step(output: Array, time: int) -> bool:
    return output.ndim > 2 and output.shape[1] == time


def _joined(answered: list[dict[str, Array]], name: str, wanted: Array) -> Array:
    """The answers of a stream as the whole-sequence model gives them: one after the other, or the last."""
    last = answered[-1][name]
    return np.concatenate([each[name] for each in answered], axis=1) if last.ndim > 2 < wanted.ndim else last


def _streamed(
    path: Path, inputs: dict[str, Array], states: Sequence[Kept], timed: Sequence[str], time: int, frames: int
) -> list[dict[str, Array]]:
    """What every call of the stream answers, rows side by side."""
    session = Session(path)
    count = len(next(iter(inputs.values())))
    carried = {state.name: np.zeros((count, *state.shape), np.float32) for state in states}
    answered = []
    for at in range(0, time, frames):
        now = {name: array[:, at : at + frames] if name in timed else array for name, array in inputs.items()}
        answer = session.run({**now, **carried})
        carried = {name: answer[name] for name in carried}
        answered.append(answer)
    return answered
