"""The constants of a network as C arrays: what the flash budget paid for, to the byte.

Every array holds exactly the bytes that `ddq_search.packing` prices: packed weights in the layout of the layer's
kernel, bias (with the part of the zero point that the kernel does not subtract folded in), multipliers, shifts, levels
of codebooks, tables. Uses of one module share their weights where layout and codes agree. Arrays of wider elements come
first, so that no compiler needs padding between them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddq_search.errors import ExportError
from ddq_search.export.c.geometry import kernel_rows, layer_shape
from ddq_search.export.c.kernels import Kernel
from ddq_search.export.c.ordering import Ordering
from ddq_search.export.c.text import array
from ddq_search.integer.program import INT32_MAX, IntegerProgram, Lookup, Weighted
from ddq_search.layer_shape import LayerShape
from ddq_search.packing import weight_bytes
from ddq_search.precision import storage_bits

_C_TYPES = {"<i4": "int32_t", "<i2": "int16_t", "|i1": "int8_t", "|u1": "uint8_t"}


@dataclass(frozen=True)
class PointArrays:
    """Names of the arrays of one further point."""

    weights: str
    ratio: str
    bits: int


@dataclass(frozen=True)
class LayerArrays:
    """Names of the arrays of one weighted layer; no codebook: ``NULL``."""

    weights: str
    bias: str
    multiplier: str
    shift: str
    codebook: str = "NULL"
    points: tuple[PointArrays, ...] = ()


@dataclass
class Constants:
    """The arrays of a network.

    Attributes:
        arrays: name → values, little-endian.
        layers: weighted layer → its arrays.
        tables: look-up → its array.
    """

    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    layers: dict[str, LayerArrays] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)

    def ordered(self) -> list[tuple[str, NDArray[Any]]]:
        """The arrays as they are written: wider elements first."""
        return sorted(self.arrays.items(), key=lambda item: -item[1].dtype.itemsize)

    @property
    def byte_count(self) -> int:
        """Bytes of all arrays: the flash that was priced."""
        return sum(values.nbytes for values in self.arrays.values())

    @property
    def sha256(self) -> str:
        """Digest of all arrays in the order in which they are written."""
        return hashlib.sha256(b"".join(values.tobytes() for _, values in self.ordered())).hexdigest()

    def source(self) -> str:
        """Returns the text of the C file that defines the arrays."""
        definitions = (array(f"const {_declared(name, values)}", values) for name, values in self.ordered())
        return '#include "model_constants.h"\n\n' + "\n".join(definitions)

    def header(self) -> str:
        """Returns the text of the C header that declares the arrays."""
        declarations = "".join(f"extern const {_declared(name, values)};\n" for name, values in self.ordered())
        return (
            "/* Constants of the network: packed weights, bias, multipliers, shifts and tables. */\n"
            "#ifndef MODEL_CONSTANTS_H\n#define MODEL_CONSTANTS_H\n\n#include <stdint.h>\n\n"
            f"{declarations}\n#endif\n"
        )


def build_constants(program: IntegerProgram, kernels: Mapping[str, Kernel], ordering: Ordering) -> Constants:
    """Returns the arrays of a program for the kernels that execute its layers.

    Raises:
        ExportError: a kernel's layout has another size than was priced, or a folded bias leaves int32.
    """
    constants = Constants()
    owners: dict[tuple[str, tuple[bytes, ...]], int] = {}
    for index, step in enumerate(program.steps):
        if isinstance(step, Weighted):
            weights = _weights(step, kernels[step.name], layer_shape(program, step), ordering.columns.get(step.name))
            owner = owners.setdefault((step.module, tuple(part.tobytes() for part in weights.values())), index)
            weights = {f"{name}_{owner}": values for name, values in weights.items()}
            own = {
                f"model_bias_{index}": folded_bias(program, step, kernels[step.name]),
                f"model_multiplier_{index}": step.multiplier.astype("<i4"),
                f"model_shift_{index}": step.shift.astype("i1"),
            }
            constants.arrays |= weights | own
            constants.layers[step.name] = _names(step, owner, index)
        elif isinstance(step, Lookup):
            constants.tables[step.name] = f"model_table_{index}"
            constants.arrays[f"model_table_{index}"] = step.table.astype("u1")
    return constants


def _weights(
    step: Weighted, kernel: Kernel, shape: LayerShape, columns: NDArray[np.intp] | None
) -> dict[str, NDArray[Any]]:
    """What uses of one module may share: packed codes, levels and points."""
    found = {"model_weights": _packed(step.name, kernel, kernel_rows(step.codes, columns), step.bits, shape)}
    if step.codebook is not None:
        found["model_codebook"] = step.codebook.astype("i1")
    for n, point in enumerate(step.points):
        rows = kernel_rows(point.codes, columns)
        found[f"model_point{n}_weights"] = _packed(step.name, kernel, rows, point.bits, shape)
        found[f"model_point{n}_ratio"] = point.ratio.astype("<i2")
    return found


def _names(step: Weighted, owner: int, index: int) -> LayerArrays:
    points = tuple(
        PointArrays(f"model_point{n}_weights_{owner}", f"model_point{n}_ratio_{owner}", storage_bits(point.bits))
        for n, point in enumerate(step.points)
    )
    return LayerArrays(
        f"model_weights_{owner}", f"model_bias_{index}", f"model_multiplier_{index}", f"model_shift_{index}",
        "NULL" if step.codebook is None else f"model_codebook_{owner}", points,
    )  # fmt: skip


def folded_bias(program: IntegerProgram, step: Weighted, kernel: Kernel) -> NDArray[np.int32]:
    """Returns ``bias + (offset − zero point) Σ w``, where ``offset`` is what the kernel subtracts itself.

    Raises:
        ExportError: a channel's folded bias leaves int32.
    """
    bias = step.bias.astype(np.int64)
    if kernel.offset is not None:
        zero_point = program.tensors[step.inputs[0]].grid.zero_point
        bias = bias + (kernel.offset - zero_point) * step.weights.astype(np.int64).reshape(step.rows, -1).sum(1)
    if np.abs(bias).max() > INT32_MAX:
        raise ExportError(f"layer {step.name!r}: its bias leaves int32 in kernel {kernel.name}; use ddq_portable")
    return bias.astype("<i4")


def _packed(name: str, kernel: Kernel, rows: NDArray[Any], bits: int, shape: LayerShape) -> NDArray[np.uint8]:
    packed = kernel.layout(rows, storage_bits(bits), shape)
    priced = weight_bytes(len(rows), rows.shape[1], bits)
    if len(packed) != priced:
        raise ExportError(f"layer {name!r}: kernel {kernel.name} lays weights out in {len(packed)} bytes, not {priced}")
    return np.frombuffer(packed, np.uint8)


def _declared(name: str, values: NDArray[Any]) -> str:
    return f"{_C_TYPES[values.dtype.str]} {name}[{values.size}]"
