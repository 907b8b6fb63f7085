"""Level vectors: what each merging represents, gradients of levels, scales and gates, options, refusals."""

from __future__ import annotations

import itertools

import pytest
import torch

from ddq_search.errors import ConfigError, PolicyError
from ddq_search.quantizers.choice_of_families import Quantizers
from ddq_search.quantizers.level_calibration import lloyd_levels
from ddq_search.quantizers.levels import (
    AveragedActivations,
    AveragedWeights,
    LearnedActivations,
    LearnedWeights,
    PowerOfTwoActivations,
    PowerOfTwoWeights,
)
from ddq_search.quantizers.merging import merged, nearest
from ddq_search.quantizers.nearest_level import Backward, Levels, QuantizeToLevels
from ddq_search.space import build_space
from ddq_search.supernet import Supernet
from ddq_search.trace import trace
from tests.networks import MODELS, sample_images
from tests.test_quantizers_merging import block_matrix, gaussian
from tests.toys import AnyDevice

WEIGHTS = (AveragedWeights, LearnedWeights, PowerOfTwoWeights)
ACTIVATIONS = (AveragedActivations, LearnedActivations, PowerOfTwoActivations)


def weights(cls, candidates, weight, **options):
    quantizer = cls(candidates, len(weight))
    for name, value in options.items():
        setattr(quantizer, name, value)
    quantizer.calibrate(weight)
    return quantizer


# -- what levels represent ----------------------------------------------------------------------------------------


def test_averaged_weights_are_the_middles_of_equal_cells():
    weight = gaussian(3, 500)
    quantizer = weights(AveragedWeights, (2, 3, 4, 7, 8), weight)
    reach = quantizer.log_scales[0].detach().exp() * quantizer.statistic(weight)
    for k, bits in enumerate((2, 3, 4, 7)):
        levels = quantizer.levels(weight, k)
        middles = (torch.arange(2**bits) + 0.5) * 2 / 2**bits - 1
        torch.testing.assert_close(levels, reach[:, None] * middles)
        assert torch.equal(levels, -levels.flip(1))
        assert 0 not in levels
        assert float(levels.max() / reach.max()) == pytest.approx(1 - 2**-bits)  # extremes move inwards
    eight = quantizer.levels(weight, 4)
    assert torch.count_nonzero(eight == 0) == 2 * 3  # int8 has 255 levels: the two middle ones meet at 0
    cell = 2 * reach / 256
    ideal = reach[:, None] * ((torch.arange(256) + 0.5) / 128 - 1)
    assert bool(((eight - ideal).abs() <= 0.51 * cell[:, None]).all())


def test_averaged_levels_are_the_projection_of_the_fine_ones():
    weight = gaussian(2, 300)
    quantizer = weights(AveragedWeights, (2, 4, 5), weight)
    fine = quantizer.levels(weight, 2)
    for k, bits in enumerate((2, 4)):
        u, z = block_matrix(torch.tensor([1.0] * bits + [0.0] * (5 - bits), dtype=torch.float64))
        expected = (fine.double() @ (u / z)).float()[:, :: 2 ** (5 - bits)]
        torch.testing.assert_close(quantizer.levels(weight, k), expected)


@pytest.mark.parametrize("nonnegative", [True, False])
def test_averaged_activations_have_zero_at_the_widest_candidate_only(nonnegative):
    values = gaussian(4000).abs() if nonnegative else gaussian(4000) + 0.7
    quantizer = AveragedActivations((2, 4, 8), nonnegative)
    quantizer.calibrate(values)
    zero = torch.zeros(1)
    assert float(quantizer.fake_quantize(zero, 2).detach()) == 0.0
    for k, bits in enumerate((2, 4)):
        assert 0 not in quantizer.levels(zero, k)
        torch.testing.assert_close(quantizer.levels(zero, k), merged(quantizer.levels(zero, 2), bits))
    assert (float(quantizer.levels(zero, 0).min()) > 0) == nonnegative


