"""The outer loop: Optuna over training settings, several objectives at once, resumable.

Each trial is a whole search in ``trials/<number>/`` of the study's directory, with that trial's settings; its values
are the validation score, latency and flash of its best policy. A trial that was cut short is queued again with the
same settings and goes on from its checkpoints.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.trial import Trial, TrialState

from ddq_search.config import RunConfig, load_config
from ddq_search.cost import FLASH, LATENCY
from ddq_search.errors import ConfigError, RunError
from ddq_search.problem import Problem
from ddq_search.record import RunDirectory, write_atomically
from ddq_search.search import search
from ddq_search.training import Progress, Silent

_CONTINUES = "continues"
_PATIENCE = 3
"""Trials that may fail one after another."""
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
        RunError: the folder holds another study, or several trials failed one after another.
    """
    progress = progress or Silent()
    _claim(folder, base)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = _open(base, storage or f"sqlite:///{folder / 'tune.db'}")
    _queue_interrupted(study)
    failed: list[str] = []
    while len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < trials:
        # A seed per proposal: a resumed study does not repeat the first ones, and proposes what it would have anyway.
        proposed = [t for t in study.get_trials(deepcopy=False) if _CONTINUES not in t.user_attrs]
        study.sampler = _sampler(base.seed + len(proposed))
        trial = study.ask()
        progress.note(f"trial {trial.number}")
        try:
            study.tell(trial, _run_trial(trial, base, assemble, folder, progress))
            failed.clear()
        except RunError as error:
            study.tell(trial, state=TrialState.FAIL)
            progress.note(f"trial {trial.number} failed: {error}")
            failed.append(str(error))
            if len(failed) == _PATIENCE:
                raise RunError(f"{_PATIENCE} trials failed one after another, the last: {error}") from error
    return study


def _claim(folder: Path, base: RunConfig) -> None:
    """A study's directory belongs to one configuration."""
    stored = folder / "study.toml"
    if stored.exists() and load_config(stored, {}).fingerprint() != base.fingerprint():
        raise RunError(f"{folder} holds a study of another configuration ({stored.name}); choose another --out")
    write_atomically(stored, base.to_toml().encode())


def _open(base: RunConfig, storage: str) -> optuna.Study:
    try:
        study = optuna.create_study(
            study_name=f"ddq-search {base.fingerprint()[:12]}",
            storage=storage,
            directions=["maximize", "minimize", "minimize"],
            load_if_exists=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(["validation score", LATENCY, FLASH])
    except Exception as error:  # SQLAlchemy and the database drivers raise their own
        raise ConfigError(f"cannot open the study in {storage}: {_first_line(error)}") from error
    return study


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True)


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
    """Trials left running by a killed process are queued again with the same settings, then marked failed."""
    trials = study.get_trials()
    queued = {trial.user_attrs.get(_CONTINUES) for trial in trials if trial.state == TrialState.WAITING}
    for trial in trials:
        if trial.state != TrialState.RUNNING:
            continue
        origin = trial.user_attrs.get(_CONTINUES, trial.number)
        if trial.params and origin not in queued:
            study.enqueue_trial(trial.params, user_attrs={_CONTINUES: origin})
        study.tell(trial.number, state=TrialState.FAIL)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
