"""Optuna's storage of a study that this process alone writes."""

from __future__ import annotations

import contextlib
import copy
import json
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

ATTRIBUTE = (
    "INSERT INTO {of}_attributes ({of_id}, key, value_json) VALUES (?, ?, ?) "
    "ON CONFLICT ({of_id}, key) DO UPDATE SET value_json = excluded.value_json"
)
STUDY_ATTRIBUTE, STUDY_SYSTEM, TRIAL_ATTRIBUTE, TRIAL_SYSTEM = (
    ATTRIBUTE.format(of=f"{of}_{kind}", of_id=f"{of}_id") for of in ("study", "trial") for kind in ("user", "system")
)
TRIAL = "INSERT INTO trials (number, study_id, state, datetime_start) VALUES (?, ?, ?, ?)"
PARAMETER = "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) VALUES (?, ?, ?, ?)"
VALUE = "INSERT INTO trial_values (trial_id, objective, value, value_type) VALUES (?, ?, ?, 'FINITE')"
STARTED = "UPDATE trials SET state = ?, datetime_start = ? WHERE trial_id = ?"
FINISHED = "UPDATE trials SET state = ?, datetime_complete = ? WHERE trial_id = ?"


class OwnedStorage(_CachedStorage):
    """Writes go to the tables at once, or together with others (`at_once`); what was written is remembered and never
    read again. It knows of trials what brisk writes of them: reports of a training in progress, which several
    objectives cannot have, are left out.

    Optuna's own cache reads all that is under way anew whenever it is asked for trials, for another process may have
    written to it, and looks up what it is about to write: a trial costs it some thirty transactions. Ours is written by
    nobody else: the study's lock is held (`search.lock`).
    """

    def __init__(self, backend: RDBStorage, tables: sqlite3.Connection) -> None:
        super().__init__(backend)
        self._tables = tables
        self._together = False
        self._known: set[int] = set()  # studies whose trials have been read
        self._attributes: dict[int, dict[str, Any]] = {}  # by study
        self._system: dict[int, dict[str, Any]] = {}  # by study

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """One transaction of all that is written within. What is cut short has written nothing, but is remembered: no
        trial may be asked or told after that.
        """
        if self._together:  # part of a larger one
            yield
            return
        self._together = True
        try:
            yield
            self._tables.commit()
        except BaseException:
            self._tables.rollback()
            raise
        finally:
            self._together = False

    def _write(self, statement: str, row: tuple[Any, ...]) -> int:
        """Gives the number of a new row."""
        return self._tables.execute(statement, row).lastrowid or 0

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        if study_id not in self._known:
            super()._read_trials_from_remote_storage(study_id)
            self._known.add(study_id)
            for trial in self._studies[study_id].trials.values():
                self._studies[study_id].param_distribution |= trial.distributions

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """As it was written last, whatever its state."""
        if (place := self._trial_id_to_study_id_and_number.get(trial_id)) is None:
            return super().get_trial(trial_id)
        return self._studies[place[0]].trials[place[1]]

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Write and remember one that is to run, with all that is given of it."""
        trial = create_trial(state=TrialState.RUNNING) if template_trial is None else copy.copy(template_trial)
        assert not trial.state.is_finished(), "a study tells its trials one by one"
        self._read_trials_from_remote_storage(study_id)
        study = self._studies[study_id]
        trial.number = len(study.trials)
        for name, distribution in trial.distributions.items():
            check_distribution_compatibility(study.param_distribution.setdefault(name, distribution), distribution)
        with self.at_once():
            row = (trial.number, study_id, trial.state.name, _stamp(trial.datetime_start))
            trial._trial_id = self._write(TRIAL, row)
            for name, distribution in trial.distributions.items():
                self._write_parameter(
                    trial._trial_id, name, distribution.to_internal_repr(trial.params[name]), distribution
                )
            for key, value in trial.user_attrs.items():
                self._write(TRIAL_ATTRIBUTE, (trial._trial_id, key, json.dumps(value)))
            for key, value in trial.system_attrs.items():
                self._write(TRIAL_SYSTEM, (trial._trial_id, key, json.dumps(value)))
        with self._lock:
            self._add_trials_to_cache(study_id, [trial])
        return trial._trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Write and remember it."""
        trial = self._open(trial_id)
        study = self._studies[self._trial_id_to_study_id_and_number[trial_id][0]]
        check_distribution_compatibility(study.param_distribution.setdefault(param_name, distribution), distribution)
        with self.at_once():
            self._write_parameter(trial_id, param_name, param_value_internal, distribution)
        trial.params = {**trial.params, param_name: distribution.to_external_repr(param_value_internal)}
        trial.distributions = {**trial.distributions, param_name: distribution}

    def _write_parameter(self, trial_id: int, name: str, value: float, distribution: BaseDistribution) -> None:
        self._write(PARAMETER, (trial_id, name, value, distribution_to_json(distribution)))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Write and remember them."""
        if state == TrialState.RUNNING and self.get_trial(trial_id).state != TrialState.WAITING:
            return False
        trial, now = self._open(trial_id), datetime.now()
        with self.at_once():
            for place, value in enumerate(values or ()):
                self._write(VALUE, (trial_id, place, value))
            change = FINISHED if state.is_finished() else STARTED
            self._write(change, (state.name, _stamp(now), trial_id))
        if values is not None:
            trial.values = list(values)
        if state.is_finished():
            trial.datetime_complete = now
        else:
            trial.datetime_start = now
        trial.state = state
        return True

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write and remember it."""
        trial = self._open(trial_id)
        with self.at_once():
            self._write(TRIAL_ATTRIBUTE, (trial_id, key, json.dumps(value)))
        trial.user_attrs = {**trial.user_attrs, key: value}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write and remember it."""
        trial = self._open(trial_id)
        with self.at_once():
            self._write(TRIAL_SYSTEM, (trial_id, key, json.dumps(value)))
        trial.system_attrs = {**trial.system_attrs, key: value}

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """As they were written last."""
        if study_id not in self._attributes:
            self._attributes[study_id] = super().get_study_user_attrs(study_id)
        return dict(self._attributes[study_id])

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write and remember it."""
        with self.at_once():
            self._write(STUDY_ATTRIBUTE, (study_id, key, json.dumps(value)))
        self._attributes[study_id] = {**self.get_study_user_attrs(study_id), key: value}

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """As they were written last: a sampler may keep its own there."""
        if study_id not in self._system:
            self._system[study_id] = super().get_study_system_attrs(study_id)
        return dict(self._system[study_id])

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write and remember it."""
        with self.at_once():
            self._write(STUDY_SYSTEM, (study_id, key, json.dumps(value)))
        self._system[study_id] = {**self.get_study_system_attrs(study_id), key: value}

    def _open(self, trial_id: int) -> FrozenTrial:
        """What takes the place of a trial that is to change: who was given the old one keeps it as it was. Raises
        Optuna's UpdateFinishedTrialError where it is finished.
        """
        study_id, number = self._trial_id_to_study_id_and_number[trial_id]
        trials = self._studies[study_id].trials
        self.check_trial_is_updatable(trial_id, trials[number].state)
        trials[number] = copy.copy(trials[number])
        return trials[number]


def _stamp(at: datetime | None) -> str | None:
    """As Optuna keeps a local time: that of Greenwich."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds") if at else None