def test_learned_weights_are_mirrored_integers_without_zero():
    weight = gaussian(4, 2000)
    quantizer = weights(LearnedWeights, (2, 4), weight)
    for k, bits in enumerate((2, 4)):
        table = quantizer.table(k).detach()
        assert table.shape == (2**bits,)
        assert torch.equal(table, table.round())
        assert torch.equal(table, -table.flip(0))
        assert 0 not in table
    assert quantizer.table(1)[-1] == 127  # the extreme of the widest candidate; averages lie inside
    assert quantizer.table(0)[-1] < 127
    spacing = quantizer.table(1).detach().diff()
    assert float(spacing[-1] / spacing[7]) > 1.5  # not uniform: Gaussian weights are rare at the ends
    free = type("Free", (LearnedWeights,), {"mirrored": False})
    skewed = weights(free, (3,), gaussian(4, 2000).exp() - 1)
    assert skewed.vector.shape == (8,)
    assert float(skewed.table(0)[0].detach()) > -60


def test_powers_of_two_by_hand():
    weight = gaussian(2, 100)
    quantizer = weights(PowerOfTwoWeights, (2, 3, 4, 8), weight)
    assert quantizer.table(0).tolist() == [-64, 0, 64, 64]
    assert quantizer.table(1).tolist() == [-64, -32, -16, 0, 16, 32, 64, 64]
    assert quantizer.table(2).unique().tolist() == [-64, -32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32, 64]
    assert torch.equal(quantizer.table(3).unique(), quantizer.table(2).unique())
    one_sided = PowerOfTwoActivations((1, 2), True)
    one_sided.calibrate(gaussian(100).abs())
    assert one_sided.table(0).tolist() == [0, 1]
    assert one_sided.table(1).tolist() == [0, 0.25, 0.5, 1]
    assert PowerOfTwoActivations((3,), False).table(0).tolist() == [-1, -0.5, -0.25, 0, 0.25, 0.5, 1, 1]
    for k in range(4):
        assert torch.count_nonzero(quantizer.fake_quantize(torch.zeros(2, 3), k)) == 0


# -- gradients ----------------------------------------------------------------------------------------------------


def one_hot(codes, count):
    return torch.nn.functional.one_hot(codes.long(), count).double()


