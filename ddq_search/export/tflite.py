"""TFLite export: the integer program as an int8 model for LiteRT, TensorFlow Lite and TensorFlow Lite Micro.

Every tensor of the program is an int8 tensor of its name, codes minus 128, images in ``[N, H, W, C]``; the file's
input and output are such tensors, no float and no QUANTIZE operator among them. Codes of 2 and 4 bits are carried in
int8 and held in their range by MINIMUM and MAXIMUM, or by a fused activation where that is exactly the clamp. Tensors
of 16 bits are int16, their layers' weights int8.

The runtime derives its multipliers from the scales in the file, in its own way, so only a program of the arithmetic
``tflite`` can be written, and every multiplier of it is held against what the runtime will derive.

Shapes: input ``[1, H, W, C]`` or ``[1, F]``; the batch can be resized.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tflite as schema

from ddq_search.arithmetic import Arithmetic
from ddq_search.errors import ExportError
from ddq_search.export.tflite_flatbuffer import FlatModel, FlatTensor, Quantization, serialize
from ddq_search.export.tflite_functions import builtin_function
from ddq_search.export.tflite_geometry import image_padding, pool_tiles, same_or_valid
from ddq_search.export.tflite_graph import (
    INT8,
    INT32,
    ProgramGraph,
    container_grid,
    file_shape,
    same_order,
    sign_offset,
    signed_codes,
)  # fmt: skip
from ddq_search.export.tflite_multipliers import check_multipliers
from ddq_search.export.tflite_weights import stored_weights
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
from ddq_search.precision import WIDE_BITS, activation_code_range
from ddq_search.whole_files import write_whole

ARITHMETIC: Arithmetic = "tflite"
"""The arithmetic that a TFLite file stands for."""
METADATA = "ddq-search"

_CHANNELS_LAST = (0, 2, 3, 1)
_CHANNELS_FIRST = (0, 3, 1, 2)
_FUNCTION_OPERATORS = {
    "HARD_SWISH": ("HardSwishOptions", 1), "GELU": ("GeluOptions", 2), "LOGISTIC": ("", 2), "TANH": ("", 2),
    "RELU": ("", 2), "RELU6": ("", 2),
}  # fmt: skip
"""Operator → its options table and its version for int8."""


def export_tflite(program: IntegerProgram, path: Path) -> None:
    """Writes the program as a TFLite model.

    Raises:
        ExportError: the program is of another arithmetic, the runtime would derive other multipliers, a layer has
            weights that no type of the runtime holds, or the file cannot be written.
    """
    data = tflite_bytes(program)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}") from error


def tflite_bytes(program: IntegerProgram) -> bytes:
    """Returns the bytes of the program's TFLite file; the same program gives the same bytes."""
    return serialize(flat_model(program)[0])


def flat_model(program: IntegerProgram) -> tuple[FlatModel, dict[str, int]]:
    """Returns the model, and step name → index of the tensor that holds the step's codes.

    Raises:
        ExportError: as `export_tflite`.
    """
    check(program)
    if program.arithmetic != ARITHMETIC:
        raise ExportError(
            f"TFLite executes the arithmetic {ARITHMETIC!r}, this program is lowered for {program.arithmetic!r}; "
            f"lower the network for {ARITHMETIC!r} and export that"
        )
    check_multipliers(program)
    writer = _Writer(program)
    for step in program.steps:
        writer.step(step)
    facts = {
        "tool": "ddq-search",
        "arithmetic": ARITHMETIC,
        "policy_sha256": program.policy_sha256,
    }
    writer.model.metadata[METADATA] = json.dumps(facts).encode()
    return writer.model, writer.index


