"""Networks of MLPerf Tiny."""

from __future__ import annotations

from architectures.mobile import mobilenet_v1
from architectures.table import Table


def tiny_ic() -> Table:
    """ResNet-8 of MLPerf Tiny."""
    net = Table(32, 32, 3).conv(16, 3)
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        before = net.shape
        net.conv(width, 3, stride).conv(width, 3)
        if stride == 2:
            net.shape = before
            net.conv(width, 1, 2)
        net.each("add")
    return net.pool("avg_pool2d", 8, 8).linear(10)


def tiny_kws() -> Table:
    """DS-CNN of MLPerf Tiny."""
    net = Table(49, 10, 1).conv(64, (10, 4), 2)
    for _ in range(4):
        net.depthwise(3).conv(64, 1)
    return net.mean().linear(12)


def tiny_vww() -> Table:
    """MobileNetV1-0.25, 96 x 96, two classes."""
    return mobilenet_v1(0.25, 96, 2)


def tiny_ad() -> Table:
    """Autoencoder of MLPerf Tiny."""
    net = Table(1, 1, 640)
    for rows in (128, 128, 128, 128, 8, 128, 128, 128, 128, 640):
        net.linear(rows)
    return net
