"""Weights in the types that TFLite's kernels execute.

Containers (LiteRT 2.3, reference kernels): int4 in CONV_2D and FULLY_CONNECTED, int2 in FULLY_CONNECTED, int8
everywhere. DEPTHWISE_CONV_2D reads int4 in the optimised kernels only, so it is carried as int8. The levels of a
codebook and the sums of multipoint weights are written out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tflite as schema
from numpy.typing import NDArray

from ddq_search.errors import ExportError
from ddq_search.export.tflite_flatbuffer import INT2
from ddq_search.integer.program import IntegerProgram, Weighted
from ddq_search.packing import pack_rows
from ddq_search.precision import WIDE_BITS

_TYPES = {2: INT2, 4: schema.TensorType.INT4, 8: schema.TensorType.INT8}
_EXECUTED = {"CONV_2D": (4, 8), "DEPTHWISE_CONV_2D": (8,), "FULLY_CONNECTED": (2, 4, 8)}
"""Operator → widths of weights that the reference kernels execute."""
_VERSIONS = {
    ("CONV_2D", 8): 3, ("CONV_2D", 4): 7, ("DEPTHWISE_CONV_2D", 8): 3, ("FULLY_CONNECTED", 8): 4,
    ("FULLY_CONNECTED", 4): 10, ("FULLY_CONNECTED", 2): 14,
}  # fmt: skip
"""Operator and width → version of the operator. Source: op_version.cc of LiteRT."""
_GROUPED_VERSION = 6


@dataclass(frozen=True)
class Container:
    """How a layer's weights are carried.

    Attributes:
        operator: BuiltinOperator.
        bits: width of the container.
        reason: why it is wider than the layer's precision; empty where it is not.
    """

    operator: str
    bits: int
    reason: str


@dataclass(frozen=True)
class StoredWeights:
    """The weights tensor of a file and what the operator that reads it is called."""

    code: str
    options_type: str
    version: int
    type: int
    shape: tuple[int, ...]
    axis: int
    data: bytes


def weight_container(step: Weighted, act_bits: int = 8) -> Container:
    """Returns the narrowest container of a layer's weights that the runtime executes with such an input.

    Raises:
        ExportError: none holds them.
    """
    operator = _operator(step)
    largest = int(np.abs(step.weights).max())
    written_out = step.codebook is not None or bool(step.points)
    needed = largest.bit_length() + 1 if written_out else step.bits
    executed = (8,) if act_bits == WIDE_BITS else _EXECUTED[operator]
    fitting = [bits for bits in executed if bits >= needed]
    if not fitting:
        raise ExportError(
            f"layer {step.name!r}: its multipoint weights reach ±{largest}, TFLite's kernels read int8; "
            "use finer points"
        )
    if fitting[0] == step.bits:
        return Container(operator, fitting[0], "")
    if written_out:
        return Container(operator, fitting[0], f"its integer weights are written out and reach ±{largest}")
    beside = " beside int16" if act_bits == WIDE_BITS else ""
    return Container(operator, fitting[0], f"the runtime's {operator} has no int{step.bits} weights{beside}")


def weight_containers(program: IntegerProgram) -> dict[str, Container]:
    """Returns layer → container, in execution order."""
    return {
        step.name: weight_container(step, program.tensors[step.inputs[0]].grid.bits)
        for step in program.steps
        if isinstance(step, Weighted)
    }


def stored_weights(step: Weighted, act_bits: int) -> StoredWeights:
    """Returns the weights in the kernel's order: ``[rows, kh, kw, depth]``, ``[1, kh, kw, rows]`` or ``[rows, K]``."""
    container = weight_container(step, act_bits)
    code, axis, options = container.operator, 0, "FullyConnectedOptions"
    integers: NDArray[np.int32] = step.weights
    if code == "CONV_2D":
        integers, options = integers.transpose(0, 2, 3, 1), "Conv2DOptions"
    elif code == "DEPTHWISE_CONV_2D":
        integers, axis, options = integers.transpose(1, 2, 3, 0), 3, "DepthwiseConv2DOptions"
    version = _VERSIONS[code, container.bits]
    if code == "CONV_2D" and step.groups > 1:
        version = max(version, _GROUPED_VERSION)
    data = pack_rows(integers.reshape(1, -1), container.bits)
    return StoredWeights(code, options, version, _TYPES[container.bits], integers.shape, axis, data)


def _operator(step: Weighted) -> str:
    if step.kind == "linear":
        return "FULLY_CONNECTED"
    return "DEPTHWISE_CONV_2D" if step.groups > 1 and step.weights.shape[1] == 1 else "CONV_2D"
