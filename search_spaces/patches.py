"""Pairs of patches for super-resolution, cut out of photographs once.

A pair is a patch of a photograph (high resolution) and the means of its r x r blocks, rounded half up (low
resolution). Every photograph is cut into columns of patches; whole columns belong to a split, so no pixel is in two
splits. Training patches overlap each other by half, others do not overlap.

Legend: N patches, C channels, H height, W width (high resolution), r factor.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray

from ddq_search.errors import ConfigError
from search_spaces.data import TEST_FRACTION, SplitName
from search_spaces.images import LIMIT_STREAM, SPLIT_STREAM, fingerprint_of, random_stream
from search_spaces.members import IMAGES, decode, is_archive, read_members

PATCH = 48
"""Pixels on each side of a high-resolution patch."""
FACTORS = (2, 3)

Photograph = NDArray[np.uint8]
"""``[C, H, W]``."""
Place = tuple[int, int, int]
"""Which photograph, first row, first column."""

_SPEC = re.compile(r"(sample-images|patches)(?::(\d+)(?=:|$))?(?::(.+))?", re.DOTALL)


@dataclass(frozen=True)
class PatchSet:
    """Pairs of patches.

    Attributes:
        low: uint8 ``[N, C, H/r, W/r]``.
        high: uint8 ``[N, C, H, W]``.
    """

    low: torch.Tensor
    high: torch.Tensor

    def __len__(self) -> int:
        return len(self.low)


@dataclass(frozen=True)
class PatchSplits:
    """Three sets of pairs.

    Attributes:
        train: pairs for gradient steps.
        validation: pairs that choices rest on.
        test: pairs for the final figure only.
        factor: r.
        split_sha256: hash of which place went where.
        fingerprint: hash of the photographs.
    """

    train: PatchSet
    validation: PatchSet
    test: PatchSet
    factor: int
    split_sha256: str
    fingerprint: str

    def split(self, name: SplitName) -> PatchSet:
        """Returns a split by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


def is_patches(spec: str) -> bool:
    """Whether a data specification asks for super-resolution.

    >>> is_patches("sample-images"), is_patches("patches:3:photos"), is_patches("digits")
    (True, True, False)
    """
    return spec.partition(":")[0] in ("sample-images", "patches")


def absolute(spec: str) -> str:
    """Returns a data specification that means the same in any working directory."""
    factor, path = _parsed(spec)
    return spec if path is None else f"patches:{factor}:{path.resolve()}"


