"""The memory-driven rule against cuts worked out by hand on one small chain.

Input 1x8x8 (64, pinned at 8 bits) → conv1 4x8x8 (256) → conv2 3x6x6 (108) → fc 10. Pairs at 8 bits: 320, 364, 118.
Weights: conv1 4 rows of 9, conv2 3 rows of 36, fc 10 rows of 108; 9 bytes of constants for each of 17 rows.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ddq_search.baselines.rusci import (
    activation_pairs,
    cut_activations,
    cut_weights,
    memory_driven,
    next_weights,
    require_known_costs,
    shortfall,
)
from ddq_search.cost import FLASH, LATENCY, PEAK_RAM, CostTables
from ddq_search.errors import BudgetError
from ddq_search.feasibility import Pricing
from ddq_search.policy import uniform
from ddq_search.space import Rule, build_space
from ddq_search.trace import trace
from hardware_models import cost_model


class Chain(nn.Module):
    def __init__(self, pixels: int = 8) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 3)
        self.fc = nn.Linear(3 * (pixels - 2) ** 2, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.conv2(self.conv1(x).relu()).relu(), 1))


def pricing_of(model, shape, rules=()):
    graph, device = trace(model, torch.zeros(2, *shape)), cost_model("cortex-a53-rpi3-lowbit-neon")
    space = build_space(graph, device, rules=rules)
    return Pricing.build(graph, device, CostTables(space, device.factors(graph, space)))


@pytest.fixture(scope="module")
def chain():
    return pricing_of(Chain(), (1, 8, 8))


def activations(policy):
    return tuple(policy[f"activations/{name}"] for name in ("conv1", "conv2"))


def weights(policy):
    return tuple(policy[f"weights/{name}"] for name in ("conv1", "conv2", "fc"))


def test_pairs_hold_input_and_output_of_what_runs(chain):
    pairs = activation_pairs(chain.graph, chain.tables.space)
    full = uniform(chain.tables.space, 8, 8)
    assert [(pair.operation, pair.size_bytes(full)) for pair in pairs] == [("conv1", 320), ("conv2", 364), ("fc", 118)]


@pytest.mark.parametrize(
    ("limit", "bits"),
    [
        (364, (8, 8)),
        (363, (4, 8)),  # conv2: equal bits, the input is larger: left to the backward pass, then 128 + 108
        (320, (4, 8)),
        (319, (4, 8)),  # conv1: its input is pinned, so its output goes, in the forward pass
        (200, (4, 4)),  # conv1 192; conv2 128 + 108: the output has more bits, though it is smaller; then 182
        (191, (2, 8)),  # conv1 at 4 bits is 192: on to 2; conv2 is 64 + 108 = 172
        (128, (2, 4)),  # conv2 172: the output has more bits; 64 + 54
        (117, (2, 2)),  # conv2 118, more bits: output, 64 + 27; conv1 is 128 and cannot go on: see below
    ],
)
def test_activations_are_cut_as_by_hand(chain, limit, bits):
    space = chain.tables.space
    found = cut_activations(activation_pairs(chain.graph, space), space, uniform(space, 8, 8), limit)
    if limit < 128:  # conv1 holds 64 + 64 bytes at least
        assert found is None
    else:
        assert activations(found) == bits
        assert found["activations/input"] == 8


def test_a_pinned_output_leaves_the_cut_to_the_input():
    pricing = pricing_of(Chain(), (1, 8, 8), [Rule("activations/conv2", (8,))])
    space = pricing.tables.space
    found = cut_activations(activation_pairs(pricing.graph, space), space, uniform(space, 8, 8), 200)
    assert activations(found) == (2, 8)


@pytest.mark.parametrize(
    ("limit", "bits"),
    [
        (1377, (8, 8, 8)),  # 36 + 108 + 1080 + 153
        (1376, (8, 8, 4)),  # fc 540: 837
        (837, (8, 8, 4)),
        (836, (8, 8, 2)),  # fc 270: 567
        (566, (8, 4, 2)),  # conv2 54: 513, the largest that can still be cut
    ],
)
def test_weights_are_cut_as_by_hand(chain, limit, bits):
    assert weights(cut_weights(chain, uniform(chain.tables.space, 8, 8), limit)) == bits


def test_no_flash_is_small_enough_for_the_constants(chain):
    assert cut_weights(chain, uniform(chain.tables.space, 8, 8), 153) is None


def test_an_earlier_layer_goes_first_within_the_margin():
    assert next_weights({"a": 460, "b": 0, "c": 500}, ["a", "b", "c"]) == "a"
    assert next_weights({"a": 400, "b": 40, "c": 500}, ["a", "b", "c"]) == "c"
    assert next_weights({"a": 400, "b": 40, "c": 500}, ["a", "b"]) == "a"
    assert next_weights({"a": 400}, []) is None


def test_the_planned_arena_decides_in_the_end():
    """The arena also holds alignment and scratch: the rule is asked for less until it fits."""
    pricing = pricing_of(Chain(32), (1, 32, 32))
    reference, space = pricing.reference[PEAK_RAM], pricing.tables.space
    pairs = activation_pairs(pricing.graph, space)
    largest = max(pair.size_bytes(uniform(space, 8, 8)) for pair in pairs)
    assert reference > largest + 500
    for limit, bits in ((9200.0, (4, 8)), (9100.0, (4, 4))):  # the pairs fit as they are; the arenas hold 9168 and 7824
        assert activations(cut_activations(pairs, space, uniform(space, 8, 8), limit)) == (8, 8)
        assert activations(memory_driven(pricing, {PEAK_RAM: limit})) == bits
    for share in (1.0, 0.8, 0.7):
        assert pricing.price(memory_driven(pricing, {PEAK_RAM: share * reference}))[PEAK_RAM] <= share * reference
    assert memory_driven(pricing, {PEAK_RAM: 100.0}) is None
    assert set(memory_driven(pricing, {}).values()) == {8}


def test_all_inputs_of_an_operation_count():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)

        def forward(self, x):
            return torch.add(self.a(x), self.b(x)).relu().mean((2, 3))

    pricing = pricing_of(Branches(), (1, 8, 8))
    pairs = {pair.operation: pair for pair in activation_pairs(pricing.graph, pricing.tables.space)}
    assert pairs["add"].size_bytes(uniform(pricing.tables.space, 8, 8)) == 3 * 128
    for limit in (300, 200, 150):
        found = memory_driven(pricing, {PEAK_RAM: float(limit)})
        assert found is None or pricing.meets(found, {PEAK_RAM: limit})


def test_budgets_it_does_not_know_are_named(chain):
    require_known_costs({})
    require_known_costs({LATENCY: 1.0, FLASH: 1.0})
    with pytest.raises(BudgetError, match="knows flash and peak RAM only, not latency; add a flash or peak-RAM budget"):
        require_known_costs({LATENCY: 1.0})
    slow = {FLASH: 0.9 * chain.reference[FLASH], LATENCY: 0.5 * chain.reference[LATENCY]}
    assert memory_driven(chain, slow) is None
    assert "which the rule does not know; take ilp" in shortfall(chain, slow)
    assert shortfall(chain, {FLASH: 153.0}).startswith("its cuts end before flash ≤ 0.1494 KiB is reached")
