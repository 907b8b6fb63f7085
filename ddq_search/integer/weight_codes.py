"""The sign of a normalisation goes into the weight codes: a multiplier is never negative.

A channel with γ < 0 stores the negatives of its weights; a channel that does not depend on its input stores zeros.
With a codebook this asks for the negatives of the levels that those channels use, and for a zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddq_search.discrete import LayerNumbers, Point
from ddq_search.errors import ExportError

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

    Raises:
        ExportError: the codebook has too few places; the message names the layer.
    """
    assert layer.codebook is not None
    codebook = layer.codebook.copy()
    levels = codebook.astype(np.int32)[layer.codes] * _per_row(signs, layer.codes.ndim)
    needed = np.unique(levels)
    missing = np.setdiff1d(needed, codebook)
    first = np.isin(np.arange(codebook.size), np.unique(codebook, return_index=True)[1])
    free = np.flatnonzero(~(np.isin(codebook, needed) & first))
    if missing.size > free.size:
        raise ExportError(
            f"layer {name!r}: the signs of its batch normalisation ask for {needed.size} levels, a codebook of "
            f"{layer.bits} bits holds {codebook.size}; use levels that are symmetric about zero and contain it"
        )
    codebook[free[: missing.size]] = missing
    place = {int(level): index for index, level in reversed(list(enumerate(codebook)))}
    indices = np.array([place[int(level)] for level in levels.ravel()], np.uint8)
    return indices.reshape(layer.codes.shape), codebook


def _per_row(signs: Signs, rank: int) -> NDArray[np.int32]:
    return signs.astype(np.int32).reshape(-1, *[1] * (rank - 1))
