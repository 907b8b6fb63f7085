"""Policies by chance, each projected into its limits: what any method has to beat.

A policy is the one of greatest summed random preference within the limits, so limits that leave little are still met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ddq_search.feasibility import Pricing

_STREAM = 7
"""Keeps these numbers apart from others that follow from the same seed."""


def random_policies(
    pricing: Pricing, limits: Sequence[Mapping[str, float]], seed: int, *, distinct: bool = True
) -> list[dict[str, int] | None]:
    """Returns one random policy per set of limits, or None where no (further) policy keeps them.

    Args:
        pricing: prices of the policies.
        limits: cost → largest allowed value, one mapping per policy.
        seed: the same seed gives the same policies.
        distinct: whether a policy may come only once.
    """
    generator = np.random.default_rng([seed, _STREAM])
    variables = pricing.tables.space.variables
    width = max(len(variable.candidates) for variable in variables)
    found: list[dict[str, int] | None] = []
    for limit in limits:
        scores = generator.standard_normal((len(variables), width))
        taken = [policy for policy in found if policy is not None] if distinct else []
        found.append(pricing.most_likely(scores, limit, taken))
    return found
