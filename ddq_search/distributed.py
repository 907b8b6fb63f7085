"""Data parallel: several processes train one network, each on its part of every batch.

``torchrun`` starts the processes and tells each its rank. Every process holds the whole network and takes every
``W``-th sample of a batch from its rank on, so that the leading share of the batch on which step and gate gradients are
estimated (`ddq_search.quantizers.straight_through`) holds the same samples as in one process. A part's loss weighs its
share of the samples, gradients are summed over processes, batch statistics are those of the whole batch
(`ddq_search.batch_statistics`): a step is the step of one process with the same batch, up to the order in which floats
are summed. Randomness depends on counters, so everything else is computed by each process for itself, alike.

The first process (rank 0) alone reads and writes the run directory. In one process, all of this is nothing.

Legend: N samples of a batch, W processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ddq_search.errors import ConfigError, RunError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

TIMEOUT = "DDQ_SEARCH_TIMEOUT_S"
"""Environment variable: seconds that a process waits for the others before it gives up."""
_TIMEOUT_S = 1800.0
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_FAILURES = "ddq_search/failures"

Result = TypeVar("Result")


# -- processes ------------------------------------------------------------------------------------------------------


_member = (0, 1)
"""Rank and number of processes; a process group that somebody else made does not count."""


def rank() -> int:
    """Returns this process's number, from 0."""
    return _member[0]


def world_size() -> int:
    """Returns the number of processes."""
    return _member[1]


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Joins the processes that ``torchrun`` started, until the block ends; without it, nothing happens.

    When the block fails, the first process to fail raises its error and the others leave silently with exit code 1:
    they fail in its wake, or in the same way.

    Raises:
        ConfigError: this torch cannot do it, or the environment is not one that ``torchrun`` makes.
        RunError: the processes cannot be joined.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not all(name in os.environ for name in _LAUNCHED):
        yield
        return
    global _member
    store, _member = _join()
    try:
        yield
    except (Exception, KeyboardInterrupt):
        if not _fails_first(store):
            raise SystemExit(1) from None
        raise
    finally:
        _member = (0, 1)
        dist.destroy_process_group()


def _join() -> tuple[Store, tuple[int, int]]:
    if not (dist.is_available() and dist.is_gloo_available()):
        raise ConfigError("this build of torch has no torch.distributed with gloo; run without torchrun")
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    text = os.environ.get(TIMEOUT, str(_TIMEOUT_S))
    try:
        timeout = timedelta(seconds=float(text))
    except (ValueError, OverflowError):
        raise ConfigError(f"{TIMEOUT}={text!r}: expected a number of seconds") from None
    try:
        store, number, count = next(iter(rendezvous("env://", timeout=timeout)))
        store.set_timeout(timeout)
        dist.init_process_group(
            "gloo", store=PrefixStore("ddq_search", store), rank=number, world_size=count, timeout=timeout
        )
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the processes that torchrun started could not be joined: {error}") from error
    return store, (number, count)


def _fails_first(store: Store) -> bool:
    try:
        return bool(store.add(_FAILURES, 1) == 1)
    except RuntimeError:  # the process or launcher that held the store is gone: nobody else may have said why
        return True


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """What happens inside needs every process."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            f"another process of this run ended, or did not answer in time ({TIMEOUT}); its own output says why. "
            "The same command with --resume goes on"
        ) from error


# -- what the first process does for all -----------------------------------------------------------------------------


_alone = False


def from_first(work: Callable[[], Result]) -> Result:
    """Lets the first process do something alone; every process gets its result, or raises its error.

    All processes call it in the same order; none goes on before the first is done. Such work may call it again.
    """
    global _alone
    if world_size() == 1 or _alone:
        return work()
    outcome: list[Any] = [None]
    if rank() == 0:
        _alone = True
        try:
            outcome = [(work(), None)]
        except Exception as error:
            outcome = [(None, error)]
        finally:
            _alone = False
    with _together():
        dist.broadcast_object_list(outcome, src=0)
    result, failure = outcome[0]
    if failure is not None:
        raise failure
    return result  # type: ignore[no-any-return]


@contextlib.contextmanager
def first_ahead() -> Iterator[None]:
    """Lets the first process through the block before the others enter it: it downloads and fills caches for all."""
    if rank() > 0:
        with _together():
            dist.barrier()
    yield
    if rank() == 0 and world_size() > 1:
        with _together():
            dist.barrier()


# -- parts of a batch ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """The samples of a batch that one process holds: ``rank``, ``rank + W``, ``rank + 2 W`` and so on.

    Attributes:
        batch: samples of the whole batch N.
        rank: which part.
        parts: number of parts W.
        weight: what this process's mean loss contributes to the mean loss of the batch.
    """

    batch: int
    rank: int
    parts: int
    weight: float

    def of(self, tensor: Tensor) -> Tensor:
        """Returns this part of a tensor ``[N, ...]``."""
        return tensor[self.rank :: self.parts].contiguous()

    def sizes(self, leading: int | None = None) -> list[int]:
        """Returns how many of the batch's ``leading`` samples (all by default) are in each part."""
        count = self.batch if leading is None else leading
        return [len(range(number, count, self.parts)) for number in range(self.parts)]


