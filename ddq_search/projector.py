"""From probabilities to a policy that keeps its budgets: a mixed-integer linear program over the cost tables.

One binary per candidate of each variable; a table over several variables gets one continuous variable per entry,
tied to the binaries by its marginals, which is exact at integer points. Tables that are sums of tables over fewer
variables are taken apart first (`separated`), and a program only holds the tables of the costs it is about: its size is
what the time depends on. Solved with HiGHS through SciPy, without a gap: the answer is the optimum, or there is none,
unless the solver was stopped; `Solution.proven` says which.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from ddq_search.contraction import Table, merged
from ddq_search.cost import CostTables, keeps

_SEPARABLE = 1e-12
"""Largest share of a table's largest entry by which it may differ from a sum of smaller tables."""
_NODES, _SECONDS = 200, 60.0
"""Where the solver is stopped. Programs seldom need more than 20 nodes; many equal layers whose scores follow their
costs would take hours. Nodes are to stop it first: what is found must not depend on how busy the machine is."""
_GIVEN_UP = (0.0,) * 8 + (3e-6, 1e-5, 1e-4)
"""Share of the limits given up, attempt by attempt, while the solver's tolerance (1e-6) lets policies slip over."""
_LARGEST = 1e4
"""Largest coefficient of an objective: the solver takes two objectives that differ by 1e-6 for equal."""
_OPTIMAL, _INFEASIBLE = 0, 2
"""Of the states that `scipy.optimize.milp` ends in, those that prove something."""


