"""TensorFlow Lite's integer hard swish: 16-bit fixed point, up to one code away from the rounded real function.

Source: the published semantics of TensorFlow Lite's HARD_SWISH (int8), our code.
"""

from __future__ import annotations

import numpy as np

from ddq_search.arithmetic import quantize_multiplier
from ddq_search.precision import ActivationGrid, activation_code_range

_FRACTION_BITS = 7
"""Bits that the centred input gains: 8-bit codes then fill 16 bits."""
_LOW, _HIGH = -(2**15), 2**15 - 1


def hard_swish_codes(source: ActivationGrid, output: ActivationGrid) -> list[int] | None:
    """Returns the output code of every input code, or None where the runtime refuses the pair of grids.

    It refuses an output scale below 1/128 of the input scale.
    """
    fine = np.float32(source.scale) / np.float32(2**_FRACTION_BITS)
    to_output, output_shift = _factor16(float(fine / np.float32(output.scale)))
    to_gate, gate_shift = _factor16(float(fine / (np.float32(3) / np.float32(2**15))))
    if output_shift > 0:
        return None
    low, high = activation_code_range(output.bits)
    codes = []
    for code in range(activation_code_range(source.bits)[1] + 1):
        x = (code - source.zero_point) << _FRACTION_BITS
        gate = (_gate(x, to_gate, gate_shift) + 2**15) >> 1  # clip(x + 3, 0, 6) / 6 in 15 bits
        product = _divided(gate * _high_product(x, to_output), 2**15)
        codes.append(min(max(_shifted(product, -output_shift) + output.zero_point, low), high))
    return codes


def _gate(x: int, multiplier: int, shift: int) -> int:
    """``x`` on the scale 3 / 2^15, saturating at ±3; the shift to the left is split around the multiplication."""
    value = _saturated(x << max(shift - 1, 0))
    value = _high_product(value, multiplier)
    return _saturated(value << 1) if shift > 0 else _shifted(value, -shift)


def _factor16(real: float) -> tuple[int, int]:
    multiplier, shift = quantize_multiplier(real)
    return min((multiplier + 2**15) >> 16, _HIGH), shift


def _high_product(a: int, b: int) -> int:
    """``a * b / 2^15`` rounded, ties towards plus infinity."""
    product = a * b
    return _divided(product + (2**14 if product >= 0 else 1 - 2**14), 2**15)


def _divided(a: int, b: int) -> int:
    """Quotient rounded towards zero."""
    return a // b if a >= 0 else -(-a // b)


def _shifted(value: int, right: int) -> int:
    """Right shift, ties away from zero."""
    half = (1 << right) >> 1
    return (value + half) >> right if value >= 0 else -((-value + half) >> right)


def _saturated(value: int) -> int:
    return min(max(value, _LOW), _HIGH)
