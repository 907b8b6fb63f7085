"""Can the budgets be met at all, and if not, what can: the answer a user needs before any training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ddq_search.budget import LABELS, show
from ddq_search.cost import PEAK_RAM, CostModel, CostTables
from ddq_search.errors import BudgetError
from ddq_search.graph import ModelGraph
from ddq_search.policy import uniform
from ddq_search.projector import Projector

_ARENA_ATTEMPTS = 8
_BLOCKERS = 3


@dataclass(frozen=True)
class Pricing:
    """One model on one device: tables, planner and projector together.

    Attributes:
        graph: the model graph.
        device: the cost model.
        tables: its compiled factors.
        projector: finds policies under limits.
        reference: price of the uniform 8-bit policy.
    """

    graph: ModelGraph
    device: CostModel
    tables: CostTables
    projector: Projector
    reference: Mapping[str, float]

    @classmethod
    def build(cls, graph: ModelGraph, device: CostModel, tables: CostTables) -> Pricing:
        """Returns the pricing of a compiled model."""
        pricing = cls(graph, device, tables, Projector(tables), {})
        return replace(pricing, reference=pricing.price(uniform(tables.space, 8, 8)))

    def price(self, policy: Mapping[str, int]) -> dict[str, float]:
        """Returns latency and flash from the tables, and peak RAM as the arena the planner lays out."""
        price = self.tables.price(policy)
        price[PEAK_RAM] = float(self.device.arena_bytes(self.graph, self.tables.space, policy))
        return price

    def meets(self, policy: Mapping[str, int], limits: Mapping[str, float]) -> bool:
        """Whether a policy keeps every limit, peak RAM checked on the planned arena."""
        price = self.price(policy)
        return all(price[cost] <= limit for cost, limit in limits.items())

    def most_likely(
        self, scores: NDArray[np.float64], limits: Mapping[str, float], excluded: Sequence[Mapping[str, int]]
    ) -> dict[str, int] | None:
        """`Projector.most_likely`, with peak RAM kept by the planned arena and not only by its live-sum bound."""
        return self._within_arena(lambda bounds: self.projector.most_likely(scores, bounds, excluded), limits)

    def cheapest(self, cost: str, limits: Mapping[str, float]) -> dict[str, int] | None:
        """`Projector.cheapest`, with peak RAM kept by the planned arena."""
        return self._within_arena(lambda bounds: self.projector.cheapest(cost, bounds), limits)

    def _within_arena(
        self, solve: Callable[[Mapping[str, float]], dict[str, int] | None], limits: Mapping[str, float]
    ) -> dict[str, int] | None:
        """Solves again with a tighter live-sum bound while the planned arena exceeds its limit."""
        tightened = dict(limits)
        for _ in range(_ARENA_ATTEMPTS):
            policy = solve(tightened)
            if policy is None or self.meets(policy, limits):
                return policy
            tightened[PEAK_RAM] -= max(self.price(policy)[PEAK_RAM] - limits[PEAK_RAM], 1.0)
        return None


def require_feasible(pricing: Pricing, budgets: Mapping[str, float]) -> None:
    """Returns if some policy meets all budgets.

    Raises:
        BudgetError: none does; the message holds the achievable range of each cost, what is achievable of each
            while the others are kept, the binding budgets and the layers that block them.
    """
    if not budgets or pricing.cheapest(next(iter(budgets)), budgets) is not None:
        return
    lines = ["no policy meets all budgets on " + pricing.device.name]
    for cost, limit in budgets.items():
        lines.append(f"  {_range_line(pricing, cost, limit)}")
    for cost in budgets if len(budgets) > 1 else ():
        others = {other: limit for other, limit in budgets.items() if other != cost}
        policy = pricing.cheapest(cost, others)
        if policy is not None:
            kept = " and ".join(f"{LABELS[o]} ≤ {show(o, v)}" for o, v in others.items())
            price = pricing.price(policy)
            reached = ", ".join(f"{LABELS[o]} {show(o, price[o], pricing.reference)}" for o in budgets)
            lines.append(f"  achievable pair: with {kept} the least {LABELS[cost]} is reached at {reached}")
            lines.append(f"    {_blockers(pricing, cost, policy)}")
    if len(budgets) == 1:
        (cost,) = budgets
        policy = pricing.cheapest(cost, {})
        assert policy is not None
        lines.append(f"  {_blockers(pricing, cost, policy)}")
    closest = pricing.price(pricing.projector.nearest(budgets))
    reached = ", ".join(f"{LABELS[cost]} {show(cost, closest[cost], pricing.reference)}" for cost in budgets)
    excess = max(closest[cost] / limit - 1 for cost, limit in budgets.items())
    lines.append(f"  nearest policy: {reached}; every budget exceeded by at most {100 * excess:.1f} %")
    lines.append("  loosen a budget to an achievable pair above, or take a smaller model or another device")
    raise BudgetError("\n".join(lines))


def _range_line(pricing: Pricing, cost: str, limit: float) -> str:
    least = pricing.cheapest(cost, {})
    assert least is not None
    low = pricing.price(least)[cost]
    verdict = "impossible by itself" if low > limit else "possible by itself"
    return (
        f"{LABELS[cost]} budget {show(cost, limit, pricing.reference)}: {verdict}; "
        f"achievable from {show(cost, low, pricing.reference)}; uniform 8 bit {show(cost, pricing.reference[cost])}"
    )


def _blockers(pricing: Pricing, cost: str, policy: Mapping[str, int]) -> str:
    shares = operation_costs(pricing.tables, cost, policy)
    total = sum(shares.values())
    top = sorted(shares, key=lambda name: shares[name], reverse=True)[:_BLOCKERS]
    listed = ", ".join(f"{name} {show(cost, shares[name])} ({100 * shares[name] / total:.0f} %)" for name in top)
    return f"layers that hold the {LABELS[cost]} there: {listed}"


def operation_costs(tables: CostTables, cost: str, policy: Mapping[str, int]) -> dict[str, float]:
    """Returns a policy's cost by operation; for peak RAM, the live bytes of the fullest step."""
    probabilities = tables.one_hot(policy)
    values = tables.contributions(cost, probabilities).tolist()
    factors = [factor for factor in tables.factors if factor.cost == cost]
    fullest = int(tables.step_sums(probabilities).argmax()) if cost == PEAK_RAM else None
    result: dict[str, float] = {}
    for factor, value in zip(factors, values, strict=True):
        if fullest is None or (factor.step or 0) == fullest:
            result[factor.operation] = result.get(factor.operation, 0.0) + value
    return result
