"""Quantizers that calibration alone sets, each rule against brute force, a closed form or a hand computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats

from ddq_search.quantizers.analytic_clip import best_clip, gauss_clip, laplace_clip
from ddq_search.quantizers.divergence import clip_of_least_divergence, divergences, least_divergence
from ddq_search.quantizers.registry import families

NAMES = ("min-max", "percentile", "mse", "kl", "aciq", "cosine")
BITS = (2, 3, 4, 6, 8)


def gaussian(count=100_000, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def laplace(count=100_000, seed=0):
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
    return (-uniform.sign() * (-2 * uniform.abs()).log1p()).float()


def weights(name, sample, bits=BITS):
    quantizer = families()[name].weights(bits, len(sample))
    quantizer.calibrate(sample)
    return quantizer


def activations(name, sample, nonnegative=False, bits=BITS):
    quantizer = families()[name].activations(bits, nonnegative)
    quantizer.calibrate(sample)
    return quantizer


def squared_error(quantizer, x, choice):
    with torch.no_grad():
        return float((quantizer.fake_quantize(x, choice) - x).double().square().mean())


def rounded(x, step, high):
    """Independent of everything under test: symmetric codes of magnitude up to ``high``, in float64."""
    return np.clip(np.rint(x / step), -high, high) * step


# -- what holds for all -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sample", [gaussian(), laplace()], ids=["gauss", "laplace"])
def test_error_falls_with_bits(name, sample):
    quantizers = [
        (weights(name, sample.reshape(8, -1)), sample.reshape(8, -1)),
        (activations(name, sample + 0.3), sample + 0.3),
        (activations(name, sample.relu(), nonnegative=True), sample.relu()),
    ]
    for quantizer, x in quantizers:
        errors = [squared_error(quantizer, x, k) for k in range(len(BITS))]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.02 * errors[0]


@pytest.mark.parametrize("name", NAMES)
def test_calibrated_numbers_are_no_trained_parameters_but_are_kept_and_taken_over(name):
    for build in (
        lambda bits: weights(name, gaussian(600).reshape(3, -1), bits),
        lambda bits: activations(name, gaussian(600), False, bits),
    ):
        quantizer = build((2, 4, 8, 32))
        x = gaussian(600, 1).reshape(3, -1).requires_grad_()
        optimizer = torch.optim.Adam(quantizer.parameters(), 0.1)
        before = {key: value.clone() for key, value in quantizer.state_dict().items()}
        quantizer.fake_quantize(x, 1, torch.tensor([0.9, 0.6, 0.3], requires_grad=True)).square().sum().backward()
        optimizer.step()
        assert x.grad.abs().sum() > 0
        assert all(torch.equal(before[key], value) for key, value in quantizer.state_dict().items())
        fresh = type(quantizer)((2, 4, 8, 32), 3, rule=quantizer.rule)
        fresh.load_state_dict(before)
        fewer = type(quantizer)((4, 8), 3, rule=quantizer.rule)
        fewer.take(quantizer)
        for k in range(2):
            expected = quantizer.fake_quantize(x, k + 1)
            assert torch.equal(fresh.fake_quantize(x, k + 1), expected)
            assert torch.equal(fewer.fake_quantize(x, k), expected)
        assert torch.equal(build((2, 4, 8, 32)).fake_quantize(x, 0), quantizer.fake_quantize(x, 0))  # determinism


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(NAMES), seed=st.integers(0, 1000), power=st.integers(-8, 8), nonnegative=st.booleans())
def test_steps_scale_with_the_values_and_do_not_depend_on_their_order(name, seed, power, nonnegative):
    x = gaussian(500, seed)
    x = x.relu() if nonnegative else x
    shuffled = x[torch.randperm(500, generator=torch.Generator().manual_seed(seed))] * 2.0**power
    first, second = activations(name, x, nonnegative), activations(name, shuffled, nonnegative)
    torch.testing.assert_close(second.log_steps.exp(), first.log_steps.exp() * 2.0**power, rtol=1e-4, atol=0)
    assert torch.equal(first.zero_points, second.zero_points)
    first, second = weights(name, x[None]), weights(name, shuffled[None])
    torch.testing.assert_close(second.steps(shuffled[None]), first.steps(x[None]) * 2.0**power, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "values", [torch.zeros(10), torch.full((10,), -2.0), torch.full((10,), 3.0), gaussian(100) - 50, torch.ones(1)]
)
def test_degenerate_samples(name, values):
    for nonnegative in {False, bool(values.min() >= 0)}:
        quantizer = activations(name, values, nonnegative)
        for k in range(len(BITS)):
            assert quantizer.grid(k).scale > 0
            assert float(quantizer.fake_quantize(torch.zeros(1), k)) == 0.0
            assert torch.isfinite(quantizer.fake_quantize(values, k)).all()
    rows = torch.stack([torch.zeros_like(values), values])
    quantizer = weights(name, rows)
    assert bool((quantizer.steps(rows) > 0).all())
    assert torch.isfinite(quantizer.fake_quantize(rows, 0)).all()


# -- min-max and percentile ---------------------------------------------------------------------------------------


def test_min_max_by_hand():
    quantizer = weights("min-max", torch.tensor([[-3.0, 1.4, 0.5], [0.1, 0.07, 0.0]]), (3,))
    torch.testing.assert_close(
        quantizer.steps(torch.tensor([[-3.0, 1.4, 0.5], [0.1, 0.07, 0.0]]))[0], torch.tensor([1.0, 0.1 / 3])
    )
    assert quantizer.quantize(torch.tensor([[-3.0, 1.4, 0.5], [0.1, 0.07, 0.0]]), 0).tolist() == [[-3, 1, 0], [3, 2, 0]]
    grid = activations("min-max", torch.tensor([-1.0, 0.2, 2.0]), bits=(2,)).grid(0)
    assert (grid.scale, grid.zero_point) == (pytest.approx(1.0), 1)
    assert activations("min-max", torch.tensor([0.0, 6.0]), True, (2,)).grid(0).scale == pytest.approx(2.0)


@torch.no_grad()
def test_min_max_clips_nothing():
    for x in (gaussian(), laplace() - 0.7):
        quantizer = weights("min-max", x.reshape(10, -1))
        affine = activations("min-max", x)
        for k in range(len(BITS)):
            steps = quantizer.steps(x.reshape(10, -1))[k]
            error = (quantizer.fake_quantize(x.reshape(10, -1), k) - x.reshape(10, -1)).abs().amax(1)
            assert bool((error <= 0.5001 * steps).all())
            step = affine.grid(k).scale  # the zero point is rounded: up to one more half step at an end of the range
            assert float((affine.fake_quantize(x, k) - x).abs().max()) <= 1.0001 * step


def test_percentile_by_hand():
    row = torch.arange(1.0, 2001.0) / 2000
    row[3], row[5], row[7] = 40.0, -50.0, 30.0  # two of 2,000 are clipped, the third largest magnitude stays
    quantizer = weights("percentile", torch.stack([row, -2 * row]), (8,))
    torch.testing.assert_close(quantizer.steps(torch.stack([row, -2 * row]))[0], torch.tensor([30.0, 60.0]) / 127)
    values = torch.linspace(-1, 3, 20_000)
    values[0], values[1], values[-2], values[-1] = -70, -60, 80, 90  # two at either end
    grid = activations("percentile", values, bits=(8,)).grid(0)
    assert grid.scale == pytest.approx(4 / 255, rel=1e-3)
    assert grid.zero_point == 64
    sparse = torch.zeros(30_000)
    sparse[7] = 5.0
    assert activations("percentile", sparse, True, (8,)).grid(0).scale == pytest.approx(5 / 255)  # not a range of 0


# -- searches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("sample", [gaussian(4000, 3), laplace(4000, 3)], ids=["gauss", "laplace"])
def test_mse_and_cosine_find_what_brute_force_finds(bits, sample):
    x, high = sample.double().numpy(), 2 ** (bits - 1) - 1
    steps = np.abs(x).max() / high * np.linspace(0.002, 1, 1500)
    grids = [rounded(x, step, high) for step in steps]
    squares = [np.mean((q - x) ** 2) for q in grids]
    cosines = [q @ x / np.sqrt(max(q @ q, 1e-30) * (x @ x)) for q in grids]
    found = [
        rounded(x, float(weights(n, sample[None], (bits,)).steps(sample[None])[0, 0]), high) for n in ("mse", "cosine")
    ]
    assert np.mean((found[0] - x) ** 2) <= 1.01 * min(squares)
    assert 1 - found[1] @ x / np.sqrt((found[1] @ found[1]) * (x @ x)) <= 1.01 * (1 - max(cosines))
    assert np.mean((found[0] - x) ** 2) <= np.mean((found[1] - x) ** 2)


def test_cosine_keeps_a_direction_that_least_squares_gives_up():
    row = torch.tensor([[1.0, 1.0, 1.0, 0.02]])  # at 2 bits: one level, any step up to 1 keeps all three ones
    quantizer = weights("cosine", row, (2,))
    assert quantizer.quantize(row, 0).tolist() == [[1, 1, 1, 0]]


# -- ACIQ ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 14, 15, 30, 254, 510])
def test_analytic_clips_minimise_the_modelled_error(steps):
    def laplace_error(a):
        return a**2 / (3 * steps**2) + 2 * np.exp(-a)

    def gauss_error(a):
        tails = 2 * stats.norm.expect(lambda x: (x - a) ** 2, lb=a) if a < 9 else 0.0
        return a**2 / (3 * steps**2) + tails

    assert laplace_clip(steps) == pytest.approx(special.lambertw(3 * steps**2).real, rel=1e-12)
    for clip, error in ((laplace_clip(steps), laplace_error), (gauss_clip(steps), gauss_error)):
        found = optimize.minimize_scalar(error, bounds=(0.1, 25), method="bounded", options={"xatol": 1e-9})
        assert clip == pytest.approx(found.x, rel=1e-4)


def test_the_papers_clips():
    assert [laplace_clip(2**b) for b in (2, 3, 4)] == pytest.approx([2.83, 3.89, 5.03], abs=0.01)
    assert [gauss_clip(2**b) for b in (2, 3, 4)] == pytest.approx([1.71, 2.15, 2.55], abs=0.01)


def test_the_likelier_fit_is_taken():
    samples = {"norm": gaussian(50_000, 5).double().numpy() * 3, "laplace": laplace(50_000, 5).double().numpy() * 3}
    for name, sample in samples.items():
        likelihood = {
            "norm": stats.norm.logpdf(sample, 0, np.sqrt(np.mean(sample**2))).sum(),
            "laplace": stats.laplace.logpdf(sample, 0, np.abs(sample).mean()).sum(),
        }
        assert max(likelihood, key=likelihood.get) == name
        expected = (
            gauss_clip(14) * np.sqrt(np.mean(sample**2)) if name == "norm" else laplace_clip(14) * np.abs(sample).mean()
        )
        assert best_clip(torch.from_numpy(sample)[None], 14).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("sample", [gaussian(seed=6), laplace(seed=6)], ids=["gauss", "laplace"])
def test_analytic_clipping_comes_near_the_best_step(bits, sample):
    for x, quantizer in (
        (sample.relu(), activations("aciq", sample.relu(), True, (bits,))),
        (sample + 0.5, activations("aciq", sample + 0.5, False, (bits,))),
    ):
        best = activations("mse", x, quantizer.nonnegative, (bits,))
        assert squared_error(quantizer, x, 0) <= 1.1 * squared_error(best, x, 0)
    rows = sample.reshape(4, -1)
    assert squared_error(weights("aciq", rows, (bits,)), rows, 0) <= 1.1 * squared_error(
        weights("mse", rows, (bits,)), rows, 0
    )


# -- KL -----------------------------------------------------------------------------------------------------------


def literal_divergence(counts, kept, steps):
    """P and Q bin by bin, as the slides tell it."""
    p = counts[:kept].copy()
    p[-1] += counts[kept:].sum()
    cell = np.array([((2 * j + 1) * steps + kept) // (2 * kept) for j in range(kept)])
    q = np.zeros(kept)
    for c in range(steps + 1):
        here = (cell == c) & (p > 0)
        if here.any():
            q[here] = counts[:kept][cell == c].sum() / here.sum()
    return stats.entropy(p, q)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 1, 2, 5, 30, 400]), min_size=24, max_size=40), st.integers(1, 7))
def test_divergences_are_those_of_the_literal_computation(counts, steps):
    counts = np.array([3, *counts, 1], float)
    kept = np.arange(steps + 1, len(counts) + 1)
    expected = [literal_divergence(counts, k, steps) for k in kept]
    found = divergences(counts, kept, steps)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    allowed = [k for k in kept if counts[:k].sum() >= 0.95 * counts.sum()]
    assert least_divergence(counts, steps) == min(allowed, key=lambda k: found[k - kept[0]])


def test_divergence_by_hand():
    # 4 bins, 1 step: cells of bins {0, 1} and {2, 3}. All kept: P = (4, 2, 1, 1)/8, Q = (3, 3, 1, 1)/8.
    # 3 kept: P = (4, 2, 2)/8; cells {0} and {1, 2} of the cut histogram (4, 2, 1): Q = (4, 1.5, 1.5)/7.
    found = divergences(np.array([4.0, 2, 1, 1]), np.array([4, 3]), 1)
    whole = 4 / 8 * np.log(4 / 3) + 2 / 8 * np.log(2 / 3)
    cut = 4 / 8 * np.log(7 / 8) + 2 * 2 / 8 * np.log(2 / 8 / (1.5 / 7))
    assert found.tolist() == pytest.approx([whole, cut])
    assert cut < whole
    assert least_divergence(np.array([4.0, 2, 1, 1]), 1) == 4  # an eighth of the mass may not be cut
    assert least_divergence(np.array([40.0, 20, 10, 1]), 1) == 3


def test_kl_gives_up_an_outlier_and_does_not_mind_zeros():
    x = gaussian(50_000, 7).abs()
    alone = clip_of_least_divergence(x, 127)
    assert 3 < alone <= float(x.max())
    far = torch.cat([x, torch.tensor([12.0])])
    assert clip_of_least_divergence(far, 127) < 6
    assert clip_of_least_divergence(torch.cat([x, torch.zeros(60_000)]), 127) == alone


@pytest.mark.parametrize(("count", "steps"), [(50_000, 32767), (500, 7), (30, 1), (8000, 127), (1, 1)])
def test_kl_clips_nothing_where_values_are_too_few_for_a_histogram(count, steps):
    x = gaussian(count, 8).abs()
    assert clip_of_least_divergence(x, steps) == float(x.max())


@pytest.mark.parametrize("count", [512, 2048, 20_000])
@pytest.mark.parametrize("steps", [7, 15])
def test_kl_keeps_most_values_of_small_tensors(count, steps):
    for seed in range(5):
        x = gaussian(count, seed).abs()
        clip = clip_of_least_divergence(x, steps)
        assert float((x > clip).double().mean()) <= 0.05
    spiked = torch.cat([x, torch.full((count,), 0.11)])  # the background of an image after a bias
    assert float((spiked > clip_of_least_divergence(spiked, steps)).double().mean()) <= 0.05
