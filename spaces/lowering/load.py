"""The user's model file, opened by the Keras that wrote it; code that the file brings along never runs unasked."""

from __future__ import annotations

import functools
import importlib
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from spaces.backend import keras, keras3, tf
from spaces.errors import ModelError, SpecError

UNSAFE = "--unsafe"
CUSTOM = "--custom"
OTHER_FLOATS = ("float16", "bfloat16", "float64")
_ROWS = 256  # of one call, where the model leaves it free
_SOME = 32  # for a size that is free, where any will do
_KEPT = re.compile(r"[^A-Za-z0-9_.]")


@dataclass(frozen=True)
class Port:
    """One input or output: its name, its shape, None where free, and its dtype."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Loaded:
    """A model that is open. `keras` is the Keras it lives in, None for a SavedModel that holds no layers.

    `call(tensors)` gives the outputs, a list in the order of `outputs`, of as many tensors as there are `inputs`;
    `predict(tensors, batch)` the same by Keras's own `predict`.
    """

    family: str  # "Keras 3", "Keras 2" or "SavedModel"
    keras: Any
    model: Any
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    call: Callable[[Sequence[Any]], list[Any]]
    pack: Callable[[Sequence[Any]], Any] = list

    def predict(self, tensors: Sequence[Any], batch: int) -> list[Any]:
        """What `model.predict` gives, one array an output."""
        return list(tf.nest.flatten(self.model.predict(self.pack(tensors), batch_size=batch, verbose=0)))

    def answers(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """What its own Keras gives for all rows of `arrays`, one [rows, ...] an input: [rows, ...] an output.

        Stateful layers start at zero in every call, and each call takes the batch that they were saved with.
        """
        batch, rows = self.inputs[0].shape[0] or min(_ROWS, len(arrays[0])), len(arrays[0])
        found: list[list[NDArray[Any]]] = []
        for at in range(0, rows, batch):
            parts = [x[at : at + batch] for x in arrays]
            count = len(parts[0])
            full = [np.concatenate([part, np.repeat(part[-1:], batch - count, axis=0)]) for part in parts]
            self._forget()
            answer = self._forward(*(tf.constant(x, port.dtype) for x, port in zip(full, self.inputs, strict=True)))
            found.append([each.numpy()[:count] for each in answer])
        self._forget()
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    @functools.cached_property
    def _forward(self) -> Any:
        """The call as a graph, traced once for each shape; it reads the weights of the moment."""
        return tf.function(lambda *tensors: self.call(tensors), autograph=False)

    def _forget(self) -> None:
        for layer in self.layers:
            if getattr(layer, "stateful", False):
                reset = getattr(layer, "reset_state", None) or getattr(layer, "reset_states", None)
                if reset:
                    reset()

    @property
    def layers(self) -> list[Any]:
        """Every layer, those inside others included."""
        return [] if self.keras is None else list(flat_layers(self.model))


def flat_layers(model: Any) -> Iterator[Any]:
    """A model and every layer inside it, each once."""
    seen = set()
    for layer in model._flatten_layers(include_self=True, recursive=True):
        if id(layer) not in seen:
            seen.add(id(layer))
            yield layer


def load(path: Path, *, custom: Sequence[str] = (), unsafe: bool = False) -> Loaded:
    """Open a .keras, .h5 or .hdf5 file or a SavedModel folder; computes in float32 whatever its dtype policy.

    `custom` are the user's own classes and functions, "module:Name"; `unsafe` lets Lambda layers run. Raises ModelError
    where the file is damaged, needs code that was not allowed, or holds no whole model; SpecError where a custom object
    cannot be imported.
    """
    objects = dict(imported(name) for name in custom)
    try:
        version, text = _described(path)
    except Exception as error:  # of zipfile, h5py, json, or of what they gave
        raise ModelError(f"{path}: is damaged or no model: {_first_line(error)}; save it again") from error
    if version == "graph":
        return _graph(path)
    if not unsafe and '"class_name": "Lambda"' in text:
        raise ModelError(
            f"{path}: has a Lambda layer, which would run Python code stored in the file; if you trust where it comes "
            f"from, add {UNSAFE}, or replace the Lambda by a layer of your own, named with {CUSTOM}"
        )
    module = keras3() if version == "3" else keras
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = _opened(module, path, objects, unsafe)
    except Exception as error:
        own = [name for name in _registered(text) if name.split(">")[-1] not in objects]
        raise ModelError(f"{path}: {_reason(error, module, path, own)}") from error
    return in_memory(model, module, f"Keras {version}", path)


def imported(name: str) -> tuple[str, Any]:
    """The name and the object that "module:Name" means. Raises SpecError where there is none."""
    module, colon, attribute = name.partition(":")
    if not colon:
        raise SpecError(f"{CUSTOM} {name}: write module:Name, for instance layers:MyCell")
    try:
        return attribute, getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SpecError(
            f"{CUSTOM} {name}: cannot be imported: {error}; run brisk from the folder of {module}"
        ) from error


def _described(path: Path) -> tuple[str, str]:
    """Which Keras wrote it, "3" or "2" ("graph" for a SavedModel without layers), and its configuration as text."""
    if path.is_dir():
        metadata = path / "keras_metadata.pb"
        return ("2", _as_dumped(metadata.read_bytes().decode(errors="replace"))) if metadata.exists() else ("graph", "")
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            version = json.loads(archive.read("metadata.json"))["keras_version"]
            return version[0], json.dumps(json.loads(archive.read("config.json")))
    with h5py.File(path, "r") as file:
        if "model_config" not in file.attrs:
            raise ValueError("it holds weights only, without a model; save the whole model with model.save()")
        config = file.attrs["model_config"]
        text = config if isinstance(config, str) else config.decode()
        version = str(file.attrs.get("keras_version", "2"))
        return ("3" if version.startswith("3") else "2"), json.dumps(json.loads(text))


def _as_dumped(text: str) -> str:
    """JSON amid other bytes, with the spaces and without the escapes that would hide a word."""
    text = re.sub(r"\\u([0-9A-Fa-f]{4})", lambda found: chr(int(found[1], 16)), text)
    return re.sub(r'"\s*:\s*"', '": "', text)


def _opened(module: Any, path: Path, objects: dict[str, Any], unsafe: bool) -> Any:
    if path.is_dir():
        return module.models.load_model(path, custom_objects=objects, compile=False)
    return module.models.load_model(path, custom_objects=objects, compile=False, safe_mode=not unsafe)


def _registered(text: str) -> list[str]:
    """Names of classes and functions in a configuration that are none of Keras's own."""
    found = dict.fromkeys(re.findall(r'"registered_name": "([^"]+)"', text))
    return [name for name in found if name not in ("Functional", "Sequential", "Model")]


