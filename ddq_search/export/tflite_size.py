"""The price of a ``.tflite`` file: bytes by layout rules, without writing it.

A file holds constants (weights in their containers, biases, tables, shapes), per-channel scales and zero points for
every quantized tensor, and the structure around them: tables with shared vtables, vectors, names. Equal vectors,
names and constants count once, as `ddq_search.export.tflite_flatbuffer` stores them. The gaps of 2 or 4 bytes that
alignment puts between items of different width depend on their order and are counted at their mean.

`layer_bytes` is what the precision of one layer decides.

Source: the flatbuffers binary format (a table starts with a 4-byte offset and stores no field that has its default, a
vtable holds 2 bytes per field up to the last one stored, a vector starts with a 4-byte length) and schema.fbs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from ddq_search.export.tflite_flatbuffer import CONSTANT_ALIGNMENT, FlatModel, FlatOperator
from ddq_search.packing import BIAS_BYTES, row_bytes

Item = TypeVar("Item")
Field = tuple[int, int]
"""Slot and width in bytes of a field that a table stores."""

OFFSET_BYTES, LENGTH_BYTES, SCALE_BYTES, ZERO_POINT_BYTES = 4, 4, 4, 8
CHANNEL_BYTES = BIAS_BYTES + 2 * SCALE_BYTES
"""int32 bias, float32 scales of weights and bias; their zero points, all 0, are one shared vector per length."""

_HEADER_BYTES = 12
"""Root offset, file identifier, length of the file in words."""
_GAP_BYTES = 40
"""Gaps of 2 bytes behind vtables, and before the first aligned constant: 24 to 64 bytes in files of any size."""
_FIXED_NAMES = ("main", "ddq-search")
_WINDOW = {"Padding": (0, 1), "StrideW": (1, 4), "StrideH": (2, 4)}
_OPTION_FIELDS: dict[str, dict[str, Field]] = {
    "Conv2DOptions": _WINDOW
    | {"FusedActivationFunction": (3, 1), "DilationWFactor": (4, 4), "DilationHFactor": (5, 4)},
    "DepthwiseConv2DOptions": _WINDOW
    | {"DepthMultiplier": (3, 4), "FusedActivationFunction": (4, 1), "DilationWFactor": (5, 4)}
    | {"DilationHFactor": (6, 4)},
    "Pool2DOptions": _WINDOW | {"FilterWidth": (3, 4), "FilterHeight": (4, 4)},
    "FullyConnectedOptions": {"FusedActivationFunction": (0, 1)},
    "AddOptions": {"FusedActivationFunction": (0, 1), "PotScaleInt16": (1, 1)},
    "MulOptions": {"FusedActivationFunction": (0, 1)},
    "ReducerOptions": {"KeepDims": (0, 1)},
    "ConcatenationOptions": {"Axis": (0, 4)},
    "StridedSliceOptions": {"BeginMask": (0, 4), "EndMask": (1, 4)},
    "GatherOptions": {"Axis": (0, 4)},
    "DepthToSpaceOptions": {"BlockSize": (0, 4)},
    "CastOptions": {"InDataType": (0, 1), "OutDataType": (1, 1)},
}
_DEFAULTS = {"DilationWFactor": 1, "DilationHFactor": 1, "PotScaleInt16": True}


def layer_bytes(rows: int, row_length: int, container_bits: int) -> int:
    """Returns the bytes that a layer's precision decides: packed weights and per-channel constants.

    Weights are packed without row padding; ``container_bits`` as `ddq_search.export.tflite_weights` chooses it.

    >>> layer_bytes(3, 5, 4), layer_bytes(3, 5, 8)
    (44, 51)
    """
    return row_bytes(rows * row_length, container_bits) + rows * CHANNEL_BYTES


def flat_bytes(model: FlatModel) -> int:
    """Returns the bytes of a model's file, rounded up to its alignment."""
    tensors, operators = model.tensors, model.operators
    grids = [tensor.quantization for tensor in tensors if tensor.quantization is not None]
    integers = [tensor.shape for tensor in tensors] + [(*model.inputs,), (*model.outputs,)]
    integers += [indices for operator in operators for indices in (operator.inputs, operator.outputs)]
    names = [*_FIXED_NAMES, *(tensor.name for tensor in tensors), *model.metadata]
    tables = list(_tables(model))
    lists = (len(model.constants()), len(tensors), len(operators), len(model.operator_codes()), len(model.metadata), 1)
    total = (
        _HEADER_BYTES
        + _GAP_BYTES
        + _distinct(names, lambda name: _rounded(LENGTH_BYTES + len(name.encode()) + 1))
        + _distinct(integers, lambda values: LENGTH_BYTES + 4 * len(values))
        + _distinct((grid.scale for grid in grids), lambda values: LENGTH_BYTES + SCALE_BYTES * len(values))
        + _distinct((grid.zero_point for grid in grids), _zero_point_bytes)
        + sum(_table_bytes(fields) for fields in tables)
        + _distinct((tuple(fields) for fields in tables), _vtable_bytes)
        + sum(LENGTH_BYTES + OFFSET_BYTES * count for count in lists)
        + sum(_data_bytes(data) for data in model.constants() if data)
    )
    return _rounded(total, CONSTANT_ALIGNMENT)


