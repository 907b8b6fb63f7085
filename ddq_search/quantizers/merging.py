"""Merged levels: what DDQ's block matrix ``U`` makes of a level vector, without building ``U``.

With gates ``g_1 … g_b``, the open ones first, ``U/Z_U = P_1 ⊗ … ⊗ P_b`` and ``P_i = (g_i I + (1 − g_i) J)/(2 − g_i)``,
``J`` being all ones: s open gates average ``Z_U = 2^(b−s)`` neighbours. As a function of a gate,

    ∂P_i/∂g_i = (2I − J)/(2 − g_i)²        (through Z_U; rows sum to 0, so the mean level stays)
    ∂P_i/∂g_i = (I − J)/(2 − g_i)          (Z_U taken as a constant; the mean level leaks into the gate)

Source: Zhang et al., "Differentiable Dynamic Quantization with Mixed Precision and Adaptive Resolution", ICML 2021;
the closed forms are ours, checked against explicit Kronecker products.

Legend: b bits of the fine levels, ``n = 2^b``; ``q`` level vector ``[n]``, ascending; s bits after merging.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def merged(levels: Tensor, bits: int) -> Tensor:
    """Returns the ``[2^bits]`` means of neighbours: the distinct entries of ``(U/Z_U) q``.

    >>> merged(torch.tensor([0.0, 1.0, 2.0, 6.0]), 1).tolist()
    [0.5, 4.0]
    """
    return levels.reshape(2**bits, -1).mean(-1)


def rounded(levels: Tensor, low: int, high: int) -> Tensor:
    """Returns ``R(levels)``: integers within ``low … high``; the gradient passes straight through.

    >>> rounded(torch.tensor([-300.0, 1.6]), -127, 127).tolist()
    [-127.0, 2.0]
    """
    return levels.detach().round().clamp(low, high) + (levels - levels.detach())


def gate_direction(levels: Tensor, opened: int, gates: Iterable[int], *, constant_z: bool = False) -> Tensor:
    """Returns ``Σ_i ∂(U/Z_U)/∂g_i q`` over some gates, ``[n]``, at the gates' present state.

    Args:
        levels: ``q`` ``[2^b]``.
        opened: s, the number of open gates; they come first.
        gates: which gates, counted from 0.
        constant_z: take ``Z_U`` as a constant.
    """
    bits = levels.numel().bit_length() - 1
    total = torch.zeros_like(levels)
    for changed in gates:
        value = levels.reshape([2] * bits)
        for axis in range(bits):
            other, gate = value.flip(axis), int(axis < opened)
            if axis == changed:
                value = -other / (2 - gate) if constant_z else (value - other) / (2 - gate) ** 2
            elif not gate:
                value = (value + other) / 2
        total += value.reshape(-1)
    return total


def midpoints(levels: Tensor) -> Tensor:
    """Returns the ``[n − 1]`` borders between the values nearest to each of the ascending levels."""
    return (levels[1:] + levels[:-1]) / 2


def nearest(x: Tensor, levels: Tensor) -> Tensor:
    """Returns the index of the nearest of ``2^s`` levels for every value, int32, in the memory layout of ``x``.

    Half-way values take the lower level. A binary search in whole-tensor steps, some five times faster on a CPU than
    `torch.bucketize`, which searches value by value.

    >>> nearest(torch.tensor([-9.0, 0.5, 0.6, 9.0]), torch.tensor([0.0, 1.0, 3.0, 4.0])).tolist()
    [0, 0, 1, 3]
    """
    borders = midpoints(levels)
    values, last = _by_storage(x)
    flat = values.reshape(-1)
    code = torch.zeros(flat.shape, dtype=torch.int32, device=x.device)
    half = levels.numel() // 2
    while half:
        code.add_(flat > borders[half - 1 :].index_select(0, code), alpha=half)
        half //= 2
    return _as_given(code.view(values.shape), last)


def look_up(levels: Tensor, codes: Tensor) -> Tensor:
    """Returns the level of every code, in the memory layout of the codes."""
    places, last = _by_storage(codes)
    found = levels.index_select(0, places.reshape(-1).int())
    return _as_given(found.view(places.shape), last)


def _by_storage(x: Tensor) -> tuple[Tensor, bool]:
    """Returns images with their dimensions in the order of storage, and whether their channels come last."""
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return (x.permute(0, 2, 3, 1) if last else x), last


def _as_given(x: Tensor, last: bool) -> Tensor:
    return x.permute(0, 3, 1, 2) if last else x
