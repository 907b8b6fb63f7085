"""Batches for training and evaluation, the same however training was interrupted.

All randomness is counter-based: the order of an epoch and the augmentation of an image depend on (seed, epoch,
index of the image) only. Legend: B images in a batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ddq_search.errors import ConfigError
from search_spaces.images import ImageSet, random_stream

ORDER_STREAM, AUGMENT_STREAM = 0, 1


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied.

    Attributes:
        shift: images move by up to this many pixels in each direction; what comes in has the mean colour.
        flip: whether half of the images are mirrored.
    """

    shift: int = 0
    flip: bool = False


def normalise(images: torch.Tensor, mean_code: int, scale: float) -> torch.Tensor:
    """Returns what the network sees of uint8 images: ``(u - mean_code) * scale`` in float32, same shape.

    The raw pixels are therefore the codes of the deployed network's input (grid: scale, zero point mean_code).
    """
    return images.float().sub_(mean_code).mul_(scale)


def batch_count(images: int, batch_size: int, *, drop_last: bool) -> int:
    """Returns the number of batches of an epoch.

    Raises:
        ConfigError: there would be none.
    """
    if batch_size < 1 or images < (batch_size if drop_last else 1):
        raise ConfigError(f"a batch size of {batch_size} does not suit {images} images; it must be in 1 … {images}")
    return images // batch_size if drop_last else -(-images // batch_size)


def batches(
    image_set: ImageSet,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    augment: bool,
    mean_code: int,
    scale: float,
    shuffle: bool,
    augmentation: Augmentation = Augmentation(shift=4, flip=True),
    start_batch: int = 0,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields (float32 ``[B, C, H, W]``, int64 ``[B]``).

    With ``shuffle`` (training) every batch is full: an incomplete last one is dropped. Without it every image comes
    once, in order. ``start_batch`` skips batches without computing them.

    Raises:
        ConfigError: the batch size is not positive, or larger than the set while shuffling.
    """
    total = len(image_set)
    count = batch_count(total, batch_size, drop_last=shuffle)
    home = image_set.images.device
    order = torch.arange(total)
    if shuffle:
        order = torch.from_numpy(random_stream(seed, epoch, ORDER_STREAM).permutation(total))
    order = order.to(home)
    moves = _moves(total, augmentation, seed, epoch).to(device) if augment else None
    for batch in range(start_batch, count):
        chosen = order[batch * batch_size : (batch + 1) * batch_size]
        images = image_set.images[chosen].to(device)
        if moves is not None:
            images = _move(images, moves[chosen.to(moves.device)], augmentation.shift, mean_code)
        yield normalise(images, mean_code, scale), image_set.labels[chosen].to(device)


def _moves(total: int, augmentation: Augmentation, seed: int, epoch: int) -> torch.Tensor:
    """Returns (rows down, columns right, flipped) of every image: int64 ``[N, 3]``; drawn for a whole epoch at once."""
    rng = random_stream(seed, epoch, AUGMENT_STREAM)
    shifts = torch.from_numpy(rng.integers(0, 2 * augmentation.shift + 1, size=(total, 2)))
    flips = torch.from_numpy(rng.integers(0, 2, size=(total, 1)))
    return torch.cat([shifts, flips if augmentation.flip else torch.zeros_like(flips)], dim=1)


def _move(images: torch.Tensor, moves: torch.Tensor, shift: int, fill: int) -> torch.Tensor:
    """Returns the images shifted and mirrored as told, uint8 ``[B, C, H, W]``: one gather per batch."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (shift,) * 4, value=fill)
    rows = moves[:, 0, None] + torch.arange(height, device=images.device)
    across = torch.arange(width, device=images.device)
    across = torch.where(moves[:, 2, None] == 1, width - 1 - across, across)
    columns = moves[:, 1, None] + across
    places = rows[:, :, None] * (width + 2 * shift) + columns[:, None, :]
    places = places.reshape(count, 1, height * width).expand(-1, channels, -1)
    return padded.reshape(count, channels, -1).gather(2, places).reshape(images.shape)