class _Writer(ProgramGraph):
    """Adds the operators of one step after another."""

    def step(self, step: Step) -> None:
        """Adds the operators of one step."""
        if isinstance(step, Input):
            self.model.inputs.append(self.output(step.name))
        elif isinstance(step, Move) and step.kind == "output":
            self.index[step.name] = self.index[step.inputs[0]]
            self.model.outputs.append(self.index[step.name])
        else:
            x = [self.index[source] for source in step.inputs]
            writers: dict[type[Step], Callable[[Any, list[int]], None]] = {
                Weighted: self._weighted, Add: self._elementwise, Multiply: self._elementwise, Mean: self._mean,
                MaxPool: self._max_pool, AveragePool: self._average_pool, Lookup: self._lookup, Move: self._move,
            }  # fmt: skip
            writers[type(step)](step, x)

    def _weighted(self, step: Weighted, x: list[int]) -> None:
        name, source = step.name, step.inputs[0]
        wide = self.grid(source).bits == WIDE_BITS
        stored = stored_weights(step, self.grid(source).bits)
        scale = tuple(float(value) for value in step.scale)
        zeros = (0,) * step.rows
        weights = FlatTensor(
            f"{name}/weights", stored.shape, stored.type, Quantization(scale, zeros, stored.axis), stored.data
        )
        bias_scale = tuple(float(value) for value in step.scale * np.float64(self.grid(source).scale))
        kind, word = (schema.TensorType.INT64, "<i8") if wide else (INT32, "<i4")
        bias = FlatTensor(
            f"{name}/bias", (step.rows,), kind, Quantization(bias_scale, zeros), step.bias.astype(word).tobytes()
        )
        constants = [self.model.add(weights), self.model.add(bias)]
        if step.kind == "linear":
            self.clamped(
                name, step.low, step.high, "FULLY_CONNECTED", [x[0], *constants], "FullyConnectedOptions",
                version=stored.version,
            )  # fmt: skip
            return
        extent = tuple((k - 1) * d + 1 for k, d in zip(step.codes.shape[2:], step.dilation, strict=True))
        sizes = self.program.tensors[source].shape[1:], self.program.tensors[name].shape[1:]
        scheme = same_or_valid(*sizes, extent, step.stride, step.padding)
        image = x[0] if scheme else self.padded(x[0], source, name, step.padding)
        multiplier: dict[str, Any] = (
            {"DepthMultiplier": step.rows // step.groups} if stored.code == "DEPTHWISE_CONV_2D" else {}
        )
        self.clamped(
            name, step.low, step.high, stored.code, [image, *constants], stored.options_type, version=stored.version,
            Padding=getattr(schema.Padding, scheme or "VALID"), StrideH=step.stride[0], StrideW=step.stride[1],
            DilationHFactor=step.dilation[0], DilationWFactor=step.dilation[1], **multiplier,
        )  # fmt: skip

    def _elementwise(self, step: Add | Multiply, x: list[int]) -> None:
        code, options_type = ("ADD", "AddOptions") if isinstance(step, Add) else ("MUL", "MulOptions")
        wide = isinstance(step, Add) and self.grid(step.name).bits == WIDE_BITS
        options: dict[str, Any] = {"PotScaleInt16": False} if wide else {}  # scales need not be powers of two
        self.clamped(step.name, step.low, step.high, code, x, options_type, version=2, **options)

    def _mean(self, step: Mean, x: list[int]) -> None:
        output = self.program.tensors[step.name]
        axes = self.integers("spatial_axes", [1, 2])
        low, high = activation_code_range(output.grid.bits)
        self.clamped(
            step.name, low, high, "MEAN", [x[0], axes], "ReducerOptions", version=2, fused=False,
            KeepDims=len(output.shape) == 3,
        )  # fmt: skip

    def _max_pool(self, step: MaxPool, x: list[int]) -> None:
        sizes = self.program.tensors[step.inputs[0]].shape[1:], self.program.tensors[step.name].shape[1:]
        scheme = same_or_valid(*sizes, step.kernel_size, step.stride, step.padding)
        if scheme is None:
            padding = image_padding(*sizes, step.kernel_size, step.stride, step.padding)
            x = [self.padded(x[0], step.inputs[0], step.name, padding, lowest=True)]
        self.pool("MAX_POOL_2D", x[0], self.output(step.name), step.kernel_size, step.stride, scheme or "VALID")

    def _average_pool(self, step: AveragePool, x: list[int]) -> None:
        """One operator where the runtime's padding is the layer's, else one per set of equally clipped windows."""
        name, padding, image = step.name, step.padding, x[0]
        if step.count_include_pad and any(padding):
            image, padding = self.padded(image, step.inputs[0], name, padding), (0, 0, 0, 0)
        size, out = self.shape(image)[1:3], self.program.tensors[name].shape[1:]
        scheme = same_or_valid(size, out, step.kernel_size, step.stride, padding)
        if scheme:
            self.pool("AVERAGE_POOL_2D", image, self.output(name), step.kernel_size, step.stride, scheme)
            return
        channels = self.shape(image)[3]
        rows, columns = (
            pool_tiles(size[i], out[i], step.kernel_size[i], step.stride[i], padding[2 * i]) for i in (0, 1)
        )
        strips = []
        for r, row in enumerate(rows):
            tiles = []
            for c, column in enumerate(columns):
                label = f"{name}/tile_{r}_{c}"
                cut = self.codes(name, f"{label}/input", (1, row.input_length, column.input_length, channels))
                self.cut(image, cut, label, [(1, row.start, row.stop), (2, column.start, column.stop)])
                tile = self.codes(name, label, (1, row.count, column.count, channels))
                self.pool("AVERAGE_POOL_2D", cut, tile, (row.kernel, column.kernel), step.stride, "VALID")
                tiles.append(tile)
            strip = self.codes(name, f"{name}/strip_{r}", (1, row.count, out[1], channels)) if len(rows) > 1 else -1
            strips.append(self.joined(tiles, 2, strip if len(rows) > 1 else self.output(name)))
        if len(rows) > 1:
            self.joined(strips, 1, self.output(name))

    def _lookup(self, step: Lookup, x: list[int]) -> None:
        """The runtime's own operator where it computes the table, else the table itself behind int32 indices."""
        name, shape = step.name, self.shape(x[0])
        source, output = self.grid(step.inputs[0]), self.grid(name)
        builtin = builtin_function(step, source, output)
        if builtin is not None:
            options, version = _FUNCTION_OPERATORS[builtin]
            high = activation_code_range(output.bits)[1]
            self.clamped(name, 0, high, builtin, x, options, version=version, fused=False)
            return
        signed = self.model.add(FlatTensor(f"{name}/signed", shape, INT32))
        self.operator("CAST", x, signed, "CastOptions", InDataType=INT8, OutDataType=INT32)
        index = self.model.add(FlatTensor(f"{name}/index", shape, INT32))
        offset = self.integers("sign_offset", [sign_offset(source)])
        self.operator("ADD", [signed, offset], index, "AddOptions")
        data = signed_codes(step.table, output).tobytes()
        table = self.model.add(FlatTensor(f"{name}/table", (len(data),), INT8, container_grid(output), data))
        self.operator("GATHER", [table, index], self.output(name), "GatherOptions", 2, Axis=0)

    def _move(self, step: Move, x: list[int]) -> None:
        name = step.name
        if step.kind == "concat":
            self.joined(x, self.axis(step.inputs[0], step.dim), self.output(name))
        elif step.kind == "slice":
            self.cut(x[0], self.output(name), name, [(self.axis(step.inputs[0], step.dim), step.start, step.stop)])
        elif step.kind == "transpose":
            axes = [self.axis(step.inputs[0], dim) for dim in step.dims]
            order = (axes[1], axes[2], axes[0]) if len(axes) == 3 else tuple(axes)
            self.transposed(x[0], name, name, (0, *order), self.output(name))
        elif step.kind == "pixel_shuffle":
            self._pixel_shuffle(step, x[0])
        else:
            self._reshape(step, x[0])

    def _pixel_shuffle(self, step: Move, x: int) -> None:
        """DEPTH_TO_SPACE counts its block before the channels, the program after them; it has no int16."""
        name = step.name
        source, (channels, *size) = self.program.tensors[step.inputs[0]].shape, self.program.tensors[name].shape
        factor = shuffle_factor(source, self.program.tensors[name].shape)
        if (channels == 1 or factor == 1) and self.grid(name).bits != WIDE_BITS:
            self.operator("DEPTH_TO_SPACE", [x], self.output(name), "DepthToSpaceOptions", BlockSize=factor)
            return
        blocks = (source[2], channels, factor, factor)  # of all rows of the batch
        y = self.codes(name, f"{name}/blocks", (source[1], *blocks))
        self.operator("RESHAPE", [x, self.integers(f"{name}/blocks/shape", [-1, *blocks])], y, "ReshapeOptions")
        y = self.transposed(y, name, f"{name}/shuffled", (0, 3, 1, 4, 2))
        self.reshaped(y, name, "", (*size, channels))

    def _reshape(self, step: Move, x: int) -> None:
        """Speaks of the program's order: images are brought into it, and back."""
        name = step.name
        before, after = self.program.tensors[step.inputs[0]].shape, self.program.tensors[name].shape
        if len(before) == 3 and not same_order(before):
            x = self.transposed(x, name, f"{name}/channels_first", _CHANNELS_FIRST)
        if len(after) == 3 and not same_order(after):
            x = self.reshaped(x, name, f"{name}/reshaped", after)
            self.transposed(x, name, name, _CHANNELS_LAST, self.output(name))
        else:
            self.reshaped(x, name, "", file_shape(after)[1:])
