"""Forms of the portable kernels for `fit.py`: what executes the layers that no kernel of an instruction set does."""

from __future__ import annotations

from collections.abc import Mapping

from cases import conv, depthwise, linear
from fit import Form

from ddq_search.layer_shape import LAYER_CLASSES, LayerClass, LayerShape
from hardware_models.loops.portable import PORTABLE_TERMS

COUNTS = MORE_COUNTS = "own_kernels_portable.csv"
TERMS = PORTABLE_TERMS

FURTHER: Mapping[str, LayerShape] = {
    "conv_3x3_6x6_4_8": conv((6, 6), (4, 8)),
    "conv_3x3_5x5_16_3": conv((5, 5), (16, 3)),
    "conv_5x5_7x7_3_4": conv((7, 7), (3, 4), (5, 5)),
    "conv_3x3s2_9x9_6_10": conv((9, 9), (6, 10), stride=2),
    "pw_6x6_16_8": conv((6, 6), (16, 8), (1, 1)),
    "pw_4x4_40_12": conv((4, 4), (40, 12), (1, 1)),
    "pw_s2_8x8_8_6": conv((8, 8), (8, 6), (1, 1), stride=2),
    "dw_6x6_16": depthwise((6, 6), 16),
    "dw_5x5_7x7_9": depthwise((7, 7), 9, kernel=5),
    "dw_s2_9x9_12": depthwise((9, 9), 12, stride=2),
    "grouped_2_6x6_8_12": conv((6, 6), (8, 12), groups=2),
    "grouped_4_5x5_16_8": conv((5, 5), (16, 8), groups=4),
    "fc_64_10": linear(64, 10),
    "fc_33_20": linear(33, 20),
    "fc_150_4": linear(150, 4),
}


def _form(name: str, kernel: str, entries: tuple[tuple[LayerClass, ...], ...]) -> Form:
    return Form(
        name=name, kernels=dict.fromkeys((8, 4, 2), kernel), entries=entries, executes=lambda shape: True,
        shared=("once", "outputs", "taps", "inside_taps", "outside_codes", "windows", "macs"),
        by_input={8: ("inside_codes",), 4: ("inside_codes",), 2: ("inside_codes",)},
        tile_pixels=1, tile_channels=1, k_multiple={8: 1, 4: 1, 2: 1},
    )  # fmt: skip


FORMS = (
    _form("any layer", "ddq_portable", tuple((kind,) for kind in LAYER_CLASSES)),
    _form("any layer, codebook", "ddq_portable_codebook", (LAYER_CLASSES,)),
    _form("any layer, one further point", "ddq_portable_points", (LAYER_CLASSES,)),
)
