"""The portable kernels: any layer, any widths, in plain C99."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddq_search.export.c.kernels import Kernel
from ddq_search.layer_shape import LAYER_CLASSES, LayerShape
from ddq_search.packing import pack_rows

WIDTHS = (2, 4, 8)
BOUND = (
    "int32 sums of int8 x int16 (code minus zero point, at most 255 in magnitude); the program holds "
    "|bias| + sum|w| * max|x - in_zero| <= INT32_MAX for every channel, so no order of summation overflows"
)


def packed_rows(codes: NDArray[np.int8], bits: int, shape: LayerShape) -> bytes:
    """The plain layout: codes in order, lowest bits first, every row from a byte boundary."""
    return pack_rows(codes, bits)


def column_bytes(shape: LayerShape, weight_bits: int, input_bits: int) -> int:
    """Scratch: one window as int16."""
    return 2 * shape.row_length


def _portable(name: str, *, codebook: bool = False, points: bool = False) -> Kernel:
    return Kernel(
        name, "portable", "ddq_portable.c", LAYER_CLASSES, WIDTHS, WIDTHS, None, BOUND, packed_rows, column_bytes,
        codebook=codebook, points=points,
    )  # fmt: skip


KERNELS = (
    _portable("ddq_portable"),
    _portable("ddq_portable_codebook", codebook=True),
    _portable("ddq_portable_points", points=True),
)
