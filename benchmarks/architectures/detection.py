"""Detection networks of ncnn's benchmark: layer lists in Tencent/ncnn, benchmark/*.param at 0220ffb and 34077b5."""

from __future__ import annotations

from collections.abc import Sequence

from architectures.classic import caffe_padding, fire
from architectures.table import Table


def mobilenet_ssd() -> Table:
    """MobileNet-SSD, 300 x 300, 21 classes: ncnn's benchmark/mobilenet_ssd_int8.param."""
    net = Table(300, 300, 3).conv(32, 3, 2, 1)
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    sources = []
    for index, (channels, stride) in enumerate(plan):
        net.depthwise(3, stride, 1).conv(channels, 1)
        if index == 10:
            sources.append(net.shape)
    sources.append(net.shape)
    for squeezed, channels in ((256, 512), (128, 256), (128, 256), (64, 128)):
        net.conv(squeezed, 1).conv(channels, 3, 2, 1)
        sources.append(net.shape)
    return _heads(net, sources, [3, 6, 6, 6, 6, 6], 1)


def squeezenet_ssd() -> Table:
    """SqueezeNet-SSD, 300 x 300, 21 classes: ncnn's benchmark/squeezenet_ssd_int8.param."""
    net = Table(300, 300, 3).conv(64, 3, 2, 0).pool("max_pool2d", 3, 2, caffe_padding(149, 3, 2))
    sources = []
    for index, (squeezed, expanded) in enumerate(
        [(16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256), (96, 384), (96, 384)]
    ):
        if index in (2, 4, 8, 9):
            net.pool("max_pool2d", 3, 2, caffe_padding(net.shape[0], 3, 2))
        fire(net, squeezed, expanded)
        if index in (3, 7, 8, 9):
            sources.append(net.shape)
    for squeezed, channels in ((128, 256), (64, 128)):
        net.conv(squeezed, 1).conv(channels, 3, 2, 1)
        sources.append(net.shape)
    return _heads(net, sources, [4, 6, 6, 6, 6, 4], 3)


def _heads(net: Table, sources: Sequence[tuple[int, int, int]], anchors: Sequence[int], kernel: int) -> Table:
    """Boxes (4 per anchor) and classes (21 per anchor) of every source."""
    for source, count in zip(sources, anchors, strict=True):
        for outputs in (4 * count, 21 * count):
            net.shape = source
            net.conv(outputs, kernel).each("concat")
    return net
