"""Infeasible budgets are named with range, pair and blockers; feasible ones pass."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.config import load_config
from ddq_search.cost import BIT_OPERATIONS, FLASH, LATENCY, PEAK_RAM, CostTables, Factor
from ddq_search.errors import BudgetError
from ddq_search.feasibility import Pricing, conflicts, operation_costs, require_feasible, summary
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
    assert "conflict: latency and flash cannot be met together, each alone can be" in message
    assert "binding: without the budget of latency or that of flash the others can be met" in message


def test_the_nearest_policy_is_shown_with_the_budget_that_admits_it():
    """8 and 4 bits exceed flash by 3584/2624 - 1; 4 and 8 bits would exceed latency by 7/5 - 1."""
    message = refusal(opposed(), {LATENCY: 5e-3, FLASH: 2624.0})
    assert message.endswith(
        "\n  nearest policy: latency 5 ms (125.0 % of uniform 8 bit), flash 3.5 KiB (87.5 % of uniform 8 bit); "
        "every budget exceeded by at most 36.6 %\n    w8: v0; w4: v1\n    admitted by --flash 87.5%\n"
        "  loosen a budget as told above, or take a smaller model or another device"
    )


def three_ways():
    """One choice of three, each good at two costs and bad at the third: any two budgets of 2 can be met."""
    space = toy_space([(2, 4, 8)])
    costs = {LATENCY: [1.0, 1.0, 3.0], FLASH: [1.0, 3.0, 1.0], PEAK_RAM: [3.0, 1.0, 1.0]}
    factors = [
        Factor(cost, "v0", "part", ("weights/v0",), np.array(table), step=0 if cost == PEAK_RAM else None)
        for cost, table in costs.items()
    ]
    return pricing_of(CostTables(space, factors))


def refusal(pricing, budgets):
    with pytest.raises(BudgetError) as caught:
        require_feasible(pricing, budgets)
    return str(caught.value)


def test_three_budgets_of_which_any_two_can_be_met():
    budgets = dict.fromkeys((LATENCY, FLASH, PEAK_RAM), 2.0)
    assert conflicts(three_ways(), budgets) == {(LATENCY, FLASH, PEAK_RAM): True}
    message = refusal(three_ways(), budgets)
    assert "conflict: latency, flash and peak RAM cannot be met together, any 2 of them can be" in message
    assert "binding: without the budget of latency or that of flash or that of peak RAM the others can" in message


def test_three_budgets_of_which_every_pair_conflicts():
    space = toy_space([(2, 4, 8)])
    factors = [
        Factor(cost, "v0", "part", ("weights/v0",), np.where(np.arange(3) == good, 1.0, 3.0), step=step)
        for cost, good, step in ((LATENCY, 0, None), (FLASH, 1, None), (PEAK_RAM, 2, 0))
    ]
    pricing, budgets = pricing_of(CostTables(space, factors)), dict.fromkeys((LATENCY, FLASH, PEAK_RAM), 2.0)
    assert list(conflicts(pricing, budgets)) == [(LATENCY, FLASH), (LATENCY, PEAK_RAM), (FLASH, PEAK_RAM)]
    message = refusal(pricing, budgets)
    assert message.count("cannot be met together, each alone can be") == 3
    assert "binding: no single budget; one of each conflict must be loosened" in message


def test_one_impossible_budget_among_others_is_the_binding_one():
    message = refusal(opposed(), {LATENCY: 7e-3, FLASH: 1024.0})
    assert "conflict: flash cannot be met\n" in message
    assert "binding: without the budget of flash the others can be met" in message


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 5000), tight=st.floats(0.5, 1.1))
def test_agrees_with_brute_force(seed, tight):
    """Which budgets conflict, by enumeration; and whoever follows any of the advice literally is admitted."""
    tables, rng = toy_tables([(2, 4, 8), (4, 8), (2, 8)], seed, integers=True), np.random.default_rng(seed)
    fragments = {tuple(p.values()): int(rng.integers(0, 30)) for p in all_policies(tables.space)}
    pricing = pricing_of(tables, fragments)
    prices = [pricing.price(policy) for policy in all_policies(tables.space)]
    budgets = {
        cost: max(1.0, tight * float(np.median([p[cost] for p in prices]))) for cost in (LATENCY, FLASH, PEAK_RAM)
    }

    def possible(costs):
        return any(all(price[cost] <= budgets[cost] for cost in costs) for price in prices)

    if possible(budgets):
        require_feasible(pricing, budgets)
        return
    subsets = [set(costs) for count in (1, 2, 3) for costs in itertools.combinations(budgets, count)]
    smallest = [s for s in subsets if not possible(s) and all(possible(s - {cost}) for cost in s)]
    assert [set(costs) for costs in conflicts(pricing, budgets)] == smallest
    message = refusal(pricing, budgets)
    assert message.startswith("no policy meets all budgets on toy\n")
    advice = re.findall(r"admitted by (.*)", message)
    assert len(advice) == 1 + message.count("achievable pair")
    for flags in advice:
        require_feasible(pricing, budgets | advised(flags, pricing.reference))


def advised(flags, reference):
    """The budgets that a line of flags means to the command line."""
    names = {"--latency": "latency", "--flash": "flash", "--peak-ram": "peak_ram"}
    words = flags.split()
    settings = {f"budgets.{names[flag]}": value for flag, value in zip(words[::2], words[1::2], strict=True)}
    return {wish.cost: wish.resolve(reference) for wish in load_config(None, settings).budgets.wishes()}


def test_advice_is_rounded_up_and_leaves_budgets_alone_that_are_kept():
    """Flash 1000/3000 is 33.33… %; latency stays as it was."""
    space = toy_space([(2, 8)])
    tables = CostTables(
        space,
        [
            Factor(FLASH, "v0", "weights", ("weights/v0",), np.array([1000.0, 3000.0])),
            Factor(LATENCY, "v0", "compute", ("weights/v0",), np.array([1.0, 1.0])),
        ],
    )
    pricing = Pricing.build(nx.MultiDiGraph(), ToyDevice(toy_tables([(2, 8)], 0)), tables)
    message = refusal(pricing, {FLASH: 999.0, LATENCY: 1.0})
    assert message.count("admitted by --flash 33.4%\n") == 2
    require_feasible(pricing, {LATENCY: 1.0} | advised("--flash 33.4%", pricing.reference))


def test_costs_without_a_flag_are_advised_by_their_setting():
    tables = CostTables(
        toy_space([(2, 8)]), [Factor(BIT_OPERATIONS, "v0", "compute", ("weights/v0",), np.array([2.0, 4.0]))]
    )
    pricing = Pricing.build(nx.MultiDiGraph(), ToyDevice(toy_tables([(2, 8)], 0)), tables)
    assert "admitted by --set budgets.bit_operations=50.0%\n" in refusal(pricing, {BIT_OPERATIONS: 1.0})


def test_a_large_policy_is_told_in_a_line():
    policy = {"activations/input": 8}
    for number in range(200):
        policy |= {f"weights/layer{number}": 2 + number % 7, f"activations/layer{number}": 8 if number < 100 else 4}
    told = summary(policy)
    assert told.startswith("w2a8: layer0, layer7, layer14 and 12 more; ")
    assert told.endswith("; 127 more of other bits")
    assert len(told) < 300
    assert summary({"weights/a": 2, "activations/a": 4, "weights/b": 8}) == "w2a4: a; w8: b"


def test_where_no_arena_fits_and_not_all_were_planned_nothing_is_claimed(monkeypatch):
    """Live tensors fit 600 bytes at 2 and 4 bits; every arena has a gap of 500."""
    monkeypatch.setattr("ddq_search.enumerated_projector.FEW", 0)
    factor = Factor(PEAK_RAM, "v0", "tensor", ("weights/v0",), np.array([256.0, 512.0, 1024.0]), step=0)
    pricing = pricing_of(CostTables(toy_space([(2, 4, 8)]), [factor]), {(bits,): 512 for bits in (2, 4, 8)})
    message = refusal(pricing, {PEAK_RAM: 600.0})
    assert message.startswith(
        "no policy was found that meets all budgets on toy; that there is none is not proven\n"
        "  in the policy of least peak RAM within the others, 0.25 KiB are alive at once; its planned arena exceeds "
        "that by 0.5 KiB\n"
    )
    assert "by itself not kept by any policy found" in message
    assert "conflict: peak RAM was not met by any policy found\n" in message
    assert "impossible" not in message
    assert refusal(pricing, {PEAK_RAM: 200.0}).startswith("no policy meets all budgets on toy\n")


def test_a_stopped_solver_claims_nothing(monkeypatch):
    monkeypatch.setattr("ddq_search.enumerated_projector.FEW", 0)
    pricing = opposed()
    monkeypatch.setattr("ddq_search.projector.milp", lambda *a, **k: SimpleNamespace(x=None, status=1))
    message = refusal(pricing, {FLASH: 1.0, LATENCY: 1.0})
    assert "that there is none is not proven\n  the solver was stopped before it was done\n" in message
    assert message.count("not known whether it can be kept") == 2
    assert "conflict: flash was not met by any policy found\n" in message


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
