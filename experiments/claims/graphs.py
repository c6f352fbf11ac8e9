"""Model graphs drawn at random, by seed, and the claim that brisk rewrites them all: what a user may have built of
recurrent layers in either Keras, saved, opened, rewritten to a float32 .tflite and held against Keras's own answers.

    python -m experiments.claims.graphs --out DIR [--count 240]

Even seeds are graphs of Keras 3, odd ones of Keras 2. Writes DIR/graphs.json; ends with 1 where a graph differs by more
than 1e-5 of its largest output (or of 1), or fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from objectives.deployment.convert import convert, fixed
from objectives.deployment.interpreter import answers
from spaces.backend import keras, keras3, tf
from spaces.lowering.form import Form
from spaces.lowering.load import Loaded, load

FEATURES, VOCABULARY = 3, 7
MERGES = ("concat", "sum", "mul", "ave", None)
TOLERANCE = 1e-5
FORMS = (
    Form(),
    Form(steps=2, stacked=True),
    Form(steps=3, stacked=True, projection="joined"),
    Form(steps=20, stacked=True, projection="inside"),
)
ACTIVATIONS = ("tanh", "relu", "softsign", "elu", "hard_sigmoid")


@dataclass(frozen=True)
class Drawn:
    """A model, inputs for it [batch, ...] and what it is made of, for the words of a failure."""

    model: Any
    inputs: list[np.ndarray]
    words: str


def form_of(seed: int) -> Form:
    """The form that a graph is rewritten in: each seed another, for both Keras."""
    return FORMS[seed // 2 % len(FORMS)]


def original(loaded: Loaded, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What Keras itself answers, layer by layer, by no code of brisk's; a stateful layer starts anew."""
    for layer in loaded.layers:
        if getattr(layer, "stateful", False):
            (layer.reset_states if loaded.family == "Keras 2" else layer.reset_state)()
    return [np.asarray(each) for each in loaded.call([tf.constant(array) for array in inputs])]


