"""Optuna's storage of a study that this process alone writes."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState


class OwnedStorage(_CachedStorage):
    """Writes go to the tables at once; what was written is remembered and never read again. It knows of trials what
    brisk writes of them: reports of a training in progress, which several objectives cannot have, are left out.

    Optuna's own cache reads all that is under way anew whenever it is asked for trials, for another process may have
    written to it, and a trial that comes with its parameters costs it two queries each. Ours is written by nobody else:
    the study's lock is held (`search.lock`).
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._known: set[int] = set()  # studies whose trials have been read
        self._attributes: dict[int, dict[str, Any]] = {}  # by study

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
        """Write and remember it; one with all its parameters at one stroke."""
        if template_trial is None or template_trial.state != TrialState.RUNNING:
            return super().create_new_trial(study_id, template_trial)
        self._read_trials_from_remote_storage(study_id)
        study, trial = self._studies[study_id], copy.deepcopy(template_trial)
        trial.number = len(study.trials)
        for name, distribution in trial.distributions.items():
            check_distribution_compatibility(study.param_distribution.setdefault(name, distribution), distribution)
        with _create_scoped_session(self._backend.scoped_session) as session:
            row = models.TrialModel(study_id=study_id, number=trial.number, state=trial.state)
            row.datetime_start = trial.datetime_start
            row.params = [
                models.TrialParamModel(
                    param_name=name,
                    param_value=distribution.to_internal_repr(trial.params[name]),
                    distribution_json=distribution_to_json(distribution),
                )
                for name, distribution in trial.distributions.items()
            ]
            row.user_attributes = [
                models.TrialUserAttributeModel(key=key, value_json=json.dumps(value))
                for key, value in trial.user_attrs.items()
            ]
            row.system_attributes = [
                models.TrialSystemAttributeModel(key=key, value_json=json.dumps(value))
                for key, value in trial.system_attrs.items()
            ]
            session.add(row)
            session.flush()
            trial._trial_id = int(row.trial_id)
        with self._lock:
            self._add_trials_to_cache(study_id, [trial])
        return trial._trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Write and remember it."""
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        trial = self._anew(trial_id)
        trial.params = {**trial.params, param_name: distribution.to_external_repr(param_value_internal)}
        trial.distributions = {**trial.distributions, param_name: distribution}

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Write and remember them."""
        if not super().set_trial_state_values(trial_id, state, values):
            return False
        trial = self._anew(trial_id)
        trial.state = state
        if values is not None:
            trial.values = list(values)
        if state == TrialState.RUNNING:
            trial.datetime_start = datetime.now()
        if state.is_finished():
            trial.datetime_complete = datetime.now()
        return True

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write and remember it."""
        super().set_trial_user_attr(trial_id, key, value)
        trial = self._anew(trial_id)
        trial.user_attrs = {**trial.user_attrs, key: value}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write and remember it."""
        super().set_trial_system_attr(trial_id, key, value)
        trial = self._anew(trial_id)
        trial.system_attrs = {**trial.system_attrs, key: value}

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """As they were written last."""
        if study_id not in self._attributes:
            self._attributes[study_id] = super().get_study_user_attrs(study_id)
        return dict(self._attributes[study_id])

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write and remember it."""
        super().set_study_user_attr(study_id, key, value)
        self._attributes[study_id] = {**self.get_study_user_attrs(study_id), key: value}

    def _anew(self, trial_id: int) -> FrozenTrial:
        """What takes the place of a trial: who was given the old one keeps it as it was."""
        study_id, number = self._trial_id_to_study_id_and_number[trial_id]
        trials = self._studies[study_id].trials
        trials[number] = copy.copy(trials[number])
        return trials[number]
