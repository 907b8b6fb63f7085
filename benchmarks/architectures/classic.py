"""SqueezeNet, ResNet, DenseNet, VGG and AlexNet."""

from __future__ import annotations

from collections.abc import Sequence

from architectures.table import Padding, Table, branches


def densenet_121() -> Table:
    """DenseNet-121 (arXiv:1608.06993)."""
    net = Table(224, 224, 3).conv(64, 7, 2).pool("max_pool2d", 3, 2, "same")
    for count in (6, 12, 24, 16):
        for _ in range(count):
            before = net.shape
            net.each("activation").conv(128, 1).conv(32, 3)
            net.concat([before, net.shape])
        if count != 16:
            net.each("activation").conv(net.shape[2] // 2, 1).pool("avg_pool2d", 2, 2)
    return net.mean().linear(1000)


def squeezenet(version: str, size: int, classes: int = 1001) -> Table:
    """SqueezeNet 1.0 or 1.1 (arXiv:1602.07360), windows not padded as in Caffe."""
    if version == "1.0":
        net, pools = Table(size, size, 3).conv(96, 7, 2, "valid"), (0, 3, 7)
    else:
        net, pools = Table(size, size, 3).conv(64, 3, 2, "valid"), (0, 2, 4)
    _fires(net, pools)
    return net.conv(classes, 1, padding=0 if version == "1.0" else 1).mean()


def _fires(net: Table, pools: Sequence[int]) -> None:
    squeezed, expanded = (16, 16, 32, 32, 48, 48, 64, 64), (64, 64, 128, 128, 192, 192, 256, 256)
    for index, widths in enumerate(zip(squeezed, expanded, strict=True)):
        if index in pools:
            net.pool("max_pool2d", 3, 2, caffe_padding(net.shape[0], 3, 2))
        fire(net, *widths)


def fire(net: Table, squeezed: int, expanded: int) -> None:
    """Squeeze to few channels, expand by 1 x 1 and 3 x 3."""
    net.conv(squeezed, 1)
    branches(net, [[(expanded, 1)], [(expanded, 3)]])


def caffe_padding(size: int, kernel: int, stride: int) -> Padding:
    """Caffe rounds the extent of a pool up."""
    return "same" if -(-(size - kernel) // stride) + 1 == -(-size // stride) else "valid"


def resnet(depths: Sequence[int], bottleneck: bool, size: int = 224, classes: int = 1000) -> Table:
    """ResNet (arXiv:1512.03385) as in Caffe: the first stage projects its shortcut too."""
    net = Table(size, size, 3).conv(64, 7, 2, 3).pool("max_pool2d", 3, 2, "same")
    for stage, count in enumerate(depths):
        width = 64 * 2**stage
        for index in range(count):
            stride = 2 if stage and not index else 1
            before = net.shape
            if not index:
                net.conv(4 * width if bottleneck else width, 1, stride)
                net.shape = before
            if bottleneck:
                net.conv(width, 1, stride).conv(width, 3).conv(4 * width, 1)
            else:
                net.conv(width, 3, stride).conv(width, 3)
            net.each("add")
    return net.mean().linear(classes)


def resnet_v2_101() -> Table:
    """ResNet-101 with pre-activation (arXiv:1603.05027), 299 x 299 as TF-slim's released model."""
    net = Table(299, 299, 3).conv(64, 7, 2).pool("max_pool2d", 3, 2, "same")
    for stage, count in enumerate((3, 4, 23, 3)):
        width = 64 * 2**stage
        for index in range(count):
            stride = 2 if index == count - 1 and stage < 3 else 1
            net.each("activation")
            before = net.shape
            if not index:
                net.conv(4 * width, 1, stride)
                net.shape = before
            net.conv(width, 1).conv(width, 3, stride).conv(4 * width, 1).each("add")
    return net.each("activation").mean().linear(1001)


def vgg16() -> Table:
    """VGG-16 (arXiv:1409.1556)."""
    net = Table(224, 224, 3)
    for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            net.conv(channels, 3)
        net.pool("max_pool2d", 2, 2)
    return net.linear(4096).linear(4096).linear(1000)


def alexnet() -> Table:
    """AlexNet as in Caffe (two groups)."""
    net = Table(227, 227, 3).conv(96, 11, 4, "valid").pool("max_pool2d", 3, 2).conv(256, 5, groups=2)
    net.pool("max_pool2d", 3, 2).conv(384, 3).conv(384, 3, groups=2).conv(256, 3, groups=2).pool("max_pool2d", 3, 2)
    return net.linear(4096).linear(4096).linear(1000)