@pytest.mark.parametrize("how", ["through_z", "constant_z"])
@pytest.mark.parametrize("cls", [AveragedWeights, LearnedWeights])
@pytest.mark.parametrize("choice", [0, 1, 2])
def test_gate_gradients_through_u_equal_autograd_through_the_explicit_matrix(cls, choice, how):
    weight, grad = gaussian(3, 200), gaussian(3, 200, seed=1)
    candidates = (2, 3, 5)
    quantizer = weights(cls, candidates, weight, gate_gradient=how)
    c = torch.tensor([0.7, 0.4], requires_grad=True)
    quantizer.fake_quantize(weight, choice, c).backward(grad)
    bits = candidates[choice]
    gates = torch.tensor([1.0] * bits + [0.0] * (5 - bits), dtype=torch.float64, requires_grad=True)
    fine = (quantizer.fine_levels() * quantizer.log_scales[0, 0].exp()).detach().double()
    statistic = quantizer.statistic(weight).double() * (quantizer.log_scales[0] - quantizer.log_scales[0, 0]).exp()
    u, z = block_matrix(gates)
    projected = (u / (z.detach() if how == "constant_z" else z)) @ fine
    real = weight.double() / statistic[:, None]
    block = quantizer.quantize(weight, choice)[..., None] == torch.arange(32) // 2 ** (5 - bits)
    owner = torch.where(block, (real[..., None] - fine).abs(), torch.inf).argmin(-1)  # nearest of the block
    x_q = (one_hot(owner, 32) @ projected) * statistic[:, None]
    (x_q * grad.double()).sum().backward()
    by_candidate = torch.stack([gates.grad[2:3].sum(), gates.grad[3:5].sum()])
    torch.testing.assert_close(c.grad.double(), by_candidate, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cls", WEIGHTS)
def test_gate_gradients_by_neighbours_and_the_step_to_float(cls):
    weight, grad = gaussian(3, 200), gaussian(3, 200, seed=1)
    for how in ("neighbours", "through_z"):
        quantizer = weights(cls, (2, 4, 32), weight, gate_gradient=how)
        values = [quantizer.fake_quantize(weight, k).detach().double() for k in range(3)]
        assert torch.equal(values[2].float(), weight)
        differences = [((high - low) * grad).sum() for low, high in itertools.pairwise(values)]
        for choice in range(3):
            c = torch.tensor([0.7, 0.4], requires_grad=True)
            quantizer.fake_quantize(weight, choice, c).backward(grad)
            checked = slice(0, 2) if how == "neighbours" or choice == 2 else slice(1, 2)
            expected = torch.stack(differences)[checked]
            torch.testing.assert_close(c.grad.double()[checked], expected, rtol=1e-4, atol=1e-4)


def backward(levels, window=(-1.0, 1.0), correction=0.0):
    return Backward((Levels(levels, torch.ones(())),), 0, False, window, None, None, (2, 1.0), correction)


def test_level_and_scale_gradients_are_those_of_finite_differences():
    x = gaussian(2, 40, dtype=torch.float64)
    scale = torch.tensor([0.8, 1.3], dtype=torch.float64, requires_grad=True)
    fine = torch.linspace(-2, 2, 16, dtype=torch.float64) + 0.02 * gaussian(16, dtype=torch.float64)
    for bits in (1, 2, 4):

        def value(q, scale, bits=bits):
            levels = merged(q, bits)
            return QuantizeToLevels.apply(x, levels, scale, None, backward(levels.detach()), None)

        assert torch.autograd.gradcheck(value, (fine.sort().values.requires_grad_(), scale), eps=1e-7)


@pytest.mark.parametrize("choice", [0, 1, 2])
def test_level_gradients_of_the_vector_are_averages_over_the_blocks(choice):
    """∂L/∂q_k = (1/Z_U) Σ over the values in block k: here (U/Z_U)ᵀ x_o, the mirrored half added."""
    weight, grad = gaussian(3, 200), gaussian(3, 200, seed=1)
    quantizer = weights(LearnedWeights, (2, 3, 5), weight)
    quantizer.fake_quantize(weight, choice).backward(grad)
    bits = (2, 3, 5)[choice]
    u, z = block_matrix(torch.tensor([1.0] * bits + [0.0] * (5 - bits), dtype=torch.float64))
    first = one_hot(quantizer.quantize(weight, choice) * 2 ** (5 - bits), 32)
    per_level = torch.einsum("re,ren->n", grad.double() * quantizer.scale(weight, choice).detach()[:, None], first)
    expected = (u / z) @ per_level * 127
    expected = expected[16:] - expected[:16].flip(0)
    assert torch.equal(quantizer.vector, quantizer.vector.sort().values)
    torch.testing.assert_close(quantizer.vector.grad.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cls", WEIGHTS)
def test_scale_gradient_of_levels_and_of_a_step(cls):
    weight, grad = gaussian(3, 200), gaussian(3, 200, seed=1)
    for how in ("levels", "step"):
        quantizer = weights(cls, (2, 4), weight, scale_gradient=how)
        quantizer.fake_quantize(weight, 1).backward(grad)
        out = quantizer.fake_quantize(weight, 1).detach()
        fine = quantizer.fine_levels()
        ends = quantizer.table(1)[[0, -1]] if fine is None else fine[[0, -1]] / quantizer.unit(1)
        scaled = weight / quantizer.scale(weight, 1).detach()[:, None]
        inside = (scaled >= ends[0]) & (scaled <= ends[1])
        expected = (grad * (out - weight * inside * (how == "step"))).sum(1)
        found = quantizer.log_scales.grad[0 if quantizer.shared_scale else 1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cls", [*WEIGHTS, LearnedActivations])
def test_gradient_correction_reaches_levels_and_gates_and_never_the_input(cls):
    x, grad = gaussian(4, 300), gaussian(4, 300, seed=1)
    quantizer = cls((2, 4), *([4] if cls in WEIGHTS else [False]))
    quantizer.calibrate(x)
    found = []
    for correction, gradient in ((0.0, grad), (0.5, grad), (0.0, grad + 0.5 * (quantizer.fake_quantize(x, 0) - x))):
        quantizer.correction = correction
        quantizer.zero_grad()
        leaf, c = x.clone().requires_grad_(), torch.tensor([0.5], requires_grad=True)
        quantizer.fake_quantize(leaf, 0, c).backward(gradient.detach())
        learned = [p.grad.clone() for p in quantizer.parameters() if p.grad is not None]
        found.append((leaf.grad, [*learned, c.grad]))
    plain, corrected, by_hand = found
    assert torch.equal(plain[0], corrected[0])
    assert len(corrected[1]) >= 2
    for before, after, expected in zip(plain[1], corrected[1], by_hand[1], strict=True):
        assert not torch.equal(before, after)
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)


# -- options ------------------------------------------------------------------------------------------------------


def test_the_window_of_the_input_gradient():
    x = torch.linspace(-2, 2, 4001).reshape(1, -1)
    edges = {}
    for window in ("levels", "half_step", "everywhere"):
        quantizer = weights(AveragedWeights, (1, 3), x, window=window)
        leaf = x.clone().requires_grad_()
        quantizer.fake_quantize(leaf, 0).sum().backward()
        edges[window] = float(x[leaf.grad > 0].max())
        reach = float(quantizer.log_scales[0].detach().exp() * quantizer.statistic(x))
    assert edges["everywhere"] == 2
    assert edges["levels"] == pytest.approx(min(reach * 7 / 8, 2), abs=2e-3)  # the widest candidate's extreme
    assert edges["half_step"] == pytest.approx(min(reach, 2), abs=2e-3)  # one level, ±½ reach, has a cell of a reach


def test_values_look_for_merged_or_for_raw_levels():
    quantizer = LearnedActivations((1, 2), True)
    with torch.no_grad():
        quantizer.vector.copy_(torch.tensor([0, 10, 20, 250]) / 255)
    x = torch.tensor([4.0, 16.0, 60.0, 200.0])
    assert quantizer.table(0).tolist() == [5, 135]
    assert quantizer.quantize(x, 0).tolist() == [0, 0, 0, 1]
    quantizer.nearest = "raw"
    assert quantizer.quantize(x, 0).tolist() == [0, 1, 1, 1]
    assert quantizer.fake_quantize(x, 0).tolist() == [5, 135, 135, 135]
    assert quantizer.quantize(quantizer.levels(x, 0), 0).tolist() == [0, 1]


def test_a_scale_for_every_candidate_fits_each_better():
    own = type("Own", (LearnedWeights,), {"shared_scale": False})
    weight = gaussian(4, 3000)
    one, each = weights(LearnedWeights, (2, 8), weight), weights(own, (2, 8), weight)
    assert (one.log_scales.shape, each.log_scales.shape) == ((1, 4), (2, 4))
    first, second = (float((q.fake_quantize(weight, 0).detach() - weight).square().mean()) for q in (one, each))
    assert second < 0.95 * first


def test_the_share_of_the_batch_scales_sums_up():
    x, grad = gaussian(1, 3, 4, 4).repeat(8, 1, 1, 1), gaussian(1, 3, 4, 4, seed=1).repeat(8, 1, 1, 1)
    quantizer = LearnedActivations((2, 4), False)
    quantizer.calibrate(x)
    found = []
    for share in (1.0, 0.25):
        quantizer.zero_grad()
        quantizer.gradient_share = share
        c = torch.tensor([0.5], requires_grad=True)
        quantizer.fake_quantize(x, 1, c).backward(grad)
        found.append(torch.cat([quantizer.vector.grad, quantizer.log_scales.grad, c.grad]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


# -- learning, use, refusals --------------------------------------------------------------------------------------


def test_fixed_levels_are_learned_towards_the_optimum():
    """ddq(fix): U = I. Evenly spaced levels come within 2 % of the error of Lloyd's."""
    sample = gaussian(1, 8_000)
    quantizer = LearnedWeights((3,), 1)
    normal = sample / quantizer.statistic(sample)[:, None]
    quantizer._fit_scales(normal, normal.abs().amax(1))

    def error():
        return (quantizer.fake_quantize(sample, 0) - sample).square().mean()

    best = lloyd_levels(sample.flatten(), 8)
    optimum = float((best[nearest(sample, best).long()] - sample).square().mean())
    start = float(error().detach())
    optimizer = torch.optim.Adam(quantizer.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
    assert start > 1.08 * optimum
    assert float(error().detach()) < 1.02 * optimum


@pytest.mark.parametrize("cls", WEIGHTS)
def test_mixed_one_step_reaches_weights_levels_scales_and_gates(cls):
    weight = gaussian(4, 50).requires_grad_()
    quantizer = weights(cls, (2, 4, 8), weight.detach())
    c = torch.tensor([0.8, 0.5], requires_grad=True)
    (quantizer.fake_quantize(weight, 1, c) - 0.3).square().sum().backward()
    for tensor in (weight, c, *quantizer.parameters()):
        assert torch.isfinite(tensor.grad).all()
        assert torch.count_nonzero(tensor.grad) > 0


@pytest.mark.parametrize("cls", ACTIVATIONS)
def test_non_uniform_activations_have_no_grid_unless_one_was_given(cls):
    quantizer = cls((4, 8), True)
    quantizer.calibrate(gaussian(500).abs())
    with pytest.raises(PolicyError, match=r"no affine grid.* 'uniform'"):
        quantizer.grid(1)
    quantizer.set_grid(0.25, 3)
    grid = quantizer.grid(1)
    assert (grid.scale, grid.zero_point, grid.bits) == (0.25, 3, 8)
    assert quantizer.fake_quantize(torch.tensor([-9.0, 0.3, 0.0]), 0).tolist() == [-0.75, 0.25, 0.0]


def test_too_many_bits_are_refused():
    with pytest.raises(ConfigError, match="at most 8 bits, not 16"):
        LearnedActivations((8, 16), True)


@pytest.mark.parametrize("name", ["averaged", "learned", "power-of-two"])
def test_a_search_step_with_level_vectors_everywhere(name):
    """Weights and activations at sampled candidates: one backward reaches weights, levels, scales and all gates."""
    torch.manual_seed(0)
    model = MODELS["Residual"]()
    graph = trace(model, torch.zeros(2, 3, 9, 9))
    net = Supernet(model, graph, build_space(graph, AnyDevice()), quantizers=Quantizers((name,), (name,)))
    images = sample_images(8)
    net.calibrate([images])
    net.train()
    net.sample(0, torch.full((len(net.space.variables),), 0.5))
    (net(images) * gaussian(5)).sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), key
    for key, parameter in net.model.named_parameters():
        assert torch.count_nonzero(parameter.grad) > 0, key
    first, second = net.gates.own[0].grad.unbind(1)
    assert torch.count_nonzero(first) == torch.count_nonzero(net.gates.exists[:, 0])
    more = torch.count_nonzero(second) / torch.count_nonzero(net.gates.exists[:, 1])
    assert more > 0.9 or name == "power-of-two"  # whose weights have the same levels at 4 bits and at 8
