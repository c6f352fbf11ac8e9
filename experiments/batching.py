"""The curve over batch sizes of a candidate that is exported: the study's own, or one that is measured now."""

from __future__ import annotations

from typing import Any

from objectives.bench import Bench
from objectives.cache import Cache
from objectives.outcome import Outcome
from search.batches import conditions, curve, forms
from search.history import History
from search.isolate import CallFailed, Child, ChildDied
from search.summary import summarise
from spaces.errors import CandidateError, DeviceError
from spaces.genotype import Genotype
from spaces.record import digest, from_json, to_json

TIMEOUT_S = 600.0


def curve_for(history: History, bench: Bench, name: int | str, outcome: Outcome, child: Child) -> dict[str, Any] | None:
    """The curve of a candidate as JSON: from the study's record, from an earlier export, or lowered and measured now.

    A batch that could not be made is in it as excluded. `child` does the work, for which it needs the trained weights
    in the cache, or would train anew.
    """
    recorded: dict[str, Any] | None = summarise(history)["batch_curve"]
    if recorded and recorded["trial"] == name:
        return recorded
    asked = list(forms(history.plan.space, outcome.genotype).values())
    under, cache = conditions(bench), Cache(bench.home)
    sha256 = outcome.artifact.sha256 if outcome.artifact else ""
    key = digest(sha256, to_json(under.conditions), under.device, [to_json(genotype) for genotype in asked])
    if (kept := cache.record("batches", key)) is None:
        found = _measured(under, asked, child)
        kept = {"outcomes": [to_json(each) for each in found]}
        if all(each.measurement for each in found):  # what failed may have met a bad moment
            cache.keep_record("batches", key, kept)
    return curve(name, [from_json(Outcome, plain) for plain in kept["outcomes"]], history.plan.bench.bounds)


def _measured(bench: Bench, asked: list[Genotype], child: Child) -> list[Outcome]:
    """What comes of each batch, in one sitting for all."""
    found: dict[int, Outcome] = {}
    stage = ["start"]

    def hear(event: dict[str, Any]) -> None:
        if event["event"] == "stage":
            stage[0] = event["stage"]
        elif event["event"] == "outcome":
            found[event["form"]] = from_json(Outcome, event["outcome"])

    arguments = {"bench": to_json(bench), "genotypes": [to_json(genotype) for genotype in asked]}
    reason = ""
    try:
        child.call("objectives.judge:evaluate", arguments, timeout_s=TIMEOUT_S, on_event=hear)
    except (ChildDied, CallFailed, CandidateError, DeviceError) as error:
        reason = str(error)
    lost = {form: Outcome(one, "failed", stage=stage[0], reason=reason) for form, one in enumerate(asked)}
    return [found.get(form, lost[form]) for form in range(len(asked))]
