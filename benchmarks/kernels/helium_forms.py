"""Forms of the Helium kernels for `fit.py`, and the small and lopsided layers that they are fitted to besides.

A form names what a kernel's loops repeat: tiles of three windows and two channels over steps of K, windows left over
with four channels at a time, gathering a window (by runs of bytes; codes of 4 and 2 bits are unpacked), blocks of 16
channels of a depthwise layer and the input columns they copy. Networks have few small or lopsided layers, on which the
fixed costs show: the fit also takes `FURTHER`.
"""

from __future__ import annotations

from collections.abc import Mapping

from cases import conv, depthwise, linear
from fit import Form

from ddq_search.layer_shape import LayerShape
from hardware_models.loops.helium import HELIUM_TERMS

COUNTS = "own_kernels_helium.csv"
"""Layers of `cases.py`, counted by `count.py`."""
MORE_COUNTS = "own_kernels_helium_more.csv"
"""Layers of `FURTHER`."""
TERMS = HELIUM_TERMS

FURTHER: Mapping[str, LayerShape] = {
    "conv_5x5_9x7_80_1": conv((9, 7), (80, 1), (5, 5)),
    "conv_3x3_5x5_128_4": conv((5, 5), (128, 4)),
    "conv_3x3s2_11x6_10_3": conv((11, 6), (10, 3), stride=2),
    "conv_3x3_4x4_8_64": conv((4, 4), (8, 64)),
    "conv_3x3_12x12_1_8": conv((12, 12), (1, 8)),
    "conv_4x4s2_9x9_6_20": conv((9, 9), (6, 20), (4, 4), stride=2),
    "conv_1x5_3x20_40_6": conv((3, 20), (40, 6), (1, 5)),
    "conv_3x3_2x2_64_64": conv((2, 2), (64, 64)),
    "conv_3x3d2_9x9_12_10": conv((9, 9), (12, 10), dilation=2),
    "pw_s2_5x24_96_16": conv((5, 24), (96, 16), (1, 1), stride=2),
    "pw_s2_8x8_16_3": conv((8, 8), (16, 3), (1, 1), stride=2),
    "pw_s2_7x7_33_40": conv((7, 7), (33, 40), (1, 1), stride=2),
    "pw_2x2_320_40": conv((2, 2), (320, 40), (1, 1)),
    "pw_1x1_200_30": conv((1, 1), (200, 30), (1, 1)),
    "pw_9x5_6_2": conv((9, 5), (6, 2), (1, 1)),
    "pw_5x4_50_7": conv((5, 4), (50, 7), (1, 1)),
    "grouped_2_6x6_16_24": conv((6, 6), (16, 24), groups=2),
    "grouped_4_9x5_24_8": conv((9, 5), (24, 8), groups=4),
    "grouped_3_5x5_9_12_1x1": conv((5, 5), (9, 12), (1, 1), groups=3),
    "grouped_2_4x4_64_4": conv((4, 4), (64, 4), groups=2),
    "dw_9x9_6": depthwise((9, 9), 6),
    "dw_4x5_37_s2": depthwise((4, 5), 37, stride=2),
    "dw_5x5_6x6_24": depthwise((6, 6), 24, kernel=5),
    "dw_2x2_48": depthwise((2, 2), 48),
    "conv_3x3_1x1_40_64": conv((3, 3), (40, 64), padded=False),
    "conv_3x3_1x2_24_17": conv((3, 4), (24, 17), padded=False),
    "pw_s2_1x2_96_100": conv((1, 2), (96, 100), (1, 1), stride=2),
    "dw_5x5s2_7x5_10": depthwise((7, 5), 10, kernel=5, stride=2),
    "dw_d2_9x9_16": conv((9, 9), (16, 16), groups=16, dilation=2),
    "fc_33_16": linear(33, 16),
    "fc_400_1": linear(400, 1),
    "fc_17_150": linear(17, 150),
    "fc_24_6_x5": linear(24, 6, positions=5),
    "fc_90_70_x2": linear(90, 70, positions=2),
}
"""Small and lopsided layers that networks seldom have."""

_WIDTHS = (8, 4, 2)
_STEPS = {8: 16, 4: 32, 2: 64}
_MATRIX = (
    "once", "full_tiles", "full_steps", "full_halves", "rest_tiles", "rest_steps", "rest_halves", "passes", "moved",
)  # fmt: skip
_UNPACKED_WINDOWS = ("windows", "runs", "vectors", "odd_runs")
_COLUMNS = ("window_rows", "window_columns", "inside_columns")
_UNPACKED_COLUMNS = (*_COLUMNS, "odd_columns")
_PACKING = ("outputs", "stores")


def _dense(shape: LayerShape) -> bool:
    return shape.layer_class == "linear" or (shape.layer_class == "pointwise" and shape.stride == (1, 1))


FORMS = (
    Form(
        "dense", {bits: f"ddq_helium_conv_w{bits}" for bits in _WIDTHS}, (("pointwise", "linear"),), _dense, _MATRIX,
        {8: ("columns",), 4: ("columns", "passes", "odd_runs"), 2: ("columns", "passes", "odd_runs")}, 3, 2, _STEPS,
        "strides = [[1, 1]]\n", _PACKING,
    ),
    Form(
        "gathered", {bits: f"ddq_helium_conv_w{bits}" for bits in _WIDTHS}, (("conv", "grouped", "pointwise"),),
        lambda shape: shape.layer_class != "depthwise" and not _dense(shape), _MATRIX,
        {8: ("direct_windows", "direct_runs", "searched_windows", "searched_runs", "vectors"), 4: _UNPACKED_WINDOWS,
         2: _UNPACKED_WINDOWS}, 3, 2, _STEPS, "", _PACKING,
    ),
    Form(
        "depthwise", {bits: f"ddq_helium_depthwise_w{bits}" for bits in _WIDTHS}, (("depthwise",),),
        lambda shape: shape.layer_class == "depthwise", ("channel_blocks", "tiles", "steps"),
        {8: _COLUMNS, 4: _UNPACKED_COLUMNS, 2: _UNPACKED_COLUMNS}, 1, 16,
        dict.fromkeys(_WIDTHS, 1), "", _PACKING,
    ),
)  # fmt: skip
"""Pointwise layers of stride 1 have two entries: the gathered one, which costs more, is for the other strides."""
