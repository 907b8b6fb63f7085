"""Kernels for Cortex-M cores with the DSP extension (M4, M7, M33, M35P): names, weight layouts, scratch.

The C files state how weights are arranged and why (`runtime/ddq_dsp_dot.h`, `runtime/ddq_dsp_depthwise.c`); here is the
same arrangement as NumPy writes it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddq_search.export.c.kernels import Kernel
from ddq_search.layer_shape import LayerShape
from ddq_search.packing import pack_rows, row_bytes

_WORD_CODES = {8: 4, 4: 8, 2: 16}
"""Codes of a 32-bit word."""


def matrix_layout(codes: NDArray[np.int8], bits: int, shape: LayerShape) -> bytes:
    """Returns the bytes of `ddq_dsp_conv_w8` (4, 2): pairs of channels quad by quad, rests in plain order."""
    rows = shape.output[2] // shape.groups
    stored = _stored(codes, bits)
    parts: list[bytes] = []
    for start in range(0, len(codes), rows):
        group = stored[start : start + rows]
        pairs = rows // 2 * 2
        parts += [_interleaved(group[row : row + 2], bits) for row in range(0, pairs, 2)]
        parts += [_interleaved(group[row:], bits) for row in range(pairs, rows)]
    return b"".join(parts)


def depthwise_layout(codes: NDArray[np.int8], bits: int, shape: LayerShape) -> bytes:
    """Returns the bytes of `ddq_dsp_depthwise`: blocks of four channels tap by tap, the last channels as plain rows."""
    stored, whole = _stored(codes, bits), len(codes) // 4 * 4
    block_bytes = 4 * row_bytes(codes.shape[1], bits)
    blocks = (pack_rows(stored[row : row + 4].T.reshape(1, -1), bits) for row in range(0, whole, 4))
    return b"".join(block.ljust(block_bytes, b"\0") for block in blocks) + _plain(stored[whole:], bits)


def _stored(codes: NDArray[np.int8], bits: int) -> NDArray[np.int64]:
    """Returns codes as the words hold them: bytes in two's complement, narrower codes made unsigned."""
    return codes.astype(np.int64) + (0 if bits == 8 else 1 << (bits - 1))


def _interleaved(rows: NDArray[np.int64], bits: int) -> bytes:
    """Returns one or two channels ``[channels, K]`` quad by quad in words, then what fills none."""
    channels, length = rows.shape
    step = max(_WORD_CODES[bits] // channels, 4)
    whole = length // step * step
    quads = rows[:, :whole].reshape(channels, -1, 4).swapaxes(0, 1).reshape(-1, 4)
    words = quads.reshape(-1, _WORD_CODES[bits] // 4, 4)
    unit, code = np.arange(words.shape[1])[:, None], np.arange(4)
    # Bit of code i of quad u: the lanes pair i with i + 2.
    place = 8 * code if bits == 8 else 2 * bits * unit + 16 * (code >> 1) + bits * (code & 1)
    packed = ((words & ((1 << bits) - 1)) << place).sum((1, 2))
    data: bytes = packed.astype("<u4").tobytes()
    return data + _plain(rows[:, whole:], bits)


def _plain(rows: NDArray[np.int64], bits: int) -> bytes:
    return pack_rows(rows, bits) if rows.size else b""


def _column_bytes(shape: LayerShape, weight_bits: int, input_bits: int) -> int:
    """Two columns of int16, K rounded up to four; and K bytes where the channels of a group are no multiple of four."""
    length = shape.row_length
    return 4 * (length + -length % 4) + (length if shape.input[2] // shape.groups % 4 else 0)


def _tap_bytes(shape: LayerShape, weight_bits: int, input_bits: int) -> int:
    """Four weights of int16 for every tap; four bytes more where packed inputs are copied."""
    return (12 if input_bits < 8 and shape.input[2] % 4 else 8) * shape.kernel[0] * shape.kernel[1]


def _matrix_kernel(bits: int) -> Kernel:
    bound = "int32, exact where |bias| + 255 * sum(|w|) < 2^31"
    if bits < 8:
        bound += "; wraps around modulo 2^32 on the way, its codes being biased"
    return Kernel(
        f"ddq_dsp_conv_w{bits}", "dsp", "ddq_dsp_conv.c", ("conv", "pointwise", "grouped", "linear"), (bits,),
        (8, 4, 2), 0, bound, matrix_layout, _column_bytes,
    )  # fmt: skip


KERNELS: tuple[Kernel, ...] = (
    *(_matrix_kernel(bits) for bits in (8, 4, 2)),
    Kernel(
        "ddq_dsp_depthwise", "dsp", "ddq_dsp_depthwise.c", ("depthwise",), (8, 4, 2), (8, 4, 2), 0,
        "int32, exact where |bias| + 255 * sum(|w|) < 2^31", depthwise_layout, _tap_bytes,
        executes=lambda shape: shape.input[2] == shape.output[2],
    ),
)  # fmt: skip
"""All kernels of the family, the one to prefer first."""
