"""From probabilities to a policy that keeps its budgets: a mixed-integer linear program over the cost tables.

One binary per candidate of each variable; a table over several variables gets one continuous variable per entry,
tied to the binaries by its marginals, which is exact at integer points. Tables that are sums of tables over fewer
variables are taken apart first (`separated`), and a program only holds the tables of the costs it is about: its size is
what the time depends on. Solved with HiGHS through SciPy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from ddq_search.contraction import Table, merged
from ddq_search.cost import PEAK_RAM, CostTables

_SEPARABLE = 1e-12
"""Largest share of a table's largest entry by which it may differ from a sum of smaller tables."""
_TIGHTEN = (1e-7, 1e-6, 3e-6, 1e-5, 1e-4, 1e-3)
"""Share of a limit given up, attempt by attempt, when the solver's tolerance (1e-6) let a policy slip over it."""


@dataclass(frozen=True)
class _Row:
    """One linear expression over the program's columns."""

    columns: NDArray[np.int64]
    values: NDArray[np.float64]
    constant: float


class Projector:
    """Finds policies under budgets for one model on one device."""

    def __init__(self, tables: CostTables) -> None:
        self.tables = tables
        self._variables = tables.space.variables
        sizes = [len(v.candidates) for v in self._variables]
        self._first = dict(zip((v.name for v in self._variables), np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
        self._binaries = sum(sizes)
        self._joint: dict[tuple[str, ...], int] = {}
        self._columns = self._binaries
        self._marginals: dict[
            int, list[_Row]
        ] = {}  # first column of a table's entries → what ties them to the binaries
        self._rows = {cost: self._cost_rows(cost) for cost in tables.costs}

    # -- building ---------------------------------------------------------------------------------------------

    def _cost_rows(self, cost: str) -> list[_Row]:
        """One row per cost, or per step of the schedule for peak RAM."""
        steps: dict[int, list[Table]] = {}
        for factor in self.tables.factors:
            if factor.cost == cost:
                steps.setdefault(factor.step or 0, []).extend(separated(factor.variables, factor.table))
        return [self._row(merged(tables)) for tables in steps.values()]

    def _row(self, tables: Sequence[Table]) -> _Row:
        columns: list[NDArray[np.int64]] = []
        values: list[NDArray[np.float64]] = []
        constant = 0.0
        for names, table in tables:
            if not names:
                constant += float(table)
                continue
            columns.append(self._block(names) + np.arange(table.size))
            values.append(table.ravel())
        if not columns:
            return _Row(np.zeros(0, np.int64), np.zeros(0), constant)
        return _Row(np.concatenate(columns), np.concatenate(values), constant)

    def _block(self, names: tuple[str, ...]) -> int:
        """First column of a table's entries; creates them with their marginal constraints when new."""
        if len(names) == 1:
            return int(self._first[names[0]])
        if names not in self._joint:
            shape = tuple(len(self.tables.space[name].candidates) for name in names)
            start = self._joint[names] = self._columns
            self._columns += math.prod(shape)
            cells = np.arange(math.prod(shape)).reshape(shape) + start
            marginals = self._marginals[start] = []
            for axis, name in enumerate(names):
                for choice in range(shape[axis]):
                    entries = np.take(cells, choice, axis).ravel()
                    columns = np.append(entries, self._first[name] + choice)
                    marginals.append(_Row(columns, np.append(np.ones(len(entries)), -1.0), 0.0))
        return self._joint[names]

    # -- solving ----------------------------------------------------------------------------------------------

    def cheapest(self, cost: str, limits: Mapping[str, float]) -> dict[str, int] | None:
        """Returns the policy of least ``cost`` within the other limits, or None when there is none."""
        return self._solve(limits, minimise=cost)

    def nearest(self, limits: Mapping[str, float]) -> dict[str, int]:
        """Returns the policy whose largest cost relative to its limit is least: it keeps all limits where one can."""
        rows, width = self._choices(limits), self._columns + 1
        for cost, limit in limits.items():
            rows += [(_with_slack(_scaled(row, limit), width), -np.inf, 0.0) for row in self._rows[cost]]
        policy = self._run(_last(width), rows, width)
        assert policy is not None, "without limits there is always a policy"
        return policy

    def most_likely(
        self,
        log_probabilities: NDArray[np.float64],
        limits: Mapping[str, float],
        excluded: Sequence[Mapping[str, int]] = (),
    ) -> dict[str, int] | None:
        """Returns the policy of greatest summed log-probability ``[V, C]`` within the limits, or None.

        ``excluded`` policies are not returned again.
        """
        scores = np.concatenate([log_probabilities[row, : len(v.candidates)] for row, v in enumerate(self._variables)])
        return self._solve(limits, scores=scores, excluded=excluded)

    def _solve(
        self,
        limits: Mapping[str, float],
        *,
        minimise: str | None = None,
        scores: NDArray[np.float64] | None = None,
        excluded: Sequence[Mapping[str, int]] = (),
    ) -> dict[str, int] | None:
        tightened = dict(limits)
        for share in _TIGHTEN:
            policy = self._solve_once(tightened, minimise, scores, excluded)
            if policy is None:
                return None
            price = self.tables.price(policy)
            over = [cost for cost, limit in limits.items() if price[cost] > limit]
            if not over:
                return policy
            for cost in over:  # the solver's tolerance let it through: ask for a little less
                tightened[cost] = limits[cost] * (1 - share) - 2 * (price[cost] - limits[cost])
        return None

    def _solve_once(
        self,
        limits: Mapping[str, float],
        minimise: str | None,
        scores: NDArray[np.float64] | None,
        excluded: Sequence[Mapping[str, int]],
    ) -> dict[str, int] | None:
        extra = 1 if minimise == PEAK_RAM else 0
        width = self._columns + extra
        objective = np.zeros(width)
        rows = self._choices([*limits, minimise] if minimise else limits)
        for cost, limit in limits.items():
            rows += [(_scaled(row, limit), -np.inf, 1.0) for row in self._rows[cost]]
        if minimise == PEAK_RAM:
            objective = _last(width)
            size = max(np.abs(row.values).sum() + abs(row.constant) for row in self._rows[PEAK_RAM])
            rows += [(_with_slack(_scaled(row, size), width), -np.inf, 0.0) for row in self._rows[PEAK_RAM]]
        elif minimise is not None:
            (row,) = self._rows[minimise]
            np.add.at(objective, row.columns, row.values / max(np.abs(row.values).max(initial=0.0), 1e-300))
        if scores is not None:
            objective[: self._binaries] = -scores
        for policy in excluded:
            columns = np.array([self._first[v.name] + v.candidates.index(policy[v.name]) for v in self._variables])
            rows.append((_Row(columns, np.ones(len(columns)), 0.0), -np.inf, len(columns) - 1.0))
        return self._run(objective, rows, width)

    def _choices(self, costs: Iterable[str]) -> list[tuple[_Row, float, float]]:
        """Every variable takes one candidate, and the costs' tables over several variables follow."""
        used = [row.columns for cost in costs for row in self._rows[cost]]
        present = np.unique(np.concatenate(used)) if used else np.zeros(0, np.int64)
        starts = np.intersect1d(present, np.array(list(self._marginals), np.int64))
        rows = [(row, 0.0, 0.0) for start in starts.tolist() for row in self._marginals[start]]
        for variable in self._variables:
            columns = self._first[variable.name] + np.arange(len(variable.candidates))
            rows.append((_Row(columns, np.ones(len(columns)), 0.0), 1.0, 1.0))
        return rows

    def _run(
        self, objective: NDArray[np.float64], rows: list[tuple[_Row, float, float]], width: int
    ) -> dict[str, int] | None:
        row_of = np.repeat(np.arange(len(rows)), [len(row.columns) for row, _, _ in rows])
        matrix = sparse.csr_array(
            (
                np.concatenate([row.values for row, _, _ in rows]),
                (row_of, np.concatenate([row.columns for row, _, _ in rows])),
            ),
            shape=(len(rows), width),
        )
        constants = np.array([row.constant for row, _, _ in rows])
        low = np.array([lo for _, lo, _ in rows]) - constants
        high = np.array([hi for _, _, hi in rows]) - constants
        integrality = np.zeros(width)
        integrality[: self._binaries] = 1
        upper = np.ones(width)
        upper[self._columns :] = np.inf
        result = milp(
            objective,
            integrality=integrality,
            bounds=Bounds(0.0, upper),
            constraints=LinearConstraint(matrix, low, high),
            options={"mip_rel_gap": 1e-4},
        )
        if result.x is None:
            return None
        return {
            v.name: v.candidates[int(np.argmax(result.x[self._first[v.name] :][: len(v.candidates)]))]
            for v in self._variables
        }


def _scaled(row: _Row, size: float) -> _Row:
    return _Row(row.columns, row.values / size, row.constant / size)


def _with_slack(row: _Row, width: int) -> _Row:
    """The row minus the last column, which then bounds it from above."""
    return _Row(np.append(row.columns, width - 1), np.append(row.values, -1.0), row.constant)


def _last(width: int) -> NDArray[np.float64]:
    objective = np.zeros(width)
    objective[-1] = 1.0
    return objective


def separated(names: tuple[str, ...], table: NDArray[np.float64]) -> list[Table]:
    """Returns tables over as few variables as possible whose sum is the table, up to rounding.

    The table is the sum over all sets of axes of what only they explain, measured from its first entry; where some
    variables together explain nothing, no table over them is needed.

    >>> [names for names, _ in separated(("a", "b"), np.add.outer([1.0, 2.0], [3.0, 5.0]))]
    [(), ('a',), ('b',)]
    """
    axes = range(table.ndim)
    parts: dict[tuple[int, ...], NDArray[np.float64]] = {}
    for kept in itertools.chain.from_iterable(itertools.combinations(axes, count) for count in range(table.ndim + 1)):
        part = np.asarray(table[tuple(slice(None) if axis in kept else 0 for axis in axes)], np.float64)
        for fewer, known in parts.items():
            if set(fewer) < set(kept):
                part = part - known.reshape([table.shape[axis] if axis in fewer else 1 for axis in kept])
        parts[kept] = part
    least = _SEPARABLE * max(float(np.abs(table).max(initial=0.0)), 1e-300)
    if np.abs(parts[tuple(axes)]).max(initial=0.0) > least:
        return [(names, table)]
    return [
        (tuple(names[axis] for axis in kept), part)
        for kept, part in parts.items()
        if not kept or np.abs(part).max(initial=0.0) > least
    ]
