"""Sets of labelled images in memory, and how they are split.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ddq_search.errors import ConfigError

Indices = NDArray[np.int64]

SPLIT_STREAM, LIMIT_STREAM, TEST_STREAM = 100, 101, 102
"""Names of the random streams that decide splits; those of training batches are in `search_spaces.batches`."""


@dataclass(frozen=True)
class ImageSet:
    """Images and their classes.

    Attributes:
        images: uint8 ``[N, C, H, W]``.
        labels: int64 ``[N]``.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ConfigError(f"images must be uint8 [N, C, H, W], got {self.images.dtype} {tuple(self.images.shape)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ConfigError(f"labels must be int64 [{len(self.images)}], got {self.labels.dtype} "
                              f"{tuple(self.labels.shape)}")  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice) -> ImageSet:
        """Returns a range of the images, without copying."""
        return ImageSet(self.images[part], self.labels[part])

    def to(self, device: str | torch.device) -> ImageSet:
        """Returns the set on another device."""
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Source:
    """Everything that one data source holds, before it is split for a search.

    Attributes:
        stored: uint8 ``[N, C, H, W]`` in any order, possibly a memory map.
        rows: int64 ``[N]``: where each image is stored; all else counts images in an order that does not depend on it.
        labels: int64 ``[N]``.
        train: which images are for training.
        test: which are for testing; None when the source does not say.
        classes: names of the classes; a label is an index into them.
        flips: whether a mirrored image is as good as the image (not so for digits and letters).
        fingerprint: hash of images and labels, independent of how they are stored.
    """

    stored: NDArray[np.uint8]
    rows: Indices
    labels: NDArray[np.int64]
    train: Indices
    test: Indices | None
    classes: tuple[str, ...]
    flips: bool
    fingerprint: str


def fingerprint_of(*arrays: NDArray[np.generic]) -> str:
    """Returns a hash of the arrays' contents, shapes and types."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def random_stream(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """Returns a generator that depends on these three numbers only (counter-based, so nothing needs to be resumed)."""
    key = np.array([seed % 2**64, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, stream]))


def split_off(
    positions: Indices, labels: NDArray[np.int64], fraction: float, classes: Sequence[str], rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """Returns (rest, part) with the given fraction of every class in ``part``, at least one image on both sides.

    Raises:
        ConfigError: a class has fewer than two images.
    """
    rest: list[Indices] = []
    part: list[Indices] = []
    for label, name in enumerate(classes):
        members = positions[labels[positions] == label]
        if len(members) < 2:
            raise ConfigError(
                f"class {name!r} has {len(members)} image(s) left, too few to split; add images or remove the class"
            )
        members = rng.permutation(members)
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        part.append(members[:count])
        rest.append(members[count:])
    return np.sort(np.concatenate(rest)), np.sort(np.concatenate(part))


def keep_at_most(positions: Indices, labels: NDArray[np.int64], limit: int, rng: np.random.Generator) -> Indices:
    """Returns at most ``limit`` of the positions, taken from the classes in turn."""
    if len(positions) <= limit:
        return positions
    shuffled = rng.permutation(positions)
    turn = np.empty(len(shuffled), dtype=np.int64)
    for label in np.unique(labels[shuffled]):
        members = np.flatnonzero(labels[shuffled] == label)
        turn[members] = np.arange(len(members))
    return np.sort(shuffled[np.argsort(turn, kind="stable")[:limit]])


def pixel_statistics(*sets: ImageSet) -> tuple[float, float]:
    """Returns mean and standard deviation over all pixels and channels, exact up to the last rounding."""
    histograms = torch.stack([torch.bincount(part.images.reshape(-1), minlength=256) for part in sets])
    counts = [int(n) for n in histograms.sum(dim=0)]
    total = sum(counts)
    first = sum(value * n for value, n in enumerate(counts))
    second = sum(value * value * n for value, n in enumerate(counts))
    return first / total, float((total * second - first * first) / (total * total)) ** 0.5
