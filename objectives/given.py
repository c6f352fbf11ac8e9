"""The user's own trained model in a study: opened, held against the data, asked, and converted with its own weights."""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.bench import Bench, Emit
from objectives.data import Dataset
from objectives.deployment.convert import fixed
from objectives.foreign import Foreign, check_input, check_output, padding_of
from objectives.model_file import answered, fed, probable, sha256_of
from objectives.rewriting.tried import UNROLLED
from objectives.sources import importable
from objectives.states import telling
from objectives.training.rungs import GoesOn, never_stopped
from spaces.errors import InputError, ModelError
from spaces.genotype import Deployment
from spaces.lowering.load import Loaded, load
from spaces.lowering.rewrite import recurrent_layers, stacks
from spaces.record import to_json

Array = NDArray[Any]
STEPS = (1, 2, 4)  # of its loops, an iteration; and all of them at once, unrolled, where they are few
BITS = ("32", "8", "rec8", "rec4")
ROWS = 256  # that a model is tried on before a study
SURE = 1e-6  # probabilities nearer to 0 or 1 teach as if they were this far from it


class Given(Foreign):
    """The user's model where a study asks for a trained candidate (`objectives.origin`)."""

    trains = False
    remedy = "give the .keras or .h5 file of it"

    def __init__(self, bench: Bench, data: Dataset) -> None:
        assert bench.model, "only a study of a model file asks for it"
        super().__init__(data, bench.model)
        self._loaded = opened(bench)

    @property
    def loaded(self) -> Loaded:
        """The model as it was given."""
        return self._loaded

    def start(self) -> None:
        """Nothing: its weights are what it is."""

    def train(self, emit: Emit, goes_on: GoesOn = never_stopped) -> None:
        """Nothing: it is trained."""


def look(bench: Bench, data: Dataset) -> dict[str, Any]:
    """Hold the model against the data, and say what there is to rewrite: family, recurrent layers, forms, padding.

    Raises ModelError, naming the key, where it cannot be opened or does not fit.
    """
    loaded, file = opened(bench), bench.model
    assert file, "only a study of a model file asks for it"
    where = f"baseline.model: {file.path}"
    check_input(loaded, data, where, "give the data that it was trained on as task.data")
    padding = padding_of(loaded, data.signature, where)
    try:
        (output,) = loaded.answers([fed(data.validation.x[:ROWS], replace(file, padding=padding))])
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        raise ModelError(f"{where}: cannot be run on sequences of the data: {said}; save it for such inputs") from error
    check_output(output, data.signature, where, "set task.kind and task.data to what it was trained for")
    if bench.teacher and max(bench.training.hints) > 0:
        states(replace(bench, model=replace(file, padding=padding)), data, data.validation.x[:ROWS])
    layers = recurrent_layers(loaded)[0]
    forms = [to_json(form) for form in _forms(loaded, len(layers), data.signature.time_steps)]
    return {"family": loaded.family, "recurrent": len(layers), "padding": padding, "forms": forms}


def opened(bench: Bench) -> Loaded:
    """The model, opened once in the life of a process. Raises ModelError where it is not the study's any more."""
    file = bench.model
    assert file, "only a study of a model file asks for it"
    importable(bench.root)
    path = Path(bench.root) / file.path
    if not path.exists():
        raise ModelError(f"baseline.model: {path} is not there any more; put it back and run the same command again")
    if (now := sha256_of(path)) != file.sha256:
        raise ModelError(
            f"baseline.model: {path} has changed since the study read it (sha256 {file.sha256[:12]} then, {now[:12]} "
            "now); put the old file back, or give a study of the new one a name of its own with --name"
        )
    try:
        return _opened(path, file.sha256, file.custom, file.unsafe)
    except InputError as error:
        raise type(error)(f"baseline.model: {_in_the_specs_words(str(error))}") from error


def states(bench: Bench, data: Dataset, x: Array) -> NDArray[np.float32]:
    """What enters the model's head, for each row of the data's x: [rows, (time,) width]. Raises ModelError."""
    assert bench.model, "only a study of a model file asks for it"
    where = f"baseline.model: {bench.model.path}"
    _, entering = telling(opened(bench), where).answers([fed(x, bench.model)])
    if entering.ndim != 2 + data.signature.sequences:
        raise ModelError(
            f"{where}: what enters its last Dense layer has shape {list(entering.shape[1:])}, but hints for "
            f"{data.signature.kind} are of {'one row a step' if data.signature.sequences else 'one row a sequence'}; "
            "leave training.hints out"
        )
    return np.asarray(entering, np.float32)


def soft_targets(bench: Bench, data: Dataset) -> NDArray[np.float32]:
    """What the model teaches (`Dataset.taught_x`): logits, or targets normalised as those of the data are."""
    (output,) = opened(bench).answers([fed(data.taught_x, bench.model)])
    signature = data.signature
    if signature.kind == "regression":
        mean, std = np.array(signature.target_mean or 0.0), np.array(signature.target_std or 1.0)
        return np.asarray((answered(output, signature) - mean) / std, np.float32)
    if probable(output):
        return np.asarray(np.log(np.clip(answered(output, signature), SURE, 1.0)), np.float32)
    both = np.concatenate([np.zeros_like(output), output], axis=-1) if output.shape[-1] == 1 else output
    return np.asarray(both, np.float32)


@functools.lru_cache(maxsize=1)
def _opened(path: Path, sha256: str, custom: tuple[str, ...], unsafe: bool) -> Loaded:
    return load(path, custom=custom, unsafe=unsafe)


def _in_the_specs_words(said: str) -> str:
    """An error of `load`, with keys of the spec where it names options of a command."""
    said = re.sub(r"run brisk from the folder of (\w+)", r"put it beside the spec", said)
    said = re.sub(r"--custom (module:\w+)", r'custom = ["\1"] under [baseline]', said)
    return said.replace("--unsafe", "unsafe = true under [baseline]").replace("--custom", "custom")


def _forms(loaded: Loaded, recurrent: int, time_steps: int) -> list[Deployment]:
    """How the model is rewritten, with the same weights; one without recurrent layers as the stock converter does."""
    if not recurrent:
        return [Deployment("keras", bits=bits) for bits in ("32", "8")]
    lowering = "stacked" if recurrent > 1 and stacks(loaded, fixed(loaded, 1, time_steps)) else "loop"
    loops = [(lowering, count) for count in STEPS if count == 1 or 2 * count <= time_steps]
    unrolled = [("loop", time_steps)] * (1 < time_steps <= UNROLLED)
    return [Deployment(way, count, bits) for way, count in (*loops, *unrolled) for bits in BITS]
