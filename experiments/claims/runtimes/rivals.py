"""Other runtimes with the same weights: ONNX Runtime, OpenVINO and PyTorch, each left out where it is not installed."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from experiments.claims.runtimes.cases import OUTPUTS, Candidate, Maker, Subject
from experiments.claims.runtimes.ordinary import by_batch


@lru_cache(maxsize=1)
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
        quantize_dynamic(onnx_model(subject), path, weight_type=QuantType.QInt8, per_channel=per_channel)
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
        "onnxruntime 32": partial(made, lambda: bytes(onnx_model(subject).SerializeToString())),
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
        "openvino 32": partial(made, "f32", lambda: bytes(onnx_model(subject).SerializeToString())),
        "openvino bf16": partial(made, "bf16", lambda: bytes(onnx_model(subject).SerializeToString())),
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
            modules = torch.ao.quantization.quantize_dynamic(modules, kinds, dtype=torch.qint8)
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
