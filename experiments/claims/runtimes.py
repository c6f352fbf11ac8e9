"""The runtimes claim: one set of weights in brisk's forms, in the ordinary exports and in other runtimes, side by side.

    python -m experiments.claims.runtimes --out DIR [--quick] [--again] [--only lstm-100-32-128 ...]

A case is one model at one batch size, in a process of its own, pinned to one core, one thread. Every candidate of a
case is checked against Keras and then timed in rounds: each round visits all in random order, so a ratio is the median
over rounds of two figures of the same round. The head is Dense(10), linear; weights are drawn at random, so an error
is one of arithmetic and not of a task. Beside the times stands the floor: the recurrent weights, as they are stored,
read once a step at the peak bandwidth of this core; a time under it is a broken measurement. `roofline.c` measures that
bandwidth, and holds an int8 loop by hand. Needs `pip install -e '.[claims]'`; what is missing is noted and left out.

Writes DIR/runtimes.json as cases end, and DIR/runtimes.md. Cases that are there already are not run `--again`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import io
import json
import logging
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from objectives.deployment.convert import convert, fixed, save
from objectives.deployment.interpreter import predict
from objectives.deployment.quantize import quantize
from objectives.latency.meter import cleaner, open_litert
from spaces.backend import configure, keras3, tf
from spaces.backend import keras as keras2
from spaces.lowering.form import Form
from spaces.lowering.load import load

HERE = Path(__file__).parent
OUTPUTS, CHECKED = 10, 8  # width of the head; sequences that every candidate answers at batch 1
SLOT_S, SLOW_S, GLACIAL_S = 0.006, 0.02, 0.1  # a block; calls from which one is discarded; from which three rounds do
CASE_TIMEOUT_S = 900
BITS = ("32", "8", "rec8", "rec4")
BYTES = {"32": 4.0, "bf16": 2.0, "8": 1.0, "rec8": 1.0, "rec4": 0.5}
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

    @cached_property
    def onnx(self) -> Any:
        """The model in ONNX."""
        return onnx_model(self)


# --- brisk's forms and the ordinary ways -----------------------------------------------------------------------------


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


# --- other runtimes --------------------------------------------------------------------------------------------------


def onnx_model(subject: Subject) -> Any:
    """The ONNX of the weights, node by node: LSTM gates as i, o, f, c, GRU with the reset after the product."""
    from onnx import TensorProto, checker, helper, numpy_helper

    case, nodes, constants = subject.case, [], []
    order = [0, 3, 1, 2] if case.cell == "lstm" else [0, 1, 2]

    def constant(name: str, value: Any, dtype: Any = np.float32) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return next(filter(None, outputs))

    def gates(matrix: Any) -> Any:
        parts = np.split(matrix, len(order), axis=-1)
        return np.concatenate([parts[place] for place in order], axis=-1).T

    def biases(bias: Any) -> Any:
        both = bias if bias.ndim == 2 else np.stack([bias, np.zeros_like(bias)])
        return np.concatenate([gates(each) for each in both])

    sequences = case.shape == "sequences"
    flow = node("Transpose", ["x"], ["turned"], perm=[1, 0, 2])
    for place, ways in enumerate(subject.layers):
        whole = sequences or place + 1 < len(subject.layers)
        arrays = zip(("W", "R", "B"), (gates, gates, biases), zip(*ways, strict=True), strict=True)
        given = [constant(f"{name}{place}", np.stack([turn(way) for way in rows])) for name, turn, rows in arrays]
        flags: dict[str, Any] = {"hidden_size": case.units}
        flags |= {"direction": "bidirectional"} if len(ways) == 2 else {}
        flags |= {} if case.cell == "lstm" else {"linear_before_reset": 1}
        outputs = [f"all{place}"] if whole else ["", f"last{place}"]
        flow = node(case.cell.upper(), [flow, *given], outputs, **flags)
        if len(ways) == 2:
            flow = node("Transpose", [flow], ["sides"], perm=[1, 0, 2])
            flow = node("Reshape", [flow, constant("joined", [case.batch, 2 * case.units], np.int64)], ["rows"])
        else:
            flow = node("Squeeze", [flow, constant(f"axis{place}", [1 if whole else 0], np.int64)], [f"rows{place}"])
    flow = node("Transpose", [flow], ["back"], perm=[1, 0, 2]) if sequences else flow
    flow = node("MatMul", [flow, constant("head", subject.weights[-2])], ["product"])
    node("Add", [flow, constant("head_bias", subject.weights[-1])], ["y"])
    graph = helper.make_graph(
        nodes,
        case.name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, subject.one.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [case.batch, *subject.expected.shape[1:]])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return model


def onnx_runtimes(subject: Subject) -> dict[str, Maker]:
    """ONNX Runtime in float and dynamic int8, a scale a matrix (its default) or a channel, buffers bound beforehand.

    It knows no int8 GRU and leaves that in float.
    """
    import onnxruntime

    batch = subject.case.batch

    def narrowed(per_channel: bool) -> Any:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        path = subject.folder / "narrow.onnx"
        quantize_dynamic(subject.onnx, path, weight_type=QuantType.QInt8, per_channel=per_channel)
        return path.read_bytes()

    def made(model: Callable[[], bytes]) -> Candidate:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model(), options, providers=["CPUExecutionProvider"])
        bound = session.io_binding()
        bound.bind_cpu_input("x", subject.one)
        bound.bind_output("y")
        ask = by_batch(batch, lambda x: session.run(None, {"x": x})[0])
        return Candidate(lambda: session.run_with_iobinding(bound), ask)

    return {
        "onnxruntime 32": partial(made, lambda: bytes(subject.onnx.SerializeToString())),
        "onnxruntime 8": partial(made, partial(narrowed, False)),
        "onnxruntime 8 by-channel": partial(made, partial(narrowed, True)),
    }


def openvino_runtimes(subject: Subject) -> dict[str, Maker]:
    """OpenVINO in float32 and bfloat16; int8 would need a model quantised by NNCF: it is given ONNX Runtime's."""
    import openvino

    core = openvino.Core()

    def made(precision: str, model: Callable[[], bytes]) -> Candidate:
        hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
        request = core.compile_model(core.read_model(io.BytesIO(model())), "CPU", hints).create_infer_request()
        tensor = openvino.Tensor(subject.one.copy())

        def ask(x: Any) -> Any:
            tensor.data[:] = x
            request.infer()
            return request.get_output_tensor(0).data.copy()

        request.set_input_tensor(tensor)
        return Candidate(request.infer, by_batch(subject.case.batch, ask))

    def narrow() -> bytes:
        return (subject.folder / "narrow.onnx").read_bytes()

    makers: dict[str, Maker] = {
        "openvino 32": partial(made, "f32", lambda: bytes(subject.onnx.SerializeToString())),
        "openvino bf16": partial(made, "bf16", lambda: bytes(subject.onnx.SerializeToString())),
    }
    if subject.case.cell == "lstm":  # ONNX Runtime leaves a GRU in float
        makers["openvino 8"] = partial(made, "f32", narrow)
    return makers


