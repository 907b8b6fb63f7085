"""The accounting of papers: exact bits of weights, bit operations for time, and float32 among the candidates."""

from __future__ import annotations

import pytest
import torch

from ddq_search.cost import FLASH, LATENCY, PEAK_RAM, CostTables
from ddq_search.graph import WEIGHTED, operations
from ddq_search.policy import uniform
from ddq_search.space import build_space
from ddq_search.trace import trace
from hardware_models.contract import check, example_graphs
from hardware_models.devices import find_device
from search_spaces.models import build_model


@pytest.mark.parametrize("name", example_graphs())
def test_contract(name):
    check(find_device("exact-widths"), example_graphs()[name])


def test_resnet20_by_hand():
    graph = trace(build_model("resnet20", 3, 10, 32), torch.zeros(2, 3, 32, 32))
    device = find_device("exact-widths")
    space = build_space(graph, device, weight_bits=(2, 4, 8, 32), activation_bits=(4, 8, 32))
    tables = CostTables(space, device.factors(graph, space))
    weighted = [op for op in operations(graph) if op.kind in WEIGHTED]
    weights, macs = sum(op.weights for op in weighted), sum(op.macs for op in weighted)
    for bits in (2, 8, 32):
        assert tables.price(uniform(space, bits, 8))[FLASH] == weights * bits / 8
    assert tables.price(uniform(space, 4, 8))[LATENCY] == pytest.approx(macs * 0.5e-9)
    assert tables.price(uniform(space, 8, 4))[PEAK_RAM] < tables.price(uniform(space, 8, 8))[PEAK_RAM]
