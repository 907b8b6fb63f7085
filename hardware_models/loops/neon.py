"""What the loops of the NEON kernels repeat, beside the counts of `hardware_models.terms`, as functions of a layer.

Legend: a convolution computes panels of 72 output positions, each by tiles of ``tile_pixels`` positions x 4 channels
over steps of 16 codes; a 1 x 1 convolution of stride 1 is seen as an image with one panel per row. The band is the
window's input rows, one byte per code. A depthwise layer computes 4 positions x 16 channels over pairs of taps.
"""

from __future__ import annotations

from collections.abc import Mapping

from ddq_search.layer_shape import LayerShape
from hardware_models.tiling import Term, Tiles

PANEL = 72
STEP = 16
BLOCKS = {(8, 4): 16, (8, 2): 16, (4, 8): 18, (4, 4): 292, (4, 2): 292, (2, 8): 127, (2, 4): 15, (2, 2): 42}
"""Widths of weights and inputs → steps that int16 or int8 lanes hold."""
DEPTHWISE_TAPS = {8: 2, 4: 36, 2: 254}
"""Width of weights → taps that int16 lanes hold."""


def _groups(shape: LayerShape) -> int:
    return shape.groups if shape.layer_class == "grouped" else 1


def _channel_tiles(shape: LayerShape) -> int:
    groups = _groups(shape)
    return groups * -(-(shape.channels // groups) // 4)


def _panels(shape: LayerShape) -> list[int]:
    """Positions of each panel."""
    whole, rest = divmod(shape.pixels, PANEL)
    return [PANEL] * whole + [rest] * (rest > 0)


def _tiles(shape: LayerShape, kernel: Tiles) -> int:
    return _channel_tiles(shape) * sum(-(-count // kernel.tile_pixels) for count in _panels(shape))


def _steps(shape: LayerShape) -> int:
    return -(-shape.row_length // STEP)


def _blocks(shape: LayerShape, kernel: Tiles) -> int:
    block = BLOCKS.get((kernel.weight_bits, kernel.activation_bits)) if kernel.tile_pixels == 6 else None
    return _tiles(shape, kernel) * (-(-_steps(shape) // block) if block else 1)


def _few_blocks(shape: LayerShape, kernel: Tiles) -> int:
    """Tiles of so few steps that four int8 lanes fit one."""
    block = BLOCKS.get((kernel.weight_bits, kernel.activation_bits), 0)
    last = _steps(shape) % block if block else 0
    narrow = kernel.tile_pixels == 6 and kernel.weight_bits == 2 and kernel.activation_bits < 8
    return _tiles(shape, kernel) * (narrow and 0 < 4 * last <= block)


def _rows_unpacked(shape: LayerShape) -> int:
    return 4 * _channel_tiles(shape) * len(_panels(shape))


def _chunk(kernel: Tiles) -> int:
    """Codes in 16 bytes of weights."""
    return 128 // kernel.weight_bits


def _end_bytes(shape: LayerShape, kernel: Tiles) -> int:
    """Bytes that are read one by one, as 16 at once would leave the weights: at the end of the last rows."""
    rest = shape.row_length % _chunk(kernel)
    tail, row = -(-rest * kernel.weight_bits // 8), -(-shape.row_length * kernel.weight_bits // 8)
    if not tail:
        return 0
    groups = _groups(shape)
    repeated = -(shape.channels // groups) % 4 if groups == 1 else 0
    ends = [tail + distance * row for distance in (*(0,) * repeated, *range(shape.channels))[:64]]
    passes = shape.pixels if shape.layer_class == "linear" else len(_panels(shape))
    return int(passes * sum(end for end in ends if end < 16))


def _full_channel_tiles(shape: LayerShape) -> int:
    groups = _groups(shape)
    return groups * (shape.channels // groups // 4)


def _batches(shape: LayerShape) -> int:
    return _full_channel_tiles(shape) * sum(count // 12 for count in _panels(shape))


def _quads(shape: LayerShape) -> int:
    lone = _channel_tiles(shape) - _full_channel_tiles(shape)
    panels = _panels(shape)
    full = _full_channel_tiles(shape) * sum(-(-(count % 12) // 4) for count in panels)
    return full + lone * sum(-(-count // 4) for count in panels)


def _single_outputs(shape: LayerShape) -> int:
    """Outputs that are stored one by one: channels beside tiles of four, positions beside fours."""
    groups = _groups(shape)
    beside = shape.pixels * groups * (shape.channels // groups % 4)
    return beside + 4 * _full_channel_tiles(shape) * sum(count % 4 for count in _panels(shape))


def _pieces(shape: LayerShape) -> tuple[int, int]:
    """Contiguous pieces of a window, and codes in each."""
    joined = shape.dilation[1] == 1 and _groups(shape) == 1
    pieces = shape.kernel[0] * (1 if joined else shape.kernel[1])
    return pieces, shape.row_length // pieces


def _whole(shape: LayerShape) -> bool:
    """Whether pieces are whole steps and go straight to their columns."""
    joined = shape.dilation[1] == 1 and _groups(shape) == 1
    return joined and shape.kernel[1] * shape.input_channels % STEP == 0


def _windows(shape: LayerShape) -> int:
    return shape.pixels * _groups(shape)


def _copies(shape: LayerShape) -> tuple[int, int]:
    """Copies of three steps and of one."""
    pieces, piece = _pieces(shape)
    triples, singles = pieces * (piece // 48), pieces * -(-(piece % 48) // STEP)
    if not _whole(shape):
        padded = _steps(shape) * STEP
        triples, singles = triples + padded // 48, singles + padded % 48 // STEP
    return _windows(shape) * triples, _windows(shape) * singles


def _flat(shape: LayerShape) -> bool:
    same = shape.output[:2] == shape.input[:2] and shape.padding == (0, 0)
    return shape.layer_class != "depthwise" and shape.kernel == shape.stride == (1, 1) and same


def _out_rows(shape: LayerShape) -> int:
    return len(_panels(shape)) if _flat(shape) else shape.output[0]


def _band_rows(shape: LayerShape) -> int:
    """Rows of the padded image that enter the band."""
    if _flat(shape):
        return len(_panels(shape))
    span = (shape.kernel[0] - 1) * shape.dilation[0] + 1
    return span + (shape.output[0] - 1) * min(shape.stride[0], span)


def _image_rows(shape: LayerShape) -> int:
    """Rows of the image among them."""
    if _flat(shape):
        return len(_panels(shape))
    span, top = (shape.kernel[0] - 1) * shape.dilation[0] + 1, shape.padding[0]
    rows = {row * shape.stride[0] + i for row in range(shape.output[0]) for i in range(span)}
    return sum(top <= row < top + shape.input[0] for row in rows)


def _row_codes(shape: LayerShape) -> tuple[int, int, int]:
    """Codes of a band row: left of the image, inside, all."""
    if _flat(shape):
        return 0, min(PANEL, shape.pixels) * shape.input[2], min(PANEL, shape.pixels) * shape.input[2]
    columns = (shape.output[1] - 1) * shape.stride[1] + (shape.kernel[1] - 1) * shape.dilation[1] + 1
    left = shape.padding[1] * shape.input[2]
    width = columns * shape.input[2]
    return left, min(shape.input[1] * shape.input[2], width - left), width


def _moved(codes: int, bits: int) -> tuple[int, int, int]:
    """What bringing codes of one run to bytes takes: 64-byte blocks, 16-byte chunks, single codes."""
    if codes * bits % 8 or codes * bits < 128:
        return 0, 0, codes
    size = codes * bits // 8
    return size // 64, -(-(size % 64) // 16), 0


def _band_moved(shape: LayerShape, kernel: Tiles, part: int) -> int:
    if shape.layer_class == "linear":
        whole = shape.row_length // _chunk(kernel) * _chunk(kernel)
        rest = shape.row_length - whole
        return shape.pixels * (_moved(whole, kernel.activation_bits)[part] + (rest if part == 2 else 0))
    inside = _row_codes(shape)[1]
    if _flat(shape):
        runs = [count * shape.input[2] for count in _panels(shape)]
        return sum(_moved(run, kernel.activation_bits)[part] for run in runs)
    return _image_rows(shape) * _moved(inside, kernel.activation_bits)[part]


def _filled(shape: LayerShape, part: int) -> int:
    """Padding of the band: vectors of 16 (part 0), single codes (part 1)."""
    left, inside, width = _row_codes(shape)
    inner, outer = _image_rows(shape), _band_rows(shape) - _image_rows(shape)
    counts = [divmod(count, 16)[part] for count in (left, width - left - inside, width)]
    return inner * (counts[0] + counts[1]) + outer * counts[2]


def _channel_blocks(shape: LayerShape) -> int:
    return shape.output[0] * -(-shape.channels // 16)


def _depthwise_tiles(shape: LayerShape) -> int:
    return _channel_blocks(shape) * -(-shape.output[1] // 4)


def _tap_pairs(shape: LayerShape, kernel: Tiles) -> int:
    taps, block = shape.row_length, DEPTHWISE_TAPS[kernel.weight_bits]
    whole, rest = divmod(taps, block)
    return _depthwise_tiles(shape) * (whole * (block // 2) + -(-rest // 2))


def _linear_rows(shape: LayerShape) -> int:
    return shape.pixels * -(-shape.channels // 4)


def _linear_chunks(shape: LayerShape, kernel: Tiles, part: int) -> int:
    """Chunks of four rows: two at once (part 0; 8-bit weights only), one (part 1)."""
    chunks = shape.row_length // _chunk(kernel)
    pair, single = divmod(chunks, 2) if kernel.weight_bits == 8 else (0, chunks)
    return _linear_rows(shape) * (single if part else pair)


NEON_TERMS: Mapping[str, Term] = {
    "panels": lambda shape, kernel: len(_panels(shape)),
    "panel_tiles": lambda shape, kernel: len(_panels(shape)) * _channel_tiles(shape),
    "pixel_tiles": _tiles,
    "lane_blocks": _blocks,
    "tile_steps": lambda shape, kernel: _tiles(shape, kernel) * _steps(shape),
    "widened_blocks": lambda shape, kernel: _blocks(shape, kernel) - _few_blocks(shape, kernel),
    "unpack_pairs": lambda shape, kernel: _rows_unpacked(shape) * (shape.row_length // (2 * _chunk(kernel))),
    "unpack_chunks": lambda shape, kernel: _rows_unpacked(shape) * (shape.row_length // _chunk(kernel) % 2),
    "unpack_rests": lambda shape, kernel: _rows_unpacked(shape) * (shape.row_length % _chunk(kernel) > 0),
    "finish_batches": lambda shape, kernel: _batches(shape),
    "finish_quads": lambda shape, kernel: _quads(shape),
    "single_outputs": lambda shape, kernel: _single_outputs(shape),
    "whole_windows": lambda shape, kernel: _windows(shape) * _whole(shape),
    "whole_runs": lambda shape, kernel: _windows(shape) * _pieces(shape)[0] * _whole(shape),
    "loose_pixels": lambda shape, kernel: shape.pixels * (not _whole(shape)),
    "loose_rows": lambda shape, kernel: _windows(shape) * shape.kernel[0] * (not _whole(shape)),
    "loose_windows": lambda shape, kernel: _windows(shape) * (not _whole(shape)),
    "loose_runs": lambda shape, kernel: _windows(shape) * _pieces(shape)[0] * (not _whole(shape)),
    "copied_triples": lambda shape, kernel: _copies(shape)[0],
    "copied_steps": lambda shape, kernel: _copies(shape)[1],
    "band_rows": lambda shape, kernel: _band_rows(shape),
    "out_rows": lambda shape, kernel: _out_rows(shape),
    "band_blocks": lambda shape, kernel: _band_moved(shape, kernel, 0),
    "band_chunks": lambda shape, kernel: _band_moved(shape, kernel, 1),
    "band_codes": lambda shape, kernel: _band_moved(shape, kernel, 2),
    "filled_vectors": lambda shape, kernel: _filled(shape, 0),
    "filled_codes": lambda shape, kernel: _filled(shape, 1),
    "row_taps": lambda shape, kernel: shape.output[0] * shape.row_length,
    "channel_blocks": lambda shape, kernel: _channel_blocks(shape),
    "depthwise_tiles": lambda shape, kernel: _depthwise_tiles(shape),
    "tap_pairs": _tap_pairs,
    "tap_blocks": lambda shape, kernel: (
        _depthwise_tiles(shape) * -(-shape.row_length // DEPTHWISE_TAPS[kernel.weight_bits])
    ),
    "tail_positions": lambda shape, kernel: _channel_blocks(shape) * (shape.output[1] % 4),
    "few_channels": lambda shape, kernel: shape.outputs * (shape.channels < 16),
    "sixteens": lambda shape, kernel: shape.pixels * -(-shape.channels // 16),
    "fours": lambda shape, kernel: _linear_rows(shape),
    "four_pairs": lambda shape, kernel: _linear_chunks(shape, kernel, 0),
    "four_chunks": lambda shape, kernel: _linear_chunks(shape, kernel, 1),
    "end_bytes": _end_bytes,
    "four_rests": lambda shape, kernel: _linear_rows(shape) * (shape.row_length % _chunk(kernel) > 0),
    "lane_rows": lambda shape, kernel: _linear_rows(shape) * (shape.row_length >= _chunk(kernel)),
    "lone_sixteens": lambda shape, kernel: shape.pixels * (shape.channels % 16 > 0),
    "lone_fours": lambda shape, kernel: shape.pixels * (-(shape.channels // 4) % 4),
    "lone_channels": lambda shape, kernel: shape.pixels * (shape.channels % 16),
}
"""Term → count: ``panel_tiles`` panels x channel tiles; ``lane_blocks`` of tiles between widenings; ``tile_steps``;
``unpack_*`` chunks of 16 bytes of weights, two, one and less; ``finish_*`` requantized 12 and 4 positions at a time;
``whole_*, loose_*`` windows that are whole steps or are put together first; ``band_*`` of input rows; ``filled_*``
padding; depthwise ``row_taps, channel_blocks, depthwise_tiles, tap_*``; linear ``sixteens, fours`` of channels."""
