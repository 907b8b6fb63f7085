"""Kernels of Helium cores (Cortex-M55, M85): which layers they execute, how they lay out weights, what they need.

Weights of 8, 4 and 2 bits, activations of 8, 4 and 2 bits; `runtime/ddq_helium*` holds the C. The inner loops take 16
products per instruction, so 4- and 2-bit weights cost a shift or mask per 16 weights and pair (or four) of rows more
than 8-bit ones; depthwise layers accumulate 4- and 2-bit weights in int16 and are faster than with 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ddq_search.export.c.kernels import Kernel, Layout
from ddq_search.layer_shape import LayerShape
from ddq_search.packing import pack_rows, row_bytes

LANES = 16
"""int8 lanes of a vector."""
PIXELS = 3
"""Columns a tile of products holds."""
OFFSET = 128
"""Activations are multiplied as code - 128."""
LARGEST_CODE = {8: 127, 4: 7, 2: 1}
"""Largest magnitude of a weight code of the narrow range."""
SCALE = {8: 1, 4: 16, 2: 64}
"""What products are multiplied by because codes stay in the high bits of their byte."""


def _block_rows(codes: NDArray[np.int8], bits: int, shape: LayerShape) -> bytes:
    """Rows in blocks of 16 bytes whose byte j holds codes j, h + j, … (h bytes in the block, lowest bits first)."""
    per_byte = 8 // bits
    rows, length = codes.shape
    order: list[NDArray[np.int64]] = []
    for start in range(0, length, LANES * per_byte):
        count = min(LANES * per_byte, length - start)
        height = -(-count // per_byte)
        places = np.arange(height)[:, None] + height * np.arange(per_byte)
        order.append(np.where(places < count, start + places, length).ravel())
    padded = np.concatenate([codes, np.zeros((rows, 1), np.int8)], axis=1)
    return pack_rows(padded[:, np.concatenate(order)], bits)


def _columns_scratch(shape: LayerShape, weight_bits: int, input_bits: int) -> int:
    """Three columns, the sums of three columns and their codes before packing."""
    step = LANES * 8 // weight_bits
    column = -(-shape.row_length // step) * step
    channels = -(-(shape.output[2] // shape.groups) // 4) * 4
    return PIXELS * (column + 5 * channels)


def _short_rows(bits: int) -> Callable[[LayerShape], bool]:
    """Whether int32 holds the scaled sum of a row whatever the codes are."""
    return lambda shape: shape.row_length * SCALE[bits] * LARGEST_CODE[bits] * OFFSET < 2**31


def _convolution(bits: int) -> Kernel:
    scaled = f"{SCALE[bits]} * " if SCALE[bits] > 1 else ""
    return Kernel(
        name=f"ddq_helium_conv_w{bits}",
        family="helium",
        source="ddq_helium_conv.c",
        classes=("conv", "pointwise", "grouped", "linear"),
        weight_bits=(bits,),
        activation_bits=(2, 4, 8),
        offset=OFFSET,
        bound=f"int32 sums of {scaled}w * (x - 128): K * {SCALE[bits] * LARGEST_CODE[bits] * OFFSET} < 2^31",
        layout=_block_rows,
        scratch_bytes=_columns_scratch,
        executes=_short_rows(bits),
    )


KERNELS: tuple[Kernel, ...] = tuple(_convolution(bits) for bits in (8, 4, 2))
"""Kernels of the family ``helium``."""
