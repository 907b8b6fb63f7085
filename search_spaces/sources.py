"""Data that is already arrays: embedded digits, synthetic images, torchvision data sets, ``.npz`` files."""

from __future__ import annotations

import difflib
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddq_search.errors import ConfigError
from search_spaces.folders import cache_folder
from search_spaces.images import Source, fingerprint_of, random_stream

_TORCHVISION = {"CIFAR10": True, "CIFAR100": True, "MNIST": False, "FashionMNIST": True, "KMNIST": False}
"""torchvision data sets of fixed image size with a train/test split → whether mirroring keeps the class."""

_SYNTHETIC_PER_CLASS = 64


def digits() -> Source:
    """Returns scikit-learn's handwritten digits: 1797 images of 1x8x8, 0 … 16 scaled to 0 … 255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return _source(images, bunch.target.astype(np.int64), None, tuple("0123456789"), flips=False)


def synthetic(shape: str) -> Source:
    """Returns noisy images whose class shows in a coarse pattern; ``shape`` is ``CxHxWxK``, by default 3x16x16x10."""
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)x(\d+)", shape or "3x16x16x10")
    if not match or min(sizes := [int(n) for n in match.groups()]) < 1:
        raise ConfigError(f"synthetic:{shape} is not understood; write synthetic:CxHxWxK, e.g. synthetic:3x32x32x10")
    channels, height, width, classes = sizes
    rng = random_stream(0, 0, stream=200)
    coarse = rng.integers(48, 208, size=(classes, channels, -(-height // 4), -(-width // 4)))
    patterns = coarse.repeat(4, axis=2).repeat(4, axis=3)[:, :, :height, :width]
    labels = np.arange(classes * _SYNTHETIC_PER_CLASS, dtype=np.int64) % classes
    noise = rng.normal(0, 40, size=(len(labels), channels, height, width))
    images = np.clip(np.rint(patterns[labels] + noise), 0, 255).astype(np.uint8)
    return _source(images, labels, None, tuple(str(label) for label in range(classes)), flips=False)


def from_torchvision(name: str, root: str | Path | None, download: bool) -> Source:
    """Returns a data set of torchvision that lies under ``root`` (by default in our cache folder).

    Raises:
        ConfigError: the name is unknown, or the files are missing or damaged.
    """
    from torchvision import datasets

    if name not in _TORCHVISION:
        close = difflib.get_close_matches(name, _TORCHVISION, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"torchvision data set {name!r} is not supported{hint}; known: {', '.join(_TORCHVISION)}")
    folder = Path(root).expanduser() if root is not None else cache_folder(None) / "torchvision"
    make = getattr(datasets, name)
    try:
        parts = [make(str(folder), train=train, download=download) for train in (True, False)]
    except Exception as error:
        remedy = "check the network" if download else "allow the download, or name the folder that has it as root"
        raise ConfigError(f"torchvision {name} is not available under {folder} ({error}); {remedy}") from error
    images = np.concatenate([_channels_first(name, np.asarray(part.data)) for part in parts])
    labels = np.concatenate([np.asarray(part.targets, dtype=np.int64) for part in parts])
    return _source(images, labels, len(parts[0]), tuple(parts[0].classes), flips=_TORCHVISION[name])


def from_npz(path: Path) -> Source:
    """Returns the arrays ``x_train, y_train`` (and ``x_test, y_test``), or ``images, labels``, of an ``.npz`` file.

    Images are uint8 ``[N, H, W]``, ``[N, C, H, W]`` or ``[N, H, W, C]``; labels are integers from 0 (``[N]`` or
    ``[N, 1]``). An optional array of strings ``classes`` names the classes.

    Raises:
        ConfigError: the file is broken, or its arrays are not as described.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays: dict[str, NDArray[Any]] = {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(f"data {path} is not a readable .npz file of plain arrays: {error}") from error
    pairs = [(x, y) for x, y in (("x_train", "y_train"), ("images", "labels")) if x in arrays and y in arrays]
    if not pairs:
        raise ConfigError(
            f"data {path} holds {sorted(arrays)}; expected x_train, y_train (x_test, y_test), or images, labels"
        )
    names = pairs[:1] + [("x_test", "y_test")] * ("x_test" in arrays and "y_test" in arrays)
    images = [_channels_first(f"{path}: {x}", arrays[x]) for x, _ in names]
    labels = [_labels(f"{path}: {y}", arrays[y], len(part)) for (_, y), part in zip(names, images, strict=True)]
    if len(images) == 2 and images[0].shape[1:] != images[1].shape[1:]:
        raise ConfigError(f"data {path}: train and test images differ in shape: {images[0].shape}, {images[1].shape}")
    count = int(max(part.max(initial=0) for part in labels)) + 1
    classes = tuple(str(name) for name in arrays.get("classes", np.arange(count)))
    if len(classes) < count:
        raise ConfigError(f"data {path}: labels go up to {count - 1}, but only {len(classes)} classes are named")
    test_start = len(labels[0]) if len(images) == 2 else None
    return _source(np.concatenate(images), np.concatenate(labels), test_start, classes, flips=True)


def _source(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    test_start: int | None,
    classes: tuple[str, ...],
    *,
    flips: bool,
) -> Source:
    positions = np.arange(len(labels), dtype=np.int64)
    train, test = (positions, None) if test_start is None else (positions[:test_start], positions[test_start:])
    return Source(images, positions, labels, train, test, classes, flips, fingerprint_of(images, labels))


def _channels_first(what: str, images: NDArray[Any]) -> NDArray[np.uint8]:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape:
        raise ConfigError(
            f"{what} is {images.dtype} {images.shape}; expected uint8 pixels (0 … 255) as [N, H, W], [N, C, H, W] or "
            "[N, H, W, C]"
        )
    if images.ndim == 3:
        return images[:, None]
    if images.shape[1] in (1, 3):
        return images
    if images.shape[3] in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    raise ConfigError(f"{what} has shape {images.shape}; images need 1 or 3 channels")


def _labels(what: str, labels: NDArray[Any], count: int) -> NDArray[np.int64]:
    flat = labels.reshape(-1)
    if flat.dtype.kind not in "iu" or len(flat) != count or flat.min(initial=0) < 0:
        raise ConfigError(f"{what} is {labels.dtype} {labels.shape}; expected {count} integer labels from 0")
    return flat.astype(np.int64)
