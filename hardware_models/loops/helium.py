"""What the loops of the Helium kernels repeat, beside the counts of `hardware_models.terms`, as functions of a layer.

Legend: a kernel computes tiles of ``tile_pixels`` windows and ``tile_channels`` channels over steps of ``k_multiple``;
windows left over are computed one by one with twice the channels.
"""

from __future__ import annotations

from collections.abc import Mapping

from ddq_search.layer_shape import LayerShape
from hardware_models.tiling import Term, Tiles


def _products(shape: LayerShape) -> int:
    return shape.groups if shape.layer_class == "grouped" else 1


def _windows(shape: LayerShape, kernel: Tiles) -> int:
    return _products(shape) * shape.pixels


def _passes(shape: LayerShape, kernel: Tiles) -> int:
    return _products(shape) * sum(divmod(shape.pixels, kernel.tile_pixels))


def _tiles(shape: LayerShape, windows: int, channels: int) -> int:
    """Tiles of ``channels`` for each of ``windows``, in every group."""
    return _products(shape) * windows * -(-(shape.channels // _products(shape)) // channels)


def _full(shape: LayerShape, kernel: Tiles) -> int:
    return _tiles(shape, shape.pixels // kernel.tile_pixels, kernel.tile_channels)


def _rest(shape: LayerShape, kernel: Tiles) -> int:
    return _tiles(shape, shape.pixels % kernel.tile_pixels, 2 * kernel.tile_channels)


def _ends_in_half(shape: LayerShape, kernel: Tiles) -> bool:
    """Whether rows end in a half block, which 4- and 2-bit weights have."""
    return kernel.weight_bits < 8 and 0 < shape.row_length % kernel.k_multiple <= kernel.k_multiple // 2


def _steps(shape: LayerShape, kernel: Tiles) -> int:
    return -(-shape.row_length // kernel.k_multiple) - _ends_in_half(shape, kernel)


def _moved(shape: LayerShape, kernel: Tiles) -> int:
    """Windows whose last codes do not lie where 4- and 2-bit weights need them."""
    left = shape.row_length * kernel.weight_bits % 128
    return _windows(shape, kernel) * (kernel.weight_bits < 8 and left > (64 if kernel.weight_bits == 4 else 0))


def _runs(shape: LayerShape, kernel: Tiles) -> int:
    return _windows(shape, kernel) * shape.runs_per_pixel


def _run_codes(shape: LayerShape) -> int:
    return shape.row_length // shape.runs_per_pixel


def _odd(channels: int, kernel: Tiles) -> bool:
    return channels * kernel.activation_bits % 8 != 0


def _direct(shape: LayerShape, kernel: Tiles) -> int:
    """Windows of 8-bit codes that are runs of bytes inside the image."""
    return shape.pixels - shape.border_pixels if shape.groups == shape.dilation[1] == 1 else 0


def _direct_runs(shape: LayerShape, kernel: Tiles) -> int:
    return _direct(shape, kernel) * shape.kernel[0]


def _blocks(shape: LayerShape, kernel: Tiles) -> int:
    return -(-shape.channels // kernel.tile_channels)


def _window_rows(shape: LayerShape, kernel: Tiles) -> int:
    runs = shape.kernel[1] if shape.dilation[1] > 1 else 1
    return _blocks(shape, kernel) * shape.output[0] * shape.kernel[0] * runs


def _window_columns(shape: LayerShape, kernel: Tiles) -> int:
    shared = (shape.output[1] - 1) * shape.stride[1] + shape.kernel[1]
    return _window_rows(shape, kernel) * (shape.output[1] if shape.dilation[1] > 1 else shared)


def _inside(shape: LayerShape, axis: int) -> int:
    """Pairs of output and tap along an axis that lie inside the image."""
    places = (
        output * shape.stride[axis] - shape.padding[axis] + tap * shape.dilation[axis]
        for output in range(shape.output[axis])
        for tap in range(shape.kernel[axis])
    )
    return sum(0 <= place < shape.input[axis] for place in places)


def _inside_columns(shape: LayerShape, kernel: Tiles) -> int:
    reach = (shape.output[1] - 1) * shape.stride[1] + shape.kernel[1] - shape.padding[1]
    across = _inside(shape, 1) if shape.dilation[1] > 1 else min(reach, shape.input[1])
    return _blocks(shape, kernel) * _inside(shape, 0) * across


def _stores(shape: LayerShape, kernel: Tiles) -> int:
    if shape.layer_class == "depthwise":
        return _blocks(shape, kernel) * shape.output[0]
    return shape.groups * shape.pixels if shape.groups > 1 else _passes(shape, kernel)


HELIUM_TERMS: Mapping[str, Term] = {
    "windows": _windows,
    "direct_windows": _direct,
    "direct_runs": _direct_runs,
    "searched_windows": lambda shape, kernel: _windows(shape, kernel) - _direct(shape, kernel),
    "searched_runs": lambda shape, kernel: _runs(shape, kernel) - _direct_runs(shape, kernel),
    "vectors": lambda shape, kernel: _runs(shape, kernel) * -(-_run_codes(shape) // 16),
    "odd_runs": lambda shape, kernel: _runs(shape, kernel) * _odd(shape.input_channels // shape.groups, kernel),
    "moved": _moved,
    "passes": _passes,
    "full_tiles": _full,
    "full_steps": lambda shape, kernel: _full(shape, kernel) * _steps(shape, kernel),
    "full_halves": lambda shape, kernel: _full(shape, kernel) * _ends_in_half(shape, kernel),
    "rest_tiles": _rest,
    "rest_steps": lambda shape, kernel: _rest(shape, kernel) * _steps(shape, kernel),
    "rest_halves": lambda shape, kernel: _rest(shape, kernel) * _ends_in_half(shape, kernel),
    "channel_blocks": _blocks,
    "window_rows": _window_rows,
    "window_columns": _window_columns,
    "inside_columns": _inside_columns,
    "odd_columns": lambda shape, kernel: _inside_columns(shape, kernel) * _odd(shape.input_channels, kernel),
    "stores": _stores,
}
"""Term → count of it:

``windows`` output positions of all groups; ``direct_windows, direct_runs`` those that are runs of bytes inside the
image, and their runs; ``searched_windows, searched_runs`` the others (borders, groups, dilated rows); ``vectors`` of 16
codes in all runs; ``odd_runs`` runs of codes that do not begin at a byte; ``moved`` windows whose columns end in a
spread block; ``passes`` tiles of windows, those left over one by one; ``full_tiles, full_steps`` tiles full of windows
and their whole steps of K, ``full_halves`` those whose rows end in half a step; ``rest_tiles, rest_steps, rest_halves``
the same of windows left over; ``channel_blocks`` blocks of channels of a depthwise layer; ``window_rows`` kernel rows
of all rows of outputs, per block (times kernel columns where those are dilated); ``window_columns`` columns in them,
``inside_columns`` those inside the image, ``odd_columns`` those of them that do not begin at a byte; ``stores`` calls
that pack outputs of 4 and 2 bits.
"""
