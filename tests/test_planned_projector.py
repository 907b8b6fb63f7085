"""Peak RAM kept by the planned arena: against brute force in small spaces, by its promises in large ones."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.cost import FLASH, LATENCY, PEAK_RAM, CostTables, Factor
from ddq_search.feasibility import Pricing
from ddq_search.projector import Solution
from ddq_search.space import build_space
from ddq_search.trace import trace
from hardware_models import cost_model
from search_spaces.models import build_model
from tests.toys import ToyDevice, all_policies, toy_space, toy_tables

COSTS = (LATENCY, FLASH, PEAK_RAM)
SPACES = st.lists(st.sampled_from([(8,), (2, 8), (4, 8), (2, 4, 8)]), min_size=1, max_size=4)
FEW = "ddq_search.enumerated_projector.FEW"
LARGE = pytest.mark.parametrize("few", [0, 1024])
"""The same spaces taken for large ones, in which conflicts are taken out, and for small ones."""


def fragmented(candidates, seed, gaps=True):
    """Pricing in which half of the policies need gaps, random limits and scores, and every policy with its price."""
    tables, rng = toy_tables(candidates, seed, integers=True), np.random.default_rng(seed + 1)
    policies = all_policies(tables.space)
    fragments = {tuple(p.values()): int(rng.integers(1, 40)) for p in policies if gaps and rng.uniform() < 0.5}
    pricing = Pricing.build(nx.MultiDiGraph(), ToyDevice(tables, fragments), tables)
    prices = [pricing.price(policy) for policy in policies]
    limits = {
        cost: float(np.quantile([price[cost] for price in prices], rng.uniform(0, 0.6)))
        for cost in COSTS
        if cost == PEAK_RAM or rng.uniform() < 0.7
    }
    scores = np.log(np.clip(rng.dirichlet(np.ones(3), len(candidates)), 1e-6, 1))
    return pricing, limits, scores, list(zip(policies, prices, strict=True))


def score(pricing, scores, policy):
    variables = pricing.tables.space.variables
    return sum(scores[row, v.candidates.index(policy[v.name])] for row, v in enumerate(variables))


def keeps(price, limits):
    return all(price[cost] <= limit for cost, limit in limits.items())


@settings(max_examples=15, deadline=None)
@given(candidates=SPACES, seed=st.integers(0, 10_000))
def test_in_a_small_space_every_answer_is_that_of_brute_force(candidates, seed):
    pricing, limits, scores, all_prices = fragmented(candidates, seed)
    within = [(policy, price) for policy, price in all_prices if keeps(price, limits)]
    found = pricing.planned.most_likely(scores, limits)
    assert found.proven
    assert (found.policy is None) == (not within) == (pricing.planned.feasible(limits).policy is None)
    if within:
        best = max(score(pricing, scores, policy) for policy, _ in within)
        assert keeps(pricing.price(found.policy), limits)
        assert score(pricing, scores, found.policy) == pytest.approx(best, abs=1e-9)
    for cost in COSTS:
        cheapest = pricing.planned.cheapest(cost, limits)
        assert cheapest.proven
        assert (cheapest.policy is None) == (not within)
        if within:
            assert keeps(pricing.price(cheapest.policy), limits)
            assert pricing.price(cheapest.policy)[cost] == min(price[cost] for _, price in within)


@settings(max_examples=15, deadline=None)
@given(candidates=SPACES, seed=st.integers(0, 10_000))
def test_in_a_large_space_limits_are_kept_and_nothing_is_claimed_that_is_not_so(candidates, seed):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FEW, 0)
        pricing, limits, scores, all_prices = fragmented(candidates, seed)
    within = [policy for policy, price in all_prices if keeps(price, limits)]
    found = pricing.planned.most_likely(scores, limits)
    known = pricing.planned.feasible(limits)
    cheapest = [pricing.planned.cheapest(cost, limits) for cost in COSTS]
    for answer in (found, known, *cheapest):
        assert answer.policy is None or keeps(pricing.price(answer.policy), limits)
        assert not (answer.proven and answer.policy is None and within)
        assert answer.policy is not None or known.policy is None, "found by one, missed by another"
    if found.proven and found.policy is not None:
        best = max(score(pricing, scores, policy) for policy in within)
        assert score(pricing, scores, found.policy) == pytest.approx(best, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(candidates=SPACES, seed=st.integers(0, 10_000), few=st.sampled_from([0, 1024]))
def test_nearest_leaves_no_budget_looser_than_the_others_require(candidates, seed, few):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FEW, few)
        pricing, limits, _, all_prices = fragmented(candidates, seed, gaps=few > 0)
    limits = {cost: 0.8 * limit for cost, limit in limits.items() if limit > 0}
    if not limits or any(keeps(price, limits) for _, price in all_prices):
        return
    price = pricing.price(pricing.planned.nearest(limits))
    needed = {cost: max(limit, price[cost]) for cost, limit in limits.items()}
    for cost in (cost for cost in limits if needed[cost] > limits[cost]):
        assert not [other for _, other in all_prices if keeps(other, needed) and other[cost] < needed[cost]]
    excess = [max(other[cost] / limit for cost, limit in limits.items()) for _, other in all_prices]
    assert max(price[cost] / limit for cost, limit in limits.items()) == pytest.approx(min(excess), rel=1e-6)
    bits = [sum(policy.values()) for policy, other in all_prices if keeps(other, needed)]
    assert sum(pricing.planned.nearest(limits).values()) == max(bits)


def two_tensors(fragments):
    """Two tensors alive at once, 100 bytes per bit, and weights that need no arena."""
    factors = [
        Factor(PEAK_RAM, name, "tensor", (f"weights/{name}",), 100.0 * np.array([2.0, 4.0, 8.0]), step=0)
        for name in ("v0", "v1")
    ] + [Factor(FLASH, "v2", "weights", ("weights/v2",), np.array([2.0, 4.0, 8.0]))]
    tables = CostTables(toy_space([(2, 4, 8)] * 3), factors)
    device = ToyDevice(tables)
    device.arena_bytes = lambda graph, space, choices: int(
        tables.price(choices)[PEAK_RAM] + fragments.get((choices["weights/v0"], choices["weights/v1"]), 0)
    )
    return Pricing.build(nx.MultiDiGraph(), device, tables)


@LARGE
def test_a_conflict_names_only_the_choices_that_cause_the_gap(few, monkeypatch):
    """The arena of (8, 4) has a gap. In a large space that is one conflict; a small one needs no solver."""
    monkeypatch.setattr(FEW, few)
    pricing, limits = two_tensors({(8, 4): 100}), {PEAK_RAM: 1200.0}
    scores = np.log([[0.1, 0.2, 0.7], [0.1, 0.6, 0.3], [0.1, 0.2, 0.7]])
    solved = []
    once = pricing.projector.most_likely

    def counted(*arguments):
        solved.append(list(arguments[2]))
        return once(*arguments)

    monkeypatch.setattr(pricing.projector, "most_likely", counted)
    found = pricing.planned.most_likely(scores, limits)
    assert found == Solution({"weights/v0": 4, "weights/v1": 4, "weights/v2": 8}, proven=few > 0)
    assert solved == ([] if few else [[], [{"weights/v0": 8, "weights/v1": 4}]])


def test_a_small_space_plans_the_arenas_it_comes_to_and_each_of_them_once():
    pricing, planned = two_tensors({(a, b): 900 for a in (2, 4, 8) for b in (2, 4, 8)}), []
    arena_bytes = pricing.device.arena_bytes
    pricing.planned._arena_bytes = lambda policy: planned.append(policy) or arena_bytes(None, None, policy)
    assert pricing.planned.most_likely(np.zeros((3, 3)), {FLASH: 4.0}).policy in planned
    assert len(planned) == 1
    for _ in range(2):
        assert pricing.planned.feasible({PEAK_RAM: 1200.0}).policy is None
        assert len(planned) == sum(a + b <= 12 for a in (2, 4, 8) for b in (2, 4, 8)) * 3, (
            "whose tensors fit 1200 bytes"
        )


def test_policies_that_hold_an_excluded_part_are_passed_over():
    pricing = two_tensors({})
    scores = np.log([[0.1, 0.2, 0.7], [0.1, 0.6, 0.3], [0.1, 0.2, 0.7]])
    found = pricing.planned.most_likely(scores, {}, [{"weights/v0": 8}, {"weights/v1": 4, "weights/v2": 8}])
    assert found == Solution({"weights/v0": 4, "weights/v1": 8, "weights/v2": 8}, proven=True)


@LARGE
def test_arenas_that_never_fit_are_proven_only_where_each_was_planned(few, monkeypatch):
    monkeypatch.setattr(FEW, few)
    pricing = two_tensors({(a, b): 900 for a in (2, 4, 8) for b in (2, 4, 8)})
    assert pricing.planned.feasible({PEAK_RAM: 1200.0}) == Solution(None, proven=few > 0)
    assert pricing.planned.feasible({PEAK_RAM: 399.0}) == Solution(None, proven=True), "nor do the tensors themselves"
    least = pricing.planned.cheapest(PEAK_RAM, {})
    assert pricing.price(least.policy)[PEAK_RAM] == 1300.0
    assert least.proven == (few > 0)


@pytest.mark.parametrize(
    ("network", "device", "shares"),
    [
        ("resnet8", "cortex-a53-rpi3-lowbit-neon", {PEAK_RAM: 0.8}),
        ("resnet20", "cortex-m7-stm32h743-ddq", {LATENCY: 0.971, FLASH: 0.635, PEAK_RAM: 0.63}),
    ],
)
def test_networks_whose_arenas_exceed_their_live_tensors(network, device, shares):
    """The best policies by live sums need a larger arena; those found do not, and score nearly as high."""
    graph, profile = trace(build_model(network, 3, 10, 32), torch.zeros(1, 3, 32, 32)), cost_model(device)
    space = build_space(graph, profile)
    pricing = Pricing.build(graph, profile, CostTables(space, profile.factors(graph, space)))
    limits, gaps = {cost: share * pricing.reference[cost] for cost, share in shares.items()}, 0
    for seed in range(6):
        scores = np.log(np.random.default_rng(seed).dirichlet(np.ones(3), len(space.variables)))
        first, found = pricing.projector.most_likely(scores, limits), pricing.planned.most_likely(scores, limits)
        assert pricing.meets(found.policy, limits)
        assert found.proven == pricing.meets(first.policy, limits)
        gaps += not found.proven
        best = score(pricing, scores, first.policy)
        assert 1.1 * best < score(pricing, scores, found.policy) <= best < 0
    assert gaps >= 2
