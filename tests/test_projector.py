"""The projector against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.cost import FLASH, LATENCY, PEAK_RAM, CostTables, Factor
from ddq_search.projector import Projector, separated
from tests.toys import all_policies, toy_space, toy_tables

SPACES = st.lists(st.sampled_from([(8,), (2, 8), (4, 8), (2, 4, 8)]), min_size=1, max_size=4)
COSTS = (LATENCY, FLASH, PEAK_RAM)


def score(tables, log_probabilities, policy):
    return sum(
        log_probabilities[row, v.candidates.index(policy[v.name])] for row, v in enumerate(tables.space.variables)
    )


def random_problem(candidates, seed, integers):
    tables = toy_tables(candidates, seed, integers=integers)
    rng = np.random.default_rng(seed + 1)
    policies = all_policies(tables.space)
    prices = [tables.price(policy) for policy in policies]
    limits = {
        cost: float(np.quantile([p[cost] for p in prices], rng.uniform(0, 1))) for cost in COSTS if rng.uniform() < 0.7
    }
    width = max(map(len, candidates))
    log_probabilities = np.log(np.clip(rng.dirichlet(np.ones(width), len(candidates)), 1e-6, 1))
    within = [p for p, price in zip(policies, prices, strict=True) if all(price[c] <= limits[c] for c in limits)]
    return tables, limits, log_probabilities, within


@settings(max_examples=30, deadline=None)
@given(candidates=SPACES, seed=st.integers(0, 10_000), integers=st.booleans())
def test_most_likely_and_cheapest_equal_brute_force(candidates, seed, integers):
    tables, limits, log_probabilities, within = random_problem(candidates, seed, integers)
    projector = Projector(tables)
    found = projector.most_likely(log_probabilities, limits)
    if not within:
        assert found is None
    else:
        assert found in within
        best = max(score(tables, log_probabilities, policy) for policy in within)
        assert score(tables, log_probabilities, found) == pytest.approx(best, rel=2e-4)
    for cost in COSTS:
        others = {other: limit for other, limit in limits.items() if other != cost}
        allowed = [p for p in all_policies(tables.space) if all(tables.price(p)[c] <= others[c] for c in others)]
        cheapest = projector.cheapest(cost, others)
        if not allowed:
            assert cheapest is None
            continue
        assert cheapest in allowed
        least = min(tables.price(policy)[cost] for policy in allowed)
        assert tables.price(cheapest)[cost] == pytest.approx(least, rel=2e-4)


@settings(max_examples=15, deadline=None)
@given(candidates=SPACES, seed=st.integers(0, 10_000))
def test_exclusion_lists_the_policies_in_order_of_probability(candidates, seed):
    tables, limits, log_probabilities, within = random_problem(candidates, seed, True)
    projector, found = Projector(tables), []
    while (policy := projector.most_likely(log_probabilities, limits, found)) is not None and len(found) < 6:
        assert policy not in found
        found.append(policy)
    scores = [score(tables, log_probabilities, policy) for policy in found]
    expected = sorted((score(tables, log_probabilities, policy) for policy in within), reverse=True)
    assert scores == pytest.approx(expected[: len(scores)], rel=2e-4)
    assert len(found) == min(6, len(within))


def test_limits_hold_exactly_at_equality():
    tables = toy_tables([(2, 4, 8)] * 4, 3)
    projector = Projector(tables)
    for policy in all_policies(tables.space)[::9]:
        limits = tables.price(policy)
        log_probabilities = np.full((4, 3), np.log(1e-6))
        for row, v in enumerate(tables.space.variables):
            log_probabilities[row, v.candidates.index(policy[v.name])] = 0.0
        assert projector.most_likely(log_probabilities, limits) == policy


@pytest.mark.parametrize("over", [1e-12, 1e-9, 1e-7, 3e-7, 9e-7, 2e-6])
def test_a_policy_over_by_less_than_the_solvers_tolerance_is_not_returned_and_hides_no_other(over):
    table = np.array([0.5, 1.0 + over])
    tables = CostTables(toy_space([(2, 8)]), [Factor(LATENCY, "v0", "compute", ("weights/v0",), table)])
    found = Projector(tables).most_likely(np.log([[0.01, 0.99]]), {LATENCY: 1.0})
    assert found == {"weights/v0": 2}


def test_impossible_limits():
    tables = toy_tables([(2, 8)] * 2, 1)
    assert Projector(tables).most_likely(np.zeros((2, 2)), {FLASH: 1e-3}) is None
    assert Projector(tables).cheapest(LATENCY, {FLASH: 1e-3}) is None


def test_a_table_without_monotony_is_solved_not_walked():
    """Dearest at 4 bits: walking down from 8 would stop there."""
    space = toy_space([(2, 4, 8)] * 2)
    factors = [Factor(LATENCY, f"v{i}", "compute", (f"weights/v{i}",), np.array([1.0, 9.0, 5.0])) for i in range(2)] + [
        Factor(FLASH, f"v{i}", "weights", (f"weights/v{i}",), np.array([2.0, 4.0, 8.0])) for i in range(2)
    ]
    projector = Projector(CostTables(space, factors))
    log_probabilities = np.log([[0.01, 0.09, 0.9], [0.01, 0.09, 0.9]])
    eight = {"weights/v0": 8, "weights/v1": 8}
    assert projector.most_likely(log_probabilities, {LATENCY: 10.0}) == eight
    assert sorted(projector.most_likely(log_probabilities, {LATENCY: 9.9}).values()) == [2, 8]
    assert sorted(projector.most_likely(log_probabilities, {FLASH: 12.0}).values()) == [4, 8]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 5000), tight=st.floats(0.3, 1.2))
def test_nearest_against_brute_force(seed, tight):
    """The largest cost relative to its limit is the least of all policies', peak RAM included."""
    tables = toy_tables([(2, 4, 8), (4, 8), (2, 8)], seed)
    prices = {tuple(policy.values()): tables.price(policy) for policy in all_policies(tables.space)}
    limits = {cost: tight * float(np.median([p[cost] for p in prices.values()])) for cost in (LATENCY, FLASH, PEAK_RAM)}

    def excess(price):
        return max(price[cost] / limit for cost, limit in limits.items())

    found = Projector(tables).nearest(limits)
    assert excess(tables.price(found)) == pytest.approx(min(map(excess, prices.values())), rel=1e-6)


