"""Forms of the Cortex-M DSP kernels for `fit.py`, and the further layers that they are fitted to."""

from __future__ import annotations

from collections.abc import Mapping

from cases import conv, depthwise, linear
from fit import Form
from helium_forms import FURTHER as LOPSIDED

from ddq_search.layer_shape import LayerShape
from hardware_models.loops.dsp import DSP_TERMS

COUNTS = "own_kernels_cortex_m.csv"
MORE_COUNTS = "own_kernels_cortex_m_more.csv"
TERMS = DSP_TERMS

FURTHER: Mapping[str, LayerShape] = {
    **LOPSIDED,
    "fc_50_1": linear(50, 1),
    "fc_100_3": linear(100, 3),
    "fc_230_5": linear(230, 5),
    "fc_6_9_x3": linear(6, 9, positions=3),
    "pw_3x3_40_5": conv((3, 3), (40, 5), (1, 1)),
    "pw_7x4_7_9": conv((7, 4), (7, 9), (1, 1)),
    "conv_3x3_7x9_8_3": conv((7, 9), (8, 3)),
    "conv_3x3_9x9_5_6": conv((9, 9), (5, 6)),
    "grouped_2_7x7_10_14": conv((7, 7), (10, 14), groups=2),
    "dw_5x5_9x9_8": depthwise((9, 9), 8, kernel=5),
    "dw_5x5s2_12x12_16": depthwise((12, 12), 16, kernel=5, stride=2),
    "dw_5x5_4x4_20": depthwise((4, 4), 20, kernel=5),
    "dw_7x7_10x10_12": depthwise((10, 10), 12, kernel=7),
    "dw_4x4_8x8_20": depthwise((8, 8), 20, kernel=4),
    "dw_1x5_6x14_32": conv((6, 14), (32, 32), (1, 5), groups=32),
    "dw_5x1_14x6_32": conv((14, 6), (32, 32), (5, 1), groups=32),
    "dw_5x5_7x7_9": depthwise((7, 7), 9, kernel=5),
    "dw_7x7_8x8_6": depthwise((8, 8), 6, kernel=7),
    "dw_3x3d2_11x11_16": conv((11, 11), (16, 16), groups=16, dilation=2),
    "dw_7x7_11": depthwise((7, 7), 11),
    "dw_16x5_18": depthwise((16, 5), 18),
    "dw_12x12_7_s2": depthwise((12, 12), 7, stride=2),
    "dw_5x5_3x3_64": depthwise((3, 3), 64, kernel=5),
}

_TILES = (
    "once", "channels", "passes", "full_tiles", "full_steps", "full_rests", "odd_tiles", "odd_steps", "odd_rests",
    "lone_tiles", "lone_quads", "lone_odd_tiles", "lone_odd_quads",
)  # fmt: skip
_GATHER = (
    "gathered_windows", "gathered_runs", "border_runs", "copied_windows", "copied_runs", "copied_codes",
    "searched_runs", "searched_codes", "columns",
)  # fmt: skip
_WINDOWS = (
    "block_rows", "block_windows", "block_window_rows", "block_macs", "edges", "edge_macs", "border_rows",
    "spread_windows", "spread_macs", "tail_outputs", "tail_macs",
)  # fmt: skip
_BLOCKS = ("once", "channel_blocks", "block_taps")


def _depthwise(name: str, *, three: bool) -> Form:
    return Form(
        name, dict.fromkeys((8, 4, 2), "ddq_dsp_depthwise"), (("depthwise",),),
        lambda shape: shape.layer_class == "depthwise" and (shape.kernel[1] == 3) == three, _BLOCKS,
        {8: _WINDOWS, 4: _WINDOWS, 2: _WINDOWS}, 1, 4, dict.fromkeys((8, 4, 2), 1),
        "kernel_sizes = [[3, 3]]\n" if three else "",
    )  # fmt: skip


FORMS = (
    Form(
        "matrix", {bits: f"ddq_dsp_conv_w{bits}" for bits in (8, 4, 2)}, (("conv", "grouped"), ("pointwise", "linear")),
        lambda shape: shape.layer_class != "depthwise", _TILES,
        {8: ("windows", *_GATHER), 4: _GATHER, 2: _GATHER}, 2, 2, {8: 4, 4: 4, 2: 8},
    ),
    _depthwise("depthwise of three columns", three=True),
    _depthwise("depthwise", three=False),
)  # fmt: skip
