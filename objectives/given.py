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
from objectives.deployment.convert import convert, fixed
from objectives.deployment.lower import STOCK, named
from objectives.model_file import answered, fed, probable, sha256_of
from objectives.rewriting.tried import UNROLLED
from objectives.sources import importable
from spaces.errors import CandidateError, InputError, ModelError
from spaces.genotype import Deployment
from spaces.lowering.form import Form
from spaces.lowering.load import Loaded, Port, load
from spaces.lowering.rewrite import recurrent_layers, stacks
from spaces.record import to_json
from spaces.signature import Signature

Array = NDArray[Any]
STEPS = (1, 2, 4)  # of its loops, an iteration; and all of them at once, unrolled, where they are few
BITS = ("32", "8", "rec8", "rec4")
NATIVE = {"Keras 3": "keras3", "Keras 2": "fused", "SavedModel": "graph"}
ROWS = 256  # that a model is tried on before a study
SURE = 1e-6  # probabilities nearer to 0 or 1 teach as if they were this far from it


class Given:
    """The user's model where a study asks for a trained candidate (`objectives.origin`)."""

    trains = False

    def __init__(self, bench: Bench, data: Dataset) -> None:
        assert bench.model, "only a study of a model file asks for it"
        self.history: dict[str, Any] = {}
        self._file, self._data, self._loaded = bench.model, data, opened(bench)
        self._plain: set[Deployment] = set()  # those that the stock converter could not narrow

    def start(self) -> None:
        """Nothing: its weights are what it is."""

    def train(self, emit: Emit) -> None:
        """Nothing: it is trained."""

    def answer(self, x: Array) -> Array:
        """What the model itself gives for the data's x, read as the task does."""
        return answered(self._loaded.answers([fed(x, self._file)])[0], self._data.signature)

    def lower(self, asked: Deployment) -> bytes:
        """The .tflite, input `x`, output `y`: "keras" by the stock converter, narrowed if it can, others in float32."""
        ports = fixed(self._loaded, asked.batch, self._data.signature.time_steps)
        if asked.lowering == "keras":
            return named(self._stock(asked, ports))
        form = Form("loop", asked.steps, stacked=asked.lowering == "stacked")
        return named(convert(self._loaded, form, ports))

    def exporter(self, asked: Deployment) -> str:
        """Who made the file of a form."""
        name, family = self._file.name, self._loaded.family
        if asked.lowering == "keras":
            family = "TensorFlow" if family == "SavedModel" else family
            return f"{name} by {family}, static batch, TFLite {STOCK['32' if asked in self._plain else asked.bits]}"
        if asked.steps == self._data.signature.time_steps > 1:
            return f"{name} by brisk loop, unrolled"
        shared = ", layers stacked" if asked.lowering == "stacked" else ""
        return f"{name} by brisk loop, {asked.steps} step{'s' * (asked.steps > 1)} an iteration{shared}"

    def _stock(self, asked: Deployment, ports: tuple[Port, ...]) -> bytes:
        form = Form(NATIVE[self._loaded.family])
        try:
            return convert(self._loaded, form, ports, bits=asked.bits)
        except Exception as error:
            if asked.bits == "32":
                said = str(error).strip().splitlines()[0][-200:]
                reason = f"the stock converter refuses {self._file.name}: {said}; give the .keras or .h5 file of it"
                raise CandidateError("lower", reason) from error
            self._plain.add(asked)
            return self._stock(replace(asked, bits="32"), ports)


def look(bench: Bench, data: Dataset) -> dict[str, Any]:
    """Hold the model against the data, and say what there is to rewrite: family, recurrent layers, forms, padding.

    Raises ModelError, naming the key, where it cannot be opened or does not fit.
    """
    loaded, file = opened(bench), bench.model
    assert file, "only a study of a model file asks for it"
    where = f"baseline.model: {file.path}"
    _check_input(loaded, data, where)
    padding = _padding(loaded, data.signature, where)
    try:
        (output,) = loaded.answers([fed(data.validation.x[:ROWS], replace(file, padding=padding))])
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        raise ModelError(f"{where}: cannot be run on sequences of the data: {said}; save it for such inputs") from error
    _check_output(output, data.signature, where)
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


