"""From probabilities to a policy whose *planned* arena keeps the peak-RAM limit.

The tables bound the arena from below: what is alive at once must have room. The planner of a device may need more,
since buffers leave gaps, and how much follows from no table. Small spaces are therefore enumerated
(`enumerated_projector`). In large ones a policy is found within the bound, its arena is planned, and if that is too
large, something is taken out and the search goes on. What this proves:

* Where no policy keeps the live-sum bound, none keeps the limit; where the first one found keeps it, it is the best.
* Else a *conflict* is taken out: a few of the policy's choices whose arena is too large even with all others at their
  lowest. A planner might find room for them in other company, so what is found afterwards keeps the limits but is not
  proven to be the best, and that nothing is found does not prove that there is nothing.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ddq_search.cost import PEAK_RAM, CostTables, keeps
from ddq_search.projector import Projector, Solution

_CONFLICTS, _TIGHTENINGS = 8, 8
"""How often a conflict is taken out, and how often at least the bound itself is lowered. That costs the policy more,
but is what is left where a policy holds several conflicts at once, as in networks of many like blocks."""

ArenaBytes = Callable[[Mapping[str, int]], int]
"""Plans the arena of a policy."""
Solve = Callable[[Mapping[str, float], Sequence[Mapping[str, int]]], Solution]
"""Solves within limits on the tables; policies that hold an excluded one are not returned."""


class ArenaProjector(abc.ABC):
    """Finds policies under limits, of which peak RAM is kept by the planned arena."""

    def __init__(self, tables: CostTables, arena_bytes: ArenaBytes) -> None:
        self.tables = tables
        self._arena_bytes = arena_bytes

    def price(self, policy: Mapping[str, int]) -> dict[str, float]:
        """Returns a policy's costs from the tables, and peak RAM as the planned arena."""
        price = self.tables.price(policy)
        price[PEAK_RAM] = float(self._arena_bytes(policy))
        return price

    @abc.abstractmethod
    def most_likely(
        self, scores: NDArray[np.float64], limits: Mapping[str, float], excluded: Sequence[Mapping[str, int]] = ()
    ) -> Solution:
        """`Projector.most_likely`; finds a policy wherever `feasible` finds one that is not excluded."""

    @abc.abstractmethod
    def cheapest(self, cost: str, limits: Mapping[str, float]) -> Solution:
        """`Projector.cheapest`; finds a policy wherever `feasible` does."""

    @abc.abstractmethod
    def feasible(self, limits: Mapping[str, float]) -> Solution:
        """Returns some policy within the limits."""

    @abc.abstractmethod
    def _least_excess(self, limits: Mapping[str, float]) -> dict[str, int] | None:
        """Returns a policy whose largest cost relative to its limit is least; None if the solver was stopped before."""

    def nearest(self, limits: Mapping[str, float]) -> dict[str, int] | None:
        """Returns a policy near limits that none keeps: no cost could exceed its limit by less, the others as they are.

        The largest excess is as small as it can be (by live sums in large spaces); then every cost is lowered as far as
        the others let it, or to its limit; of the policies left it is the one of most bits. None if the solver was
        stopped before.
        """
        found = self._least_excess(limits)
        if found is None:
            return None
        reached = {cost: max(limits[cost], value) for cost, value in self.price(found).items() if cost in limits}
        for cost in sorted(limits, key=lambda cost: cost != PEAK_RAM):  # the one that plans may have enlarged
            found = self.cheapest(cost, reached).policy or found
            reached[cost] = max(limits[cost], self.price(found)[cost])
        variables = self.tables.space.variables
        bits = np.zeros((len(variables), max(len(v.candidates) for v in variables)))
        for row, variable in enumerate(variables):
            bits[row, : len(variable.candidates)] = variable.candidates
        return self.most_likely(bits, reached).policy or found


