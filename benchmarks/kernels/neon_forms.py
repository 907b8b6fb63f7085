"""Forms of the NEON kernels without dot product for `fit.py`, and the further layers that they are fitted to."""

from __future__ import annotations

from collections.abc import Mapping

from cases import conv
from cases import depthwise as depthwise_case
from cases import linear as linear_case
from fit import Form

from ddq_search.layer_shape import LayerShape
from hardware_models.loops.neon import NEON_TERMS

COUNTS = "own_kernels_neon.csv"
MORE_COUNTS = "own_kernels_neon_more.csv"
TERMS = NEON_TERMS

FURTHER: Mapping[str, LayerShape] = {
    "conv_3x3_5x7_3_5": conv((5, 7), (3, 5)),
    "conv_3x3_9x9_5_6": conv((9, 9), (5, 6)),
    "conv_3x3_7x9_8_3": conv((7, 9), (8, 3)),
    "conv_3x3_12x12_16_8": conv((12, 12), (16, 8)),
    "conv_3x3_6x6_32_16": conv((6, 6), (32, 16)),
    "conv_5x5_8x8_32_8": conv((8, 8), (32, 8), (5, 5)),
    "conv_3x3_4x4_128_32": conv((4, 4), (128, 32)),
    "conv_3x3s2_15x15_24_12": conv((15, 15), (24, 12), stride=2),
    "conv_2x2_9x9_12_20": conv((9, 9), (12, 20), (2, 2)),
    "conv_3x3d3_13x13_8_8": conv((13, 13), (8, 8), dilation=3),
    "conv_1x5_6x14_40_16": conv((6, 14), (40, 16), (1, 5)),
    "pw_1x1_40_7": conv((1, 1), (40, 7), (1, 1)),
    "pw_1x1_256_64": conv((1, 1), (256, 64), (1, 1)),
    "pw_3x3_40_5": conv((3, 3), (40, 5), (1, 1)),
    "pw_7x4_7_9": conv((7, 4), (7, 9), (1, 1)),
    "pw_10x10_100_30": conv((10, 10), (100, 30), (1, 1)),
    "pw_5x5_512_64": conv((5, 5), (512, 64), (1, 1)),
    "pw_s3_20x20_8_8": conv((20, 20), (8, 8), (1, 1), 3),
    "grouped_2_7x7_10_14": conv((7, 7), (10, 14), groups=2),
    "grouped_3_8x8_12_12": conv((8, 8), (12, 12), groups=3),
    "grouped_2_6x6_64_32": conv((6, 6), (64, 32), groups=2),
    "dw_7x7_11": depthwise_case((7, 7), 11),
    "dw_16x5_18": depthwise_case((16, 5), 18),
    "dw_12x12_7_s2": depthwise_case((12, 12), 7, stride=2),
    "dw_5x5_9x9_8": depthwise_case((9, 9), 8, kernel=5),
    "dw_5x5s2_12x12_16": depthwise_case((12, 12), 16, kernel=5, stride=2),
    "dw_7x7_10x10_12": depthwise_case((10, 10), 12, kernel=7),
    "dw_5x5_3x3_64": depthwise_case((3, 3), 64, kernel=5),
    "dw_4x4_8x8_20": depthwise_case((8, 8), 20, kernel=4),
    "dw_3x3d2_11x11_16": conv((11, 11), (16, 16), groups=16, dilation=2),
    "fc_50_1": linear_case(50, 1),
    "fc_100_3": linear_case(100, 3),
    "fc_230_5": linear_case(230, 5),
    "fc_6_9_x3": linear_case(6, 9, positions=3),
    "fc_2048_10": linear_case(2048, 10),
    "fc_32_32": linear_case(32, 32),
    "fc_400_120": linear_case(400, 120),
}

BAND = ("band_rows", "out_rows", "filled_vectors", "filled_codes")
MOVED = ("band_blocks", "band_chunks", "band_codes")
TILES = (
    "once", "panels", "panel_tiles", "pixel_tiles", "lane_blocks", "tile_steps", "widened_blocks", "unpack_pairs",
    "unpack_chunks", "unpack_rests", "end_bytes", "finish_batches", "finish_quads", "single_outputs", "whole_windows",
    "whole_runs", "loose_pixels", "loose_windows", "loose_rows", "loose_runs", "copied_triples", "copied_steps",
)  # fmt: skip
DEPTHWISE = (
    "once", "weights", "row_taps", "channel_blocks", "depthwise_tiles", "tap_pairs", "tap_blocks", "tail_positions",
    "few_channels",
)  # fmt: skip
LINEAR = (
    "once", "pixels", "sixteens", "fours", "four_pairs", "four_chunks", "four_rests", "end_bytes", "lane_rows",
    "lone_channels", "lone_sixteens", "lone_fours",
)  # fmt: skip


def product(names: Mapping[int, str], inputs: tuple[int, ...], tile_pixels: int) -> Form:
    """The form of convolutions."""
    return Form(
        name=f"product a{inputs[0]}", kernels=names, entries=(("conv", "pointwise", "grouped"),),
        executes=lambda shape: shape.layer_class not in ("depthwise", "linear"), shared=(*TILES, *BAND),
        by_input=dict.fromkeys(inputs, MOVED), tile_pixels=tile_pixels, tile_channels=4,
        k_multiple=dict.fromkeys((8, 4, 2), 16),
    )  # fmt: skip


def depthwise(name: str) -> Form:
    """The form of depthwise layers."""
    return Form(
        name="depthwise", kernels=dict.fromkeys((8, 4, 2), name), entries=(("depthwise",),),
        executes=lambda shape: shape.layer_class == "depthwise", shared=(*DEPTHWISE, *BAND),
        by_input=dict.fromkeys((8, 4, 2), MOVED), tile_pixels=4, tile_channels=16,
        k_multiple=dict.fromkeys((8, 4, 2), 2),
    )  # fmt: skip


def linear(name: str) -> Form:
    """The form of linear layers."""
    return Form(
        name="linear", kernels=dict.fromkeys((8, 4, 2), name), entries=(("linear",),),
        executes=lambda shape: shape.layer_class == "linear", shared=LINEAR,
        by_input=dict.fromkeys((8, 4, 2), MOVED), tile_pixels=1, tile_channels=4, k_multiple={8: 16, 4: 32, 2: 64},
    )  # fmt: skip


FORMS = (
    product({8: "ddq_neon_w8a8"}, (8,), 4),
    product({4: "ddq_neon_w4a8", 2: "ddq_neon_w2a8"}, (8,), 6),
    product({8: "ddq_neon_w8a4", 4: "ddq_neon_w4a4"}, (4, 2), 6),
    product({2: "ddq_neon_w2a4"}, (4,), 6),
    product({2: "ddq_neon_w2a2"}, (2,), 6),
    depthwise("ddq_neon_depthwise"),
    linear("ddq_neon_linear"),
)
