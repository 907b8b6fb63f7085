"""Policies with a price and a loss, and the best of them within limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ddq_search.cost import keeps


@dataclass(frozen=True)
class Evaluated:
    """A policy that was looked at.

    Attributes:
        bits: variable name → bitwidth.
        price: cost → value.
        loss: its loss without training.
    """

    bits: dict[str, int]
    price: Mapping[str, float]
    loss: float


def best_within(
    evaluated: Iterable[Evaluated], limits: Mapping[str, float], excluded: Sequence[Mapping[str, int]] = ()
) -> dict[str, int] | None:
    """Returns the policy of least loss within the limits, the first of equals, or None when there is none left.

    >>> known = [Evaluated({"a": 8}, {"flash_bytes": 8.0}, 0.1), Evaluated({"a": 4}, {"flash_bytes": 4.0}, 0.3)]
    >>> best_within(known, {"flash_bytes": 6.0})
    {'a': 4}
    """
    able = [
        one for one in evaluated
        if one.bits not in excluded and keeps(one.price, limits)
    ]  # fmt: skip
    return min(able, key=lambda one: one.loss).bits if able else None
