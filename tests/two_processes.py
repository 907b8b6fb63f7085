"""Two processes of this machine that share a job as under torchrun, and what they leave against what one leaves.

Everything is float64: sums in another order differ by 1e-16, too little to change which code a value is rounded to.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ddq_search import distributed
from ddq_search.distributed import processes
from ddq_search.record import RunDirectory
from tests.toys import ToySource

WORLD = 2
PATIENCE_S = 120
"""How long a process waits for the other; much more than any exchange takes, for machines with other things to do."""
Job = Callable[[Path], Any]


class Uneven(ToySource):
    """Batches of 10, 7 and 10 samples and of a single one: parts differ in size, and one batch cannot be divided."""

    def train(self, *, seed: int, epoch: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for number, size in enumerate((batch_size, 7, batch_size, 1)):
            x, y = self._batch(seed * 7919 + epoch * 31 + number, size)
            yield x.to(torch.get_default_dtype()), y

    def train_batches(self, batch_size: int) -> int:
        return 4


@contextlib.contextmanager
def double() -> Iterator[None]:
    """Inside, torch makes float64 tensors."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def environment(rank: int, port: int) -> dict[str, str]:
    """What torchrun would set."""
    return {"RANK": str(rank), "WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def in_two(folder: Path, *jobs: Job | tuple[Job, float]) -> list[list[Any]]:
    """Runs jobs one after the other in two processes, each joined anew.

    Args:
        folder: given to each job; empty, since results come back through it.
        jobs: each by itself, or with the seconds that a process waits for the other.

    Returns:
        For each process what its jobs returned, or the text of what they raised.
    """
    numbered = [(job, PATIENCE_S) if callable(job) else job for job in jobs]
    ports = _free_ports(len(numbered))
    context = torch.multiprocessing.get_context("spawn")
    workers = [context.Process(target=_worker, args=(rank, ports, folder, numbered)) for rank in range(WORLD)]
    for each in workers:
        each.start()
    for each in workers:
        each.join(800)
        each.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def _worker(rank: int, ports: list[int], folder: Path, jobs: list[tuple[Job, float]]) -> None:
    torch.set_num_threads(1)
    outcomes = []
    for (job, seconds), port in zip(jobs, ports, strict=True):
        os.environ.update(environment(rank, port) | {distributed.TIMEOUT: str(seconds)})
        try:
            with processes():
                outcomes.append(job(folder))
        except BaseException as error:
            outcomes.append(repr(error))
    torch.save(outcomes, folder / f"{rank}.pt")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


# -- what runs leave --------------------------------------------------------------------------------------------------


def assert_same_tensors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Every tensor within 1e-9 of its largest entry."""
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        size = max(float(value.abs().max()), 1e-3) if value.is_floating_point() and value.numel() else 0
        difference = (found[key].double() - value.double()).abs()
        assert difference.numel() == 0 or difference.max() <= 1e-9 * size, key


def assert_same_runs(found: Path, wanted: Path) -> None:
    """Policies are equal, the tensors of all checkpoints and the losses of all epochs within 1e-9."""
    assert _policies(found) == _policies(wanted)
    assert_same_tensors(checkpoints(found), checkpoints(wanted))
    rows, others = RunDirectory(found).history(), RunDirectory(wanted).history()
    assert [(row["phase"], row["point"], row["epoch"]) for row in rows] == [
        (row["phase"], row["point"], row["epoch"]) for row in others
    ]
    assert [row["train_loss"] for row in rows] == pytest.approx([row["train_loss"] for row in others], rel=1e-9)


def checkpoints(run: Path) -> dict[str, Tensor]:
    """Returns the tensors of all checkpoints of a run."""
    files = sorted((run / "checkpoints").iterdir())
    return {f"{file.stem} {key}": value for file in files for key, value in load_file(file).items()}


def _policies(run: Path) -> dict[str, Any]:
    points = json.loads((run / "front.json").read_text())["points"]
    return {p["name"]: (p["weights"], p["activations"], p["within_budgets"], p["on_front"]) for p in points}
