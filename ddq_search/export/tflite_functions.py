"""When one of TFLite's own activation operators computes a table of the program exactly.

HARD_SWISH, RELU and RELU6 have integer definitions, compared with the table code by code. LOGISTIC, TANH and GELU fill
a table of their own in float32, which is the program's unless an entry lies next to a tie. Any other table is written
into the file and read by GATHER.

Source: LiteRT 2.3, whose reference and optimised kernels agree with these definitions (``tests/test_tflite.py``).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ddq_search.arithmetic import quantize_multiplier
from ddq_search.integer.executor import requantize
from ddq_search.integer.hard_swish import hard_swish_codes
from ddq_search.integer.program import Lookup
from ddq_search.integer.tables import FUNCTIONS
from ddq_search.precision import ActivationGrid, activation_code_range

TIE_MARGIN = 3e-4
"""Distance from a tie, in codes, below which a float32 table may round differently from the program's."""

_FIXED_GRIDS = {"sigmoid": ("LOGISTIC", 1 / 256, 0), "tanh": ("TANH", 1 / 128, 128)}
"""Function → operator, and the scale and zero point that its output must have."""


def builtin_function(step: Lookup, source: ActivationGrid, output: ActivationGrid) -> str | None:
    """Returns the operator whose codes, held within the output's grid, are the step's table; None if there is none.

    Args:
        step: the table, of which the first ``2^bits`` entries of a narrow input are ever read.
        source: grid of the input.
        output: grid of the output.
    """
    table = step.table[: 2**source.bits].astype(np.int64)
    if step.function == "hardswish":
        codes = hard_swish_codes(source, output)
        return "HARD_SWISH" if codes is not None and np.array_equal(codes, table) else None
    if step.function in ("relu", "relu6"):
        return step.function.upper() if np.array_equal(_relu_codes(step.function, source, output), table) else None
    if step.function == "gelu":
        return "GELU" if _far_from_ties("gelu", source, output) else None
    operator, scale, zero_point = _FIXED_GRIDS.get(step.function, (None, 0.0, 0))
    fits = output == ActivationGrid(scale, zero_point, 8) if operator else False
    return operator if fits and _far_from_ties(step.function, source, output) else None


def _relu_codes(function: str, source: ActivationGrid, output: ActivationGrid) -> NDArray[np.int64]:
    """The runtime's RELU: a doubly rounded change of scale, then the clamp."""
    low, high = activation_code_range(output.bits)
    centred = np.arange(2**source.bits, dtype=np.int64) - source.zero_point
    codes = requantize(centred, *quantize_multiplier(source.scale / output.scale), "double") + output.zero_point
    if function == "relu6":
        six = math.floor(float(np.float32(6) / np.float32(output.scale)) + 0.5)
        high = min(high, output.zero_point + six)
    return np.asarray(np.clip(codes, max(low, output.zero_point), high))


def _far_from_ties(function: str, source: ActivationGrid, output: ActivationGrid) -> bool:
    """Whether no entry within reach of the output's grid may round differently in float32."""
    low, high = activation_code_range(output.bits)
    real = np.array([FUNCTIONS[function](source.scale * (c - source.zero_point)) for c in range(2**source.bits)])
    codes = real / output.scale + output.zero_point
    inside = codes[(codes > low - 1) & (codes < high + 1)]
    return bool((np.abs(inside - np.floor(inside) - 0.5) >= TIE_MARGIN).all())
