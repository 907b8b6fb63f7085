"""The projector against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.cost import FLASH, LATENCY, PEAK_RAM, CostTables, Factor
from ddq_search.projector import Projector, Solution, separated
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
    assert found.proven
    if not within:
        assert found.policy is None
    else:
        assert found.policy in within
        best = max(score(tables, log_probabilities, policy) for policy in within)
        assert score(tables, log_probabilities, found.policy) == pytest.approx(best, abs=1e-9)
    for cost in COSTS:
        others = {other: limit for other, limit in limits.items() if other != cost}
        allowed = [p for p in all_policies(tables.space) if all(tables.price(p)[c] <= others[c] for c in others)]
        cheapest = projector.cheapest(cost, others)
        assert cheapest.proven
        if not allowed:
            assert cheapest.policy is None
            continue
        assert cheapest.policy in allowed
        least = min(tables.price(policy)[cost] for policy in allowed)
        assert tables.price(cheapest.policy)[cost] == pytest.approx(least, rel=1e-6 if cost == PEAK_RAM else 1e-9)


@settings(max_examples=15, deadline=None)
@given(candidates=SPACES, seed=st.integers(0, 10_000))
def test_exclusion_lists_the_policies_in_order_of_probability(candidates, seed):
    tables, limits, log_probabilities, within = random_problem(candidates, seed, True)
    projector, found = Projector(tables), []
    while (policy := projector.most_likely(log_probabilities, limits, found).policy) is not None and len(found) < 6:
        assert policy not in found
        found.append(policy)
    scores = [score(tables, log_probabilities, policy) for policy in found]
    expected = sorted((score(tables, log_probabilities, policy) for policy in within), reverse=True)
    assert scores == pytest.approx(expected[: len(scores)], abs=1e-9)
    assert len(found) == min(6, len(within))


def test_limits_hold_exactly_at_equality():
    tables = toy_tables([(2, 4, 8)] * 4, 3)
    projector = Projector(tables)
    for policy in all_policies(tables.space)[::9]:
        limits = tables.price(policy)
        log_probabilities = np.full((4, 3), np.log(1e-6))
        for row, v in enumerate(tables.space.variables):
            log_probabilities[row, v.candidates.index(policy[v.name])] = 0.0
        assert projector.most_likely(log_probabilities, limits) == Solution(policy, proven=True)


@pytest.mark.parametrize("within", [0.5, 1.0])
@pytest.mark.parametrize("over", [1e-12, 1e-9, 1e-7, 3e-7, 9e-7, 2e-6])
def test_a_policy_over_by_less_than_the_solvers_tolerance_is_not_returned_and_hides_no_other(over, within):
    table = np.array([within, 1.0 + over])
    tables = CostTables(toy_space([(2, 8)]), [Factor(LATENCY, "v0", "compute", ("weights/v0",), table)])
    found = Projector(tables).most_likely(np.log([[0.01, 0.99]]), {LATENCY: 1.0})
    assert found == Solution({"weights/v0": 2}, proven=True)


@pytest.mark.parametrize("limit", [1e-3, 0.0, -1.0])
def test_impossible_limits(limit):
    tables = toy_tables([(2, 8)] * 2, 1)
    assert Projector(tables).most_likely(np.zeros((2, 2)), {FLASH: limit}) == Solution(None, proven=True)
    assert Projector(tables).cheapest(LATENCY, {FLASH: limit}) == Solution(None, proven=True)


def test_a_part_of_a_policy_can_be_excluded():
    tables = toy_tables([(2, 4, 8)] * 3, 5)
    log_probabilities = np.log([[0.1, 0.2, 0.7]] * 3)
    found = Projector(tables).most_likely(log_probabilities, {}, [{"weights/v0": 8, "weights/v2": 8}])
    assert sorted(found.policy.values()) == [4, 8, 8]
    assert found.policy["weights/v1"] == 8
    nothing_left = [{"weights/v1": bits} for bits in (2, 4, 8)]
    assert Projector(tables).most_likely(log_probabilities, {}, nothing_left) == Solution(None, proven=True)


# -- where the solver is stopped ----------------------------------------------------------------------------------


def knapsack(layers=40):
    """Scores that follow the costs, and a limit that no sum of costs meets: nothing but counting through helps."""
    rng = np.random.default_rng(0)
    sizes = 2.0 * rng.integers(10_000, 20_000, layers)
    names = [f"v{i}" for i in range(layers)]
    factors = [
        Factor(FLASH, name, "weights", (f"weights/{name}",), np.array([0.0, size]))
        for name, size in zip(names, sizes, strict=True)
    ]
    tables = CostTables(toy_space([(2, 8)] * layers), factors)
    return tables, np.stack([np.zeros(layers), sizes / 1e4], 1), {FLASH: sizes.sum() / 2 + 1}


def test_a_stopped_solver_returns_what_it_has_and_proves_nothing(monkeypatch):
    monkeypatch.setattr("ddq_search.projector._NODES", 1)
    tables, scores, limits = knapsack()
    found = Projector(tables).most_likely(scores, limits)
    assert not found.proven
    assert tables.price(found.policy)[FLASH] <= limits[FLASH]
    assert tables.price(found.policy)[FLASH] > 0.98 * limits[FLASH]


def test_a_solver_stopped_empty_handed_does_not_prove_that_there_is_nothing(monkeypatch):
    monkeypatch.setattr("ddq_search.projector._SECONDS", 0.0)
    tables, scores, limits = knapsack()
    assert Projector(tables).most_likely(scores, limits) == Solution(None, proven=False)


def test_a_table_without_monotony_is_solved_not_walked():
    """Dearest at 4 bits: walking down from 8 would stop there."""
    space = toy_space([(2, 4, 8)] * 2)
    factors = [Factor(LATENCY, f"v{i}", "compute", (f"weights/v{i}",), np.array([1.0, 9.0, 5.0])) for i in range(2)] + [
        Factor(FLASH, f"v{i}", "weights", (f"weights/v{i}",), np.array([2.0, 4.0, 8.0])) for i in range(2)
    ]
    projector = Projector(CostTables(space, factors))
    log_probabilities = np.log([[0.01, 0.09, 0.9], [0.01, 0.09, 0.9]])
    eight = {"weights/v0": 8, "weights/v1": 8}
    assert projector.most_likely(log_probabilities, {LATENCY: 10.0}).policy == eight
    assert sorted(projector.most_likely(log_probabilities, {LATENCY: 9.9}).policy.values()) == [2, 8]
    assert sorted(projector.most_likely(log_probabilities, {FLASH: 12.0}).policy.values()) == [4, 8]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 5000), tight=st.floats(0.3, 1.2))
def test_nearest_against_brute_force(seed, tight):
    """The largest cost relative to its limit is the least of all policies', peak RAM included."""
    tables = toy_tables([(2, 4, 8), (4, 8), (2, 8)], seed)
    prices = {tuple(policy.values()): tables.price(policy) for policy in all_policies(tables.space)}
    limits = {cost: tight * float(np.median([p[cost] for p in prices.values()])) for cost in (LATENCY, FLASH, PEAK_RAM)}

    def excess(price):
        return max(price[cost] / limit for cost, limit in limits.items())

    found = Projector(tables).nearest(limits).policy
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
