"""Several worker processes of one machine on one study."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
import torch

from ddq_search.config import RunConfig
from ddq_search.errors import DDQError, RunError
from ddq_search.training import Progress
from ddq_search.tune import Assemble, run_study
from ddq_search.tune_queue import finished
from ddq_search.tune_study import StudyPlan, open_study

ProgressOf = Callable[[int], Progress]
"""Number of a worker → who is told; it and what it returns must be picklable."""


def run_workers(
    base: RunConfig, assemble: Assemble, folder: Path, plan: StudyPlan, workers: int, progress_of: ProgressOf,
    progress: Progress,
) -> optuna.Study:  # fmt: skip
    """Runs a study with several processes; one that dies is not replaced, the others take its trial.

    Args:
        base: configuration of which the settings are varied.
        assemble: builds the problem of a configuration; a function of a module, for it is called in each process.
        folder: directory of the study.
        plan: what is wanted.
        workers: number of processes.
        progress_of: who is told by each of them.
        progress: who is told by this process.

    Raises:
        ConfigError: as `ddq_search.tune.run_study`.
        RunError: likewise, or every worker ended before enough trials had finished.
    """
    study = open_study(base, folder, plan)
    threads = max(1, (os.cpu_count() or 1) // workers)
    started = _started([(n, base, assemble, folder, plan, progress_of, threads) for n in range(1, workers + 1)])
    for number, process in enumerate(started, 1):
        progress.note(f"worker {number}: process {process.pid}")
    try:
        _wait(started, progress)
    except KeyboardInterrupt:
        _interrupt(started)
        raise
    done = finished(study)
    if done < plan.trials:
        raise RunError(f"every worker ended and {done} of {plan.trials} trials are finished; the same command goes on")
    return study


def _started(arguments: list[tuple[object, ...]]) -> list[BaseProcess]:
    """Starts the workers deaf to Ctrl-C; each listens once it can end in order."""
    context = multiprocessing.get_context("spawn")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        processes: list[BaseProcess] = [context.Process(target=_work, args=entry) for entry in arguments]
        for process in processes:
            process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    return processes


def _wait(processes: list[BaseProcess], progress: Progress) -> None:
    running = dict(enumerate(processes, 1))
    while running:
        for number, process in list(running.items()):
            process.join(0.2)
            if process.exitcode is None:
                continue
            del running[number]
            if process.exitcode < 0:
                others = "the others go on with its trial" if running else "nobody is left to go on with its trial"
                progress.note(f"worker {number} was killed by signal {-process.exitcode}; {others}")


def _interrupt(processes: list[BaseProcess]) -> None:
    """Passes Ctrl-C on until every worker has put its trial back and ended."""
    for _ in range(60):
        for process in processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGINT)
        for process in processes:
            process.join(1.0 / len(processes))
        if not any(process.is_alive() for process in processes):
            return
    for process in processes:
        process.kill()


def _work(
    number: int, base: RunConfig, assemble: Assemble, folder: Path, plan: StudyPlan, progress_of: ProgressOf,
    threads: int,
) -> None:  # fmt: skip
    def press(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        raise KeyboardInterrupt

    torch.set_num_threads(threads)
    progress = progress_of(number)
    signal.signal(signal.SIGINT, press)
    try:
        run_study(base, assemble, folder, plan, progress)
    except KeyboardInterrupt:
        sys.exit(130)
    except DDQError as error:
        progress.note(f"ends: {error}")
        sys.exit(1)
