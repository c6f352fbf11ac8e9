"""The streaming form of a user's model: made, narrowed, and proved equal to the whole-sequence model step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.deployment.convert import convert_streaming, fixed
from objectives.deployment.interpreter import Session
from objectives.deployment.quantize import quantize, realised_bits
from objectives.rewriting.tried import EXACT, Request
from objectives.rewriting.work import compared, kept, opened
from spaces.backend import tf
from spaces.errors import ModelError
from spaces.lowering.load import Loaded, Port
from spaces.lowering.rewrite import Form
from spaces.lowering.streaming import Kept, kept_states
from spaces.record import from_json

Array = NDArray[Any]
ROWS = 16  # sequences that are streamed
PREFIXES = 8  # lengths at which a model that answers once is asked, spread over the sequence


def stream(request: dict[str, Any], frames: int, widths: list[str]) -> dict[str, Any]:
    """Write the streaming form for `frames` time steps a call in each of `widths`, "32" first, and prove each.

    Raises ModelError where the model is not causal, or where the float form differs from the model on whole sequences.
    """
    asked = from_json(Request, request)
    loaded, folder = opened(asked), Path(asked.folder)
    states = kept_states(loaded)
    inputs, outputs, _ = kept(folder, ROWS)
    whole = fixed(loaded, asked.batch, asked.time_steps or next(iter(inputs.values())).shape[1])
    timed = [port.name for port in whole if _has_time(port, loaded)]
    time = next(int(port.shape[1] or 1) for port in whole if port.name in timed)
    if frames > time:
        raise ModelError(f"--streaming {frames}: the sequences have {time} time steps; give as many or fewer")
    ports = [replace(port, shape=_shortened(port, frames)) if port.name in timed else port for port in whole]
    floats = convert_streaming(loaded, Form("loop", frames), ports, states)
    forms = []
    for bits in widths:
        content = floats if bits == "32" else quantize(floats, bits)
        path = folder / f"streaming-{bits}.tflite"
        path.write_bytes(content)
        worst, checked = _proved(path, loaded, inputs, outputs, states, timed, frames)
        if bits == "32" and not worst[0] <= EXACT:
            raise ModelError(
                f"it cannot stream: step by step it differs from the whole sequence by {worst[0]:.2g} ({EXACT:g} is "
                "allowed), so something in it looks beyond the frames it was given"
            )
        forms.append(
            {
                "bits": bits,
                "file": path.name,
                "size_bytes": len(content),
                "realised_bits": realised_bits(content),
                "max_difference": worst[0],
                "output_error": worst[1],
                "proved_at": checked,
            }
        )
    return {
        "frames": frames,
        "inputs": [{"name": port.name, "shape": list(port.shape), "dtype": port.dtype} for port in ports],
        "states": [{"name": state.name, "shape": [asked.batch, *state.shape], "dtype": "float32"} for state in states],
        "outputs": list(loaded.outputs),
        "forms": forms,
    }


def _has_time(port: Port, loaded: Loaded) -> bool:
    """Whether an input's second axis is time: it is free in some input, else those of rank 3 and of tokens have it."""
    declared = {each.name: each.shape for each in loaded.inputs}
    if any(len(shape) > 1 and shape[1] is None for shape in declared.values()):
        shape = declared[port.name]
        return len(shape) > 1 and shape[1] is None
    return len(port.shape) > 2 or "int" in port.dtype


def _shortened(port: Port, frames: int) -> tuple[int | None, ...]:
    return (port.shape[0], frames, *port.shape[2:])


def _proved(
    path: Path,
    loaded: Loaded,
    inputs: dict[str, Array],
    outputs: dict[str, Array],
    states: Sequence[Kept],
    timed: Sequence[str],
    frames: int,
) -> tuple[tuple[float, float], list[int]]:
    """The largest and the relative difference from the whole-sequence model, and after how many steps it was taken."""
    steps = {name: inputs[name].shape[1] for name in timed}
    time = min(steps.values()) // frames * frames
    answered = _streamed(path, inputs, states, timed, time, frames)
    got: dict[str, list[Array]] = {name: [] for name in outputs}
    want: dict[str, list[Array]] = {name: [] for name in outputs}
    each_step = [
        name for name, array in outputs.items() if array.ndim > 2 and array.shape[1] == next(iter(steps.values()))
    ]
    for name in each_step:
        got[name].append(np.concatenate([answer[name] for answer in answered], axis=1))
        want[name].append(outputs[name][:, :time])
    once = [name for name in outputs if name not in each_step]
    places = sorted({max(1, round(share * time / frames)) * frames for share in np.linspace(1 / PREFIXES, 1, PREFIXES)})
    for place in places if once else []:
        prefix = {name: array[:, :place] if name in timed else array for name, array in inputs.items()}
        oracle = _whole(loaded, prefix, outputs) if place < next(iter(steps.values())) else outputs
        for name in once:
            got[name].append(answered[place // frames - 1][name])
            want[name].append(oracle[name])
    joined = [{name: np.concatenate([part.reshape(-1) for part in parts]) for name, parts in each.items()}
              for each in (got, want)]  # fmt: skip
    return compared(*joined), places if once else list(range(frames, time + 1, frames))


def _whole(loaded: Loaded, inputs: dict[str, Array], outputs: dict[str, Array]) -> dict[str, Array]:
    answer = loaded.call([tf.constant(array) for array in inputs.values()])
    return {name: np.asarray(each) for name, each in zip(outputs, answer, strict=True)}


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
