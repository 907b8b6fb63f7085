"""From a data specification to the three splits of a search.

Training images are what gradients see, validation images are what choices (of policies, epochs, settings) rest on,
test images are for whoever reports the final figure. Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ddq_search.errors import ConfigError
from search_spaces.batches import Augmentation, batches, normalise
from search_spaces.folders import Progress, is_archive, load_folder
from search_spaces.images import (
    LIMIT_STREAM,
    SPLIT_STREAM,
    TEST_STREAM,
    ImageSet,
    Source,
    keep_at_most,
    pixel_statistics,
    random_stream,
    split_off,
)
from search_spaces.sources import digits, from_npz, from_torchvision, synthetic

SplitName = Literal["train", "validation", "test"]
AUGMENTATIONS = ("auto", "none", "shift", "shift-flip")
TEST_FRACTION = 0.2
"""Part of every class that becomes the test split where the source has none; the same images for every seed."""


@dataclass(frozen=True)
class DataSplits:
    """Three sets of images, and the scalars that turn pixels into network inputs.

    Attributes:
        train: images for gradient steps.
        validation: images that choices rest on.
        test: images for the final figure only.
        classes: class names by label.
        mean_code: rounded mean of the training pixels (validation included): zero point of the input grid.
        scale: 1 / standard deviation of the same pixels: scale of the input grid.
        augmentation: how training images are varied.
        split_sha256: hash of which image went where.
        fingerprint: hash of the source's images and labels.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    mean_code: int
    scale: float
    augmentation: Augmentation
    split_sha256: str
    fingerprint: str

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image."""
        return self.train.images.shape[2], self.train.images.shape[3]

    def example(self, count: int = 1) -> torch.Tensor:
        """Returns the first training images as the network sees them: float32 ``[count, C, H, W]``."""
        return normalise(self.train.images[:count], self.mean_code, self.scale)

    def train_batches(
        self, batch_size: int, *, seed: int, epoch: int, start_batch: int = 0, device: str | torch.device = "cpu"
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields shuffled, augmented, full batches of the training images."""
        return batches(
            self.train, batch_size, seed=seed, epoch=epoch, augment=self.augmentation != Augmentation(),
            mean_code=self.mean_code, scale=self.scale, shuffle=True, augmentation=self.augmentation,
            start_batch=start_batch, device=device,
        )  # fmt: skip

    def plain_batches(
        self, split: SplitName, batch_size: int, *, device: str | torch.device = "cpu"
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields every image of a split once, in order, as it is."""
        chosen = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        return batches(
            chosen, batch_size, seed=0, epoch=0, augment=False, mean_code=self.mean_code, scale=self.scale,
            shuffle=False, device=device,
        )  # fmt: skip


def load_data(
    spec: str,
    seed: int,
    validation_fraction: float | None = None,
    limit: int | None = None,
    cache_dir: str | Path | None = None,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    augmentation: str = "auto",
    root: str | Path | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> DataSplits:
    """Returns the splits of a data source; the same arguments always give the same splits.

    Args:
        spec: ``digits`` (embedded, 1x8x8); ``synthetic`` or ``synthetic:CxHxWxK`` (for smoke tests);
            ``torchvision:NAME``; an ``.npz`` file; or a folder or archive (``.tar``, ``.tar.xz``, ``.zip`` …) with
            ``train/<class>/*`` and optionally ``test/<class>/*``.
        seed: decides which training images become validation images. The test split does not depend on it.
        validation_fraction: part of the training images of each class; None: 0.2 below 10,000 images, else 0.1.
        limit: keep at most this many training images (validation included) and as many test images.
        cache_dir: where decoded folders and archives are kept; None: ``DDQ_SEARCH_CACHE`` or
            ``~/.cache/ddq-search``.
        image_size: scale and crop folder or archive images to this many pixels on each side.
        channels: 1 or 3; None: as the first image has.
        augmentation: ``none``, ``shift``, ``shift-flip``, or ``auto``: shift by an eighth of the height, and flip
            unless the source is known to hold digits or letters.
        root: where torchvision data sets lie.
        download: whether torchvision may download.
        progress: called with (images decoded, total or None).

    Raises:
        ConfigError: the source is missing, broken, or too small to be split.
    """
    if validation_fraction is not None and not 0 < validation_fraction < 1:
        raise ConfigError(f"validation_fraction must lie between 0 and 1, got {validation_fraction}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, got {limit}")
    if augmentation not in AUGMENTATIONS:
        raise ConfigError(f"unknown augmentation {augmentation!r}; choose from {', '.join(AUGMENTATIONS)}")
    source = _read(spec, cache_dir, image_size, channels, root, download, progress)
    pool, test = source.train, source.test
    if test is None:
        pool, test = split_off(pool, source.labels, TEST_FRACTION, source.classes, random_stream(0, 0, TEST_STREAM))
    if limit is not None:
        pool = keep_at_most(pool, source.labels, limit, random_stream(0, 0, LIMIT_STREAM))
        test = keep_at_most(test, source.labels, limit, random_stream(0, 1, LIMIT_STREAM))
    fraction = validation_fraction or (0.2 if len(pool) < 10_000 else 0.1)
    train, validation = split_off(pool, source.labels, fraction, source.classes, random_stream(seed, 0, SPLIT_STREAM))
    train_set, validation_set, test_set = (_take(source, part) for part in (train, validation, test))
    mean_code, scale = _grid(spec, train_set, validation_set)
    digest = hashlib.sha256(
        b"".join(len(part).to_bytes(8, "little") + part.tobytes() for part in (train, validation, test))
    )
    return DataSplits(
        train=train_set,
        validation=validation_set,
        test=test_set,
        classes=source.classes,
        mean_code=mean_code,
        scale=scale,
        augmentation=_augmentation(augmentation, source),
        split_sha256=digest.hexdigest(),
        fingerprint=source.fingerprint,
    )


def _read(
    spec: str, cache_dir: str | Path | None, image_size: int | None, channels: int | None, root: str | Path | None,
    download: bool, progress: Progress | None,
) -> Source:  # fmt: skip
    kind, _, rest = spec.partition(":")
    if spec == "digits":
        return digits()
    if kind == "synthetic":
        return synthetic(rest)
    if kind == "torchvision":
        return from_torchvision(rest, root, download)
    path = Path(spec).expanduser()
    if not path.exists():
        raise ConfigError(
            f"no data at {spec!r}: neither a file or folder nor one of digits, synthetic, torchvision:NAME"
        )
    if path.suffix == ".npz":
        return from_npz(path)
    if path.is_dir() or is_archive(path):
        return load_folder(path, cache_dir, image_size=image_size, channels=channels, progress=progress)
    raise ConfigError(f"data {path} is neither a folder, a .tar[.gz|.bz2|.xz] or .zip archive, nor an .npz file")


def _take(source: Source, positions: np.ndarray) -> ImageSet:
    return ImageSet(torch.from_numpy(source.stored[source.rows[positions]]), torch.from_numpy(source.labels[positions]))


def _grid(spec: str, *sets: ImageSet) -> tuple[int, float]:
    mean, deviation = pixel_statistics(*sets)
    if deviation == 0:
        raise ConfigError(f"data {spec!r}: every pixel has the value {mean:.0f}; nothing can be learned from it")
    return round(mean), 1 / deviation


def _augmentation(name: str, source: Source) -> Augmentation:
    if name == "none":
        return Augmentation()
    shift = max(1, source.stored.shape[2] // 8)
    return Augmentation(shift, flip=source.flips if name == "auto" else name == "shift-flip")
