"""Quantize forward; straight-through, step and gate gradients backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.precision import activation_code_range, weight_code_range
from ddq_search.quantizers.straight_through import Estimate, Grid, codes, fake_quantize, quantize_with_gates

W2, W4, W8 = (Grid(*weight_code_range(b), 0) for b in (2, 4, 8))
A2, A4, A8 = (Grid(*activation_code_range(b), 0) for b in (2, 4, 8))
AFFINE = Grid(0, 15, 5)


def apply(x, log_steps, cumulative, grids, choice, share=1.0, correction=0.0, statistic=None):
    return quantize_with_gates(x, log_steps, statistic, cumulative, tuple(grids), choice, Estimate(share, correction))


def images(seed=0, shape=(4, 3, 5, 6)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- forward ------------------------------------------------------------------------------------------------------


def test_hand_computed_weights():
    x = torch.tensor([-1.0, -0.6, -0.2, 0.0, 0.24, 0.26, 0.75, 0.9])
    step = torch.tensor(0.5)
    assert fake_quantize(x, step, W2).tolist() == [-0.5, -0.5, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5]
    assert codes(x, step, W2).tolist() == [-1, -1, 0, 0, 0, 1, 1, 1]
    assert fake_quantize(x, step, W4).tolist() == [-1.0, -0.5, 0.0, 0.0, 0.0, 0.5, 1.0, 1.0]  # 1.5 rounds to even: 2


def test_hand_computed_affine_activations():
    x = torch.tensor([-9.0, -0.5, -0.25, 0.0, 0.3, 2.4, 9.0])
    step = torch.tensor(0.25)
    assert codes(x, step, AFFINE).tolist() == [0, 3, 4, 5, 6, 15, 15]
    assert fake_quantize(x, step, AFFINE).tolist() == [-1.25, -0.5, -0.25, 0.0, 0.25, 2.5, 2.5]
    assert codes(x, step, A2).tolist() == [0, 0, 0, 0, 1, 3, 3]


def test_one_step_per_row():
    x = torch.tensor([[1.0, -0.3], [1.0, -0.3]])
    steps = torch.tensor([0.5, 0.1])
    assert codes(x, steps, W4).tolist() == [[2, -1], [7, -3]]
    torch.testing.assert_close(fake_quantize(x, steps, W4), torch.tensor([[1.0, -0.5], [0.7, -0.3]]))


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    weights=st.booleans(),
    step=st.floats(2**-13, 8.0, width=32),
    point=st.integers(0, 255),
    seed=st.integers(0, 2**20),
)
def test_codes_stay_in_range_and_dequantize_to_the_fake_quantized_value(bits, weights, step, point, seed):
    low, high = weight_code_range(bits) if weights else activation_code_range(bits)
    grid = Grid(low, high, 0 if weights else min(point, high))
    step = torch.tensor(step)
    x = images(seed, (7, 40)) * step * 2**bits
    found = codes(x, step, grid)
    assert found.dtype == torch.int32
    assert low <= int(found.min()) <= int(found.max()) <= high
    assert torch.equal(fake_quantize(x, step, grid), (found - grid.zero_point) * step)
    levels = (torch.arange(low, high + 1) - grid.zero_point) * step
    assert torch.equal(fake_quantize(levels, step, grid), levels)
    assert 0.0 in levels


def test_memory_layout_changes_nothing():
    x, grad = images(), images(1)
    cumulative = torch.tensor([0.8, 0.5])
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = x.clone(memory_format=layout).requires_grad_()
        logs = torch.tensor([-0.5, -2.0, -5.0], requires_grad=True)
        c = cumulative.clone().requires_grad_()
        apply(leaf, logs, c, (A2, AFFINE, A8), 1, share=0.5).backward(grad.contiguous(memory_format=layout))
        results.append((apply(leaf, logs, c, (A2, AFFINE, A8), 1).detach(), leaf.grad, logs.grad, c.grad))
        assert results[-1][0].is_contiguous(memory_format=layout)
    for plain, last in zip(*results, strict=True):
        torch.testing.assert_close(plain, last, rtol=1e-5, atol=1e-5)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


# -- backward -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "low", "high"), [(W2, -1.5, 1.5), (A2, -0.5, 3.5), (AFFINE, -5.5, 10.5)])
@pytest.mark.parametrize("per_row", [False, True])
def test_input_gradient_passes_inside_the_window_only(grid, low, high, per_row):
    x = (torch.linspace(-12, 12, 241) + 0.013).repeat(2, 1).mul(0.3).requires_grad_()
    logs = torch.tensor(0.3).log() * (torch.ones(1, 2) if per_row else torch.ones(1))
    grad = images(3, (2, 241))
    apply(x, logs, None, (grid,), 0).backward(grad)
    inside = (x.detach() / 0.3 > low) & (x.detach() / 0.3 < high)
    assert torch.equal(x.grad, grad * inside)


@pytest.mark.parametrize("grid", [W2, W4, W8, A4, AFFINE])
def test_step_gradient_is_the_lsq_closed_form(grid):
    x, grad = images(4, (6, 50)) * 0.7, images(5, (6, 50))
    step = 0.11
    logs = torch.tensor([step]).log().requires_grad_()
    apply(x, logs, None, (grid,), 0).backward(grad)
    scaled = x.double() / step
    low, high = grid.low - grid.zero_point, grid.high - grid.zero_point
    inside = (scaled > low - 0.5) & (scaled < high + 0.5)
    by_step = torch.where(inside, scaled.round().clamp(low, high) - scaled, scaled.clamp(low, high))
    torch.testing.assert_close(logs.grad.double(), (grad * by_step * step).sum()[None], rtol=1e-4, atol=1e-5)


def test_step_gradient_of_rows_and_of_the_statistic():
    x, grad = images(6, (3, 40)), images(7, (3, 40))
    statistic = torch.tensor([0.5, 1.0, 2.0])
    logs = torch.full((2, 3), -1.0, requires_grad=True)
    apply(x, logs, None, (W2, W4), 1, statistic=statistic).backward(grad)
    assert torch.count_nonzero(logs.grad[0]) == 0  # only the chosen candidate's step
    for row in range(3):
        alone = (statistic[row].log() - 1.0).reshape(1).requires_grad_()
        apply(x[row], alone, None, (W4,), 0).backward(grad[row])
        torch.testing.assert_close(logs.grad[1, row], alone.grad[0], rtol=1e-4, atol=1e-5)


def test_outside_the_window_the_step_gradient_matches_finite_differences():
    x, grad = torch.tensor([5.0, -7.0, 9.0]), torch.tensor([1.0, 2.0, -0.5])
    log = torch.tensor([-1.0], requires_grad=True)
    apply(x, log, None, (W2,), 0).backward(grad)
    up, down = (float((fake_quantize(x, torch.tensor(-1.0 + e).exp(), W2) * grad).sum()) for e in (1e-3, -1e-3))
    assert float(log.grad) == pytest.approx((up - down) / 2e-3, rel=1e-3)


@pytest.mark.parametrize("choice", [0, 1, 2])
def test_gate_gradient_is_the_difference_of_neighbouring_quantizations(choice):
    x, grad = images(8), images(9)
    logs = torch.tensor([0.4, 0.1, 0.01]).log()
    grids = (A2, AFFINE, None)
    c = torch.tensor([0.8, 0.5], requires_grad=True)
    out = apply(x, logs, c, grids, choice)
    levels = [fake_quantize(x, s, g) for s, g in zip(logs.exp(), grids, strict=True)]
    assert torch.equal(out, levels[choice])
    out.backward(grad)
    expected = torch.stack([(grad.double() * (levels[i] - levels[i - 1])).sum() for i in (1, 2)])
    torch.testing.assert_close(c.grad.double(), expected, rtol=1e-4, atol=1e-3)


def test_gate_gradient_at_equal_neighbours_is_exactly_zero():
    c = torch.tensor([0.5, 0.5], requires_grad=True)
    apply(images(), torch.tensor([0.1, 0.1, 0.1]).log(), c, (AFFINE, AFFINE, AFFINE), 1).backward(images(1))
    assert c.grad.tolist() == [0.0, 0.0]


def test_a_share_of_the_batch_gives_an_unbiased_estimate():
    x, grad = images(10, (8, 3, 4, 4)), images(11, (8, 3, 4, 4))
    logs, grids = torch.tensor([0.5, 0.2]).log(), (A2, A4)

    def gradients(order, share):
        leaf, c = logs.clone().requires_grad_(), torch.tensor([0.5], requires_grad=True)
        apply(x[order], leaf, c, grids, 0, share=share).backward(grad[order])
        return torch.cat([leaf.grad, c.grad])

    full = gradients(torch.arange(8), 1.0)
    parts = torch.stack([gradients(torch.arange(8).roll(2 * k), 0.25) for k in range(4)])
    torch.testing.assert_close(parts.mean(0), full, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(parts[0], full)
    assert torch.isfinite(gradients(torch.arange(8), 0.001)).all()  # at least one sample


def test_weights_use_all_rows_whatever_the_share():
    x, grad = images(12, (8, 9)), images(13, (8, 9))
    results = []
    for share in (1.0, 0.1):
        logs = torch.full((2, 8), -1.0, requires_grad=True)
        c = torch.tensor([0.5], requires_grad=True)
        apply(x, logs, c, (W2, W4), 0, share=share).backward(grad)
        results.append((logs.grad, c.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_gradient_correction_reaches_steps_and_gates_never_the_input():
    x, grad, lam = images(14), images(15), 0.3
    logs, grids = torch.tensor([0.5, 0.2]).log(), (A2, A4)
    found = {}
    for correction in (0.0, lam):
        leaf, steps, c = (
            x.clone().requires_grad_(),
            logs.clone().requires_grad_(),
            torch.tensor([0.5], requires_grad=True),
        )
        apply(leaf, steps, c, grids, 0, correction=correction).backward(grad)
        found[correction] = (leaf.grad, steps.grad, c.grad)
    assert torch.equal(found[0.0][0], found[lam][0])
    low, high = (fake_quantize(x, s, g).double() for s, g in zip(logs.exp(), grids, strict=True))
    corrected = grad.double() + lam * (low - x)
    torch.testing.assert_close(found[lam][2].double(), (corrected * (high - low)).sum()[None], rtol=1e-4, atol=1e-3)
    scaled = x.double() / 0.5
    inside = (scaled > -0.5) & (scaled < 3.5)
    expected = (corrected * torch.where(inside, low - x, low)).sum()
    torch.testing.assert_close(found[lam][1][0].double(), expected, rtol=1e-4, atol=1e-3)
    assert not torch.equal(found[0.0][1], found[lam][1])


def test_float_choice_is_the_identity_and_lets_gates_learn():
    x, grad = images(16).requires_grad_(), images(17)
    logs, c = torch.tensor([-1.0, 0.0], requires_grad=True), torch.tensor([0.9], requires_grad=True)
    out = apply(x, logs, c, (A4, None), 1)
    assert torch.equal(out, x)
    out.backward(grad)
    assert torch.equal(x.grad, grad)
    assert logs.grad.tolist() == [0.0, 0.0]
    assert float(c.grad) != 0.0