def torch_runtimes(subject: Subject) -> dict[str, Maker]:
    """PyTorch, eager and dynamic int8."""
    import torch

    torch.set_num_threads(1)
    case = subject.case
    lstm = case.cell == "lstm"

    def tensor(array: Any) -> Any:
        """Of Keras's [rows, gates], with the gates in PyTorch's order: LSTM the same, GRU r, z, n."""
        parts = np.split(array, 4 if lstm else 3, axis=-1)
        parts = parts if lstm else [parts[1], parts[0], parts[2]]
        return torch.from_numpy(np.ascontiguousarray(np.concatenate(parts, axis=-1).T))

    def parts() -> Any:
        ways = case.shape == "bidirectional"
        kind = torch.nn.LSTM if lstm else torch.nn.GRU
        rnn = kind(case.features, case.units, len(subject.layers), batch_first=True, bidirectional=ways)
        for place, layer in enumerate(subject.layers):
            for way, (kernel, recurrent, bias) in enumerate(layer):
                end = f"l{place}{'_reverse' if way else ''}"
                biases = bias if bias.ndim == 2 else [bias, np.zeros_like(bias)]
                values = [kernel, recurrent, *biases]
                for name, value in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), values, strict=True):
                    getattr(rnn, f"{name}_{end}").data = tensor(value)
        head = torch.nn.Linear(subject.weights[-2].shape[0], OUTPUTS)
        head.weight.data, head.bias.data = (torch.from_numpy(each.T.copy()) for each in subject.weights[-2:])
        return torch.nn.ModuleDict({"rnn": rnn, "head": head}).eval()

    def made(narrow: bool) -> Candidate:
        modules = parts()
        if narrow:
            kinds = {torch.nn.LSTM, torch.nn.GRU}
            modules = torch.ao.quantization.quantize_dynamic(modules, kinds, dtype=torch.qint8)  # type: ignore
        rnn, head, given = modules["rnn"], modules["head"], torch.from_numpy(subject.one)

        def ask(x: Any) -> Any:
            with torch.inference_mode():
                rows, state = rnn(x)
                last = state[0] if lstm else state
                if case.shape == "bidirectional":
                    return head(torch.cat([last[0], last[1]], dim=1))
                return head(rows if case.shape == "sequences" else last[-1])

        return Candidate(lambda: ask(given), by_batch(case.batch, lambda x: ask(torch.from_numpy(x)).numpy()))

    return {"torch 32": partial(made, False), "torch 8": partial(made, True)}


