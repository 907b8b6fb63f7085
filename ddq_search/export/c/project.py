"""The C project of an integer program: one folder that any C99 compiler builds, without malloc and operating system.

``model.h`` is the deployment contract, ``model.c`` the arena and the schedule, ``model_constants.c`` what lies in
flash, ``model_layers.c`` the layers' facts for the benchmark (only linked with ``main.c``); the ``ddq_*`` files are the
sources of the kernels and operations that this network needs. ``project.json`` states what was written.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ddq_search.errors import ExportError, VerificationError
from ddq_search.export.c.constants import Constants, build_constants
from ddq_search.export.c.contract import Contract, Sizes, classes_source, header_source
from ddq_search.export.c.kernels import Kernel
from ddq_search.export.c.layers import layers_source
from ddq_search.export.c.operations import SOURCES
from ddq_search.export.c.ordering import Ordering, order_tensors
from ddq_search.export.c.registry import choose_kernels, scratch_bytes
from ddq_search.export.c.schedule import Arena, check_plan, first_byte, schedule_source
from ddq_search.integer.program import IntegerProgram, check
from ddq_search.whole_files import write_whole

FORMAT, VERSION = "ddq-search C project", 1
PROJECT_FILE = "project.json"
PROGRAM_SOURCES = ("main.c", "model_layers.c", "ddq_clock.c")
"""What makes a program of the library: not needed in a firmware."""

_INCLUDE = re.compile(r'^#include "([^"]+)"$', re.MULTILINE)


@dataclass(frozen=True)
class CProject:
    """What `write_c_project` wrote.

    Attributes:
        folder: where.
        sources: C files of the library; `PROGRAM_SOURCES` come on top.
        kernels: weighted layer → the C function that executes it.
        arena_bytes: RAM of activations and scratch.
        constants_bytes: flash of weights, per-channel constants and tables.
        ordering: where the codes of every tensor lie.
    """

    folder: Path
    sources: tuple[str, ...]
    kernels: Mapping[str, str]
    arena_bytes: int
    constants_bytes: int
    ordering: Ordering


def write_c_project(
    program: IntegerProgram,
    folder: Path,
    *,
    plan: Arena,
    kernels: Mapping[str, str] | None = None,
    contract: Contract | None = None,
) -> CProject:
    """Writes the C project of a program.

    Args:
        program: what the project computes.
        folder: where to; files of an earlier export that are no longer needed are removed.
        plan: the arena, scratch of the chosen kernels included.
        kernels: weighted layer → name of the kernel that executes it; portable ones where absent.
        contract: what input and output mean.

    Raises:
        ExportError: a kernel does not execute its layer, the plan does not fit, a size is beyond what the C code
            counts with, or the folder cannot be written; the message names the layer or file.
    """
    check(program)
    chosen = choose_kernels(program, given=kernels)
    check_plan(program, plan, scratch_bytes(program, chosen))
    ordering = order_tensors(program)
    constants = build_constants(program, chosen, ordering)
    schedule = schedule_source(program, plan, chosen, constants, ordering)
    contract = contract or Contract()
    runtime = _runtime_files(schedule, chosen)
    library = ("model.c", "model_constants.c", *(name for name in runtime if name not in PROGRAM_SOURCES))
    sources = tuple(name for name in library if name.endswith(".c"))
    files = {
        "model.h": header_source(program, contract, Sizes(plan.total, constants.byte_count, constants.sha256)),
        "model.c": _model_source(program, plan, chosen, schedule, contract),
        "model_constants.h": constants.header(),
        "model_constants.c": constants.source(),
        "model_layers.c": layers_source(program, chosen),
        **{name: runtime_text(name) for name in runtime},
        "Makefile": runtime_text("Makefile").replace("@SOURCES@", " ".join(sources)),
        "CMakeLists.txt": runtime_text("CMakeLists.txt").replace("@SOURCES@", " ".join(sources)),
    }
    names = {name: kernel.name for name, kernel in chosen.items()}
    _write(folder, files, _facts(program, plan, constants, names, files))
    return CProject(folder, sources, names, plan.total, constants.byte_count, ordering)


def runtime_text(name: str) -> str:
    """Returns a file of the runtime."""
    return (resources.files("ddq_search.export.c") / "runtime" / name).read_text(encoding="utf-8")


def read_project(folder: Path) -> dict[str, Any]:
    """Returns what ``project.json`` states, after comparing every file with it.

    Raises:
        VerificationError: a file is missing, truncated or edited.
    """
    path = folder / PROJECT_FILE
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VerificationError(f"cannot read {path}: {error}; export the policy again") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or facts.get("version") != VERSION:
        raise VerificationError(f"{path} is not a C project of this release; export the policy again")
    stated = facts.get("files")
    if not isinstance(stated, dict) or not {"model.c", "model.h", "model_constants.c"} <= stated.keys():
        raise VerificationError(f"{path} is damaged: it does not list the project's files; export the policy again")
    for name, digest in stated.items():
        file = folder / Path(str(name)).name
        if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise VerificationError(f"{file} is missing or was edited after export; export the policy again")
    return facts


def _facts(
    program: IntegerProgram, plan: Arena, constants: Constants, kernels: Mapping[str, str], files: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "arithmetic": program.arithmetic,
        "policy_sha256": program.policy_sha256,
        "arena_bytes": plan.total,
        "constants_bytes": constants.byte_count,
        "constants_sha256": constants.sha256,
        "kernels": dict(kernels),
        "files": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()},
    }


def _runtime_files(schedule: str, chosen: Mapping[str, Kernel]) -> list[str]:
    """The sources that the schedule and the kernels name, and every header that they and `main.c` include."""
    operations = {file for name, file in SOURCES.items() if f" {name}," in schedule}
    found: list[str] = []
    wanted = [
        *sorted(operations | {kernel.source for kernel in chosen.values()}),
        "main.c",
        "ddq_clock.c",
        "ddq_steps.h",
    ]
    while wanted:
        name = wanted.pop(0)
        if name not in found:
            found.append(name)
            wanted += [header for header in _INCLUDE.findall(runtime_text(name)) if not header.startswith("model")]
    return found


def _model_source(
    program: IntegerProgram, plan: Arena, chosen: Mapping[str, Kernel], schedule: str, contract: Contract
) -> str:
    kernels = sorted({kernel.name for kernel in chosen.values()})
    declared = f"extern ddq_kernel {', '.join(kernels)};\n" if kernels else ""
    places = {
        "@KERNELS@": declared,
        "@INPUT@": str(first_byte(plan, program.input.name)),
        "@OUTPUT@": str(first_byte(plan, program.output.name)),
        "@SCHEDULE@": schedule + classes_source(contract),  # last: it holds names of layers and classes
    }
    text = runtime_text("model.c.template")
    for place, value in places.items():
        text = text.replace(place, value)
    return text


def _write(folder: Path, files: Mapping[str, str], facts: Mapping[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.iterdir():
            if stale.name not in files and stale.suffix in (".c", ".h", ".o"):
                stale.unlink()
        for name, text in files.items():
            write_whole(folder / name, text.encode())
        write_whole(folder / PROJECT_FILE, json.dumps(facts, indent=1, ensure_ascii=False).encode())
    except OSError as error:
        raise ExportError(f"cannot write the C project to {folder}: {error.strerror or error}") from error
