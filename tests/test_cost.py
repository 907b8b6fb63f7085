"""Factors, expectations and prices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.cost import FLASH, LATENCY, PEAK_RAM, CostTables, Factor
from ddq_search.errors import CostError
from ddq_search.space import build_space
from hardware_models import contract, cost_model
from tests.toys import all_policies, by_hand, toy_space, toy_tables

SPACES = st.lists(st.sampled_from([(8,), (2, 8), (4, 8), (2, 4, 8)]), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(candidates=SPACES, seed=st.integers(0, 10_000))
def test_price_is_the_expectation_at_one_hot_and_the_sum_by_hand(candidates, seed):
    tables = toy_tables(candidates, seed)
    for policy in all_policies(tables.space):
        price = tables.price(policy)
        expected = tables.expected(tables.one_hot(policy))
        assert price == {cost: float(value) for cost, value in expected.items()}  # to the last digit
        assert price == pytest.approx(by_hand(tables, policy), rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(candidates=SPACES, seed=st.integers(0, 10_000))
def test_expectation_is_the_mean_price_over_policies(candidates, seed):
    tables = toy_tables(candidates, seed)
    rng = np.random.default_rng(seed)
    rows = np.zeros((len(candidates), max(map(len, candidates))))
    for row, options in enumerate(candidates):
        rows[row, : len(options)] = rng.dirichlet(np.ones(len(options)))
    mean = dict.fromkeys((LATENCY, FLASH), 0.0)
    for policy in all_policies(tables.space):
        chance = np.prod([rows[i, c.index(policy[f"weights/v{i}"])] for i, c in enumerate(candidates)])
        for cost in mean:
            mean[cost] += chance * tables.price(policy)[cost]
    found = tables.expected(torch.from_numpy(rows))
    assert {cost: float(found[cost]) for cost in mean} == pytest.approx(mean, rel=1e-9)


def test_gradient_is_the_price_difference_of_one_decision():
    tables = toy_tables([(2, 4, 8)] * 3, 5)
    base = {f"weights/v{i}": 4 for i in range(3)}
    p = tables.one_hot(base).requires_grad_()
    tables.expected(p)[LATENCY].backward()
    for row in range(3):
        for k, bits in enumerate((2, 4, 8)):
            change = tables.price(base | {f"weights/v{row}": bits})[LATENCY] - tables.price(base)[LATENCY]
            assert float(p.grad[row, k] - p.grad[row, 1]) == pytest.approx(change, abs=1e-9)


def ram_tables(first, second):
    space = toy_space([(2, 8), (2, 8)])
    return CostTables(space, [
        Factor(PEAK_RAM, "a", "tensor", ("weights/v0",), np.array(first), step=0),
        Factor(PEAK_RAM, "b", "tensor", ("weights/v1",), np.array(second), step=2),
    ])  # fmt: skip


def test_peak_ram_is_the_hard_maximum_with_a_smooth_gradient():
    tables = ram_tables([25.0, 100.0], [25.0, 99.0])
    p = tables.one_hot({"weights/v0": 8, "weights/v1": 8}).requires_grad_()
    peak = tables.expected(p)[PEAK_RAM]
    assert peak.item() == 100.0
    assert tables.step_sums(p).detach().tolist() == [100.0, 0.0, 99.0]
    peak.backward()
    shares = p.grad[:, 1] / torch.tensor([100.0, 99.0])
    assert float(shares.sum()) == pytest.approx(1.0)
    assert float(shares[0]) > float(shares[1]) > 0.2  # both nearly-fullest steps feel it
    far = ram_tables([25.0, 100.0], [5.0, 20.0])
    p = far.one_hot({"weights/v0": 8, "weights/v1": 8}).requires_grad_()
    far.expected(p)[PEAK_RAM].backward()
    assert float(p.grad[1].abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (Factor(LATENCY, "op", "compute", ("weights/v9",), np.zeros(2)), "'op': variables .* are unknown or repeated"),
        (Factor(LATENCY, "op", "compute", ("weights/v0", "weights/v0"), np.zeros((2, 2))), "are unknown or repeated"),
        (Factor(LATENCY, "op", "compute", ("weights/v0",), np.zeros(3)), r"'op': table \(3,\), expected \(2,\)"),
        (Factor(LATENCY, "op", "compute", ("weights/v0",), np.array([1.0, np.inf])), "negative or non-finite"),
        (Factor(LATENCY, "op", "compute", ("weights/v0",), np.array([1.0, -1.0])), "negative or non-finite"),
    ],
)
def test_broken_tables_are_refused(factor, message):
    with pytest.raises(CostError, match=message):
        CostTables(toy_space([(2, 8), (4,)]), [factor])


def test_policy_outside_the_candidates_is_refused():
    tables = toy_tables([(2, 8), (4,)], 0)
    with pytest.raises(CostError, match=r"'weights/v0': 4 bits is not among \[2, 8\]"):
        tables.price({"weights/v0": 4, "weights/v1": 4})
    with pytest.raises(CostError, match="'weights/v1': None bits"):
        tables.price({"weights/v0": 2})


@pytest.mark.parametrize("device", ["cortex-a53-rpi3-lowbit-neon", "cortex-m7-stm32h743-cmsis-nn"])
def test_many_policies_cost_what_each_costs(device):
    graph, cost = contract.example_graphs()["unusual"], cost_model(device)
    space = build_space(graph, cost)
    tables = CostTables(space, cost.factors(graph, space))
    generator = np.random.default_rng(0)
    choices = np.stack([generator.integers(0, len(v.candidates), 40) for v in space.variables], 1)
    prices = tables.price_many(choices)
    for row, choice in enumerate(choices):
        policy = {v.name: v.candidates[index] for v, index in zip(space.variables, choice, strict=True)}
        assert tables.price(policy) == {name: values[row] for name, values in prices.items()}
    assert list(tables.price_many(choices, ["flash_bytes"])) == ["flash_bytes"]


@pytest.mark.parametrize("wrong", [np.zeros((2, 1), int), np.full((1, 2), 9), np.full((1, 2), -1)])
def test_choices_that_are_none(wrong):
    with pytest.raises(CostError, match=r"indices of candidates"):
        toy_tables([(2, 8), (4,)], 0).price_many(wrong)
