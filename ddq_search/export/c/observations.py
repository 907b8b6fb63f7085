"""What the C program reads and writes: input codes, every tensor's codes, one digest per tensor.

All of it is packed as in the arena (`ddq_search.export.c.ordering`), with zeros beyond a tensor's last code.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ddq_search.errors import VerificationError
from ddq_search.export.c.ordering import natural_order, order_tensors
from ddq_search.integer.program import IntegerProgram
from ddq_search.packing import pack_rows, row_bytes, unpack_rows

FNV_BASIS, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)

Codes = Mapping[str, NDArray[np.uint8]]
"""Tensor → ``[N, ...]`` codes in the program's shapes."""


def stored_rows(program: IntegerProgram, codes: Codes) -> dict[str, NDArray[np.uint8]]:
    """Returns tensor → ``[N, bytes]`` the packed codes as they lie in the arena when the tensor is complete."""
    ordering = order_tensors(program)
    result = {}
    for name, values in codes.items():
        rows = values.reshape(len(values), -1)[:, natural_order(ordering.written[name])]
        packed = pack_rows(rows, program.tensors[name].grid.bits)
        result[name] = np.frombuffer(packed, np.uint8).reshape(len(rows), -1)
    return result


def input_bytes(program: IntegerProgram, inputs: NDArray[np.uint8]) -> bytes:
    """Returns the file that the C program reads for input codes ``[N, ...]``."""
    return stored_rows(program, {program.input.name: inputs})[program.input.name].tobytes()


def read_codes(program: IntegerProgram, data: bytes, samples: int) -> dict[str, NDArray[np.uint8]]:
    """Returns every tensor's codes from what ``main codes`` wrote.

    Raises:
        VerificationError: the file does not hold the tensors of that many samples.
    """
    ordering = order_tensors(program)
    sizes = {name: int(np.prod(tensor.shape)) for name, tensor in program.tensors.items()}
    widths = {name: row_bytes(size, program.tensors[name].grid.bits) for name, size in sizes.items()}
    if len(data) != samples * sum(widths.values()):
        raise VerificationError(f"the C program wrote {len(data)} bytes instead of {samples * sum(widths.values())}")
    rows = np.frombuffer(data, np.uint8).reshape(samples, -1)
    result: dict[str, NDArray[np.uint8]] = {}
    start = 0
    for step in program.steps:
        tensor, width = program.tensors[step.name], widths[step.name]
        packed = rows[:, start : start + width].tobytes()
        start += width
        found = unpack_rows(packed, samples, sizes[step.name], tensor.grid.bits, signed=False)
        codes = np.empty_like(found, np.uint8)
        codes[:, natural_order(ordering.written[step.name])] = found
        result[step.name] = codes.reshape(samples, *tensor.shape)
    return result


def sample_hashes(program: IntegerProgram, codes: Codes) -> dict[str, NDArray[np.uint64]]:
    """Returns tensor → ``[N]`` FNV-1a over every sample's packed codes."""
    result = {}
    for name, rows in stored_rows(program, codes).items():
        hashes = np.full(len(rows), FNV_BASIS, np.uint64)
        for column in rows.T:
            hashes = (hashes ^ column) * FNV_PRIME
        result[name] = hashes
    return result


def digest(hashes: NDArray[np.uint64]) -> int:
    """Returns the FNV-1a over the hashes of all samples, lowest bytes first: what ``main digests`` writes.

    >>> hex(digest(np.array([], np.uint64)))
    '0xcbf29ce484222325'
    """
    value = int(FNV_BASIS)
    for byte in hashes.astype("<u8").tobytes():
        value = (value ^ byte) * int(FNV_PRIME) & (2**64 - 1)
    return value


def read_digests(program: IntegerProgram, data: bytes) -> dict[str, int]:
    """Returns the digests that ``main digests`` wrote.

    Raises:
        VerificationError: the file does not hold one digest per tensor.
    """
    if len(data) != 8 * len(program.steps):
        raise VerificationError(f"the C program wrote {len(data)} bytes instead of {8 * len(program.steps)}")
    values = np.frombuffer(data, "<u8")
    return {step.name: int(value) for step, value in zip(program.steps, values, strict=True)}
