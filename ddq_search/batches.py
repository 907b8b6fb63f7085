"""Where training gets its batches from: all batches of a source, the first ones, or the same ones again and again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Protocol

from ddq_search.task import Batch


class TrainingBatches(Protocol):
    """Where a phase gets its batches from: the part of a `ddq_search.task.DataSource` that training needs."""

    def train(self, *, seed: int, epoch: int, batch_size: int) -> Iterator[Batch]:
        """Yields the shuffled, augmented training batches of one epoch; randomness depends on the arguments only."""

    def train_batches(self, batch_size: int) -> int:
        """Number of batches that `train` yields."""


class FirstBatches:
    """The first training batches of every epoch of a source."""

    def __init__(self, source: TrainingBatches, batches: int) -> None:
        self._source, self._batches = source, batches

    def train(self, *, seed: int, epoch: int, batch_size: int) -> Iterator[Batch]:
        """Yields them."""
        batches = self._source.train(seed=seed, epoch=epoch, batch_size=batch_size)
        return itertools.islice(batches, self._batches)

    def train_batches(self, batch_size: int) -> int:
        """Number of batches that `train` yields."""
        return min(self._batches, self._source.train_batches(batch_size))


class SameBatches:
    """The first training batches of one epoch, the same in every epoch: a fixed set of calibration images."""

    def __init__(self, source: TrainingBatches, epoch: int, batches: int) -> None:
        self._source, self._epoch, self._batches = source, epoch, batches

    def train(self, *, seed: int, epoch: int, batch_size: int) -> Iterator[Batch]:
        """Yields them, whatever the epoch."""
        batches = self._source.train(seed=seed, epoch=self._epoch, batch_size=batch_size)
        return itertools.islice(batches, self._batches)

    def train_batches(self, batch_size: int) -> int:
        """Number of batches that `train` yields."""
        return min(self._batches, self._source.train_batches(batch_size))
