"""The price of a ``.tflite`` file: bytes by layout rules, without writing it.

A file holds constants (weights in their containers, biases, tables, shapes), per-channel scales and zero points for
every quantized tensor, and the structure around them: tables with shared vtables, vectors, names. Equal vectors,
names and constants count once, as `ddq_search.export.tflite_flatbuffer` stores them.

Not covered exactly: alignment gaps of 4 bytes before 8-byte vectors, and the order of vtables. `flat_bytes` is within
1 % of the file for networks of more than a few layers, `layer_bytes` is what a layer's precision decides.

Source: the flatbuffers binary format (tables of 4-byte offsets, vectors of a 4-byte length) and schema.fbs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from ddq_search.export.tflite_flatbuffer import CONSTANT_ALIGNMENT, FlatModel, FlatTensor
from ddq_search.packing import BIAS_BYTES, row_bytes

Item = TypeVar("Item")

OFFSET_BYTES = 4
LENGTH_BYTES = 4
SCALE_BYTES = 4
ZERO_POINT_BYTES = 8
CHANNEL_BYTES = BIAS_BYTES + 2 * SCALE_BYTES
"""int32 bias, float32 scales of weights and bias; their zero points, all 0, are one shared vector per length."""

_HEADER_BYTES = 48
"""Root offset, file identifier, root table, alignment of the file."""
_VTABLE_BYTES, _OPTIONS_VTABLE_BYTES = 240, 12
"""Vtables of the tables that every file has, one per set of stored fields, and of options of one size."""
_FIELDS_BYTES = {
    "Conv2DOptions": 20, "DepthwiseConv2DOptions": 20, "Pool2DOptions": 24, "FullyConnectedOptions": 8,
    "StridedSliceOptions": 12, "ConcatenationOptions": 8, "ReducerOptions": 8, "CastOptions": 8,
}  # fmt: skip
"""Options table → bytes with its stored fields; a table without any takes 4."""


def layer_bytes(rows: int, row_length: int, container_bits: int) -> int:
    """Returns the bytes that a layer's precision decides: packed weights and per-channel constants.

    Weights are packed without row padding; ``container_bits`` as `ddq_search.export.tflite_weights` chooses it.

    >>> layer_bytes(3, 5, 4), layer_bytes(3, 5, 8)
    (44, 51)
    """
    return row_bytes(rows * row_length, container_bits) + rows * CHANNEL_BYTES


def flat_bytes(model: FlatModel) -> int:
    """Returns the bytes of a model's file."""
    tensors, operators = model.tensors, model.operators
    total = _HEADER_BYTES + _VTABLE_BYTES
    total += _distinct((t.name for t in tensors), _string_bytes)
    grids = [t.quantization for t in tensors if t.quantization is not None]
    total += _distinct((g.scale for g in grids), lambda scale: _vector_bytes(len(scale), SCALE_BYTES))
    total += _distinct((g.zero_point for g in grids), lambda zero: _vector_bytes(len(zero), ZERO_POINT_BYTES))
    total += sum(16 if grid.axis else 12 for grid in grids)
    total += sum(OFFSET_BYTES + _tensor_bytes(tensor) for tensor in tensors)
    lists = [t.shape for t in tensors] + [indices for op in operators for indices in (op.inputs, op.outputs)]
    total += _distinct(lists, lambda indices: _vector_bytes(len(indices), 4))
    for op in operators:
        total += OFFSET_BYTES + (24 if op.options_type else 16)
        total += _FIELDS_BYTES.get(op.options_type, 4 if op.options_type else 0)
    total += len({_FIELDS_BYTES.get(op.options_type, 4) for op in operators}) * _OPTIONS_VTABLE_BYTES
    total += len(model.operator_codes()) * (OFFSET_BYTES + 16)
    total += sum(_buffer_bytes(data) for data in model.constants())
    total += sum(_string_bytes(name) + OFFSET_BYTES + 12 for name in model.metadata)
    return total


def _tensor_bytes(tensor: FlatTensor) -> int:
    return 16 + 4 * (tensor.data is not None) + 4 * (tensor.quantization is not None)


def _buffer_bytes(data: bytes) -> int:
    """Offset, table and data, whose first byte is aligned."""
    if not data:
        return OFFSET_BYTES + 4
    block = len(data) + LENGTH_BYTES + 8
    return OFFSET_BYTES + -(-block // CONSTANT_ALIGNMENT) * CONSTANT_ALIGNMENT


def _string_bytes(text: str) -> int:
    return _rounded(LENGTH_BYTES + len(text.encode()) + 1)


def _vector_bytes(count: int, width: int) -> int:
    return _rounded(LENGTH_BYTES + count * width)


def _rounded(size: int) -> int:
    return -(-size // 4) * 4


def _distinct(items: Iterable[Item], size: Callable[[Item], int]) -> int:
    return sum(size(item) for item in set(items))
