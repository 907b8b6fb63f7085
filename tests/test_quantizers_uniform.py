"""Uniform quantizers: calibration, zero, codes, state."""

from __future__ import annotations

import pytest
import torch

from ddq_search.quantizers.uniform import UniformActivations, UniformWeights


def gaussian(count=100_000, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_weight_error_falls_with_bits():
    weight = gaussian().reshape(8, -1)
    quantizer = UniformWeights((2, 3, 4, 5, 6, 8), 8)
    quantizer.calibrate(weight)
    errors = [float((quantizer.fake_quantize(weight, k) - weight).square().mean()) for k in range(6)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(0.1902, rel=0.03)  # the best three symmetric levels of a Gaussian (Max, 1960)
    assert errors[-1] < 1e-3


@pytest.mark.parametrize("nonnegative", [False, True])
@torch.no_grad()
def test_activation_error_falls_with_bits(nonnegative):
    values = gaussian(seed=1) + 0.3
    values = values.relu() if nonnegative else values
    quantizer = UniformActivations((2, 3, 4, 6, 8), nonnegative)
    quantizer.calibrate(values)
    errors = [float((quantizer.fake_quantize(values, k) - values).square().mean()) for k in range(5)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3
    if nonnegative:
        assert quantizer.zero_points.tolist() == [0] * 5


def test_steps_are_per_channel_and_follow_the_weights():
    weight = gaussian(4 * 90, seed=2).reshape(4, 10, 3, 3) * torch.tensor([0.01, 0.1, 1.0, 10.0]).reshape(4, 1, 1, 1)
    quantizer = UniformWeights((4, 8), 4)
    quantizer.calibrate(weight)
    steps = quantizer.steps(weight)
    assert steps.shape == (2, 4)
    assert bool((steps[0] > 5 * steps[1]).all())
    torch.testing.assert_close(quantizer.steps(3 * weight), 3 * steps)
    assert torch.equal(quantizer.quantize(3 * weight, 0), quantizer.quantize(weight, 0))
    for k in range(2):
        dequantized = quantizer.quantize(weight, k) * quantizer.steps(weight)[k].reshape(4, 1, 1, 1)
        assert torch.equal(quantizer.fake_quantize(weight, k), dequantized)


def test_channels_of_zeros_are_safe():
    weight = gaussian(2 * 9, seed=3).reshape(2, 9)
    weight[0] = 0
    quantizer = UniformWeights((2, 8), 2)
    quantizer.calibrate(weight)
    weight.requires_grad_()
    out = quantizer.fake_quantize(weight, 0)
    assert torch.count_nonzero(out[0]) == 0
    out.square().sum().backward()
    assert torch.isfinite(weight.grad).all()
    assert torch.isfinite(quantizer.log_steps.grad).all()
    assert bool((quantizer.steps(weight.detach()) > 0).all())


@torch.no_grad()
@pytest.mark.parametrize(
    "values", [torch.zeros(10), torch.full((10,), -2.0), torch.full((10,), 3.0), gaussian(100) - 50]
)
def test_zero_is_representable_whatever_was_seen(values):
    for nonnegative in (False, bool(values.min() >= 0)):
        quantizer = UniformActivations((2, 4, 8), nonnegative)
        quantizer.calibrate(values)
        for k in range(3):
            assert float(quantizer.fake_quantize(torch.zeros(1), k)) == 0.0
            grid = quantizer.grid(k)
            assert grid.scale > 0
            assert 0 <= grid.zero_point < 2**grid.bits
            assert torch.isfinite(quantizer.fake_quantize(values, k)).all()


def test_known_grid():
    quantizer = UniformActivations((8,), nonnegative=False)
    quantizer.set_grid(0.25, 17)
    grid = quantizer.grid(0)
    assert (grid.scale, grid.zero_point, grid.bits) == (pytest.approx(0.25, rel=1e-6), 17, 8)


def test_float_candidate():
    quantizer = UniformWeights((4, 32), 2)
    weight = gaussian(20).reshape(2, 10)
    quantizer.calibrate(weight)
    assert quantizer.fake_quantize(weight, 1) is weight
    with pytest.raises(ValueError, match="no codes"):
        quantizer.quantize(weight, 1)
    with pytest.raises(ValueError, match="no grid"):
        UniformActivations((8, 32), True).grid(1)


def test_state_carries_the_zero_points():
    trained = UniformActivations((2, 4, 8), nonnegative=False)
    trained.calibrate(gaussian(1000) - 1)
    assert trained.zero_points[2] > 0
    fresh = UniformActivations((2, 4, 8), nonnegative=False)
    fresh.load_state_dict(trained.state_dict())
    assert fresh.grids == trained.grids
    assert fresh.grid(1) == trained.grid(1)
