"""Relaxed choices: points on a simplex, gradients, ends that are one choice, and strategies behind one quantizer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.cost import keeps
from ddq_search.discrete import integer_weights
from ddq_search.errors import ConfigError
from ddq_search.lagrangian import AugmentedLagrangian
from ddq_search.mixture_training import MixtureTraining
from ddq_search.quantizers.choice_of_families import Quantizers
from ddq_search.quantizers.dq_gradients import instead_of
from ddq_search.quantizers.registry import family
from ddq_search.quantizers.relaxations import Fractional, HardConcrete, Softmax
from ddq_search.quantizers.straight_through import fake_quantize
from ddq_search.quantizers.strategies import StrategyActivations, StrategyWeights
from ddq_search.quantizers.uniform import UniformActivations, UniformWeights
from ddq_search.relaxed import _rounded_within, relaxation_of
from tests.networks import sample_images
from tests.test_supernet import small
from tests.toys import toy_space

COLUMNS = [(0, 1, 2), (0,), (0, 1)]
KINDS = [Softmax, Fractional, HardConcrete]


class Unpriced:
    """Cost tables of nothing."""

    def expected(self, probabilities, costs):
        return {}


def noise(seed=0):
    return torch.rand(3, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), spread=st.floats(0.1, 5))
def test_shares_and_probabilities_are_points_on_a_simplex(kind, seed, spread):
    relaxation = kind(COLUMNS)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in relaxation.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    relaxation.project()
    for found in (relaxation.shares(noise(seed)).detach(), relaxation.probabilities().detach()):
        assert float(found.min()) >= -1e-6
        torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]))
        assert float(found[1, 0]) == pytest.approx(1)
        assert float(found[2, 2]) == pytest.approx(0, abs=1e-6)


def test_softmax_by_hand_and_colder():
    relaxation = Softmax(COLUMNS, coldest=0.25)
    with torch.no_grad():
        relaxation.logits[0] = torch.tensor([0.0, np.log(2), 0.0])
    assert relaxation.shares(noise())[0].tolist() == pytest.approx([0.25, 0.5, 0.25])
    relaxation.advance(0.5)  # temperature ½ squares the odds
    assert relaxation.shares(noise())[0].tolist() == pytest.approx([1 / 6, 4 / 6, 1 / 6])


def test_fractional_positions_mix_the_two_neighbours():
    relaxation = Fractional(COLUMNS)
    with torch.no_grad():
        relaxation.position.copy_(torch.tensor([1.25, 0.0, 9.0]))
    relaxation.project()
    assert relaxation.shares(noise()).tolist() == [[0, 0.75, 0.25], [1, 0, 0], [0, 1, 0]]
    relaxation.shares(noise())[0].dot(torch.tensor([5.0, 1.0, 3.0])).backward()
    assert float(relaxation.position.grad[0]) == pytest.approx(3 - 1)  # the slope between the neighbours
    assert relaxation.rounded(0.25).tolist() == [2, 0, 1]
    assert relaxation.rounded(0.26).tolist() == [1, 0, 1]


def test_hard_concrete_gates_reach_both_ends_and_their_probability_is_that_of_not_being_closed():
    relaxation = HardConcrete(COLUMNS)
    with torch.no_grad():
        relaxation.log_alpha.fill_(0.3)
    draws = torch.stack([relaxation.shares(noise(seed)) for seed in range(4000)]).detach()
    opened = 1 - draws[:, 2, 0]  # the one gate of the third variable
    assert float((opened == 0).float().mean()) > 0.1
    assert float((opened == 1).float().mean()) > 0.1
    expected = float(1 - relaxation.probabilities().detach()[2, 0])
    assert float((opened > 0).float().mean()) == pytest.approx(expected, abs=0.03)
    assert relaxation.scores()[2].argmax() == (1 if expected > 0.5 else 0)


def test_strategies_of_one_precision_add_up():
    relaxation = Softmax([(0, 0, 1, 1)])
    with torch.no_grad():
        relaxation.logits[0] = torch.tensor([1.0, 2.0, 3.0, 4.0]).log()
    assert relaxation.probabilities()[0].tolist() == pytest.approx([0.3, 0.7])


# -- strategies ---------------------------------------------------------------------------------------------------


def strategies(candidates=(4, 8)):
    quantizer = Quantizers(("uniform", "dorefa", "mse"), ("uniform", "pact")).for_weights(candidates, 6)
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    quantizer.calibrate(weight)
    return quantizer, weight


def test_a_strategy_alone_is_its_family():
    quantizer, weight = strategies()
    assert isinstance(quantizer, StrategyWeights)
    assert quantizer.columns == (0, 0, 0, 1, 1, 1)
    for column, branch in enumerate(quantizer.branches):
        shares = torch.eye(6)[column]
        torch.testing.assert_close(quantizer.mix(weight, shares), branch.fake_quantize(weight, 0))


OURS = ("uniform", "min-max", "mse", "lsq")


class AbsoluteWeights(UniformWeights):
    """A user's: steps that do not follow the weights' mean magnitude."""

    def statistic(self, x):
        return None

    @torch.no_grad()
    def calibrate(self, weight):
        largest = weight.detach().flatten(1).abs().amax(1).clamp_min(1e-8)
        for k, grid in enumerate(self.grids):
            self.log_steps[k] = (largest / grid.high).log()


class RmsActivations(UniformActivations):
    """A user's: steps in units of what a tensor has."""

    def statistic(self, x):
        return x.detach().square().mean().sqrt()


