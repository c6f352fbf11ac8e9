"""The evaluator that trains and measures: what a study asks of a worker, in four calls.

Only `evaluate` and a user's own model need TensorFlow, which is imported when called for, so that wrong data are
refused in a second and the test part is read in another. `objectives.rehearsal` answers the same calls with invented
figures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from objectives.bench import Ask, Bench, Emit
from objectives.cache import Cache
from objectives.data import loaded
from objectives.deployment.interpreter import predict
from objectives.model_file import answered, fed
from objectives.outcome import Outcome
from objectives.task import TASKS
from spaces.record import from_json, to_json


def prepare(bench: dict[str, Any]) -> dict[str, Any]:
    """Load and check the data: their signature, digest and summary, and the error of a constant predictor.

    The user's own model, where that is the baseline, is looked at too ("model", see `objectives.given`), and the user's
    code, where that builds the candidates ("hypermodel", see `objectives.built`). Raises DataError, ModelError and
    SpecError where they cannot be used as they are, and SpecError where there is no such accelerator as is asked for.
    """
    where = from_json(Bench, bench)
    data = loaded(where)
    task = TASKS[data.signature.kind]
    found = {
        "signature": to_json(data.signature),
        "digest": data.whole,
        "summary": data.summary,
        "trivial_error": task.trivial_error(data.train.y, data.validation.y),
    }
    if where.training.accelerator in ("gpu", "tpu"):
        from objectives.training.accelerator import strategy_of

        strategy_of(where.training.accelerator)  # now, rather than after the first candidates were measured
    if where.model:
        from objectives.given import look

        found["model"] = look(where, data)
    if where.hypermodel:
        from objectives.built import look as explore

        found["hypermodel"] = explore(where, data)
    return found


def warm() -> None:
    """Import what the first candidate would wait for."""
    import objectives.evaluate  # noqa: F401


def evaluate(bench: dict[str, Any], genotypes: list[dict[str, Any]], emit: Emit, ask: Ask) -> None:
    """Make and judge one group of candidates; outcomes come as events (`objectives.evaluate`)."""
    from objectives.evaluate import evaluate as take_through_the_stations

    take_through_the_stations(bench, genotypes, emit, ask)


def final(
    bench: dict[str, Any], genotypes: list[dict[str, Any]], outcomes: list[dict[str, Any]], emit: Emit
) -> dict[str, Any]:
    """Read the test part once: the Quality of each finished outcome with its test figures filled in, None where its
    file is not there whole any more.
    """
    where = from_json(Bench, bench)
    data, cache = loaded(where), Cache(where.home)
    task = TASKS[data.signature.kind]
    qualities: list[Any] = []
    for index, plain in enumerate(outcomes):
        emit({"event": "stage", "stage": "quality", "form": index, "detail": "test"})
        outcome = from_json(Outcome, plain)
        assert outcome.artifact, "only finished outcomes have a test quality"
        assert outcome.quality, "only finished outcomes have a test quality"
        if cache.content(outcome.artifact.sha256) is None:
            qualities.append(None)
            continue
        x = fed(data.test.x, where.file_of(outcome.genotype))
        output = answered(predict(cache.artifact(outcome.artifact.sha256), x), data.signature)
        score, stderr = task.score(data.test.y, output), task.stderr(data.test.y, output)
        qualities.append(to_json(replace(outcome.quality, test=score, test_stderr=stderr)))
    return {"quality": qualities}
