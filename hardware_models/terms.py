"""The counts that a kernel's work is a sum of: what its loops do, as functions of the layer and the kernel's tiles.

A profile gives a coefficient per term; ``work = Σ coefficient x count``. Scratch RAM is described in the same way.

Legend: K weights per output channel, P output positions, C output channels within a product; a kernel computes tiles
of ``tile_pixels x tile_channels`` outputs and reads K in steps of ``k_multiple``; ⌈x⌉ is x rounded up to the tile. A
depthwise layer is one product over all its channels, a grouped layer one per group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from ddq_search.layer_shape import LayerShape
from ddq_search.packing import activation_bytes, weight_bytes
from hardware_models.loops.dsp import DSP_TERMS
from hardware_models.loops.helium import HELIUM_TERMS
from hardware_models.loops.neon import NEON_TERMS
from hardware_models.loops.portable import PORTABLE_TERMS
from hardware_models.tiling import Term, Tiles


def _products(shape: LayerShape) -> tuple[int, int]:
    """Independent products and output channels of each."""
    if shape.layer_class == "depthwise":
        return 1, shape.channels
    return shape.groups, shape.channels // shape.groups


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def padded_row(shape: LayerShape, kernel: Tiles) -> int:
    """Returns K rounded up to whole steps."""
    return _up(shape.row_length, kernel.k_multiple)


def tiles(shape: LayerShape, kernel: Tiles) -> int:
    """Returns the number of tiles, started ones included."""
    products, channels = _products(shape)
    return products * -(-shape.pixels // kernel.tile_pixels) * -(-channels // kernel.tile_channels)


def padded_macs(shape: LayerShape, kernel: Tiles) -> int:
    """Returns the multiply-accumulates when positions, channels and K are rounded up to whole tiles and steps."""
    return tiles(shape, kernel) * kernel.tile_pixels * kernel.tile_channels * padded_row(shape, kernel)


def _in_full_tiles(shape: LayerShape, kernel: Tiles) -> int:
    """Outputs that belong to tiles full in both directions."""
    products, channels = _products(shape)
    full_pixels = shape.pixels // kernel.tile_pixels * kernel.tile_pixels
    return products * full_pixels * (channels // kernel.tile_channels * kernel.tile_channels)


def tail_macs(shape: LayerShape, kernel: Tiles) -> int:
    """Returns the multiply-accumulates outside full tiles and full steps of K."""
    return shape.macs - _in_full_tiles(shape, kernel) * (shape.row_length // kernel.k_multiple * kernel.k_multiple)


def _taps(shape: LayerShape) -> int:
    groups = shape.groups if shape.layer_class == "grouped" else 1
    return shape.pixels * shape.kernel[0] * shape.kernel[1] * groups


def _inside_taps(shape: LayerShape) -> int:
    groups = shape.groups if shape.layer_class == "grouped" else 1
    return shape.inside_taps * groups


def _weight_passes(shape: LayerShape) -> int:
    """A strided 1 x 1 convolution calls the matrix product once per output row, which sums its weights again."""
    calls = shape.output[0] if shape.layer_class == "pointwise" and shape.stride != (1, 1) else 1
    return shape.weights * calls


def _needs_panel(shape: LayerShape, kernel: Tiles) -> bool:
    return shape.gathered or padded_row(shape, kernel) != shape.row_length


def panel_bytes(shape: LayerShape, kernel: Tiles) -> float:
    """Returns the bytes gathered into columns of whole steps; 0 where the input can be read in place."""
    if not _needs_panel(shape, kernel):
        return 0.0
    return shape.pixels * shape.groups * padded_row(shape, kernel) * kernel.activation_bits / 8


def _panel_runs(shape: LayerShape, kernel: Tiles) -> float:
    return shape.pixels * shape.groups * shape.runs_per_pixel if _needs_panel(shape, kernel) else 0.0


def _panel_unaligned(shape: LayerShape, kernel: Tiles) -> float:
    odd = shape.input_channels // shape.groups * kernel.activation_bits % 8
    return shape.pixels * shape.groups * shape.row_length if odd and _needs_panel(shape, kernel) else 0.0


def _winograd_macs(shape: LayerShape, kernel: Tiles) -> float:
    """F(4 x 4, 3 x 3): 36 products per channel pair for 16 outputs of 9 products each."""
    return -(-shape.output[0] // 4) * -(-shape.output[1] // 4) * 36 * shape.channels * shape.input_channels


GENERAL_TERMS: Mapping[str, Term] = {
    "once": lambda shape, kernel: 1.0,
    "macs": lambda shape, kernel: shape.macs,
    "outputs": lambda shape, kernel: shape.outputs,
    "pixels": lambda shape, kernel: shape.pixels,
    "columns": lambda shape, kernel: shape.pixels * shape.row_length * shape.groups,
    "windows": lambda shape, kernel: shape.pixels * shape.groups,
    "runs": lambda shape, kernel: shape.pixels * shape.groups * shape.runs_per_pixel,
    "weights": lambda shape, kernel: shape.weights,
    "channels": lambda shape, kernel: shape.channels,
    "inputs": lambda shape, kernel: shape.inputs,
    "border_pixels": lambda shape, kernel: shape.border_pixels,
    "border_macs": lambda shape, kernel: shape.border_pixels * shape.row_length * shape.channels,
    "padded_macs": padded_macs,
    "tiles": tiles,
    "steps": lambda shape, kernel: tiles(shape, kernel) * -(-shape.row_length // kernel.k_multiple),
    "blocks": lambda shape, kernel: tiles(shape, kernel) * -(-padded_row(shape, kernel) // (kernel.block or 1)),
    "tail_macs": tail_macs,
    "tail_outputs": lambda shape, kernel: shape.outputs - _in_full_tiles(shape, kernel),
    "taps": lambda shape, kernel: _taps(shape),
    "inside_taps": lambda shape, kernel: _inside_taps(shape),
    "inside_macs": lambda shape, kernel: shape.macs * _inside_taps(shape) / _taps(shape),
    "weight_passes": lambda shape, kernel: _weight_passes(shape),
    "panel_bytes": panel_bytes,
    "panel_runs": _panel_runs,
    "panel_unaligned": _panel_unaligned,
    "weight_bytes": lambda shape, kernel: weight_bytes(shape.channels, shape.row_length, kernel.weight_bits),
    "input_bytes": lambda shape, kernel: activation_bytes(shape.inputs, kernel.activation_bits),
    "winograd_macs": _winograd_macs,
}
"""Term → count of it in a layer on a kernel:

