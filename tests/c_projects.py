"""C projects of test networks, and their programs linked with a runtime that is compiled once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddq_search.discrete import DiscreteNetwork
from ddq_search.export.c.observations import input_bytes, read_codes
from ddq_search.export.c.project import CProject, write_c_project
from ddq_search.export.c.proof import SANITIZED
from ddq_search.export.c.registry import choose_kernels, scratch_bytes
from ddq_search.export.c.targets import RUNTIME, WARNINGS
from ddq_search.integer.program import IntegerProgram
from hardware_models.memory import ArenaPlan, plan_arena


def planned(network: DiscreteNetwork, program: IntegerProgram, family: str = "portable") -> ArenaPlan:
    """Returns the arena of a program whose layers run on a family's kernels."""
    bits = {name: tensor.grid.bits for name, tensor in program.tensors.items()}
    return plan_arena(network.graph, bits, scratch_bytes(program, choose_kernels(program, family)), 16)


def written(network: DiscreteNetwork, program: IntegerProgram, folder: Path, family: str = "portable") -> CProject:
    """Writes the project of a program for a family's kernels."""
    names = {layer: kernel.name for layer, kernel in choose_kernels(program, family).items()}
    return write_c_project(program, folder, plan=planned(network, program, family), kernels=names)


def random_codes(program: IntegerProgram, samples: int, seed: int) -> NDArray[np.uint8]:
    """Returns input codes over the whole range of the input's grid."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2**program.input.grid.bits, (samples, *program.input.shape)).astype(np.uint8)


def runtime_sources(*, portable_only: bool = False) -> list[str]:
    """Returns the C files of kernels and operations, those written for an instruction set on demand left out."""
    names = sorted(path.name for path in RUNTIME.glob("ddq_*.c"))
    special = ("ddq_neon", "ddq_dsp", "ddq_helium")
    return [name for name in names if not (portable_only and name.startswith(special))]


class CompiledRuntime:
    """The runtime's objects, sanitized, compiled once; networks are then linked with them."""

    def __init__(self, folder: Path, sources: Iterable[str]) -> None:
        self.folder = folder
        self.objects = []
        for name in sources:
            self.objects.append(str(folder / f"{name}.o"))
            command = ["cc", *WARNINGS, *SANITIZED, "-c", str(RUNTIME / name), "-o", self.objects[-1]]
            subprocess.run(command, check=True)

    def codes(
        self, project: CProject, program: IntegerProgram, inputs: NDArray[np.uint8]
    ) -> dict[str, NDArray[np.uint8]]:
        """Returns every tensor's codes as the project computes them."""
        parts = ("model.c", "model_constants.c", "model_layers.c", "main.c")
        unit = self.folder / "unit.c"
        unit.write_text("".join(f'#include "{project.folder / part}"\n' for part in parts))
        flags = [flag if flag != "-O1" else "-O0" for flag in SANITIZED]
        command = ["cc", *WARNINGS, *flags, "-I", str(project.folder), str(unit), *self.objects, "-o", "main"]
        subprocess.run(command, check=True, cwd=self.folder)
        (self.folder / "input.bin").write_bytes(input_bytes(program, inputs))
        subprocess.run(["./main", "codes", "input.bin", "codes.bin"], check=True, cwd=self.folder)
        return read_codes(program, (self.folder / "codes.bin").read_bytes(), len(inputs))
