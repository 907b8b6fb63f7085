"""The priced flash is what the serializer writes, byte for byte."""

from __future__ import annotations

import pytest

from ddq_search.cost import FLASH, CostTables
from ddq_search.integer.lowering import lower
from ddq_search.integer.serialize import encode
from ddq_search.space import build_space
from hardware_models import cost_model
from tests.networks import MODELS, random_network


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("model", MODELS)
def test_flash_equals_the_serialized_constants(model: str, bits: int) -> None:
    network, _ = random_network(model, 0, lambda _: bits)
    _, constants = encode(lower(network, "single"))
    cost = cost_model("cortex-a53-rpi3-lowbit-neon")
    space = build_space(network.graph, cost)
    tables = CostTables(space, cost.factors(network.graph, space))
    policy = {v.name: bits if bits in v.candidates else v.candidates[0] for v in space.variables}
    assert tables.price(policy)[FLASH] == len(constants)
