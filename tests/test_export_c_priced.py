"""One price: what a profile of our kernels prices is what the C project holds, byte for byte and kernel for kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ddq_search.cost import FLASH, CostTables
from ddq_search.export.c.project import write_c_project
from ddq_search.export.c.registry import all_kernels, executes
from ddq_search.integer.lowering import lower
from ddq_search.integer.program import Weighted
from ddq_search.space import build_space
from hardware_models import cost_model, list_profiles, load_profile
from tests.networks import MODELS, random_network

OWN = [name for name in list_profiles() if load_profile(name).runtime_key == "ddq-c"]


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize("device", OWN)
def test_the_project_is_what_was_priced(device: str, model: str, tmp_path: Path) -> None:
    """Random bits per tensor: the priced kernels execute the layers, flash is the price, the arena the plan."""
    generator, cost = np.random.default_rng(len(device) + len(model)), cost_model(device)
    network, _ = random_network(model, 0, lambda _: int(generator.choice([2, 4, 8])))
    program = lower(network, cost.arithmetic)
    space = build_space(network.graph, cost)
    policy = {v.name: network.policy[v.name] for v in space.variables}
    kernels = cost.kernels(network.graph, space, policy)
    for step in program.steps:
        if isinstance(step, Weighted):
            assert executes(all_kernels()[kernels[step.name]], program, step)
    plan = cost.plan(network.graph, space, policy)
    project = write_c_project(program, tmp_path, plan=plan, kernels=kernels)
    price = CostTables(space, cost.factors(network.graph, space)).price(policy)
    assert project.constants_bytes == price[FLASH]
    assert project.arena_bytes == plan.total == cost.arena_bytes(network.graph, space, policy)