def load_patches(spec: str, seed: int, validation_fraction: float = 0.2, limit: int | None = None) -> PatchSplits:
    """Returns the splits of a data source; the same arguments always give the same splits.

    Args:
        spec: ``sample-images`` (the two photographs that scikit-learn ships) or ``patches:PATH`` (a folder or archive
            of photographs, however nested), with the factor where it is not 2: ``sample-images:3``, ``patches:3:PATH``.
        seed: decides which columns are for validation. The test columns do not depend on it.
        validation_fraction: part of a photograph's columns outside of the test columns.
        limit: keep at most this many training patches.

    Raises:
        ConfigError: the specification is not understood, or the photographs are missing, damaged or too small.
    """
    factor, path = _parsed(spec)
    photographs = dict(_sample_images() if path is None else _photographs(path))
    if not photographs:
        raise ConfigError(f"{path} holds no images ({', '.join(sorted(IMAGES))})")
    places: dict[SplitName, list[Place]] = {"train": [], "validation": [], "test": []}
    rng = random_stream(seed, 0, SPLIT_STREAM)
    for number, (name, photograph) in enumerate(photographs.items()):
        _, height, width = photograph.shape
        if height < PATCH or width < 3 * PATCH:
            raise ConfigError(f"{name} has {width}x{height} pixels; at least {3 * PATCH}x{PATCH} are needed")
        for split, first, last in split_columns(width // PATCH, validation_fraction, rng):
            step = PATCH // 2 if split == "train" else PATCH
            rows = range(0, height - PATCH + 1, step)
            columns = range(first * PATCH, (last - 1) * PATCH + 1, step)
            places[split] += [(number, row, column) for row in rows for column in columns]
    if limit is not None and len(places["train"]) > limit:
        kept = random_stream(0, 0, LIMIT_STREAM).permutation(len(places["train"]))[:limit]
        places["train"] = [places["train"][index] for index in sorted(kept.tolist())]
    images = list(photographs.values())
    train, validation, test = (_cut(images, places[split], factor) for split in places)
    digest = hashlib.sha256(repr((factor, places)).encode()).hexdigest()
    return PatchSplits(train, validation, test, factor, digest, fingerprint_of(*images))


def split_columns(
    columns: int, validation_fraction: float, rng: np.random.Generator
) -> list[tuple[SplitName, int, int]]:
    """Returns (split, first column, column after the last) of runs that cover all columns; at least one per split.

    The test split is the middle, where photographs have their subject; the validation split is a run of the columns
    beside it, drawn from ``rng``.

    >>> split_columns(10, 0.25, np.random.default_rng(0))
    [('train', 0, 4), ('test', 4, 6), ('train', 6, 7), ('validation', 7, 9), ('train', 9, 10)]
    """
    tested = max(1, round(TEST_FRACTION * columns))
    middle = (columns - tested) // 2
    beside = [column for column in range(columns) if not middle <= column < middle + tested]
    length = min(max(1, round(validation_fraction * len(beside))), len(beside) - 1)
    start = int(rng.integers(0, len(beside) - length + 1))
    split_of: dict[int, SplitName] = dict.fromkeys(range(columns), "test")
    split_of |= dict.fromkeys(beside, "train")
    split_of |= dict.fromkeys(beside[start : start + length], "validation")
    runs: list[tuple[SplitName, int, int]] = []
    for split, members in itertools.groupby(range(columns), split_of.__getitem__):
        found = list(members)
        runs.append((split, found[0], found[-1] + 1))
    return runs


def shrink(images: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Returns the means of ``factor x factor`` blocks, rounded half up: uint8 ``[..., H, W]`` → ``[..., H/r, W/r]``.

    >>> shrink(np.array([[1, 2, 0, 0], [3, 4, 0, 1]], np.uint8), 2)
    array([[3, 0]], dtype=uint8)
    """
    *outer, height, width = images.shape
    blocks = images.reshape(*outer, height // factor, factor, width // factor, factor)
    sums = blocks.sum(axis=(-3, -1), dtype=np.int64)
    return np.asarray((2 * sums + factor**2) // (2 * factor**2), np.uint8)


def _parsed(spec: str) -> tuple[int, Path | None]:
    found = _SPEC.fullmatch(spec)
    kind, factor, path = found.groups() if found else ("", "", "")
    if not found or (kind == "patches") != bool(path) or int(factor or 2) not in FACTORS:
        raise ConfigError(
            f"data {spec!r} is not understood; write sample-images[:FACTOR] or patches[:FACTOR]:PATH, the factor being "
            f"{' or '.join(map(str, FACTORS))}"
        )
    return int(factor or 2), Path(path).expanduser() if path else None


def _sample_images() -> Iterator[tuple[str, Photograph]]:
    from sklearn.datasets import load_sample_images

    bunch = load_sample_images()
    for name, image in zip(bunch.filenames, bunch.images, strict=True):
        yield Path(name).name, np.ascontiguousarray(image.transpose(2, 0, 1))


def _photographs(path: Path) -> Iterator[tuple[str, Photograph]]:
    """Yields the images of a folder or archive in the order of their names, all as colourful as the first."""
    if not (path.is_dir() or (path.is_file() and is_archive(path))):
        raise ConfigError(f"no folder and no .tar[.gz|.bz2|.xz] or .zip archive of images at {path}")
    found = {member.name: member.content for member in read_members(path, _is_photograph)}
    channels = None
    for name, content in sorted(found.items()):
        if content is not None:
            photograph = decode(path, name, content, None, channels)
            channels = photograph.shape[0]
            yield f"{path}: {name}", photograph


def _is_photograph(path: Path, name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") and part != "." for part in parts) or "__MACOSX" in parts
    return not hidden and PurePosixPath(name).suffix.lower() in IMAGES


def _cut(photographs: Sequence[Photograph], places: Sequence[Place], factor: int) -> PatchSet:
    patches = [photographs[i][:, row : row + PATCH, column : column + PATCH] for i, row, column in places]
    high = np.stack(patches)
    return PatchSet(torch.from_numpy(shrink(high, factor)), torch.from_numpy(high))
