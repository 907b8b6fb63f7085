"""Does the joint search find what was planted? One layer is exact at 2 bits, the other needs its bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddq_search.cost import FLASH, LATENCY, CostTables, Factor
from ddq_search.lagrangian import AugmentedLagrangian
from ddq_search.projector import Projector
from ddq_search.space import Rule, build_space
from ddq_search.supernet import Supernet
from ddq_search.trace import trace
from ddq_search.training import cosine
from tests.toys import AnyDevice

WIDTH, STEPS = 24, 240
LAYERS, BYTES = ("first", "second"), [2.0, 4.0, 8.0]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors are tiny
    yield
    torch.set_num_threads(before)


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


def search(model, costs, targets, seed, candidates=(2, 4, 8), steps=STEPS):
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
    net = Supernet(model, graph, space, sets=len(targets), gradient_share=0.5)
    generator = torch.Generator().manual_seed(seed + 100)
    batch = lambda: torch.randn(32, WIDTH, generator=generator)  # noqa: E731
    net.calibrate([batch()])
    lagrangian = AugmentedLagrangian(targets, rate=0.1)  # dual slower than primal: no overshoot far below the budget
    rate = min(0.1, max(0.01, 6 * len(targets) / steps))
    groups = [
        (torch.optim.SGD(net.model.parameters(), lr=0.1, momentum=0.9, nesterov=True), 0.01),
        (torch.optim.Adam(net.quantizers.parameters()), 0.01),
        (torch.optim.Adam(net.gates.parameters(), betas=(0.9, 0.99)), rate),
    ]
    net.train()
    for number in range(steps):
        index = number % len(targets)
        for optimizer, peak in groups:
            optimizer.param_groups[0]["lr"] = peak * cosine(number / steps)
            optimizer.zero_grad(set_to_none=True)
        x = batch()
        with torch.no_grad():
            wanted = teacher(x)
        probabilities = net.sample(index, torch.rand(len(space.variables), generator=generator))
        expected = tables.expected(probabilities)
        loss = F.mse_loss(net(x), wanted) / wanted.var() + lagrangian.term(index, expected)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.model.parameters(), 5.0)
        for optimizer, _ in groups:
            optimizer.step()
        net.gates.project()
        lagrangian.update(index, {cost: value.detach() for cost, value in expected.items()})
    policies, expectations = [], []
    for index, limits in enumerate(targets):
        p = net.gates.probabilities(net.gates.cumulative(index)).detach()
        expectations.append({cost: float(value) for cost, value in tables.expected(p).items()})
        policy = Projector(tables).most_likely(np.log(np.clip(p.numpy(), 1e-6, 1)), limits)
        policies.append((policy["weights/first"], policy["weights/second"]))
    return policies, net, expectations


def expected_bits(net, index, bits):
    chance = net.gates.probabilities(net.gates.cumulative(index)).detach()
    return [float((chance[net._row[f"weights/{layer}"]] * torch.tensor(bits)).sum()) for layer in LAYERS]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ternary", LAYERS)
def test_bits_go_to_the_layer_that_needs_them(ternary, seed):
    """(2, 8) and (8, 2) both fit the budget; one of them keeps the loss."""
    model = Planted(ternary, seed).eval()
    (policy,), *_ = search(model, {FLASH: {"first": [2.0, 8.0], "second": [2.0, 8.0]}}, [{FLASH: 10.0}], seed, (2, 8))
    assert policy == ((2, 8) if ternary == "first" else (8, 2))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("ternary", LAYERS)
def test_the_sensitive_layer_leads_at_three_candidates(ternary, seed):
    model = Planted(ternary, seed).eval()
    (policy,), net, expected = search(model, {FLASH: dict.fromkeys(LAYERS, BYTES)}, [{FLASH: 7.5}], seed)
    low, high = sorted(expected_bits(net, 0, [2.0, 4.0, 8.0]))
    first, second = expected_bits(net, 0, [2.0, 4.0, 8.0])
    assert (first < second) == (ternary == "first")
    assert high > low + 0.3
    assert policy != ((4, 2) if ternary == "first" else (2, 4))
    assert expected[0][FLASH] < 1.03 * 7.5


@pytest.mark.parametrize("seed", range(2))
def test_sets_of_different_budgets_are_searched_at_the_same_time(seed):
    model = Planted("first", seed).eval()
    targets = [{FLASH: 4.0}, {FLASH: 7.5}, {FLASH: 16.0}]
    policies, net, expected = search(model, {FLASH: dict.fromkeys(LAYERS, BYTES)}, targets, seed, steps=3 * STEPS)
    assert policies[0] == (2, 2)
    assert all(first <= second for first, second in policies)
    assert expected[0][FLASH] < expected[1][FLASH] < expected[2][FLASH]
    for index in (1, 2):  # the sets share what they learn
        first, second = expected_bits(net, index, [2.0, 4.0, 8.0])
        assert first < second


@pytest.mark.parametrize("seed", range(2))
def test_a_layer_that_is_slower_at_fewer_bits_keeps_its_bits_unless_flash_binds(seed):
    model = Planted("first", seed).eval()
    costs = {LATENCY: {"first": [1.6, 1.0], "second": [1.6, 1.0]}, FLASH: {"first": [4, 8], "second": [4, 8]}}
    targets = [{LATENCY: 2.1}, {LATENCY: 2.7, FLASH: 13.0}]
    policies, *_ = search(model, costs, targets, seed, candidates=(4, 8), steps=2 * STEPS)
    assert policies == [(8, 8), (4, 8)]
