"""Networks of depthwise separable convolutions: MobileNets, MnasNet, EfficientNet-lite."""

from __future__ import annotations

import math

from architectures.table import Table, divisible


def mobilenet_v1(width: float, size: int, classes: int = 1001) -> Table:
    """MobileNet (arXiv:1704.04861)."""
    net = Table(size, size, 3).conv(divisible(32 * width), 3, 2)
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for channels, stride in plan:
        net.depthwise(3, stride).conv(divisible(channels * width), 1)
    return net.mean().linear(classes)


def mobilenet_v2(width: float, size: int) -> Table:
    """MobileNetV2 (arXiv:1801.04381)."""
    net = Table(size, size, 3).conv(divisible(32 * width), 3, 2)
    plan = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, channels, count, first in plan:
        for index in range(count):
            _inverted(net, expansion, divisible(channels * width), 3, first if index == 0 else 1)
    return net.conv(max(1280, divisible(1280 * width)), 1).mean().linear(1001)


def _inverted(net: Table, expansion: float, channels: int, kernel: int, stride: int) -> None:
    """Inverted residual block."""
    depth = net.shape[2]
    if expansion != 1:
        net.conv(round(depth * expansion), 1)
    net.depthwise(kernel, stride).conv(channels, 1)
    if stride == 1 and depth == channels:
        net.each("add")


_LARGE = (
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1),
    (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1),
    (3, 184, 80, 0, 1, 1), (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 2),
    (5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1),
)  # fmt: skip
_SMALL = (
    (3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 1, 1, 2), (5, 240, 40, 1, 1, 1),
    (5, 240, 40, 1, 1, 1), (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1), (5, 288, 96, 1, 1, 2),
    (5, 576, 96, 1, 1, 1), (5, 576, 96, 1, 1, 1),
)  # fmt: skip
"""Window, expanded width, channels, squeeze-and-excite, hard swish, stride of every block of MobileNetV3."""


def mobilenet_v3(large: bool, width: float = 1.0, minimalistic: bool = False) -> Table:
    """MobileNetV3 (arXiv:1905.02244); minimalistic: no squeeze-and-excite, no hard swish, no 5 x 5 windows."""
    plan, last, hidden = (_LARGE, 960, 1280) if large else (_SMALL, 576, 1024)
    net = Table(224, 224, 3).conv(16, 3, 2)
    _swish(net, not minimalistic)
    for kernel, expanded, channels, excite, swish, stride in plan:
        depth, wide, out = net.shape[2], divisible(expanded * width), divisible(channels * width)
        if wide != depth:
            net.conv(wide, 1)
            _swish(net, bool(swish) and not minimalistic)
        net.depthwise(3 if minimalistic else kernel, stride)
        _swish(net, bool(swish) and not minimalistic)
        if excite and not minimalistic:
            net.squeeze_excite(divisible(wide / 4))
        net.conv(out, 1)
        if stride == 1 and depth == out:
            net.each("add")
    net.conv(divisible(last * width), 1)
    _swish(net, not minimalistic)
    return net.mean().linear(hidden).linear(1001)


def _swish(net: Table, wanted: bool) -> None:
    if wanted:
        net.each("activation")


def mnasnet(width: float, size: int) -> Table:
    """MnasNet-B1 (arXiv:1807.11626)."""
    net = Table(size, size, 3).conv(divisible(32 * width), 3, 2).depthwise(3).conv(divisible(16 * width), 1)
    plan = [
        (3, 3, 24, 3, 2),
        (3, 5, 40, 3, 2),
        (6, 5, 80, 3, 2),
        (6, 3, 96, 2, 1),
        (6, 5, 192, 4, 2),
        (6, 3, 320, 1, 1),
    ]
    for expansion, kernel, channels, count, first in plan:
        for index in range(count):
            _inverted(net, expansion, divisible(channels * width), kernel, first if index == 0 else 1)
    return net.conv(1280, 1).mean().linear(1001)


def efficientnet_lite(width: float, depth: float, size: int) -> Table:
    """EfficientNet-lite: EfficientNet (arXiv:1905.11946) without squeeze-and-excite, stem and head not scaled."""
    net = Table(size, size, 3).conv(32, 3, 2)
    plan = [
        (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1), (6, 5, 192, 4, 2),
        (6, 3, 320, 1, 1),
    ]  # fmt: skip
    for stage, (expansion, kernel, channels, count, first) in enumerate(plan):
        repeats = count if stage in (0, len(plan) - 1) else math.ceil(count * depth)
        for index in range(repeats):
            _inverted(net, expansion, divisible(channels * width), kernel, first if index == 0 else 1)
    return net.conv(1280, 1).mean().linear(1000)
