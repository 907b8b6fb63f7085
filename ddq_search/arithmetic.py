"""Fixed-point words: how a real multiplier becomes a 31-bit integer and a shift.

*Deriving* the integers is written once, here. *Executing* them is written twice, independently: in torch
(`ddq_search.evaluation`) and in NumPy (`ddq_search.integer`), so that each checks the other.

Source: the published semantics of TensorFlow Lite's quantization (``QuantizeMultiplier``), our code.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

Arithmetic = Literal["tflite", "single"]
"""Named rounding of a requantization: ``tflite`` rounds twice (doubling high multiply, then shift), ``single`` once."""

ARITHMETICS: tuple[str, ...] = get_args(Arithmetic)


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Returns ``(multiplier, shift)`` with ``real ≈ multiplier / 2^31 * 2^shift`` and ``multiplier`` in [2^30, 2^31).

    Zero gives ``(0, 0)``; a value below 2^-32 flushes to zero as no int32 accumulator could raise it to a code.

    Raises:
        ValueError: the value is negative, not finite, or 2^30 or larger.

    >>> quantize_multiplier(0.5), quantize_multiplier(1.0), quantize_multiplier(0.0)
    ((1073741824, 0), (1073741824, 1), (0, 0))
    """
    if not math.isfinite(real) or real < 0 or real >= 2.0**30:
        raise ValueError(f"multiplier {real} cannot be represented in fixed point")
    if real == 0:
        return 0, 0
    mantissa, shift = math.frexp(real)
    multiplier = math.floor(mantissa * 2**31 + 0.5)
    if multiplier == 2**31:
        multiplier, shift = 2**30, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)
