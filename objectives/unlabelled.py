"""Sequences without labels, which a distilled candidate learns from its teacher alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from objectives.bench import TaskSpec
from objectives.sequences import UNLABELLED, Sequences, check_padding, sequences
from objectives.sources import gather_unlabelled
from spaces.errors import DataError
from spaces.signature import Signature

UNKNOWN = -2
"""The label of a sequence, or of each of its steps, that has none; a value that is not there is NaN."""


def unlabelled(task: TaskSpec, signature: Signature, *, root: str) -> Sequences:
    """The sequences that `task.unlabelled` names, brought to the form of the labelled ones; a teacher answers for them.

    y int64 [sequences] (classification) or [sequences, time] with -1 at padded steps (tagging), else UNKNOWN; float32
    [sequences, outputs], all NaN (regression). Raises DataError where the models of these labelled data cannot take
    them.
    """
    given = sequences(gather_unlabelled(task, root=root), UNLABELLED)
    where = f"task.unlabelled: {task.unlabelled}"
    _check_form(given, signature, where)
    given = replace(given, x=given.x[:, : signature.time_steps]).stretch(signature.time_steps)
    if signature.masked:
        check_padding(given, f"{where}: x")
    elif not given.valid.all():
        raise DataError(
            f"{where}: its shortest sequence has {given.lengths.min()} steps, but the labelled ones have "
            f"{signature.time_steps} each; give sequences of that length"
        )
    return replace(given, y=_unknown(given, signature))


def _check_form(given: Sequences, signature: Signature, where: str) -> None:
    """Raise DataError where x is of another kind, width, length or vocabulary than that of the labelled data."""
    if given.tokens != bool(signature.vocabulary):
        forms = {True: "tokens (whole numbers)", False: "features (floats)"}
        raise DataError(
            f"{where}: x holds {forms[given.tokens]}, the labelled data {forms[not given.tokens]}; give the same"
        )
    if not given.tokens and given.x.shape[2] != signature.features:
        raise DataError(
            f"{where}: x has {given.x.shape[2]} features, the labelled data {signature.features}; give the same ones"
        )
    if (longest := int(given.lengths.max())) > signature.time_steps:
        raise DataError(
            f"{where}: its longest sequence has {longest} steps, of the labelled ones {signature.time_steps}; cut it, "
            "or leave the longer ones out"
        )
    if signature.vocabulary and (highest := int(given.x.max())) >= signature.vocabulary:
        raise DataError(
            f"{where}: its tokens go up to {highest}, those of the labelled data to {signature.vocabulary - 1}; leave "
            "out the sequences with others, or put a token that is known in their place"
        )


def _unknown(given: Sequences, signature: Signature) -> np.ndarray:
    if signature.kind == "regression":
        return np.full((len(given.x), signature.outputs), np.nan, np.float32)
    if signature.kind == "tagging":
        return np.where(given.valid, UNKNOWN, -1)
    return np.full(len(given.x), UNKNOWN)
