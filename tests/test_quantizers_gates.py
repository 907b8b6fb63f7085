"""Ordered gates: probabilities, sampling, window."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.quantizers.gates import Gates, choose, cooled, thresholded


def random_gates(candidates, sets=1, seed=0):
    gates = Gates(candidates, sets)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in gates.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) * 1.6 - 0.8)
    gates.project()
    return gates


@settings(max_examples=50, deadline=None)
@given(candidates=st.lists(st.integers(1, 5), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_probabilities_are_the_products_of_the_gates(candidates, seed):
    gates = random_gates(candidates, seed=seed)
    p = gates.probabilities(gates.cumulative(0)).detach()
    assert p.dtype == torch.float64
    torch.testing.assert_close(p.sum(1), torch.ones(len(candidates), dtype=torch.float64))
    assert float(p.min()) >= 0
    opened = ((gates.own[0] + 1) / 2).detach().double()
    for row, count in enumerate(candidates):
        g = opened[row, : count - 1].tolist()
        for k in range(p.shape[1]):
            product = 1.0
            for i in range(min(k, count - 1)):
                product *= g[i]
            product *= 1 - g[k] if k < count - 1 else 1.0
            expected = product if k < count else 0.0
            assert float(p[row, k]) == pytest.approx(expected, abs=1e-6)


def test_brute_force_over_all_gate_states():
    """Independent gates, ordered: the number of leading open gates has the distribution of the thermometer."""
    gates = random_gates([4], seed=7)
    g = ((gates.own[0] + 1) / 2)[0].detach().tolist()
    expected = [0.0] * 4
    for states in itertools.product([0, 1], repeat=3):
        probability = 1.0
        for state, opened in zip(states, g, strict=True):
            probability *= opened if state else 1 - opened
        expected[next((i for i, state in enumerate(states) if not state), 3)] += probability
    assert gates.probabilities(gates.cumulative(0))[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_sampling_frequencies():
    gates = random_gates([3, 2, 1, 4], seed=3)
    c = gates.cumulative(0)
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor([choose(c, torch.rand(4, generator=generator)) for _ in range(4000)])
    p = gates.probabilities(c).detach()
    for row, count in enumerate((3, 2, 1, 4)):
        assert int(draws[:, row].max()) < count
        frequency = torch.bincount(draws[:, row], minlength=4) / len(draws)
        torch.testing.assert_close(frequency.double(), p[row], atol=0.03, rtol=0)


def test_extreme_draws_stay_inside_the_candidates():
    gates = Gates([3, 1, 2], 1, start=0.96)
    for u in (0.0, 0.5, 1 - 2**-24):
        assert all(
            k < count for k, count in zip(choose(gates.cumulative(0), torch.full((3,), u)), (3, 1, 2), strict=True)
        )
    assert choose(gates.cumulative(0), torch.full((3,), 0.5)) == [2, 0, 1]


def test_project_keeps_every_gate_in_its_window_and_alive():
    gates = Gates([3, 3, 2], 2)
    with torch.no_grad():
        gates.own[0].copy_(torch.tensor([[5.0, -5.0], [0.5, 0.5], [-3.0, 0.0]]))
        gates.own[1].fill_(-9.0)
    gates.project()
    for index, own in enumerate(gates.own):
        assert float(own.detach().abs().max()) <= 0.96
        (gates.probabilities(gates.cumulative(index)) * torch.tensor([0.0, 1.0, 3.0])).sum().backward()
        assert torch.equal(own.grad != 0, gates.exists)


def test_gradient_of_missing_gates_is_zero():
    gates = random_gates([3, 1, 2], sets=2)
    (gates.probabilities(gates.cumulative(0)) * torch.arange(3)).sum().backward()
    assert torch.equal(gates.own[0].grad != 0, gates.exists)
    assert gates.own[1].grad is None


def test_all_sets_at_once_are_the_sets_one_by_one():
    gates = random_gates([3, 1, 2], sets=3)
    together = gates.all_cumulative()
    assert together.shape == (3, 3, 2)
    for index in range(3):
        assert torch.equal(together[index], gates.cumulative(index))
        assert torch.equal(gates.probabilities(together)[index], gates.probabilities(gates.cumulative(index)))


@settings(max_examples=30, deadline=None)
@given(candidates=st.lists(st.integers(1, 5), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_scores_are_of_the_likeliest_pattern_that_reads_as_a_candidate(candidates, seed):
    """All patterns of all gates by brute force: each reads as the candidate of its first closed gate."""
    gates = random_gates(candidates, seed=seed)
    scores = gates.scores(0)
    opened = ((gates.own[0] + 1) / 2).detach().double()
    for row, count in enumerate(candidates):
        best = [-math.inf] * count
        for pattern in itertools.product((True, False), repeat=count - 1):
            likelihood = sum(
                math.log(p if is_open else 1 - p) for p, is_open in zip(opened[row], pattern, strict=False)
            )
            read = next((k for k, is_open in enumerate(pattern) if not is_open), count - 1)
            best[read] = max(best[read], likelihood)
        assert scores[row, :count].tolist() == pytest.approx(best, abs=1e-5)
        assert bool((scores[row, count:] <= scores[row, :count].max() + 1e-9).all())


@settings(max_examples=50, deadline=None)
@given(candidates=st.lists(st.integers(1, 5), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_the_best_score_is_that_of_the_thresholded_gates(candidates, seed):
    gates = random_gates(candidates, seed=seed)
    found = [scores[:count].argmax().item() for scores, count in zip(gates.scores(0), candidates, strict=True)]
    assert found == thresholded(gates.cumulative(0))


def test_gates_that_nothing_trained_do_not_decide():
    """4 bits of 2 … 8: the gate to 5 is closed, those beyond are where they started, open."""
    gates = Gates([7], 1, start=0.6)
    with torch.no_grad():
        gates.own[0][0, :3] = torch.tensor([0.75, 0.32, -0.64])
    opened = (gates.own[0][0].detach() + 1) / 2
    assert gates.scores(0)[0].argmax() == 2
    assert float(gates.scores(0)[0, 2]) == pytest.approx(math.log(0.875 * 0.66 * 0.82 * 0.8**3), abs=1e-6)
    assert float(gates.scores(0)[0, 6]) == pytest.approx(float(opened.log().sum()), abs=1e-6)


def test_start_is_near_the_widest_candidate():
    p = Gates.probabilities(Gates([3], 1, start=0.6).cumulative(0))
    assert p[0].tolist() == pytest.approx([0.2, 0.16, 0.64], abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(candidates=st.lists(st.integers(1, 5), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_thresholded_gates_open_up_to_the_first_closed_one(candidates, seed):
    gates = random_gates(candidates, seed=seed)
    opened = (gates.own[0] > 0) & gates.exists
    expected = [next((k for k, is_open in enumerate(row) if not is_open), len(row)) for row in opened.tolist()]
    assert thresholded(gates.cumulative(0)) == expected
    assert all(k < count for k, count in zip(expected, candidates, strict=True))


def test_thresholded_gates_read_every_gate_by_itself():
    gates = Gates([3], 1, start=0.2)  # both gates at 0.6: more open than closed, though their product is not
    assert choose(gates.cumulative(0), torch.full((1,), 0.5)) == [1]
    assert thresholded(gates.cumulative(0)) == [2]


@settings(max_examples=50, deadline=None)
@given(candidates=st.lists(st.integers(1, 5), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_cold_gates_are_the_thresholded_ones_and_warm_ones_as_they_were(candidates, seed):
    gates = random_gates(candidates, seed=seed)
    c = gates.cumulative(0)
    torch.testing.assert_close(cooled(c, 1.0), c.detach())
    assert not cooled(c, 0.01)[~gates.exists].any()
    undecided = (gates.own[0].abs() < 0.1) & gates.exists
    if not undecided.any():
        middle = torch.full((len(candidates),), 0.5)
        assert choose(cooled(c, 0.01), middle) == thresholded(c)


def test_cooled_by_hand():
    """Log-odds of 0.8 are ln 4; at half the temperature ln 16."""
    c = torch.tensor([[0.8, 0.8 * 0.2]])
    assert cooled(c, 0.5)[0].tolist() == pytest.approx([16 / 17, 16 / 17 * 1 / 17])


def test_gates_at_their_ends_stay_there():
    assert cooled(torch.tensor([[1.0, 0.0, 0.0]]), 0.3)[0].tolist() == [1, 0, 0]
