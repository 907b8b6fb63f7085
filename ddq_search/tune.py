"""The outer loop: Optuna over settings of the search, several objectives or one, resumable, by many workers.

Each trial is a whole search in ``trials/<number>/`` of the study's directory, with that trial's settings. A trial whose
worker was stopped or killed is queued again with the same settings and goes on from its checkpoints; one that an error
ends has failed. What a trial found hangs on it as artifacts.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import Trial, TrialState

from ddq_search.config import RunConfig
from ddq_search.cost import FLASH, LATENCY
from ddq_search.errors import DDQError, RunError
from ddq_search.problem import Problem
from ddq_search.search import search
from ddq_search.training import Progress, Silent
from ddq_search.tune_queue import REASON, STOPPED, TRACEBACK, Heartbeat, Queue, held, origin
from ddq_search.tune_space import applied
from ddq_search.tune_study import GRACE, StudyPlan, first_line, open_study
from ddq_search.tune_watch import Hopeless, WatchedRun

_PATIENCE = 3
"""Trials that may fail one after another."""

Assemble = Callable[[RunConfig], Problem]


def run_study(
    base: RunConfig, assemble: Assemble, folder: Path, plan: StudyPlan, progress: Progress | None = None
) -> optuna.Study:
    """Runs trials until the study has as many finished ones as wanted; the same call later goes on.

    Any number of processes may do so at once, on one machine or many; never more trials finish than wanted.

    Args:
        base: configuration of which the settings are varied.
        assemble: builds the problem of a configuration.
        folder: directory of the study; one that all workers share, if trials are to go on where a dead one stopped.
        plan: what is wanted.
        progress: who is told.

    Raises:
        ConfigError: the storage cannot be opened, or sampler, pruner and objective do not fit together.
        RunError: the folder holds another study, the storage went away, or several trials failed one after another.
    """
    study = open_study(base, folder, plan)
    try:
        _Worker(study, base, assemble, folder, plan, progress or Silent()).work()
    except StorageInternalError as error:
        raise RunError(f"the study's storage failed: {first_line(error)}; the same command goes on") from error
    return study


class _Worker:
    """One process that works on a study."""

    def __init__(
        self, study: optuna.Study, base: RunConfig, assemble: Assemble, folder: Path, plan: StudyPlan,
        progress: Progress,
    ) -> None:  # fmt: skip
        self._study, self._base, self._assemble = study, base, assemble
        self._folder, self._plan, self._progress = folder, plan, progress
        self._failed: list[str] = []

    def work(self) -> None:
        """Takes and runs trials while there are any."""
        queue = Queue(self._study, self._folder, self._plan.trials, GRACE * self._plan.heartbeat_s)
        try:
            while (trial := queue.take()) is not None:
                self._go_through(trial)
        except BaseException:  # Ctrl-C, or the storage or the trial's directory fails: the trial is not at fault
            queue.put_back()
            raise

    def _go_through(self, trial: Trial) -> None:
        try:
            with Heartbeat(trial, self._plan.heartbeat_s):
                self._run(trial)
        except UpdateFinishedTrialError:
            self._progress.note(f"trial {trial.number} was given to another worker meanwhile")
        if len(self._failed) == _PATIENCE:
            raise RunError(f"{_PATIENCE} trials failed one after another, the last: {self._failed[-1]}")

    def _run(self, trial: Trial) -> None:
        frozen = self._study.get_trials(deepcopy=False)[trial.number]
        path = self._folder / "trials" / f"{origin(frozen):04d}"
        again = "" if origin(frozen) == trial.number else f", going on with trial {origin(frozen)}"
        self._progress.note(f"trial {trial.number}{again}")
        with held(self._study, trial, path):
            try:
                self._study.tell(trial, self._search(trial, path), skip_if_finished=True)
                self._failed.clear()
            except optuna.TrialPruned as verdict:
                self._end(trial, TrialState.PRUNED, STOPPED, str(verdict))
            except Hopeless as verdict:
                self._end(trial, TrialState.FAIL, STOPPED, str(verdict))
            except (UpdateFinishedTrialError, StorageInternalError):
                raise
            except Exception as error:  # whatever it is, the next worker would meet it too
                if _is_interrupt(error):
                    raise KeyboardInterrupt from error
                self._fail(trial, error)

    def _fail(self, trial: Trial, error: Exception) -> None:
        """Ends a trial that an error stopped; one that was not foreseen is told with its kind and place."""
        reason = str(error)
        if not isinstance(error, DDQError):
            reason = f"{type(error).__name__}: {first_line(error)}"
            trial.set_user_attr(TRACEBACK, "".join(traceback.format_exception(error)))
        self._end(trial, TrialState.FAIL, REASON, reason)
        self._failed.append(reason)

    def _end(self, trial: Trial, state: TrialState, attribute: str, reason: str) -> None:
        trial.set_user_attr(attribute, reason)
        self._study.tell(trial, state=state, skip_if_finished=True)
        self._progress.note(f"trial {trial.number} {'failed: ' if attribute == REASON else ''}{reason}")

    def _search(self, trial: Trial, path: Path) -> list[float]:
        """Runs a trial's search and hangs its front and policies on it; returns its values."""
        config = applied(self._base, self._plan.varied(self._base).choose(trial))
        problem = self._assemble(config.model_copy(update={"out": str(path)}))
        record = WatchedRun(path, problem, self._study, trial, stop_hopeless=self._plan.stop_hopeless)
        best = search(problem, record, self._progress).point("best")
        trial.set_user_attr("policy", dict(best.policy.bits))
        self._attach(trial, [path / "front.json", *sorted((path / "policies").glob("*.json"))])
        if self._plan.objective == "scalar":
            return [best.validation.loss]
        return [best.validation.score, best.price[LATENCY], best.price[FLASH]]

    def _attach(self, trial: Trial, files: list[Path]) -> None:
        """Stores files as artifacts of a trial; those that a killed worker attached are written again."""
        root = self._folder / "artifacts"
        root.mkdir(exist_ok=True)
        store = FileSystemArtifactStore(root)
        known = {meta.filename: meta.artifact_id for meta in get_all_artifact_meta(trial)}
        for path in filter(Path.exists, files):
            if path.name in known:
                with path.open("rb") as file:
                    store.write(known[path.name], file)
            else:
                upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)


def _is_interrupt(error: BaseException) -> bool:
    """Whether a library made this error of Ctrl-C."""
    cause = error.__cause__ or error.__context__
    return cause is not None and (isinstance(cause, KeyboardInterrupt) or _is_interrupt(cause))
