"""Where the points of a front aim, and which policy each becomes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ddq_search.cost import FLASH, LATENCY
from ddq_search.feasibility import Pricing
from ddq_search.policy import Policy

Origin = Literal["search", "relaxed"]
_BELOW = 1e3
"""What a precision below that of the likeliest policy costs: more than all noise."""
_SCORES = 1e-5
"""What a score counts beside noise."""
_MARGIN = 1.005
"""Targets at the very end of a range leave exactly one policy; this leaves a few."""


@dataclass(frozen=True)
class Aim:
    """What one gate set aims at.

    Attributes:
        limits: cost → largest allowed value.
        origin: ``search`` within every budget, ``relaxed`` beyond one of them.
    """

    limits: Mapping[str, float]
    origin: Origin


def aims(pricing: Pricing, budgets: Mapping[str, float], points: int, relaxed: int) -> list[Aim]:
    """Returns the aims of a front's points.

    Each point tightens one of the budgeted costs (latency and flash in turn when nothing is budgeted) to a value
    between the least that the other budgets allow and the budget itself, evenly spread; the other budgets stay as
    they are. Relaxed points loosen one budget towards uniform 8 bit.
    """
    result: list[Aim] = []
    for axis, number in _deal(list(budgets) or [LATENCY, FLASH], points).items():
        least = pricing.cheapest(axis, budgets)
        assert least is not None, "feasibility was checked before"
        low = pricing.price(least)[axis]
        high = budgets.get(axis) or _highest(pricing, axis, low)
        for share in np.linspace(0, 1, number) if number > 1 else [1.0] * number:
            limit = min(high, max(low * _MARGIN, low + share * (high - low)))
            result.append(Aim({**budgets, axis: limit}, "search"))
    for axis, number in _deal(list(budgets), relaxed).items():
        low, high = budgets[axis], pricing.reference[axis]
        for share in np.arange(1, number + 1) / number if low < high else []:
            result.append(Aim({**budgets, axis: low + share * (high - low)}, "relaxed"))
    return result


def _deal(axes: Sequence[str], count: int) -> dict[str, int]:
    """Returns how many of ``count`` points each axis gets, dealt in turn."""
    return {axis: len(range(i, count, len(axes))) for i, axis in enumerate(axes)}


def _highest(pricing: Pricing, axis: str, low: float) -> float:
    """Without a budget, points spread up to uniform 8 bit, or half as much again above the cheapest if that is dear."""
    return pricing.reference[axis] if pricing.reference[axis] > low * 1.02 else low * 1.5


def choose_policies(pricing: Pricing, targets: Sequence[Aim], scores: Sequence[NDArray[np.float64]]) -> list[Policy]:
    """Returns one distinct policy per aim where there is one: `settled` by the scores ``[V, C]`` within its limits."""
    found: list[tuple[Origin, dict[str, int]]] = []
    for aim, score in zip(targets, scores, strict=True):
        policy = settled(pricing, score, aim.limits, [bits for _, bits in found])
        if policy is not None:
            found.append((aim.origin, policy))
    return named(pricing, found)


def settled(
    pricing: Pricing, scores: NDArray[np.float64], limits: Mapping[str, float], taken: Sequence[Mapping[str, int]]
) -> dict[str, int] | None:
    """Returns the policy of greatest score within the limits, raised where that is free; None where all are taken.

    A tensor whose precision adds to no limited cost has nothing but noise to move its gates. So among the policies that
    are nowhere below the likeliest one, and no dearer, that of least quantization noise is taken, half as much for each
    bit, all tensors alike; of equals the likelier one.
    """
    likeliest = pricing.most_likely(scores, limits, taken)
    if likeliest is None:
        return None
    raised = _SCORES * scores
    for row, variable in enumerate(pricing.tables.space.variables):
        for column, bits in enumerate(variable.candidates):
            raised[row, column] -= _BELOW if bits < likeliest[variable.name] else 2.0**-bits
    price = pricing.price(likeliest)
    return pricing.most_likely(raised, {cost: price[cost] for cost in limits}, taken) or likeliest


def named(pricing: Pricing, found: Sequence[tuple[Origin, Mapping[str, int]]]) -> list[Policy]:
    """Returns the policies of a front, numbered by latency: ``p00`` … within the budgets, ``r00`` … beyond."""
    result = []
    for origin, letter in (("search", "p"), ("relaxed", "r")):
        chosen = sorted((bits for kind, bits in found if kind == origin), key=lambda bits: pricing.price(bits)[LATENCY])
        result += [Policy(f"{letter}{i:02d}", bits, origin) for i, bits in enumerate(chosen)]
    return result


def between(
    pricing: Pricing,
    budgets: Mapping[str, float],
    searched: tuple[Sequence[Aim], Sequence[NDArray[np.float64]]],
    front: Sequence[tuple[Mapping[str, float], float]],
    taken: Sequence[Mapping[str, int]],
) -> dict[str, int] | None:
    """Returns a new policy for a front that has too few points, or None when no gap holds one.

    A gap lies between neighbours of the front seen along one cost: a cheaper point and a dearer one of lower loss. The
    new policy costs at most the middle on that axis, and on the others no more than the dearer point, so whether it
    joins the front is a matter of its loss alone. The gap with the largest product of cost and loss differences is
    tried first, less often the more policies lie in it already.

    Args:
        pricing: the pricing.
        budgets: the budgets.
        searched: aims and scores ``[V, C]`` of the gate sets.
        front: (price, validation loss) of the points on the front within the budgets.
        taken: policies that are known already.
    """
    targets, scores = searched
    axes = list(budgets) or [LATENCY, FLASH]
    prices = [pricing.price(policy) for policy in taken]
    gaps: list[tuple[float, str, Mapping[str, float], Mapping[str, float]]] = []
    for axis in axes:
        for (cheap, loss), (dear, less) in itertools.pairwise(_descending(front, axis)):
            inside = sum(cheap[axis] < price[axis] < dear[axis] for price in prices)
            size = (dear[axis] - cheap[axis]) / pricing.reference[axis] * (loss - less)
            gaps.append((size / (1 + inside) ** 2, axis, cheap, dear))
    for _, axis, cheap, dear in sorted(gaps, key=lambda gap: -gap[0]):
        middle = (cheap[axis] + dear[axis]) / 2
        nearest = min(range(len(targets)), key=lambda i: abs(targets[i].limits.get(axis, np.inf) - middle))
        limits = {**budgets, **{other: dear[other] for other in axes}, axis: middle}
        policy = settled(pricing, scores[nearest], limits, list(taken))
        if policy is not None:
            return policy
    return None


def _descending(
    front: Sequence[tuple[Mapping[str, float], float]], axis: str
) -> list[tuple[Mapping[str, float], float]]:
    """Returns the points that are non-dominated in (one cost, loss), cheapest first: their losses descend."""
    result: list[tuple[Mapping[str, float], float]] = []
    for price, loss in sorted(front, key=lambda point: (point[0][axis], point[1])):
        if not result or loss < result[-1][1]:
            result.append((price, loss))
    return result