# -- tables taken apart -------------------------------------------------------------------------------------------


def total(parts, names, shape):
    """The sum of smaller tables, spread over all axes of the whole."""
    result = np.zeros(shape)
    for kept, part in parts:
        result = result + part.reshape([size if name in kept else 1 for name, size in zip(names, shape, strict=True)])
    return result


@given(
    shape=st.lists(st.integers(1, 4), max_size=3),
    terms=st.sets(st.sets(st.integers(0, 2)).map(frozenset)),
    seed=st.integers(0, 1000),
)
def test_separated_tables_add_up_and_are_the_smallest(shape, terms, seed):
    rng, axes = np.random.default_rng(seed), range(len(shape))
    table = np.zeros(shape)
    for term in terms:
        table = table + rng.uniform(1, 2, [shape[axis] if axis in term else 1 for axis in axes])
    names = tuple("abc"[axis] for axis in axes)
    parts = separated(names, table)
    assert total(parts, names, tuple(shape)) == pytest.approx(table, rel=1e-9)
    needed = [term & {axis for axis in axes if shape[axis] > 1} for term in terms]
    for kept, _ in parts:
        own = {names.index(name) for name in kept}
        whole = kept == names  # what cannot be taken apart stays as it is
        assert whole or not own or any(own <= term for term in needed)


def test_an_interaction_stays_whole():
    table = np.array([[1.0, 2.0], [3.0, 5.0]])
    ((names, kept),) = separated(("a", "b"), table)
    assert names == ("a", "b")
    assert (kept == table).all()


def test_three_variables_of_which_two_interact():
    """Latency of a layer: weights and input together, writing the output apart: 4 + 2 entries instead of 8."""
    compute, written = np.array([[1.0, 2.0], [2.0, 6.0]]), np.array([0.0, 5.0])
    parts = dict(separated(("w", "x", "y"), compute[:, :, None] + written))
    assert set(parts) == {(), ("w",), ("x",), ("y",), ("w", "x")}
    assert parts["y",].tolist() == [0.0, 5.0]
    assert parts["w", "x"].tolist() == [[0.0, 0.0], [0.0, 3.0]]  # 6 - 2 - 2 + 1
