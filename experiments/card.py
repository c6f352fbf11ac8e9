"""The card of an exported model: all its user must know, as JSON and in words."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from objectives.outcome import Outcome
from spaces.signature import PADDING, Signature


def plain_name(study: str) -> str:
    """The study's name as a model name that every server takes: letters, digits and underscores."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in study)


def card_of(
    signature: Signature, outcome: Outcome, point: dict[str, Any], found: dict[str, Any], *, study: str, to: str
) -> dict[str, Any]:
    """All a user of the file must know, as JSON."""
    batch = outcome.genotype.deployment.batch if to == "tflite" else None
    steps = signature.time_steps
    shape = [batch, steps] if signature.vocabulary else [batch, steps, signature.features]
    given = [batch, steps, signature.outputs] if signature.sequences else [batch, signature.outputs]
    padding = None if not signature.masked else (0 if signature.vocabulary else PADDING)
    return {
        "study": study,
        "trial": point["trial"],
        "format": to,
        "task": signature.kind,
        "input": {
            "name": "x",
            "dtype": "int32" if signature.vocabulary else "float32",
            "shape": shape,
            "units": "raw: the model normalises by itself",
            "padding": padding,
        },
        "output": {
            "name": "y",
            "dtype": "float32",
            "shape": given,
            "meaning": "values" if signature.kind == "regression" else "probabilities",
        },
        "normalisation": {"mean": list(signature.mean), "std": list(signature.std), "where": "inside the model"},
        "labels": list(signature.labels),
        "genotype": point["genotype"],
        "quality": point["quality"],
        "latency_ms": {**point["latency_ms"], "of": "the .tflite artifact"},
        "size_bytes": point["size_bytes"],
        "artifact": point["artifact"],
        "baseline": {"speedup": point["speedup"], "drop": point["drop"]},
        "verification": {**found, "held_to": "outputs" if to != "tflite" else "outputs if float32, else score"},
        "versions": {name: metadata.version(name) for name in ("brisk-rnn", "tensorflow", "ai-edge-litert")},
    }


CALLS = {
    "tflite": """from ai_edge_litert.interpreter import Interpreter
model = Interpreter("model.tflite", num_threads=1)
model.allocate_tensors()
call = model.get_signature_runner("serving_default")
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
}


def readme(card: dict[str, Any]) -> str:
    """The card in words, with the five lines that call the model."""
    quality, latency = card["quality"], card["latency_ms"]
    shape = "[" + ", ".join("batch" if size is None else str(size) for size in card["input"]["shape"]) + "]"
    call = CALLS[card["format"]].format(dtype=card["input"]["dtype"], shape=shape, name=plain_name(card["study"]))
    test = quality["test"]
    score = (
        f"{quality['metric']} {test:.4f} +- {quality['test_stderr']:.4f} on the test part"
        if test is not None
        else f"{quality['metric']} {quality['validation']:.4f} on the validation part; the test part was not read"
    )
    compared = card["verification"]
    lines = [
        f"# {card['study']}, trial {card['trial']}: a {card['task']} model",
        "",
        f"- Quality: {score}.",
        f"- Latency: {latency['median']:.4g} ms a call (95 % interval {latency['ci'][0]:.4g} to {latency['ci'][1]:.4g}"
        f"{'' if latency['converged'] else ', not converged'}), {latency['scenario']}, batch {latency['batch']}, "
        f"{latency['threads']} thread, on device {latency['device']!r}; of {latency['of']}.",
        f"- Size: {card['size_bytes']} bytes as .tflite; bits realised: {card['artifact']['realised_bits']}.",
        f"- Input `x`: {card['input']['dtype']} {shape}, in raw units; normalisation is inside the model.",
        f"- Output `y`: {card['output']['meaning']}" + (", labels in `labels.txt`." if card["labels"] else "."),
        f"- Verified in a fresh process on {compared['rows']} held-out rows: largest difference from the trained Keras "
        f"model {compared['max_difference']:.2g}, relative error {compared['output_error']:.2g}, "
        f"score {compared['score']:.4f} against Keras's {compared['keras_score']:.4f}.",
    ]
    if card["input"]["padding"] is not None:
        lines.append(f"- Shorter sequences are filled up at their end with {card['input']['padding']:g}.")
    lines += ["", "```python", call, "```", ""]
    return "\n".join(lines)
