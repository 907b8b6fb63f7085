"""Tensors and operators of a TFLite model by the names of an integer program: the pieces that every step is made of.

A tensor of the program is an int8 tensor of the same name, its codes minus 128; one of 16 bits is an int16 tensor, its
codes minus 32768, so that zero is zero. Legend: ``name`` a step of the program,
``label`` a tensor of the file, integers are indices of tensors of the file; its shapes begin with the batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tflite as schema
from numpy.typing import NDArray

from ddq_search.export.tflite_flatbuffer import FlatModel, FlatOperator, FlatTensor, Quantization
from ddq_search.export.tflite_geometry import Padding
from ddq_search.integer.program import IntegerProgram
from ddq_search.precision import WIDE_BITS, ActivationGrid, activation_code_range

INT8, INT16, INT32 = schema.TensorType.INT8, schema.TensorType.INT16, schema.TensorType.INT32
_WIDE_VERSIONS = {
    "CONV_2D": 4, "DEPTHWISE_CONV_2D": 5, "FULLY_CONNECTED": 7, "ADD": 3, "MUL": 4, "MEAN": 3, "MAX_POOL_2D": 3,
    "AVERAGE_POOL_2D": 3, "CONCATENATION": 3, "TRANSPOSE": 5, "STRIDED_SLICE": 4, "PAD": 3, "PADV2": 3, "MAXIMUM": 3,
    "MINIMUM": 3,
}  # fmt: skip
"""Operator → its version for int16."""
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
        grid = self.grid(name)
        return self.model.add(FlatTensor(label, shape, container(grid), container_grid(grid)))

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
        """Adds an operator and returns its output; ``version`` is the one for int8."""
        if self.model.tensors[output].type == INT16:
            version = _WIDE_VERSIONS.get(code, version)
        operator = FlatOperator(code, version, tuple(inputs), (output,), options_type, options)
        self.model.operators.append(operator)
        return output

    def shape(self, tensor: int) -> tuple[int, ...]:
        """The shape of a tensor of the file, batch included."""
        return self.model.tensors[tensor].shape

    def axis(self, source: str, dim: int) -> int:
        """Where a dimension of a step's tensor lies in the file."""
        return _AXIS_OF_DIM[dim] if len(self.program.tensors[source].shape) == 3 else dim + 1

    def constant(self, name: str, label: str, code: int) -> int:
        """Adds one code on a step's grid."""
        grid = self.grid(name)
        data = signed_codes(np.array([code]), grid).tobytes()
        return self.model.add(FlatTensor(label, (1,), container(grid), container_grid(grid), data))

    def clamped(
        self, name: str, low: int, high: int, code: str, inputs: list[int], options_type: str, *, version: int,
        fused: bool = True, **options: Any,
    ) -> None:  # fmt: skip
        """Adds an operator whose codes end in ``low … high``, the clamps as explicit operators where not fused."""
        grid, shape = self.grid(name), file_shape(self.program.tensors[name].shape)
        activation, reached = _fused_clamp(grid, low, high) if fused else ("NONE", (0, _largest(grid)))
        bounds = [(c, b) for c, b, r in zip(("MAXIMUM", "MINIMUM"), (low, high), reached, strict=True) if b != r]
        if fused:
            options["FusedActivationFunction"] = getattr(schema.ActivationFunctionType, activation)
        x = self.codes(name, f"{name}/unclamped", shape) if bounds else self.output(name)
        self.operator(code, inputs, x, options_type, version, **options)
        for left, (clamp, bound) in zip(range(len(bounds) - 1, -1, -1), bounds, strict=True):
            limit = self.constant(name, f"{name}/{clamp.lower()}", bound)
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
            value = self.constant(source, f"{name}/pad_value", 0)
            return self.operator("PADV2", [x, pads, value], y, "PadV2Options", 2)
        return self.operator("PAD", [x, pads], y, "PadOptions", 2)

    def transposed(self, x: int, name: str, label: str, order: tuple[int, ...], y: int | None = None) -> int:
        """Adds a transposition of file axes."""
        shape = self.shape(x)
        if y is None:
            y = self.codes(name, label, tuple(shape[i] for i in order))
        axes = self.integers(f"{label}/order", order)
        return self.operator("TRANSPOSE", [x, axes], y, "TransposeOptions", {5: 4, 6: 6}.get(len(shape), 2))

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
        version = 2 if rank <= 4 else 4
        inputs = [x, *bounds, steps]
        self.operator("STRIDED_SLICE", inputs, y, "StridedSliceOptions", version, BeginMask=mask, EndMask=mask)

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


def container(grid: ActivationGrid) -> int:
    """The type of a tensor's container."""
    kind: int = INT16 if grid.bits == WIDE_BITS else INT8
    return kind


def sign_offset(grid: ActivationGrid) -> int:
    """What the container subtracts from a code.

    >>> sign_offset(ActivationGrid(0.1, 3, 4)), sign_offset(ActivationGrid(0.1, 32768, 16))
    (128, 32768)
    """
    return (_largest(grid) + 1) // 2


def signed_codes(codes: NDArray[np.integer], grid: ActivationGrid) -> NDArray[np.signedinteger]:
    """The codes as the container has them, little-endian."""
    return np.asarray(codes.astype(np.int32) - sign_offset(grid), "<i2" if grid.bits == WIDE_BITS else "<i1")


def container_grid(grid: ActivationGrid) -> Quantization:
    """The grid of the container."""
    return Quantization((grid.scale,), (grid.zero_point - sign_offset(grid),))


def _largest(grid: ActivationGrid) -> int:
    """The largest code that the container holds."""
    return max(activation_code_range(grid.bits)[1], 255)


def _fused_clamp(grid: ActivationGrid, low: int, high: int) -> tuple[str, tuple[int, int]]:
    """The fused activation that does most of a clamp without exceeding it, and the codes that it leaves."""
    six = grid.zero_point + math.floor(float(np.float32(6) / np.float32(grid.scale)) + 0.5)
    top = _largest(grid)
    ranges = {"NONE": (0, top), "RELU": (grid.zero_point, top), "RELU6": (grid.zero_point, min(six, top))}
    inside = {name: r for name, r in ranges.items() if r[0] <= low and high <= r[1]}
    return min(inside.items(), key=lambda item: (item[1][0] != low) + (item[1][1] != high))