class CoarseWeights(UniformWeights):
    """A user's: steps twice as large as those learned."""

    def steps(self, x):
        return 2 * super().steps(x)

    def fake_quantize(self, x, choice, cumulative=None):
        return instead_of(x, fake_quantize(x, self.steps(x)[choice], self.grids[choice]))


def mixtures(*own):
    """Two to four of a user's families and ours, in any order."""
    ours = [getattr(family(name), "activations" if own[0] is RmsActivations else "weights") for name in OURS]
    return st.lists(st.sampled_from([*own, *ours]), min_size=2, max_size=4)


def assert_mix_is_the_weighted_sum(quantizer, x):
    generator = torch.Generator().manual_seed(1)
    shares = torch.rand(len(quantizer.branches), generator=generator).softmax(0).requires_grad_()
    grad, leaf, other = (
        torch.randn(x.shape, generator=generator),
        x.clone().requires_grad_(),
        x.clone().requires_grad_(),
    )
    found = quantizer.mix(leaf, shares)
    values = [branch.fake_quantize(other, 0) for branch in quantizer.branches]
    wanted = sum(share * value for share, value in zip(shares, values, strict=True))
    torch.testing.assert_close(found, wanted)
    by_found = torch.autograd.grad(found, (leaf, shares), grad)
    by_wanted = torch.autograd.grad(wanted, (other, shares), grad)
    torch.testing.assert_close(by_found, by_wanted, rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(mixtures(AbsoluteWeights, CoarseWeights), st.sampled_from([2, 4, 8]))
def test_mixed_weights_are_the_weighted_sum_whatever_a_user_overrides(kinds, bits):
    weight = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.1], [1.0], [5.0]])
    quantizer = StrategyWeights((bits,), [[(str(k), kind((bits,), 3)) for k, kind in enumerate(kinds)]])
    quantizer.calibrate(weight)
    assert_mix_is_the_weighted_sum(quantizer, weight)


@settings(max_examples=60, deadline=None)
@given(mixtures(RmsActivations), st.sampled_from([2, 4, 8]), st.booleans())
def test_mixed_activations_are_the_weighted_sum_whatever_a_user_overrides(kinds, bits, nonnegative):
    x = 3 * torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    x = x.relu() if nonnegative else x
    branches = [(str(k), kind((bits,), nonnegative)) for k, kind in enumerate(kinds)]
    quantizer = StrategyActivations((bits,), [branches], nonnegative)
    quantizer.calibrate(x.flatten())
    assert_mix_is_the_weighted_sum(quantizer, x)


def test_uniform_steps_that_a_user_overrides_are_not_computed_in_one_pass():
    assert family("uniform").weights((4,), 3).plain
    assert not CoarseWeights((4,), 3).plain
    assert not type("Unsaid", (UniformWeights,), {"steps": CoarseWeights.steps})((4,), 3).plain


def test_every_strategy_gets_its_gradient_in_one_pass():
    quantizer, weight = strategies()
    shares = torch.full((6,), 1 / 6, requires_grad=True)
    grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    quantizer.mix(weight, shares).backward(grad)
    wanted = torch.stack([(grad * branch.fake_quantize(weight, 0)).sum() for branch in quantizer.branches])
    torch.testing.assert_close(shares.grad, wanted, rtol=1e-4, atol=1e-4)


