"""Merging without U: the projector, its derivative, the nearest level, levels that start well."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.quantizers.level_calibration import lloyd_levels
from ddq_search.quantizers.merging import gate_direction, look_up, merged, nearest


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def block_matrix(gates):
    """U and Z_U of ordered gates, differentiable in them: the paper's definition."""
    eye, ones = torch.eye(2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    u = functools.reduce(torch.kron, [g * eye + (1 - g) * ones for g in gates])
    return u, u.sum(1, keepdim=True)


# -- merging ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_gate_setting_composes_to_an_averaging_projector(bits):
    """U = U_1 ⊗ … ⊗ U_b of ordered gates, s of them open, averages 2^(b−s) neighbours."""
    levels = gaussian(2**bits, seed=bits, dtype=torch.float64).sort().values
    for setting in itertools.product([0, 1], repeat=bits):
        opened = sum(setting)
        u, z = block_matrix(torch.tensor(sorted(setting, reverse=True), dtype=torch.float64))
        assert torch.equal(z, torch.full_like(z, 2 ** (bits - opened)))
        projector = u / z
        assert torch.equal(projector, projector.T)
        if sum(setting[:opened]) == opened:  # once for every s: the same matrix otherwise
            torch.testing.assert_close(projector @ projector, projector)
        torch.testing.assert_close(
            projector @ levels, merged(levels, opened).repeat_interleave(2 ** (bits - opened)), rtol=1e-12, atol=1e-12
        )


def test_gates_out_of_order_do_not_average_neighbours():
    u = torch.kron(torch.ones(2, 2), torch.eye(2))
    assert u[0].tolist() == [1, 0, 1, 0]  # levels 0 and 2, not neighbours: hence the ordering


@pytest.mark.parametrize("constant_z", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_the_derivative_of_merging_is_that_of_the_block_matrix(bits, constant_z):
    levels = gaussian(2**bits, seed=bits, dtype=torch.float64).sort().values
    for opened, changed in itertools.product(range(bits + 1), range(bits)):
        gates = torch.tensor([1.0] * opened + [0.0] * (bits - opened), dtype=torch.float64)

        def value(g):
            u, z = block_matrix(g)
            return (u / (z.detach() if constant_z else z)) @ levels

        jacobian = torch.autograd.functional.jacobian(value, gates)
        found = gate_direction(levels, opened, [changed], constant_z=constant_z)
        torch.testing.assert_close(found, jacobian[:, changed])
        if not constant_z:
            assert abs(float(found.sum())) < 1e-12  # the mean level stays
    together = gate_direction(levels, 1, range(bits), constant_z=constant_z)
    apart = [gate_direction(levels, 1, [i], constant_z=constant_z) for i in range(bits)]
    torch.testing.assert_close(together, sum(apart))


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 8), seed=st.integers(0, 10_000), ties=st.booleans())
def test_the_nearest_level_is_nearest(bits, seed, ties):
    levels = gaussian(2**bits, seed=seed).sort().values
    levels = (4 * levels).round() if ties else levels
    x = 4 * gaussian(2, 3, 5, 5, seed=seed + 1)
    found = nearest(x, levels)
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), torch.bucketize(x, (levels[1:] + levels[:-1]) / 2))
    torch.testing.assert_close(
        (levels[found.long()] - x).abs(), (levels - x[..., None]).abs().min(-1).values, rtol=0, atol=1e-6
    )
    last = nearest(x.contiguous(memory_format=torch.channels_last), levels)
    assert torch.equal(last, found)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(look_up(levels, last), levels[found.long()])


@pytest.mark.parametrize(("bits", "optimum"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_learned_levels_start_at_the_best_quantizer_of_a_gaussian(bits, optimum):
    """Distortions of Max, "Quantizing for minimum distortion", IRE Trans. Inf. Theory 6, 1960, table I."""
    sample = gaussian(100_000)
    levels = lloyd_levels(sample, 2**bits)
    error = (levels[nearest(sample, levels).long()] - sample).square().mean()
    assert float(error) == pytest.approx(optimum, rel=0.02)
