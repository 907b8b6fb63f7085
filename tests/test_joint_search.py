"""Does the joint search find what was planted? One layer is exact at 2 bits, the other needs its bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddq_search.config import SearchConfig
from ddq_search.cost import FLASH, LATENCY, CostTables, Factor
from ddq_search.gate_training import GateTraining
from ddq_search.lagrangian import AugmentedLagrangian
from ddq_search.projector import Projector
from ddq_search.quantizers.choice_of_families import UNIFORM, Quantizers
from ddq_search.space import Rule, build_space
from ddq_search.supernet import Supernet
from ddq_search.trace import trace
from ddq_search.training import cosine
from tests.toys import AnyDevice

WIDTH, STEPS = 24, 240
LAYERS, BYTES = ("first", "second"), [2.0, 4.0, 8.0]


pytestmark = pytest.mark.usefixtures("one_thread")


class Planted(nn.Module):
    """Two square layers; the ternary one loses nothing at 2 bits, the heavy-tailed one much at 4."""

    def __init__(self, ternary: str, seed: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in (self.first, self.second):
                spread = torch.randn(WIDTH, WIDTH, generator=generator) ** 3  # many small weights, a few large
                layer.weight.copy_(spread / (15 * WIDTH) ** 0.5)
            exact = getattr(self, ternary).weight
            exact.copy_(torch.randint(-1, 2, exact.shape, generator=generator) / WIDTH**0.5)

    def forward(self, x):
        return self.second(F.relu(self.first(x)))


def search(model, costs, targets, seed, candidates=(2, 4, 8), steps=STEPS, quantizers=UNIFORM, gates_of="sampled"):
    """Joint training as `ddq_search.search` does it; returns a policy and the expected costs per set, and the net."""
    graph = trace(model, torch.zeros(2, WIDTH))
    rules = [Rule("activations/*", (8,)), Rule("weights/*", candidates)]
    space = build_space(graph, AnyDevice(), rules=rules)
    factors = [
        Factor(cost, layer, "compute", (f"weights/{layer}",), np.array(table, dtype=float))
        for cost, by_layer in costs.items()
        for layer, table in by_layer.items()
    ]
    tables = CostTables(space, factors)
    teacher = model
    net = Supernet(model, graph, space, sets=len(targets), gradient_share=0.5, quantizers=quantizers)
    generator = torch.Generator().manual_seed(seed + 100)
    batch = lambda: torch.randn(32, WIDTH, generator=generator)  # noqa: E731
    net.calibrate([batch()])
    defaults = SearchConfig()
    lagrangian = AugmentedLagrangian(targets, penalty=defaults.penalty, rate=defaults.multiplier_rate)
    gates = GateTraining(net, tables, lagrangian)
    groups = [
        (torch.optim.SGD(net.model.parameters(), lr=0.1, momentum=0.9, nesterov=True), 0.01),
        (torch.optim.Adam(net.quantizers.parameters()), 0.01),
        (torch.optim.Adam(net.gates.parameters(), betas=(0.9, 0.99)), min(0.1, max(0.004, 12 / steps))),
    ]
    net.train()
    for number in range(steps):
        for optimizer, peak in groups:
            optimizer.param_groups[0]["lr"] = peak * cosine(number / steps)
            optimizer.zero_grad(set_to_none=True)
        x = batch()
        with torch.no_grad():
            wanted = teacher(x)
        drawn = torch.rand(len(space.variables), generator=generator)
        gates.sample(number % len(targets), drawn if gates_of == "sampled" else None)
        (F.mse_loss(net(x), wanted) / wanted.var()).backward()
        gates.collect()
        gates.backward()
        torch.nn.utils.clip_grad_norm_(net.model.parameters(), 5.0)
        for optimizer, _ in groups:
            optimizer.step()
        gates.update()
    policies, expectations = [], []
    for index, limits in enumerate(targets):
        p = net.gates.probabilities(net.gates.cumulative(index)).detach()
        expectations.append({cost: float(value) for cost, value in tables.expected(p).items()})
        policy = Projector(tables).most_likely(net.gates.scores(index).numpy(), limits).policy
        policies.append((policy["weights/first"], policy["weights/second"]))
    return policies, net, expectations


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ternary", LAYERS)
def test_bits_go_to_the_layer_that_needs_them(ternary, seed):
    """(2, 8) and (8, 2) both fit the budget; one of them keeps the loss."""
    model = Planted(ternary, seed).eval()
    (policy,), *_ = search(model, {FLASH: {"first": [2.0, 8.0], "second": [2.0, 8.0]}}, [{FLASH: 10.0}], seed, (2, 8))
    assert policy == ((2, 8) if ternary == "first" else (8, 2))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ternary", LAYERS)
def test_one_search_spreads_over_its_budgets(ternary, seed):
    """Every set uses its own budget, and the sensitive layer never gets fewer bits than the other."""
    model = Planted(ternary, seed).eval()
    budgets = [4.2, 6.0, 8.0, 10.0, 12.0]
    table = {"first": BYTES, "second": BYTES}
    policies, _, expected = search(model, {FLASH: table}, [{FLASH: b} for b in budgets], seed, steps=2 * STEPS)
    ordered = [policy if ternary == "first" else policy[::-1] for policy in policies]
    assert ordered[:2] == [(2, 2), (2, 4)]
    assert all(low <= high for low, high in ordered)
    assert [sum(policy) for policy in ordered] == sorted(sum(policy) for policy in ordered)
    assert sum(ordered[-1]) > 8
    used = [found[FLASH] / budget for found, budget in zip(expected, budgets, strict=True)]
    assert all(0.85 < share < 1.1 for share in used), used


@pytest.mark.parametrize("seed", range(2))
def test_a_layer_that_is_slower_at_fewer_bits_keeps_its_bits_unless_flash_binds(seed):
    model = Planted("first", seed).eval()
    costs = {LATENCY: {"first": [1.6, 1.0], "second": [1.6, 1.0]}, FLASH: {"first": [4, 8], "second": [4, 8]}}
    targets = [{LATENCY: 2.1}, {LATENCY: 2.7, FLASH: 13.0}]
    policies, *_ = search(model, costs, targets, seed, candidates=(4, 8), steps=2 * STEPS)
    assert policies == [(8, 8), (4, 8)]


@pytest.mark.parametrize(
    ("gate_gradient", "gates_of", "expected"),
    [("neighbours", "sampled", (2, 8)), ("neighbours", "thresholded", (2, 8)), ("through_z", "sampled", (2, 8)),
     ("constant_z", "sampled", (8, 2))],
)  # fmt: skip
def test_why_gate_gradients_go_through_z(gate_gradient, gates_of, expected):
    """With Z_U as a constant the mean of the levels leaks into the gates, and the bits go to the wrong layer."""
    model = Planted("first", 0).eval()
    quantizers = Quantizers(("averaged",), options={"gate_gradient": gate_gradient})
    table = {FLASH: {"first": [2.0, 8.0], "second": [2.0, 8.0]}}
    (policy,), *_ = search(model, table, [{FLASH: 10.0}], 0, (2, 8), quantizers=quantizers, gates_of=gates_of)
    assert policy == expected
