"""The proof of a C project: compiled and run, it computes every code of every tensor that the reference executor does.

On the host every code of every tensor is compared, for the first samples also under the address and
undefined-behaviour sanitizers. Emulated boards and cores answer with one 64-bit digest per tensor over a few samples.
What this machine lacks a tool for is named, never passed over.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddq_search.errors import ExportError, VerificationError
from ddq_search.export.c.observations import Codes, digest, input_bytes, read_codes, read_digests, sample_hashes
from ddq_search.export.c.project import read_project
from ddq_search.export.c.targets import (
    OPTIMISATION,
    TARGETS,
    Target,
    compile_source,
    compiler_version,
    link,
    missing,
    run,
)
from ddq_search.export.onnx_runtime import Comparison
from ddq_search.integer.program import IntegerProgram

SANITIZED = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
"""What the host's proof of the first `SANITIZED_SAMPLES` samples is compiled with."""

SANITIZED_SAMPLES = 32

FILE_BYTES = 2**26
"""Codes that the host's program writes at a time, at most, if they are of 8 bits."""

EMULATED: Mapping[str, int] = {"aarch64": 64, "cortex-m4": 16, "cortex-m7": 16, "cortex-m55-clang": 16}
"""Emulated target → samples it runs at most."""


@dataclass(frozen=True)
class TargetResult:
    """What one emulated target computed.

    Attributes:
        samples: how many inputs it ran.
        compiler: name and version.
        differing: tensors whose digest differs from the reference's.
        note: why it could not run here, empty where it did.
        failure: what the compiler, the emulator or the program said where it failed.
    """

    samples: int
    compiler: str
    differing: tuple[str, ...] = ()
    note: str = ""
    failure: str = ""


@dataclass(frozen=True)
class CReport:
    """What became of a C project.

    Attributes:
        compiler: of the host.
        samples: how many inputs the host ran.
        sanitized_samples: how many of them it also ran with sanitizers.
        tensors: tensor → comparison of the host's codes with the executor's.
        targets: emulated target → its result.
        kernels: weighted layer → the C function that executes it.
        constants_bytes: bytes of the arrays of constants in the compiled program.
        arena_bytes: bytes of the arena in the compiled program.
        planned_arena_bytes: what the planner laid out.
        file_bytes: size of all files of the project.
    """

    compiler: str
    samples: int
    sanitized_samples: int
    tensors: Mapping[str, Comparison]
    targets: Mapping[str, TargetResult]
    kernels: Mapping[str, str]
    constants_bytes: int
    arena_bytes: int
    planned_arena_bytes: int
    file_bytes: int

    @property
    def passed(self) -> bool:
        """Whether everything that ran agrees."""
        return not self.problems()

    def problems(self) -> list[str]:
        """Returns one line per tensor that differs."""
        lines = [f"C on the host, tensor {name!r}: {c}" for name, c in self.tensors.items() if c.differing]
        if self.arena_bytes != self.planned_arena_bytes:
            lines.append(f"C: the arena has {self.arena_bytes} bytes, planned {self.planned_arena_bytes}")
        for name, result in self.targets.items():
            lines += [f"C on {name}: {result.failure}"] if result.failure else []
            lines += [f"C on {name}, tensor {tensor!r}: its digest differs" for tensor in result.differing]
        return lines


