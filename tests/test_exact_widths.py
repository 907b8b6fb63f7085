"""The accounting of papers: exact bits of weights, bit operations for time, and float32 among the candidates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ddq_search.cost import BIT_OPERATIONS, ENERGY, FLASH, LATENCY, PEAK_RAM, CostTables
from ddq_search.errors import CostError
from ddq_search.feasibility import Pricing
from ddq_search.graph import WEIGHTED, operations
from ddq_search.policy import uniform
from ddq_search.size_constraints import SizeModel
from ddq_search.space import build_space
from ddq_search.trace import trace
from hardware_models.contract import check, example_graphs, random_probabilities
from hardware_models.devices import find_device
from search_spaces.models import build_model


@pytest.mark.parametrize("name", example_graphs())
@pytest.mark.parametrize("device", ["exact-widths", "exact-widths-sum", "exact-widths-max"])
def test_contract(device, name):
    check(find_device(device), example_graphs()[name])


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


def test_activations_are_counted_as_in_mixed_precision_dnns():
    """188,416 activations of ResNet-20, the largest tensor of 16,384: 92 KB and 8 KB at 4 bits."""
    graph = trace(build_model("resnet20", 3, 10, 32), torch.zeros(2, 3, 32, 32))
    for name, kib in (("exact-widths-sum", 736), ("exact-widths-max", 64)):
        device = find_device(name)
        space = build_space(graph, device, weight_bits=(2, 4), activation_bits=(3, 4, 32))
        tables = CostTables(space, device.factors(graph, space))
        for bits in (3, 4, 32):
            policy = uniform(space, 2, bits)
            assert tables.price(policy)[PEAK_RAM] == device.arena_bytes(graph, space, policy) == kib * 1024 * bits / 32
        pricing = Pricing.build(graph, device, tables)
        mixed = pricing.most_likely(tables.one_hot(uniform(space, 2, 32)).numpy(), {PEAK_RAM: kib / 8 * 1024}, [])
        sizes = SizeModel(graph, space).sizes(torch.tensor([float(mixed[v.name]) for v in space.variables]))
        found = sizes.activations_kb if name == "exact-widths-sum" else sizes.largest_activation_kb
        assert tables.price(mixed)[PEAK_RAM] == found * 1024
        assert found <= kib / 8
        assert 32 in mixed.values()  # tensors that ReLUs do not return are free
        probabilities = random_probabilities(space)
        bits = probabilities @ torch.tensor([[3.0, 4, 32], [2, 4, 0]], dtype=torch.float64).T
        rows = torch.tensor([v.role == "weights" for v in space.variables])
        sizes = SizeModel(graph, space).sizes(torch.where(rows, bits[:, 1], bits[:, 0]))
        found = sizes.activations_kb if name == "exact-widths-sum" else sizes.largest_activation_kb
        assert float(tables.expected(probabilities)[PEAK_RAM]) == pytest.approx(float(found) * 1024)


def test_a_model_without_relus_has_no_activations_to_count():
    graph = trace(nn.Sequential(nn.Linear(4, 3)), torch.zeros(1, 4))
    for name in ("exact-widths-sum", "exact-widths-max"):
        device = find_device(name)
        with pytest.raises(CostError, match="of which this model has none; use 'exact-widths'"):
            device.factors(graph, build_space(graph, device))


def test_every_point_of_multipoint_weights_is_a_pass_and_takes_its_bits():
    graph = trace(build_model("resnet20", 3, 10, 32), torch.zeros(2, 3, 32, 32))
    device = find_device("exact-widths")
    space = build_space(graph, device, weight_bits=(2, 4), activation_bits=(8,))
    weights = [v.name for v in space.variables if v.role == "weights"]
    prices = {}
    for points in (0, 1, 2):
        own = replace(space, further_points=dict.fromkeys(weights, points))
        prices[points] = CostTables(own, device.factors(graph, own)).price(uniform(own, 4, 8))
    for cost in (LATENCY, FLASH, BIT_OPERATIONS):
        assert prices[1][cost] == 2 * prices[0][cost]
        assert prices[2][cost] == pytest.approx(3 * prices[0][cost])
    assert prices[0][ENERGY] < prices[1][ENERGY] < 2 * prices[0][ENERGY]  # activations move once
