"""Budgets: what the user allows a policy to cost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ddq_search.cost import BIT_OPERATIONS, ENERGY, FLASH, LATENCY, PEAK_RAM
from ddq_search.errors import ConfigError

UNITS = {
    LATENCY: ("ms", 1e-3),
    FLASH: ("KiB", 1024.0),
    PEAK_RAM: ("KiB", 1024.0),
    BIT_OPERATIONS: ("Gbop", 1e9),
    ENERGY: ("uJ", 1e-6),
}
"""Unit in which people write and read a cost, and its size in SI units (bytes, operations)."""

LABELS = {
    LATENCY: "latency",
    FLASH: "flash",
    PEAK_RAM: "peak RAM",
    BIT_OPERATIONS: "bit operations",
    ENERGY: "energy proxy",
}


@dataclass(frozen=True)
class Wish:
    """A budget as written: absolute in SI units (bytes), or relative to the uniform 8-bit policy."""

    cost: str
    value: float
    relative: bool

    def resolve(self, reference: Mapping[str, float]) -> float:
        """Returns the absolute budget, given the price of the uniform 8-bit policy."""
        return self.value * reference[self.cost] if self.relative else self.value


def parse(cost: str, text: str | float) -> Wish:
    """Reads ``80%`` (of uniform 8 bit) or a number in the cost's unit, which may be written after it.

    Raises:
        ConfigError: not a positive number.

    >>> parse("latency_s", "80%"), parse("flash_bytes", 40)
    (Wish(cost='latency_s', value=0.8, relative=True), Wish(cost='flash_bytes', value=40960.0, relative=False))
    """
    unit, size = UNITS[cost]
    match = re.fullmatch(rf"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*(%|{unit})?\s*", str(text), re.IGNORECASE)
    if not match or not 0 < float(match[1]) < math.inf:
        raise ConfigError(
            f"budget for {LABELS[cost]}: {text!r} is neither a positive number of {unit} nor a percentage"
        )
    if match[2] == "%":
        return Wish(cost, float(match[1]) / 100, True)
    return Wish(cost, float(match[1]) * size, False)


def show(cost: str, value: float, reference: Mapping[str, float] | None = None) -> str:
    """Returns a cost for people: ``1.234 ms`` or ``40.0 KiB``, with its share of ``reference`` if given."""
    unit, size = UNITS[cost]
    text = f"{value / size:.4g} {unit}"
    return text if not reference else f"{text} ({100 * value / reference[cost]:.1f} % of uniform 8 bit)"
