"""The first thing anyone asks: one bitwidth for all weights, one for all activations, trained.

Every variable takes its widest candidate that is not above the wish, else its narrowest (`ddq_search.policy.uniform`),
so the interface and pinned layers stay what they are. Which quantizer is trained is the configuration's choice.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from ddq_search.errors import BudgetError
from ddq_search.feasibility import Pricing
from ddq_search.policy import uniform

_ROLES = ("weights", "activations")


def widest_uniform(pricing: Pricing, limits: Mapping[str, float]) -> dict[str, int] | None:
    """Returns the uniform policy of most bits within the limits, weights and activations together; None without one.

    Of equal sums the one with more bits for activations.
    """
    try:
        found = uniform_policies(pricing, limits)
    except BudgetError:
        return None
    return found[max(found, key=lambda pair: (sum(pair), pair[1]))]


def uniform_policies(pricing: Pricing, limits: Mapping[str, float]) -> dict[tuple[int, int], dict[str, int]]:
    """Returns (weight bits, activation bits) → policy of every pair of candidate bitwidths that keeps the limits.

    Pairs that come to the same policy count once, as the narrowest of them.

    Raises:
        BudgetError: no pair does; names the pair that comes nearest.
    """
    space = pricing.tables.space
    widths = [sorted({b for v in space.variables if v.role == role for b in v.candidates}) for role in _ROLES]
    found: dict[tuple[int, int], dict[str, int]] = {}
    excess: dict[float, str] = {}
    for pair in itertools.product(*(width or [8] for width in widths)):
        weight_bits, activation_bits = pair
        policy = uniform(space, weight_bits, activation_bits)
        if pricing.meets(policy, limits):
            if policy not in found.values():
                found[weight_bits, activation_bits] = policy
            continue
        price = pricing.price(policy)
        worst = max(price[cost] / limit for cost, limit in limits.items())
        excess.setdefault(worst, f"{weight_bits}-bit weights with {activation_bits}-bit activations")
    if not found:
        nearest = min(excess)
        raise BudgetError(
            f"lsq-uniform: no uniform policy meets the budgets; nearest are {excess[nearest]}, "
            f"{100 * (nearest - 1):.1f} % beyond; loosen a budget, or take a method that mixes precisions"
        )
    return found
