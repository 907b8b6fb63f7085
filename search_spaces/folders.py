"""Image folders and packed archives of them, decoded once into a cache.

Layout: ``train/<class>/<image>`` and optionally ``test/<class>/<image>``, at the top or inside one folder. Archives
are decoded from the stream; none of their members is ever written to disk. Hidden files are ignored, and so are
files that lie beside ``train`` and ``test``; anything else that is not an image is an error.

The cache holds one folder per source (key: path, sizes, modification times, requested size and channels) with the
pixels as raw uint8 and an index; it is written under another name and renamed when complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddq_search.errors import ConfigError
from search_spaces.images import Source
from search_spaces.members import decode, is_archive, list_folder, locate, read_members

__all__ = ["Progress", "cache_folder", "is_archive", "load_folder"]

Progress = Callable[[int, int | None], None]
"""Called with (images decoded so far, total or None when unknown)."""

_FORMAT = 2
_ABANDONED_S = 6 * 3600
"""An unfinished cache folder older than this belongs to a process that was killed."""


def cache_folder(cache_dir: str | Path | None) -> Path:
    """Returns the cache folder: the argument, else ``DDQ_SEARCH_CACHE``, else ``~/.cache/ddq-search``."""
    chosen = cache_dir or os.environ.get("DDQ_SEARCH_CACHE") or Path("~/.cache/ddq-search")
    return Path(chosen).expanduser()


def load_folder(
    path: Path,
    cache_dir: str | Path | None,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    progress: Progress | None = None,
) -> Source:
    """Returns the images of a folder or archive, decoding them when the cache does not have them.

    Raises:
        ConfigError: see the module docstring; the message names the file and what to do about it.
    """
    if channels not in (None, 1, 3) or (image_size is not None and image_size < 1):
        raise ConfigError(f"channels must be 1 or 3 and image_size positive, got {channels} and {image_size}")
    cache = cache_folder(cache_dir)
    entry = cache / _key(path, image_size, channels)
    source = _open(entry)
    if source is None:
        _build(path, cache, entry, image_size, channels, progress)
        source = _open(entry)
    if source is None:
        raise ConfigError(f"the cache folder {entry} cannot be read back; remove it and try again")
    return source


def _key(path: Path, image_size: int | None, channels: int | None) -> str:
    digest = hashlib.sha256(f"{_FORMAT}|{path.resolve()}|{image_size}|{channels}".encode())
    files = list_folder(path) if path.is_dir() else [path]
    for file in files:
        facts = file.stat()
        digest.update(f"|{file}|{facts.st_size}|{facts.st_mtime_ns}".encode())
    return f"images-{digest.hexdigest()[:24]}"


def _open(entry: Path) -> Source | None:
    """Returns the cached source, or None when there is none or it is damaged."""
    try:
        facts: dict[str, Any] = json.loads((entry / "facts.json").read_text(encoding="utf-8"))
        with np.load(entry / "index.npz", allow_pickle=False) as index:
            rows, labels, train, test = (index[name] for name in ("rows", "labels", "train", "test"))
        shape = tuple(facts["shape"])
        images = np.memmap(entry / "pixels.u8", dtype=np.uint8, mode="r", shape=shape)
        if images.nbytes != (entry / "pixels.u8").stat().st_size or len(labels) != shape[0]:
            return None
    except (OSError, ValueError, KeyError, EOFError, TypeError):
        return None
    classes = tuple(str(name) for name in facts["classes"])
    return Source(images, rows, labels, train, test if len(test) else None, classes, True, str(facts["fingerprint"]))


def _build(
    path: Path, cache: Path, entry: Path, image_size: int | None, channels: int | None, progress: Progress | None
) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for stale in cache.glob("images-*.partial-*"):
            if time.time() - stale.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(stale, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{entry.name}.partial-", dir=cache))
    except OSError as error:
        raise ConfigError(
            f"cannot write the data cache {cache} ({error}); set DDQ_SEARCH_CACHE to another folder"
        ) from error
    try:
        _decode_all(path, partial, image_size, channels, progress)
        if entry.exists() and _open(entry) is None:
            shutil.rmtree(entry)
        if not entry.exists():
            partial.rename(entry)
    except OSError as error:
        raise ConfigError(
            f"cannot write the data cache {cache} ({error}); set DDQ_SEARCH_CACHE to another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unwritable(cache: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write the data cache {cache} ({error}); set DDQ_SEARCH_CACHE to another folder")


def _decode_all(
    path: Path, partial: Path, image_size: int | None, channels: int | None, progress: Progress | None
) -> None:
    names: list[tuple[str, str, str]] = []  # (split, class, file)
    empty: set[tuple[str, str]] = set()
    shape: tuple[int, ...] | None = None
    digests: list[bytes] = []
    with (partial / "pixels.u8").open("wb") as pixels:
        for member in read_members(path):
            place = locate(path, member.name, member.content is None)
            if place is None:
                continue
            if member.content is None:
                empty.add(place[:2])
                continue
            image = decode(path, member.name, member.content, image_size, channels)
            if shape is not None and image.shape[0] < shape[0]:
                image = np.repeat(image, 3, axis=0)
            if shape is not None and image.shape[0] > shape[0]:
                raise ConfigError(
                    f"{path}: {member.name} is in colour, the images before it are grey; set channels to 1 or 3"
                )
            if shape is not None and image.shape != shape:
                raise ConfigError(
                    f"{path}: {member.name} is {image.shape[2]}x{image.shape[1]} pixels, the images before it are "
                    f"{shape[2]}x{shape[1]}; set image_size to bring all to one size"
                )
            shape = image.shape
            pixels.write(image.tobytes())
            digests.append(hashlib.blake2b(image.data, digest_size=16).digest())
            names.append(place)
            if progress is not None and len(names) % 500 == 0:
                progress(len(names), member.total)
    if shape is None:
        raise ConfigError(f"{path} holds no images; expected train/<class>/<image> and optionally test/<class>/<image>")
    classes = _classes(path, {place[:2] for place in names}, empty)
    rows = sorted(range(len(names)), key=names.__getitem__)
    labels = np.array([classes.index(names[row][1]) for row in rows], dtype=np.int64)
    is_test = np.array([names[row][0] == "test" for row in rows])
    fingerprint = hashlib.blake2b(repr([(names[row], digests[row]) for row in rows]).encode(), digest_size=16)
    np.savez(
        partial / "index.npz",
        rows=np.array(rows, dtype=np.int64),
        labels=labels,
        train=np.flatnonzero(~is_test),
        test=np.flatnonzero(is_test),
    )
    facts = {
        "path": str(path),
        "shape": [len(names), *shape],
        "classes": classes,
        "fingerprint": fingerprint.hexdigest(),
    }
    (partial / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    if progress is not None:
        progress(len(names), len(names))


def _classes(path: Path, filled: set[tuple[str, str]], folders: set[tuple[str, str]]) -> list[str]:
    """Returns the class names in label order; the arguments are pairs (split, class)."""
    for split, name in sorted(folders - filled):
        raise ConfigError(f"{path}: {split}/{name} holds no images; add some or remove the folder")
    classes = sorted({name for split, name in filled if split == "train"})
    strange = sorted({name for split, name in filled if split == "test"} - set(classes))
    if not classes:
        raise ConfigError(f"{path} has no train/<class>/ folder; expected train/<class>/<image>")
    if strange:
        raise ConfigError(f"{path}: class {strange[0]!r} is under test but not under train")
    if len(classes) < 2:
        raise ConfigError(f"{path} has one class, {classes[0]!r}; at least two are needed")
    return classes
