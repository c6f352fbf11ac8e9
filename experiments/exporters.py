"""The exporters, as they run in a worker: write a trained candidate in one form, then read it back and judge it.

Each row of `EXPORTERS` writes into a folder and gives the path that is to be loaded; each loader gives a function from
raw inputs to outputs. Writing and judging happen in two processes, so that nothing is judged from memory.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.bench import Bench
from objectives.cache import Cache
from objectives.data import Dataset, loaded
from objectives.deployment.interpreter import Session, predict
from objectives.deployment.quantize import quantize
from objectives.model_file import answered, fed, probable
from objectives.origin import Origin, origin_of
from objectives.outcome import Outcome
from objectives.task import TASKS
from objectives.trained import Trained
from spaces.backend import tf
from spaces.errors import ModelError, StudyError, VerificationError
from spaces.genotype import Genotype
from spaces.lowering.load import load
from spaces.record import from_json
from spaces.signature import PADDING

ROWS = 256  # of the test part, on which outputs are compared with the trained model's; and of one call
AGAIN = "run the study again under a --name of its own"
Run = Callable[[NDArray[Any]], NDArray[np.float32]]


@dataclass(frozen=True)
class Made:
    """What there is of a candidate: its model, the file that was measured, and how a stream would take it."""

    origin: Origin
    outcome: Outcome
    artifact: Path
    frames: int
    quantize_head: bool

    @property
    def serving(self) -> Any:
        """The float Keras model."""
        origin: Any = self.origin
        assert origin.trains, "a model of the user's own is exported as .tflite only"
        return origin.serving


@dataclass(frozen=True)
class Exporter:
    """One form: `write(made, folder, name)` gives the path to load, `open` loads it in another process."""

    write: Callable[[Made, Path, str], Path]
    open: Callable[[Path], Run]


def _write_tflite(made: Made, folder: Path, name: str) -> Path:
    try:
        content = made.artifact.read_bytes()
    except OSError as error:
        raise StudyError(f"the model file {made.artifact} cannot be read ({error.strerror}); {AGAIN}") from None
    if hashlib.sha256(content).hexdigest() != made.artifact.stem:
        raise VerificationError(
            f"{made.artifact} is not the file that was measured. Nothing was left in place; {AGAIN}"
        )
    path = folder / "model.tflite"
    path.write_bytes(content)
    return path


def _write_keras(made: Made, folder: Path, name: str) -> Path:
    made.serving.save(folder / "model.keras")
    return folder / "model.keras"


def _write_saved_model(made: Made, folder: Path, name: str) -> Path:
    return _save(made.serving, folder / "saved_model")


def _write_tfserving(made: Made, folder: Path, name: str) -> Path:
    (folder / "model.config").write_text(
        "model_config_list {\n  config {\n"
        f'    name: "{name}"\n    base_path: "/models/{name}"\n    model_platform: "tensorflow"\n'
        "  }\n}\n",
        encoding="utf-8",
    )
    return _save(made.serving, folder / "models" / name / "1")


def _write_streaming(made: Made, folder: Path, name: str) -> Path:
    """One step of a stream, and beside it the states that a sequence begins with."""
    assert isinstance(made.origin, Trained), "a model of the user's own streams by `brisk rewrite`"
    floats, first = made.origin.stream(made.frames)
    path = folder / "streaming.tflite"
    path.write_bytes(quantize(floats, made.outcome.genotype.deployment.bits, head=made.quantize_head))
    starts: dict[str, Any] = {state: array[None] for state, array in first.items()}
    np.savez(folder / "states.npz", **starts)
    return path


def _save(model: Any, folder: Path) -> Path:
    """A SavedModel with one signature, `x` to `y`, and a free batch dimension; it needs nothing of brisk to load."""
    taken = model.inputs[0]

    @tf.function(input_signature=[tf.TensorSpec((None, *taken.shape[1:]), taken.dtype, name="x")], autograph=False)
    def serve(x: Any) -> dict[str, Any]:
        return {"y": model(x, training=False)}

    module = tf.Module()
    # Tracked, so that the checkpoint holds them; Keras 3 keeps TensorFlow's variables inside its own.
    module.weights = [getattr(each, "_value", each) for each in model.variables]
    module.serve = serve
    tf.saved_model.save(module, str(folder), signatures={"serving_default": serve})
    return folder


def _open_tflite(path: Path) -> Run:
    return lambda x: predict(path, x)


def _open_streaming(path: Path) -> Run:
    """Call by call, the frames of a sequence one after the other; rows of several lengths each up to their end."""
    session = Session(path)
    with np.load(path.with_name("states.npz")) as kept:
        first = {name: kept[name] for name in kept.files}

    def run(x: NDArray[Any]) -> NDArray[np.float32]:
        frames = session.shape("x")[1]
        state = {name: np.repeat(array, len(x), axis=0) for name, array in first.items()}
        steps = []
        for at in range(0, x.shape[1], frames):
            answer = session.run({"x": x[:, at : at + frames], **state})
            steps.append(answer.pop("y"))
            state = answer
        if steps[0].ndim > 2:
            return np.concatenate(steps, axis=1)
        padded = x == 0 if x.ndim == 2 else (x == np.float32(PADDING)).all(axis=-1)
        ends = x.shape[1] - (~padded[:, ::-1]).argmax(axis=1) if frames == 1 else np.full(len(x), x.shape[1])
        answers: NDArray[np.float32] = np.stack(steps, axis=1)
        last: NDArray[np.float32] = answers[np.arange(len(x)), ends // frames - 1]
        return last

    return run


def _open_keras(path: Path) -> Run:
    try:
        model = load(path, unsafe=True)  # it was written a moment ago, of code that runs anyway
    except ModelError as error:
        raise VerificationError(
            f"the written model does not load by itself: {error}. Nothing was left in place; register the layers of "
            "your own (keras.saving.register_keras_serializable), or export tflite or savedmodel"
        ) from error
    return lambda x: model.answers([x])[0]


def _open_saved_model(path: Path) -> Run:
    """Load as TF Serving does: a plain session that runs the tensors the signature names."""
    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph)
    with graph.as_default():
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(path))
    signature = loaded.signature_def["serving_default"]
    taken, given = signature.inputs["x"].name, signature.outputs["y"].name

    def run(x: NDArray[Any]) -> NDArray[np.float32]:
        return np.concatenate([session.run(given, {taken: x[at : at + ROWS]}) for at in range(0, len(x), ROWS)])

    return run


EXPORTERS: dict[str, Exporter] = {
    "tflite": Exporter(_write_tflite, _open_tflite),
    "keras": Exporter(_write_keras, _open_keras),
    "savedmodel": Exporter(_write_saved_model, _open_saved_model),
    "tfserving": Exporter(_write_tfserving, _open_saved_model),
    "streaming": Exporter(_write_streaming, _open_streaming),
}


def write(
    bench: dict[str, Any], outcome: dict[str, Any], to: str, folder: str, name: str, frames: int = 1
) -> dict[str, Any]:
    """Write one form into `folder`; beside it, for `verify`, what the trained Keras model answers on held-out rows.

    Raises DataError where the data have changed since the study, StudyError where its trained weights or the artifact
    are no longer in the cache: nothing is trained here, for it would not be what was measured.
    """
    where, known = from_json(Bench, bench), from_json(Outcome, outcome)
    assert known.artifact, "only candidates with an artifact are exported"
    data = loaded(where)
    origin = _origin(where, data, known.genotype)
    artifact = Cache(where.home).artifact(known.artifact.sha256)
    made = Made(origin, known, artifact, frames, where.quantize_head)
    path = EXPORTERS[to].write(made, Path(folder), name)
    np.save(Path(folder) / "oracle.npy", origin.answer(data.test.x[:ROWS]))
    return {"path": str(path)}


def _origin(bench: Bench, data: Dataset, genotype: Genotype) -> Origin:
    """The float model behind a genotype, with the weights that were measured."""
    origin: Any = origin_of(bench, data, genotype)
    if origin.trains and not origin.recall():
        raise StudyError(f"{Cache(bench.home).folder} has no weights that these versions trained; {AGAIN}")
    found: Origin = origin
    return found


def verify(bench: dict[str, Any], genotype: dict[str, Any], to: str, path: str, folder: str) -> dict[str, Any]:
    """Load what was written, in this fresh process: its quality on the validation and the test part, and on held-out
    rows of the latter how far it is from the trained model.
    """
    where = from_json(Bench, bench)
    data, file = loaded(where), where.file_of(from_json(Genotype, genotype))
    if where.hypermodel:
        from objectives.built import hypermodel

        hypermodel(where)  # registers the layers of the user's own
    task, run = TASKS[data.signature.kind], EXPORTERS[to].open(Path(path))
    validation, raw = (run(fed(part.x, file)) for part in (data.validation, data.test))
    validation, test = answered(validation, data.signature), answered(raw, data.signature)
    oracle = np.load(Path(folder) / "oracle.npy")
    output, y = test[: len(oracle)], data.test.y[: len(oracle)]
    return {
        "rows": len(oracle),
        "max_difference": float(np.max(np.abs(output - oracle))),
        "largest_output": float(np.max(np.abs(oracle))),
        "output_error": float(np.sqrt(np.mean((output - oracle) ** 2) / np.mean(oracle**2))),
        "score": task.score(y, output),
        "keras_score": task.score(y, oracle),
        "quality": {
            "validation": task.score(data.validation.y, validation),
            "test": task.score(data.test.y, test),
            "test_stderr": task.stderr(data.test.y, test),
        },
        **({"keras": _keras_of(Path(path))} if to == "keras" else {}),
        **({"frames": Session(Path(path)).shape("x")[1]} if to == "streaming" else {}),
        "columns": raw.shape[-1] if raw.ndim > 1 else 1,
        "probable": probable(raw),
    }


def _keras_of(path: Path) -> str:
    """The version of Keras that wrote a .keras file."""
    with zipfile.ZipFile(path) as archive:
        return str(json.loads(archive.read("metadata.json"))["keras_version"])
