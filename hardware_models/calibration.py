"""Fits a profile to measured times: one scale from few measurements, finer corrections from more.

Corrections are factors of the base's coefficients. Three levels of freedom:

* ``scale``: one factor of everything;
* ``kernels``: beside it a factor per kernel, of memory, of operations without weights, of calls and packing;
* ``terms``: beside those a factor per term of kernels measured often enough, and per kind of operation.

Each level is a bounded least-squares fit of relative errors, shrunk towards the level before: departing from it by 30 %
costs as much as missing one measurement by 10 %. Cross-validation chooses the level; the stated error is leave-one-out
*including* that choice, and measurements that a cost model cannot tell apart are left out together.

Legend: N measurements, C coefficients, G groups of coefficients that share a factor, P pieces of times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from ddq_search.errors import CostError
from ddq_search.layer_shape import LayerShape
from hardware_models.executions import Measurement
from hardware_models.fitting import Array
from hardware_models.profile import DeviceProfile
from hardware_models.time_parts import Anatomy, Coefficient

Level = Literal["scale", "kernels", "terms"]
LEVELS: tuple[Level, ...] = ("scale", "kernels", "terms")
DISTINCT_NEEDED = {"scale": 1, "kernels": 4, "terms": 12}
"""Level → distinct measurements from which on it is considered."""
PER_TERM = 2
"""Distinct layers per term that a kernel needs for factors of its terms."""
DEPARTURE_WEIGHT = 1 / 3
"""Weight of a relative departure from the level before, beside that of a relative error of one measurement."""
LARGEST_FACTOR = 4.0
"""A level corrects the one before by at most this factor, up or down."""
GAIN_NEEDED = 0.9
"""A finer level must bring the cross-validated error below this share of the coarser one's."""
_INNER_FOLDS, _OUTER_FOLDS, _ROUNDS = 5, 40, 4


@dataclass(frozen=True)
class Residual:
    """One measurement beside what profiles predict, in seconds.

    Attributes:
        name: of the measurement.
        measured: by the user.
        base: predicted by the base profile.
        fitted: predicted by the fit to all measurements.
        held_out: predicted by a fit that left it out; ``None`` where nothing else was measured.
    """

    name: str
    measured: float
    base: float
    fitted: float
    held_out: float | None


@dataclass(frozen=True)
class Fit:
    """A fitted correction.

    Attributes:
        level: of freedom.
        scale: the factor that coefficients without evidence of their own get.
        factors: coefficient → factor of it.
        residuals: per measurement.
        distinct: measurements that a cost model can tell apart.
        error_pct: mean absolute percentage error, held out; ``None`` for a single distinct measurement.
        worst_pct: largest absolute percentage error, held out.
    """

    level: Level
    scale: float
    factors: dict[Coefficient, float]
    residuals: tuple[Residual, ...]
    distinct: int
    error_pct: float | None
    worst_pct: float | None


def fit(base: DeviceProfile, measurements: Sequence[Measurement]) -> Fit:
    """Fits corrections of a profile's coefficients to measurements.

    Raises:
        CostError: there are no measurements, a time is not positive, or a layer has no price on the base.
    """
    if not measurements:
        raise CostError("no measurements to calibrate with")
    for measurement in measurements:
        if not measurement.seconds > 0:
            raise CostError(f"{measurement.name!r}: measured times must be positive, got {measurement.seconds:g} s")
    design = _Design(base, measurements)
    everything = np.arange(len(measurements))
    level = _choose(design, everything)
    factors, scale = design.solve(level, everything)
    held_out = _held_out(design)
    rows = zip(
        measurements, design.predict(np.ones(len(factors))), design.predict(factors), held_out, strict=True
    )  # fmt: skip
    residuals = tuple(
        Residual(m.name, m.seconds, float(before), float(after), None if np.isnan(left) else float(left))
        for m, before, after, left in rows
    )
    errors = 100 * np.abs(held_out / design.target - 1)
    known = not bool(np.isnan(errors).any())
    return Fit(
        level, scale, dict(zip(design.coefficients, factors.tolist(), strict=True)), residuals,
        int(design.likeness.max()) + 1, float(errors.mean()) if known else None, float(errors.max()) if known else None,
    )  # fmt: skip


