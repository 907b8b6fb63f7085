"""The files of an image folder or archive: listing, reading from the stream, decoding.

Legend: C channels, H height, W width.
"""

from __future__ import annotations

import io
import lzma
import os
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ddq_search.errors import ConfigError

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".txz", ".zip")
IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
SPLITS = ("train", "test")
LARGEST_FILE_BYTES = 64 * 2**20
"""An image file larger than this is refused rather than read into memory."""

Wanted = Callable[[Path, str], bool]

_GREY_MODES = frozenset({"1", "L", "LA"})
_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
_LAYOUT = "expected train/<class>/<image> and optionally test/<class>/<image>"


@dataclass(frozen=True)
class Member:
    """One file or folder: its name inside the source, its bytes (None for a folder), how many files there are."""

    name: str
    content: bytes | None
    total: int | None


def is_archive(path: Path) -> bool:
    """Returns whether the file's name ends like an archive that can be read."""
    return path.name.lower().endswith(ARCHIVES)


def list_folder(path: Path) -> list[Path]:
    """Returns all files and folders below a folder, sorted, hidden ones left out."""
    found: list[Path] = []
    for folder, folders, files in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found.extend(Path(folder, name) for name in (*folders, *files))
    return sorted(found)


def _placed(path: Path, name: str) -> bool:
    return locate(path, name, False) is not None


def read_members(path: Path, wanted: Wanted = _placed) -> Iterator[Member]:
    """Yields the members of a folder or archive, in stored order.

    Args:
        path: the folder or archive.
        wanted: which files are read, by the path of the source and their name inside; by default those that `locate`
            places.

    Raises:
        ConfigError: the archive is damaged, or a file cannot be read.
    """
    try:
        if path.is_dir():
            yield from _from_folder(path, wanted)
        elif path.suffix.lower() == ".zip":
            yield from _from_zip(path, wanted)
        else:
            yield from _from_tar(path, wanted)
    except (OSError, EOFError, RuntimeError, NotImplementedError, tarfile.TarError, zipfile.BadZipFile,
            lzma.LZMAError, zlib.error) as error:  # fmt: skip
        reason = str(error) or type(error).__name__
        raise ConfigError(f"{path} cannot be read ({reason}); if it is damaged, copy or download it again") from error


def locate(path: Path, name: str, is_folder: bool) -> tuple[str, str, str] | None:
    """Returns (split, class, file) of a member, or None when it is to be ignored.

    Raises:
        ConfigError: a file is not where images belong, or is no image.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    parts = parts[1:] if parts[:1] == (".",) else parts
    if any(part.startswith(".") for part in parts) or "__MACOSX" in parts or parts[-1:] == ("Thumbs.db",):
        return None
    split_at = next((i for i, part in enumerate(parts[:2]) if part in SPLITS), None)
    is_image = not is_folder and PurePosixPath(name).suffix.lower() in IMAGES
    if split_at is None:
        if is_image:
            raise ConfigError(f"{path}: {name} is not below train or test; {_LAYOUT}")
        return None
    below = parts[split_at + 1 :]
    if is_folder:
        return (parts[split_at], below[0], "") if len(below) == 1 else None
    if len(below) < 2:
        raise ConfigError(f"{path}: {name} is not in a class folder; {_LAYOUT}")
    if not is_image:
        raise ConfigError(f"{path}: {name} is not an image ({', '.join(sorted(IMAGES))}); remove it")
    return parts[split_at], below[0], "/".join(below[1:])


def decode(path: Path, name: str, content: bytes, image_size: int | None, channels: int | None) -> NDArray[np.uint8]:
    """Returns an image as uint8 ``[C, H, W]``, scaled and cropped to a square when ``image_size`` is given.

    ``channels`` converts to grey (1) or colour (3); with None the image keeps what it has.

    Raises:
        ConfigError: the bytes are no image, or have more than 8 bits per channel.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(content))
            mode = image.mode
            if mode in _GREY_MODES | _COLOUR_MODES:
                image = image.convert("L" if (channels or (1 if mode in _GREY_MODES else 3)) == 1 else "RGB")
    except UnidentifiedImageError as error:
        raise ConfigError(f"{path}: {name} is not an image of a known format; replace or remove it") from error
    except (OSError, ValueError, SyntaxError, EOFError, KeyError, TypeError, zlib.error, MemoryError,
            Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # fmt: skip
        raise ConfigError(f"{path}: {name} is damaged ({error}); replace or remove it") from error
    if mode not in _GREY_MODES | _COLOUR_MODES:
        raise ConfigError(f"{path}: {name} has pixels of type {mode!r}; convert it to 8 bits per channel")
    if image_size is not None and image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _from_folder(path: Path, wanted: Wanted) -> Iterator[Member]:
    found = list_folder(path)
    for file in found:
        name = file.relative_to(path).as_posix()
        if file.is_dir():
            yield Member(name, None, len(found))
        elif wanted(path, name):
            _within_limit(path, name, file.stat().st_size)
            yield Member(name, file.read_bytes(), len(found))


def _from_zip(path: Path, wanted: Wanted) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            if member.is_dir():
                yield Member(member.filename, None, len(members))
            elif wanted(path, member.filename):
                _within_limit(path, member.filename, member.file_size)
                yield Member(member.filename, archive.read(member), len(members))


def _from_tar(path: Path, wanted: Wanted) -> Iterator[Member]:
    _refuse_cut_off_tar(path)
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if member.isdir():
                yield Member(member.name, None, None)
            elif wanted(path, member.name):
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is None:
                    raise ConfigError(f"{path}: {member.name} is a link or device; pack the files themselves")
                _within_limit(path, member.name, member.size)
                yield Member(member.name, stream.read(), None)


def _refuse_cut_off_tar(path: Path) -> None:
    """Only its last block tells an uncompressed archive that was cut off between members from a complete one."""
    with path.open("rb") as file:
        is_plain = file.read(262)[257:] == b"ustar"
        if is_plain:
            file.seek(-512, os.SEEK_END)
            if any(file.read(512)):
                raise ConfigError(f"{path} ends early; copy or download it again")


def _within_limit(path: Path, name: str, size: int) -> None:
    if size > LARGEST_FILE_BYTES:
        raise ConfigError(f"{path}: {name} has {size / 2**20:.0f} MiB; images of up to 64 MiB are read")
