"""Image splits as the core wants them: a `ddq_search.task.DataSource`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from ddq_search.precision import ActivationGrid
from ddq_search.task import Batch, Split
from search_spaces.batches import batch_count
from search_spaces.data import DataSplits


class ImageSource:
    """Batches of normalised images ``[N, C, H, W]`` and labels ``[N]``; the input codes are the raw pixels."""

    def __init__(self, name: str, splits: DataSplits) -> None:
        self.name = name
        self.splits = splits
        self.input_shape = (splits.channels, *splits.image_size)
        self.input_grid: ActivationGrid | None = ActivationGrid(splits.scale, splits.mean_code, 8)

    @property
    def fingerprint(self) -> str:
        """Changes with the images, the labels and the split."""
        return hashlib.sha256(f"{self.splits.fingerprint} {self.splits.split_sha256}".encode()).hexdigest()[:32]

    def train(self, *, seed: int, epoch: int, batch_size: int) -> Iterator[Batch]:
        """Yields shuffled, augmented, full batches."""
        return self.splits.train_batches(batch_size, seed=seed, epoch=epoch)

    def train_batches(self, batch_size: int) -> int:
        """Number of full batches in the training split."""
        return batch_count(len(self.splits.train), batch_size, drop_last=True)

    def plain(self, split: Split, batch_size: int) -> Iterator[Batch]:
        """Yields every image of a split once, in order."""
        return self.splits.plain_batches(split, batch_size)
