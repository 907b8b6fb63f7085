"""Patches of photographs as the core wants them: a `ddq_search.task.DataSource` for super-resolution.

All randomness is counter-based: order and orientation of a patch depend on (seed, epoch, index of the patch) only.
Legend: B patches in a batch, C channels, H height, W width, r factor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ddq_search.precision import ActivationGrid
from ddq_search.task import Batch, Split
from search_spaces.batches import AUGMENT_STREAM, ORDER_STREAM, batch_count
from search_spaces.images import random_stream
from search_spaces.patches import PatchSplits

INPUT_GRID = ActivationGrid(1 / 255, 0, 8)
"""A network that enlarges images sees and gives pixels in 0 … 1: what it must add to them is little."""
OUTPUT_GRID = INPUT_GRID
"""Codes of the output are pixels, cut to 0 … 255."""


class PatchSource:
    """Batches of patches ``[B, C, H/r, W/r]`` and their originals ``[B, C, H, W]``, both in 0 … 1.

    The input codes are the raw pixels of the low resolution, the output codes those of the high one.
    """

    def __init__(self, name: str, splits: PatchSplits) -> None:
        self.name = name
        self.splits = splits
        self.input_shape: tuple[int, ...] = tuple(splits.train.low.shape[1:])
        self.input_grid: ActivationGrid | None = INPUT_GRID
        self.output_grid: ActivationGrid | None = OUTPUT_GRID

    @property
    def fingerprint(self) -> str:
        """Changes with the photographs, the factor and the split."""
        return hashlib.sha256(f"{self.splits.fingerprint} {self.splits.split_sha256}".encode()).hexdigest()[:32]

    def train(self, *, seed: int, epoch: int, batch_size: int) -> Iterator[Batch]:
        """Yields shuffled full batches, each patch in one of its eight orientations."""
        patches = self.splits.train
        order = torch.from_numpy(random_stream(seed, epoch, ORDER_STREAM).permutation(len(patches)))
        turns = torch.from_numpy(random_stream(seed, epoch, AUGMENT_STREAM).integers(0, 8, len(patches)))
        for batch in range(self.train_batches(batch_size)):
            chosen = order[batch * batch_size : (batch + 1) * batch_size]
            low, high = (oriented(part[chosen], turns[chosen]) for part in (patches.low, patches.high))
            yield self._pair(low, high)

    def train_batches(self, batch_size: int) -> int:
        """Number of full batches in the training split."""
        return batch_count(len(self.splits.train), batch_size, drop_last=True)

    def plain(self, split: Split, batch_size: int) -> Iterator[Batch]:
        """Yields every patch of a split once, in order."""
        patches = self.splits.split(split)
        for start in range(0, len(patches), batch_size):
            part = slice(start, start + batch_size)
            yield self._pair(patches.low[part], patches.high[part])

    def _pair(self, low: Tensor, high: Tensor) -> Batch:
        return low.float() * INPUT_GRID.scale, high.float() / 255


def oriented(patches: Tensor, turns: Tensor) -> Tensor:
    """Returns square patches ``[B, C, H, H]`` mirrored (bit 0), upside down (bit 1) and transposed (bit 2), as told."""
    moves: tuple[Callable[[Tensor], Tensor], ...] = (lambda x: x.flip(3), lambda x: x.flip(2), lambda x: x.mT)
    for bit, move in enumerate(moves):
        told = (turns >> bit & 1).bool()[:, None, None, None]
        patches = torch.where(told, move(patches), patches)
    return patches
