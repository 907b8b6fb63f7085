"""Kernels of Helium cores (Cortex-M55, M85): which layers they execute, how they lay out weights, what they need.

Weights of 8, 4 and 2 bits, activations of 8, 4 and 2 bits; `runtime/ddq_helium*` holds the C. The inner loops take 16
products per instruction, so 4- and 2-bit weights cost a shift or mask per 16 weights and pair (or four) of rows more
than 8-bit ones; depthwise layers accumulate 4- and 2-bit weights in int16 and are faster than with 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ddq_search.export.c.kernels import Kernel
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
    """Rows in blocks of 16 bytes, as `runtime/ddq_helium_products.h` describes them."""
    per_byte = 8 // bits
    rows, length = codes.shape
    order: list[NDArray[np.int64]] = []
    for start in range(0, length, LANES * per_byte):
        count = min(LANES * per_byte, length - start)
        height = -(-count // per_byte)
        byte, field = np.arange(height)[:, None], np.arange(per_byte)
        half = bits < 8 and height <= LANES // 2
        places = 2 * byte + field % 2 + 2 * height * (field // 2) if half else byte + height * field
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


TAPS_IN_INT16 = {8: 2, 4: 36, 2: 255}
"""Products of a depthwise window that fit int16 together."""


def _channel_blocks(codes: NDArray[np.int8], bits: int, shape: LayerShape) -> bytes:
    """Taps by kernel column, then kernel row; of every 16 channels all first bytes, all second ones, …."""
    rows, taps = codes.shape
    columns_first = codes.reshape(rows, *shape.kernel).transpose(0, 2, 1).reshape(rows, taps)
    packed = np.frombuffer(pack_rows(columns_first, bits), np.uint8).reshape(rows, row_bytes(taps, bits))
    return b"".join(packed[first : first + LANES].T.tobytes() for first in range(0, rows, LANES))


def _rows_scratch(shape: LayerShape, weight_bits: int, input_bits: int) -> int:
    """Parameters and weights of 16 channels, the input rows of one row of outputs, and its codes."""
    taps = -(-shape.row_length // 4) * 4
    stride = shape.stride[1] if shape.dilation[1] == 1 else shape.kernel[1]
    width = (shape.output[1] - 1) * stride + shape.kernel[1]
    return LANES * (16 + taps + shape.kernel[0] * width + shape.output[1])


def _one_per_channel(shape: LayerShape) -> bool:
    """Whether every input channel has one output channel."""
    return shape.input[2] == shape.output[2] == shape.groups


def _depthwise(bits: int) -> Kernel:
    return Kernel(
        name=f"ddq_helium_depthwise_w{bits}",
        family="helium",
        source="ddq_helium_depthwise.c",
        classes=("depthwise",),
        weight_bits=(bits,),
        activation_bits=(2, 4, 8),
        offset=OFFSET,
        bound=f"int16 sums of {TAPS_IN_INT16[bits]} taps of |w * (x - 128)| <= {LARGEST_CODE[bits] * OFFSET}, "
        "added up in int32",
        layout=_channel_blocks,
        scratch_bytes=_rows_scratch,
        executes=_one_per_channel,
    )


KERNELS: tuple[Kernel, ...] = tuple(make(bits) for make in (_convolution, _depthwise) for bits in (8, 4, 2))
"""Kernels of the family ``helium``."""
