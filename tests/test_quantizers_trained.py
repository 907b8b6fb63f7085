"""LSQ, LSQ+, PACT and DoReFa: starts by hand, gradients against tables and a differentiable stand-in."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.quantizers.clipped import QuantizeClipped
from ddq_search.quantizers.dorefa import DorefaWeights
from ddq_search.quantizers.given_values import GivenValues
from ddq_search.quantizers.lsq import LsqActivations, LsqPlusActivations, LsqPlusWeights, LsqWeights
from ddq_search.quantizers.pact import PactActivations
from ddq_search.quantizers.straight_through import Grid

BITS = (2, 3, 4, 6, 8)
ACTIVATIONS = (LsqActivations, LsqPlusActivations, PactActivations)
WEIGHTS = (LsqWeights, LsqPlusWeights, DorefaWeights)


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def calibrated(kind, sample, argument, bits=BITS):
    quantizer = kind(bits, argument)
    quantizer.calibrate(sample)
    return quantizer


def activation_with(kind, bits, step, zero_point, nonnegative=False):
    """An activation quantizer of one candidate on a known grid."""
    quantizer = kind((bits,), nonnegative)
    quantizer.set_grid(step, zero_point)
    return quantizer


def stand_in(x, step, offset, grid, rounding):
    """The quantizer with its rounding error as a constant, so that autograd gives the papers' gradients.

    ``offset`` None: the zero point is a constant. PACT: the error is that of the result, not of the number of steps.
    """
    low, high = grid.low - grid.zero_point, grid.high - grid.zero_point
    if not rounding:
        clipped = torch.minimum(torch.maximum(x, low * step), high * step)
        return clipped + (step * (clipped / step).round() - clipped).detach()
    if offset is None:
        number = (x / step).clamp(low, high)
        return step * (number + (number.round() - number).detach())
    number = ((x - offset) / step).clamp(grid.low, grid.high)
    return step * (number + (number.round() - number).detach()) + offset


# -- the autograd function ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [  # per value: ∂x_q/∂log s; step ½, codes 0 … 3, zero point 1: levels −½, 0, ½, 1
        (True, [-0.5, -0.5, 0.1, -0.2, 0.2, 1.0, 1.0]),
        (False, [-0.5, -0.5, 0.0, 0.0, 0.0, 1.0, 1.0]),
    ],
)
def test_step_gradients_by_hand(rounding, expected):
    for value, slope, inside in zip(
        [-0.7, -0.5, -0.1, 0.2, 0.3, 1.0, 1.2], expected, [0, 0, 1, 1, 1, 0, 0], strict=True
    ):
        x = torch.tensor([[value]], requires_grad=True)
        logs = torch.tensor([0.5]).log().requires_grad_()
        QuantizeClipped.apply(x, logs, None, None, (Grid(0, 3, 1),), 0, 1.0, 1.0, rounding).backward(
            torch.tensor([[2.0]])
        )
        assert logs.grad.item() == pytest.approx(2 * slope, abs=1e-6)
        assert x.grad.item() == 2 * inside


def test_offset_gradients_by_hand():
    # step ½, codes 0 … 3, offset −½: x_q = s · code + β, so ∂x_q/∂log s is s · code outside, x_q − x inside
    for value, slope, moved in [(-0.7, 0.0, 1), (-0.1, 0.1, 0), (0.3, 0.2, 0), (1.2, 1.5, 1)]:
        x, logs = torch.tensor([[value]]), torch.tensor([0.5]).log().requires_grad_()
        offsets = torch.tensor([-0.5], requires_grad=True)
        QuantizeClipped.apply(x, logs, offsets, None, (Grid(0, 3, 1),), 0, 1.0, 1.0, True).sum().backward()
        assert logs.grad.item() == pytest.approx(slope, abs=1e-6)
        assert offsets.grad.item() == moved


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), bits=st.integers(1, 8), step=st.floats(0.02, 2.0), factor=st.floats(0.01, 2.0),
    kind=st.sampled_from(["lsq", "pact", "offset"]), fraction=st.floats(0, 1),
)  # fmt: skip
def test_gradients_are_those_of_the_stand_in(seed, bits, step, factor, kind, fraction):
    grid = Grid(0, 2**bits - 1, round(fraction * (2**bits - 1)))
    x, grad = gaussian(6, 20, seed=seed, dtype=torch.float64) * 2, gaussian(6, 20, seed=seed + 1, dtype=torch.float64)
    found, expected = [], []
    for result, function in ((found, True), (expected, False)):
        leaf, logs = x.clone().requires_grad_(), torch.tensor([step], dtype=torch.float64).log().requires_grad_()
        beta = (-grid.zero_point * logs.detach().exp()).requires_grad_() if kind == "offset" else None
        if function:
            out = QuantizeClipped.apply(leaf, logs, beta, None, (grid,), 0, 1.0, factor, kind != "pact")
        else:
            out = stand_in(leaf, logs.exp(), beta, grid, kind != "pact")
        out.backward(grad)
        scale = 1.0 if function else factor
        result += [out.detach(), leaf.grad, scale * logs.grad] + ([scale * beta.grad] if beta is not None else [])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_clipped_values_pass_gradcheck():
    """Outside the window the quantizer is smooth in step and offset: finite differences apply."""
    x = torch.cat([torch.linspace(2.5, 4, 5), -torch.linspace(2.5, 4, 5)]).double().reshape(2, 5).requires_grad_()
    logs, grid = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True), Grid(0, 7, 3)

    def lsq(x, logs):
        return QuantizeClipped.apply(x, logs, None, None, (grid,), 0, 1.0, 1.0, True)

    assert torch.autograd.gradcheck(lsq, (x, logs))


def test_gates_receive_the_difference_of_neighbours():
    x, grad = gaussian(8, 5), gaussian(8, 5, seed=1)
    for share in (1.0, 0.25):
        logs, cumulative = torch.tensor([0.8, 0.2, 0.0]).log(), torch.tensor([0.9, 0.4], requires_grad=True)
        grids = (Grid(0, 3, 2), Grid(0, 15, 8), None)
        QuantizeClipped.apply(x, logs, None, cumulative, grids, 1, share, 1.0, True).backward(grad)
        size = round(8 * share)
        values = [QuantizeClipped.apply(x[:size], logs, None, None, grids, k, 1.0, 1.0, True) for k in range(3)]
        expected = [(grad[:size] * (values[k + 1] - values[k])).sum() / share for k in range(2)]
        torch.testing.assert_close(cumulative.grad, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_given_values_gradients_by_hand():
    x, slope = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([0.5, 3.0])
    c = torch.tensor([0.7, 0.2], requires_grad=True)
    values = [torch.tensor([0.0, 1.0]), torch.tensor([2.0, 2.0]), torch.tensor([1.0, 5.0])]
    out = GivenValues.apply(x, slope, c, 1, *values)
    assert out.tolist() == [2, 2]
    out.backward(torch.tensor([10.0, 100.0]))
    assert x.grad.tolist() == [5, 300]
    assert c.grad.tolist() == [20 + 100, -10 + 300]


# -- LSQ ----------------------------------------------------------------------------------------------------------


def test_lsq_starts_and_gradient_scales_by_hand():
    weight = torch.tensor([[1.0, -3.0], [0.5, 0.5]])  # mean magnitude 1.25
    quantizer = calibrated(LsqWeights, weight, 2, (2, 4))
    assert quantizer.log_steps.exp().tolist() == pytest.approx([2.5, 2.5 / math.sqrt(7)])
    quantizer.fake_quantize(weight, 0).sum().backward()
    # step 2.5, levels ±2.5: rounded to 0, −2.5, 0, 0; inside: x_q − x; −3 is clipped: x_q. Four weights, Q_P = 1
    assert quantizer.log_steps.grad.tolist() == pytest.approx([(-1.0 - 2.5 - 0.5 - 0.5) / 2, 0.0])
    sample = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    one_sided = calibrated(LsqActivations, sample, True, (2, 4))
    assert one_sided.log_steps.exp().tolist() == pytest.approx([3 / math.sqrt(3), 3 / math.sqrt(15)])
    two_sided = calibrated(LsqActivations, sample, False, (2, 4))
    assert two_sided.log_steps.exp().tolist() == pytest.approx([3.0, 3 / math.sqrt(7)])
    assert (one_sided.zero_points.tolist(), two_sided.zero_points.tolist()) == ([0, 0], [2, 8])
    batch = torch.tensor([[[0.0, 1.0]], [[9.0, 3.0]]])  # two samples of two elements: N = 2
    one_sided.fake_quantize(batch, 0).sum().backward()
    step = math.sqrt(3)
    expected = (0.0 + (step - 1) + 3 * step + (2 * step - 3)) / math.sqrt(2 * 3)
    assert one_sided.log_steps.grad.tolist() == pytest.approx([expected, 0.0])


def test_lsq_learns_the_step_of_least_squared_error():
    x = gaussian(4, 2000, seed=3)
    quantizer = calibrated(LsqWeights, x, 4, (3,))
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        (quantizer.fake_quantize(x, 0) - x).square().mean().backward()
        optimizer.step()
    steps = torch.linspace(0.2, 1.5, 500)
    errors = [((x / s).round().clamp(-3, 3) * s - x).square().mean() for s in steps]
    learned = float((quantizer.fake_quantize(x, 0).detach() - x).square().mean())
    assert learned <= 1.01 * float(min(errors))


def test_lsq_plus_weights_start_at_three_deviations():
    weight = torch.tensor([[1.0, 3.0], [2.0, 2.0]])  # mean 2, deviation √½
    quantizer = calibrated(LsqPlusWeights, weight, 2, (2, 4))
    largest = 2 + 3 * math.sqrt(0.5)
    assert quantizer.log_steps.exp().tolist() == pytest.approx([largest / 2, largest / 8])


def test_lsq_plus_rounds_its_offset_to_whole_steps():
    quantizer = activation_with(LsqPlusActivations, 4, 0.5, 5)
    x = torch.tensor([[-9.0, -0.6, 0.0, 0.3, 9.0]])
    assert quantizer.fake_quantize(x, 0).tolist() == [[-2.5, -0.5, 0.0, 0.5, 5.0]]
    with torch.no_grad():
        quantizer.offsets -= 0.7 / 15  # β = −5.7 steps
    assert quantizer.grid(0).zero_point == 6
    assert quantizer.fake_quantize(x, 0).tolist() == [[-3.0, -0.5, 0.0, 0.5, 4.5]]
    assert quantizer.quantize(x, 0).tolist() == [[0, 5, 6, 7, 15]]
    assert quantizer.levels(x, 0).tolist() == [-3.0 + 0.5 * k for k in range(16)]
    with torch.no_grad():
        quantizer.offsets += 7.0
    assert quantizer.grid(0).zero_point == 0  # zero stays on the grid, and β on its edge
    assert quantizer.offsets.item() == 0
    with torch.no_grad():
        quantizer.offsets -= 70.0
    assert quantizer.grid(0).zero_point == 15


def test_lsq_plus_learns_where_its_range_lies():
    x = gaussian(1, 3000, seed=4) * 0.5 + 2.0
    quantizer = activation_with(LsqPlusActivations, 3, 0.6, 4)  # levels −2.4 … 1.8
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.02)
    first = float((quantizer.fake_quantize(x, 0) - x).square().mean().detach())
    for _ in range(450):
        optimizer.zero_grad()
        (quantizer.fake_quantize(x, 0) - x).square().mean().backward()
        optimizer.step()
    best = calibrated(LsqPlusActivations, x, False, (3,))
    errors = [float((q.fake_quantize(x, 0) - x).square().mean().detach()) for q in (quantizer, best)]
    assert errors[0] <= 1.05 * errors[1] < 0.5 * first
    assert quantizer.grid(0).zero_point == 0


def test_lsq_plus_has_no_offset_where_the_quantizer_is_the_relu():
    x = gaussian(4, 100).relu()
    quantizer = calibrated(LsqPlusActivations, x, True, (4,))
    quantizer.fake_quantize(x, 0).square().sum().backward()
    assert quantizer.offsets.grad is None
    assert quantizer.log_steps.grad.item() != 0
    assert quantizer.grid(0).zero_point == 0


# -- PACT and DoReFa ----------------------------------------------------------------------------------------------


def test_pact_by_hand():
    quantizer = activation_with(PactActivations, 2, 0.5, 0, nonnegative=True)  # α = 1.5
    x = torch.tensor([[-1.0, 0.2, 0.9, 1.6, 4.0]], requires_grad=True)
    out = quantizer.fake_quantize(x, 0)
    assert out.tolist() == [[0.0, 0.0, 1.0, 1.5, 1.5]]
    out.backward(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]))
    assert x.grad.tolist() == [[0, 2, 3, 0, 0]]
    assert quantizer.log_steps.grad.item() == pytest.approx(1.5 * (4 + 5))  # α ∂L/∂α, unscaled


def test_dorefa_by_hand():
    weight = torch.tensor([[0.2, -0.5], [1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    quantizer = DorefaWeights((2, 3), 2)
    squashed = [math.tanh(v) / math.tanh(2) for v in (0.2, 0.5, 1.0, 2.0)]  # 0.205, 0.479, 0.790, 1
    assert squashed == pytest.approx([0.2047, 0.4794, 0.7900, 1.0], abs=1e-4)
    assert quantizer.quantize(weight, 0).tolist() == [[0, 0], [1, -1]]
    assert quantizer.quantize(weight, 1).tolist() == [[1, -1], [2, -3]]
    scale = (0.2 + 0.5 + 2 * 1.0 + 3 * 2.0) / (1 + 1 + 4 + 9)
    out = quantizer.fake_quantize(weight, 1)
    torch.testing.assert_close(out, scale * torch.tensor([[1.0, -1], [2, -3]], dtype=torch.float64))
    out.sum().backward()
    slopes = [[scale * 3 * (1 - math.tanh(v) ** 2) / math.tanh(2) for v in row] for row in ((0.2, 0.5), (1.0, 2.0))]
    torch.testing.assert_close(weight.grad, torch.tensor(slopes, dtype=torch.float64))
    assert not list(quantizer.parameters())


def test_dorefas_slope_is_that_of_the_squashing():
    weight = gaussian(3, 7, dtype=torch.float64)
    quantizer = DorefaWeights((4,), 3)
    leaf, grad = weight.clone().requires_grad_(), gaussian(3, 7, seed=1, dtype=torch.float64)
    quantizer.fake_quantize(leaf, 0).backward(grad)
    smooth = weight.clone().requires_grad_()
    scale = quantizer.levels(weight, 0)[0, -1]  # the largest level
    (scale * smooth.tanh() / weight.tanh().abs().max()).backward(grad)
    torch.testing.assert_close(leaf.grad, smooth.grad)


# -- what holds for all -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("nonnegative", [False, True])
@torch.no_grad()
def test_activation_error_falls_with_bits_and_grids_are_deployed(kind, nonnegative):
    x = gaussian(100_000, seed=1)
    x = x.relu() if nonnegative else x
    quantizer = calibrated(kind, x, nonnegative)
    errors = []
    for k, bits in enumerate(BITS):
        grid, codes, out = quantizer.grid(k), quantizer.quantize(x, k), quantizer.fake_quantize(x, k)
        assert (int(codes.min()), int(codes.max()), grid.bits) >= (0, 0, bits)
        assert int(codes.max()) <= 2**bits - 1
        assert torch.equal((codes - grid.zero_point).float() * torch.tensor(grid.scale, dtype=torch.float32), out)
        assert torch.equal(quantizer.fake_quantize(quantizer.levels(x, k), k), quantizer.levels(x, k))
        assert grid.zero_point == 0 or not nonnegative
        errors.append(float((out - x).square().mean()))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("kind", WEIGHTS)
@torch.no_grad()
def test_weight_error_falls_with_bits_and_numbers_are_deployed(kind):
    x = 0.1 * gaussian(100_000, seed=2).reshape(10, 100, 10, 10)
    quantizer = calibrated(kind, x, 10)
    errors = []
    for k, bits in enumerate(BITS):
        numbers, out = quantizer.numbers(x, k), quantizer.fake_quantize(x, k)
        high = 2 ** (bits - 1) - 1
        assert -high <= int(numbers.codes.min()) <= int(numbers.codes.max()) <= high
        assert numbers.scale.shape == (10,)
        assert torch.equal(torch.from_numpy(numbers.codes * numbers.scale.reshape(10, 1, 1, 1)).float(), out)
        assert quantizer.levels(x, k).shape == (10, 2 * high + 1)
        assert torch.equal(quantizer.levels(x, k)[0, quantizer.quantize(x, k)[0].long() + high], out[0])
        errors.append(float((out - x).square().mean()))
    assert errors == sorted(errors, reverse=True)
    zeros = torch.zeros(10, 4)
    quantizer = calibrated(kind, zeros, 10)
    assert torch.count_nonzero(quantizer.fake_quantize(zeros, 0)) == 0
    assert (quantizer.numbers(zeros, 0).scale > 0).all()


@pytest.mark.parametrize("kind", [*ACTIVATIONS, *WEIGHTS])
def test_state_take_mixtures_and_float(kind):
    x, argument = gaussian(6, 50, seed=5), 6 if kind in WEIGHTS else False
    trained = calibrated(kind, x, argument, (2, 4, 8, 32))
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += 0.05 * gaussian(*parameter.shape, seed=6)
    fresh, fewer = kind((2, 4, 8, 32), argument), kind((4, 8), argument)
    fresh.load_state_dict(trained.state_dict())
    fewer.take(trained)
    for k in range(2):
        assert torch.equal(fewer.fake_quantize(x, k), trained.fake_quantize(x, k + 1))
        assert torch.equal(fresh.fake_quantize(x, k), trained.fake_quantize(x, k))
    assert torch.equal(trained.fake_quantize(x, 3), x)
    assert torch.equal(trained.fake_quantize(x, 3, torch.tensor([0.9, 0.8, 0.7])), x)
    with pytest.raises(ValueError, match="no codes"):
        trained.quantize(x, 3)
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4], requires_grad=True)
    mixture = trained.mix(x, shares)
    torch.testing.assert_close(mixture, sum(s * trained.fake_quantize(x, k) for k, s in enumerate(shares)))
    mixture.sum().backward()
    torch.testing.assert_close(shares.grad, torch.stack([trained.fake_quantize(x, k).sum() for k in range(4)]).detach())
