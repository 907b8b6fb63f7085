"""Who runs which trial: places of a study, trials of dead workers, several processes and machines at once.

A running trial holds the lock of its run directory, so on one machine a dead worker is known at once. Elsewhere its
heartbeat decides. Either way the trial is marked failed and queued again with its settings; whoever takes it goes on
from the checkpoints in its run directory.
"""

from __future__ import annotations

import contextlib
import copy
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._heartbeat import (
    BaseHeartbeat,
)  # Optuna runs it in its own loop only, where no trial can be given up
from optuna.trial import FrozenTrial, Trial, TrialState

from ddq_search.errors import RunError
from ddq_search.record import locked

HOST = socket.gethostname()
STOPPED = "stopped"
"""User attribute of a trial that was stopped early: why. Optuna cannot prune multi-objective trials, so they fail."""
REASON = "reason"
"""User attribute of a trial that failed: why."""
TRACEBACK = "traceback"
"""User attribute of a trial that failed by an error that nobody foresaw: where."""
_MOST_RETRIES = 20
"""Deaths of one trial's workers after which it is given up: it may be what kills them."""
_ACTIVE = (TrialState.RUNNING, TrialState.WAITING)


def retried(trial: FrozenTrial) -> int | None:
    """Returns the number of the trial that this one goes on with, or None."""
    number = trial.system_attrs.get("failed_trial")
    return None if number is None else int(number)


def origin(trial: FrozenTrial) -> int:
    """Returns the number under which the trial began: its run directory's."""
    number = retried(trial)
    return trial.number if number is None else number