class PlannedProjector(ArenaProjector):
    """Solves the tables' program again while the planned arena is too large."""

    def __init__(self, projector: Projector, arena_bytes: ArenaBytes) -> None:
        super().__init__(projector.tables, arena_bytes)
        self._projector = projector

    def most_likely(
        self, scores: NDArray[np.float64], limits: Mapping[str, float], excluded: Sequence[Mapping[str, int]] = ()
    ) -> Solution:
        """`ArenaProjector.most_likely`."""
        return self._found(lambda bounds, out: self._projector.most_likely(scores, bounds, out), limits, excluded)

    def cheapest(self, cost: str, limits: Mapping[str, float]) -> Solution:
        """`ArenaProjector.cheapest`; an arena is only proven to be the least where it has no gaps."""
        found = self._found(lambda bounds, out: self._projector.cheapest(cost, bounds, out), limits, ())
        if cost != PEAK_RAM or found.policy is None:
            return found
        least = self.tables.price(found.policy)[PEAK_RAM]
        return Solution(found.policy, found.proven and self._arena_bytes(found.policy) == least)

    def feasible(self, limits: Mapping[str, float]) -> Solution:
        """`ArenaProjector.feasible`: of least peak RAM if that has a limit, else of least first cost."""
        axis = PEAK_RAM if PEAK_RAM in limits else next(iter(limits))
        found = self._kept(lambda bounds, out: self._projector.cheapest(axis, bounds, out), limits, ())
        if found.policy is None and not found.proven:
            nearest = self._least_excess(limits)
            if nearest and keeps(self.price(nearest), limits):
                return Solution(nearest, proven=False)
        return found

    def _least_excess(self, limits: Mapping[str, float]) -> dict[str, int] | None:
        return self._projector.nearest(limits).policy

    def _found(self, solve: Solve, limits: Mapping[str, float], excluded: Sequence[Mapping[str, int]]) -> Solution:
        """`_kept`, or whatever is known to be feasible where that was stopped without a policy."""
        found = self._kept(solve, limits, excluded)
        if found.policy is not None or found.proven or not limits:
            return found
        witness = self.feasible(limits).policy
        return Solution(None if witness in excluded else witness, proven=False)

    def _kept(self, solve: Solve, limits: Mapping[str, float], excluded: Sequence[Mapping[str, int]]) -> Solution:
        """Solves again while the planned arena exceeds its limit."""
        bounds, out, limit = dict(limits), list(excluded), limits.get(PEAK_RAM, math.inf)
        for attempt in range(_CONFLICTS + _TIGHTENINGS):
            found = solve(bounds, out)
            arena = self._arena_bytes(found.policy) if found.policy and PEAK_RAM in limits else 0
            if found.policy is None or arena <= limit:
                return Solution(found.policy, found.proven and attempt == 0)
            conflict = self._conflict(found.policy, limit)
            if attempt < _CONFLICTS and self._fits_without(conflict, found.policy, limit):
                out.append(conflict)
            else:
                live = self.tables.price(found.policy)[PEAK_RAM]
                bounds[PEAK_RAM] = min(bounds[PEAK_RAM] - (arena - limit), live - 1)
        return Solution(None, proven=False)

    def _conflict(self, policy: Mapping[str, int], limit: float) -> dict[str, int]:
        """Returns choices whose arena is too large even with all others at their lowest, as few as can be.

        Of a policy's choices, blocks are lowered that do not mend it: halves first, single choices last.
        """
        kept = [name for name in policy if policy[name] != self._lowest[name]]
        size = len(kept) // 2
        while size:
            for start in reversed(range(0, len(kept), size)):
                fewer = kept[:start] + kept[start + size :]
                if self._arena_bytes(self._lowest | {name: policy[name] for name in fewer}) > limit:
                    kept = fewer
            size //= 2
        return {name: policy[name] for name in kept}

    def _fits_without(self, conflict: Mapping[str, int], policy: Mapping[str, int], limit: float) -> bool:
        """Whether a policy holds no other conflict, but fits with this one at its lowest."""
        return self._arena_bytes({**policy, **{name: self._lowest[name] for name in conflict}}) <= limit

    @property
    def _lowest(self) -> dict[str, int]:
        return {variable.name: variable.candidates[0] for variable in self.tables.space.variables}