def _reason(error: Exception, module: Any, path: Path, own: Sequence[str]) -> str:
    said = str(error)
    missing = re.search(r"(?:Could not locate|Unknown) (?:class|layer|function|object)?:? ?'?\"?([\w>.]+)", said)
    if missing:
        name = missing[1].split(">")[-1].rstrip(".")
        if module is not keras and path.suffix != ".keras" and hasattr(module.src.ops.numpy, name):
            return f"Keras 3 cannot read its own operation {name!r} back from .h5; save the model as .keras"
        return f"needs code of its own, {name!r}; name it with {CUSTOM} module:{name}"
    if own and module.saving.get_registered_object(own[0]) is None:
        name = own[0].split(">")[-1]
        return f"needs code of its own, {name!r}; name it with {CUSTOM} module:{name}"
    if "ambda" in said and "safe" in said.lower():
        return f"has a Lambda layer, which would run Python code stored in the file; add {UNSAFE} if you trust it"
    return f"Keras {module.__version__} cannot load it: {type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")


def in_memory(model: Any, module: Any, family: str, path: Path | str) -> Loaded:
    """A model of this Keras that is in memory; it computes in float32 from now on, on sequences of any length.

    `path` is what to call it in a ModelError, raised where it declares no inputs or keeps its weights in other floats.
    """
    declared = getattr(model, "inputs", None)
    if not declared:
        raise ModelError(
            f"{path}: declares no inputs, as subclassed models do; build it as a functional or sequential model, or "
            "export it as a SavedModel"
        )
    _refuse_other_floats(model, path)
    for layer in flat_layers(model):
        _in_float32(layer, module)
        _at_any_length(layer)
    struct = getattr(model, "_inputs_struct", None) if family == "Keras 3" else getattr(model, "_nested_inputs", None)
    names = [str(each.name) for each in declared]
    inputs = tuple(
        Port(name, tuple(each.shape), tf.as_dtype(each.dtype).name)
        for name, each in zip(unique(names, "x"), declared, strict=True)
    )
    given = getattr(model, "output_names", None) or [""] * len(model.outputs)
    outputs = unique([str(name) for name in given], "y")

    def pack(tensors: Sequence[Any]) -> Any:
        flat = [tf.cast(tensor, each.dtype) for tensor, each in zip(tensors, declared, strict=True)]
        if struct is not None and len(tf.nest.flatten(struct)) == len(flat) and not isinstance(struct, list | tuple):
            return tf.nest.pack_sequence_as(struct, flat)
        return flat[0] if len(flat) == 1 else flat

    def call(tensors: Sequence[Any]) -> list[Any]:
        return list(tf.nest.flatten(model(pack(tensors), training=False)))

    return Loaded(family, module, model, _tokens(inputs, model, module, call), tuple(outputs), call, pack)


