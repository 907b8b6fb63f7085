"""Look-up tables: a real function between two grids, one entry per input code."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ddq_search.arithmetic import Arithmetic
from ddq_search.integer.hard_swish import hard_swish_codes
from ddq_search.precision import ActivationGrid, activation_code_range

FUNCTIONS: dict[str, Callable[[float], float]] = {
    "relu": lambda x: max(x, 0.0),
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "hardswish": lambda x: x * min(max(x + 3.0, 0.0), 6.0) / 6.0,
    "hardsigmoid": lambda x: min(max(x + 3.0, 0.0), 6.0) / 6.0,
    "sigmoid": lambda x: _sigmoid(x),
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0))),
    "tanh": math.tanh,
}
"""The real functions behind the tables, in float64."""


def round_half_away(value: float) -> int:
    """Returns the nearest integer, ties away from zero.

    >>> round_half_away(2.5), round_half_away(-2.5), round_half_away(0.49999999999999994)
    (3, -3, 0)
    """
    magnitude = abs(value)
    whole = math.floor(magnitude)
    whole += magnitude - whole >= 0.5
    return int(math.copysign(whole, value))


def activation_table(
    function: str, source: ActivationGrid, output: ActivationGrid, arithmetic: Arithmetic = "single"
) -> NDArray[np.uint8]:
    """Returns the ``[256]`` table of a function between two grids, padded with the last entry of a narrow input.

    Entries are the real function, rounded half away from zero, as TensorFlow Lite fills its own tables; its hard swish
    is computed in integers instead.
    """
    fixed = hard_swish_codes(source, output) if (function, arithmetic) == ("hardswish", "tflite") else None
    if fixed is not None:
        return np.array(fixed + [fixed[-1]] * (256 - len(fixed)), dtype=np.uint8)
    codes = range(activation_code_range(source.bits)[1] + 1)
    real = [FUNCTIONS[function](source.scale * (code - source.zero_point)) / output.scale for code in codes]
    low, high = activation_code_range(output.bits)
    entries = [min(max(round_half_away(min(max(r, -1e6), 1e6)) + output.zero_point, low), high) for r in real]
    return np.array(entries + [entries[-1]] * (256 - len(entries)), dtype=np.uint8)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
