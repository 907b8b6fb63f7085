"""Networks of `tests.networks` with non-uniform and multipoint weights, and with 16-bit activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ddq_search.discrete import DiscreteNetwork, LayerNumbers, Point
from ddq_search.graph import operations
from ddq_search.precision import ActivationGrid, weight_code_range


def with_codebooks(network: DiscreteNetwork, bits: Callable[[str], int]) -> DiscreteNetwork:
    """Returns the network with 8-bit weights replaced by k-means levels, symmetric about zero, one entry unused.

    Args:
        network: weights at 8 bits.
        bits: weight variable → bits of the codebook.
    """
    chosen = {variable: bits(variable) for variable in network.policy if variable.startswith("weights/")}
    layers = {}
    for op in operations(network.graph):
        if op.name in network.layers:
            layer, width = network.layers[op.name], chosen[f"weights/{op.module}"]
            codebook = symmetric_levels(layer.codes, width)
            layers[op.name] = replace(
                layer, codes=nearest(layer.codes, codebook[:-1]), bits=width, codebook=codebook.astype(np.int8)
            )
    return replace(network, layers=layers, policy={**network.policy, **chosen})


def symmetric_levels(values: NDArray[np.int32], bits: int) -> NDArray[np.int32]:
    """Returns ``[2^bits]`` levels: 0, ± the k-means centres of the magnitudes, and last an entry that nothing uses."""
    magnitudes, count = np.abs(values).ravel().astype(float), 2 ** (bits - 1) - 1
    centres = np.quantile(magnitudes, (np.arange(count) + 1) / (count + 0.5))
    for _ in range(8):
        owner = np.abs(magnitudes[:, None] - centres).argmin(1)
        centres = np.array([magnitudes[owner == i].mean() if (owner == i).any() else centres[i] for i in range(count)])
    positive = np.maximum(np.rint(centres), 1).astype(np.int32)
    return np.array([*-positive[::-1], 0, *positive, 127], np.int32)


def nearest(values: NDArray[np.int32], levels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Returns the index of the nearest level of every value."""
    return np.abs(values[..., None] - levels).argmin(-1).astype(np.int32)


def with_points(network: DiscreteNetwork, base_bits: int = 4, point_bits: int = 2, points: int = 2) -> DiscreteNetwork:
    """Returns the network with 8-bit weights taken apart greedily, coarsest point first, ratios per channel."""
    layers = {name: taken_apart(layer, base_bits, point_bits, points) for name, layer in network.layers.items()}
    policy = {v: base_bits if v.startswith("weights/") else b for v, b in network.policy.items()}
    return replace(network, layers=layers, policy=policy)


def taken_apart(layer: LayerNumbers, base_bits: int, point_bits: int, points: int) -> LayerNumbers:
    """Returns a layer of base codes and further points that stand for nearly the same weights."""
    rest, found = layer.codes.astype(np.int64), []
    column = (-1, *[1] * (rest.ndim - 1))
    for _ in range(points):
        largest = np.abs(rest).reshape(len(rest), -1).max(1)
        ratio = np.maximum(largest * 2 // (2 * weight_code_range(point_bits)[1] + 1), 1).astype(np.int16)
        codes = np.clip(np.rint(rest / ratio.reshape(column)), *weight_code_range(point_bits)).astype(np.int8)
        found.append(Point(codes, point_bits, ratio))
        rest = rest - codes * ratio.reshape(column).astype(np.int64)
    base = np.clip(rest, *weight_code_range(base_bits)).astype(np.int32)
    return replace(layer, codes=base, bits=base_bits, points=tuple(found))


def with_wide_activations(network: DiscreteNetwork) -> DiscreteNetwork:
    """Returns the network with every tensor on a symmetric grid of 16 bits that covers the range of its old one."""
    grids = {}
    for name, grid in network.grids.items():
        reach = max(grid.zero_point, 2**grid.bits - 1 - grid.zero_point) * grid.scale
        grids[name] = ActivationGrid(reach / (2**15 - 1), 2**15, 16)
    policy = {v: 16 if v.startswith("activations/") else b for v, b in network.policy.items()}
    return replace(network, grids=grids, policy=policy)
