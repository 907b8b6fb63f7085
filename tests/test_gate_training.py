"""Gate gradients: the task's averaged and shared, a budget's exact and its set's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ddq_search.cost import FLASH, CostTables, Factor
from ddq_search.gate_training import GateTraining, gate_facts
from ddq_search.lagrangian import AugmentedLagrangian
from tests.networks import sample_images
from tests.test_supernet import small


def training(budgets):
    net = small("Residual", sets=len(budgets), gradient_share=1.0)
    factors = [
        Factor(FLASH, v.key, "weights", (v.name,), np.array([float(b) for b in v.candidates]))
        for v in net.space.variables
        if v.role == "weights"
    ]
    tables = CostTables(net.space, factors)
    lagrangian = AugmentedLagrangian([{FLASH: b} for b in budgets], rate=0.5)
    return net, tables, lagrangian, GateTraining(net, tables, lagrangian)


def step(net, gates, index=0, seed=0):
    net.train()
    net.zero_grad(set_to_none=True)
    gates.sample(index, torch.full((len(net.space.variables),), 0.5))
    F.cross_entropy(net(sample_images(16, seed=seed)), torch.arange(16) % 5).backward()
    gates.collect()
    gates.backward()


def test_every_set_learns_from_the_task_in_every_step():
    net, _, _, gates = training([1e9, 1e9, 1e9])  # no budget binds
    step(net, gates)
    first, *others = (own.grad for own in net.gates.own)
    assert all(torch.equal(first, other) for other in others)  # equal gates, equal gradients
    assert torch.equal(first != 0, net.gates.exists)
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in net.model.parameters() if p.ndim > 1)


def test_the_task_gradient_is_the_average_of_the_steps():
    net, _, _, gates = training([1e9])
    seen = []
    for seed in range(3):
        step(net, gates, seed=seed)
        seen.append(gates._sampled.grad.double())
    weights = torch.tensor([0.98**2, 0.98, 1.0], dtype=torch.float64)
    expected = sum(w * g for w, g in zip(weights, seen, strict=True)) / weights.sum()
    torch.testing.assert_close(gates.sensitivity / gates.weight, expected)


def test_a_budget_pushes_its_own_set_only():
    net, tables, _, gates = training([10.0, 1e9])
    step(net, gates)
    difference = (net.gates.own[0].grad - net.gates.own[1].grad).double()
    own = net.gates.own[0].detach().clone().requires_grad_()
    expected = tables.expected(net.gates.probabilities(net.gates._open(own).double()))[FLASH]
    assert gates.expected[FLASH][0].item() == pytest.approx(expected.item(), rel=1e-6)
    scale = (gates.sensitivity / gates.weight).abs().sum()
    (scale * (expected / 10 - 1) ** 2 / 2).backward()
    torch.testing.assert_close(difference, own.grad.double(), rtol=1e-3, atol=1e-6)
    assert float(difference.min()) >= 0  # towards fewer bits
    rows = [row for row, v in enumerate(net.space.variables) if v.role == "activations"]
    assert torch.count_nonzero(difference[rows]) == 0  # which cost nothing here


def test_update_moves_multipliers_and_keeps_the_window():
    net, _, lagrangian, gates = training([10.0, 1e9])
    step(net, gates)
    with torch.no_grad():
        net.gates.own[0].add_(5)
    gates.update()
    assert float(lagrangian.multipliers[0]) > 0
    assert float(lagrangian.multipliers[1]) == 0
    assert float(net.gates.own[0].detach().max()) <= 0.96


def test_backward_needs_a_sampled_step():
    _, _, _, gates = training([10.0])
    with pytest.raises(AssertionError, match="come first"):
        gates.collect()


def test_facts_for_the_history():
    net, tables, lagrangian, _ = training([10.0, 20.0])
    facts = gate_facts(net, lagrangian, tables)
    assert [target[FLASH] for target in facts["targets_by_set"]] == [10.0, 20.0]
    assert len(facts["expected_by_set"]) == 2
    assert set(facts["gates"]) == {v.name for v in net.space.searched}
    assert all(sum(p) == pytest.approx(1, abs=1e-3) for p in facts["gates"].values())


def test_the_pull_on_gates_and_their_way_by_hand():
    """From ĝ = 0.6, c = (0.8, 0.64) and p = (0.2, 0.16, 0.64); at ĝ = 0, c = (½, ¼) and p = (½, ¼, ¼)."""
    net, _, _, gates = training([10.0, 20.0])
    first, second, *rest = [v.name for v in net.space.searched]
    rows = [index for index, v in enumerate(net.space.variables) if v.name in (first, second)]
    with torch.no_grad():
        net.gates.own[0][rows[0]] = 0.0
    gates.sensitivity[rows[1]] = torch.tensor([0.3, -0.4], dtype=torch.float64)
    gates.weight.fill_(0.1)
    facts = gates.facts()
    assert facts["gate_movement"] == {
        first: 0.195,
        second: 0.0,
        **dict.fromkeys(rest, 0.0),
    }  # ½ (0.3 + 0.09 + 0.39) / 2
    assert facts["gate_gradient_norms"] == {first: 0.0, second: 5.0, **dict.fromkeys(rest, 0.0)}
    assert set(facts) > set(gate_facts(net, gates._lagrangian, gates._tables))


def test_before_the_first_step_nothing_pulls_and_nothing_has_moved():
    net, _, _, gates = training([10.0])
    facts = gates.facts()
    assert facts["gate_movement"] == facts["gate_gradient_norms"] == {v.name: 0.0 for v in net.space.searched}


def test_the_pull_is_that_of_the_averaged_task_gradient():
    net, _, _, gates = training([10.0])
    step(net, gates)
    gradient = gates._sampled.grad.double()  # after one step, the average is its gradient
    norms = gates.facts()["gate_gradient_norms"]
    for row, variable in enumerate(net.space.variables):
        if len(variable.candidates) > 1:
            assert norms[variable.name] == pytest.approx(gradient[row].norm().item(), rel=1e-3)
            assert norms[variable.name] > 0
