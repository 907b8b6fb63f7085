"""Non-negative least squares on relative errors: short layers count as much as long ones.

Legend: N samples, T terms; ``counts`` are ``[N, T]``, ``target`` ``[N]``, coefficients ``[T]``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]


def fit_relative(counts: Array, target: Array) -> Array:
    """Returns the coefficients ≥ 0 that minimise ``Σ ((counts @ c) / target - 1)²``."""
    relative = counts / target[:, None]
    largest = np.abs(relative).max(axis=0)
    largest[largest == 0] = 1.0  # a term that no sample has: its coefficient stays 0
    solution, _ = nnls(relative / largest, np.ones(len(target)))
    return np.asarray(solution / largest, dtype=np.float64)


def leave_one_out(counts: Array, target: Array) -> Array:
    """Returns ``[N]`` relative errors, each sample predicted by a fit to the others."""
    errors = np.empty(len(target))
    for index in range(len(target)):
        others = np.arange(len(target)) != index
        errors[index] = counts[index] @ fit_relative(counts[others], target[others]) / target[index] - 1
    return errors
