"""One step after the other: from uniform 8 bit, the tensor that loses least per saving goes to its next precision.

Legend: V variables, C candidates of the widest variable.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ddq_search.cost import PEAK_RAM
from ddq_search.feasibility import Pricing
from ddq_search.policy import uniform


def greedy(pricing: Pricing, losses: NDArray[np.float64], limits: Mapping[str, float]) -> dict[str, int] | None:
    """Returns the policy that one-step flips reach, or None when they end before every limit is kept.

    A flip is worth its relative saving of the violated costs; one that saves none of them is never made.

    Args:
        pricing: prices of the policies.
        losses: ``[V, C]`` sensitivities, see `ddq_search.baselines.sensitivity`.
        limits: cost → largest allowed value.
    """
    variables = pricing.tables.space.variables
    price_of = pricing.price if PEAK_RAM in limits else pricing.tables.price  # only peak RAM needs the planned arena
    policy = uniform(pricing.tables.space, 8, 8)
    while True:
        price = price_of(policy)
        violated = {cost: limit for cost, limit in limits.items() if price[cost] > limit}
        if not violated:
            return policy
        best: tuple[float, str, int] | None = None
        for row, variable in enumerate(variables):
            index = variable.candidates.index(policy[variable.name])
            if index == 0:
                continue
            lower = variable.candidates[index - 1]
            after = price_of({**policy, variable.name: lower})
            saved = sum((price[cost] - after[cost]) / limit for cost, limit in violated.items())
            lost = max(losses[row, index - 1] - losses[row, index], 0.0)
            if saved > 0 and (best is None or lost / saved < best[0]):
                best = lost / saved, variable.name, lower
        if best is None:
            return None
        policy = {**policy, best[1]: best[2]}
