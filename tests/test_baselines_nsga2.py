"""NSGA-II on tables small enough to know every policy."""

from __future__ import annotations

import numpy as np
import pytest

from ddq_search.baselines.nsga2 import evolve
from ddq_search.cost import FLASH, LATENCY
from ddq_search.pareto import non_dominated
from tests.test_baselines import additive
from tests.toys import all_policies

LOSSES = {"a": [4.0, 1.0, 0.0], "b": [2.0, 1.5, 0.0], "c": [9.0, 0.5, 0.0]}


@pytest.fixture(scope="module")
def pricing():
    return additive({
        LATENCY: {"a": [1.0, 2.0, 4.0], "b": [3.0, 2.0, 5.0], "c": [1.0, 6.0, 7.0]},
        FLASH: {"a": [20.0, 40.0, 80.0], "b": [2.0, 4.0, 8.0], "c": [5.0, 10.0, 20.0]},
    })  # fmt: skip


def loss(policy):
    return sum(LOSSES[name.partition("/")[2]][(2, 4, 8).index(bits)] for name, bits in policy.items())


def pareto(pricing, policies, axes, limits):
    able = [p for p in policies if pricing.meets(p, limits)]
    rows = np.array([[loss(p), *(pricing.price(p)[axis] for axis in axes)] for p in able])
    return {tuple(p.values()) for p, keep in zip(able, non_dominated(rows), strict=True) if keep}


@pytest.mark.parametrize("axes", [(FLASH,), (LATENCY, FLASH)])
@pytest.mark.parametrize("limits", [{}, {FLASH: 80.0}, {FLASH: 80.0, LATENCY: 11.0}])
def test_finds_the_pareto_set_of_all_policies(pricing, axes, limits):
    found = evolve(pricing, loss, limits, axes, 150, 0)
    expected = pareto(pricing, all_policies(pricing.tables.space), axes, limits)
    assert len(expected) >= 3
    assert pareto(pricing, [one.bits for one in found], axes, limits) == expected


def test_evaluations_are_counted_and_repeat_by_seed(pricing):
    asked = []

    def counted(policy):
        asked.append(tuple(policy.values()))
        return loss(policy)

    first = [{"weights/a": 2, "weights/b": 2, "weights/c": 2}]
    found = evolve(pricing, counted, {FLASH: 80.0}, [FLASH], 20, 5, first)
    assert len(asked) == len(set(asked)) == len(found) <= 20
    assert found[0].bits == first[0]
    assert all(one.loss == loss(one.bits) and one.price == pricing.price(one.bits) for one in found)
    assert found == evolve(pricing, loss, {FLASH: 80.0}, [FLASH], 20, 5, first)
    assert found != evolve(pricing, loss, {FLASH: 80.0}, [FLASH], 20, 6, first)
