"""The contract of every cost model, ours and yours, as checks that a test calls.

    from hardware_models.contract import check, example_graphs

    @pytest.mark.parametrize("name", example_graphs())
    def test_contract(name):
        check(MyBoard(), example_graphs()[name])

A check raises `AssertionError` with what is wrong and where.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import nn

from ddq_search.cost import COSTS, FLASH, LATENCY, PEAK_RAM, CostModel, CostTables
from ddq_search.graph import ModelGraph
from ddq_search.policy import uniform
from ddq_search.space import SearchSpace, build_space
from ddq_search.trace import trace

CHOICES = ((8, 8), (4, 8), (2, 2), (4, 2))
"""(weight bits, activation bits) of the policies that are priced; the nearest candidates are taken."""


def check(model: CostModel, graph: ModelGraph) -> None:
    """Runs every check on one graph."""
    space = build_space(graph, model)
    tables = CostTables(space, model.factors(graph, space))
    check_facts(model, graph, tables)
    check_expectations(tables)
    check_policies(model, graph, space, tables)
    check_flash(tables)
    check_gradients(tables)


def check_facts(model: CostModel, graph: ModelGraph, tables: CostTables) -> None:
    """The model says what it is, every operation has a latency, and all costs are there."""
    _require(bool(model.name), "the model has no name")
    _require(
        model.calibration.startswith(("calibrated: ", "uncalibrated: ")) and "\n" not in model.calibration,
        f"calibration must be one line that starts with 'calibrated: ' or 'uncalibrated: ', not {model.calibration!r}",
    )
    unpriced = set(graph.nodes) - {factor.operation for factor in tables.factors if factor.cost == LATENCY}
    _require(not unpriced, f"operations without a latency (a free one has a zero): {sorted(unpriced)}")
    _require(tables.costs == COSTS, f"costs {tables.costs}, expected {COSTS}")


def check_expectations(tables: CostTables) -> None:
    """An expectation lies between the sums of the smallest and of the largest entries."""
    rows = random_probabilities(tables.space)
    expected = tables.expected(rows)
    for cost in tables.costs:
        if cost != PEAK_RAM:
            found = [factor.table for factor in tables.factors if factor.cost == cost]
            low, high = sum(float(table.min()) for table in found), sum(float(table.max()) for table in found)
            value = float(expected[cost])
            _require(low * (1 - 1e-9) <= value <= high * (1 + 1e-9), f"{cost}: {value} is outside {low} … {high}")


def check_policies(model: CostModel, graph: ModelGraph, space: SearchSpace, tables: CostTables) -> None:
    """A policy's price is the expectation at one-hot, to the last digit, and its arena holds the priced peak."""
    for weight_bits, act_bits in CHOICES:
        policy = uniform(space, weight_bits, act_bits)
        price = tables.price(policy)
        one_hot = {cost: float(value) for cost, value in tables.expected(tables.one_hot(policy)).items()}
        _require(price == one_hot, f"w{weight_bits}a{act_bits}: price {price} is not the one-hot expectation {one_hot}")
        arena = model.arena_bytes(graph, space, policy)
        _require(
            price[PEAK_RAM] <= arena <= 1.5 * price[PEAK_RAM],
            f"w{weight_bits}a{act_bits}: an arena of {arena} bytes for a priced peak of {price[PEAK_RAM]:.0f}",
        )


def check_flash(tables: CostTables) -> None:
    """More bits never take less flash."""
    for factor in tables.factors:
        if factor.cost == FLASH and factor.table.ndim:
            _require(bool((np.diff(factor.table) >= 0).all()), f"flash of {factor.operation!r} falls with more bits")


def check_gradients(tables: CostTables) -> None:
    """Expected latency and flash have the gradients that finite differences have."""
    rows = random_probabilities(tables.space).requires_grad_()
    for cost in (LATENCY, FLASH):
        scale = 1.0 / max(float(tables.expected(rows)[cost].detach()), 1e-30)
        torch.autograd.gradcheck(lambda p, c=cost, s=scale: tables.expected(p)[c] * s, (rows,))


def random_probabilities(space: SearchSpace) -> torch.Tensor:
    """Returns ``[V, C]`` probabilities drawn with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(len(space.variables), max(len(v.candidates) for v in space.variables), dtype=torch.float64)
    for row, variable in enumerate(space.variables):
        size = len(variable.candidates)
        rows[row, :size] = torch.rand(size, generator=generator, dtype=torch.float64).softmax(0)
    return rows


@cache
def example_graphs() -> dict[str, ModelGraph]:
    """Returns name → a small graph; together they hold every kind of operation and of weighted layer."""
    return {
        "unusual": trace(Unusual(), torch.zeros(1, 8, 8, 8)),
        "perceptron": trace(nn.Sequential(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3)), torch.zeros(1, 12)),
    }


class Unusual(nn.Module):
    """A module used twice, x + x, a standing activation, mul, grouped and depthwise convolutions, concat, pools."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(8, 8, 3, 1, 1)
        self.grouped = nn.Conv2d(8, 8, 3, 1, 1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, 8, H, W]`` → ``[N, 5]``."""
        x = self.shared(self.shared(x))
        x = nn.functional.hardswish(x + x)
        y = nn.functional.max_pool2d(self.depthwise(self.grouped(x)), 2)
        y = y * torch.sigmoid(self.gate(nn.functional.adaptive_avg_pool2d(y, 1)))
        z = nn.functional.avg_pool2d(x, 2)
        classes: torch.Tensor = self.fc(torch.cat([y, z], 1).mean((2, 3)))
        return classes


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise AssertionError(problem)