def test_settling_chooses_per_precision_and_survives_saving_and_taking():
    quantizer, weight = strategies()
    quantizer.settle(torch.tensor([0.1, 0.7, 0.2, 0.1, 0.2, 0.7]))
    assert [quantizer.strategy(k) for k in range(2)] == ["dorefa", "mse"]
    fresh, _ = strategies()
    fresh.load_state_dict(quantizer.state_dict())
    assert [fresh.strategy(k) for k in range(2)] == ["dorefa", "mse"]
    narrow, _ = strategies((8,))
    narrow.take(quantizer)
    assert narrow.strategy(0) == "mse"
    torch.testing.assert_close(narrow.fake_quantize(weight, 0), quantizer.fake_quantize(weight, 1))
    numbers = quantizer.numbers(weight, 0)
    deployed = torch.from_numpy(numbers.codes * numbers.scale.reshape(-1, 1, 1, 1)).float()
    torch.testing.assert_close(deployed, quantizer.fake_quantize(weight, 0))


def test_one_strategy_with_levels_gives_all_weights_a_table():
    quantizer = Quantizers(("uniform", "power-of-two"), ("uniform",)).for_weights((4,), 6)
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    quantizer.calibrate(weight)
    for scores in (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])):
        quantizer.settle(scores)
        numbers = quantizer.numbers(weight, 0)
        assert numbers.codebook is not None
        values = numbers.codebook[numbers.codes].astype(np.float64) * numbers.scale[:, None]
        torch.testing.assert_close(torch.from_numpy(values).float(), quantizer.fake_quantize(weight, 0).detach())


def test_one_strategy_of_many_points_gives_all_weights_as_many():
    quantizer = Quantizers(("uniform", "multipoint"), ("uniform",)).for_weights((4,), 6)
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    quantizer.calibrate(weight)
    for scores in (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])):
        quantizer.settle(scores)
        numbers = quantizer.numbers(weight, 0)
        assert len(numbers.points) == 1
        integers = integer_weights(numbers.codes, None, numbers.points)
        values = torch.from_numpy(integers * numbers.scale[:, None]).float()
        torch.testing.assert_close(values, quantizer.fake_quantize(weight, 0).detach())


def test_activations_keep_a_known_grid_whatever_the_strategy():
    quantizer = Quantizers(("uniform",), ("uniform", "pact", "min-max")).for_activations((8,), True)
    assert isinstance(quantizer, StrategyActivations)
    quantizer.set_grid(0.5, 3)
    for column in range(3):
        quantizer.settle(torch.eye(3)[column])
        assert (quantizer.grid(0).scale, quantizer.grid(0).zero_point) == (pytest.approx(0.5), 3)


@pytest.mark.parametrize(
    ("weights", "activations", "message"),
    [
        (("unifrom",), ("uniform",), "did you mean 'uniform'"),
        (("pact",), ("uniform",), "does not quantize weights"),
        (("uniform",), ("averaged",), "not uniform"),
        ((), ("uniform",), "at least one"),
        (("uniform", "uniform"), ("uniform",), "each once"),
        (("learned", "multipoint"), ("uniform",), "not both"),
    ],
)
def test_what_does_not_fit_is_named(weights, activations, message):
    with pytest.raises(ConfigError, match=message):
        Quantizers(weights, activations).check()


def test_a_mixture_may_not_overwrite_what_its_other_candidates_read():
    quantizer = Quantizers().for_activations((2, 4, 32), False)
    x = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    quantizer.calibrate(x)
    shares = torch.tensor([0.2, 0.3, 0.5])
    wanted = sum(p * quantizer.fake_quantize(x, k) for k, p in enumerate(shares))
    quantizer.overwrites_input = True
    torch.testing.assert_close(quantizer.mix(x.clone(), shares), wanted)


def test_the_pull_of_accumulated_batches_adds_up():
    class Net:
        def mix(self, shares):
            self.shares = shares

    relaxation, pulls = Softmax(COLUMNS), torch.arange(18.0).reshape(2, 3, 3)
    choices = MixtureTraining(Net(), relaxation, Unpriced(), AugmentedLagrangian([{}]))
    for pull in pulls:
        choices.sample(noise())
        (choices.leaves()[0] * pull).sum().backward()
        choices.collect()
    choices.backward()
    found, relaxation.logits.grad = relaxation.logits.grad, None
    (relaxation.shares(noise()) * pulls.sum(0)).sum().backward()
    torch.testing.assert_close(found, relaxation.logits.grad)


