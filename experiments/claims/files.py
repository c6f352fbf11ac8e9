"""What the claims about compression have in common: a candidate trained, and its file judged on the test part."""

from __future__ import annotations

import json
import tempfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.claims.digits import conditions
from objectives.bench import Bench, TaskSpec, TrainingSpec
from objectives.data import loaded
from objectives.deployment.interpreter import predict
from objectives.deployment.quantize import quantize
from objectives.outcome import Conditions
from objectives.task import TASKS
from objectives.trained import Trained
from spaces.genotype import Genotype


@dataclass(frozen=True)
class File:
    """A .tflite file: the score of its answers on the test part, its bytes, and those of it packed with zlib."""

    test: float
    size_bytes: int
    packed: int


def bench(home: str, data: str, seed: int, epochs: int, *, quantize_head: bool = False) -> Bench:
    """The conditions of one seed, which splits the data too."""
    training = TrainingSpec(epochs=epochs)
    return Bench(TaskSpec(data=data), training, seed, "local", Conditions(), {}, home, quantize_head=quantize_head)


def made(bench: Bench, genotype: Genotype) -> File:
    """The file of a candidate, trained unless the home has its weights."""
    data, origin = loaded(bench), Trained(bench, loaded(bench), genotype)
    origin.train(lambda event: None)
    floats = origin.lower(replace(genotype.deployment, bits="32"))
    content = quantize(floats, genotype.deployment.bits, head=bench.quantize_head)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(content)
        score = TASKS[data.signature.kind].score(data.test.y, predict(path, data.test.x))
    return File(score, len(content), len(zlib.compress(content)))


def tell(script: str, figures: dict[str, Any]) -> None:
    """Write what a claim found beside its script, with what it depends on."""
    claim = {"conditions": conditions(), **figures}
    Path(script).with_suffix(".json").write_text(json.dumps(claim, indent=1) + "\n", encoding="utf-8")
