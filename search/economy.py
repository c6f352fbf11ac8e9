"""What a study was spared, as plain JSON values."""

from __future__ import annotations

from typing import Any

from objectives.outcome import FORETOLD, UNDEPLOYED
from search.history import History
from search.prior import fitted
from spaces.record import from_json
from spaces.signature import Signature


def economy(history: History) -> dict[str, Any]:
    """Of trained models, how many were stopped at a rung, and how many whole trainings that came to spare; how many
    forms were not deployed, for others beat them; of proposals, how many were known already, known to kill their
    process, or foretold to be over a bound; and what the latency model is worth ("error" is the 90th percentile of its
    relative error), None before there is one.
    """
    outcomes = list(history.outcomes.values())
    halved = [outcome for outcome in outcomes if outcome.state == "stopped" and not outcome.weighed]
    stopped = {outcome.genotype.group: outcome for outcome in halved}
    shares = history.plan.bench.training.rungs
    trained = [
        shares[len(outcome.learned) - 1] for outcome in stopped.values() if 0 < len(outcome.learned) <= len(shares)
    ]
    known = history.prepared.get("signature")
    prior = fitted(outcomes, from_json(Signature, known)) if known else None
    return {
        "models": len({outcome.genotype.group for outcome in outcomes if outcome.stage != FORETOLD}),
        "stopped_models": len(stopped),
        "epochs_spared": sum(1 - share for share in trained),
        "undeployed": sum(outcome.stage == UNDEPLOYED for outcome in outcomes),
        "duplicates": history.duplicates,
        "known_crashes": history.skipped,
        "foretold": sum(outcome.stage == FORETOLD for outcome in outcomes),
        "latency_model": prior.report() if prior else None,
    }
