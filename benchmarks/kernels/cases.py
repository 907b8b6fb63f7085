"""Layer shapes that kernels are counted on: the MLPerf Tiny networks, further image networks, edges.

Names of layers from MLPerf Tiny begin with the network (ic ResNet-8, kws DS-CNN, vww MobileNetV1-0.25, ad autoencoder)
and are the ones that published counts of other libraries use.
"""

from __future__ import annotations

from ddq_search.layer_shape import LayerClass, LayerShape


def conv(
    size: tuple[int, int],
    channels: tuple[int, int],
    kernel: tuple[int, int] = (3, 3),
    stride: int = 1,
    *,
    groups: int = 1,
    dilation: int = 1,
    padded: bool = True,
) -> LayerShape:
    """A convolution of an image ``size`` with TensorFlow's padding (SAME, the odd row and column below and right)."""
    extent = [(length - 1) * dilation + 1 for length in kernel]
    if padded:
        output = [-(-length // stride) for length in size]
        gaps = [
            max((count - 1) * stride + reach - length, 0)
            for count, reach, length in zip(output, extent, size, strict=True)
        ]
    else:
        output = [(length - reach) // stride + 1 for reach, length in zip(extent, size, strict=True)]
        gaps = [0, 0]
    kind: LayerClass = "conv"
    if groups > 1:
        kind = "depthwise" if groups == channels[0] == channels[1] else "grouped"
    elif kernel == (1, 1):
        kind = "pointwise"
    return LayerShape(
        kind, (*size, channels[0]), (output[0], output[1], channels[1]), kernel, (stride, stride),
        (gaps[0] // 2, gaps[1] // 2), (dilation, dilation), groups,
    )  # fmt: skip


def depthwise(size: tuple[int, int], channels: int, kernel: int = 3, stride: int = 1) -> LayerShape:
    """A depthwise convolution with TensorFlow's padding."""
    return conv(size, (channels, channels), (kernel, kernel), stride, groups=channels)


def linear(inputs: int, outputs: int, positions: int = 1) -> LayerShape:
    """A matrix product at each of ``positions``."""
    return LayerShape("linear", (positions, 1, inputs), (positions, 1, outputs))


SHAPES: dict[str, LayerShape] = {
    "ic_c1_3x3_32x32_3_16": conv((32, 32), (3, 16)),
    "ic_c2_3x3_32x32_16_16": conv((32, 32), (16, 16)),
    "ic_c3_3x3s2_32x32_16_32": conv((32, 32), (16, 32), stride=2),
    "ic_c4_3x3_16x16_32_32": conv((16, 16), (32, 32)),
    "ic_c5a_3x3s2_16x16_32_64": conv((16, 16), (32, 64), stride=2),
    "ic_c5_3x3_8x8_64_64": conv((8, 8), (64, 64)),
    "vww_c1_3x3s2_96x96_3_8": conv((96, 96), (3, 8), stride=2),
    "kws_c1_10x4s2_49x10_1_64": conv((49, 10), (1, 64), (10, 4), stride=2),
    "conv_5x5_16x16_16_32": conv((16, 16), (16, 32), (5, 5)),
    "conv_3x3d2_16x16_16_16": conv((16, 16), (16, 16), dilation=2),
    "conv_3x3_7x7_48_96": conv((7, 7), (48, 96)),
    "conv_3x3_14x14_24_40": conv((14, 14), (24, 40), padded=False),
    "conv_7x7s2_32x32_3_16": conv((32, 32), (3, 16), (7, 7), stride=2),
    "conv_3x3_10x10_20_12": conv((10, 10), (20, 12)),
    "conv_1x3_20x20_32_32": conv((20, 20), (32, 32), (1, 3)),
    "pw_s2_32x32_16_32": conv((32, 32), (16, 32), (1, 1), stride=2),
    "pw_s2_16x16_32_64": conv((16, 16), (32, 64), (1, 1), stride=2),
    "pw_48x48_8_16": conv((48, 48), (8, 16), (1, 1)),
    "pw_24x24_16_32": conv((24, 24), (16, 32), (1, 1)),
    "pw_24x24_32_32": conv((24, 24), (32, 32), (1, 1)),
    "pw_12x12_32_64": conv((12, 12), (32, 64), (1, 1)),
    "pw_12x12_64_64": conv((12, 12), (64, 64), (1, 1)),
    "pw_25x5_64_64": conv((25, 5), (64, 64), (1, 1)),
    "pw_6x6_64_128": conv((6, 6), (64, 128), (1, 1)),
    "pw_6x6_128_128": conv((6, 6), (128, 128), (1, 1)),
    "pw_3x3_128_256": conv((3, 3), (128, 256), (1, 1)),
    "pw_3x3_256_256": conv((3, 3), (256, 256), (1, 1)),
    "pw_14x14_96_24": conv((14, 14), (96, 24), (1, 1)),
    "pw_14x14_24_144": conv((14, 14), (24, 144), (1, 1)),
    "pw_7x7_240_40": conv((7, 7), (240, 40), (1, 1)),
    "dw_48x48_8": depthwise((48, 48), 8),
    "dw_48x48_16": depthwise((48, 48), 16),
    "dw_48x48_16_s2": depthwise((48, 48), 16, stride=2),
    "dw_24x24_32": depthwise((24, 24), 32),
    "dw_24x24_32_s2": depthwise((24, 24), 32, stride=2),
    "dw_25x5_64": depthwise((25, 5), 64),
    "dw_12x12_64": depthwise((12, 12), 64),
    "dw_12x12_64_s2": depthwise((12, 12), 64, stride=2),
    "dw_6x6_128": depthwise((6, 6), 128),
    "dw_6x6_128_s2": depthwise((6, 6), 128, stride=2),
    "dw_3x3_256": depthwise((3, 3), 256),
    "dw_5x5_14x14_96": depthwise((14, 14), 96, kernel=5),
    "dw_7x7_7x7_40": depthwise((7, 7), 40, kernel=7),
    "grouped_2_16x16_32_32": conv((16, 16), (32, 32), groups=2),
    "grouped_4_8x8_64_64": conv((8, 8), (64, 64), groups=4),
    "grouped_8_14x14_64_32_1x1": conv((14, 14), (64, 32), (1, 1), groups=8),
    "fc_640_128": linear(640, 128),
    "fc_128_128": linear(128, 128),
    "fc_128_8": linear(128, 8),
    "fc_8_128": linear(8, 128),
    "fc_128_640": linear(128, 640),
    "fc_256_2": linear(256, 2),
    "fc_64_10": linear(64, 10),
    "fc_64_12": linear(64, 12),
    "fc_1024_100": linear(1024, 100),
    "fc_96_64_x10": linear(96, 64, positions=10),
}
"""Name → shape."""

WIDTHS = tuple((weights, 8, 8) for weights in (8, 4, 2))
"""Storage widths of weights, inputs and outputs that every shape is counted with."""

MORE_WIDTHS = (
    (8, 4, 4),
    (4, 4, 4),
    (2, 4, 4),
    (8, 2, 2),
    (4, 2, 2),
    (2, 2, 2),
    (8, 8, 4),
    (8, 8, 2),
    (4, 4, 8),
    (2, 2, 8),
)
"""Those that the shapes of `WITH_MORE_WIDTHS` are counted with besides."""

WITH_MORE_WIDTHS = (
    "ic_c1_3x3_32x32_3_16",
    "ic_c2_3x3_32x32_16_16",
    "ic_c3_3x3s2_32x32_16_32",
    "ic_c5_3x3_8x8_64_64",
    "conv_3x3_7x7_48_96",
    "pw_s2_32x32_16_32",
    "pw_24x24_32_32",
    "pw_6x6_128_128",
    "pw_3x3_256_256",
    "dw_48x48_16",
    "dw_24x24_32_s2",
    "dw_12x12_64",
    "dw_3x3_256",
    "grouped_2_16x16_32_32",
    "fc_640_128",
    "fc_128_128",
    "fc_64_10",
)
