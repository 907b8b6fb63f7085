"""A layer table that grows by appending layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

COLUMNS = [
    *("op", "input_height", "input_width", "input_channels", "output_height", "output_width", "output_channels"),
    *("kernel_height", "kernel_width", "stride", "padding_top", "padding_left", "groups", "macs"),
]
Padding = int | tuple[int, int] | Literal["same", "valid"]


class Table:
    """Layers appended one after the other; ``shape`` is the height, width and channels of the latest output."""

    def __init__(self, height: int, width: int, channels: int) -> None:
        self.shape = (height, width, channels)
        self.rows: list[list[int | str]] = []

    def conv(
        self, channels: int, kernel: int | tuple[int, int], stride: int = 1, padding: Padding = "same", groups: int = 1
    ) -> Table:
        """A convolution with folded batch norm and activation."""
        kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
        height, width, depth = self.shape
        out_h, top = _extent(height, kh, stride, padding[0] if isinstance(padding, tuple) else padding)
        out_w, left = _extent(width, kw, stride, padding[1] if isinstance(padding, tuple) else padding)
        macs = out_h * out_w * channels * kh * kw * depth // groups
        return self._add("conv2d", (out_h, out_w, channels), (kh, kw), stride, (top, left), groups, macs)

    def depthwise(self, kernel: int, stride: int = 1, padding: Padding = "same", multiplier: int = 1) -> Table:
        """A depthwise convolution."""
        return self.conv(self.shape[2] * multiplier, kernel, stride, padding, groups=self.shape[2])

    def linear(self, rows: int) -> Table:
        """A fully connected layer over everything, or a 1 x 1 convolution of one position."""
        length = math.prod(self.shape)
        return self._add("linear", (1, 1, rows), (1, 1), 1, (0, 0), 1, length * rows)

    def pool(self, kind: str, kernel: int, stride: int, padding: Padding = "valid") -> Table:
        """``max_pool2d`` or ``avg_pool2d``."""
        height, width, depth = self.shape
        out_h, top = _extent(height, kernel, stride, padding)
        out_w, left = _extent(width, kernel, stride, padding)
        return self._add(kind, (out_h, out_w, depth), (kernel, kernel), stride, (top, left), 1, 0)

    def mean(self) -> Table:
        """Global average."""
        return self._add("mean", (1, 1, self.shape[2]), (1, 1), 1, (0, 0), 1, 0)

    def each(self, kind: str) -> Table:
        """``activation``, ``add``, ``mul`` (by one factor per channel) or ``concat`` to the current shape."""
        return self._add(kind, self.shape, (1, 1), 1, (0, 0), 1, 0)

    def concat(self, shapes: Sequence[tuple[int, int, int]]) -> Table:
        """Joins branches along the channels."""
        self.shape = (shapes[0][0], shapes[0][1], sum(shape[2] for shape in shapes))
        return self.each("concat")

    def squeeze_excite(self, squeezed: int) -> Table:
        """Global average, two linear layers, scaling."""
        shape = self.shape
        self.mean().linear(squeezed).linear(shape[2])
        self.shape = shape
        return self.each("mul")

    def _add(
        self, op: str, output: tuple[int, int, int], kernel: tuple[int, int], stride: int, padding: tuple[int, int],
        groups: int, macs: int,
    ) -> Table:  # fmt: skip
        self.rows.append([op, *self.shape, *output, *kernel, stride, *padding, groups, macs])
        self.shape = output
        return self


def _extent(size: int, kernel: int, stride: int, padding: int | str) -> tuple[int, int]:
    """Output positions and padding before the first."""
    if padding == "same":
        out = -(-size // stride)
        return out, max((out - 1) * stride + kernel - size, 0) // 2
    if padding == "valid":
        return -(-(size - kernel + 1) // stride), 0
    assert isinstance(padding, int)
    return (size + 2 * padding - kernel) // stride + 1, padding


def divisible(value: float, divisor: int = 8) -> int:
    """Width rounded as the MobileNet papers' code does: to a multiple of 8, at most 10 % down."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def branches(net: Table, branches: Sequence[Sequence[tuple]]) -> Table:  # type: ignore[type-arg]
    """Runs every branch on the same input and joins the results; a nested list of steps splits at the branch's end."""
    start, ends = net.shape, []
    for branch in branches:
        net.shape = start
        for step in branch:
            if step[0] == "split":
                middle = net.shape
                for arguments in step[1:]:
                    net.shape = middle
                    net.conv(*arguments)
                    ends.append(net.shape)
                break
            if step[0] in ("max_pool2d", "avg_pool2d"):
                net.pool(*step)
            else:
                net.conv(*step)
        else:
            ends.append(net.shape)
    return net.concat(ends)