def part_of(batch: int) -> Part | None:
    """Returns this process's part of a batch of ``batch`` samples; None in one process.

    A batch with fewer samples than processes is not divided: each process computes all of it, and contributes as much
    as every other.
    """
    count = world_size()
    if count == 1:
        return None
    if batch < count:
        return Part(batch, 0, 1, 1 / count)
    size = len(range(rank(), batch, count))
    return Part(batch, rank(), count, size / batch)


_current: Part | None = None


@contextlib.contextmanager
def dividing(part: Part | None) -> Iterator[None]:
    """Inside, what the network computes is one part of a batch; outside, a whole batch."""
    global _current
    before, _current = _current, part
    try:
        yield
    finally:
        _current = before


def current() -> Part | None:
    """Returns the part that is being computed; None for a whole batch."""
    return _current


def leading(samples: int, share: float) -> tuple[int, float]:
    """Returns how many of this process's ``samples`` are in the leading share of the batch, and a factor.

    A sum over those samples of all processes times that factor estimates the sum over the batch.

    >>> leading(64, 0.25)
    (16, 4.0)
    >>> with dividing(Part(batch=10, rank=1, parts=2, weight=0.5)):
    ...     leading(5, 0.5)  # samples 1 and 3 of 0 … 4
    (2, 2.0)
    """
    part = _current
    batch = samples if part is None else part.batch
    size = max(1, round(batch * share))
    return (size if part is None else part.sizes(size)[part.rank]), batch / size


# -- sums and checks -------------------------------------------------------------------------------------------------


@torch.no_grad()
def sum_in_place(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor by its sum over all processes; one exchange per number format and place, in main memory."""
    if world_size() == 1:
        return
    for kind in dict.fromkeys((tensor.dtype, tensor.device) for tensor in tensors):
        alike = [tensor for tensor in tensors if (tensor.dtype, tensor.device) == kind]
        bucket = torch.cat([tensor.reshape(-1) for tensor in alike]).cpu()
        with _together():
            dist.all_reduce(bucket)
        for tensor, total in zip(alike, bucket.split([tensor.numel() for tensor in alike]), strict=True):
            tensor.copy_(total.view(tensor.shape))


def gather(tensor: Tensor) -> Tensor:
    """Returns the tensors ``[W, ...]`` of all processes, the same everywhere."""
    own = tensor.contiguous().cpu()
    found = [torch.empty_like(own) for _ in range(world_size())]
    with _together():
        dist.all_gather(found, own)
    return torch.stack(found).to(tensor.device)


def require_same(tensors: Mapping[str, Tensor], when: str) -> None:
    """Checks that all processes hold the same tensors, bit for bit, by a hash of each.

    Raises:
        RunError: they do not; names the first that differs.
    """
    if world_size() == 1:
        return
    own = {name: hashlib.blake2b(_bytes(tensor), digest_size=8).digest() for name, tensor in tensors.items()}
    found: list[Any] = [None] * world_size()
    with _together():
        dist.all_gather_object(found, own)
    for number, theirs in enumerate(found):
        differing = [name for name in found[0] if theirs.get(name) != found[0][name]]
        differing += [name for name in theirs if name not in found[0]]
        if differing:
            raise RunError(
                f"process {number} no longer agrees with process 0 {when}: {differing[0]!r} differs (and "
                f"{len(differing) - 1} more of {len(own)} tensors). All machines need the same processor type, torch "
                "and training.threads; --resume goes on from the last checkpoint"
            )


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
