"""Inception networks."""

from __future__ import annotations

from architectures.table import Table, branches


def inception_v1(caffe: bool = False) -> Table:
    """GoogLeNet (arXiv:1409.4842) without auxiliary heads.

    TF-slim's variant has 3 x 3 windows where the paper has 5 x 5, and a last pool of 2 x 2; Caffe's is the paper's.
    """
    net = Table(224, 224, 3).conv(64, 7, 2).pool("max_pool2d", 3, 2, "same").conv(64, 1).conv(192, 3)
    net.pool("max_pool2d", 3, 2, "same")
    plan = [
        (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), None, (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128), None, (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
    ]  # fmt: skip
    for entry in plan:
        if entry is None:
            net.pool("max_pool2d", 3 if caffe or net.shape[0] > 14 else 2, 2, "same")
            continue
        a, b1, b2, c1, c2, d = entry
        wide = [(c1, 1), (c2, 5 if caffe else 3)]
        branches(net, [[(a, 1)], [(b1, 1), (b2, 3)], wide, [("max_pool2d", 3, 1, "same"), (d, 1)]])
    return net.mean().linear(1000 if caffe else 1001)


def inception_v2() -> Table:
    """Batch-normalised Inception (arXiv:1502.03167) in TF-slim's variant: separable first layer."""
    net = Table(224, 224, 3).depthwise(7, 2, "same", 8).conv(64, 1)
    net.pool("max_pool2d", 3, 2, "same").conv(64, 1).conv(192, 3).pool("max_pool2d", 3, 2, "same")
    average, largest = ("avg_pool2d", 3, 1, "same"), ("max_pool2d", 3, 2, "same")
    plan = [
        (64, 64, 64, 64, 96, 32), (64, 64, 96, 64, 96, 64), (128, 160, 64, 96), (224, 64, 96, 96, 128, 128),
        (192, 96, 128, 96, 128, 128), (160, 128, 160, 128, 160, 96), (96, 128, 192, 160, 192, 96), (128, 192, 192, 256),
        (352, 192, 320, 160, 224, 128), (352, 192, 320, 192, 224, 128),
    ]  # fmt: skip
    for index, entry in enumerate(plan):
        if len(entry) == 4:
            a1, a2, b1, b2 = entry
            branches(net, [[(a1, 1), (a2, 3, 2)], [(b1, 1), (b2, 3), (b2, 3, 2)], [largest]])
            continue
        a, b1, b2, c1, c2, d = entry
        pool = ("max_pool2d", 3, 1, "same") if index == len(plan) - 1 else average
        branches(net, [[(a, 1)], [(b1, 1), (b2, 3)], [(c1, 1), (c2, 3), (c2, 3)], [pool, (d, 1)]])
    return net.mean().linear(1001)


def inception_v3() -> Table:
    """Inception-v3 (arXiv:1512.00567) without auxiliary head, 299 x 299."""
    net = Table(299, 299, 3).conv(32, 3, 2, "valid").conv(32, 3, 1, "valid").conv(64, 3).pool("max_pool2d", 3, 2)
    net.conv(80, 1).conv(192, 3, 1, "valid").pool("max_pool2d", 3, 2)
    average = ("avg_pool2d", 3, 1, "same")
    for pooled in (32, 64, 64):
        branches(net, [[(64, 1)], [(48, 1), (64, 5)], [(64, 1), (96, 3), (96, 3)], [average, (pooled, 1)]])
    branches(net, [[(384, 3, 2, "valid")], [(64, 1), (96, 3), (96, 3, 2, "valid")], [("max_pool2d", 3, 2)]])
    for c in (128, 160, 160, 192):
        row, column = (1, 7), (7, 1)
        long = [(c, 1), (c, column), (c, row), (c, column), (192, row)]
        branches(net, [[(192, 1)], [(c, 1), (c, row), (192, column)], long, [average, (192, 1)]])
    first = [(192, 1), (320, 3, 2, "valid")]
    second = [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2, "valid")]
    branches(net, [first, second, [("max_pool2d", 3, 2)]])
    for _ in range(2):
        pair = ("split", (384, (1, 3)), (384, (3, 1)))
        branches(net, [[(320, 1)], [(384, 1), pair], [(448, 1), (384, 3), pair], [average, (192, 1)]])
    return net.mean().linear(1001)


def inception_v4() -> Table:
    """Inception-v4 (arXiv:1602.07261), 299 x 299."""
    net = Table(299, 299, 3).conv(32, 3, 2, "valid").conv(32, 3, 1, "valid").conv(64, 3)
    branches(net, [[("max_pool2d", 3, 2)], [(96, 3, 2, "valid")]])
    row, column, average = (1, 7), (7, 1), ("avg_pool2d", 3, 1, "same")
    branches(net, [[(64, 1), (96, 3, 1, "valid")], [(64, 1), (64, row), (64, column), (96, 3, 1, "valid")]])
    branches(net, [[(192, 3, 2, "valid")], [("max_pool2d", 3, 2)]])
    for _ in range(4):
        branches(net, [[(96, 1)], [(64, 1), (96, 3)], [(64, 1), (96, 3), (96, 3)], [average, (96, 1)]])
    branches(net, [[(384, 3, 2, "valid")], [(192, 1), (224, 3), (256, 3, 2, "valid")], [("max_pool2d", 3, 2)]])
    for _ in range(7):
        long = [(192, 1), (192, column), (224, row), (224, column), (256, row)]
        branches(net, [[(384, 1)], [(192, 1), (224, row), (256, column)], long, [average, (128, 1)]])
    second = [(256, 1), (256, row), (320, column), (320, 3, 2, "valid")]
    branches(net, [[(192, 1), (192, 3, 2, "valid")], second, [("max_pool2d", 3, 2)]])
    for _ in range(3):
        pair = ("split", (256, (1, 3)), (256, (3, 1)))
        long = [(384, 1), (448, (3, 1)), (512, (1, 3)), pair]
        branches(net, [[(256, 1)], [(384, 1), pair], long, [average, (256, 1)]])
    return net.mean().linear(1001)