class _Design:
    """The equations: how much of every measured time comes from which coefficient."""

    def __init__(self, base: DeviceProfile, measurements: Sequence[Measurement]) -> None:
        anatomy = Anatomy(base)
        pieces = [
            (number, piece)
            for number, measurement in enumerate(measurements)
            for execution in measurement.executions
            for piece in anatomy.pieces(execution)
        ]
        self.coefficients = sorted({c for _, piece in pieces for c in (*piece.compute, *piece.memory)})
        column = {coefficient: index for index, coefficient in enumerate(self.coefficients)}
        self.compute = np.zeros((len(pieces), len(column)))  # [P, C]
        self.memory = np.zeros_like(self.compute)
        for row, (_, piece) in enumerate(pieces):
            for table, parts in ((self.compute, piece.compute), (self.memory, piece.memory)):
                for coefficient, seconds in parts.items():
                    table[row, column[coefficient]] = seconds
        self.owner = np.array([number for number, _ in pieces])
        self.adds = base.engine.combine == "sum"
        self.target = np.array([measurement.seconds for measurement in measurements])
        numbers: dict[tuple[object, ...], int] = {}
        self.likeness = np.array([numbers.setdefault(m.likeness, len(numbers)) for m in measurements])
        if not self.matrix(np.ones(len(column))).any(axis=1).all():
            silent = measurements[int(np.argmin(self.matrix(np.ones(len(column))).any(axis=1)))]
            raise CostError(f"{silent.name!r}: the base profile predicts no time at all, so nothing can be scaled")
        self.terms_of = {index: len(kernel.terms) for index, kernel in enumerate(base.engine.kernels)}
        self.layers_of = _layers_per_kernel(anatomy, measurements)

    def matrix(self, factors: Array) -> Array:
        """Returns ``[N, C]`` seconds of all measurements by coefficient, on the sides that these factors make count."""
        if self.adds:
            rows = self.compute + self.memory
        else:
            rows = np.where(((self.compute - self.memory) @ factors >= 0)[:, None], self.compute, self.memory)
        table = np.zeros((len(self.target), len(self.coefficients)))
        np.add.at(table, self.owner, rows)
        return table

    def predict(self, factors: Array) -> Array:
        """Returns ``[N]`` seconds."""
        return np.asarray(self.matrix(factors) @ factors, dtype=np.float64)

    def solve(self, level: Level, samples: NDArray[np.int64]) -> tuple[Array, float]:
        """Returns ``[C]`` factors fitted to some measurements, and their scale."""
        target = self.target[samples]
        ratios = self.predict(np.ones(len(self.coefficients)))[samples] / target
        scale = float(ratios.sum() / (ratios**2).sum())
        factors = np.full(len(self.coefficients), scale)
        for finer in LEVELS[1 : LEVELS.index(level) + 1]:
            groups = self._groups(finer)
            start = factors
            for _ in range(_ROUNDS):
                shares = self.matrix(factors)[samples] * start @ groups / target[:, None]  # [n, G]
                rows = np.vstack([shares, DEPARTURE_WEIGHT * np.eye(groups.shape[1])])
                wanted = np.append(np.ones(len(samples)), np.full(groups.shape[1], DEPARTURE_WEIGHT))
                correction = lsq_linear(rows, wanted, bounds=(1 / LARGEST_FACTOR, LARGEST_FACTOR)).x
                factors, before = start * (groups @ correction), factors
                if self.adds or np.allclose(factors, before, rtol=1e-6):
                    break
        return factors, scale

    def _groups(self, level: Level) -> Array:
        """``[C, G]`` one where a coefficient shares a group's factor."""
        keys = [self._group(coefficient, level) for coefficient in self.coefficients]
        names = sorted(set(keys))
        return np.array([[float(key == name) for name in names] for key in keys])

    def _group(self, coefficient: Coefficient, level: Level) -> tuple[str, int, str]:
        place, index, name = coefficient
        if level == "terms":
            free = place != "kernel" or self.layers_of.get(index, 0) >= PER_TERM * self.terms_of[index]
            return (place, index, name) if free else (place, index, "")
        if place == "kernel":
            return (place, index, "")
        return ("memory" if place.endswith("memory") else "operation" if place == "operation" else "overhead", 0, "")


def _layers_per_kernel(anatomy: Anatomy, measurements: Sequence[Measurement]) -> dict[int, int]:
    """Kernel's number → distinct layers measured by themselves on it."""
    found: dict[int, set[tuple[object, ...]]] = {}
    for measurement in measurements:
        execution = measurement.executions[0]
        if len(measurement.executions) == 1 and isinstance(execution.work, LayerShape):
            for piece in anatomy.pieces(execution):
                for coefficient in piece.compute:
                    if coefficient.place == "kernel":
                        found.setdefault(coefficient.number, set()).add(execution.likeness)
    return {index: len(layers) for index, layers in found.items()}


def _choose(design: _Design, samples: NDArray[np.int64]) -> Level:
    """The coarsest level that no finer one clearly beats in cross-validation over some measurements."""
    distinct = len(set(design.likeness[samples].tolist()))
    chosen, error = LEVELS[0], np.inf
    for level in LEVELS:
        if distinct < max(DISTINCT_NEEDED[level], 2):
            break
        found = np.abs(_cross_validated(design, level, samples, _INNER_FOLDS) / design.target[samples] - 1).mean()
        if found < GAIN_NEEDED * error:
            chosen, error = level, found
    return chosen


def _cross_validated(design: _Design, level: Level, samples: NDArray[np.int64], folds: int) -> Array:
    """``[n]`` predicted seconds, each from a fit without the sample's fold."""
    result = np.empty(len(samples))
    fold_of = _folds(design.likeness[samples], folds)
    for fold in range(fold_of.max() + 1):
        factors, _ = design.solve(level, samples[fold_of != fold])
        result[fold_of == fold] = design.predict(factors)[samples[fold_of == fold]]
    return result


def _held_out(design: _Design) -> Array:
    """``[N]`` predicted seconds, level chosen and factors fitted without the sample; NaN for one distinct sample."""
    everything = np.arange(len(design.target))
    result = np.full(len(everything), np.nan)
    fold_of = _folds(design.likeness, _OUTER_FOLDS)
    if fold_of.max() == 0:
        return result
    for fold in range(fold_of.max() + 1):
        others = everything[fold_of != fold]
        factors, _ = design.solve(_choose(design, others), others)
        result[fold_of == fold] = design.predict(factors)[fold_of == fold]
    return result


def _folds(likeness: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Fold of every sample, as even as possible; alike samples share one. As many folds as distinct samples at most."""
    _, number = np.unique(likeness, return_inverse=True)
    return np.asarray(number % count, dtype=np.int64)
