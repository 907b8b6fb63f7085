"""ONNX export: the integer program as a QDQ graph (quantize, dequantize around float operators).

Every tensor of the program is a uint8 tensor ``<name>/codes``; the float operator between keeps the layer's name.
Weights of 2 to 4 bits are carried as int4, wider ones as int8 (int2 exists from opset 25 on, but onnxruntime refuses it
in convolutions). Levels of a codebook are written out as int8, the sum of multipoint weights as int8 or int16. The
metadata entry ``weight_containers`` tells the type of every layer. Narrower activations and fused clamps become an
explicit Clip before the quantization.

ONNX rounds once, so the file stands for the network in the arithmetic ``single`` whatever the program's own: a program
of double rounding differs from it in up to a few codes of a hundred, and `ddq_search.verify` reports both. Ties go to
even in ONNX and up in ``single``: averages of codes, which tie often, are lifted off the tie, and a table with an entry
next to a tie is written as the table.

Shapes: ``input`` float32 ``[N, ...]``, ``output`` float32 ``[N, ...]``, N dynamic.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddq_search.arithmetic import Arithmetic
from ddq_search.errors import ExportError
from ddq_search.integer.program import (
    Add,
    AveragePool,
    Input,
    IntegerProgram,
    Lookup,
    MaxPool,
    Mean,
    Move,
    Multiply,
    Step,
    Weighted,
    check,
    shuffle_factor,
)  # fmt: skip
from ddq_search.integer.tables import FUNCTIONS
from ddq_search.precision import ActivationGrid, activation_code_range
from ddq_search.whole_files import write_whole

ARITHMETIC: Arithmetic = "single"
"""The arithmetic that an ONNX file stands for."""
OPSET, IR_VERSION = 21, 10
CODES = "/codes"
"""Suffix of the uint8 tensor of a step."""
TIE_MARGIN = 3e-4
"""Distance from a tie, in codes, below which a float32 operator may round differently from the table."""

_FUNCTION_NODES: dict[str, tuple[str, dict[str, float]]] = {
    "relu": ("Relu", {}),
    "hardswish": ("HardSwish", {}),
    "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "sigmoid": ("Sigmoid", {}),
    "gelu": ("Gelu", {}),
    "tanh": ("Tanh", {}),
}


def export_onnx(program: IntegerProgram, path: Path) -> None:
    """Writes the program as an ONNX model that passes the ONNX checker.

    Raises:
        ExportError: a tensor has 16 bits, the onnx package is missing, the model does not pass its checker, or the file
            cannot be written.
    """
    onnx = load_onnx("onnx")
    check(program)
    for name, tensor in program.tensors.items():
        if tensor.grid.bits > 8:
            raise ExportError(f"tensor {name!r} has {tensor.grid.bits} bits; the ONNX export writes up to 8")
    model = _Writer(program, onnx).model()
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker raises its own and protobuf's errors
        raise ExportError(f"the ONNX model of {path.name} is not valid: {error}") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, model.SerializeToString())
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}") from error


def load_onnx(package: str) -> Any:
    """Returns the imported package; raises `ExportError` with the remedy where it is missing."""
    try:
        if package == "onnx":
            importlib.import_module("onnx.checker")
        return importlib.import_module(package)
    except ImportError as error:
        raise ExportError(f"ONNX needs the package {package!r}: pip install {package}") from error


def weight_container(step: Weighted) -> str:
    """Returns the integer type that carries a layer's weights in the file.

    Raises:
        ExportError: no type of ONNX holds them.
    """
    if step.codebook is None and not step.points:
        return "int4" if step.bits <= 4 else "int8"
    largest = int(np.abs(step.weights).max())
    for bits in (8, 16):
        if largest < 2 ** (bits - 1):
            return f"int{bits}"
    raise ExportError(
        f"layer {step.name!r}: its multipoint weights reach ±{largest}, more than int16; use finer points"
    )


class _Writer:
    """Collects the nodes and constants of one model."""

    def __init__(self, program: IntegerProgram, onnx: Any) -> None:
        self.program = program
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def model(self) -> Any:
        helper, types = self.onnx.helper, self.onnx.TensorProto
        for step in self.program.steps:
            self._step(step)
        last = self.program.output
        self._node("DequantizeLinear", [last.name + CODES, *self._grid(last.name)], "output", f"{last.name}/dequantize")
        graph = helper.make_graph(
            self.nodes,
            "ddq-search",
            [helper.make_tensor_value_info("input", types.FLOAT, ["N", *self.program.input.shape])],
            [helper.make_tensor_value_info("output", types.FLOAT, ["N", *last.shape])],
            list(self.constants.values()),
        )
        model = helper.make_model(
            graph, producer_name="ddq-search", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        facts = {
            "tool": "ddq-search",
            "arithmetic": ARITHMETIC,
            "program_arithmetic": self.program.arithmetic,
            "policy_sha256": self.program.policy_sha256,
            "weight_containers": json.dumps(
                {step.name: weight_container(step) for step in self.program.steps if isinstance(step, Weighted)}
            ),
        }
        helper.set_model_props(model, facts)
        return model

    # -- pieces -----------------------------------------------------------------------------------------------

    def _node(self, kind: str, inputs: Sequence[str], output: str, name: str = "", **attributes: Any) -> str:
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [output], name=name or output, **attributes))
        return output

    def _constant(self, name: str, values: Any, dtype: Any) -> str:
        self.constants[name] = self.onnx.numpy_helper.from_array(np.asarray(values, dtype), name)
        return name

    def _grid(self, name: str) -> list[str]:
        grid = self.program.tensors[name].grid
        scale = self._constant(f"{name}/scale", grid.scale, np.float32)
        return [scale, self._constant(f"{name}/zero_point", grid.zero_point, np.uint8)]

    def _dequantize(self, name: str, output: str) -> str:
        return self._node("DequantizeLinear", [name + CODES, *self._grid(name)], output)

    def _real(self, name: str) -> str:
        """The dequantized tensor, one node however many readers."""
        real = f"{name}/real"
        if all(node.output[0] != real for node in self.nodes):
            self._dequantize(name, real)
        return real

    def _quantize(self, name: str, real: str, low: int = 0, high: int = 255) -> None:
        grid = self.program.tensors[name].grid
        if low > 0 or high < 255:
            bounds = [
                self._constant(f"{name}/{word}", (code - grid.zero_point) * grid.scale, np.float32) if needed else ""
                for word, code, needed in (("low", low, low > 0), ("high", high, high < 255))
            ]
            real = self._node("Clip", [real, *bounds], f"{name}/clipped")
        self._node("QuantizeLinear", [real, *self._grid(name)], name + CODES)

    # -- steps ------------------------------------------------------------------------------------------------

    def _step(self, step: Step) -> None:
        name, output = step.name, self.program.tensors[step.name]
        low, high = activation_code_range(output.grid.bits)
        if isinstance(step, Input):
            self._quantize(name, "input", low, high)
        elif isinstance(step, Lookup) and self._near_a_tie(step):
            table = self._constant(f"{name}/table", step.table, np.uint8)
            index = self._node("Cast", [step.inputs[0] + CODES], f"{name}/index", to=int(self.onnx.TensorProto.INT32))
            self._node("Gather", [table, index], name + CODES, name, axis=0)
        elif isinstance(step, Move) and step.kind == "output":
            self._node("Identity", [step.inputs[0] + CODES], name + CODES, name)
        else:
            real = self._operator(step, [self._real(source) for source in step.inputs])
            if isinstance(step, Weighted | Add | Multiply):
                low, high = step.low, step.high
            elif isinstance(step, Move | MaxPool):
                low, high = 0, 255  # moved codes are in range already
            self._quantize(name, real, low, high)

    def _operator(self, step: Step, x: list[str]) -> str:
        name, output = step.name, self.program.tensors[step.name]
        result = f"{name}/result"
        if isinstance(step, Weighted):
            return self._weighted(step, x[0], result)
        if isinstance(step, Add | Multiply):
            return self._node("Add" if isinstance(step, Add) else "Mul", x, result, name)
        if isinstance(step, Mean):
            axes = self._constant(f"{name}/axes", [2, 3], np.int64)
            return self._node("ReduceMean", [x[0], axes], result, name, keepdims=int(len(output.shape) == 3))
        if isinstance(step, MaxPool):
            return self._node("MaxPool", x, result, name, **self._window(step))
        if isinstance(step, AveragePool):
            return self._average(step, x[0], result)
        if isinstance(step, Lookup):
            return self._function(step, x[0], result)
        assert isinstance(step, Move)
        if step.kind == "concat":
            return self._node("Concat", x, result, name, axis=step.dim + 1)
        if step.kind == "transpose":
            return self._node("Transpose", x, result, name, perm=[0, *(dim + 1 for dim in step.dims)])
        if step.kind == "pixel_shuffle":
            factor = shuffle_factor(self.program.tensors[step.inputs[0]].shape, output.shape)
            return self._node("DepthToSpace", x, result, name, blocksize=factor, mode="CRD")
        if step.kind == "slice":
            cut = {"start": step.start, "stop": step.stop, "dim": step.dim + 1}
            bounds = [self._constant(f"{name}/{key}", [value], np.int64) for key, value in cut.items()]
            return self._node("Slice", [x[0], *bounds], result, name)
        shape = self._constant(f"{name}/shape", [-1, *output.shape], np.int64)
        return self._node("Reshape", [x[0], shape], result, name)

    def _weighted(self, step: Weighted, x: str, result: str) -> str:
        name, helper, types = step.name, self.onnx.helper, self.onnx.TensorProto
        container, integers = weight_container(step), step.weights
        if container == "int4":
            stored = helper.make_tensor(f"{name}/weights", types.INT4, integers.shape, integers.ravel().tolist())
            self.constants[stored.name] = stored
        else:
            self._constant(f"{name}/weights", integers, np.dtype(container))
        source = self.program.tensors[step.inputs[0]].grid
        scale = self._constant(f"{name}/weight_scale", step.scale, np.float32)
        bias_scale = self._constant(f"{name}/bias_scale", step.scale * np.float64(source.scale), np.float32)
        self._constant(f"{name}/bias", step.bias, np.int32)
        weights = self._node("DequantizeLinear", [f"{name}/weights", scale], f"{name}/real_weights", axis=0)
        bias = self._node("DequantizeLinear", [f"{name}/bias", bias_scale], f"{name}/real_bias", axis=0)
        if step.kind == "linear":
            return self._node("Gemm", [x, weights, bias], result, name, transB=1)
        top, bottom, left, right = step.padding
        return self._node(
            "Conv", [x, weights, bias], result, name, kernel_shape=integers.shape[2:], strides=step.stride,
            pads=[top, left, bottom, right], dilations=step.dilation, group=step.groups,
        )  # fmt: skip

    def _window(self, step: MaxPool | AveragePool, *, padded: bool = False) -> dict[str, Any]:
        """Window attributes whose padding gives the program's output shape (ceil mode has several readings)."""
        top, bottom, left, right = (0, 0, 0, 0) if padded else step.padding
        sizes = self.program.tensors[step.inputs[0]].shape[1:]
        more = [
            max((n - 1) * s + k - size, 0)
            for n, s, k, size in zip(
                self.program.tensors[step.name].shape[1:], step.stride, step.kernel_size,
                (sizes[0] + sum(step.padding[:2]), sizes[1] + sum(step.padding[2:])), strict=True,
            )
        ]  # fmt: skip
        pads = [top, left, bottom + more[0], right + more[1]]
        return {"kernel_shape": step.kernel_size, "strides": step.stride, "pads": pads}

    def _average(self, step: AveragePool, x: str, result: str) -> str:
        """Averages what counts, then lifts ties to the code above, as `ARITHMETIC` rounds them."""
        name, grid = step.name, self.program.tensors[step.name].grid
        padded = step.count_include_pad and any(step.padding)
        if padded:
            top, bottom, left, right = step.padding
            pads = self._constant(f"{name}/pads", [0, 0, top, left, 0, 0, bottom, right], np.int64)
            x = self._node("Pad", [x, pads], f"{name}/padded")
        window = self._window(step, padded=padded)
        mean = self._node("AveragePool", [x], f"{name}/mean", name, count_include_pad=0, **window)
        nudge = self._constant(f"{name}/nudge", grid.scale / (4 * math.prod(step.kernel_size)), np.float32)
        return self._node("Add", [mean, nudge], result)

    def _function(self, step: Lookup, x: str, result: str) -> str:
        name = step.name
        if step.function == "silu":
            return self._node("Mul", [x, self._node("Sigmoid", [x], f"{name}/sigmoid")], result, name)
        if step.function == "relu6":
            bounds = [self._constant(f"{name}/{v}", v, np.float32) for v in (0, 6)]
            return self._node("Clip", [x, *bounds], result, name)
        kind, attributes = _FUNCTION_NODES[step.function]
        return self._node(kind, [x], result, name, **attributes)

    def _near_a_tie(self, step: Lookup) -> bool:
        source, output = self.program.tensors[step.inputs[0]].grid, self.program.tensors[step.name].grid
        codes = real_codes(step.function, source, output)
        low, high = activation_code_range(output.bits)
        inside = codes[(codes > low - 1) & (codes < high + 1)]
        return bool((np.abs(inside - np.floor(inside) - 0.5) < TIE_MARGIN).any())


def real_codes(function: str, source: ActivationGrid, output: ActivationGrid) -> NDArray[np.float64]:
    """Returns ``[2^bits]`` the unrounded output code of a function for every input code."""
    codes = range(activation_code_range(source.bits)[1] + 1)
    real = [FUNCTIONS[function](source.scale * (code - source.zero_point)) for code in codes]
    return np.array(real) / output.scale + output.zero_point