def difference(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """The largest, relative to the largest output where that is over 1; ValueError where shapes differ."""
    if [each.shape for each in got] != [each.shape for each in wanted]:
        raise ValueError(f"shapes {[each.shape for each in got]}, not {[each.shape for each in wanted]}")
    gaps = [np.abs(one - other).max() / max(1.0, np.abs(other).max()) for one, other in zip(got, wanted, strict=True)]
    return float(max(gaps))


def converted(drawn: Drawn, form: Form, folder: Path) -> float:
    """How far the .tflite of a graph is from Keras, both opened from the file."""
    drawn.model.save(folder / "model.keras")
    loaded = load(folder / "model.keras")
    wanted = original(loaded, drawn.inputs)
    ports = fixed(loaded, len(drawn.inputs[0]), None)
    path = folder / "model.tflite"
    path.write_bytes(convert(loaded, form, ports))
    got = answers(path, {port.name: array for port, array in zip(ports, drawn.inputs, strict=True)})
    return difference([got[name] for name in loaded.outputs], wanted)


def main() -> int:
    """Try them all; 0 where all are within tolerance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=240)
    asked = parser.parse_args()
    worst, wrong = 0.0, []
    for seed in range(asked.count):
        drawn, form = draw(seed), form_of(seed)
        try:
            with tempfile.TemporaryDirectory() as folder:
                gap = converted(drawn, form, Path(folder))
        except Exception as error:
            wrong.append({"graph": drawn.words, "form": str(form), "why": f"{type(error).__name__}: {error}"[:300]})
            continue
        worst = max(worst, gap)
        if gap > TOLERANCE:
            wrong.append({"graph": drawn.words, "form": str(form), "why": f"differs by {gap:.2g}"})
        print(f"{gap:.1e}  {drawn.words}", flush=True)
    versions = {name: version(name) for name in ("tensorflow", "keras", "tf-keras", "ai-edge-litert")}
    found = {"graphs": asked.count, "largest_difference": worst, "allowed": TOLERANCE, "wrong": wrong, **versions}
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "graphs.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))
    return int(bool(wrong))


def draw(seed: int) -> Drawn:
    """The graph of this seed; odd seeds are of Keras 2."""
    return _Draw(seed, keras if seed % 2 else keras3()).graph()


class _Draw:
    """One graph as it grows."""

    def __init__(self, seed: int, k: Any) -> None:
        self.random, self.k, self.words = np.random.default_rng(seed), k, [f"seed {seed}"]
        self.seed = seed

    def pick(self, *options: Any) -> Any:
        return options[self.random.integers(len(options))]

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def graph(self) -> Drawn:
        k = self.k
        self.time, self.batch = int(self.pick(1, 2, 5, 7, 9)), int(self.pick(1, 3))
        k.utils.set_random_seed(self.seed)
        if self.chance(0.1):
            policy = "mixed_float16"
            self.words.append(policy)
        else:
            policy = "float32"
        (k.mixed_precision.set_global_policy if k is keras else k.config.set_dtype_policy)(policy)
        try:
            return self._built()
        finally:
            (k.mixed_precision.set_global_policy if k is keras else k.config.set_dtype_policy)("float32")

    def _built(self) -> Drawn:
        k, stateful = self.k, self.chance(0.1)
        fixed = {"batch_size": self.batch} if stateful else {}
        entries, arrays = [], []
        x, array, masked = self._start(fixed)
        entries.append(x[0])
        arrays.append(array)
        h, outputs = x[1], []
        for place in range(int(self.pick(1, 1, 2, 2, 3))):
            last = place > 0 and self.chance(0.3)
            h, states = self._recurrent(h, not last, stateful, masked, entries, arrays)
            if last:
                break
            if self.chance(0.2) and states:
                outputs += states
            h = self._between(h)
        if len(h.shape) == 3 and self.chance(0.5):
            h = self._recurrent(h, False, False, masked, entries, arrays)[0]
        if len(h.shape) == 3 and self.chance(0.4):
            h = k.layers.TimeDistributed(k.layers.Dense(3, activation="tanh"))(h)
            self.words.append("time distributed")
        outputs.insert(0, k.layers.Dense(3, name="head", dtype="float32")(h))
        model = k.Model(entries if len(entries) > 1 else entries[0], outputs if len(outputs) > 1 else outputs[0])
        if self.chance(0.15) and len(entries) == 1 and not stateful:
            again = k.Input(entries[0].shape[1:], dtype=entries[0].dtype)
            model = k.Model(again, model(again))
            self.words.append("nested")
        drawn = [self.random.normal(0, 0.6, np.shape(w)) for w in model.get_weights()]
        bounded = [np.abs(w) + 0.5 if "variance" in v.name else w for w, v in zip(drawn, model.weights, strict=True)]
        model.set_weights(bounded)
        return Drawn(model, arrays, ", ".join(self.words))

    def _start(self, fixed: dict[str, int]) -> tuple[tuple[Any, Any], np.ndarray, bool]:
        k, kind = self.k, self.pick("plain", "plain", "masking", "embedding")
        self.words.append(kind)
        if kind == "embedding":
            x = k.Input((self.time,), dtype="int32", **fixed)
            tokens = self.random.integers(0, VOCABULARY, (self.batch, self.time))
            return (x, k.layers.Embedding(VOCABULARY, FEATURES, mask_zero=True)(x)), tokens.astype(np.int32), True
        x = k.Input((self.time, FEATURES), **fixed)
        array = self.random.normal(size=(self.batch, self.time, FEATURES)).astype(np.float32)
        if kind == "masking":
            array[self.random.random((self.batch, self.time)) < 0.4] = 0.0  # at the start, in the middle, at the end
            return (x, k.layers.Masking(0.0)(x)), array, True
        return (x, x), array, False

    def _recurrent(
        self, x: Any, sequences: bool, stateful: bool, masked: bool, entries: list[Any], arrays: list[np.ndarray]
    ) -> tuple[Any, list[Any]]:
        k, kind = self.k, self.pick("LSTM", "GRU", "SimpleRNN", "GRU before", "RNN", "RNN stacked", "Bidirectional")
        units = int(self.pick(3, 4, 8))
        flags: dict[str, Any] = {"return_sequences": sequences, "go_backwards": self.chance(0.2)}
        if self.chance(0.2):
            flags["zero_output_for_mask"] = True
        if stateful:
            flags["stateful"] = True
        self.words.append(f"{kind} {units} {flags}")
        if kind == "Bidirectional":
            merge = self.pick(*MERGES)
            del flags["go_backwards"]
            wrapped = getattr(k.layers, self.pick("LSTM", "GRU", "SimpleRNN"))(units, **flags, **self._extras())
            found = k.layers.Bidirectional(wrapped, merge_mode=merge)(x)
            self.words.append(str(merge))
            return (k.layers.Add()(list(found)) if merge is None else found), []
        if kind.startswith("RNN"):
            cell = self.pick("LSTMCell", "GRUCell", "SimpleRNNCell")
            one = getattr(k.layers, cell)(units, **self._extras(cell))
            cells = [one, k.layers.GRUCell(5), k.layers.LSTMCell(4)] if kind == "RNN stacked" else one
            if kind == "RNN stacked" and stateful:
                flags.pop("stateful")
            self.words.append(cell)
            return k.layers.RNN(cells, **flags)(x), []
        name = kind.split()[0]
        more = {"reset_after": False} if kind == "GRU before" else {}
        gives, takes = self.chance(0.3), self.chance(0.3) and not stateful
        layer = getattr(k.layers, name)(units, **flags, **more, **self._extras(name), return_state=gives)
        states = []
        if takes:
            for _ in range(2 if name == "LSTM" else 1):
                states.append(k.Input((units,)))
                arrays.append(self.random.normal(size=(self.batch, units)).astype(np.float32))
            entries += states
            self.words.append("initial state")
        found = layer(x, initial_state=states) if states else layer(x)
        if not gives:
            return found, []
        self.words.append("states out")
        return found[0], list(found[1:])

    def _extras(self, name: str = "") -> dict[str, Any]:
        extras: dict[str, Any] = {}
        if self.chance(0.2):
            extras["use_bias"] = False
        if self.chance(0.3):
            extras["activation"] = self.pick(*ACTIVATIONS)
        if self.chance(0.3):
            extras["dropout"] = extras["recurrent_dropout"] = 0.3
        if self.chance(0.1) and name in ("LSTM", "GRU", "SimpleRNN"):
            extras["unroll"] = True
        return extras

    def _between(self, h: Any) -> Any:
        k, kind = self.k, self.pick("none", "dropout", "norm", "dense", "batch norm")
        self.words.append(kind)
        if kind == "dropout":
            return k.layers.Dropout(0.3)(h)
        if kind == "norm":
            return k.layers.LayerNormalization()(h)
        if kind == "batch norm":
            return k.layers.BatchNormalization()(h)
        return k.layers.Dense(4, activation="tanh")(h) if kind == "dense" else h


if __name__ == "__main__":
    sys.exit(main())
