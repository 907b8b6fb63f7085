"""Byte layouts of the deployed constants: pure functions shared by the price of a policy and by the exporters.

Legend: a weight tensor is ``rows x row_length`` codes, one row per output channel (input channels and kernel
positions flattened in the executing kernel's order). Every row starts on a byte boundary; within a byte the first
code takes the lowest bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddq_search.precision import FLOAT_BITS, storage_bits

BIAS_BYTES = 4
"""int32 bias per output channel."""
MULTIPLIER_BYTES = 4
"""int32 fixed-point multiplier per output channel."""
SHIFT_BYTES = 1
"""int8 shift per output channel."""
CHANNEL_BYTES = BIAS_BYTES + MULTIPLIER_BYTES + SHIFT_BYTES
RATIO_BYTES = 2
"""int16 ratio per output channel of a further point of multipoint weights."""
TABLE_BYTES = 256
"""A look-up table of an 8-bit activation function."""


def row_bytes(row_length: int, bits: int) -> int:
    """Returns the bytes of one row of packed codes.

    >>> row_bytes(27, 2), row_bytes(27, 4), row_bytes(27, 8)
    (7, 14, 27)
    """
    return -(-row_length * storage_bits(bits) // 8)


def weight_bytes(rows: int, row_length: int, bits: int) -> int:
    """Returns the bytes of a packed weight tensor (float32 at 32 bits)."""
    return rows * row_bytes(row_length, bits)


def codebook_bytes(bits: int) -> int:
    """Returns the bytes of the int8 levels of non-uniform weights, one table per tensor (none at 32 bits).

    >>> codebook_bytes(2), codebook_bytes(8), codebook_bytes(32)
    (4, 256, 0)
    """
    return 0 if bits == FLOAT_BITS else 2**bits


def point_bytes(rows: int, row_length: int, bits: int) -> int:
    """Returns the bytes of one further point of multipoint weights: its packed codes and its ratios."""
    return weight_bytes(rows, row_length, bits) + rows * RATIO_BYTES


def layer_bytes(rows: int, row_length: int, bits: int, *, codebook: bool = False, points: int = 0) -> int:
    """Returns the flash bytes of a convolution or linear layer: packed weights plus per-channel constants.

    Args:
        rows: output channels.
        row_length: weights per output channel.
        bits: of the weights; float32 weights have neither levels nor points.
        codebook: the weights are indices into levels that are stored with them.
        points: number of further points of multipoint weights, each of the same bits.
    """
    per_row = BIAS_BYTES if bits == FLOAT_BITS else CHANNEL_BYTES
    further = 0 if bits == FLOAT_BITS else points * point_bytes(rows, row_length, bits)
    return weight_bytes(rows, row_length, bits) + further + rows * per_row + codebook * codebook_bytes(bits)


def activation_bytes(elements: int, bits: int) -> int:
    """Returns the RAM bytes of an activation tensor whose codes are packed without padding.

    >>> activation_bytes(5, 2), activation_bytes(5, 8)
    (2, 5)
    """
    return row_bytes(elements, bits)


def pack_rows(codes: NDArray[np.integer], bits: int) -> bytes:
    """Packs signed or unsigned codes ``[rows, row_length]`` at their storage width.

    >>> pack_rows(np.array([[1, -1, 0, 1, -1]]), 2).hex()
    '4d03'
    """
    rows, length = codes.shape
    width = storage_bits(bits)
    per_byte = 8 // width
    padded = np.zeros((rows, row_bytes(length, bits) * per_byte), dtype=np.int64)
    padded[:, :length] = codes
    fields = (padded & ((1 << width) - 1)).reshape(rows, -1, per_byte)
    packed: bytes = (fields << (width * np.arange(per_byte))).sum(-1).astype(np.uint8).tobytes()
    return packed


def unpack_rows(data: bytes, rows: int, row_length: int, bits: int, *, signed: bool) -> NDArray[np.int32]:
    """Inverse of `pack_rows`: returns the codes ``[rows, row_length]``.

    Raises:
        ValueError: ``data`` does not hold exactly the packed tensor.
    """
    expected = weight_bytes(rows, row_length, bits)
    if len(data) != expected:
        raise ValueError(f"{len(data)} bytes do not hold {rows} x {row_length} codes of {bits} bits ({expected} bytes)")
    width = storage_bits(bits)
    per_byte = 8 // width
    raw = np.frombuffer(data, np.uint8).astype(np.int32).reshape(rows, -1, 1)
    fields = (raw >> (width * np.arange(per_byte, dtype=np.int32))) & ((1 << width) - 1)
    if signed:
        fields = fields - ((fields >> (width - 1)) << width)
    return fields.reshape(rows, -1)[:, :row_length].astype(np.int32)