class CComparison:
    """A C project compiled for this machine and, at the end, for emulated ones.

    Use as a context manager: it compiles into a temporary folder, kernels into ``objects`` where that is given.

    Raises:
        VerificationError: the project was edited, belongs to another program, or does not compile.
    """

    def __init__(
        self,
        folder: Path,
        program: IntegerProgram,
        targets: Mapping[str, int] = EMULATED,
        objects: Path | None = None,
    ) -> None:
        self.folder, self.program, self.emulated, self.objects = folder, program, targets, objects
        self.facts = read_project(folder)
        if (self.facts["policy_sha256"], self.facts["arithmetic"]) != (program.policy_sha256, program.arithmetic):
            raise VerificationError(f"{folder} belongs to another policy or arithmetic; export again")
        self._work = tempfile.TemporaryDirectory()
        self._tensors = {step.name: Comparison() for step in program.steps}
        self._inputs: list[NDArray[np.uint8]] = []
        self._hashes: list[dict[str, NDArray[np.uint64]]] = []
        self._samples = self._sanitized = self._kept = 0
        elements = sum(int(np.prod(tensor.shape)) for tensor in program.tensors.values())
        self._block = max(FILE_BYTES // elements, 1)
        try:
            self._plain = self._build(TARGETS["host"])
            self._checked = self._build(TARGETS["host"], SANITIZED)
        except ExportError as error:
            self.close()
            raise VerificationError(f"{folder}: {error}") from error

    def __enter__(self) -> CComparison:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes what was compiled."""
        self._work.cleanup()

    def compare(self, inputs: NDArray[np.uint8], reference: Codes) -> None:
        """Runs the host's program on input codes ``[N, ...]`` and compares with the executor's codes."""
        for start in range(0, len(inputs), self._block):
            part = slice(start, start + self._block)
            self._compare_block(inputs[part], {name: codes[part] for name, codes in reference.items()})

    def _compare_block(self, inputs: NDArray[np.uint8], reference: Codes) -> None:
        self._compare_host(self._plain, inputs, reference)
        checked = min(len(inputs), SANITIZED_SAMPLES - self._sanitized)
        if checked > 0:
            self._compare_host(self._checked, inputs[:checked], {name: c[:checked] for name, c in reference.items()})
            self._sanitized += checked
        self._samples += len(inputs)
        wanted = max(self.emulated.values(), default=0) - self._kept
        if wanted > 0:
            kept = {name: codes[:wanted] for name, codes in reference.items()}
            self._inputs.append(inputs[:wanted])
            self._hashes.append(sample_hashes(self.program, kept))
            self._kept += len(self._inputs[-1])

    def report(self) -> CReport:
        """Runs the emulated targets and returns everything that was found."""
        sizes = symbol_bytes(TARGETS["host"], self._plain)
        header = (self.folder / "model_constants.h").read_text(encoding="utf-8")
        constants = re.findall(r"^extern const \w+ (\w+)\[\d+\];$", header, re.MULTILINE)
        return CReport(
            compiler=compiler_version(TARGETS["host"]),
            samples=self._samples,
            sanitized_samples=self._sanitized,
            tensors=self._tensors,
            targets={name: self._emulate(TARGETS[name], samples) for name, samples in self.emulated.items()},
            kernels=self.facts["kernels"],
            constants_bytes=sum(sizes[name] for name in constants),
            arena_bytes=sizes["arena"],
            planned_arena_bytes=self.facts["arena_bytes"],
            file_bytes=sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file()),
        )

    def _compare_host(self, elf: Path, inputs: NDArray[np.uint8], reference: Codes) -> None:
        found = run_codes(TARGETS["host"], elf, self.program, inputs)
        for name, comparison in self._tensors.items():
            comparison.add(found[name], reference[name])

    def _build(self, target: Target, flags: Sequence[str] = OPTIMISATION) -> Path:
        elf = Path(self._work.name) / f"{target.name} {' '.join(flags)}" / "main"
        return build_project(target, self.folder, elf, flags, self.objects)

    def _emulate(self, target: Target, samples: int) -> TargetResult:
        if gap := missing(target):
            return TargetResult(0, "", note=f"could not run: {gap}")
        try:
            inputs = np.concatenate(self._inputs)[:samples]
            elf = self._build(target)
            found = run_digests(target, elf, self.program, inputs)
        except (ExportError, VerificationError) as error:
            large = [line for line in str(error).splitlines() if "overflowed by" in line or "will not fit" in line]
            if large:  # the linker: the network is larger than the emulated board's memory
                return TargetResult(0, compiler_version(target), note=f"could not run: {large[0]}")
            return TargetResult(0, compiler_version(target), failure=str(error))
        hashes = {name: np.concatenate([part[name] for part in self._hashes])[:samples] for name in found}
        differing = tuple(name for name, value in found.items() if value != digest(hashes[name]))
        return TargetResult(len(inputs), compiler_version(target), differing)


def build_project(
    target: Target, folder: Path, elf: Path, flags: Sequence[str] = OPTIMISATION, objects: Path | None = None
) -> Path:
    """Compiles a project into a program for a target.

    Args:
        target: what for.
        folder: the project.
        elf: the program to write.
        flags: of the compiler.
        objects: folder that keeps compiled kernels and operations by content for further projects.

    Raises:
        VerificationError: the project was edited.
        ExportError: a tool is missing, or the sources do not compile.
    """
    read_project(folder)
    found = []
    headers = b"".join(path.read_bytes() for path in sorted(folder.glob("ddq_*.h")))
    for source in sorted(folder.glob("*.c")):
        output = elf.with_name(f"{elf.stem}-{source.stem}.o")
        if objects is not None and source.name.startswith("ddq_"):
            content = hashlib.sha256(repr((target, flags, headers, source.read_bytes())).encode()).hexdigest()
            output = objects / f"{source.stem}-{content[:16]}.o"
        found.append(output if output.exists() else compile_source(target, source, output, flags))
    return link(target, found, elf, flags)


def run_codes(
    target: Target, elf: Path, program: IntegerProgram, inputs: NDArray[np.uint8]
) -> dict[str, NDArray[np.uint8]]:
    """Returns every tensor's codes ``[N, ...]`` as a compiled project computes them for input codes ``[N, ...]``."""
    return read_codes(program, _run(target, elf, "codes", program, inputs), len(inputs))


def run_digests(target: Target, elf: Path, program: IntegerProgram, inputs: NDArray[np.uint8]) -> dict[str, int]:
    """Returns every tensor's digest as a compiled project computes it for input codes ``[N, ...]``."""
    return read_digests(program, _run(target, elf, "digests", program, inputs))


def symbol_bytes(target: Target, elf: Path) -> dict[str, int]:
    """Returns symbol → bytes of a compiled program, those without a size left out."""
    listed = subprocess.run([target.symbols, "-S", str(elf)], capture_output=True, text=True, check=True).stdout
    fields = [line.split() for line in listed.splitlines()]
    return {parts[3]: int(parts[1], 16) for parts in fields if len(parts) == 4}


def _run(target: Target, elf: Path, mode: str, program: IntegerProgram, inputs: NDArray[np.uint8]) -> bytes:
    (elf.parent / "input.bin").write_bytes(input_bytes(program, inputs))
    result = elf.parent / "output.bin"
    result.unlink(missing_ok=True)
    done = run(target, elf, elf.parent, (mode, "input.bin", "output.bin"))
    if done.returncode != 0 or not result.exists():
        said = (done.stdout + done.stderr).strip()[-2000:]
        raise VerificationError(f"the C program failed on {target.name} ({done.returncode}): {said or 'no message'}")
    return result.read_bytes()
