"""What a policy makes of a trained supernet: codes, scales and folded normalisation, and nothing else.

This is the border between training and deployment. Everything behind it (evaluation mode, integer program,
exporters) starts from these numbers, so nothing is quantized twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddq_search.graph import ModelGraph
from ddq_search.precision import ActivationGrid, weight_code_range

LARGEST_LEVEL = 127
"""Largest magnitude of a codebook's levels: narrow int8, as the widest uniform weights."""
LARGEST_RATIO = 2**15 - 1
"""Largest magnitude of a point's ratio."""


@dataclass(frozen=True, eq=False)
class Point:
    """One further point of multipoint weights: adds ``ratio * codes`` to the integer weights.

    The base codes are the finest point, whose ratio is 1; a further point is coarser by a whole number per channel.

    Attributes:
        codes: shape of the weights, within `weight_code_range(bits)`.
        bits: precision of the codes.
        ratio: ``[rows]`` int16 within ±`LARGEST_RATIO`; 0 leaves the point out of a channel.
    """

    codes: NDArray[np.int8]
    bits: int
    ratio: NDArray[np.int16]


@dataclass(frozen=True)
class LayerNumbers:
    """One weighted layer: ``real output = gain * scale * input_scale * accumulator + offset``, per output channel.

    Attributes:
        codes: weight codes, shape of the module's weight, within `weight_code_range(bits)`; with a codebook, indices
            ``0 … 2^bits - 1``.
        bits: precision of the codes.
        scale: ``[rows]`` float64, > 0; the real weight is ``integer weight * scale`` (`integer_weights`).
        gain: ``[rows]`` float64, γ/σ of the fused batch norm (may be negative or 0); 1 without one.
        offset: ``[rows]`` float64, bias after normalisation: ``β + (bias − mean) * gain``.
        codebook: ``[2^bits]`` int8 levels of non-uniform weights, one table for all channels; None: codes are values.
        points: further points of multipoint weights, never beside a codebook.
    """

    codes: NDArray[np.int32]
    bits: int
    scale: NDArray[np.float64]
    gain: NDArray[np.float64]
    offset: NDArray[np.float64]
    codebook: NDArray[np.int8] | None = None
    points: tuple[Point, ...] = ()

    def __post_init__(self) -> None:
        rows = (self.codes.shape[0],)
        problem = weight_problem(self.codes, self.bits, self.codebook, self.points)
        if problem:
            raise ValueError(problem)
        if not self.scale.shape == self.gain.shape == self.offset.shape == rows:
            raise ValueError("scale, gain and offset need one entry per output channel")
        if not (np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError("scales must be positive and finite")


@dataclass(frozen=True)
class DiscreteNetwork:
    """A network whose every weight and activation has its grid.

    Attributes:
        graph: the model graph.
        policy: variable name (`ddq_search.space`) → bitwidth.
        layers: weighted operation → its numbers.
        grids: operation → grid of its output tensor; tied tensors have equal grids.
    """

    graph: ModelGraph
    policy: Mapping[str, int]
    layers: Mapping[str, LayerNumbers]
    grids: Mapping[str, ActivationGrid]


def integer_weights(
    codes: NDArray[np.integer], codebook: NDArray[np.int8] | None, points: tuple[Point, ...]
) -> NDArray[np.int32]:
    """Returns the integers that a layer's codes stand for, in the shape of the codes.

    >>> integer_weights(np.array([[0, 3]]), np.array([-90, -7, 7, 90], np.int8), ()).tolist()
    [[-90, 90]]
    >>> coarse = Point(np.array([[1, 0]], np.int8), 2, np.array([20], np.int16))
    >>> integer_weights(np.array([[-3, 2]]), None, (coarse,)).tolist()
    [[17, 2]]
    """
    if codebook is not None:
        return np.asarray(codebook.astype(np.int32)[codes])
    total: NDArray[np.int32] = codes.astype(np.int32)
    for point in points:
        total = total + point.codes * _per_row(point.ratio.astype(np.int32), codes.ndim)
    return total


def weight_reach(
    codes: NDArray[np.integer], codebook: NDArray[np.int8] | None, points: tuple[Point, ...]
) -> NDArray[np.int64]:
    """Returns ``[rows]`` Σ|weight|, multipoint weights taken point by point: no order of summation exceeds it."""
    base = integer_weights(codes, codebook, ()).astype(np.int64)
    total = np.abs(base).reshape(len(codes), -1).sum(1)
    for point in points:
        sums = np.abs(point.codes.astype(np.int64)).reshape(len(codes), -1).sum(1)
        total = total + sums * np.abs(point.ratio.astype(np.int64))
    return np.asarray(total)


def weight_problem(
    codes: NDArray[np.integer], bits: int, codebook: NDArray[np.int8] | None, points: tuple[Point, ...]
) -> str:
    """Returns what is wrong with a layer's weights, or nothing."""
    low, high = weight_code_range(bits)
    if codebook is not None:
        if points:
            return "weights have either a codebook or further points"
        if codebook.dtype != np.int8 or codebook.shape != (2**bits,):
            return f"a codebook of {bits} bits has {2**bits} int8 levels"
        if codebook.min() < -LARGEST_LEVEL:
            return f"codebook levels leave ±{LARGEST_LEVEL}"
        low, high = 0, 2**bits - 1
    if codes.min() < low or codes.max() > high:
        return f"weight codes exceed {bits} bits"
    for point in points:
        low, high = weight_code_range(point.bits)
        if point.codes.shape != codes.shape or point.ratio.shape != codes.shape[:1]:
            return "a point needs one code per weight and one ratio per output channel"
        if point.codes.dtype != np.int8 or point.codes.min() < low or point.codes.max() > high:
            return f"codes of a point exceed {point.bits} bits"
        if point.ratio.dtype != np.int16 or point.ratio.min() < -LARGEST_RATIO:
            return f"ratios of a point leave ±{LARGEST_RATIO} (int16); choose a coarser base or a finer point"
    return ""


def _per_row(values: NDArray[np.int32], rank: int) -> NDArray[np.int32]:
    return values.reshape(-1, *[1] * (rank - 1))
