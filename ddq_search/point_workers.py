"""The points of a front, several at a time: processes of this machine share what trains each policy apart from others.

Networks for microcontrollers are too small for many threads; two trainings with one thread each are done sooner than
one after the other with two. A process leaves a policy's checkpoint in the run directory as this one would, and bit
for bit the same where both have as many threads. What the processes leave undone, this one does.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cloudpickle
import loky
import torch
from loky.process_executor import BrokenProcessPool
from torch import Tensor

from ddq_search import distributed
from ddq_search.batches import TrainingBatches
from ddq_search.config import TrainingConfig
from ddq_search.judgement import Candidate
from ddq_search.policy import Policy
from ddq_search.problem import Problem
from ddq_search.record import RunDirectory
from ddq_search.stages import Stages
from ddq_search.supernet import Supernet
from ddq_search.training import Silent

_POLL_S = 1.0

Task = tuple[Policy, int]
"""A policy and for how many epochs it is trained."""


def train_all(
    stages: Stages, tasks: Sequence[Task], teacher: Supernet, supernet: Supernet | None = None
) -> list[Candidate]:
    """Trains policies, as many at a time as there are ``training.workers``; returns them in the same order.

    From the supernet's weights where one is given (`Stages.finetune`), else from the float model's
    (`Stages.train_policy`). The threads of this process are divided among the workers.

    Raises:
        RunError: training diverged, or a checkpoint or file cannot be used.
    """
    obstacle = _obstacle(stages)
    if obstacle:
        stages.tell_once(f"training.workers = {stages.settings.workers} is left out: {obstacle}")
    elif stages.settings.workers > 1:
        _train_in_processes(stages, tasks, teacher, supernet)
    return [stages.train_apart(policy, teacher, epochs, supernet) for policy, epochs in tasks]


def _obstacle(stages: Stages) -> str:
    if stages.settings.workers == 1:
        return ""
    if distributed.world_size() > 1:
        return "under torchrun all processes share each training"
    if stages.settings.device != "cpu":
        return f"training.device = {stages.settings.device!r} serves one training at a time"
    return ""


def _train_in_processes(
    stages: Stages, tasks: Sequence[Task], teacher: Supernet, supernet: Supernet | None
) -> None:  # fmt: skip
    left = [task for task in tasks if not stages.is_trained(task[0])]
    workers = min(stages.settings.workers, len(left))
    threads = max(1, torch.get_num_threads() // stages.settings.workers)
    if workers == 0 or (workers == 1 and threads == torch.get_num_threads()):
        return  # this process does it alike
    try:
        order = cloudpickle.dumps(_Order.of(stages, teacher, supernet))
    except (pickle.PicklingError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        stages.tell_once(f"training.workers is left out: the model or the data cannot be sent to a process: {error}")
        return
    pool = loky.ProcessPoolExecutor(
        workers, initializer=_begin, initargs=(order, threads, os.getpid()), env={"OMP_NUM_THREADS": str(threads)}
    )
    stages.progress.note(f"policies to train: {len(left)}, at a time: {workers}, threads each: {threads}")
    try:
        longest_first = sorted(left, key=lambda task: -task[1])
        _wait(stages, [pool.submit(_train, *task) for task in longest_first], left)
    except BrokenProcessPool as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        stages.progress.note(f"training.workers: a process ended before its time; this one goes on alone ({said})")
    finally:
        pool.shutdown(kill_workers=True)


def _wait(stages: Stages, futures: Sequence[loky.Future], tasks: Sequence[Task]) -> None:
    """Tells how far the processes are until all is done; raises what one of them raises."""
    names, total = {policy.name for policy, _ in tasks}, sum(epochs for _, epochs in tasks)

    def done() -> int:
        return min(total, sum(row.get("point") in names for row in stages.record.history()))

    told, pending = done(), set(futures)
    stages.progress.begin("points", total, told)
    while pending:
        ready, pending = loky.wait(pending, timeout=_POLL_S, return_when="FIRST_COMPLETED")
        for _ in range(done() - told):
            told += 1
            stages.progress.step({"trained": f"{len(futures) - len(pending)}/{len(futures)}"})
        for future in ready:
            for text in future.result():
                stages.progress.note(text)


# -- in the processes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Order:
    """What a process needs to train policies as this one does."""

    problem: Problem
    run: RunDirectory
    settings: TrainingConfig
    calibration: TrainingBatches | None
    teacher: Mapping[str, Tensor]
    supernet: Mapping[str, Tensor] | None

    @classmethod
    def of(cls, stages: Stages, teacher: Supernet, supernet: Supernet | None) -> _Order:
        return cls(
            stages.problem, stages.record, stages.settings, stages.batches if stages.frozen else None,
            teacher.state_dict(), None if supernet is None else supernet.without_gates(),
        )  # fmt: skip


class _Notes(Silent):
    """Keeps what the user should read, and ends this process when the one that started it is gone."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self.texts: list[str] = []

    def step(self, facts: Mapping[str, str]) -> None:
        if os.getppid() != self._parent:
            os._exit(1)

    def note(self, text: str) -> None:
        self.texts.append(text)


class _Workplace:
    """What `_train` works with in each process."""

    def __init__(self, order: _Order, parent: int) -> None:
        self.notes = _Notes(parent)
        self.stages = Stages(
            order.problem, order.run, self.notes, settings=order.settings, calibration=order.calibration
        )
        self.teacher = order.problem.placed_supernet()
        self.teacher.set_float()
        self.teacher.load_state_dict(order.teacher)
        self.supernet: Supernet | None = None
        if order.supernet is not None:
            self.supernet = order.problem.placed_supernet()
            self.supernet.load_state_dict(order.supernet, strict=False)


_workplace: _Workplace | None = None


def _begin(order: bytes, threads: int, parent: int) -> None:
    global _workplace
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    torch.set_num_threads(threads)
    _workplace = _Workplace(pickle.loads(order), parent)


def _train(policy: Policy, epochs: int) -> list[str]:
    assert _workplace is not None, "a process begins before it trains"
    notes = _workplace.notes.texts
    notes.clear()
    _workplace.stages.train_apart(policy, _workplace.teacher, epochs, _workplace.supernet)
    return list(notes)