def _tables(model: FlatModel) -> Iterable[list[Field]]:
    """The stored fields of every table of a file but the data of its buffers, in the order of writing."""
    yield from ([(0, 4)] if data else [] for data in model.constants())
    for tensor in model.tensors:
        constant, quantized = tensor.data is not None, tensor.quantization is not None
        yield [(0, 4), (1, 1), *[(2, 4)] * constant, (3, 4), *[(4, 4)] * quantized]
        if tensor.quantization is not None:
            yield [(2, 4), (3, 4), *[(6, 4)] * (tensor.quantization.axis > 0)]
    codes = model.operator_codes()
    for operator in model.operators:
        first = (operator.code, operator.version) == codes[0]
        yield [*[(0, 4)] * (not first), (1, 4), (2, 4), *[(4, 4), (3, 1)] * bool(operator.options_type)]
        if operator.options_type:
            yield _option_fields(operator)
    for code, version in codes:
        yield [*[(0, 1), (3, 4)] * (code != "ADD"), *[(2, 4)] * (version != 1)]  # ADD is number 0
    yield from ([(0, 4), (1, 4)] for _ in model.metadata)
    yield [(slot, 4) for slot in range(5)]  # the subgraph
    yield [(slot, 4) for slot in (0, 1, 2, 3, 4, 6)]  # the model


def _option_fields(operator: FlatOperator) -> list[Field]:
    known = _OPTION_FIELDS.get(operator.options_type, {})
    return [known[name] for name, value in operator.options.items() if value != _DEFAULTS.get(name, 0)]


def _table_bytes(fields: Sequence[Field]) -> int:
    size = 0
    for _, width in fields:
        size = _rounded(size, width) + width
    return _rounded(size) + OFFSET_BYTES


def _zero_point_bytes(values: Sequence[int]) -> int:
    """Length and values of 8 bytes each: aligned after a gap of 4 bytes in every other place."""
    return LENGTH_BYTES + ZERO_POINT_BYTES * len(values) + 2


def _vtable_bytes(fields: Sequence[Field]) -> int:
    return _rounded(4 + 2 * (1 + max((slot for slot, _ in fields), default=-1)))


def _data_bytes(data: bytes) -> int:
    """Length and data of a buffer between its neighbours' tables, the first byte aligned."""
    table = _table_bytes([(0, 4)])
    return _rounded(len(data) + LENGTH_BYTES + table, CONSTANT_ALIGNMENT) - table


def _rounded(size: int, unit: int = 4) -> int:
    return -(-size // unit) * unit


def _distinct(items: Iterable[Item], size: Callable[[Item], int]) -> int:
    return sum(size(item) for item in set(items))
