"""From probabilities to a policy whose *planned* arena keeps the peak-RAM limit.

The tables bound the arena from below: what is alive at once must have room. The planner of a device may need more,
since buffers leave gaps, and how much follows from no table. So a policy is found within the bound, its arena is
planned, and if that is too large, something is taken out and the search goes on. What this proves:

* Where no policy keeps the live-sum bound, none keeps the limit; where the first one found keeps it, it is the best.
* In a space of at most `_FEW` policies they are taken out one by one, so the answer is exact.
* Elsewhere a *conflict* is taken out: a few of the policy's choices whose arena is too large even with all others at
  their lowest. A planner might find room for them in other company, so what is found afterwards keeps the limits but
  is not proven to be the best, and that nothing is found does not prove that there is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddq_search.cost import PEAK_RAM
from ddq_search.projector import Projector, Solution

_FEW = 1024
"""Policies of a space in which each may be planned."""
_CONFLICTS, _TIGHTENINGS = 8, 8
"""How often a conflict is taken out, and how often at least the bound itself is lowered. That costs the policy more,
but is what is left where a policy holds several conflicts at once, as in networks of many like blocks."""

Solve = Callable[[Mapping[str, float], Sequence[Mapping[str, int]]], Solution]
"""Solves within limits on the tables; policies that hold an excluded one are not returned."""


@dataclass(frozen=True)
class PlannedProjector:
    """`Projector` with peak RAM kept by the planned arena.

    Attributes:
        projector: finds policies within limits on the tables' costs.
        arena_bytes: plans the arena of a policy.
    """

    projector: Projector
    arena_bytes: Callable[[Mapping[str, int]], int]

    def price(self, policy: Mapping[str, int]) -> dict[str, float]:
        """Returns a policy's costs from the tables, and peak RAM as the planned arena."""
        price = self.projector.tables.price(policy)
        price[PEAK_RAM] = float(self.arena_bytes(policy))
        return price

    def most_likely(
        self, scores: NDArray[np.float64], limits: Mapping[str, float], excluded: Sequence[Mapping[str, int]] = ()
    ) -> Solution:
        """`Projector.most_likely`; finds a policy wherever `feasible` finds one that is not excluded."""
        return self._found(lambda bounds, out: self.projector.most_likely(scores, bounds, out), limits, excluded)

    def cheapest(self, cost: str, limits: Mapping[str, float]) -> Solution:
        """`Projector.cheapest`; finds a policy wherever `feasible` does."""
        found = self._found(lambda bounds, out: self.projector.cheapest(cost, bounds, out), limits, ())
        return self._least_arena(found, limits) if cost == PEAK_RAM else found

    def feasible(self, limits: Mapping[str, float]) -> Solution:
        """Returns some policy within the limits: of least peak RAM if that has one, else of least first cost."""
        axis = PEAK_RAM if PEAK_RAM in limits else next(iter(limits))
        found = self._kept(lambda bounds, out: self.projector.cheapest(axis, bounds, out), limits, ())
        if found.policy is None and not found.proven:
            nearest = self.projector.nearest(limits).policy
            price = self.price(nearest) if nearest else {}
            if nearest and all(price[cost] <= limit for cost, limit in limits.items()):
                return Solution(nearest, proven=False)
        return found

    def nearest(self, limits: Mapping[str, float]) -> dict[str, int] | None:
        """Returns a policy near limits that none keeps: no cost could exceed its limit by less, the others as they are.

        The largest excess is as small as it can be by live sums; then every cost is lowered as far as the others let
        it, or to its limit; of the policies left it is the one of most bits. None if the solver was stopped before.
        """
        found = self.projector.nearest(limits).policy
        if found is None:
            return None
        reached = {cost: max(limits[cost], value) for cost, value in self.price(found).items() if cost in limits}
        for cost in sorted(limits, key=lambda cost: cost != PEAK_RAM):  # the one that plans may have enlarged
            found = self.cheapest(cost, reached).policy or found
            reached[cost] = max(limits[cost], self.price(found)[cost])
        variables = self.projector.tables.space.variables
        bits = np.zeros((len(variables), max(len(v.candidates) for v in variables)))
        for row, variable in enumerate(variables):
            bits[row, : len(variable.candidates)] = variable.candidates
        return self.most_likely(bits, reached).policy or found

    def _least_arena(self, found: Solution, limits: Mapping[str, float]) -> Solution:
        """Asks for smaller arenas until there is none: what is least by its live sum may not be so by its plan."""
        while found.policy is not None:
            arena = self.arena_bytes(found.policy)
            if found.proven and arena == self.projector.tables.price(found.policy)[PEAK_RAM]:
                return found
            smaller = self.feasible({**limits, PEAK_RAM: arena - 1.0}) if self._few else Solution(None, proven=False)
            if smaller.policy is None:
                return Solution(found.policy, smaller.proven)
            found = smaller
        return found

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
        for attempt in range(_FEW + 1 if self._few else _CONFLICTS + _TIGHTENINGS):
            found = solve(bounds, out)
            arena = self.arena_bytes(found.policy) if found.policy and PEAK_RAM in limits else 0
            if found.policy is None or arena <= limit:
                return Solution(found.policy, found.proven and (self._few or attempt == 0))
            conflict = found.policy if self._few else self._conflict(found.policy, limit)
            if self._few or (attempt < _CONFLICTS and self._fits_without(conflict, found.policy, limit)):
                out.append(conflict)
            else:
                live = self.projector.tables.price(found.policy)[PEAK_RAM]
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
                if self.arena_bytes(self._lowest | {name: policy[name] for name in fewer}) > limit:
                    kept = fewer
            size //= 2
        return {name: policy[name] for name in kept}

    def _fits_without(self, conflict: Mapping[str, int], policy: Mapping[str, int], limit: float) -> bool:
        """Whether a policy holds no other conflict, but fits with this one at its lowest."""
        return self.arena_bytes({**policy, **{name: self._lowest[name] for name in conflict}}) <= limit

    @property
    def _lowest(self) -> dict[str, int]:
        return {variable.name: variable.candidates[0] for variable in self.projector.tables.space.variables}

    @property
    def _few(self) -> bool:
        return math.prod(len(v.candidates) for v in self.projector.tables.space.variables) <= _FEW
