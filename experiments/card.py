"""The card of an exported model: all its user must know, as JSON and in words."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from experiments.tables import batch, gains, markdown
from objectives.model_file import ModelFile
from objectives.outcome import Outcome
from objectives.task import TASKS
from spaces.signature import PADDING, Signature


def plain_name(study: str) -> str:
    """The study's name as a model name that every server takes: letters, digits and underscores."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in study)


def card_of(
    signature: Signature,
    outcome: Outcome,
    point: dict[str, Any],
    found: dict[str, Any],
    *,
    study: str,
    to: str,
    model: ModelFile | None = None,
) -> dict[str, Any]:
    """All a user of the file must know, as JSON: its own quality, as `verify` found it, and latency and size that the
    candidate was chosen by, which are the .tflite artifact's whatever form was written. `model` is the user's own,
    where that was exported.
    """
    assert outcome.quality, "only finished candidates are exported"
    found = dict(found)
    written = found.pop("quality")
    columns, probable = found.pop("columns", signature.outputs), found.pop("probable", True)
    version = found.pop("keras", "")  # of Keras, where a .keras file was written
    worse = TASKS[signature.kind].error(written["validation"]) - outcome.quality.error
    batch = {"tflite": outcome.genotype.deployment.batch, "streaming": 1}.get(to)
    steps = found.pop("frames", signature.time_steps)
    shape = [batch, steps] if signature.vocabulary else [batch, steps, signature.features]
    given = [batch, steps, columns] if signature.sequences else [batch, columns]
    padding = None if not signature.masked else (0 if signature.vocabulary else PADDING)
    padding = padding if model is None or model.padding is None else model.padding
    of = "the .tflite artifact" + ("" if to == "tflite" else " of the same weights; this form was not measured")
    inside = {"mean": list(signature.mean), "std": list(signature.std), "where": "inside the model"}
    return {
        "study": study,
        "trial": point["trial"],
        "format": to,
        **({"keras": version} if version else {}),
        "task": signature.kind,
        "input": {
            "name": "x",
            "dtype": "int32" if signature.vocabulary else "float32",
            "shape": shape,
            "units": "raw: as your model takes them" if model and not signature.vocabulary else _units(signature),
            "padding": padding,
        },
        "output": {
            "name": "y",
            "dtype": "float32",
            "shape": given,
            "meaning": _meaning(signature, columns, probable),
        },
        "normalisation": None if signature.vocabulary or model else inside,
        "labels": list(signature.labels),
        "genotype": point["genotype"],
        "quality": {"metric": point["quality"]["metric"], **written},
        "latency_ms": {**point["latency_ms"], "of": of},
        "size_bytes": point["size_bytes"],
        "artifact": point["artifact"],
        "twins": point.get("twins", []),
        "baseline": {
            "speedup": point["speedup"],
            "speedup_of": of,
            "drop": None if point["drop"] is None else point["drop"] + worse,
        },
        "verification": {**found, "held_to": " and ".join(held_to(to, outcome))},
        "versions": {name: metadata.version(name) for name in ("brisk-rnn", "tensorflow", "ai-edge-litert")},
    }


def held_to(to: str, outcome: Outcome) -> list[str]:
    """What a written model must share with what was trained and measured: a float form every output, the measured file
    its validation score.
    """
    measured = to in ("tflite", "streaming")
    outputs = not measured or outcome.genotype.deployment.bits == "32"
    return ["outputs"] * outputs + ["validation score"] * measured


def _meaning(signature: Signature, columns: int, probable: bool) -> str:
    if signature.kind == "regression":
        return "values"
    if columns == 1:
        return f"{'probability' if probable else 'logit'} of {signature.labels[1] if signature.labels else 'class 1'}"
    return "probabilities" if probable else "logits"


def _units(signature: Signature) -> str:
    if not signature.vocabulary:
        return "raw: the model normalises by itself"
    return f"tokens 0..{signature.vocabulary - 1}" + (", 0 pads" if signature.masked else "")


