"""Hypervolume of a front in two dimensions, exactly, against a stated reference point.

Both axes are brought to 0 … 1 first: quality is 1 − (loss − best) / (worst − best), cost is cost / worst cost. The
hypervolume is then the share of the unit square that the front dominates: 0 is nothing, 1 is the best loss for free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Reference:
    """The corners that losses and costs are normalised with; fronts compare only under the same one.

    Attributes:
        best_loss: loss that counts as quality 1.
        worst_loss: loss that counts as quality 0; worse points add nothing.
        worst_cost: cost that counts as 1 (seconds or bytes); dearer points add nothing.
    """

    best_loss: float
    worst_loss: float
    worst_cost: float

    @classmethod
    def around(cls, losses: Sequence[float] | pd.Series, costs: Sequence[float] | pd.Series) -> Reference:
        """Returns the reference spanned by pooled points: smallest and largest loss, largest cost."""
        return cls(float(min(losses)), float(max(losses)), float(max(costs)))


def hypervolume(losses: Sequence[float] | pd.Series, costs: Sequence[float] | pd.Series, reference: Reference) -> float:
    """Returns the dominated share of the unit square by an exact sweep over costs.

    >>> hypervolume([0.0, 1.0], [10.0, 5.0], Reference(best_loss=0.0, worst_loss=2.0, worst_cost=10.0))
    0.25
    >>> hypervolume([], [], Reference(0.0, 1.0, 1.0))
    0.0
    """
    span = reference.worst_loss - reference.best_loss
    pairs = sorted(
        (cost / reference.worst_cost, min(1.0, 1 - (loss - reference.best_loss) / span) if span > 0 else 1.0)
        for loss, cost in zip(losses, costs, strict=True)
        if loss <= reference.worst_loss and cost <= reference.worst_cost
    )
    area, quality, left = 0.0, 0.0, 0.0
    for cost, better in pairs:
        if better > quality:
            area += quality * (cost - left)
            quality, left = better, cost
    return area + quality * (1.0 - left)