@dataclass(frozen=True)
class Solution:
    """What a search for a policy came to.

    Attributes:
        policy: variable → bitwidth, within all limits; None when none was found.
        proven: whether no other policy is better or, where ``policy`` is None, whether there is none.
    """

    policy: dict[str, int] | None
    proven: bool


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
        self._candidates = {variable.name: variable.candidates for variable in tables.space.variables}
        sizes = [len(candidates) for candidates in self._candidates.values()]
        self._first = dict(zip(self._candidates, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
        self._binaries = sum(sizes)
        self._joint: dict[tuple[str, ...], int] = {}
        self._columns = self._binaries
        # first column of a table's entries → what ties them to the binaries
        self._marginals: dict[int, list[_Row]] = {}
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

    def cheapest(self, cost: str, limits: Mapping[str, float], excluded: Sequence[Mapping[str, int]] = ()) -> Solution:
        """Returns the policy of least ``cost`` within the limits; ``excluded`` as in `most_likely`."""
        return self._least(self._rows[cost], limits, excluded)

    def nearest(self, limits: Mapping[str, float]) -> Solution:
        """Returns the policy whose largest cost relative to its limit is least: it keeps all limits where one can."""
        return self._least([_scaled(row, limit) for cost, limit in limits.items() for row in self._rows[cost]], {}, ())

    def most_likely(
        self,
        log_probabilities: NDArray[np.float64],
        limits: Mapping[str, float],
        excluded: Sequence[Mapping[str, int]] = (),
    ) -> Solution:
        """Returns the policy of greatest summed log-probability ``[V, C]`` within the limits.

        Policies that hold an ``excluded`` one, which may name some of the variables only, are not returned.
        """
        objective = np.zeros(self._columns)
        for row, (name, candidates) in enumerate(self._candidates.items()):
            objective[self._first[name] :][: len(candidates)] = -log_probabilities[row, : len(candidates)]
        return self._solve(objective, [], limits, excluded)

    def _least(
        self, rows: Sequence[_Row], limits: Mapping[str, float], excluded: Sequence[Mapping[str, int]]
    ) -> Solution:
        """Returns the policy of which the largest of some expressions is least."""
        if len(rows) == 1:
            objective = np.bincount(rows[0].columns, rows[0].values, self._columns).astype(np.float64)
            return self._solve(objective, rows, limits, excluded)
        size = max(np.abs(row.values).sum() + abs(row.constant) for row in rows) or 1.0
        return self._solve(None, [_scaled(row, size) for row in rows], limits, excluded)

    def _solve(
        self,
        objective: NDArray[np.float64] | None,
        aimed: Sequence[_Row],
        limits: Mapping[str, float],
        excluded: Sequence[Mapping[str, int]],
    ) -> Solution:
        """Solves for an objective over the columns or, without one, for the largest of the expressions aimed at."""
        refused = list(excluded)
        for share in _GIVEN_UP:
            found = self._solve_once(objective, aimed, {c: (1 - share) * limit for c, limit in limits.items()}, refused)
            if found.policy is None or self._keeps(found.policy, limits):
                return Solution(found.policy, found.proven and share == 0.0)
            refused.append(found.policy)
        return Solution(None, proven=False)

    def _keeps(self, policy: Mapping[str, int], limits: Mapping[str, float]) -> bool:
        return not limits or keeps(self.tables.price(policy), limits)

    def _solve_once(
        self,
        objective: NDArray[np.float64] | None,
        aimed: Sequence[_Row],
        limits: Mapping[str, float],
        excluded: Sequence[Mapping[str, int]],
    ) -> Solution:
        within = [(row, limit) for cost, limit in limits.items() for row in self._rows[cost]]
        rows = self._choices([*aimed, *(row for row, _ in within)])
        for row, limit in within:
            size = abs(limit) or 1.0
            rows.append((_scaled(row, size), -np.inf, limit / size))
        for policy in excluded:
            taken = [self._first[name] + self._candidates[name].index(bits) for name, bits in policy.items()]
            columns = np.array(taken, np.int64)
            rows.append((_Row(columns, np.ones(len(columns)), 0.0), -np.inf, len(columns) - 1.0))
        if objective is None:
            objective = np.append(np.zeros(self._columns), 1.0)
            rows += [(_with_slack(row, self._columns), -np.inf, 0.0) for row in aimed]
        return self._run(objective, rows)

    def _choices(self, used: Sequence[_Row]) -> list[tuple[_Row, float, float]]:
        """Every variable takes one candidate, and the tables over several variables that are used follow."""
        present = np.unique(np.concatenate([row.columns for row in used])) if used else np.zeros(0, np.int64)
        starts = np.intersect1d(present, np.array(list(self._marginals), np.int64))
        rows = [(row, 0.0, 0.0) for start in starts.tolist() for row in self._marginals[start]]
        for name, candidates in self._candidates.items():
            columns = self._first[name] + np.arange(len(candidates))
            rows.append((_Row(columns, np.ones(len(columns)), 0.0), 1.0, 1.0))
        return rows

    def _run(self, objective: NDArray[np.float64], rows: list[tuple[_Row, float, float]]) -> Solution:
        width = len(objective)
        row_of = np.repeat(np.arange(len(rows)), [len(row.columns) for row, _, _ in rows])
        columns = np.concatenate([row.columns for row, _, _ in rows])
        values = np.concatenate([row.values for row, _, _ in rows])
        matrix = sparse.csr_array((values, (row_of, columns)), shape=(len(rows), width))
        constants = np.array([row.constant for row, _, _ in rows])
        low = np.array([lo for _, lo, _ in rows]) - constants
        high = np.array([hi for _, _, hi in rows]) - constants
        integrality = np.zeros(width)
        integrality[: self._binaries] = 1
        upper = np.ones(width)
        upper[self._columns :] = np.inf
        result = milp(
            objective * (_LARGEST / (np.abs(objective).max() or 1.0)),
            integrality=integrality,
            bounds=Bounds(0.0, upper),
            constraints=LinearConstraint(matrix, low, high),
            options={"mip_rel_gap": 0.0, "node_limit": _NODES, "time_limit": _SECONDS},
        )
        if result.x is None:
            return Solution(None, proven=result.status == _INFEASIBLE)
        policy = {
            name: candidates[int(np.argmax(result.x[self._first[name] :][: len(candidates)]))]
            for name, candidates in self._candidates.items()
        }
        return Solution(policy, proven=result.status == _OPTIMAL)


def _scaled(row: _Row, size: float) -> _Row:
    return _Row(row.columns, row.values / size, row.constant / size)


def _with_slack(row: _Row, column: int) -> _Row:
    """The row minus a column, which then bounds it from above."""
    return _Row(np.append(row.columns, column), np.append(row.values, -1.0), row.constant)


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
