"""Geometry of a weighted layer: what its price and the choice of its kernel depend on besides precision.

Sizes are channel-last ``(height, width, channels)``; a linear layer is a 1 x 1 convolution over ``height`` positions.

Legend: K weights per output channel, in the order kernel row, kernel column, input channel within the group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from ddq_search.errors import CostError
from ddq_search.graph import WEIGHTED, Operation

LayerClass = Literal["conv", "pointwise", "depthwise", "grouped", "linear"]
"""Classes of weighted layers that kernels tell apart."""

LAYER_CLASSES: tuple[LayerClass, ...] = get_args(LayerClass)


@dataclass(frozen=True)
class LayerShape:
    """Geometry of one weighted layer.

    Attributes:
        layer_class: family of kernels that executes it.
        input: height, width, channels.
        output: height, width, channels.
        kernel: height, width.
        stride: vertical, horizontal.
        padding: top, left; bottom and right follow from the output.
        dilation: vertical, horizontal.
        groups: independent products.
    """

    layer_class: LayerClass
    input: tuple[int, int, int]
    output: tuple[int, int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @cached_property
    def row_length(self) -> int:
        """K: weights per output channel."""
        return self.kernel[0] * self.kernel[1] * self.input[2] // self.groups

    @cached_property
    def pixels(self) -> int:
        """Output positions per channel."""
        return self.output[0] * self.output[1]

    @property
    def channels(self) -> int:
        """Output channels."""
        return self.output[2]

    @property
    def input_channels(self) -> int:
        """Input channels of all groups."""
        return self.input[2]

    @property
    def inputs(self) -> int:
        """Input scalars."""
        return math.prod(self.input)

    @property
    def outputs(self) -> int:
        """Output scalars."""
        return math.prod(self.output)

    @property
    def weights(self) -> int:
        """Weight scalars."""
        return self.output[2] * self.row_length

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample."""
        return self.outputs * self.row_length

    @property
    def runs_per_pixel(self) -> int:
        """Contiguous pieces of the input that one window consists of, per group."""
        return self.kernel[0] * (self.kernel[1] if self.dilation[1] > 1 or self.groups > 1 else 1)

    @property
    def gathered(self) -> bool:
        """Whether windows must be rearranged into columns before a matrix product."""
        return self.layer_class not in ("linear", "pointwise") or self.stride != (1, 1)

    @property
    def window_rows_elements(self) -> int:
        """Input scalars in the rows that one row of outputs reads."""
        if self.layer_class == "linear":
            return self.inputs
        return min(self.kernel[0], self.input[0]) * self.input[1] * self.input[2]

    @cached_property
    def border_pixels(self) -> int:
        """Output positions whose window leaves the image."""
        return self.pixels - self._inside(0) * self._inside(1)

    @cached_property
    def inside_taps(self) -> int:
        """Window positions of all outputs that lie inside the image."""
        return self._taps(0) * self._taps(1)

    def _starts(self, axis: int) -> list[int]:
        return [i * self.stride[axis] - self.padding[axis] for i in range(self.output[axis])]

    def _inside(self, axis: int) -> int:
        """Positions along an axis whose window stays inside the image."""
        reach = (self.kernel[axis] - 1) * self.dilation[axis]
        return sum(0 <= start < self.input[axis] - reach for start in self._starts(axis))

    def _taps(self, axis: int) -> int:
        """Taps along an axis that lie inside the image, over all positions."""
        taps = [tap * self.dilation[axis] for tap in range(self.kernel[axis])]
        return sum(0 <= start + tap < self.input[axis] for start in self._starts(axis) for tap in taps)


def layer_class(op: Operation) -> LayerClass:
    """Returns the class of a weighted layer.

    Raises:
        CostError: the operation has no weights.
    """
    if op.kind not in WEIGHTED:
        raise CostError(f"{op.name!r} ({op.kind}) has no weights")
    if op.kind == "linear":
        return "linear"
    if op.is_depthwise:
        return "depthwise"
    if op.attributes["groups"] > 1:
        return "grouped"
    if tuple(op.attributes["kernel_size"]) == (1, 1) and not any(op.attributes["padding"]):
        return "pointwise"
    return "conv"


def layer_shape(op: Operation) -> LayerShape:
    """Returns the geometry of a weighted layer."""
    kind = layer_class(op)
    if kind == "linear":
        positions = op.output_elements // op.rows
        return LayerShape(kind, (positions, 1, op.row_length), (positions, 1, op.rows))
    channels, *size = op.input_shapes[0]
    rows, *out = op.output_shape
    facts = op.attributes
    return LayerShape(
        kind, (size[0], size[1], channels), (out[0], out[1], rows), _pair(facts["kernel_size"]),
        _pair(facts["stride"]), (facts["padding"][0], facts["padding"][2]), _pair(facts["dilation"]), facts["groups"],
    )  # fmt: skip


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second
