"""Aims spread over the achievable range; policies keep their limits and are distinct."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.cost import FLASH, LATENCY, PEAK_RAM, CostTables, Factor
from ddq_search.front import aims, choose_policies, settled
from tests.test_feasibility import opposed, pricing_of
from tests.toys import all_policies, toy_space, toy_tables


def random_pricing(seed=0):
    return pricing_of(toy_tables([(2, 4, 8)] * 4, seed))


@pytest.mark.parametrize("seed", range(3))
def test_aims_tighten_one_budget_and_keep_the_others(seed):
    pricing = random_pricing(seed)
    budgets = {LATENCY: 1.02 * pricing.reference[LATENCY], FLASH: 1.05 * pricing.reference[FLASH]}
    found = aims(pricing, budgets, 8, 0)
    assert [aim.origin for aim in found] == ["search"] * 8
    for axis in budgets:
        (other,) = set(budgets) - {axis}
        limits = sorted(aim.limits[axis] for aim in found if aim.limits[other] == budgets[other])
        low = pricing.price(pricing.cheapest(axis, budgets))[axis]
        assert limits[0] == pytest.approx(1.005 * low)
        assert limits[-1] == budgets[axis]
        assert max(np.diff(limits)) <= (budgets[axis] - low) / 3 + 1e-9
    for aim in found:
        assert all(aim.limits[cost] <= budgets[cost] for cost in budgets)
        assert pricing.cheapest(LATENCY, aim.limits) is not None


def test_one_point_is_one_aim_whatever_the_number_of_budgets():
    pricing = random_pricing()
    budgets = {LATENCY: 1.02 * pricing.reference[LATENCY], FLASH: 1.05 * pricing.reference[FLASH]}
    assert [aim.limits for aim in aims(pricing, budgets, 1, 0)] == [budgets]


def test_relaxed_aims_lie_between_budget_and_uniform_eight_bits():
    pricing = opposed()
    budget = 0.7 * pricing.reference[FLASH]
    found = [aim for aim in aims(pricing, {FLASH: budget}, 3, 2) if aim.origin == "relaxed"]
    assert [aim.limits[FLASH] / pricing.reference[FLASH] for aim in found] == pytest.approx([0.85, 1.0])
    assert not [a for a in aims(pricing, {FLASH: 1.5 * pricing.reference[FLASH]}, 3, 2) if a.origin == "relaxed"]


def test_without_budgets_latency_and_flash_share_the_points():
    found = aims(random_pricing(), {}, 5, 4)
    assert [list(aim.limits) for aim in found] == [[LATENCY]] * 3 + [[FLASH]] * 2


@pytest.mark.parametrize("seed", range(4))
def test_policies_are_distinct_and_within_their_limits(seed):
    pricing = random_pricing(seed)
    budgets = {LATENCY: 1.01 * pricing.reference[LATENCY]}
    targets = aims(pricing, budgets, 8, 2)
    same = np.full((4, 3), 1 / 3)
    policies = choose_policies(pricing, targets, [same] * len(targets))
    bits = [tuple(policy.bits.values()) for policy in policies]
    assert len(set(bits)) == len(bits) > 4
    for origin, letter in (("search", "p"), ("relaxed", "r")):
        mine = [policy for policy in policies if policy.origin == origin]
        assert [policy.name for policy in mine] == [f"{letter}{i:02d}" for i in range(len(mine))]
        latencies = [pricing.price(policy.bits)[LATENCY] for policy in mine]
        assert latencies == sorted(latencies)
        loosest = max((a.limits[LATENCY] for a in targets if a.origin == origin), default=0)
        assert all(value <= loosest for value in latencies)


def test_an_aim_without_a_policy_of_its_own_is_left_out():
    pricing = opposed()  # four policies
    limits = aims(pricing, {FLASH: pricing.reference[FLASH]}, 6, 0)
    policies = choose_policies(pricing, limits, [np.full((2, 2), 0.5)] * 6)
    assert 1 < len(policies) <= 4


def test_the_most_probable_policy_wins():
    pricing = opposed()
    probability = np.array([[0.9, 0.1], [0.2, 0.8]])
    (aim, *_) = aims(pricing, {FLASH: pricing.reference[FLASH]}, 1, 0)
    (policy,) = choose_policies(pricing, [aim], [probability])
    assert policy.bits == {"weights/v0": 4, "weights/v1": 8}


def test_what_costs_nothing_is_raised_and_nothing_else():
    """Bits of v0 cost latency, those of v1 flash; the scores want the fewest of both."""
    space = toy_space([(2, 4, 8)] * 2)
    factors = [
        Factor(cost, name, "compute", (f"weights/{name}",), np.array([2.0, 4.0, 8.0]))
        for cost, name in ((LATENCY, "v0"), (FLASH, "v1"))
    ]
    factors.append(Factor(PEAK_RAM, "v0", "compute", ("weights/v0",), np.zeros(3), step=0))
    pricing, scores = pricing_of(CostTables(space, factors)), np.array([[0.0, -1.0, -2.0]] * 2)
    assert settled(pricing, scores, {LATENCY: 9.0}, []) == {"weights/v0": 2, "weights/v1": 8}
    assert settled(pricing, scores, {FLASH: 9.0}, []) == {"weights/v0": 8, "weights/v1": 2}
    assert settled(pricing, scores, {LATENCY: 9.0, FLASH: 9.0}, []) == {"weights/v0": 2, "weights/v1": 2}
    taken = [{"weights/v0": 2, "weights/v1": 8}]
    assert settled(pricing, scores, {LATENCY: 9.0}, taken) == {"weights/v0": 2, "weights/v1": 4}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0.5, 1.0))
def test_a_settled_policy_is_the_likeliest_or_above_it_and_no_dearer(seed, share):
    pricing = random_pricing(seed)
    scores = np.random.default_rng(seed).normal(size=(4, 3))
    low, high = (pricing.price(pricing.cheapest(LATENCY, {}))[LATENCY], pricing.reference[LATENCY])
    limits = {LATENCY: low + share * max(high - low, 0.1 * low)}
    likeliest, found = pricing.most_likely(scores, limits, []), settled(pricing, scores, limits, [])
    assert all(found[name] >= bits for name, bits in likeliest.items())
    dearest = pricing.price(likeliest)[LATENCY] * (1 + 1e-6)
    assert pricing.price(found)[LATENCY] <= dearest
    rivals = [
        policy
        for policy in all_policies(pricing.tables.space)
        if all(policy[name] >= bits for name, bits in likeliest.items())
        and pricing.price(policy)[LATENCY] <= pricing.price(likeliest)[LATENCY]
    ]
    noise = min(sum(2.0**-bits for bits in policy.values()) for policy in rivals)
    assert sum(2.0**-bits for bits in found.values()) == pytest.approx(noise, abs=1e-4)