``once`` 1 per call; ``macs, outputs, pixels, weights, channels, inputs`` of the layer; ``columns`` elements of all
columns, P·K per group; ``windows`` positions of all groups; ``runs`` contiguous pieces gathered into them;
``border_pixels`` positions whose window leaves the image and ``border_macs`` their products; ``padded_macs`` products
in whole tiles and steps; ``tiles``; ``steps`` of the inner loop; ``blocks`` between widenings of narrow accumulators;
``tail_macs`` products outside full tiles and steps; ``tail_outputs`` outputs outside tiles full in both directions;
``taps`` window positions of all outputs, per group of a grouped layer, ``inside_taps`` those inside the image and
``inside_macs`` their share of the products; ``weight_passes`` weights, once per matrix product of a pointwise layer;
``panel_bytes, panel_runs, panel_unaligned`` of gathering where the input cannot be read in place (bytes of whole
columns, contiguous pieces, elements moved one by one because channels do not fill bytes); ``weight_bytes,
input_bytes`` at the kernel's widths; ``winograd_macs`` products of F(4 x 4, 3 x 3).
"""

TERMS: Mapping[str, Term] = {
    **GENERAL_TERMS,
    **{f"dsp_{name}": term for name, term in DSP_TERMS.items()},
    **{f"portable_{name}": term for name, term in PORTABLE_TERMS.items()},
    **{f"neon_{name}": term for name, term in NEON_TERMS.items()},
    **{f"helium_{name}": term for name, term in HELIUM_TERMS.items()},
}
"""All terms of a profile; those of one family of our kernels carry its name in front."""

SCRATCH_TERMS: Mapping[str, Term] = {
    "fixed": lambda shape, kernel: 1.0,
    "row": lambda shape, kernel: padded_row(shape, kernel),
    "channels": lambda shape, kernel: shape.channels,
    "channel_rows": lambda shape, kernel: padded_row(shape, kernel) * shape.channels,
    "weights": lambda shape, kernel: shape.weights,
    "window_rows": lambda shape, kernel: shape.window_rows_elements,
    "panel": lambda shape, kernel: (
        kernel.tile_pixels * padded_row(shape, kernel) * kernel.activation_bits / 8
        if _needs_panel(shape, kernel)
        else 0.0
    ),
}
"""Scratch term → count: ``row`` K rounded up to steps; ``channel_rows`` that for every channel; ``window_rows`` input
scalars in the rows one row of outputs reads; ``panel`` bytes of one tile's gathered columns, 0 where read in place."""


def counts(names: Iterable[str], shape: LayerShape, kernel: Tiles) -> dict[str, float]:
    """Returns term → count of it, what fits of coefficients start from."""
    return {name: TERMS[name](shape, kernel) for name in names}


def work(terms: Mapping[str, float], shape: LayerShape, kernel: Tiles) -> float:
    """Returns ``Σ coefficient x count`` in the profile's unit."""
    return sum(coefficient * TERMS[name](shape, kernel) for name, coefficient in terms.items())


def scratch(terms: Mapping[str, float], shape: LayerShape, kernel: Tiles) -> int:
    """Returns the whole bytes of scratch."""
    return math.ceil(sum(coefficient * SCRATCH_TERMS[name](shape, kernel) for name, coefficient in terms.items()))
