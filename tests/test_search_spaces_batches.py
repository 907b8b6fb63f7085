"""Batches depend on (seed, epoch, index) only, and augmentation does what it says."""

from __future__ import annotations

import pytest
import torch

from ddq_search.errors import ConfigError
from search_spaces.batches import Augmentation, batches
from search_spaces.images import ImageSet

MEAN, SCALE = 100, 0.02


def _set(count: int = 50, size: int = 6) -> ImageSet:
    images = torch.randint(0, 256, (count, 2, size, size), dtype=torch.uint8)
    return ImageSet(images, torch.arange(count))


def _run(images: ImageSet, batch_size: int = 8, **options: object) -> list[tuple[torch.Tensor, torch.Tensor]]:
    settings: dict[str, object] = {
        "seed": 3, "epoch": 1, "augment": True, "mean_code": MEAN, "scale": SCALE, "shuffle": True,
        "augmentation": Augmentation(2, flip=True),
    }  # fmt: skip
    return list(batches(images, batch_size, **(settings | options)))  # type: ignore[arg-type]


def test_a_resumed_epoch_continues_with_the_same_batches() -> None:
    images = _set()
    whole = _run(images)
    assert len(whole) == 6
    torch.rand(5)
    for (x, y), (x_again, y_again) in zip(whole[4:], _run(images, start_batch=4), strict=True):
        assert torch.equal(x, x_again)
        assert torch.equal(y, y_again)


def test_an_image_is_augmented_the_same_in_whichever_batch_it_lands() -> None:
    images = _set(48)
    small = {int(label): image for x, y in _run(images, 8) for image, label in zip(x, y, strict=True)}
    large = {int(label): image for x, y in _run(images, 24) for image, label in zip(x, y, strict=True)}
    assert all(torch.equal(small[label], large[label]) for label in range(48))


def test_epochs_and_seeds_differ() -> None:
    images = _set()
    orders = [torch.cat([y for _, y in _run(images, seed=s, epoch=e)]).tolist() for s, e in ((0, 0), (0, 1), (1, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert len(set(orders[0])) == 48


def test_evaluation_sees_every_image_once_unchanged() -> None:
    images = _set()
    seen = _run(images, shuffle=False, augment=False)
    assert torch.cat([y for _, y in seen]).tolist() == list(range(50))
    x = torch.cat([x for x, _ in seen])
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, (images.images.float() - MEAN) * SCALE, rtol=0, atol=0)


def test_shift_and_flip_against_a_plain_loop() -> None:
    images = _set(40)
    seen: set[tuple[int, int, bool]] = set()
    for x, y in _run(images, 40):
        for image, label in zip(x, y, strict=True):
            padded = torch.full((2, 10, 10), float(MEAN))
            padded[:, 2:8, 2:8] = images.images[label].float()
            matches = [
                (dy, dx, flip)
                for dy in range(5)
                for dx in range(5)
                for flip in (False, True)
                if torch.equal(image, (_window(padded, dy, dx, flip) - MEAN) * SCALE)
            ]
            assert len(matches) == 1
            seen.add(matches[0])
    assert {flip for _, _, flip in seen} == {False, True}
    assert {dy for dy, _, _ in seen} == {dx for _, dx, _ in seen} == set(range(5))


def _window(padded: torch.Tensor, dy: int, dx: int, flip: bool) -> torch.Tensor:
    window = padded[:, dy : dy + 6, dx : dx + 6]
    return window.flip(2) if flip else window


def test_padding_is_the_mean_which_the_network_sees_as_zero() -> None:
    white = ImageSet(torch.full((64, 1, 4, 4), 255, dtype=torch.uint8), torch.arange(64))
    values = torch.cat([x for x, _ in _run(white, 64)]).unique()
    assert values.tolist() == [0.0, pytest.approx((255 - MEAN) * SCALE)]


def test_no_flip_and_no_shift() -> None:
    images = _set(16)
    for x, y in _run(images, 16, augmentation=Augmentation()):
        torch.testing.assert_close(x, (images.images[y].float() - MEAN) * SCALE, rtol=0, atol=0)


@pytest.mark.parametrize("size", [0, 51])
def test_an_impossible_batch_size_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="batch size"):
        _run(_set(), size)
