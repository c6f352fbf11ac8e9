"""brisk's forms of a case's model, and the ordinary ways of TensorFlow."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims.runtimes.cases import BITS, Candidate, Maker, Subject
from objectives.deployment.convert import convert, save
from objectives.deployment.interpreter import predict
from objectives.deployment.quantize import quantize
from objectives.latency.meter import cleaner, open_litert
from spaces.backend import tf
from spaces.lowering.form import Form


def brisk_forms(subject: Subject) -> dict[str, Maker]:
    """Every form of the loop in every width; a graph is converted once and narrowed often."""
    case, graphs = subject.case, {}
    steps = [1, 2, 4, 8] + ([case.time] if case.time <= 50 else [])
    projections = ["ahead" if case.batch == 1 else "inside", "joined" if case.cell == "lstm" else "inside"]
    forms = [
        Form("loop", k, stacked, projection)
        for projection in dict.fromkeys(projections)
        for stacked in ((False, True) if case.shape == "two" else (False,))
        for k in steps
    ]

    def made(form: Any, bits: str) -> Candidate:
        if form not in graphs:
            graphs[form] = convert(subject.loaded, form, subject.ports)
        return tflite(subject, quantize(graphs[form], bits))

    def name(form: Any, bits: str) -> str:
        plain = "" if form.projection == "ahead" else f" {form.projection}"
        return f"brisk {bits} k{form.steps}{' stacked' if form.stacked else ''}{plain}"

    widths = {"joined": ("32", "8", "4")}  # its input and recurrent matrix are one
    return {name(form, bits): partial(made, form, bits) for form in forms for bits in widths.get(form.projection, BITS)}


def ordinary_tflite(subject: Subject) -> dict[str, Maker]:
    """The stock converter on either Keras, in float and dynamic range; the fused LSTM as shipped and clean."""
    files: dict[str, bytes] = {}

    def stock(keras: str, narrow: bool) -> bytes:
        key = f"{keras} {narrow}"
        if key not in files:
            model = subject.still if keras == "keras3" else subject.fused
            converter = tf.lite.TFLiteConverter.from_keras_model(model)
            if narrow:
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            files[key] = bytes(converter.convert())
        return files[key]

    def made(keras: str, narrow: bool, clean: bool) -> Candidate:
        found = tflite(subject, stock(keras, narrow))
        if clean:
            sweep, invoke = cleaner(), found.call
            found.call = lambda: (sweep(), invoke())
        return found

    makers: dict[str, Maker] = {}
    for bits, narrow in (("32", False), ("8", True)):
        makers[f"keras3 {bits}"] = partial(made, "keras3", narrow, False)
        makers[f"tf_keras {bits} shipped"] = partial(made, "tf_keras", narrow, False)
        makers[f"tf_keras {bits} clean"] = partial(made, "tf_keras", narrow, True)
    return makers


def tflite(subject: Subject, model: bytes) -> Candidate:
    """A .tflite in LiteRT, opened as the meter opens it."""
    handle, name = tempfile.mkstemp(".tflite", dir=subject.folder)
    with os.fdopen(handle, "wb") as file:
        file.write(model)
    opened = open_litert(name, subject.case.batch, 1)
    opened.feed(0)
    return Candidate(opened.call, partial(predict, Path(name)), opened.reset)


def ordinary_tensorflow(subject: Subject) -> dict[str, Maker]:
    """Keras 3's predict, tf.function, XLA, and a SavedModel's signature; outputs are fetched."""
    batch, still = subject.case.batch, tf.constant(subject.one)

    def predicted() -> Candidate:
        ask = partial(subject.model.predict, verbose=0, batch_size=batch)
        return Candidate(lambda: ask(subject.one), ask)

    def graphed(compiled: bool) -> Candidate:
        spec = tf.TensorSpec(subject.one.shape, tf.float32)
        function = tf.function(subject.still, jit_compile=compiled, input_signature=[spec]).get_concrete_function()
        return Candidate(lambda: function(still).numpy(), by_batch(batch, lambda x: function(tf.constant(x)).numpy()))

    def signature() -> Candidate:
        folder = subject.folder / "savedmodel"
        save(subject.loaded, subject.ports, folder)
        served = tf.saved_model.load(str(folder))
        function = served.signatures["serving_default"]

        def ask(x: Any, held: Any = served) -> Any:
            return next(iter(function(**{subject.ports[0].name: x}).values())).numpy()

        return Candidate(lambda: ask(still), by_batch(batch, lambda x: ask(tf.constant(x))))

    return {
        "predict": predicted,
        "tf.function": partial(graphed, False),
        "xla": partial(graphed, True),
        "savedmodel": signature,
    }


def by_batch(batch: int, ask: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Answers to any number of sequences from one that takes a fixed batch."""
    return lambda x: np.concatenate([ask(x[at : at + batch]) for at in range(0, len(x), batch)])
