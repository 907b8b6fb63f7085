"""Windows and paddings of the program in the words of TFLite, which knows SAME, VALID and explicit PAD only.

Legend: sizes are (height, width); padding is top, bottom, left, right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Padding = tuple[int, int, int, int]
Pair = tuple[int, ...]


def same_or_valid(
    size: Pair, out: Pair, extent: Pair, stride: Pair, padding: Padding
) -> Literal["SAME", "VALID"] | None:
    """Returns the scheme that puts every window where the layer puts it, or None.

    ``extent`` is the size of a window, dilation included. SAME spreads its padding with the smaller half first.

    >>> same_or_valid((32, 32), (32, 32), (3, 3), (1, 1), (1, 1, 1, 1))
    'SAME'
    >>> same_or_valid((32, 32), (16, 16), (3, 3), (2, 2), (1, 1, 1, 1)) is None  # SAME would pad below only
    True
    """
    if not any(padding[::2]) and all(
        o == (n - e) // s + 1 for n, o, e, s in zip(size, out, extent, stride, strict=True)
    ):
        return "VALID"
    for n, o, e, s, first in zip(size, out, extent, stride, padding[::2], strict=True):
        if o != -(-n // s) or first != max((o - 1) * s + e - n, 0) // 2:
            return None
    return "SAME"


def image_padding(size: Pair, out: Pair, extent: Pair, stride: Pair, padding: Padding) -> Padding:
    """Returns the padding with which VALID windows give ``out``: more at the end where a last window sticks out."""
    ends = [
        max((o - 1) * s + e - n - first, 0)
        for n, o, e, s, first in zip(size, out, extent, stride, padding[::2], strict=True)
    ]
    return padding[0], ends[0], padding[2], ends[1]


@dataclass(frozen=True)
class Tile:
    """A run of outputs along one dimension whose windows are clipped alike.

    Attributes:
        start: first input index read.
        kernel: length of the clipped windows.
        count: outputs.
        stride: distance of the windows.
    """

    start: int
    kernel: int
    count: int
    stride: int

    @property
    def input_length(self) -> int:
        """Input indices read."""
        return (self.count - 1) * self.stride + self.kernel

    @property
    def stop(self) -> int:
        """Index after the last one read."""
        return self.start + self.input_length


def pool_tiles(size: int, out: int, kernel: int, stride: int, before: int) -> list[Tile]:
    """Returns the tiles of one dimension: windows are clipped to the ``size`` indices that count.

    >>> [(t.start, t.kernel, t.count) for t in pool_tiles(5, 3, 3, 2, 1)]
    [(0, 2, 1), (1, 3, 1), (3, 2, 1)]
    """
    tiles: list[Tile] = []
    for index in range(out):
        start = index * stride - before
        begin, end = max(start, 0), min(start + kernel, size)
        last = tiles[-1] if tiles else None
        if last is not None and last.kernel == end - begin and last.start + last.count * stride == begin:
            tiles[-1] = Tile(last.start, last.kernel, last.count + 1, stride)
        else:
            tiles.append(Tile(begin, end - begin, 1, stride))
    return tiles
