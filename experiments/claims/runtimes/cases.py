"""The cases of the runtimes claim, the models they are of, and what can be timed of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from objectives.deployment.convert import fixed
from spaces.backend import keras as keras2
from spaces.backend import keras3, tf
from spaces.lowering.load import load

HERE = Path(__file__).parent
OUTPUTS, CHECKED = 10, 8  # width of the head; sequences that every candidate answers at batch 1
SLOT_S, SLOW_S, GLACIAL_S = 0.006, 0.02, 0.1  # a block; calls from which one is discarded; from which three rounds do
CASE_TIMEOUT_S = 900
BITS = ("32", "8", "rec8", "rec4")
BYTES = {"32": 4.0, "bf16": 2.0, "8": 1.0, "rec8": 1.0, "rec4": 0.5, "4": 0.5}
PACKAGES = ("tensorflow", "keras", "tf-keras", "ai-edge-litert", "ai-edge-quantizer")
OTHERS = ("onnx", "onnxruntime", "openvino", "torch")


@dataclass(frozen=True)
class Case:
    """One model at one batch size; `shape` is "last", "sequences", "two" layers or "bidirectional"."""

    cell: str
    time: int
    features: int
    units: int
    batch: int = 1
    shape: str = "last"

    @property
    def name(self) -> str:
        """For instance lstm-100-32-128, lstm-100-32-128-b32, gru-100-32-128-sequences."""
        ending = ("" if self.batch == 1 else f"-b{self.batch}") + ("" if self.shape == "last" else f"-{self.shape}")
        return f"{self.cell}-{self.time}-{self.features}-{self.units}{ending}"

    @property
    def matrix_weights(self) -> int:
        """Weights of one recurrent matrix."""
        return (4 if self.cell == "lstm" else 3) * self.units**2

    @property
    def matrices(self) -> int:
        """How many recurrent matrices there are."""
        return 2 if self.shape in ("two", "bidirectional") else 1


SIZES = ((50, 16, 64), (100, 32, 128), (100, 32, 256), (200, 64, 512))
CELLS = ("lstm", "gru")
CASES = [
    *(Case(cell, *size) for cell in CELLS for size in SIZES),
    *(Case(cell, 100, 32, 128, shape=shape) for cell in CELLS for shape in ("sequences", "two", "bidirectional")),
    *(Case(cell, *size, batch=32) for size in SIZES for cell in CELLS),
]


@dataclass
class Candidate:
    """One way to run the model: `call()` is what is timed, its input in place; `answer(x)` is for the check."""

    call: Callable[[], Any]
    answer: Callable[[Any], Any]
    before: Callable[[], Any] = lambda: None


Maker = Callable[[], Candidate]


class Subject:
    """The model of a case and all that is made of it, each once: weights, inputs, expected outputs, files."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        drawn = np.random.default_rng(7)
        self.x = drawn.normal(size=(max(case.batch, CHECKED), case.time, case.features)).astype(np.float32)
        self.one = self.x[: case.batch]
        self.model = self.built(keras3(), None)
        arrays = [array + drawn.normal(scale=0.02, size=array.shape) for array in self.model.get_weights()]
        self.weights = [array.astype(np.float32) for array in arrays]
        self.model.set_weights(self.weights)
        self.expected = np.asarray(tf.function(self.model)(self.x))

    def built(self, keras: Any, batch: int | None) -> Any:
        """The model in either Keras, its batch fixed or free, with the weights of the case once they are drawn."""
        case = self.case
        kind = partial(getattr(keras.layers, case.cell.upper()), case.units)
        x = y = keras.Input(batch_shape=(batch, case.time, case.features), name="x")
        if case.shape == "bidirectional":
            y = keras.layers.Bidirectional(kind())(y)
        else:
            y = kind(return_sequences=True)(y) if case.shape == "two" else y
            y = kind(return_sequences=case.shape == "sequences")(y)
        model = keras.Model(x, keras.layers.Dense(OUTPUTS)(y))
        if hasattr(self, "weights"):
            model.set_weights(self.weights)
        return model

    @cached_property
    def still(self) -> Any:
        """The Keras 3 model of a fixed batch."""
        return self.built(keras3(), self.case.batch)

    @cached_property
    def fused(self) -> Any:
        """The tf_keras model of a fixed batch, whose LSTM TFLite turns into one operation."""
        return self.built(keras2, self.case.batch)

    @cached_property
    def loaded(self) -> Any:
        """The Keras 3 model as a user's file, opened by brisk."""
        path = self.folder / "model.keras"
        self.model.save(path)
        return load(path)

    @cached_property
    def ports(self) -> Any:
        """The inputs with the batch fixed."""
        return fixed(self.loaded, self.case.batch, None)

    @cached_property
    def layers(self) -> list[list[list[Any]]]:
        """Layer -> direction -> kernel, recurrent kernel, bias."""
        rows = self.weights[:-2]
        triples = [rows[at : at + 3] for at in range(0, len(rows), 3)]
        return [triples] if self.case.shape == "bidirectional" else [[triple] for triple in triples]