# -- networks -----------------------------------------------------------------------------------------------------


def test_one_convolution_of_two_mixtures_stands_for_all_pairs(monkeypatch):
    """``Σ_i α_i Σ_j β_j (W_j * A_i) = (Σ_j β_j W_j) * (Σ_i α_i A_i)``, and the network computes the right side once."""
    generator = torch.Generator().manual_seed(0)
    families = Quantizers(("uniform", "dorefa", "power-of-two"), ("uniform", "pact", "lsq"))
    x, weight = (torch.randn(shape, generator=generator) for shape in ((2, 3, 7, 7), (4, 3, 3, 3)))
    weights, activations = families.for_weights((2, 4), 4), families.for_activations((4, 8), False)
    weights.calibrate(weight)
    activations.calibrate(x)
    beta, alpha = (torch.rand(6, generator=generator).softmax(0) for _ in range(2))
    one = torch.nn.functional.conv2d(activations.mix(x, alpha), weights.mix(weight, beta))
    every = sum(
        alpha[i] * beta[j] * torch.nn.functional.conv2d(a.fake_quantize(x, 0), w.fake_quantize(weight, 0))
        for i, a in enumerate(activations.branches)
        for j, w in enumerate(weights.branches)
    )
    torch.testing.assert_close(one, every, rtol=1e-4, atol=1e-4)
    net = small(quantizers=families)
    calls, real = [], torch.nn.Conv2d._conv_forward
    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", lambda self, *a: (calls.append(self), real(self, *a))[1])
    net.mix(relaxation_of("dqss", net).shares(torch.rand(0)))
    net(sample_images(2))
    assert len(calls) == len(set(calls)) == 3


def test_one_pass_gives_weights_steps_and_strategies_their_gradients():
    net = small(quantizers=Quantizers(("uniform", "lsq", "dorefa"), ("uniform", "lsq", "pact")))
    relaxation = relaxation_of("dqss", net)
    choices = MixtureTraining(net, relaxation, Unpriced(), AugmentedLagrangian([{}]))
    net.train()
    choices.sample(torch.rand(relaxation.exists.shape))
    torch.nn.functional.cross_entropy(net(sample_images(16)), torch.arange(16) % 5).backward()
    choices.collect()
    choices.backward()
    assert all(bool((p.grad != 0).any()) for p in net.model.parameters() if p.ndim > 1)
    assert bool(((relaxation.logits.grad != 0) == relaxation.exists).all())
    learned = {
        (variable.name, name): parameter.grad
        for variable, quantizer in zip(net.space.variables, net.tensor_quantizers(), strict=True)
        for name, parameter in quantizer.named_parameters()
        if parameter.requires_grad
    }
    assert len(learned) > 20
    without = {key for key, grad in learned.items() if grad is None or not bool((grad != 0).any())}
    names = [q.names[int(name.split(".")[1])] for q, name in ((net.quantizers[net._row[v]], n) for v, n in without)]
    assert set(names) <= {"pact"}  # whose clip learns from clipped values alone, of which 8 bits may have none


def test_fractions_are_rounded_at_the_least_offset_that_keeps_the_budgets():
    """Positions 0.2, 0.5, 0.8 of two candidates, one byte dearer each: how many go up is what the budget leaves."""

    class Priced:
        tables = SimpleNamespace(space=toy_space([(2, 4)] * 3))

        def price(self, policy):
            return {"flash_bytes": float(sum(bits == 4 for bits in policy.values()))}

        def meets(self, policy, limits):
            return keeps(self.price(policy), limits)

    relaxation = Fractional([(0, 1)] * 3)
    with torch.no_grad():
        relaxation.position.copy_(torch.tensor([0.2, 0.5, 0.8]))
    for limit, bits in ((3, [4, 4, 4]), (2, [2, 4, 4]), (1, [2, 2, 4]), (0, [2, 2, 2])):
        assert list(_rounded_within(Priced(), relaxation, {"flash_bytes": limit}).values()) == bits
    assert _rounded_within(Priced(), relaxation, {"flash_bytes": -1}) is None
