"""Our kernels for AArch64: which layers they execute, how weights lie, how much scratch they take.

Weights of a convolution lie row by row, every row *planar*: 16 bytes hold ``8 / bits`` runs of 16 consecutive codes,
run z in bits ``z * bits`` upwards, so that one shift per run unpacks it; what is left of a row uses as few bytes as
hold it in the same way. A depthwise layer is one such row over ``[tap, channel]``. The unpacked codes of four
channels, and the columns of a panel of output positions, lie in scratch.

Legend: K weights per output channel, in the order kernel row, kernel column, input channel within the group.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ddq_search.export.c.kernels import Kernel
from ddq_search.layer_shape import LayerClass, LayerShape
from ddq_search.packing import pack_rows, weight_bytes
from ddq_search.precision import storage_bits

PANEL_PIXELS = 72
"""Output positions whose columns lie in scratch together; the weights of four channels are unpacked once for them."""
STEP = 16
"""Codes that a tile multiplies at once: K is padded to a multiple of it, with zero activations."""
TILE_CHANNELS = 4
WIDE_PIXELS, NARROW_PIXELS = 4, 6
"""Output positions of a tile: int32 lanes leave room for four, int16 and int8 lanes for six."""

PRODUCTS: tuple[LayerClass, ...] = ("conv", "pointwise", "grouped")
WIDTHS = (2, 4, 8)


def planar(codes: NDArray[np.int8], bits: int) -> bytes:
    """Packs every row on its own: runs of 16 codes side by side, the rest of the row in shorter runs.

    >>> planar(np.arange(1, 6, dtype=np.int8)[None] - 3, 4).hex()  # -2 -1 0 | 1 2
    '1e2f00'
    """
    rows, length = codes.shape
    each = 8 // storage_bits(bits)
    whole = length // (16 * each) * 16 * each
    runs = codes[:, :whole].reshape(rows, -1, each, 16).transpose(0, 1, 3, 2).reshape(rows, whole)
    rest = -(-(length - whole) // each)
    tail = np.zeros((rows, each, rest), dtype=np.int8)
    tail.reshape(rows, -1)[:, : length - whole] = codes[:, whole:]
    return pack_rows(np.concatenate([runs, tail.transpose(0, 2, 1).reshape(rows, -1)], axis=1), bits)


def planar_rows(codes: NDArray[np.int8], bits: int, shape: LayerShape) -> bytes:
    """The layout of convolutions and linear layers: one planar row per output channel."""
    return planar(codes, bits)


def tap_major(codes: NDArray[np.int8], bits: int, shape: LayerShape) -> bytes:
    """The layout of depthwise layers: one planar row ``[tap, channel]``, filled up to the bytes of separate rows."""
    rows, length = codes.shape
    return planar(codes.T.reshape(1, -1), bits).ljust(weight_bytes(rows, length, bits), b"\0")


def _up(count: int, multiple: int = 16) -> int:
    return -(-count // multiple) * multiple


def band_bytes(shape: LayerShape) -> int:
    """Returns the bytes of the padded input rows that one row of outputs reads (a byte per code), and of pointers."""
    out_w = shape.output[1]
    if shape.kernel == shape.stride == (1, 1) and shape.padding == (0, 0) and shape.output[:2] == shape.input[:2]:
        out_w = min(shape.pixels, PANEL_PIXELS)
    columns = (out_w - 1) * shape.stride[1] + (shape.kernel[1] - 1) * shape.dilation[1] + 1
    span = (shape.kernel[0] - 1) * shape.dilation[0] + 1
    return span * _up(columns * shape.input[2]) + _up(4 * shape.kernel[0])


def product_scratch(tile_pixels: int) -> Callable[[LayerShape, int, int], int]:
    """Returns the scratch of a convolution by tiles of so many positions.

    It holds the band, one window, columns of a panel, unpacked weights of four channels, codes of the panel.
    """

    def scratch_bytes(shape: LayerShape, weight_bits: int, input_bits: int) -> int:
        row, most = _up(shape.row_length), min(shape.pixels, PANEL_PIXELS)
        columns = _up(most, tile_pixels) * shape.groups * row
        return band_bytes(shape) + row + 32 + columns + TILE_CHANNELS * row + _up(most * shape.channels) + 64

    return scratch_bytes


def depthwise_scratch_bytes(shape: LayerShape, weight_bits: int, input_bits: int) -> int:
    """Band, what tiles that overhang a row read behind it, offsets of taps, unpacked weights, codes of a row."""
    taps, channels, out_w = shape.row_length, shape.channels, shape.output[1]
    overhang = _up(3 * shape.stride[1] * channels) + 16
    weights = 0 if weight_bits == 8 and channels >= STEP else _up(taps * channels) + 16
    return band_bytes(shape) + overhang + _up(4 * taps) + weights + _up(out_w * channels) + 80


def linear_scratch_bytes(shape: LayerShape, weight_bits: int, input_bits: int) -> int:
    """Codes of one position in whole chunks of weights, codes of one output."""
    return _up(-(-shape.row_length * weight_bits // 8)) * (8 // weight_bits) + _up(shape.channels) + 64


def one_output_per_input(shape: LayerShape) -> bool:
    """Whether a depthwise layer has as many outputs as inputs."""
    return shape.output[2] == shape.input[2]


def _product(name: str, weight_bits: int, activation_bits: tuple[int, ...], offset: int, bound: str) -> Kernel:
    pixels = WIDE_PIXELS if name.endswith("w8a8") else NARROW_PIXELS
    return Kernel(
        name, "neon", "ddq_neon.c", PRODUCTS, (weight_bits,), activation_bits, offset, bound, planar_rows,
        product_scratch(pixels),
    )  # fmt: skip


def _layer(
    name: str, kind: LayerClass, scratch: Callable[[LayerShape, int, int], int], bound: str, block: str
) -> Kernel:
    layout = tap_major if kind == "depthwise" else planar_rows
    executes = one_output_per_input if kind == "depthwise" else lambda shape: True
    return Kernel(
        name, "neon", "ddq_neon.c", (kind,), WIDTHS, WIDTHS, 128, f"{bound}; {block}", layout, scratch,
        executes=executes,
    )  # fmt: skip


_PAIRS = "8-bit weights: an int16 lane takes two products, 2 * 127 * 128 = 32512, before it is added to int32"

KERNELS: tuple[Kernel, ...] = (
    _product("ddq_neon_w8a8", 8, (8,), 128, "an int16 lane takes two products, 2 * 127 * 128 = 32512, then int32"),
    _product("ddq_neon_w8a4", 8, (4, 2), 8, "an int16 lane takes 32 products (K = 256), 32 * 127 * 8 = 32512"),
    _product("ddq_neon_w4a8", 4, (8,), 128, "an int16 lane takes 36 products (K = 288), 36 * 7 * 128 = 32256"),
    _product("ddq_neon_w4a4", 4, (4, 2), 8, "an int16 lane takes 584 products (K = 4672), 584 * 7 * 8 = 32704"),
    _product("ddq_neon_w2a8", 2, (8,), 128, "an int16 lane takes 254 products (K = 2032), 254 * 128 = 32512"),
    _product("ddq_neon_w2a4", 2, (4,), 8, "an int8 lane takes 15 products (K = 240), 15 * 8 = 120"),
    _product("ddq_neon_w2a2", 2, (2,), 0, "an int8 lane takes 42 products (K = 672), 42 * 3 = 126"),
    _layer(
        "ddq_neon_depthwise", "depthwise", depthwise_scratch_bytes, _PAIRS,
        "4 bits: 36 products (taps), 36 * 7 * 128 = 32256; 2 bits: 255, 255 * 128 = 32640",
    ),
    _layer(
        "ddq_neon_linear", "linear", linear_scratch_bytes, _PAIRS,
        "4 bits: 36 products (K = 1152 over 32 lanes of 16), 32256; 2 bits: 252 (K = 8064), 252 * 128 = 32256",
    ),
)  # fmt: skip
