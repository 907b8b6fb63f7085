"""A TFLite model as plain records, and their serialisation through the published schema.

The records say what a file holds (tensors, operators, constant bytes); `serialize` writes them with the schema's own
builder functions. Equal vectors and equal constants are stored once, and constants are 16-byte aligned, as the schema
asks, so that a kernel may read them where they lie.

Source: schema.fbs of TensorFlow Lite (package ``tflite``, version 3 of the format).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
import tflite as schema
from numpy.typing import NDArray

FILE_IDENTIFIER = b"TFL3"
FORMAT_VERSION = 3
CONSTANT_ALIGNMENT = 16
"""Bytes; ``force_align`` of a buffer's data in the schema."""

INT2 = 19
"""TensorType of 2-bit integers: in the schema of LiteRT 2.3, not yet in the package's."""


@dataclass(frozen=True)
class Quantization:
    """``real = scale * (code - zero_point)``, one entry, or one per index of dimension ``axis``."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int = 0


@dataclass(frozen=True)
class FlatTensor:
    """One tensor of a file; ``shape`` with the batch; ``data`` the bytes of a constant."""

    name: str
    shape: tuple[int, ...]
    type: int
    quantization: Quantization | None = None
    data: bytes | None = None


@dataclass(frozen=True)
class FlatOperator:
    """One operator: ``code`` as BuiltinOperator spells it, ``options`` as the fields of the table ``options_type``."""

    code: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options_type: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class FlatModel:
    """A model of one subgraph; ``metadata`` maps names to bytes."""

    tensors: list[FlatTensor] = field(default_factory=list)
    operators: list[FlatOperator] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    metadata: dict[str, bytes] = field(default_factory=dict)

    def add(self, tensor: FlatTensor) -> int:
        """Adds a tensor; an equal constant that is there already serves again."""
        if tensor.data is not None and tensor in self.tensors:
            return self.tensors.index(tensor)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def constants(self) -> list[bytes]:
        """Returns the distinct constants in the order of the file's buffers, metadata last; buffer 0 is empty."""
        data = [tensor.data for tensor in self.tensors if tensor.data is not None]
        return list(dict.fromkeys([b"", *data, *self.metadata.values()]))

    def operator_codes(self) -> list[tuple[str, int]]:
        """Returns the distinct (code, version) pairs in order of first use."""
        return list(dict.fromkeys((operator.code, operator.version) for operator in self.operators))


def serialize(model: FlatModel) -> bytes:
    """Returns the bytes of the ``.tflite`` file; the same model gives the same bytes."""
    return _Serializer(model).file()


class _Serializer:
    """Writes tables bottom-up, as flatbuffers needs them."""

    def __init__(self, model: FlatModel) -> None:
        self.model = model
        self.builder = flatbuffers.Builder(1 << 16)
        self.vectors: dict[tuple[str, bytes], int] = {}
        self.constants = {data: index for index, data in enumerate(model.constants())}
        self.codes = {pair: index for index, pair in enumerate(model.operator_codes())}

    def file(self) -> bytes:
        model = self.model
        buffers = [self._buffer(data) for data in self.constants]
        tensors = [self._tensor(tensor) for tensor in model.tensors]
        operators = [self._operator(operator) for operator in model.operators]
        subgraph = self._table(
            "SubGraph", Tensors=self._tables(tensors), Inputs=self._vector(model.inputs, "<i4"),
            Outputs=self._vector(model.outputs, "<i4"), Operators=self._tables(operators), Name=self._string("main"),
        )  # fmt: skip
        metadata = [
            self._table("Metadata", Name=self._string(name), Buffer=self.constants[data])
            for name, data in model.metadata.items()
        ]
        root = self._table(
            "Model", Version=FORMAT_VERSION,
            OperatorCodes=self._tables([self._code(*pair) for pair in self.codes]),
            Subgraphs=self._tables([subgraph]), Description=self._string("ddq-search"),
            Buffers=self._tables(buffers), Metadata=self._tables(metadata),
        )  # fmt: skip
        self.builder.Finish(root, FILE_IDENTIFIER)
        return bytes(self.builder.Output())

    def _code(self, code: str, version: int) -> int:
        number = getattr(schema.BuiltinOperator, code)
        short = min(number, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES)  # what old readers look at
        return self._table("OperatorCode", DeprecatedBuiltinCode=short, BuiltinCode=number, Version=version)

    def _buffer(self, data: bytes) -> int:
        if not data:
            return self._table("Buffer")
        self.builder.Prep(CONSTANT_ALIGNMENT, len(data))
        return self._table("Buffer", Data=self.builder.CreateByteVector(data))

    def _tensor(self, tensor: FlatTensor) -> int:
        fields = {
            "Shape": self._vector(tensor.shape, "<i4"),
            "Type": tensor.type,
            "Buffer": 0 if tensor.data is None else self.constants[tensor.data],
            "Name": self._string(tensor.name),
        }
        grid = tensor.quantization
        if grid is not None:
            fields["Quantization"] = self._table(
                "QuantizationParameters", Scale=self._vector(grid.scale, "<f4"),
                ZeroPoint=self._vector(grid.zero_point, "<i8"), QuantizedDimension=grid.axis,
            )  # fmt: skip
        return self._table("Tensor", **fields)

    def _operator(self, operator: FlatOperator) -> int:
        fields = {
            "OpcodeIndex": self.codes[operator.code, operator.version],
            "Inputs": self._vector(operator.inputs, "<i4"),
            "Outputs": self._vector(operator.outputs, "<i4"),
        }
        if operator.options_type:
            fields["BuiltinOptions"] = self._table(operator.options_type, **operator.options)
            fields["BuiltinOptionsType"] = getattr(schema.BuiltinOptions, operator.options_type)
        return self._table("Operator", **fields)

    # -- pieces -----------------------------------------------------------------------------------------------

    def _table(self, kind: str, **fields: Any) -> int:
        getattr(schema, f"{kind}Start")(self.builder)
        for name, value in fields.items():
            getattr(schema, f"{kind}Add{name}")(self.builder, value)
        offset: int = getattr(schema, f"{kind}End")(self.builder)
        return offset

    def _string(self, text: str) -> int:
        offset: int = self.builder.CreateSharedString(text)
        return offset

    def _vector(self, values: Sequence[float], kind: str) -> int:
        array: NDArray[Any] = np.asarray(values, kind)
        key = (kind, array.tobytes())
        if key not in self.vectors:
            self.vectors[key] = self.builder.CreateNumpyVector(array)
        return self.vectors[key]

    def _tables(self, offsets: Sequence[int]) -> int:
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        vector: int = self.builder.EndVector()
        return vector