def _tokens(inputs: tuple[Port, ...], model: Any, module: Any, call: Callable[..., Any]) -> tuple[Port, ...]:
    """The inputs, those that an Embedding reads as int32: Keras declares them as floats unless told otherwise."""
    tables = [layer for layer in flat_layers(model) if type(layer) is module.layers.Embedding]
    if not tables or not any(len(port.shape) == 2 and "float" in port.dtype for port in inputs):
        return inputs
    read: list[Any] = []
    names: list[str] = []

    def forward(*tensors: Any) -> Any:
        answer = call(tensors)
        names.extend(port.name for port, each in zip(inputs, tensors, strict=True) if any(each is one for one in read))
        return answer

    for table in tables:
        object.__setattr__(table, "call", _noting(table, read))
    try:
        shapes = [[_SOME if size is None else size for size in port.shape] for port in inputs]
        specs = [tf.TensorSpec(shape, port.dtype) for shape, port in zip(shapes, inputs, strict=True)]
        tf.function(forward, autograph=False).get_concrete_function(*specs)
    finally:
        for table in tables:
            object.__delattr__(table, "call")
    return tuple(replace(port, dtype="int32") if port.name in names else port for port in inputs)


def _noting(table: Any, read: list[Any]) -> Any:
    def call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        read.append(inputs)
        return type(table).call(table, inputs, *args, **kwargs)

    return tf.autograph.experimental.do_not_convert(call)


def unique(names: Sequence[str], usual: str) -> list[str]:
    """Names as a .tflite signature may carry them: letters, digits, "_" and ".", each different."""
    made: list[str] = []
    for place, name in enumerate(names):
        plain = _KEPT.sub("_", name.split(":")[0]).strip("_.") or (usual if len(names) == 1 else f"{usual}{place}")
        free, count = plain, place
        while free in [*made, *(each for each in names if each != name)]:
            free, count = f"{plain}_{count}", count + 1
        made.append(free)
    return made


def _refuse_other_floats(model: Any, path: Path | str) -> None:
    for weight in model.weights:
        if (dtype := tf.as_dtype(weight.dtype).name) in OTHER_FLOATS:
            raise ModelError(
                f"{path}: keeps its weights in {dtype} ({getattr(weight, 'path', weight.name)}), and brisk rewrites "
                "float32 models; build it in float32, give it these weights with set_weights and save it again"
            )


def _in_float32(layer: Any, module: Any) -> None:
    """Mixed precision is a way to train: its half-precision products have no kernel in TFLite."""
    if layer.compute_dtype in OTHER_FLOATS:
        if module is keras:
            layer._set_dtype_policy(keras.mixed_precision.Policy("float32"))
        else:
            layer.dtype_policy = "float32"


def _at_any_length(layer: Any) -> None:
    """A model refuses sequences of another length than it was declared with, though its layers would take them."""
    for each in (layer, getattr(layer, "_functional", None)):
        if hasattr(type(each), "input_spec") and hasattr(each, "inputs") and hasattr(each, "outputs"):
            object.__setattr__(each, "_manual_input_spec", None)


def _graph(path: Path) -> Loaded:
    """A SavedModel without layers: its serving signature."""
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        raise ModelError(f"{path}: TensorFlow cannot load it: {_first_line(error)}") from error
    if not loaded.signatures:
        raise ModelError(f"{path}: the SavedModel has no signature; save it with one named serving_default")
    key = "serving_default" if "serving_default" in loaded.signatures else next(iter(loaded.signatures))
    signature = loaded.signatures[key]
    specs = signature.structured_input_signature[1]
    inputs = tuple(Port(name, tuple(spec.shape), spec.dtype.name) for name, spec in specs.items())
    names = tuple(signature.structured_outputs)

    def call(tensors: Sequence[Any]) -> list[Any]:
        given = {port.name: tf.cast(tensor, port.dtype) for port, tensor in zip(inputs, tensors, strict=True)}
        answer = signature(**given)
        return [answer[name] for name in names]

    call.held = loaded  # type: ignore[attr-defined]  # its variables live as long as the function does
    return Loaded("SavedModel", None, loaded, inputs, names, call)