# --- the limits of the core ------------------------------------------------------------------------------------------


def roofline(folder: Path) -> Any:
    """`roofline.c`, compiled and opened; None where there is no gcc, or it cannot."""
    library = folder / "roofline.so"
    command = ["gcc", "-O3", "-march=native", "-ffast-math", "-shared", "-fPIC", str(HERE / "roofline.c")]
    if not shutil.which("gcc") or subprocess.run([*command, "-o", str(library)], check=False).returncode:
        return None
    opened = ctypes.CDLL(str(library))
    opened.read_gb_s.restype = ctypes.c_double
    return opened


def aligned(array: Any) -> Any:
    """A copy that starts on a cache line."""
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def bandwidth_gb_s(library: Any, size: float) -> float:
    """Peak read bandwidth of this core over so many bytes."""
    count = max(512, int(size) // 512 * 512)
    buffer = aligned(np.zeros(count, np.uint8))
    passes = max(1, int(100e6 / count))
    found: float = library.read_gb_s(ctypes.c_void_p(buffer.ctypes.data), *map(ctypes.c_long, (count, passes, 15)))
    return found


def packed(matrix: Any) -> list[Any]:
    """A matrix [rows, columns] as `product` in roofline.c reads it: int8 weights, 128 times their sums, scales."""
    scales = np.abs(matrix).max(axis=0) / 127
    whole = np.rint(matrix / scales).astype(np.int8)
    rows, columns = matrix.shape
    blocks = whole.reshape(rows // 4, 4, columns // 64, 64).transpose(2, 0, 3, 1)
    return [blocks, 128 * whole.sum(axis=0, dtype=np.int32), scales.astype(np.float32)]


def by_hand(subject: Subject, library: Any) -> dict[str, Maker]:
    """The int8 loop of roofline.c: one layer, one sequence, the last state."""
    case = subject.case
    if library is None or case.batch > 1 or case.shape != "last" or not library.has_vnni():
        return {}

    def made() -> Candidate:
        ((kernel, recurrent, bias),) = subject.layers[0]
        first, second = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
        gates = 4 if case.cell == "lstm" else 3
        matrices = [*packed(kernel), first, *packed(recurrent), second]
        x, y = aligned(subject.one), aligned(np.zeros(OUTPUTS, np.float32))
        work = aligned(np.zeros((case.time * gates + gates + 2) * case.units, np.float32))
        arrays = [aligned(each) for each in [*matrices, subject.weights[-2].T, subject.weights[-1]]]
        sizes = [ctypes.c_int(size) for size in (case.time, case.features, case.units, gates)]
        tail = [ctypes.c_int(OUTPUTS), *(ctypes.c_void_p(each.ctypes.data) for each in (work, y))]
        pointers = [ctypes.c_void_p(each.ctypes.data) for each in arrays]
        call = partial(library.run, ctypes.c_void_p(x.ctypes.data), *sizes, *pointers, *tail)

        def ask(given: Any, held: Any = (arrays, work)) -> Any:  # C holds pointers only
            x[...] = given
            call()
            return y[None].copy()

        return Candidate(call, by_batch(1, ask))

    return {"hand 8": made}


# --- one case --------------------------------------------------------------------------------------------------------


def makers(subject: Subject, library: Any, notes: dict[str, str]) -> dict[str, Maker]:
    """Every candidate's maker; why a whole runtime is left out goes into `notes`."""
    found = brisk_forms(subject) | ordinary_tflite(subject) | ordinary_tensorflow(subject)
    for runtime in (onnx_runtimes, openvino_runtimes, torch_runtimes):
        try:
            found |= runtime(subject)
        except ImportError as error:
            notes[runtime.__name__] = reason(error)
    return found | by_hand(subject, library)


def reason(error: Exception) -> str:
    """One line of an error; the cause rather than where it was found."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "not supported" in line or "No conversion" in line] or lines[:1]
    return f"{type(error).__name__}: {' '.join(told)[:240]}"


def measured(case: Case, rounds: int) -> dict[str, Any]:
    """All that is known of one case: each candidate's errors, times by round and floor; what failed, and why."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = roofline(folder)
        notes: dict[str, str] = {} if library else {"roofline": "not compiled: no gcc, or none that can"}
        if library and not library.has_vnni():
            notes["hand 8"] = "this processor has no AVX-512 VNNI"
        subject = Subject(case, folder)
        ready, rows = {}, {}
        for label, make in makers(subject, library, notes).items():
            try:
                candidate = make()
                rows[label] = errors(np.asarray(candidate.answer(subject.x)), subject.expected)
                ready[label] = candidate
            except Exception as error:
                notes[label] = reason(error)
        for label, times in timed(ready, rounds).items():
            rows[label] |= {"ms": statistics.median(times), "rounds_ms": times}
        peaks = bandwidths(case, library) if library else {}
        for label, row in rows.items():
            bits = label.split()[1] if " " in label else "32"
            if label.startswith("onnxruntime 8") and case.cell == "gru":
                bits = "32"
            if bits in peaks:
                row["floor_ms"] = case.time * case.matrices * case.matrix_weights * BYTES[bits] / peaks[bits] / 1e6
                row["broken"] = row["ms"] < row["floor_ms"]
    return {"rows": rows, "notes": notes, "read_gb_s": peaks, "load": os.getloadavg()[0]}


def errors(got: Any, expected: Any) -> dict[str, Any]:
    """How far outputs are from those of Keras."""
    difference = np.abs(got.astype(np.float64).reshape(expected.shape) - expected)
    relative = np.sqrt((difference**2).mean() / (expected.astype(np.float64) ** 2).mean())
    return {"max_abs_error": float(difference.max()), "relative_rms_error": float(relative)}


def bandwidths(case: Case, library: Any) -> dict[str, float]:
    """The peak read bandwidth for one recurrent matrix in each width; a smaller one is never slower to read."""
    sizes = {bits: case.matrix_weights * width for bits, width in BYTES.items()}
    peaks = {size: bandwidth_gb_s(library, size) for size in set(sizes.values())}
    return {bits: max(peak for other, peak in peaks.items() if other >= size) for bits, size in sizes.items()}


def timed(ready: dict[str, Candidate], rounds: int) -> dict[str, list[float]]:
    """Each candidate's milliseconds a call in each round, the medians of blocks; the glacial ones have three rounds."""
    clean, order, taken = cleaner(), random.Random(7), {name: list[float]() for name in ready}
    seconds = {}
    for name, candidate in ready.items():
        seconds[name] = min(block(candidate, clean, 0, 1)[0] / 1e9 for _ in range(2))
    gc.collect()
    gc.freeze()
    gc.disable()
    for turn in range(rounds):
        names = [name for name, spent in seconds.items() if turn < 3 or spent < GLACIAL_S]
        order.shuffle(names)
        for name in names:
            calls = max(1, min(400, round(SLOT_S / seconds[name])))
            walls = block(ready[name], clean, 2 if seconds[name] < SLOW_S else 1, calls)
            taken[name].append(statistics.median(walls) / 1e6)
    gc.enable()
    return taken


def block(candidate: Candidate, clean: Callable[[], Any], discarded: int, calls: int) -> list[int]:
    """Nanoseconds of each call: clean registers, fresh state, a few calls discarded, then those that count."""
    call, clock, walls = candidate.call, time.perf_counter_ns, []
    clean()
    candidate.before()
    for _ in range(discarded):
        call()
    for _ in range(calls):
        started = clock()
        call()
        walls.append(clock() - started)
    return walls


def child(case: Case, rounds: int) -> None:
    """The life of a case's process, pinned by its parent before any thread was born; it answers in its last line."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    configure(1)
    out = os.dup(1)
    os.dup2(2, 1)  # whatever the libraries print
    answer = measured(case, rounds)
    os.write(out, ("\n" + json.dumps(answer)).encode())
    os._exit(0)  # what dies while it is torn down has been timed all the same


def run_case(case: Case, rounds: int) -> dict[str, Any]:
    """A case in a fresh process; a note where it died."""
    command = [sys.executable, "-P", "-m", "experiments.claims.runtimes", "--child", case.name, "--rounds", str(rounds)]
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    try:
        ended = subprocess.run(command, capture_output=True, timeout=CASE_TIMEOUT_S, env=environment, text=True)
    except subprocess.TimeoutExpired:
        return {"died": f"took longer than {CASE_TIMEOUT_S} s"}
    if ended.returncode:
        return {"died": f"ended with {ended.returncode}: {ended.stderr[-600:]}"}
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return {**answer, "seconds": time.monotonic() - started}


# --- the report ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """How many times one time is another: the median over rounds, and where the middle 80 % of them lie."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Three digits."""
        return f"{self.median:.3g}"


class Results:
    """The rows of one case, asked for by what they are: `brisk 8`, `keras3 8`, `onnxruntime`."""

    def __init__(self, rows: dict[str, dict[str, Any]]) -> None:
        self.rows = rows

    def best(self, *starts: str) -> str | None:
        """The fastest candidate whose name starts so; None where there is none, or its figure is broken."""
        found = [name for name, row in self.rows.items() if name.startswith(starts) and not row.get("broken")]
        return min(found, key=lambda name: float(self.rows[name]["ms"]), default=None)

    def over(self, fast: str | None, slow: str | None) -> Ratio | None:
        """How many times faster `fast` is than `slow`, by pairs of the same round."""
        if fast is None or slow is None:
            return None
        pairs = zip(self.rows[fast]["rounds_ms"], self.rows[slow]["rounds_ms"], strict=False)  # glacial ones have fewer
        found = sorted(second / first for first, second in pairs)
        low, high = (found[round(share * (len(found) - 1))] for share in (0.1, 0.9))
        return Ratio(statistics.median(found), low, high)

    def figure(self, name: str | None, key: str, digits: str) -> str:
        """One figure of a candidate, as text."""
        return "–" if name is None or key not in self.rows[name] else format(self.rows[name][key], digits)


EIGHT, FOUR, LOSSLESS = "brisk 8 ", "brisk rec4 ", ("brisk 32 ", "brisk 8 ", "brisk rec8 ")
ORDINARY, FLOAT_ORDINARY = (
    ("keras3", "tf_keras", "predict", "tf.function", "xla", "savedmodel"),
    ("keras3 32", "tf_keras 32", "predict", "tf.function", "xla", "savedmodel"),
)
OTHER = ("onnxruntime", "openvino", "torch")
TIE = 0.97
COLUMNS = (
    "model T-F-H", "brisk w8 ms", "steps", "over Keras 3 static, dyn", "over tf_keras dyn, as shipped", "clean",
    "over predict", "over the best other runtime", "rec4 over w8", "error w8 / rec4", "floor ms", "hand-written ms",
    "w8 time of hand-written",
)  # fmt: skip


def table_row(name: str, results: Results) -> list[str]:
    """A case in the table; ratios say how many times faster brisk's best 8-bit form is, but for the last."""
    eight, four, other = results.best(EIGHT), results.best(FOUR), results.best(*OTHER)
    ordinary = ("keras3 8", "tf_keras 8 shipped", "tf_keras 8 clean", "predict")
    ratios = [results.over(eight, results.best(slow)) for slow in ordinary]
    against = [results.over(eight, other), results.over(four, eight), results.over(results.best("hand"), eight)]
    rival, gain, hand = (str(ratio or "–") for ratio in against)
    wrong = " / ".join(results.figure(each, "relative_rms_error", ".1e") for each in (eight, four))
    return [
        name,
        results.figure(eight, "ms", ".4f"),
        eight.removeprefix(EIGHT) if eight else "–",
        *(str(ratio or "–") for ratio in ratios),
        f"{rival} ({other})",
        gain,
        wrong,
        results.figure(eight, "floor_ms", ".4f"),
        results.figure(results.best("hand"), "ms", ".4f"),
        hand,
    ]


BRIEF = ("LSTM or GRU, T-F-H", "Keras 3, int8", "brisk, int8", "faster", "than fused, as shipped", "than predict",
         "than the best other", "int4 recurrence")  # fmt: skip


def brief_row(name: str, results: Results) -> list[str]:
    """A case as the README shows it: milliseconds, and how many times faster brisk's best 8-bit form is."""
    eight, four, other = results.best(EIGHT), results.best(FOUR), results.best(*OTHER)
    stock = results.best("keras3 8")
    ratios = [results.over(eight, results.best(slow)) for slow in ("keras3 8", "tf_keras 8 shipped", "predict")]
    rival, narrow = results.over(eight, other), results.over(four, stock)
    words = " ".join((other or "").split()[:2]).replace("onnxruntime", "ONNX Runtime").replace(" 8", " int8")
    return [
        name.replace("-b32", ", batch 32"),
        *(results.figure(each, "ms", ".3f") for each in (stock, eight)),
        *(f"{float(f'{ratio.median:.3g}'):,.4g}×" if ratio else "–" for ratio in ratios),
        f"{rival.median:.2f}× ({words.replace(' 32', '')})" if rival else "–",
        f"{narrow.median:.2f}×" if narrow else "–",
    ]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def steps_row(name: str, results: Results) -> list[str]:
    """The 8-bit time at each number of steps an iteration, the best of a layer and stacked."""
    found = [results.best(f"brisk 8 k{k}") for k in (1, 2, 4, 8, 50)]
    return [name, *(results.figure(each, "ms", ".4f") for each in found)]


Wanted = tuple[str, Callable[[Case], bool], Callable[[Results], Ratio | None], str, Callable[[Case], float]]


def wanted() -> list[Wanted]:
    """What is promised: its words, of which cases, the figure, and its limit."""

    def over(fast: str | Sequence[str], *slow: str) -> Callable[[Results], Ratio | None]:
        starts = (fast,) if isinstance(fast, str) else fast
        return lambda results: results.over(results.best(*starts), results.best(*slow))

    def one(case: Case) -> bool:
        return case.batch == 1 and case.shape == "last"

    def tie(case: Case) -> float:
        return TIE

    shapes = {"sequences": 4.0, "two": 3.0, "bidirectional": 1.35}
    stock, rivals, hand, narrow = (
        over(*pair) for pair in ((EIGHT, "keras3 8"), (EIGHT, *OTHER), ("hand", EIGHT), (FOUR, EIGHT))
    )
    return [
        ("w8 over Keras 3 static, dyn", lambda c: one(c) and c.units in (128, 256), stock, ">=", lambda c: 1.25),
        ("w8 over Keras 3 static, dyn", lambda c: one(c) and c.units == 512, stock, ">=", lambda c: 1.15),
        ("w8 over Keras 3 static, dyn", lambda c: c.shape in shapes, stock, ">=", lambda c: shapes[c.shape]),
        ("rec4 over w8", lambda c: one(c) and (c.cell, c.units) == ("lstm", 512), narrow, ">=", lambda c: 1.8),
        ("w8 over predict", lambda c: one(c) and c.units <= 128, over(EIGHT, "predict"), ">=", lambda c: 100.0),
        ("32, 8 or rec8 over the best ordinary", lambda c: True, over(LOSSLESS, *ORDINARY), ">=", tie),
        ("32 over the best ordinary float", lambda c: True, over("brisk 32 ", *FLOAT_ORDINARY), ">=", tie),
        ("w8 over the best other runtime", lambda c: one(c) and (c.units > 64 or c.cell == "gru"), rivals, ">=", tie),
        ("w8 time of the hand-written", lambda c: one(c) and c.units == 256, hand, "<=", lambda c: 1.3),
        ("w8 time of the hand-written", lambda c: one(c) and c.units == 128, hand, "<=", lambda c: 1.5),
    ]


def verdicts(cases: dict[str, Any]) -> list[dict[str, Any]]:
    """Every promise of every case that was measured, and whether it is kept."""
    found = []
    for words, of, figure, sign, limit in wanted():
        for case in CASES:
            if case.name not in cases or "rows" not in cases[case.name] or not of(case):
                continue
            ratio, bound = figure(Results(cases[case.name]["rows"])), limit(case)
            if ratio is not None:
                hit = ratio.median >= bound if sign == ">=" else ratio.median <= bound
                row = {"promise": words, "case": case.name, "figure": ratio.median, "low": ratio.low}
                found.append({**row, "high": ratio.high, "wanted": f"{sign} {bound:g}", "hit": hit})
    return found


def written(report: dict[str, Any]) -> str:
    """The tables, the promises, and what failed or cannot be trusted, as markdown."""
    done = {case: report["cases"][case.name] for case in CASES if "rows" in report["cases"].get(case.name, {})}
    rows = {case: Results(found["rows"]) for case, found in done.items()}
    parts = [", ".join(f"{name} {value}" for name, value in report["conditions"].items())]
    for batch in (1, 32):
        parts.append(f"Batch {batch}: ratios say how many times faster brisk's best 8-bit form is")
        parts.append(markdown(COLUMNS, [table_row(c.name, r) for c, r in rows.items() if c.batch == batch]))
    parts.append("In brief, as the README shows it")
    parts.append(markdown(BRIEF, [brief_row(c.name, r) for c, r in rows.items()]))
    parts.append("brisk w8, ms by steps an iteration")
    parts.append(markdown(("case", "1", "2", "4", "8", "all"), [steps_row(c.name, r) for c, r in rows.items()]))
    marks = [
        f"- {'hit ' if each['hit'] else 'MISS'} {each['case']}: {each['promise']} {each['figure']:.3g} "
        f"({each['low']:.3g}–{each['high']:.3g}), wanted {each['wanted']}"
        for each in report["verdicts"]
    ]
    parts.append("\n".join(["Promises (median of the ratio over rounds, p10–p90)", *marks]))
    notes = [f"- {case.name}: {name}: {why}" for case, found in done.items() for name, why in found["notes"].items()]
    notes += [f"- {name}: {found['died']}" for name, found in report["cases"].items() if "died" in found]
    notes += [
        f"- {case.name}: {name}: {row['ms']:.4f} ms is under its floor of {row['floor_ms']:.4f}: not a measurement"
        for case, found in done.items()
        for name, row in found["rows"].items()
        if row.get("broken")
    ]
    return "\n\n".join([*parts, "\n".join(["Left out", *notes])]) + "\n" if notes else "\n\n".join(parts) + "\n"


def conditions() -> dict[str, Any]:
    """What the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        **{name: version(name) for name in PACKAGES + OTHERS},
    }


def version(name: str) -> str | None:
    """The installed version of a package; None where it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Run the cases that are asked for and not there yet, then print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the folder to write to")
    parser.add_argument("--quick", action="store_true", help="a third of the rounds")
    parser.add_argument("--again", action="store_true", help="run the cases that are there too")
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE", help=", ".join(case.name for case in CASES))
    parser.add_argument("--rounds", type=int, default=12, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    cases = {case.name: case for case in CASES}
    if asked.child:
        child(cases[asked.child], asked.rounds)
    if not asked.out or any(name not in cases for name in asked.only):
        parser.error("--out is needed, and --only takes " + ", ".join(cases))
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / "runtimes.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"cases": {}}
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the children inherit it
    for name in asked.only or cases:
        if asked.again or name not in report["cases"]:
            report["cases"][name] = run_case(cases[name], 4 if asked.quick else asked.rounds)
            report["conditions"] = conditions()
            path.write_text(json.dumps(report, indent=1) + "\n")
            row = report["cases"][name]
            print(f"{name}: {row.get('died') or format(row['seconds'], '.0f') + ' s'}", flush=True)
    report["verdicts"] = verdicts(report["cases"])
    path.write_text(json.dumps(report, indent=1) + "\n")
    text = written(report)
    (asked.out / "runtimes.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
