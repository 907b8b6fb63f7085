"""Policies of a small space under budgets: each of them is priced and planned once, so every answer is proven."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ddq_search.cost import PEAK_RAM, CostTables, keeps
from ddq_search.planned_projector import ArenaBytes, ArenaProjector
from ddq_search.projector import Solution
from ddq_search.space import SearchSpace

FEW = 1024
"""Policies of a space that are enumerated: planning the arenas of so many takes about a second."""
_ROUNDING = 1e-9
"""Relative difference up to which a cost from `CostTables.price_many` is asked again, of `price`."""


def is_small(space: SearchSpace) -> bool:
    """Whether a space has at most `FEW` policies."""
    return math.prod(len(variable.candidates) for variable in space.variables) <= FEW


class EnumeratedProjector(ArenaProjector):
    """Looks at one policy after the other, the best by the tables first, and plans the arenas it comes to."""

    def __init__(self, tables: CostTables, arena_bytes: ArenaBytes) -> None:
        super().__init__(tables, arena_bytes)
        variables = tables.space.variables
        sizes = [range(len(variable.candidates)) for variable in variables]
        self._choices = np.array(list(itertools.product(*sizes)), np.int64).reshape(-1, len(variables))  # [P, V]
        self._costs = tables.price_many(self._choices)
        self._policies = [
            {v.name: v.candidates[choice] for v, choice in zip(variables, row, strict=True)}
            for row in self._choices.tolist()
        ]
        self._prices: dict[int, dict[str, float]] = {}

    def most_likely(
        self, scores: NDArray[np.float64], limits: Mapping[str, float], excluded: Sequence[Mapping[str, int]] = ()
    ) -> Solution:
        """`ArenaProjector.most_likely`."""
        likelihoods = np.take_along_axis(scores[None], self._choices[..., None], 2).sum((1, 2))
        for index in self._within(-likelihoods, limits):
            policy = self._policies[index]
            if not any(held.items() <= policy.items() for held in excluded):
                return Solution(policy, proven=True)
        return Solution(None, proven=True)

    def cheapest(self, cost: str, limits: Mapping[str, float]) -> Solution:
        """`ArenaProjector.cheapest`."""
        policy, least = None, math.inf
        for index in self._within(self._costs[cost], limits):
            if self._costs[cost][index] >= least:  # an arena holds at least what is alive at once
                break
            if self._priced(index)[cost] < least:
                policy, least = self._policies[index], self._priced(index)[cost]
        return Solution(policy, proven=True)

    def feasible(self, limits: Mapping[str, float]) -> Solution:
        """`ArenaProjector.feasible`: the first by peak RAM, or else by the first cost, as the tables have it."""
        axis = PEAK_RAM if PEAK_RAM in limits else next(iter(limits))
        index = next(self._within(self._costs[axis], limits), None)
        return Solution(None if index is None else self._policies[index], proven=True)

    def _least_excess(self, limits: Mapping[str, float]) -> dict[str, int]:
        def excess(index: int) -> float:
            return max(self._priced(index)[cost] / limit for cost, limit in limits.items())

        return self._policies[min(range(len(self._policies)), key=excess)]

    def _within(self, values: NDArray[np.float64], limits: Mapping[str, float]) -> Iterator[int]:
        """Yields the policies within the limits, those of least ``values`` ``[P]`` first."""
        maybe = np.ones(len(values), bool)
        for cost, limit in limits.items():
            maybe &= self._costs[cost] <= limit * (1 + _ROUNDING)
        order = np.argsort(values, kind="stable")
        for index in order[maybe[order]].tolist():
            if keeps(self._priced(index), limits):
                yield index

    def _priced(self, index: int) -> dict[str, float]:
        if index not in self._prices:
            self._prices[index] = self.price(self._policies[index])
        return self._prices[index]
