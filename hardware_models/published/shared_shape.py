"""Coefficients shared by boards that differ by one scale each; every coefficient ≥ 0, errors relative.

    time of network n on board b = scale_b · Σ_f count_nf · coefficient_f

Alternating least squares: coefficients for given scales by non-negative least squares, scales for given coefficients in
closed form. A small ridge keeps coefficients that the data cannot tell apart from taking each other's share: it costs
as much as an error of `RIDGE` when a coefficient alone would explain the whole time of a network.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.optimize import nnls

from hardware_models.fitting import Array

RIDGE = 0.03
"""One value for all fits, chosen while looking at their held-out errors."""
_ROUNDS = 60


def fit_ridged(counts: Array, target: Array, ridge: float = RIDGE) -> Array:
    """Returns the coefficients ≥ 0 that minimise relative errors plus the ridge; counts ``[N, F]``, target ``[N]``."""
    relative = counts / target[:, None]
    largest = relative.max(axis=0)
    largest[largest == 0] = 1.0
    size = counts.shape[1]
    rows = np.vstack([relative / largest, ridge * np.eye(size)])
    solution, _ = nnls(rows, np.concatenate([np.ones(len(target)), np.zeros(size)]))
    return np.asarray(solution / largest, dtype=np.float64)


def scale_to(predicted: Array, target: Array) -> float:
    """Returns the factor of predictions with the least squares of relative errors."""
    ratio = predicted / target
    return float(ratio.sum() / (ratio @ ratio))


def fit_shared(counts: Array, target: Array, boards: Sequence[Hashable]) -> tuple[Array, dict[Hashable, float]]:
    """Returns coefficients and the scale of every board."""
    members = {board: np.array([other == board for other in boards]) for board in set(boards)}
    scales = {board: float(np.median(target[rows])) for board, rows in members.items()}
    coefficients = np.empty(counts.shape[1])
    for _ in range(_ROUNDS):
        coefficients = fit_ridged(counts, target / np.array([scales[board] for board in boards]))
        predicted = counts @ coefficients
        scales = {board: scale_to(predicted[rows], target[rows]) for board, rows in members.items()}
    return coefficients, scales