def is_finished(trial: FrozenTrial) -> bool:
    """Whether a trial came to its end: completed, pruned or stopped early; a failure is none."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or STOPPED in trial.user_attrs


def finished(study: optuna.Study) -> int:
    """Returns the number of finished trials."""
    return sum(map(is_finished, study.get_trials(deepcopy=False)))


class Requeue:
    """Queues a failed trial again with its settings and attributes: Optuna's own callback, under either name."""

    def __init__(self, most: int | None = _MOST_RETRIES) -> None:
        kind = getattr(optuna.storages, "RetryHeartbeatStaleTrialCallback", None)  # Optuna 4.9 on
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._retry = (kind or optuna.storages.RetryFailedTrialCallback)(max_retry=most)

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Adds a waiting trial, which nobody holds yet."""
        fresh = copy.deepcopy(trial)
        for attribute in ("host", "run"):
            fresh.user_attrs.pop(attribute, None)
        self._retry(study, fresh)


def put_back(study: optuna.Study, number: int, most: int | None = _MOST_RETRIES) -> None:
    """Marks a running trial failed and queues it again, unless another process was faster."""
    with contextlib.suppress(UpdateFinishedTrialError, ValueError):
        study.tell(number, state=TrialState.FAIL)
        Requeue(most)(study, study.get_trials(deepcopy=False)[number])


class Queue:
    """Hands out the trials of a study to this process.

    Args:
        study: the study.
        folder: its directory.
        trials: finished trials wanted.
        grace_s: how long a trial may run before its worker has said who it is.
    """

    def __init__(self, study: optuna.Study, folder: Path, trials: int, grace_s: float) -> None:
        self._study, self._folder, self._trials, self._grace_s = study, folder, trials, grace_s
        self._seen: dict[tuple[int, TrialState], float] = {}
        self._taken: int | None = None

    def take(self) -> Trial | None:
        """Returns a trial to run, new or to be gone on with, or None once enough are finished.

        Waits while the running ones would be enough: one of their workers may die.
        """
        while True:
            with _turn(self._folder):
                self.recover()
                known = self._study.get_trials(deepcopy=False)
                done = sum(map(is_finished, known))
                if done >= self._trials:
                    return None
                if done + sum(trial.state == TrialState.RUNNING for trial in known) < self._trials:
                    with warnings.catch_warnings(), interrupts_postponed():
                        warnings.simplefilter("ignore", UserWarning)  # the heartbeat is ours
                        trial = self._study.ask()
                        self._taken = trial.number
                    if not self._is_surplus(trial.number):
                        return trial
                    self._give_up(trial)
            time.sleep(1.0)

    def put_back(self) -> None:
        """Puts the trial that was taken last back, unless it has ended: its worker was stopped."""
        if self._taken is not None:
            put_back(self._study, self._taken, None)

    def _is_surplus(self, number: int) -> bool:
        """Whether finished trials and active ones of lower number are enough.

        Every process that asks at the same time applies the same rule to the same order, so never more trials than
        wanted are kept, on any number of machines.
        """
        known = self._study.get_trials(deepcopy=False)
        ahead = sum(trial.state in _ACTIVE and trial.number < number for trial in known)
        return sum(map(is_finished, known)) + ahead >= self._trials

    def _give_up(self, trial: Trial) -> None:
        """Ends a trial that is not needed; one that was begun before stays in the queue."""
        if trial.params:
            put_back(self._study, trial.number, None)
        else:
            trial.set_user_attr(REASON, "not needed: others were enough")
            self._study.tell(trial, state=TrialState.FAIL)

    def recover(self) -> None:
        """Queues the trials of dead workers again."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)
        known = self._study.get_trials(deepcopy=False)
        again = {number for trial in known for number in trial.system_attrs.get("retry_history", ())}
        for trial in known:
            host, run = trial.user_attrs.get("host"), trial.user_attrs.get("run")
            if trial.state == TrialState.RUNNING:
                if host is None and self._overdue(trial):  # died between asking and its first sign of life
                    put_back(self._study, trial.number)
                elif host == HOST and run is not None:
                    with contextlib.suppress(RunError), locked(Path(run)):
                        put_back(self._study, trial.number)
            elif trial.state == TrialState.FAIL and host is not None and trial.number not in again:
                given_up = len(trial.system_attrs.get("retry_history", ())) >= _MOST_RETRIES
                said = {REASON, STOPPED} & trial.user_attrs.keys()
                if not said and not given_up and self._overdue(trial):  # who marked it died before queueing it again
                    Requeue()(self._study, trial)

    def _overdue(self, trial: FrozenTrial) -> bool:
        """Whether a trial was seen in the same state for longer than the grace."""
        seen = self._seen.setdefault((trial.number, trial.state), time.monotonic())
        return time.monotonic() - seen > self._grace_s


@contextlib.contextmanager
def interrupts_postponed() -> Iterator[None]:
    """Ctrl-C inside takes effect at the end. Main thread only."""
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        before(signal.SIGINT, None)


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """One process of this directory at a time; SQLite hands the same waiting trial to two otherwise."""
    import fcntl

    with (folder / ".turn").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def held(study: optuna.Study, trial: Trial, path: Path) -> Iterator[None]:
    """Holds a trial's run directory; waits for a worker that holds it still although its trial was given away.

    Raises:
        UpdateFinishedTrialError: that worker, or another one, ended the trial.
    """
    trial.set_user_attr("host", HOST)
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(path))
            except RunError:
                if not path.exists():
                    raise
            else:
                break
            if study.get_trials(deepcopy=False)[trial.number].state.is_finished():
                raise UpdateFinishedTrialError
            time.sleep(1.0)
        trial.set_user_attr("run", str(path))
        yield


class Heartbeat:
    """Says every so often that a trial's worker lives; a database that is away for a moment ends nothing."""

    def __init__(self, trial: Trial, interval_s: float) -> None:
        self._storage, self._trial_id, self._interval_s = trial.storage, trial._trial_id, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        self._record()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(self._interval_s):
            with contextlib.suppress(Exception):
                self._record()

    def _record(self) -> None:
        if isinstance(self._storage, BaseHeartbeat):
            self._storage.record_heartbeat(self._trial_id)
