"""Device-free costs by hand and by their laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ddq_search.cost import BIT_OPERATIONS, ENERGY, CostTables
from ddq_search.space import build_space
from ddq_search.trace import trace
from hardware_models import cost_model, device_free


class Twice(nn.Module):
    """A shared convolution used twice, then x + x and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, 1, 1)
        self.fc = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.conv(x))
        return self.fc((x + x).mean((2, 3)))


@pytest.fixture(scope="module")
def tables() -> CostTables:
    graph, cost = trace(Twice(), torch.zeros(1, 2, 4, 4)), cost_model("cortex-a53-rpi3-lowbit-neon")
    space = build_space(graph, cost)
    assert device_free.totals(graph) == {"macs": 2 * 16 * 36 + 6, "parameters": 36 + 6}
    return CostTables(space, list(device_free.factors(graph, space)))


def bits(tables: CostTables, weights: int, activations: int) -> dict[str, int]:
    wanted = {"weights": weights, "activations": activations}
    return {
        v.name: wanted[v.role] if wanted[v.role] in v.candidates else v.candidates[-1] for v in tables.space.variables
    }


def test_bit_operations_by_hand(tables: CostTables) -> None:
    price = tables.price(bits(tables, 4, 2))
    first, second = 576 * 4 * 8, 576 * 4 * 2  # the input stays at 8 bits
    assert price[BIT_OPERATIONS] == first + second + 6 * 4 * 2


def test_energy_by_hand(tables: CostTables) -> None:
    price = tables.price(bits(tables, 8, 8))
    products = 2 * 576 * 0.3 + 6 * 0.3
    sums = 64 * 0.1 + 32 * 0.1  # the add reads its tensor twice, the mean once
    moved = 2 * (36 + 32 + 32) + (64 + 32) + (32 + 2) + (6 + 2 + 3)
    assert price[ENERGY] == pytest.approx((products + sums + moved * 2.5) * 1e-12, rel=1e-12)


def test_more_bits_never_cost_less(tables: CostTables) -> None:
    for factor in tables.factors:
        for axis in range(factor.table.ndim):
            assert (np.diff(factor.table, axis=axis) >= 0).all()
