"""What the loops of the Cortex-M DSP kernels repeat, beside the counts of `hardware_models.terms`.

Legend: a matrix kernel computes tiles of two windows and two channels over steps of ``k_multiple`` codes; a window left
over, and a channel left over, are computed alone. A window whose channels of a group are a multiple of four is gathered
run by run, others are copied as bytes first; a layer of 1 x 1 windows and 8-bit inputs reads its columns in place. The
depthwise kernel computes blocks of four channels window by window; channels left over go code by code.
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


def _pairs(shape: LayerShape, kernel: Tiles) -> int:
    return shape.channels // _products(shape) // kernel.tile_channels


def _full(shape: LayerShape, kernel: Tiles) -> int:
    return _products(shape) * (shape.pixels // kernel.tile_pixels) * _pairs(shape, kernel)


def _odd(shape: LayerShape, kernel: Tiles) -> int:
    return _products(shape) * (shape.pixels % kernel.tile_pixels) * _pairs(shape, kernel)


def _lone(shape: LayerShape, kernel: Tiles, windows: int) -> int:
    return _products(shape) * windows * (shape.channels // _products(shape) % kernel.tile_channels)


def _quads(shape: LayerShape) -> int:
    return -(-shape.row_length // 4)


def _steps(shape: LayerShape, kernel: Tiles) -> int:
    return shape.row_length // kernel.k_multiple


def _rests(shape: LayerShape, kernel: Tiles) -> int:
    """Quads after the last whole step."""
    return -(-(shape.row_length % kernel.k_multiple) // 4)


def _in_place(shape: LayerShape, kernel: Tiles) -> bool:
    return shape.layer_class in ("pointwise", "linear") and kernel.activation_bits == 8


def _gathered(shape: LayerShape, kernel: Tiles) -> bool:
    return not _in_place(shape, kernel) and shape.input_channels // shape.groups % 4 == 0


def _copied(shape: LayerShape, kernel: Tiles) -> bool:
    return not _in_place(shape, kernel) and shape.input_channels // shape.groups % 4 != 0


def _inside(shape: LayerShape) -> int:
    return _products(shape) * (shape.pixels - shape.border_pixels)


def _border_runs(shape: LayerShape, kernel: Tiles) -> int:
    return _products(shape) * shape.border_pixels * shape.kernel[0] * shape.kernel[1]


def _copied_words(shape: LayerShape, kernel: Tiles) -> int:
    """Whether windows inside are copied by words."""
    return shape.groups == shape.dilation[1] == 1 and kernel.activation_bits == 8


def _blocks(shape: LayerShape, kernel: Tiles) -> int:
    return shape.channels // kernel.tile_channels


def _spread(shape: LayerShape, kernel: Tiles) -> bool:
    """Whether windows of depthwise blocks are copied: packed codes of four channels that do not begin at a byte."""
    return kernel.activation_bits < 8 and shape.channels % 4 != 0


def _leaving(shape: LayerShape) -> int:
    """Windows of a row whose columns leave the image to the left or right."""
    last = shape.input[1] - 1 - (shape.kernel[1] - 1) * shape.dilation[1]
    starts = [i * shape.stride[1] - shape.padding[1] for i in range(shape.output[1])]
    return sum(not 0 <= start <= last for start in starts) * shape.output[0]


def _border_rows(shape: LayerShape) -> int:
    """Rows of outputs whose windows leave the image above or below."""
    last = shape.input[0] - 1 - (shape.kernel[0] - 1) * shape.dilation[0]
    return sum(not 0 <= i * shape.stride[0] - shape.padding[0] <= last for i in range(shape.output[0]))


def _direct_windows(shape: LayerShape, kernel: Tiles) -> int:
    return _blocks(shape, kernel) * shape.pixels * (not _spread(shape, kernel))


def _edges(shape: LayerShape, kernel: Tiles) -> int:
    return _blocks(shape, kernel) * _leaving(shape) * (not _spread(shape, kernel))


DSP_TERMS: Mapping[str, Term] = {
    "windows": lambda shape, kernel: _windows(shape, kernel) * _in_place(shape, kernel),
    "passes": _passes,
    "full_tiles": _full,
    "full_steps": lambda shape, kernel: _full(shape, kernel) * _steps(shape, kernel),
    "full_rests": lambda shape, kernel: _full(shape, kernel) * _rests(shape, kernel),
    "odd_tiles": _odd,
    "odd_steps": lambda shape, kernel: _odd(shape, kernel) * _steps(shape, kernel),
    "odd_rests": lambda shape, kernel: _odd(shape, kernel) * _rests(shape, kernel),
    "lone_tiles": lambda shape, kernel: _lone(shape, kernel, shape.pixels // kernel.tile_pixels),
    "lone_quads": lambda shape, kernel: _lone(shape, kernel, shape.pixels // kernel.tile_pixels) * _quads(shape),
    "lone_odd_tiles": lambda shape, kernel: _lone(shape, kernel, shape.pixels % kernel.tile_pixels),
    "lone_odd_quads": lambda shape, kernel: _lone(shape, kernel, shape.pixels % kernel.tile_pixels) * _quads(shape),
    "gathered_windows": lambda shape, kernel: _windows(shape, kernel) * _gathered(shape, kernel),
    "gathered_runs": lambda shape, kernel: _gathered(shape, kernel) * _inside(shape) * shape.runs_per_pixel,
    "border_runs": lambda shape, kernel: _gathered(shape, kernel) * _border_runs(shape, kernel),
    "copied_windows": lambda shape, kernel: _windows(shape, kernel) * _copied(shape, kernel),
    "copied_runs": lambda shape, kernel: (
        _copied(shape, kernel) * (_inside(shape) * shape.runs_per_pixel * _copied_words(shape, kernel))
    ),
    "copied_codes": lambda shape, kernel: (
        _copied(shape, kernel) * (_inside(shape) * shape.row_length * _copied_words(shape, kernel))
    ),
    "searched_runs": lambda shape, kernel: (
        _copied(shape, kernel)
        * (
            _border_runs(shape, kernel)
            + _inside(shape) * shape.kernel[0] * shape.kernel[1] * (not _copied_words(shape, kernel))
        )
    ),
    "searched_codes": lambda shape, kernel: (
        _copied(shape, kernel)
        * shape.row_length
        * (_windows(shape, kernel) - _inside(shape) * _copied_words(shape, kernel))
    ),
    "channel_blocks": _blocks,
    "block_taps": lambda shape, kernel: _blocks(shape, kernel) * shape.row_length,
    "block_rows": lambda shape, kernel: _blocks(shape, kernel) * shape.output[0],
    "block_windows": lambda shape, kernel: _direct_windows(shape, kernel),
    "block_window_rows": lambda shape, kernel: _direct_windows(shape, kernel) * shape.kernel[0],
    "block_macs": lambda shape, kernel: _direct_windows(shape, kernel) * shape.row_length,
    "edges": lambda shape, kernel: _edges(shape, kernel),
    "edge_macs": lambda shape, kernel: _edges(shape, kernel) * shape.row_length,
    "border_rows": lambda shape, kernel: _blocks(shape, kernel) * _border_rows(shape) * shape.output[1],
    "spread_windows": lambda shape, kernel: _blocks(shape, kernel) * shape.pixels * _spread(shape, kernel),
    "spread_macs": lambda shape, kernel: (
        _blocks(shape, kernel) * shape.pixels * shape.row_length * _spread(shape, kernel)
    ),
}
"""Term → count of it:

``windows`` columns read in place; ``passes`` tiles of windows, those left over one by one; ``full_tiles, full_steps,
full_rests`` tiles full in both directions, their whole steps of K and the quads after those; ``odd_*`` the same of a
window left over, ``lone_*`` of a channel left over (``lone_odd_*`` of both); ``gathered_windows, gathered_runs,
border_runs`` windows gathered run by run, the runs of those inside the image, the window positions of the others;
``copied_windows`` windows copied as bytes, ``copied_runs, copied_codes`` by words, ``searched_runs, searched_codes``
code by code. Depthwise: ``channel_blocks, block_taps, block_rows`` blocks of four channels, their weights and rows of
outputs; ``block_windows, block_window_rows, block_macs`` their windows; ``edges, edge_macs`` those whose columns leave
the image; ``border_rows`` those whose rows do; ``spread_windows, spread_macs`` those copied code by code.
"""
