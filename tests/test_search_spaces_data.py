"""Sources, splits, folders, archives and the cache."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddq_search.errors import ConfigError
from search_spaces.batches import Augmentation
from search_spaces.data import DataSplits, load_data

Files = dict[str, bytes]


def _image(value: int, size: tuple[int, int] = (6, 5), mode: str = "RGB", kind: str = "PNG") -> bytes:
    rng = np.random.default_rng(value)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8), mode=None).save(stream, kind)
    return stream.getvalue()


def _files(per_class: int = 6, test: int = 2) -> Files:
    files: Files = {}
    for label, name in enumerate(("cat", "dog")):
        files |= {f"train/{name}/{i}.png": _image(100 * label + i) for i in range(per_class)}
        files |= {f"test/{name}/{i}.png": _image(1000 + 100 * label + i) for i in range(test)}
    return files


def _write(root: Path, files: Files) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def _tar(path: Path, files: Files, mode: str = "w:xz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            facts = tarfile.TarInfo(name)
            facts.size = len(content)
            archive.addfile(facts, io.BytesIO(content))
    return path


def _zip(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def _load(path: Path, **options: object) -> DataSplits:
    return load_data(str(path), 0, cache_dir=path.parent / "cache", **options)  # type: ignore[arg-type]


def test_digits() -> None:
    data = load_data("digits", 0)
    assert data.channels == 1
    assert data.image_size == (8, 8)
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    assert data.train.images.max() == 255
    assert data.augmentation == Augmentation(shift=1, flip=False)
    for part in (data.train, data.validation, data.test):
        counts = torch.bincount(part.labels, minlength=10)
        assert counts.max() - counts.min() <= 0.15 * counts.max()


def test_network_inputs_are_the_raw_pixels_on_the_input_grid() -> None:
    data = load_data("digits", 0)
    pixels = torch.cat([data.train.images, data.validation.images]).double()
    assert data.mean_code == round(pixels.mean().item())
    assert data.scale == pytest.approx(1 / pixels.std(correction=0).item(), rel=1e-12)
    codes = torch.round(data.example(64).double() / data.scale) + data.mean_code
    assert torch.equal(codes, data.train.images[:64].double())


def test_split_depends_on_the_seed_and_the_test_split_does_not() -> None:
    first, again, other = (load_data("synthetic", seed) for seed in (1, 1, 2))
    assert first.split_sha256 == again.split_sha256
    assert torch.equal(first.validation.images, again.validation.images)
    assert first.split_sha256 != other.split_sha256
    assert not torch.equal(first.validation.images, other.validation.images)
    assert torch.equal(first.test.images, other.test.images)
    assert (first.mean_code, first.scale) == (other.mean_code, other.scale)
    assert first.fingerprint == other.fingerprint


def test_splits_share_no_image() -> None:
    data = load_data("synthetic:1x8x8x3", 0, validation_fraction=0.25)
    rows = torch.cat([part.images.flatten(1) for part in (data.train, data.validation, data.test)])
    assert len(torch.unique(rows, dim=0)) == len(rows)


def test_limit_is_balanced() -> None:
    data = load_data("synthetic", 0, limit=40, validation_fraction=0.5)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 20, 40)
    assert torch.bincount(data.train.labels).tolist() == [2] * 10


def test_folder_tar_and_zip_give_the_same_splits_and_a_second_load_decodes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = _files()
    backwards = dict(reversed(files.items()))
    wrapped = {f"./pets/{name}": content for name, content in files.items()}
    extras = {"README.txt": b"pets", "train/cat/.DS_Store": b"x", "__MACOSX/train/cat/._0.png": b"x"}
    sources = [
        _write(tmp_path / "folder", files | extras),
        _tar(tmp_path / "a.tar.xz", backwards | extras),
        _tar(tmp_path / "b.tar", wrapped, "w"),
        _zip(tmp_path / "c.zip", files | extras),
    ]
    loaded = [_load(source) for source in sources]
    for data in loaded:
        assert data.split_sha256 == loaded[0].split_sha256
        assert data.fingerprint == loaded[0].fingerprint
        assert data.classes == ("cat", "dog")
        assert (len(data.train), len(data.validation), len(data.test)) == (10, 2, 4)
        assert data.augmentation.flip
        for part in ("train", "validation", "test"):
            assert torch.equal(getattr(data, part).labels, getattr(loaded[0], part).labels)
            assert torch.equal(getattr(data, part).images, getattr(loaded[0], part).images)
    monkeypatch.setattr("search_spaces.folders.decode", None)
    for source, data in zip(sources, loaded, strict=True):
        again = _load(source)
        assert again.fingerprint == data.fingerprint
        assert torch.equal(again.test.images, data.test.images)


def test_a_changed_folder_is_decoded_again(tmp_path: Path) -> None:
    root = _write(tmp_path / "folder", _files())
    before = _load(root)
    _write(root, {"train/cat/new.png": _image(7777)})
    assert len(_load(root).train) + len(_load(root).validation) == len(before.train) + len(before.validation) + 1


def test_a_damaged_cache_is_rebuilt(tmp_path: Path) -> None:
    root = _write(tmp_path / "folder", _files())
    before = _load(root)
    (pixels,) = (tmp_path / "cache").glob("images-*/pixels.u8")
    pixels.write_bytes(pixels.read_bytes()[:-1])
    assert torch.equal(_load(root).train.images, before.train.images)
    assert [entry.name for entry in (tmp_path / "cache").iterdir() if "partial" in entry.name] == []


def test_without_a_test_folder_some_training_images_are_set_aside(tmp_path: Path) -> None:
    data = _load(_write(tmp_path / "folder", _files(per_class=10, test=0)))
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 4)


def test_sizes_and_channels(tmp_path: Path) -> None:
    files = _files()
    mixed = _write(tmp_path / "mixed", {**files, "train/dog/big.png": _image(5, size=(20, 10))})
    with pytest.raises(ConfigError, match=r"big.png is 20x10 pixels, the images before it are 6x5; set image_size"):
        _load(mixed)
    assert _load(mixed, image_size=4).image_size == (4, 4)
    grey = _write(tmp_path / "grey", {name: _image(i, mode="L") for i, name in enumerate(files)})
    assert _load(grey).channels == 1
    assert _load(grey, channels=3).channels == 3
    assert _load(mixed, image_size=4, channels=1).channels == 1
    _write(grey, {"train/dog/colour.png": _image(6)})
    with pytest.raises(ConfigError, match=r"colour.png is in colour"):
        _load(grey)


def _sixteen_bit() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(30, dtype=np.uint16).reshape(5, 6)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f | {"train/cat/bad.png": b"nonsense"}, "train/cat/bad.png is not an image"),
        (lambda f: f | {"train/cat/cut.png": f["train/cat/0.png"][:60]}, "train/cat/cut.png is damaged"),
        (lambda f: f | {"train/cat/list.csv": b"a,b"}, "train/cat/list.csv is not an image"),
        (lambda f: f | {"train/lost.png": _image(1)}, "train/lost.png is not in a class folder"),
        (lambda f: f | {"val/cat/0.png": _image(1)}, "val/cat/0.png is not below train or test"),
        (lambda f: f | {"test/cow/0.png": _image(1)}, "class 'cow' is under test but not under train"),
        (lambda f: f | {"train/cow/0.png": _image(1)}, "class 'cow' has 1 image"),
        (lambda f: f | {"train/cat/deep.png": _sixteen_bit()}, "convert it to 8 bits"),
        (lambda f: {k: v for k, v in f.items() if "test" in k}, "no train/<class>/ folder"),
        (lambda f: {k: v for k, v in f.items() if "cat" in k}, "at least two are needed"),
        (lambda f: {"README.txt": b""}, "holds no images"),
    ],
)
def test_bad_folders_are_explained(tmp_path: Path, change: Callable[[Files], Files], said: str) -> None:
    files = change(_files())
    for source in (_write(tmp_path / "data", files), _tar(tmp_path / "data.tar", files, "w")):
        with pytest.raises(ConfigError, match=said) as caught:
            _load(source)
        assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*partial*"))


def test_an_empty_class_folder_is_an_error(tmp_path: Path) -> None:
    root = _write(tmp_path / "data", _files())
    (root / "train" / "cow").mkdir()
    with pytest.raises(ConfigError, match="train/cow holds no images"):
        _load(root)


@pytest.mark.parametrize("name", ["data.tar", "data.tar.xz", "data.zip"])
@pytest.mark.parametrize("kept", [0.0, 0.4, 0.5, 0.76])
def test_broken_archives_are_explained(tmp_path: Path, name: str, kept: float) -> None:
    path = tmp_path / name
    _zip(path, _files()) if name.endswith("zip") else _tar(path, _files(), "w:xz" if name.endswith("xz") else "w")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ConfigError, match=name):
        _load(path)


def test_links_in_an_archive_are_refused(tmp_path: Path) -> None:
    path = _tar(tmp_path / "data.tar", _files(), "w")
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("train/cat/passwd.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ConfigError, match=r"passwd.png is a link"):
        _load(path)


def test_an_unwritable_cache_is_explained(tmp_path: Path) -> None:
    root = _write(tmp_path / "data", _files())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="set DDQ_SEARCH_CACHE"):
        load_data(str(root), 0, cache_dir=tmp_path / "file" / "cache")


def test_progress_is_told(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    _load(_write(tmp_path / "data", _files()), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(16, 16)]


def test_npz(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(60) % 3
    path = tmp_path / "a.npz"
    np.savez(path, x_train=images[:48], y_train=labels[:48, None], x_test=images[48:], y_test=labels[48:])
    data = _load(path)
    assert (data.channels, data.image_size, len(data.test), data.classes) == (3, (8, 8), 12, ("0", "1", "2"))
    assert torch.equal(data.test.images, torch.from_numpy(images[48:]).permute(0, 3, 1, 2))
    for content, said in (
        ({"x": images}, "expected x_train"),
        ({"images": images / 255.0, "labels": labels}, "expected uint8"),
        ({"images": images, "labels": labels[:5]}, "expected 60 integer labels"),
        ({"images": images, "labels": np.array([object()] * 60)}, "not a readable .npz"),
        ({"images": np.zeros((60, 8, 8), np.uint8), "labels": labels}, "every pixel has the value 0"),
    ):
        np.savez(path, **content)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=said):
            _load(path)
    path.write_bytes(b"PK nonsense")
    with pytest.raises(ConfigError, match=r"not a readable .npz"):
        _load(path)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("digitz", "no data at 'digitz'"),
        ("synthetic:3x3", "synthetic:CxHxWxK"),
        ("torchvision:CIFAR1", "did you mean 'CIFAR10'"),
        ("torchvision:CIFAR10", "allow the download"),
    ],
)
def test_wrong_specifications_are_explained(tmp_path: Path, spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_data(spec, 0, root=tmp_path)
    os.utime(tmp_path)


@pytest.mark.parametrize(
    "options", [{"validation_fraction": 0.0}, {"limit": 0}, {"augmentation": "rotate"}, {"validation_fraction": 1.5}]
)
def test_wrong_options_are_explained(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        load_data("synthetic", 0, **options)  # type: ignore[arg-type]
