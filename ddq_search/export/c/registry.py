"""All kernels by name, and the rule that gives every layer one where the cost model has not."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from typing import get_args

import numpy as np

from ddq_search.errors import ExportError
from ddq_search.export.c import portable
from ddq_search.export.c.geometry import layer_shape
from ddq_search.export.c.kernels import Family, Kernel
from ddq_search.export.c.portable import WIDTHS
from ddq_search.integer.program import INT32_MAX, IntegerProgram, Weighted, accumulator_bound
from ddq_search.precision import activation_code_range, storage_bits

FAMILIES: tuple[Family, ...] = get_args(Family)

PREFERENCE: Mapping[Family, tuple[Family, ...]] = {
    "portable": ("portable",),
    "dsp": ("dsp", "portable"),
    "helium": ("helium", "dsp", "portable"),
    "neon": ("neon", "portable"),
    "neon_dot": ("neon_dot", "neon", "portable"),
}
"""Instruction set of a core → the families it executes, best first."""

LARGEST_RESULT = 2**30
"""Magnitude below which a requantized accumulator must stay for kernels that keep it in int32."""


@cache
def kernels_of(family: Family) -> tuple[Kernel, ...]:
    """Returns the kernels written for an instruction set, the most special first."""
    if family == "portable":
        return portable.KERNELS
    found: tuple[Kernel, ...] = importlib.import_module(f"ddq_search.export.c.{family}").KERNELS
    return found


@cache
def all_kernels() -> Mapping[str, Kernel]:
    """Returns every kernel by the name of its C function."""
    return {kernel.name: kernel for family in FAMILIES for kernel in kernels_of(family)}


def executes(kernel: Kernel, program: IntegerProgram, step: Weighted) -> bool:
    """Whether a kernel computes a layer exactly: class, widths, shape, kind of weights and ranges of its sums."""
    shape, source = layer_shape(program, step), program.tensors[step.inputs[0]].grid
    fits = (
        shape.layer_class in kernel.classes
        and storage_bits(step.bits) in kernel.weight_bits
        and storage_bits(source.bits) in kernel.activation_bits
        and kernel.codebook == (step.codebook is not None)
        and kernel.points == bool(step.points)
        and kernel.executes(shape)
    )
    return fits and (kernel.offset is None or _sums_stay_small(kernel.offset, program, step))


def choose_kernels(
    program: IntegerProgram, family: Family = "portable", given: Mapping[str, str] | None = None
) -> dict[str, Kernel]:
    """Returns the kernel of every weighted layer.

    Args:
        program: what to execute.
        family: instruction set of the core.
        given: layer → kernel name, as the cost model decided; for other layers the first kernel of the family that
            executes them is taken, the portable ones last. Uses of one module take one kernel.

    Raises:
        ExportError: a tensor's width is none of the C export's, a given name is unknown, or its kernel does not execute
            the layer.
    """
    for tensor in program.tensors.values():
        if tensor.grid.bits > 8 or storage_bits(tensor.grid.bits) not in WIDTHS:
            raise ExportError(
                f"{tensor.name!r} has {tensor.grid.bits}-bit activations; the C export stores them in 2, 4 or 8 bits"
            )
    layers = [step for step in program.steps if isinstance(step, Weighted)]
    given = given or {}
    for name in given:
        if name not in {step.name for step in layers}:
            raise ExportError(f"no weighted layer {name!r} in the program; a kernel was chosen for it")
    candidates = [kernel for member in PREFERENCE[family] for kernel in kernels_of(member)]
    chosen: dict[str, Kernel] = {}
    for step in layers:
        uses = [use for use in layers if use.module == step.module]
        if step.name in given:
            chosen[step.name] = _given(given[step.name], program, step)
        else:
            chosen[step.name] = next(k for k in candidates if all(executes(k, program, use) for use in uses))
    return chosen


def scratch_bytes(program: IntegerProgram, chosen: Mapping[str, Kernel]) -> dict[str, int]:
    """Returns layer → bytes of scratch that its kernel needs."""
    result = {}
    for step in program.steps:
        if isinstance(step, Weighted):
            shape, source = layer_shape(program, step), program.tensors[step.inputs[0]].grid
            widths = storage_bits(step.bits), storage_bits(source.bits)
            result[step.name] = chosen[step.name].scratch_bytes(shape, *widths)
    return result


def _given(name: str, program: IntegerProgram, step: Weighted) -> Kernel:
    kernel = all_kernels().get(name)
    if kernel is None:
        raise ExportError(f"layer {step.name!r}: no kernel {name!r}; there are {', '.join(all_kernels())}")
    if not executes(kernel, program, step):
        bits = program.tensors[step.inputs[0]].grid.bits
        raise ExportError(
            f"layer {step.name!r}: kernel {name} does not execute it ({layer_shape(program, step).layer_class}, "
            f"weights of {step.bits} bits, inputs of {bits} bits)"
        )
    return kernel


def _sums_stay_small(offset: int, program: IntegerProgram, step: Weighted) -> bool:
    """Whether sums over codes minus a kernel's own offset, and what they are requantized to, fit its int32."""
    source = program.tensors[step.inputs[0]].grid
    largest_code = activation_code_range(source.bits)[1]
    weights = step.weights.astype(np.int64).reshape(step.rows, -1)
    folded = step.bias + (offset - source.zero_point) * weights.sum(1)
    sums = np.abs(folded) + np.abs(weights).sum(1) * max(offset, largest_code - offset)
    factor = step.multiplier * 2.0 ** (step.shift.astype(np.float64) - 31)
    results = accumulator_bound(step, source) * factor
    return bool(sums.max() <= INT32_MAX and results.max() < LARGEST_RESULT)