def soft_targets(bench: Bench, data: Dataset) -> NDArray[np.float32]:
    """What the model teaches on the training part: logits, or targets normalised as those of the data are."""
    (output,) = opened(bench).answers([fed(data.train.x, bench.model)])
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


def _check_input(loaded: Loaded, data: Dataset, where: str) -> None:
    if len(loaded.inputs) != 1 or len(loaded.outputs) != 1:
        counted = f"{len(loaded.inputs)} inputs and {len(loaded.outputs)} outputs"
        raise ModelError(
            f"{where}: has {counted}; a study takes a model of one input and one output (`brisk rewrite` any)"
        )
    port, x = loaded.inputs[0], data.train.x
    shape, given = list(port.shape[1:]), list(x.shape[1:])
    fits = len(shape) == len(given) and all(size in (None, got) for size, got in zip(shape, given, strict=True))
    if not fits:
        wanted = [size if size is not None else "any" for size in shape]
        raise ModelError(
            f"{where}: takes sequences of shape {wanted}, but the data have {given} ({_meaning(data.signature)}); give "
            "the data that it was trained on as task.data"
        )
    words = min((layer.input_dim for layer in loaded.layers if type(layer).__name__ == "Embedding"), default=None)
    if words is not None and data.signature.vocabulary and data.signature.vocabulary > words:
        raise ModelError(
            f"{where}: its embedding knows tokens below {words}, but the data go up to "
            f"{data.signature.vocabulary - 1}; give the data that it was trained on as task.data"
        )


def _check_output(output: Array, signature: Signature, where: str) -> None:
    wanted = [signature.time_steps] * signature.sequences + [signature.outputs]
    single = [*wanted[:-1], 1] if signature.kind != "regression" and signature.outputs == 2 else wanted
    got = list(output.shape[1:])
    if got not in (wanted, single) and not (signature.kind == "regression" and got == [] and wanted == [1]):
        raise ModelError(
            f"{where}: gives outputs of shape {got}, but {signature.kind} of these data needs {wanted}; "
            "set task.kind and task.data to what it was "
            "trained for"
        )
    if not np.isfinite(output).all():
        raise ModelError(f"{where}: gives NaN or infinity on the data; train it again, or look for extreme data values")


def _padding(loaded: Loaded, signature: Signature, where: str) -> float | None:
    """What its Masking layer leaves out, where sequences differ in length; tokens end in 0 for it as for the data."""
    if signature.vocabulary or not signature.masked:
        return None
    values = {float(layer.mask_value) for layer in loaded.layers if type(layer).__name__ == "Masking"}
    if len(values) != 1:
        raise ModelError(
            f"{where}: has no Masking layer, but the sequences of the data differ in length, so that it would take "
            "their padding for data; give data of one length, or a model with a mask"
        )
    return values.pop()


def _forms(loaded: Loaded, recurrent: int, time_steps: int) -> list[Deployment]:
    """How the model is rewritten, with the same weights; one without recurrent layers as the stock converter does."""
    if not recurrent:
        return [Deployment("keras", bits=bits) for bits in ("32", "8")]
    lowering = "stacked" if recurrent > 1 and stacks(loaded, fixed(loaded, 1, time_steps)) else "loop"
    loops = [(lowering, count) for count in STEPS if count == 1 or 2 * count <= time_steps]
    unrolled = [("loop", time_steps)] * (1 < time_steps <= UNROLLED)
    return [Deployment(way, count, bits) for way, count in (*loops, *unrolled) for bits in BITS]


def _meaning(signature: Signature) -> str:
    return "tokens" if signature.vocabulary else "time steps, features"
