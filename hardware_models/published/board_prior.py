"""Coefficients of many boards as draws from one distribution: what a board's few figures leave open, others fill in.

The logarithms of a board's coefficients are normal around a mean that depends on what is known of the board (family of
cores, number of threads); mean and covariance come from the other boards by expectation maximisation with Laplace's
approximation. A board's own coefficients are the most probable ones given its figures, be they six or one. All are
positive by construction.

Legend: B boards, N figures of a board at most, F coefficients, Q covariates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hardware_models.fitting import Array

NOISE = 0.07
"""Relative error expected of the form itself. This and the following are one choice for
all boards and splits, made while looking at their held-out errors."""
FREEDOM = 8.0
"""Boards' worth of belief in `SPREAD`."""
SPREAD = 0.05
"""Variance of a log coefficient between boards of one kind, believed beforehand."""
EVIDENCE = 20.0
"""A board is taken for one of another family where its figures are so many times likelier there."""
_ROUNDS, _STEPS, _HALVINGS = 10, 12, 10


@dataclass(frozen=True)
class BoardFigures:
    """Figures of B boards, padded to N each.

    Attributes:
        counts: ``[B, N, F]``.
        log_times: logarithms of milliseconds, ``[B, N]``.
        known: whether there is such a figure, ``[B, N]``.
        covariates: ``[B, Q]``; the first is 1.
    """

    counts: Array
    log_times: Array
    known: NDArray[np.bool_]
    covariates: Array

    def only(self, rows: NDArray[np.bool_]) -> BoardFigures:
        """Returns some of the boards."""
        return BoardFigures(self.counts[rows], self.log_times[rows], self.known[rows], self.covariates[rows])


def board_figures(boards: Sequence[tuple[Array, Array, Array]]) -> BoardFigures:
    """Returns the figures of boards given as counts ``[n, F]``, milliseconds ``[n]`` and covariates ``[Q]``."""
    most, features = max(len(times) for _, times, _ in boards), boards[0][0].shape[1]
    counts = np.ones((len(boards), most, features))
    log_times, known = np.zeros((len(boards), most)), np.zeros((len(boards), most), dtype=bool)
    for index, (own, times, _) in enumerate(boards):
        counts[index, : len(times)] = own
        log_times[index, : len(times)] = np.log(times)
        known[index, : len(times)] = True
    return BoardFigures(counts, log_times, known, np.array([covariates for _, _, covariates in boards]))


@dataclass(frozen=True)
class BoardPrior:
    """Distribution of log coefficients: ``effects [Q, F]``, ``covariance [F, F]``."""

    effects: Array
    covariance: Array

    def coefficients(self, boards: BoardFigures, alternatives: Sequence[Array] = ()) -> Array:
        """Returns the most probable coefficients ``[B, F]`` of boards given their figures.

        ``alternatives``: covariates ``[B, Q]`` of other families, which `EVIDENCE` can speak for: a runtime built
        without the core's instructions behaves like an older core.
        """
        best, merit = self._under(boards)
        for covariates in alternatives:
            found, other = self._under(replace(boards, covariates=covariates))
            better = other > merit + np.log(EVIDENCE)
            best, merit = np.where(better[:, None], found, best), np.where(better, other - np.log(EVIDENCE), merit)
        return np.exp(best)

    def _under(self, boards: BoardFigures) -> tuple[Array, Array]:
        """Log coefficients, and the logarithm of the figures' likelihood up to a constant."""
        mean, precision = boards.covariates @ self.effects, _inverse(self.covariance)
        log, uncertain = _most_probable(boards, mean, precision, mean)
        return log, (np.linalg.slogdet(uncertain)[1] - _misfit(boards, log, mean, precision)) / 2


def fit_prior(boards: BoardFigures) -> BoardPrior:
    """Returns the distribution that boards were drawn from."""
    covariates, size = boards.covariates, boards.counts.shape[2]
    effects = np.zeros((covariates.shape[1], size))
    effects[0] = _start(boards)
    covariance = 0.5 * np.eye(size)
    shrinkage = np.eye(covariates.shape[1])
    shrinkage[0, 0] = 1e-6  # the mean itself is not shrunk
    logs = covariates @ effects
    for _ in range(_ROUNDS):
        logs, uncertain = _most_probable(boards, covariates @ effects, _inverse(covariance), logs)
        effects = _inverse(covariates.T @ covariates + shrinkage) @ covariates.T @ logs
        deviation = logs - covariates @ effects
        believed = FREEDOM * SPREAD * np.eye(size)
        covariance = (deviation.T @ deviation + uncertain.sum(axis=0) + believed) / (len(logs) + FREEDOM)
    return BoardPrior(effects, covariance)


def _inverse(matrices: Array) -> Array:
    return np.asarray(np.linalg.inv(matrices), dtype=np.float64)


def _start(boards: BoardFigures) -> Array:
    """Log coefficients such that none alone exceeds an equal share of a typical network's time."""
    with np.errstate(divide="ignore"):
        alone = np.exp(boards.log_times)[..., None] / boards.counts
    alone[~boards.known] = np.nan
    typical = np.nanmedian(np.nanmin(np.where(np.isinf(alone), np.nan, alone), axis=1), axis=0)
    return np.asarray(np.log(typical / boards.counts.shape[2]), dtype=np.float64)


def _misfit(boards: BoardFigures, log: Array, mean: Array, precision: Array) -> Array:
    """Twice the negative logarithm of likelihood times prior, ``[B]``."""
    predicted = np.log((boards.counts * np.exp(log)[:, None, :]).sum(axis=2))
    residual = np.where(boards.known, boards.log_times - predicted, 0.0)
    deviation = log - mean
    return np.asarray(
        (residual**2).sum(axis=1) / NOISE**2 + np.einsum("bf,fg,bg->b", deviation, precision, deviation),
        dtype=np.float64,
    )


def _most_probable(boards: BoardFigures, mean: Array, precision: Array, start: Array) -> tuple[Array, Array]:
    """Gauss-Newton with halved steps: log coefficients ``[B, F]``, and covariances ``[B, F, F]`` around them."""
    log, best = start, _misfit(boards, start, mean, precision)
    for _ in range(_STEPS):
        gradient, hessian = _slopes(boards, log, mean, precision)
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        size = np.ones(len(log))
        found = _misfit(boards, log + step, mean, precision)
        for _ in range(_HALVINGS):
            worse = found > best
            if not worse.any():
                break
            size = np.where(worse, size / 2, size)
            found = np.where(worse, _misfit(boards, log + size[:, None] * step, mean, precision), found)
        size = np.where(found > best, 0.0, size)
        log, gain, best = log + size[:, None] * step, best - np.minimum(found, best), np.minimum(found, best)
        if gain.max() < 1e-7:
            break
    return log, _inverse(_slopes(boards, log, mean, precision)[1])


def _slopes(boards: BoardFigures, log: Array, mean: Array, precision: Array) -> tuple[Array, Array]:
    """Half the negative gradient of `_misfit`, ``[B, F]``, and half of Gauss and Newton's Hessian."""
    parts = boards.counts * np.exp(log)[:, None, :]
    total = parts.sum(axis=2)
    shares = np.where(boards.known[..., None], parts / total[..., None], 0.0)
    residual = np.where(boards.known, boards.log_times - np.log(total), 0.0)
    gradient = np.einsum("bnf,bn->bf", shares, residual) / NOISE**2 - (log - mean) @ precision
    return gradient, np.einsum("bnf,bng->bfg", shares, shares) / NOISE**2 + precision
