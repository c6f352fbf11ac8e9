"""A Keras model that is not of brisk's layers, the user's own or one that the user's code built: held against the data,
asked, and converted with the weights it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.data import Dataset
from objectives.deployment.convert import convert, fixed
from objectives.deployment.lower import STOCK, finished
from objectives.model_file import ModelFile, answered, fed
from spaces.errors import CandidateError, ModelError, disk_trouble
from spaces.genotype import Deployment
from spaces.lowering.form import Form
from spaces.lowering.load import Loaded, Port
from spaces.signature import Signature

Array = NDArray[Any]
NATIVE = {"Keras 3": "keras3", "Keras 2": "fused", "SavedModel": "graph"}
CALIBRATION_ROWS = 100  # for static integer forms


class Foreign(ABC):
    """What `objectives.origin.Origin` asks of a model that is there; where it comes from is the subclasses' affair."""

    remedy: str  # where the stock converter refuses it
    blueprint = ""
    trained_as = ""

    def __init__(self, data: Dataset, file: ModelFile) -> None:
        self.history: dict[str, Any] = {}
        self._data, self._file = data, file
        self._plain: set[Deployment] = set()  # those that the stock converter could not narrow

    @property
    @abstractmethod
    def loaded(self) -> Loaded:
        """The model, with the weights of the moment."""

    def answer(self, x: Array) -> Array:
        """What the model itself gives for the data's x, read as the task does."""
        return answered(self.loaded.answers([fed(x, self._file)])[0], self._data.signature)

    def lower(self, asked: Deployment) -> bytes:
        """The .tflite, input `x`, output `y`: "keras" by the stock converter, narrowed if it can, others in float32."""
        ports = fixed(self.loaded, asked.batch, self._data.signature.time_steps)
        if asked.lowering == "keras":
            return finished(self._stock(asked, ports))
        form = Form("loop", asked.steps, stacked=asked.lowering == "stacked")
        return finished(convert(self.loaded, form, ports))

    def poured(self, content: bytes, asked: Deployment) -> bytes | None:
        """Nothing: its graphs are not brisk's, so that where their weights lie is not known."""
        del content, asked
        return None

    def exporter(self, asked: Deployment) -> str:
        """Who made the file of a form."""
        name, family = self._file.name, self.loaded.family
        if asked.lowering == "keras":
            family = "TensorFlow" if family == "SavedModel" else family
            return f"{name} by {family}, static batch, TFLite {STOCK['32' if asked in self._plain else asked.bits]}"
        if asked.steps == self._data.signature.time_steps > 1:
            return f"{name} by brisk loop, unrolled"
        shared = ", layers stacked" if asked.lowering == "stacked" else ""
        return f"{name} by brisk loop, {asked.steps} step{'s' * (asked.steps > 1)} an iteration{shared}"

    def _stock(self, asked: Deployment, ports: tuple[Port, ...]) -> bytes:
        form, rows = Form(NATIVE[self.loaded.family]), fed(self._data.train.x[:CALIBRATION_ROWS], self._file)
        try:
            return convert(self.loaded, form, ports, bits=asked.bits, representative={ports[0].name: rows})
        except Exception as error:
            if disk_trouble(error):
                raise
            if asked.bits == "32":
                said = str(error).strip().splitlines()[0][-200:]
                reason = f"the stock converter refuses {self._file.name}: {said}; {self.remedy}"
                raise CandidateError("lower", reason) from error
            self._plain.add(asked)
            return self._stock(replace(asked, bits="32"), ports)


def check_input(loaded: Loaded, data: Dataset, where: str, remedy: str) -> None:
    """Raise ModelError, with the remedy, where the model does not take the data's x."""
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
            f"{where}: takes sequences of shape {wanted}, but the data have {given} ({_meaning(data.signature)}); "
            f"{remedy}"
        )
    # The largest table: one of positions knows as many as there are steps.
    words = max((layer.input_dim for layer in loaded.layers if type(layer).__name__ == "Embedding"), default=None)
    if words is not None and data.signature.vocabulary and data.signature.vocabulary > words:
        raise ModelError(
            f"{where}: its embedding knows tokens below {words}, but the data go up to "
            f"{data.signature.vocabulary - 1}; {remedy}"
        )


def check_output(output: Array, signature: Signature, where: str, remedy: str) -> None:
    """Raise ModelError, with the remedy, where what the model gives is no answer to the task."""
    wanted = [signature.time_steps] * signature.sequences + [signature.outputs]
    single = [*wanted[:-1], 1] if signature.kind != "regression" and signature.outputs == 2 else wanted
    got = list(output.shape[1:])
    if got not in (wanted, single) and not (signature.kind == "regression" and got == [] and wanted == [1]):
        raise ModelError(
            f"{where}: gives outputs of shape {got}, but {signature.kind} of these data needs {wanted}; {remedy}"
        )
    if not np.isfinite(output).all():
        raise ModelError(f"{where}: gives NaN or infinity on the data; train it again, or look for extreme data values")


def padding_of(loaded: Loaded, signature: Signature, where: str) -> float | None:
    """What its Masking layer leaves out, where sequences differ in length; tokens end in 0 for it as for the data.

    Raises ModelError where such sequences would be taken for longer ones.
    """
    if signature.vocabulary or not signature.masked:
        return None
    values = {float(layer.mask_value) for layer in loaded.layers if type(layer).__name__ == "Masking"}
    if len(values) != 1:
        raise ModelError(
            f"{where}: has no Masking layer, but the sequences of the data differ in length, so that it would take "
            "their padding for data; give data of one length, or a model with a mask"
        )
    return values.pop()


def _meaning(signature: Signature) -> str:
    return "tokens" if signature.vocabulary else "time steps, features"
