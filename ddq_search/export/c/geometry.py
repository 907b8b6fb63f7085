"""What the C kernels see of a weighted layer: its geometry, and its weights as rows in channel-last order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddq_search.integer.program import IntegerProgram, Weighted
from ddq_search.layer_shape import LayerClass, LayerShape


def layer_shape(program: IntegerProgram, step: Weighted) -> LayerShape:
    """Returns the geometry of a weighted layer; a linear layer is a 1 x 1 convolution over one position."""
    source, output = program.tensors[step.inputs[0]].shape, program.tensors[step.name].shape
    if step.kind == "linear":
        return LayerShape("linear", (1, 1, source[0]), (1, 1, output[0]))
    return LayerShape(
        layer_class=_layer_class(step, source[0]),
        input=(source[1], source[2], source[0]),
        output=(output[1], output[2], output[0]),
        kernel=(step.codes.shape[2], step.codes.shape[3]),
        stride=step.stride,
        padding=(step.padding[0], step.padding[2]),
        dilation=step.dilation,
        groups=step.groups,
    )


def kernel_rows(codes: NDArray[Any], columns: NDArray[np.intp] | None = None) -> NDArray[Any]:
    """Returns weight codes as ``[rows, K]``: kernel row, kernel column, input channel.

    Args:
        codes: ``[rows, C, kh, kw]`` or ``[rows, K]``.
        columns: for ``[rows, K]``, which column multiplies each code of the input as it lies in memory.
    """
    if codes.ndim == 4:
        return codes.transpose(0, 2, 3, 1).reshape(len(codes), -1)
    return codes if columns is None else codes[:, columns]


def _layer_class(step: Weighted, channels: int) -> LayerClass:
    if step.groups == channels > 1:
        return "depthwise"
    if step.groups > 1:
        return "grouped"
    pointwise = step.codes.shape[2:] == (1, 1) and not any(step.padding)
    return "pointwise" if pointwise else "conv"
