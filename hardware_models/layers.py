"""Facts of a layer that kernels depend on, and the checks that nothing is priced by omission."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ddq_search.errors import CostError
from ddq_search.graph import KINDS, WEIGHTED, Operation
from hardware_models.profile import LayerClass


@dataclass(frozen=True)
class LayerFacts:
    """Counts of one weighted layer for one sample.

    Attributes:
        layer_class: which family of kernels executes it.
        pixels: output positions per channel (1 for a linear layer).
        channels: output channels.
        row_length: weights per output channel, the K of the matrix product.
        groups: independent matrix products.
        outputs: output scalars.
        macs: multiply-accumulates.
        inputs: input scalars.
        input_channels: channels of the input (features of a linear layer).
        weights: weight scalars.
        runs_per_pixel: contiguous pieces of channel-last input that one output position gathers.
        gathered: whether the input must be rearranged into columns before the product.
        window_rows_elements: input scalars in the rows that one row of outputs reads.
    """

    layer_class: LayerClass
    pixels: int
    channels: int
    row_length: int
    groups: int
    outputs: int
    macs: int
    inputs: int
    input_channels: int
    weights: int
    runs_per_pixel: int
    gathered: bool
    window_rows_elements: int


def check_kind(op: Operation) -> None:
    """Raises `CostError` with the operation's name if no cost model knows its kind."""
    if op.kind not in KINDS:
        raise CostError(f"{op.name!r}: operations of kind {op.kind!r} have no price; known kinds: {sorted(KINDS)}")


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


def layer_facts(op: Operation) -> LayerFacts:
    """Returns the counts of a weighted layer."""
    kind = layer_class(op)
    inputs = math.prod(op.input_shapes[0])
    if kind == "linear":
        return LayerFacts(
            kind, op.output_elements // op.rows, op.rows, op.row_length, 1, op.output_elements, op.macs, inputs,
            op.row_length, op.weights, 1, False, inputs,
        )  # fmt: skip
    channels, _, width = op.input_shapes[0]
    kernel_rows, kernel_columns = op.attributes["kernel_size"]
    dilated = op.attributes["dilation"][1] > 1
    grouped = op.attributes["groups"] > 1
    runs = kernel_rows * (kernel_columns if dilated or grouped else 1)
    strided = tuple(op.attributes["stride"]) != (1, 1)
    return LayerFacts(
        kind, math.prod(op.output_shape[1:]), op.rows, op.row_length, op.attributes["groups"], op.output_elements,
        op.macs, inputs, channels, op.weights, runs, kind != "pointwise" or strided,
        min(kernel_rows, op.input_shapes[0][1]) * width * channels,
    )  # fmt: skip


def elements_read(op: Operation) -> int:
    """Returns how many input scalars an operation without weights reads."""
    if op.kind in ("max_pool2d", "avg_pool2d"):
        rows, columns = op.attributes["kernel_size"]
        return op.output_elements * int(rows) * int(columns)
    if op.kind == "slice":
        return op.output_elements
    return sum(math.prod(shape) for shape in op.input_shapes)
