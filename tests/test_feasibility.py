"""Infeasible budgets are named with range, pair and blockers; feasible ones pass."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.cost import FLASH, LATENCY, PEAK_RAM, CostTables, Factor
from ddq_search.errors import BudgetError
from ddq_search.feasibility import Pricing, operation_costs, require_feasible
from tests.toys import ToyDevice, all_policies, by_hand, toy_space, toy_tables


def pricing_of(tables, fragments=None):
    return Pricing.build(nx.MultiDiGraph(), ToyDevice(tables, fragments), tables)


def opposed():
    """Fewer bits save flash and cost time."""
    space = toy_space([(4, 8)] * 2)
    factors = [Factor(PEAK_RAM, "v0", "tensor", ("weights/v0",), np.array([500.0, 1000.0]), step=0)]
    for name in ("v0", "v1"):
        scale = 3.0 if name == "v0" else 1.0
        factors.append(Factor(LATENCY, name, "compute", (f"weights/{name}",), scale * np.array([2e-3, 1e-3])))
        factors.append(Factor(FLASH, name, "weights", (f"weights/{name}",), scale * np.array([512.0, 1024.0])))
    return pricing_of(CostTables(space, factors))


def test_feasible_budgets_pass():
    pricing = opposed()
    require_feasible(pricing, {})
    require_feasible(pricing, dict(pricing.reference))
    require_feasible(pricing, {LATENCY: 7e-3, FLASH: 2560.0})


def test_a_single_impossible_budget_names_range_and_blockers():
    with pytest.raises(BudgetError) as caught:
        require_feasible(opposed(), {FLASH: 1024.0})
    message = str(caught.value)
    assert "no policy meets all budgets on toy" in message
    assert "flash budget 1 KiB (25.0 % of uniform 8 bit): impossible by itself" in message
    assert "achievable from 2 KiB (50.0 % of uniform 8 bit); uniform 8 bit 4 KiB" in message
    assert "layers that hold the flash there: v0 1.5 KiB (75 %), v1 0.5 KiB (25 %)" in message


def test_an_impossible_pair_names_what_each_allows_of_the_other():
    budgets = {LATENCY: 5e-3, FLASH: 2560.0}
    with pytest.raises(BudgetError) as caught:
        require_feasible(opposed(), budgets)
    message = str(caught.value)
    assert message.count("possible by itself") == 2
    assert "impossible" not in message
    assert "with flash ≤ 2.5 KiB the least latency is reached at latency 7 ms" in message
    assert "with latency ≤ 5 ms the least flash is reached at latency 5 ms" in message
    assert "v0 6 ms (86 %), v1 1 ms (14 %)" in message
    nearest = "nearest policy: latency 5 ms (125.0 % of uniform 8 bit), flash 3.5 KiB (87.5 % of uniform 8 bit); "
    assert nearest + "every budget exceeded by at most 40.0 %" in message


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 5000), tight=st.floats(0.6, 1.1))
def test_agrees_with_brute_force(seed, tight):
    tables = toy_tables([(2, 4, 8), (4, 8), (2, 8)], seed)
    pricing = pricing_of(tables)
    prices = [pricing.price(policy) for policy in all_policies(tables.space)]
    budgets = {cost: tight * float(np.median([p[cost] for p in prices])) for cost in (LATENCY, FLASH)}
    if any(all(price[cost] <= budgets[cost] for cost in budgets) for price in prices):
        require_feasible(pricing, budgets)
    else:
        with pytest.raises(BudgetError, match="loosen a budget"):
            require_feasible(pricing, budgets)


def test_peak_ram_is_kept_on_the_planned_arena():
    """The live-sum bound says 500 fits 600 bytes; the planner's gaps say otherwise."""
    tables = CostTables(
        toy_space([(2, 4, 8)]),
        [Factor(PEAK_RAM, "v0", "tensor", ("weights/v0",), np.array([250.0, 500.0, 1000.0]), step=0)],
    )
    pricing = pricing_of(tables, {(4,): 150})
    assert pricing.price({"weights/v0": 4})[PEAK_RAM] == 650.0
    found = pricing.most_likely(np.log([[0.1, 0.3, 0.6]]), {PEAK_RAM: 600.0}, [])
    assert found == {"weights/v0": 2}
    assert pricing.cheapest(PEAK_RAM, {PEAK_RAM: 600.0}) == {"weights/v0": 2}
    assert not pricing.meets({"weights/v0": 4}, {PEAK_RAM: 600.0})
    with pytest.raises(BudgetError, match="peak RAM budget"):
        require_feasible(pricing, {PEAK_RAM: 100.0})


def test_operation_costs_add_up():
    tables = toy_tables([(2, 4, 8)] * 3, 4)
    for policy in all_policies(tables.space)[::7]:
        price = by_hand(tables, policy)
        for cost in (LATENCY, FLASH, PEAK_RAM):
            assert sum(operation_costs(tables, cost, policy).values()) == pytest.approx(price[cost])
