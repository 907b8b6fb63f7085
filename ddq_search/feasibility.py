"""Can the budgets be met at all, and if not, what can: the answer a user needs before any training."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ddq_search.budget import LABELS, parse, show
from ddq_search.cost import BIT_OPERATIONS, ENERGY, FLASH, LATENCY, PEAK_RAM, CostModel, CostTables, keeps
from ddq_search.enumerated_projector import EnumeratedProjector, is_small
from ddq_search.errors import BudgetError
from ddq_search.graph import ModelGraph
from ddq_search.listing import some
from ddq_search.planned_projector import ArenaProjector, PlannedProjector
from ddq_search.policy import uniform
from ddq_search.projector import Projector, Solution

_BLOCKERS = 3
_NAMES, _GROUPS = 3, 5
"""Layers named of those with equal bits, and groups of these, where a policy is told in a line."""
_FLAGS = {
    LATENCY: "--latency {}",
    FLASH: "--flash {}",
    PEAK_RAM: "--peak-ram {}",
    BIT_OPERATIONS: "--set budgets.bit_operations={}",
    ENERGY: "--set budgets.energy={}",
}


@dataclass(frozen=True)
class Pricing:
    """One model on one device: tables, planner and projector together.

    Attributes:
        graph: the model graph.
        device: the cost model.
        tables: its compiled factors.
        projector: finds policies under limits on the tables.
        planned: the same with peak RAM kept by the planned arena; says what is proven.
        reference: price of the uniform 8-bit policy.
    """

    graph: ModelGraph
    device: CostModel
    tables: CostTables
    projector: Projector
    planned: ArenaProjector
    reference: Mapping[str, float]

    @classmethod
    def build(cls, graph: ModelGraph, device: CostModel, tables: CostTables) -> Pricing:
        """Returns the pricing of a compiled model."""
        projector, arena_bytes = Projector(tables), functools.partial(device.arena_bytes, graph, tables.space)
        small = is_small(tables.space)
        planned = EnumeratedProjector(tables, arena_bytes) if small else PlannedProjector(projector, arena_bytes)
        pricing = cls(graph, device, tables, projector, planned, {})
        return replace(pricing, reference=pricing.price(uniform(tables.space, 8, 8)))

    def price(self, policy: Mapping[str, int]) -> dict[str, float]:
        """Returns latency and flash from the tables, and peak RAM as the arena the planner lays out."""
        return self.planned.price(policy)

    def meets(self, policy: Mapping[str, int], limits: Mapping[str, float]) -> bool:
        """Whether a policy keeps every limit, peak RAM checked on the planned arena."""
        return keeps(self.price(policy), limits)

    def most_likely(
        self, scores: NDArray[np.float64], limits: Mapping[str, float], excluded: Sequence[Mapping[str, int]]
    ) -> dict[str, int] | None:
        """The policy of `ArenaProjector.most_likely`, which also says whether it is proven to be the best."""
        return self.planned.most_likely(scores, limits, excluded).policy

    def cheapest(self, cost: str, limits: Mapping[str, float]) -> dict[str, int] | None:
        """The policy of `ArenaProjector.cheapest`, which also says whether it is proven to be the cheapest."""
        return self.planned.cheapest(cost, limits).policy


def require_feasible(pricing: Pricing, budgets: Mapping[str, float]) -> None:
    """Returns if some policy meets all budgets.

    Raises:
        BudgetError: none does, or none was found; the message says which, and holds the achievable range of each
            cost, the budgets that conflict, what is achievable of each while the others are kept and the layers that
            block it, and the nearest policy with the budgets that would admit it.
    """
    found = pricing.planned.feasible(budgets) if budgets else None
    if found is not None and found.policy is None:
        raise BudgetError("\n  ".join(_explanation(pricing, budgets, found)))


def _explanation(pricing: Pricing, budgets: Mapping[str, float], found: Solution) -> Iterator[str]:
    if found.proven:
        yield f"no policy meets all budgets on {pricing.device.name}"
    else:
        yield f"no policy was found that meets all budgets on {pricing.device.name}; that there is none is not proven"
        yield _doubt(pricing, budgets)
    for cost, limit in budgets.items():
        yield from _range_lines(pricing, cost, limit)
    yield from _conflict_lines(pricing, budgets)
    for cost in budgets if len(budgets) > 1 else ():
        others = {other: limit for other, limit in budgets.items() if other != cost}
        policy = pricing.cheapest(cost, others)
        if policy is not None:
            kept = " and ".join(f"{LABELS[o]} ≤ {show(o, v)}" for o, v in others.items())
            price = pricing.price(policy)
            reached = _reached(pricing, price, budgets)
            yield f"achievable pair: with {kept} the least {LABELS[cost]} is reached at {reached}"
            yield f"  admitted by {_admitting(pricing, price, budgets)}"
            yield f"  {_blockers(pricing, cost, policy)}"
    nearest = pricing.planned.nearest(budgets)
    if nearest is not None:
        price = pricing.price(nearest)
        excess = max(price[cost] / limit - 1 for cost, limit in budgets.items())
        reached = _reached(pricing, price, budgets)
        yield f"nearest policy: {reached}; every budget exceeded by at most {100 * excess:.1f} %"
        yield f"  {summary(nearest)}"
        yield f"  admitted by {_admitting(pricing, price, budgets)}"
    yield "loosen a budget as told above, or take a smaller model or another device"


def _reached(pricing: Pricing, price: Mapping[str, float], costs: Iterable[str]) -> str:
    return ", ".join(f"{LABELS[cost]} {show(cost, price[cost], pricing.reference)}" for cost in costs)


def _doubt(pricing: Pricing, budgets: Mapping[str, float]) -> str:
    """Returns what stands between "none was found" and "there is none"."""
    policy = pricing.projector.cheapest(PEAK_RAM, budgets).policy if PEAK_RAM in budgets else None
    if policy is None:
        return "the solver was stopped before it was done"
    live, arena = pricing.tables.price(policy)[PEAK_RAM], pricing.price(policy)[PEAK_RAM]
    return (
        f"in the policy of least peak RAM within the others, {show(PEAK_RAM, live)} are alive at once; its planned "
        f"arena exceeds that by {show(PEAK_RAM, arena - live)}"
    )


def _range_lines(pricing: Pricing, cost: str, limit: float) -> Iterator[str]:
    least = pricing.planned.cheapest(cost, {})
    if least.policy is None:
        yield f"{LABELS[cost]} budget {show(cost, limit, pricing.reference)}: not known whether it can be kept"
        return
    low = pricing.price(least.policy)[cost]
    impossible = "impossible by itself" if least.proven else "by itself not kept by any policy found"
    yield (
        f"{LABELS[cost]} budget {show(cost, limit, pricing.reference)}: "
        f"{'possible by itself' if low <= limit else impossible}; "
        f"achievable from {show(cost, low, pricing.reference)}; uniform 8 bit {show(cost, pricing.reference[cost])}"
    )
    if low > limit:
        yield f"  {_blockers(pricing, cost, least.policy)}"


def _conflict_lines(pricing: Pricing, budgets: Mapping[str, float]) -> Iterator[str]:
    found = conflicts(pricing, budgets)
    for costs, proven in found.items():
        *most, last = (LABELS[cost] for cost in costs)
        names = f"{', '.join(most)} and {last}" if most else last
        verb = "cannot be met" if proven else "was not met by any policy found" if not most else "were not met"
        rest = f" together, {'each alone' if len(most) == 1 else f'any {len(most)} of them'} can be" if most else ""
        yield f"conflict: {names} {verb}{rest}"
    binding = [cost for cost in budgets if all(cost in costs for costs in found)]
    if len(budgets) > 1:
        named = " or that of ".join(LABELS[cost] for cost in binding)
        yield (
            f"binding: without the budget of {named} the others can be met"
            if binding
            else "binding: no single budget; one of each conflict must be loosened"
        )


def conflicts(pricing: Pricing, budgets: Mapping[str, float]) -> dict[tuple[str, ...], bool]:
    """Returns the smallest sets of budgets that no policy was found to meet together, and whether there is none.

    Without any one of its budgets such a set can be met; all sets of budgets that were not met hold one of them.
    """
    found: dict[tuple[str, ...], bool] = {}
    for count in range(1, len(budgets) + 1):
        for costs in itertools.combinations(budgets, count):
            if not any(set(known) <= set(costs) for known in found):
                met = pricing.planned.feasible({cost: budgets[cost] for cost in costs})
                if met.policy is None:
                    found[costs] = met.proven
    return found


def summary(policy: Mapping[str, int]) -> str:
    """Returns a policy in a line: layers and tensors by the bits of their weights and output, the largest group first.

    >>> summary({"activations/input": 8, "weights/conv": 2, "activations/conv": 4, "weights/fc": 8})
    'w2a4: conv; w8: fc; a8: input'
    """
    labels: dict[str, str] = {}
    for role in ("weights", "activations"):
        for name, bits in policy.items():
            if name.startswith(f"{role}/"):
                key = name.removeprefix(f"{role}/")
                labels[key] = f"{labels.get(key, '')}{role[0]}{bits}"
    groups: dict[str, list[str]] = {}
    for key, label in labels.items():
        groups.setdefault(label, []).append(key)
    largest = sorted(groups, key=lambda label: len(groups[label]), reverse=True)
    told = [f"{label}: {some(groups[label], _NAMES)}" for label in largest[:_GROUPS]]
    further = sum(len(groups[label]) for label in largest[_GROUPS:])
    return "; ".join([*told, f"{further} more of other bits"] if further else told)


def _admitting(pricing: Pricing, price: Mapping[str, float], budgets: Mapping[str, float]) -> str:
    """Returns the flags of the budgets that must change for a policy, in percent of uniform 8 bit, rounded up."""
    flags = []
    for cost, limit in budgets.items():
        if price[cost] > limit:
            tenths = math.floor(1000 * price[cost] / pricing.reference[cost])
            while parse(cost, f"{tenths / 10}%").resolve(pricing.reference) < price[cost]:
                tenths += 1
            flags.append(_FLAGS[cost].format(f"{tenths / 10}%"))
    return " ".join(flags)


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
