"""The outer loop: Optuna over training settings, several objectives at once, resumable.

Each trial is a whole search in ``trials/<number>/`` of the study's directory, with that trial's settings; its values
are the validation score, latency and flash of its best policy. A trial that was cut short is queued again with the
same settings and goes on from its checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from ddq_search.config import RunConfig
from ddq_search.cost import FLASH, LATENCY
from ddq_search.errors import ConfigError, RunError
from ddq_search.problem import Problem
from ddq_search.record import RunDirectory
from ddq_search.search import search
from ddq_search.training import Progress, Silent

_CONTINUES = "continues"
_RATES = ("joint_rate", "finetune_rate", "step_rate")
"""Learning rates that are varied by a factor of three around the base configuration."""


def settings(trial: Trial, base: RunConfig) -> RunConfig:
    """Returns the base configuration with this trial's settings: rates, penalty, gate schedule and distillation."""
    training = base.training
    near = {name: (0.3 * getattr(training, name), 3 * getattr(training, name)) for name in _RATES}
    rates = {name: trial.suggest_float(name, low, high, log=True) for name, (low, high) in near.items()}
    rates["gate_rate"] = trial.suggest_float("gate_rate", 0.01, 0.1, log=True)
    rates["distillation"] = trial.suggest_float("distillation", 0.0, 0.9)
    gates = {
        "penalty": trial.suggest_float("penalty", 0.3, 3.0, log=True),
        "gate_start": trial.suggest_float("gate_start", 0.0, 0.9),
    }
    return base.model_copy(
        update={
            "training": training.model_copy(update=rates),
            "search": base.search.model_copy(update=gates),
        }
    )


def run_study(
    base: RunConfig,
    assemble: Callable[[RunConfig], Problem],
    folder: Path,
    *,
    trials: int,
    storage: str | None = None,
    progress: Progress | None = None,
) -> optuna.Study:
    """Runs trials until the study has ``trials`` finished ones; the same call later goes on.

    Args:
        base: configuration of which the settings are varied.
        assemble: builds the problem of a configuration.
        folder: directory of the study.
        trials: number of finished trials wanted.
        storage: Optuna storage URL; SQLite in ``folder`` when None.
        progress: who is told.

    Raises:
        ConfigError: the storage cannot be opened.
    """
    progress = progress or Silent()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name = f"ddq-search {base.fingerprint()[:12]}"
    try:
        study = optuna.create_study(
            study_name=name,
            storage=storage or f"sqlite:///{folder / 'tune.db'}",
            directions=["maximize", "minimize", "minimize"],
            sampler=optuna.samplers.TPESampler(seed=base.seed, multivariate=True, warn_independent_sampling=False),
            load_if_exists=True,
        )
    except Exception as error:
        raise ConfigError(f"cannot open the study in {storage or folder / 'tune.db'}: {_first_line(error)}") from error
    study.set_metric_names(["validation score", LATENCY, FLASH])
    _queue_interrupted(study)

    def objective(trial: Trial) -> tuple[float, float, float]:
        progress.note(f"trial {trial.number}")
        return _run_trial(trial, base, assemble, folder, progress)

    while len(study.get_trials(states=(TrialState.COMPLETE,))) < trials:
        before = len(study.get_trials(states=(TrialState.FAIL,)))
        study.optimize(objective, n_trials=1, catch=(RunError,))
        if len(study.get_trials(states=(TrialState.FAIL,))) - before and _failed_in_a_row(study) >= 3:
            raise RunError("three trials failed one after another; see trials/*/history.jsonl and the study")
    return study


def _run_trial(
    trial: Trial, base: RunConfig, assemble: Callable[[RunConfig], Problem], folder: Path, progress: Progress
) -> tuple[float, float, float]:
    number = trial.user_attrs.get(_CONTINUES, trial.number)
    path = folder / "trials" / f"{number:04d}"
    problem = assemble(settings(trial, base).model_copy(update={"out": str(path)}))
    front = search(problem, RunDirectory(path), progress)
    best = front.point("best")
    trial.set_user_attr("run", str(path))
    trial.set_user_attr("policy", dict(best.policy.bits))
    return best.validation.score, best.price[LATENCY], best.price[FLASH]


def _queue_interrupted(study: optuna.Study) -> None:
    """Trials left running by a killed process are marked failed and queued again with the same settings."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        attributes: dict[str, Any] = {_CONTINUES: trial.user_attrs.get(_CONTINUES, trial.number)}
        if trial.params:
            study.enqueue_trial(trial.params, user_attrs=attributes)


def _failed_in_a_row(study: optuna.Study) -> int:
    count = 0
    finished: list[FrozenTrial] = study.get_trials(states=(TrialState.COMPLETE, TrialState.FAIL))
    for trial in reversed(finished):
        if trial.state != TrialState.FAIL:
            break
        count += 1
    return count


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
