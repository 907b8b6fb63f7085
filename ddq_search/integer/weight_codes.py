"""The sign of a normalisation goes into the weight codes: a multiplier is never negative.

A channel with γ < 0 stores the negatives of its weights; a channel that does not depend on its input stores zeros.
With a codebook this asks for the negatives of the levels that those channels use, and for a zero. Where the codebook
has neither a zero nor room for one, such a channel stores its smallest level with either sign in turn, and its bias
and multiplier drown it (`drowned`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ddq_search.discrete import LayerNumbers, Point
from ddq_search.errors import ExportError
from ddq_search.integer.program import INT32_MAX

Signs = NDArray[np.int8]
"""``[rows]``: 1, −1, or 0 for a channel without weights."""


def signed_values(codes: NDArray[np.integer], signs: Signs) -> NDArray[np.int8]:
    """Returns uniform codes times the signs of their channels."""
    return np.asarray(codes * _per_row(signs, codes.ndim), np.int8)


def signed_points(points: tuple[Point, ...], signs: Signs) -> tuple[Point, ...]:
    """Returns the points with the signs of the channels in their codes."""
    return tuple(Point(signed_values(point.codes, signs), point.bits, point.ratio) for point in points)


def signed_indices(name: str, layer: LayerNumbers, signs: Signs) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Returns indices and codebook of a layer's non-uniform weights times the signs of their channels.

    Levels that signs ask for take the places of levels that nothing uses; the other levels stay where they are.
    Channels of sign 0 point at 0 or, where there is no place for it, at the smallest levels in turn.

    Raises:
        ExportError: the codebook has too few places for the negatives; the message names the layer.
    """
    assert layer.codebook is not None
    live = signs != 0
    levels = layer.codebook.astype(np.int32)[layer.codes] * _per_row(signs, layer.codes.ndim)
    needed = np.unique(levels[live])
    codebook = None if live.all() else _with_room(layer.codebook, np.union1d(needed, [0]))
    codebook = _with_room(layer.codebook, needed) if codebook is None else codebook
    if codebook is None:
        raise ExportError(
            f"layer {name!r}: the signs of its batch normalisation ask for {needed.size} levels, a codebook of "
            f"{layer.bits} bits holds {layer.codebook.size}; use levels that are symmetric about zero"
        )
    levels[~live] = _smallest(codebook, levels[~live].shape[1:])
    place = {int(level): index for index, level in reversed(list(enumerate(codebook)))}
    indices = np.array([place[int(level)] for level in levels.ravel()], np.uint8)
    return indices.reshape(layer.codes.shape), codebook


def drowned(level: int, products: int, limit: int) -> tuple[int, float]:
    """Returns bias and multiplier that give a channel one output code whatever its input.

    The multiplier is ``max(|level|, 1)`` over the largest power of two that leaves room for the products: exact, and
    the bias is that power. The result is constant while twice the products, times the multiplier, stay below 1; beyond,
    an input moves it by that many half codes at most.

    Args:
        level: the code, less the zero point.
        products: largest magnitude of the sum of the channel's products.
        limit: largest magnitude of its accumulator.

    >>> drowned(-3, 5000, 2**31 - 1)
    (-1073741824, 2.7939677238464355e-09)
    """
    power: int = 2 ** (max(min(limit - products, INT32_MAX), 1).bit_length() - 1)
    return (power if level > 0 else -power if level < 0 else 0), max(abs(level), 1) / power


def _with_room(codebook: NDArray[np.int8], needed: NDArray[np.int32]) -> NDArray[np.int8] | None:
    """Returns the codebook with every level that is needed, or None where it has too few places."""
    missing = np.setdiff1d(needed, codebook)
    first = np.isin(np.arange(codebook.size), np.unique(codebook, return_index=True)[1])
    free = np.flatnonzero(~(np.isin(codebook, needed) & first))
    if missing.size > free.size:
        return None
    found = codebook.copy()
    found[free[: missing.size]] = missing
    return found


def _smallest(codebook: NDArray[np.int8], shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Returns weights of one channel on the level nearest to 0, and on its negative in turn where there is one."""
    level = int(codebook[np.abs(codebook.astype(np.int32)).argmin()])
    other = -level if -level in codebook else level
    turns = np.arange(math.prod(shape)) % 2
    return np.where(turns == 0, level, other).astype(np.int32).reshape(shape)


def _per_row(signs: Signs, rank: int) -> NDArray[np.int32]:
    return signs.astype(np.int32).reshape(-1, *[1] * (rank - 1))
