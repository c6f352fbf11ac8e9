"""What is known to kill its process: a kind of candidate that did so twice, and never went well, is not tried again."""

from __future__ import annotations

import functools
from importlib.metadata import version
from pathlib import Path
from typing import Any

from objectives.cache import Cache
from spaces.genotype import Genotype
from spaces.record import digest

STAGE = "crashes"  # of the cache: known to every study of the home
ENOUGH = 2  # deaths: one may be bad luck
FORMING = ("lower", "quantize")
"""The stages that the kind of candidate alone decides on."""

TOOLS = ("tensorflow", "keras", "tf-keras", "ai-edge-quantizer", "ai-edge-litert", "brisk-rnn")
"""Another version of these may do better."""


class Crashes:
    """The deaths of a home, by what is converted to what: cell, or the values of a hypermodel, which may build anything
    of them; lowering, bits, and the versions of the tools.
    """

    def __init__(self, home: Path) -> None:
        self._cache = Cache(home)

    def known(self, genotype: Genotype) -> str:
        """Why a candidate need not be tried; "" where it may be."""
        found = self._found(genotype)
        if found["well"] or found["deaths"] < ENOUGH:
            return ""
        return f"not tried: {found['deaths']} like it failed, the last of which {found['reason']}"

    def died(self, genotype: Genotype, stage: str, reason: str) -> None:
        """Note a death."""
        if stage in FORMING:
            found = self._found(genotype)
            self._keep(genotype, found | {"deaths": found["deaths"] + 1, "reason": reason})

    def well(self, genotype: Genotype) -> None:
        """Note that one of its kind can be made after all."""
        found = self._found(genotype)
        if not found["well"]:
            self._keep(genotype, found | {"well": True})

    def _found(self, genotype: Genotype) -> dict[str, Any]:
        kept = self._cache.record(STAGE, _kind(genotype)) or {}
        return {"deaths": 0, "reason": "", "well": False} | kept

    def _keep(self, genotype: Genotype, record: dict[str, Any]) -> None:
        self._cache.keep_record(STAGE, _kind(genotype), record)


def _kind(genotype: Genotype) -> str:
    built, served = genotype.architecture, genotype.deployment
    return digest(built.cell, built.values, served.lowering, served.bits, _versions())


@functools.cache  # looked up in files, thousands of times in a study
def _versions() -> list[str]:
    return [version(tool) for tool in TOOLS]