CALLS = {
    "streaming": """import numpy as np
from ai_edge_litert.interpreter import Interpreter
model = Interpreter("streaming.tflite", num_threads=1)
model.allocate_tensors()
call = model.get_signature_runner("serving_default")
state = dict(np.load("states.npz"))  # once for each sequence
for x in frames:  # each {dtype} {shape}
    state = call(x=x, **state)
    y = state.pop("y")  # the answer so far""",
    "tflite": """from ai_edge_litert.interpreter import Interpreter
model = Interpreter("model.tflite", num_threads=1)
model.allocate_tensors()
call = model.get_signature_runner("serving_default")
y = call(x=x)["y"]  # x: {dtype} {shape}""",
    "stateful": """from ai_edge_litert.interpreter import Interpreter
model = Interpreter("model.tflite", num_threads=1)
model.allocate_tensors()
call = model.get_signature_runner("serving_default")
model.reset_all_variables()  # before each call: its state would live on
y = call(x=x)["y"]  # x: {dtype} {shape}""",
    "savedmodel": """import tensorflow as tf
model = tf.saved_model.load("saved_model")
call = model.signatures["serving_default"]
x = tf.constant(x)  # {dtype} {shape}
y = call(x=x)["y"].numpy()""",
    "tfserving": """# docker run -p 8501:8501 -v "$PWD/models:/models" -v "$PWD/model.config:/model.config" \\
#     tensorflow/serving --model_config_file=/model.config
import json, urllib.request
url = "http://localhost:8501/v1/models/{name}:predict"  # x: {dtype} {shape}
y = json.load(urllib.request.urlopen(url, json.dumps({{"inputs": x.tolist()}}).encode()))["outputs"]""",
    "keras": """import spaces.build  # of brisk-rnn: registers its layers
from tf_keras.models import load_model
model = load_model("model.keras")
y = model(x, training=False).numpy()  # x: {dtype} {shape}""",
    "keras3": """# import the module that registers layers of your own, if there are any
from keras.models import load_model
model = load_model("model.keras", compile=False)
y = model(x, training=False).numpy()  # x: {dtype} {shape}""",
}


def readme(card: dict[str, Any]) -> str:
    """The card in words, with the five lines that call the model."""
    quality, latency = card["quality"], card["latency_ms"]
    shape = "[" + ", ".join("batch" if size is None else str(size) for size in card["input"]["shape"]) + "]"
    kind = "keras3" if card.get("keras", "").startswith("3") else card["format"]
    kind = "stateful" if kind == "tflite" and card["artifact"].get("keeps_state") else kind
    call = CALLS[kind].format(dtype=card["input"]["dtype"], shape=shape, name=plain_name(card["study"]))
    score = f"{quality['metric']} {quality['test']:.4f} +- {quality['test_stderr']:.4f} on the test part"
    compared = card["verification"]
    lines = [
        f"# {card['study']}, trial {card['trial']}: a {card['task']} model",
        "",
        f"- Quality of this form: {score}, {quality['validation']:.4f} on the validation part.",
        f"- Latency: {latency['median']:.4g} ms a call (95 % interval {latency['ci'][0]:.4g} to {latency['ci'][1]:.4g}"
        f"{'' if latency['converged'] else ', not converged'}), {latency['scenario']}, batch {latency['batch']}, "
        f"{latency['threads']} thread, on device {latency['device']!r}; of {latency['of']}.",
        f"- Size: {card['size_bytes']} bytes as .tflite, with the bits {card['artifact']['realised_bits']}.",
        f"- Input `x`: {card['input']['dtype']} {shape}, {card['input']['units']}.",
        f"- Output `y`: {card['output']['meaning']}" + (", labels in `labels.txt`." if card["labels"] else "."),
        f"- Verified in a fresh process on {compared['rows']} held-out rows: largest difference from the trained Keras "
        f"model {compared['max_difference']:.2g}, relative error {compared['output_error']:.2g}, "
        f"score {compared['score']:.4f} against Keras's {compared['keras_score']:.4f}.",
    ]
    if card["input"]["padding"] is not None:
        lines.append(f"- Shorter sequences are filled up at their end with {card['input']['padding']:g}.")
    lines += [f"- Training, {line}." for line in gains(card)]
    lines += ["", "```python", call, "```", ""]
    if curve := card.get("batch_curve"):
        title = f"Its .tflite made for calls of other batch sizes, measured in one sitting. {curve['text']}".rstrip()
        lines.append(markdown(title, batch(card)))
    return "\n".join(lines)
