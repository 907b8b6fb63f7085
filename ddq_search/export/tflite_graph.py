"""Tensors and operators of a TFLite model by the names of an integer program: the pieces that every step is made of.

A tensor of the program is an int8 tensor of the same name, its codes minus 128. Legend: ``name`` a step of the program,
``label`` a tensor of the file, integers are indices of tensors of the file; its shapes begin with the batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tflite as schema

from ddq_search.export.tflite_flatbuffer import FlatModel, FlatOperator, FlatTensor, Quantization
from ddq_search.export.tflite_geometry import Padding
from ddq_search.integer.program import IntegerProgram
from ddq_search.precision import ActivationGrid

SIGN_OFFSET = 128
"""What an int8 container subtracts from a code."""
INT8, INT32 = schema.TensorType.INT8, schema.TensorType.INT32
_AXIS_OF_DIM = (3, 1, 2)
"""Channel, height, width of an image in a file."""


class ProgramGraph:
    """A model in the making.

    Attributes:
        program: what it is made from.
        model: its tensors and operators so far.
        index: step → tensor that holds the step's codes.
    """

    def __init__(self, program: IntegerProgram) -> None:
        self.program = program
        self.model = FlatModel()
        self.index: dict[str, int] = {}

    def grid(self, name: str) -> ActivationGrid:
        """The grid of a step's tensor."""
        return self.program.tensors[name].grid

    def codes(self, name: str, label: str, shape: tuple[int, ...]) -> int:
        """Adds an int8 tensor on the grid of a step; ``shape`` with the batch, as the file has it."""
        return self.model.add(FlatTensor(label, shape, INT8, int8_grid(self.grid(name))))

    def output(self, name: str) -> int:
        """Adds the tensor that holds a step's codes."""
        self.index[name] = self.codes(name, name, file_shape(self.program.tensors[name].shape))
        return self.index[name]

    def integers(self, name: str, values: Any) -> int:
        """Adds an int32 constant."""
        array = np.asarray(values, "<i4")
        return self.model.add(FlatTensor(name, array.shape, INT32, data=array.tobytes()))

    def operator(
        self, code: str, inputs: list[int], output: int, options_type: str = "", version: int = 1, **options: Any
    ) -> int:
        """Adds an operator and returns its output."""
        operator = FlatOperator(code, version, tuple(inputs), (output,), options_type, options)
        self.model.operators.append(operator)
        return output

    def shape(self, tensor: int) -> tuple[int, ...]:
        """The shape of a tensor of the file, batch included."""
        return self.model.tensors[tensor].shape

    def axis(self, source: str, dim: int) -> int:
        """Where a dimension of a step's tensor lies in the file."""
        return _AXIS_OF_DIM[dim] if len(self.program.tensors[source].shape) == 3 else dim + 1

    def int8_constant(self, name: str, label: str, code: int) -> int:
        """Adds one code on a step's grid."""
        data = np.int8(code - SIGN_OFFSET).tobytes()
        return self.model.add(FlatTensor(label, (1,), INT8, int8_grid(self.grid(name)), data))

    def clamped(
        self, name: str, low: int, high: int, code: str, inputs: list[int], options_type: str, *, version: int,
        fused: bool = True, **options: Any,
    ) -> None:  # fmt: skip
        """Adds an operator whose codes end in ``low … high``, the clamps as explicit operators where not fused."""
        grid, shape = self.grid(name), file_shape(self.program.tensors[name].shape)
        activation, reached = _fused_clamp(grid, low, high) if fused else ("NONE", (0, 255))
        bounds = [(c, b) for c, b, r in zip(("MAXIMUM", "MINIMUM"), (low, high), reached, strict=True) if b != r]
        if fused:
            options["FusedActivationFunction"] = getattr(schema.ActivationFunctionType, activation)
        x = self.codes(name, f"{name}/unclamped", shape) if bounds else self.output(name)
        self.operator(code, inputs, x, options_type, version, **options)
        for left, (clamp, bound) in zip(range(len(bounds) - 1, -1, -1), bounds, strict=True):
            limit = self.int8_constant(name, f"{name}/{clamp.lower()}", bound)
            y = self.codes(name, f"{name}/{clamp.lower()}ed", shape) if left else self.output(name)
            x = self.operator(clamp, [x, limit], y, "MaximumMinimumOptions", 2)

    def padded(self, x: int, source: str, name: str, padding: Padding, *, lowest: bool = False) -> int:
        """Surrounds images with the zero point, or with the lowest code."""
        top, bottom, left, right = padding
        if not any(padding):
            return x
        batch, height, width, channels = self.shape(x)
        y = self.codes(source, f"{name}/padded", (batch, height + top + bottom, width + left + right, channels))
        pads = self.integers(f"{name}/pads", [[0, 0], [top, bottom], [left, right], [0, 0]])
        if lowest:
            value = self.int8_constant(source, f"{name}/pad_value", 0)
            return self.operator("PADV2", [x, pads, value], y, "PadV2Options", 2)
        return self.operator("PAD", [x, pads], y, "PadOptions", 2)

    def transposed(self, x: int, name: str, label: str, order: tuple[int, ...], y: int | None = None) -> int:
        """Adds a transposition of file axes."""
        shape = self.shape(x)
        if y is None:
            y = self.codes(name, label, tuple(shape[i] for i in order))
        return self.operator("TRANSPOSE", [x, self.integers(f"{label}/order", order)], y, "TransposeOptions", 2)

    def reshaped(self, x: int, name: str, label: str, shape: tuple[int, ...]) -> int:
        """Adds a reshape to ``shape`` (batch left out), into a tensor called ``label`` or the step's own."""
        y = self.codes(name, label, (1, *shape)) if label else self.output(name)
        size = self.integers(f"{label or name}/shape", [-1, *shape])
        return self.operator("RESHAPE", [x, size], y, "ReshapeOptions")

    def joined(self, parts: list[int], axis: int, y: int) -> int:
        """Adds a concatenation."""
        return self.operator("CONCATENATION", parts, y, "ConcatenationOptions", 2, Axis=axis)

    def cut(self, x: int, y: int, label: str, ranges: list[tuple[int, int, int]]) -> None:
        """Takes ``start … stop`` of some axes, everything of the others."""
        rank = len(self.shape(x))
        begin, end, mask = [0] * rank, [0] * rank, (1 << rank) - 1
        for axis, start, stop in ranges:
            begin[axis], end[axis], mask = start, stop, mask & ~(1 << axis)
        bounds = [self.integers(f"{label}/{word}", v) for word, v in (("begin", begin), ("end", end))]
        steps = self.integers(f"{label}/steps", [1] * rank)
        self.operator("STRIDED_SLICE", [x, *bounds, steps], y, "StridedSliceOptions", 2, BeginMask=mask, EndMask=mask)

    def pool(self, code: str, x: int, y: int, kernel: tuple[int, int], stride: tuple[int, int], scheme: str) -> None:
        """Adds a pool, ``scheme`` SAME or VALID."""
        self.operator(
            code, [x], y, "Pool2DOptions", 2, Padding=getattr(schema.Padding, scheme), StrideH=stride[0],
            StrideW=stride[1], FilterHeight=kernel[0], FilterWidth=kernel[1],
        )  # fmt: skip


def file_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Batch first, images with channels last."""
    return (1, shape[1], shape[2], shape[0]) if len(shape) == 3 else (1, *shape)


def same_order(shape: tuple[int, ...]) -> bool:
    """Whether an image has the same codes in the same order in both layouts."""
    return shape[0] == 1 or math.prod(shape[1:]) == 1


def int8_grid(grid: ActivationGrid) -> Quantization:
    """The grid of the int8 container."""
    return Quantization((grid.scale,), (grid.zero_point - SIGN_OFFSET,))


def _fused_clamp(grid: ActivationGrid, low: int, high: int) -> tuple[str, tuple[int, int]]:
    """The fused activation that does most of a clamp without exceeding it, and the codes that it leaves."""
    six = grid.zero_point + math.floor(float(np.float32(6) / np.float32(grid.scale)) + 0.5)
    ranges = {"NONE": (0, 255), "RELU": (grid.zero_point, 255), "RELU6": (grid.zero_point, min(six, 255))}
    inside = {name: r for name, r in ranges.items() if r[0] <= low and high <= r[1]}
    return min(inside.items(), key=lambda item: (item[1][0] != low) + (item[1][1] != high))
