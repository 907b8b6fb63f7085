"""Pareto fronts of small sets of points; every objective is minimised."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def non_dominated(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Returns which rows of ``[N, objectives]`` no other row dominates (≤ everywhere, < somewhere).

    Of equal rows the first counts as non-dominated.

    >>> non_dominated(np.array([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0], [1.0, 2.0]])).tolist()
    [True, True, False, False]
    """
    keep = np.ones(len(points), dtype=bool)
    for i, point in enumerate(points):
        no_worse = (points <= point).all(1)
        better = (points < point).any(1)
        earlier_equal = (points == point).all(1) & (np.arange(len(points)) < i)
        keep[i] = not ((no_worse & better) | earlier_equal).any()
    return keep
