"""The C export of a policy: kernels as priced, the arena planned for them, and what changes where they were not.

A policy that was priced for another runtime than our C kernels is priced again with the profile of our kernels on the
same core, where there is one, and the user is told both figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ddq_search.budget import LABELS, show
from ddq_search.cost import LATENCY, PEAK_RAM, CostTables
from ddq_search.errors import CostError
from ddq_search.export.c.contract import Contract
from ddq_search.export.c.kernels import Family, Kernel
from ddq_search.export.c.project import CProject, write_c_project
from ddq_search.export.c.registry import all_kernels, choose_kernels, executes, scratch_bytes
from ddq_search.integer.program import IntegerProgram, Weighted
from ddq_search.policy import Policy
from ddq_search.problem import Problem
from hardware_models.memory import plan_arena
from hardware_models.model import ArmCostModel, cost_model
from hardware_models.profile import list_profiles, load_profile
from search_spaces.image_source import ImageSource
from search_spaces.patch_source import PatchSource

OWN_RUNTIME = "ddq-c"
"""Runtime of profiles that price our C kernels."""
CORES: Mapping[Family, tuple[str, ...]] = {
    "dsp": ("Cortex-M4", "Cortex-M7", "Cortex-M33", "Cortex-M35P"),
    "helium": ("Cortex-M52", "Cortex-M55", "Cortex-M85"),
    "neon": ("Cortex-A35", "Cortex-A53", "Cortex-A57", "Cortex-A72", "Cortex-A73"),
    "neon_dot": ("Cortex-A55", "Cortex-A75", "Cortex-A76", "Cortex-A77", "Cortex-A78", "Cortex-A510", "Cortex-X1"),
}
"""Instruction set → cores that have it. Source: Arm's technical reference manuals of the cores."""
ALIGNMENT_BYTES = 16
"""Of an arena whose device states none."""


def export_c(problem: Problem, program: IntegerProgram, policy: Policy, folder: Path) -> tuple[CProject, list[str]]:
    """Writes the C project of a policy and returns it with lines that say how it differs from what was priced.

    Raises:
        ExportError: see `write_c_project`.
    """
    own = _own_cost_model(problem)
    priced = {} if own is None else own.kernels(problem.graph, problem.space, policy.bits)
    family = (own.profile.kernel_family if own is not None else None) or family_of(getattr(problem.device, "core", ""))
    chosen = choose_kernels(program, family, _executable(program, priced))
    bits = {name: tensor.grid.bits for name, tensor in program.tensors.items()}
    device = problem.device
    alignment = device.profile.memory.alignment_bytes if isinstance(device, ArmCostModel) else ALIGNMENT_BYTES
    plan = plan_arena(problem.graph, bits, scratch_bytes(program, chosen), alignment)
    names = {layer: kernel.name for layer, kernel in chosen.items()}
    project = write_c_project(program, folder, plan=plan, kernels=names, contract=_contract(problem))
    return project, list(_differences(problem, policy, own, priced, chosen, project))


def family_of(core: str) -> Family:
    """Returns the family of kernels that a core executes best, ``portable`` for one that is not known.

    >>> family_of("Cortex-M7"), family_of("Cortex-A76"), family_of("")
    ('dsp', 'neon_dot', 'portable')
    """
    return next((family for family, cores in CORES.items() if core in cores), "portable")


def _own_cost_model(problem: Problem) -> ArmCostModel | None:
    """The priced device where it prices our kernels, else the shipped profile of our kernels on the same core."""
    device = problem.device
    if not isinstance(device, ArmCostModel):
        return None
    if device.profile.runtime_key == OWN_RUNTIME:
        return device
    for name in list_profiles():
        profile = load_profile(name)
        if profile.runtime_key == OWN_RUNTIME and profile.core == device.core:
            return cost_model(name)
    return None


def _executable(program: IntegerProgram, priced: Mapping[str, str]) -> dict[str, str]:
    layers = {step.name: step for step in program.steps if isinstance(step, Weighted)}
    known = {layer: all_kernels()[name] for layer, name in priced.items() if name in all_kernels()}
    return {layer: kernel.name for layer, kernel in known.items() if executes(kernel, program, layers[layer])}


def _contract(problem: Problem) -> Contract:
    if isinstance(problem.source, PatchSource):
        return Contract(
            "code = the pixel of the small image as it is, 0 to 255, channels in the order of the training data",
            "the image enlarged; pixel = 255 * MODEL_OUTPUT_SCALE * (code - MODEL_OUTPUT_ZERO_POINT), cut to 0 to 255",
        )
    if not isinstance(problem.source, ImageSource):
        return Contract()
    return Contract(
        "code = the pixel as it is, 0 to 255, channels in the order of the training data; normalisation is folded in",
        "scores by class; the answer is the class of the largest code",
        problem.source.splits.classes,
    )


def _differences(
    problem: Problem, policy: Policy, own: ArmCostModel | None, priced: Mapping[str, str],
    chosen: Mapping[str, Kernel], project: CProject,
) -> Iterator[str]:  # fmt: skip
    price, reference = problem.pricing.price(policy.bits), problem.pricing.reference
    device = problem.device
    if own is None:
        yield f"priced for {device.name}; there is no profile of our C kernels for its core: latency not priced"
    elif own is not device:
        yield f"priced for {device.name}, not for our C kernels; by {own.name}:"
        try:
            again = CostTables(problem.space, own.factors(problem.graph, problem.space)).price(policy.bits)
        except CostError as error:
            yield f"  no price: {error}"
        else:
            before, after = (show(LATENCY, value[LATENCY], reference) for value in (price, again))
            yield f"  {LABELS[LATENCY]} {after}, was {before} ({own.calibration})"
    others = [f"{layer} ({kernel.name})" for layer, kernel in chosen.items() if priced.get(layer) != kernel.name]
    if own is not None and others:
        yield f"executed by another kernel than priced: {', '.join(others)}"
    if project.arena_bytes != price[PEAK_RAM]:
        yield f"arena {project.arena_bytes} bytes with the scratch of these kernels, priced {price[PEAK_RAM]:.0f}"
