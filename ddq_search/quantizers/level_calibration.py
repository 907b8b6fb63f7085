"""Where levels start: scales of least squared error, and the level vector that suits a sample (Lloyd's iteration).

Sources: Lloyd, "Least squares quantization in PCM", IEEE Trans. Inf. Theory 28, 1982 (the iteration); Panter and Dite,
"Quantization distortion in pulse-count modulation with nonuniform spacing of levels", Proc. IRE 39, 1951 (its start).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddq_search.quantizers.merging import look_up, nearest

_FRACTIONS = torch.linspace(0.025, 1.25, 50).tolist()
_ITERATIONS = 30
_BINS = 1024
_SAMPLE = 16384
"""Values, evenly chosen by rank, that levels are fitted to."""
_SMALLEST = 1e-12


def errors(rows: Tensor, levels: Tensor, scales: Tensor) -> Tensor:
    """Returns the mean squared error ``[R]`` of rows ``[R, E]`` on ``levels * scales``, scales being ``[R]``."""
    scaled = rows / scales[:, None]
    return ((look_up(levels, nearest(scaled, levels)) - scaled) * scales[:, None]).square().mean(1)


def best_scales(rows: Tensor, tables: Sequence[Tensor], largest: Tensor, *, shared: bool) -> Tensor:
    """Returns ``[T, R]`` (``[1, R]`` where shared): scales among fractions of the one that reaches the largest value.

    A shared scale minimises the product of the tables' errors, so that no table pays for another.

    Args:
        rows: ``[R, E]``.
        tables: levels of every candidate, for a scale of 1.
        largest: ``[R]``, largest magnitude of every row, > 0.
        shared: one scale for all tables.
    """
    reach = torch.stack([table.abs().max() for table in tables])
    full = largest / reach.max().expand_as(reach)[:, None] if shared else largest / reach[:, None]
    best, least = full.clone(), torch.full_like(full, torch.inf)
    for fraction in _FRACTIONS:
        scales = full * fraction
        found = torch.stack([errors(rows, table, scale) for table, scale in zip(tables, scales, strict=True)])
        if shared:
            found = found.clamp_min(1e-30).log().sum(0, keepdim=True).expand_as(found)
        better = found < least
        best, least = torch.where(better, scales, best), torch.where(better, found, least)
    return best[:1] if shared else best


def lloyd_levels(sample: Tensor, count: int) -> Tensor:
    """Returns ``count`` ascending levels of (locally) least squared error for a sample of values ``[E]``."""
    ordered = sample.cpu().sort().values  # sums in float64, which not every device has
    ordered = ordered[:: -(-ordered.numel() // _SAMPLE)]
    levels = _dense_levels(ordered, count)
    for _ in range(_ITERATIONS):
        owner = nearest(ordered, levels).long()
        members = torch.bincount(owner, minlength=count)
        sums = torch.bincount(owner, ordered.double(), minlength=count)
        levels = torch.where(members > 0, (sums / members.clamp_min(1)).to(levels.dtype), levels).sort().values
    return levels.to(sample)


def _dense_levels(ordered: Tensor, count: int) -> Tensor:
    """Levels as dense as the cube root of the density of values, which is best for many levels (Panter and Dite)."""
    low, high = ordered[0], ordered[-1]
    bins = ((ordered - low) / (high - low).clamp_min(_SMALLEST) * _BINS).long().clamp(0, _BINS - 1)
    mass = torch.bincount(bins, minlength=_BINS).double().pow(1 / 3).cumsum(0)
    places = (torch.arange(count, device=ordered.device) + 0.5) / count * mass[-1]
    return low + (high - low) * (torch.searchsorted(mass, places) + 0.5).to(ordered.dtype) / _BINS
