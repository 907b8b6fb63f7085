"""The program's file format: ``program.json`` (structure) beside ``program.bin`` (constants).

``program.bin`` is the concatenation, in schedule order, of each weighted layer's weights, int32 bias, int32 multipliers
and int8 shifts, and of each table's 256 bytes: nothing else, so its length is the flash price of the policy. A layer's
weights are its packed codes (row = output channel), the ``2^bits`` int8 levels of its codebook if it has one, and per
further point the packed codes and int16 ratios. Uses of one module store their weights once. All integers are
little-endian.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddq_search.discrete import Point
from ddq_search.errors import DDQError, ExportError, VerificationError
from ddq_search.integer.program import (
    Add,
    AveragePool,
    FixedPoint,
    Input,
    IntegerProgram,
    Lookup,
    MaxPool,
    Mean,
    Move,
    Multiply,
    Step,
    Tensor,
    Weighted,
    check,
)  # fmt: skip
from ddq_search.packing import (
    BIAS_BYTES,
    MULTIPLIER_BYTES,
    RATIO_BYTES,
    SHIFT_BYTES,
    TABLE_BYTES,
    codebook_bytes,
    pack_rows,
    unpack_rows,
    weight_bytes,
)  # fmt: skip
from ddq_search.precision import ActivationGrid
from ddq_search.whole_files import write_whole

FORMAT, VERSION = "ddq-search integer program", 2
STRUCTURE_FILE, CONSTANTS_FILE = "program.json", "program.bin"

_STEPS: dict[str, type[Step]] = {
    cls.__name__: cls for cls in (Input, Weighted, Add, Multiply, Mean, MaxPool, AveragePool, Lookup, Move)
}
_PER_CHANNEL: dict[str, tuple[str, int]] = {
    "bias": ("<i4", BIAS_BYTES),
    "multiplier": ("<i4", MULTIPLIER_BYTES),
    "shift": ("<i1", SHIFT_BYTES),
}


def encode(program: IntegerProgram) -> tuple[dict[str, Any], bytes]:
    """Returns the structure (plain JSON values) and the constants of a program.

    Two programs are the same exactly when they encode to the same pair.
    """
    constants = bytearray()
    stored: dict[tuple[str, bytes], int] = {}
    steps = []
    for step in program.steps:
        facts: dict[str, Any] = {"step": type(step).__name__}
        for key, value in vars(step).items():
            if not isinstance(value, np.ndarray) and key not in ("codebook", "points"):
                facts[key] = asdict(value) if isinstance(value, FixedPoint) else _plain(value)
        if isinstance(step, Weighted):
            weights = _weight_constants(step)
            offset = stored.setdefault((step.module, weights), len(constants))
            constants += weights if offset == len(constants) else b""
            facts |= {"codes_shape": list(step.codes.shape), "codes_offset": offset, "constants_offset": len(constants)}
            facts |= {"codebook": step.codebook is not None, "points_bits": [point.bits for point in step.points]}
            for key, (kind, _) in _PER_CHANNEL.items():
                constants += getattr(step, key).astype(kind).tobytes()
            facts["scale"] = [float(value) for value in step.scale]
        elif isinstance(step, Lookup):
            facts["constants_offset"] = len(constants)
            constants += step.table.tobytes()
        steps.append(facts)
    structure: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "arithmetic": program.arithmetic,
        "policy": dict(program.policy),
        "tensors": [_tensor_facts(tensor) for tensor in program.tensors.values()],
        "steps": steps,
        "constants": {"bytes": len(constants), "sha256": hashlib.sha256(constants).hexdigest()},
    }
    structure["sha256"] = _digest(structure)
    return structure, bytes(constants)


def save_program(program: IntegerProgram, folder: Path) -> None:
    """Writes both files into ``folder``, each appearing whole or not at all.

    Raises:
        ExportError: the program breaks an invariant, or the folder cannot be written.
    """
    check(program)
    structure, constants = encode(program)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / CONSTANTS_FILE, constants)
        write_whole(folder / STRUCTURE_FILE, json.dumps(structure, indent=1, ensure_ascii=False).encode())
    except OSError as error:
        raise ExportError(f"cannot write the integer program to {folder}: {error.strerror or error}") from error


def load_program(folder: Path) -> IntegerProgram:
    """Returns the program saved in ``folder``, checked.

    Raises:
        VerificationError: a file is missing, truncated or edited, or the program breaks an invariant.
    """
    structure_file, constants_file = folder / STRUCTURE_FILE, folder / CONSTANTS_FILE
    try:
        structure, constants = json.loads(structure_file.read_text(encoding="utf-8")), constants_file.read_bytes()
    except OSError as error:
        raise VerificationError(f"cannot read {error.filename}: {error.strerror}; export the policy again") from error
    except ValueError as error:
        raise VerificationError(f"{structure_file} is not JSON ({error}); export the policy again") from error
    return decode(structure, constants, source=str(structure_file))


def decode(structure: Any, constants: bytes, *, source: str = STRUCTURE_FILE) -> IntegerProgram:
    """Inverse of `encode`; ``source`` is the file that messages name.

    Raises:
        VerificationError: as `load_program`.
    """
    if not isinstance(structure, dict) or structure.get("format") != FORMAT:
        raise VerificationError(f"{source} is not an integer program of ddq-search")
    if structure.get("version") != VERSION:
        raise VerificationError(f"{source} has version {structure.get('version')!r}; this release reads {VERSION}")
    stated = structure.get("sha256")
    if stated != _digest({key: value for key, value in structure.items() if key != "sha256"}):
        raise VerificationError(f"{source} was edited after export: its checksum does not match; export again")
    try:
        _check_constants(structure["constants"], constants)
        program = IntegerProgram(
            structure["arithmetic"],
            {facts["name"]: _tensor(facts) for facts in structure["tensors"]},
            tuple(_step(facts, constants) for facts in structure["steps"]),
            structure["policy"],
        )
        check(program)
        whole = encode(program) == (structure, constants)
    except VerificationError:
        raise
    except DDQError as error:
        raise VerificationError(f"{source}: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise VerificationError(f"{source} is damaged: {type(error).__name__} {error}; export again") from error
    if not whole:
        raise VerificationError(f"{source} and {CONSTANTS_FILE} hold more than the program; export again")
    return program


def _check_constants(stated: Mapping[str, Any], constants: bytes) -> None:
    if len(constants) != stated["bytes"]:
        raise VerificationError(f"{CONSTANTS_FILE} has {len(constants)} bytes instead of {stated['bytes']}: truncated")
    if hashlib.sha256(constants).hexdigest() != stated["sha256"]:
        raise VerificationError(f"{CONSTANTS_FILE} was edited after export: its checksum does not match")


def _digest(structure: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(structure, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [asdict(item) if isinstance(item, FixedPoint) else item for item in value]
    return value


def _tensor_facts(tensor: Tensor) -> dict[str, Any]:
    return {**asdict(tensor), "shape": list(tensor.shape)}


def _tensor(facts: Mapping[str, Any]) -> Tensor:
    return Tensor(facts["name"], tuple(facts["shape"]), ActivationGrid(**facts["grid"]), facts["arena_offset"])


def _step(facts: Mapping[str, Any], constants: bytes) -> Step:
    values = {key: _typed(value) for key, value in facts.items() if key not in ("step", "constants_offset")}
    cls = _STEPS[facts["step"]]
    if cls is Weighted:
        rows = facts["codes_shape"][0]
        values |= _weights(values, constants)
        values["scale"] = np.array(facts["scale"], np.float32)
        offset = facts["constants_offset"]
        for key, (kind, width) in _PER_CHANNEL.items():
            values[key] = _array(_cut(constants, offset, rows * width), kind)
            offset += rows * width
    elif cls is Lookup:
        values["table"] = _array(_cut(constants, facts["constants_offset"], TABLE_BYTES), "u1")
    return cls(**values)


def _weight_constants(step: Weighted) -> bytes:
    data = pack_rows(step.codes.reshape(step.rows, -1), step.bits)
    data += b"" if step.codebook is None else step.codebook.tobytes()
    for point in step.points:
        data += pack_rows(point.codes.reshape(step.rows, -1), point.bits) + point.ratio.astype("<i2").tobytes()
    return data


def _weights(values: dict[str, Any], constants: bytes) -> dict[str, Any]:
    """Inverse of `_weight_constants`; takes what only the file needs out of ``values``."""
    shape, offset = values.pop("codes_shape"), values.pop("codes_offset")
    has_codebook, points_bits = values.pop("codebook"), values.pop("points_bits")
    rows, length = shape[0], int(np.prod(shape[1:]))

    def take(size: int) -> bytes:
        nonlocal offset
        offset += size
        return _cut(constants, offset - size, size)

    def codes(bits: int, *, signed: bool) -> NDArray[Any]:
        unpacked = unpack_rows(take(weight_bytes(rows, length, bits)), rows, length, bits, signed=signed)
        return unpacked.reshape(shape).astype(np.int8 if signed else np.uint8)

    base = codes(values["bits"], signed=not has_codebook)
    codebook = _array(take(codebook_bytes(values["bits"])), "i1") if has_codebook else None
    points = tuple(
        Point(codes(bits, signed=True), bits, _array(take(rows * RATIO_BYTES), "<i2")) for bits in points_bits
    )
    return {"codes": base, "codebook": codebook, "points": points}


def _array(data: bytes, kind: str) -> NDArray[Any]:
    stored = np.frombuffer(data, kind)
    return stored.astype(stored.dtype.newbyteorder("="))


def _cut(constants: bytes, offset: int, length: int) -> bytes:
    if not 0 <= offset <= offset + length <= len(constants):
        raise VerificationError(f"bytes {offset} … {offset + length} are outside {CONSTANTS_FILE}")
    return constants[offset : offset + length]


def _typed(value: Any) -> Any:
    if isinstance(value, dict):
        return FixedPoint(**value)
    return tuple(_typed(item) for item in value) if isinstance(value, list) else value
