"""The proof of a C project: compiled and run, it computes every code of every tensor that the reference executor does.

On the host every code of every tensor is compared, under the address and undefined-behaviour sanitizers. Other targets
answer with one 64-bit digest per tensor over all samples.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddq_search.errors import VerificationError
from ddq_search.export.c.ordering import natural_order, order_tensors
from ddq_search.export.c.project import read_project
from ddq_search.export.c.targets import OPTIMISATION, TARGETS, Target, build, run
from ddq_search.integer.program import IntegerProgram
from ddq_search.packing import pack_rows, row_bytes, unpack_rows

SANITIZED = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
"""What the host's proof is compiled with."""
FNV_BASIS, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)

Codes = Mapping[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class TensorComparison:
    """How far one tensor's codes are from the reference's.

    Attributes:
        codes: how many were compared.
        differing: how many differ.
        largest_delta: by how much at most.
    """

    codes: int
    differing: int
    largest_delta: int


def build_project(target: Target, folder: Path, elf: Path, flags: Sequence[str] = OPTIMISATION) -> Path:
    """Compiles a project into a program for a target.

    Raises:
        ExportError: the project was edited, a tool is missing, or the sources do not compile.
    """
    read_project(folder)
    return build(target, sorted(folder.glob("*.c")), elf, flags)


def run_codes(
    target: Target, elf: Path, program: IntegerProgram, inputs: NDArray[np.uint8]
) -> dict[str, NDArray[np.uint8]]:
    """Returns every tensor's codes ``[N, ...]`` as a compiled project computes them for input codes ``[N, ...]``."""
    return read_codes(program, _run(target, elf, "codes", program, inputs), len(inputs))


def run_digests(target: Target, elf: Path, program: IntegerProgram, inputs: NDArray[np.uint8]) -> dict[str, int]:
    """Returns every tensor's digest as a compiled project computes it for input codes ``[N, ...]``."""
    return read_digests(program, _run(target, elf, "digests", program, inputs))


def _run(target: Target, elf: Path, mode: str, program: IntegerProgram, inputs: NDArray[np.uint8]) -> bytes:
    (elf.parent / "input.bin").write_bytes(input_bytes(program, inputs))
    result = elf.parent / "output.bin"
    result.unlink(missing_ok=True)
    done = run(target, elf, elf.parent, (mode, "input.bin", "output.bin"))
    if done.returncode != 0 or not result.exists():
        said = (done.stdout + done.stderr).strip()[-2000:]
        raise VerificationError(f"the C program failed on {target.name} ({done.returncode}): {said or 'no message'}")
    return result.read_bytes()


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


def tensor_digests(program: IntegerProgram, codes: Codes) -> dict[str, int]:
    """Returns what ``main digests`` must write: tensor → FNV-1a over the FNV-1a of every sample's packed codes."""
    result = {}
    for name, rows in stored_rows(program, codes).items():
        hashes = np.full(len(rows), FNV_BASIS, np.uint64)
        for column in rows.T:
            hashes = (hashes ^ column) * FNV_PRIME
        digest = int(FNV_BASIS)
        for byte in hashes.astype("<u8").tobytes():
            digest = (digest ^ byte) * int(FNV_PRIME) & (2**64 - 1)
        result[name] = digest
    return result


def read_digests(program: IntegerProgram, data: bytes) -> dict[str, int]:
    """Returns the digests that ``main digests`` wrote.

    Raises:
        VerificationError: the file does not hold one digest per tensor.
    """
    if len(data) != 8 * len(program.steps):
        raise VerificationError(f"the C program wrote {len(data)} bytes instead of {8 * len(program.steps)}")
    values = np.frombuffer(data, "<u8")
    return {step.name: int(value) for step, value in zip(program.steps, values, strict=True)}


def compare_codes(found: Codes, reference: Codes) -> dict[str, TensorComparison]:
    """Returns the comparison of every tensor."""
    result = {}
    for name, expected in reference.items():
        delta = np.abs(found[name].astype(np.int32) - expected.astype(np.int32))
        result[name] = TensorComparison(delta.size, int((delta > 0).sum()), int(delta.max(initial=0)))
    return result


def prove_on_host(
    program: IntegerProgram, folder: Path, inputs: NDArray[np.uint8], reference: Codes
) -> dict[str, TensorComparison]:
    """Compiles a project with sanitizers and compares all codes of all tensors with the reference executor's."""
    host = TARGETS["host"]
    with tempfile.TemporaryDirectory() as work:
        elf = build_project(host, folder, Path(work) / "main", SANITIZED)
        return compare_codes(run_codes(host, elf, program, inputs), reference)
