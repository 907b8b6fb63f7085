"""The fused passes compute what plain torch computes, whatever the layout, and never matter for whether things work."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

from ddq_search import native
from ddq_search.precision import activation_code_range, weight_code_range
from ddq_search.quantizers import fused
from ddq_search.quantizers.mixing import MixPasses
from ddq_search.quantizers.straight_through import Estimate, FusedPasses, Grid, PlainPasses
from ddq_search.quantizers.uniform import UniformActivations
from tests.threads import threads

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

ACTIVATIONS = tuple(Grid(*activation_code_range(bits), point) for bits, point in ((2, 1), (4, 5), (8, 100)))
WEIGHTS = tuple(Grid(*weight_code_range(bits), 0) for bits in (2, 4, 8))


@pytest.fixture
def fresh(monkeypatch):
    """Forgets the loaded library before and after."""
    fused._library.cache_clear()
    yield monkeypatch
    fused._library.cache_clear()
    native._failures.clear()


def run(passes, x, log_steps, cumulative, grids, choice, estimate, grad, statistic=None):
    x, log_steps, cumulative = (t.clone().requires_grad_() for t in (x, log_steps, cumulative))
    out = passes.apply(x * 1, log_steps, statistic, cumulative, grids, choice, estimate)
    kept = out.detach().clone()
    out.backward(grad.clone())
    return kept, x.grad, log_steps.grad, cumulative.grad


def assert_same(found, wanted):
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    torch.testing.assert_close(found[2], wanted[2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[3], wanted[3], rtol=1e-4, atol=1e-4)


def test_the_kernels_are_there():
    """Where a compiler is, its absence would otherwise go unnoticed but for the speed."""
    assert fused.serves(torch.zeros(1))
    assert "fused" in fused.status()


@pytest.mark.parametrize("choice", [0, 1, 2])
@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("correction", [0.0, 0.3])
@pytest.mark.parametrize("overwrites", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_activations_as_in_plain_torch(choice, share, correction, overwrites, layout):
    generator = torch.Generator().manual_seed(choice)
    x = (torch.randn(8, 12, 9, 7, generator=generator) * 3).contiguous(memory_format=layout)
    grad = torch.randn(x.shape, generator=generator).contiguous(memory_format=layout)
    log_steps, cumulative = torch.tensor([1.0, 0.3, 0.02]).log(), torch.tensor([0.8, 0.5])
    estimate = Estimate(share, correction)
    wanted = run(PlainPasses, x, log_steps, cumulative, ACTIVATIONS, choice, estimate, grad)
    estimate = Estimate(share, correction, overwrites, overwrites)
    assert_same(run(FusedPasses, x, log_steps, cumulative, ACTIVATIONS, choice, estimate, grad), wanted)


@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 3, 3), (3, 5000), (2, 700, 3, 3)])
@pytest.mark.parametrize("choice", [0, 2])
def test_weights_as_in_plain_torch(shape, choice):
    generator = torch.Generator().manual_seed(choice)
    x, grad = (torch.randn(shape, generator=generator) for _ in range(2))
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    log_steps = (torch.rand(3, shape[0], generator=generator) * 0.3 + 0.01).log()
    statistic, cumulative = torch.rand(shape[0], generator=generator) + 0.5, torch.tensor([0.9, 0.4])
    arguments = (x, log_steps, cumulative, WEIGHTS, choice, Estimate(correction=0.1), grad, statistic)
    assert_same(run(FusedPasses, *arguments), run(PlainPasses, *arguments))


@pytest.mark.parametrize("choice", [0, 1])
@pytest.mark.parametrize("overwrites", [False, True])
def test_float32_among_the_candidates(choice, overwrites):
    x, grad = torch.randn(8, 6, 5, 5), torch.randn(8, 6, 5, 5)
    log_steps, cumulative = torch.tensor([0.3, 1.0]).log(), torch.tensor([0.8])
    grids = (ACTIVATIONS[1], None)
    wanted = run(PlainPasses, x, log_steps, cumulative, grids, choice, Estimate(0.5), grad)
    estimate = Estimate(0.5, 0.0, overwrites, overwrites)
    assert_same(run(FusedPasses, x, log_steps, cumulative, grids, choice, estimate, grad), wanted)


@pytest.mark.parametrize("overwrites", [False, True])
def test_a_gradient_of_another_layout_or_expanded(overwrites):
    x = torch.randn(4, 6, 5, 5).contiguous(memory_format=torch.channels_last)
    log_steps, cumulative = torch.tensor([1.0, 0.3, 0.02]).log(), torch.tensor([0.8, 0.5])
    for grad in (torch.randn(4, 6, 5, 5), torch.randn(4, 6, 1, 1).expand(4, 6, 5, 5)):
        wanted = run(PlainPasses, x, log_steps, cumulative, ACTIVATIONS, 1, Estimate(0.5), grad)
        estimate = Estimate(0.5, 0.0, overwrites, overwrites)
        assert_same(run(FusedPasses, x, log_steps, cumulative, ACTIVATIONS, 1, estimate, grad), wanted)


def test_results_do_not_depend_on_the_number_of_threads():
    x, grad = torch.randn(16, 32, 16, 16), torch.randn(16, 32, 16, 16)
    log_steps, cumulative = torch.tensor([1.0, 0.3, 0.02]).log(), torch.tensor([0.8, 0.5])
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(run(FusedPasses, x, log_steps, cumulative, ACTIVATIONS, 1, Estimate(), grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_what_is_not_finite_stays_visible():
    x = torch.ones(5000)
    x[4321] = torch.nan
    out = fused.forward(x, torch.tensor(0.5), 0, 15)
    assert torch.isnan(out[4321])
    assert torch.isfinite(out[:4321]).all()
    grad = torch.ones(5000)
    found = fused.backward(
        x, grad, torch.tensor([0.5, 1.0]), ((0, 15), (0, 255)), 0, leading=5000, factor=1.0, gated=True, correction=0.0,
        overwrite=False,
    )  # fmt: skip
    assert torch.isnan(found.cumulative).all()


@pytest.mark.parametrize(
    "x", [torch.zeros(3, dtype=torch.float64), torch.zeros(0), torch.zeros(4, 6)[:, ::2], torch.zeros(3).half()]
)
def test_what_it_cannot_read_goes_to_plain_torch(x):
    assert not fused.serves(x)


def test_without_a_compiler_plain_torch_does_the_same(fresh):
    x = torch.randn(4, 300)
    quantizer = UniformActivations((2, 4, 8), nonnegative=False)
    quantizer.calibrate(x)
    wanted = quantizer.fake_quantize(x, 1)
    fresh.setenv("CC", "no-such-compiler")
    fused._library.cache_clear()
    assert not fused.serves(x)
    assert "plain torch" in fused.status()
    assert torch.equal(quantizer.fake_quantize(x, 1), wanted)


def test_a_compiler_that_fails_and_a_cache_that_cannot_be_written(fresh, tmp_path):
    fresh.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("in the way")
    assert fused.serves(torch.zeros(1))
    fused._library.cache_clear()
    fresh.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fresh.setenv("CC", "false")
    assert not fused.serves(torch.zeros(1))
    (left,) = (tmp_path / "cache" / "ddq-search").iterdir()
    assert left.suffix == ".failed"


def compiler(path, last, tally):
    """A compiler that counts its calls and ends with a line of shell."""
    path.write_text(f"#!/bin/sh\necho x >> {tally}\necho 'fused.c: no such vector' >&2\n{last}\n")
    path.chmod(0o755)
    return str(path)


def asked(fresh, tally):
    """How often a fresh process asks the compiler."""
    before = len(tally.read_text().split()) if tally.exists() else 0
    fused._library.cache_clear()
    assert not fused.serves(torch.zeros(1))
    return len(tally.read_text().split()) - before


def test_a_refusal_is_remembered_until_the_compiler_changes(fresh, tmp_path):
    tally = tmp_path / "tally"
    fresh.setenv("XDG_CACHE_HOME", str(tmp_path))
    fresh.setenv("CC", compiler(tmp_path / "cc", "exit 3", tally))
    assert [asked(fresh, tally), asked(fresh, tally)] == [1, 0]
    (told,) = native.failures()
    assert "fused.c is left out" in told
    assert "cc ended with 3 (fused.c: no such vector); mend it or set CC, or delete" in told
    (refusal,) = (tmp_path / "ddq-search").glob("*.failed")
    assert str(refusal) in told
    assert "\n" not in told
    refusal.unlink()
    assert asked(fresh, tally) == 1
    os.utime(tmp_path / "cc", (1, 1))  # another compiler under the same name
    assert asked(fresh, tally) == 1
    fresh.setenv("DDQ_SEARCH_FUSED", "0")
    assert asked(fresh, tally) == 0
    assert not native.failures()


def test_a_compiler_that_was_killed_is_asked_again(fresh, tmp_path):
    tally = tmp_path / "tally"
    fresh.setenv("XDG_CACHE_HOME", str(tmp_path))
    fresh.setenv("CC", compiler(tmp_path / "cc", "kill -9 $$", tally))
    assert [asked(fresh, tally), asked(fresh, tally)] == [1, 1]
    assert "ended with -9" in native.failures()[0]


def test_it_can_be_switched_off(fresh):
    fresh.setenv("DDQ_SEARCH_FUSED", "0")
    assert not fused.serves(torch.zeros(1))


# -- mixtures -----------------------------------------------------------------------------------------------------


def mixed(x, log_steps, statistic, shares, grids, share, grad):
    x, log_steps, shares = (t.clone().requires_grad_() for t in (x, log_steps, shares))
    out = MixPasses.apply(x, log_steps, statistic, shares, grids, share)
    out.backward(grad)
    return out.detach(), x.grad, log_steps.grad, shares.grad


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_mixtures_as_in_plain_torch(fresh, share, layout):
    x, grad = (torch.randn(8, 12, 9, 7).contiguous(memory_format=layout) for _ in range(2))
    log_steps, shares = torch.tensor([1.0, 0.3, 0.02]).log(), torch.tensor([0.2, 0.5, 0.3])
    found = mixed(x, log_steps, None, shares, ACTIVATIONS, share, grad)
    fresh.setenv("DDQ_SEARCH_FUSED", "0")
    fused._library.cache_clear()
    wanted = mixed(x, log_steps, None, shares, ACTIVATIONS, share, grad)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_mixtures_of_weights_as_sums_of_single_quantizations():
    weight, grad = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3)
    log_steps, shares = (torch.rand(3, 6) * 0.3 + 0.01).log(), torch.tensor([0.2, 0.5, 0.3])
    statistic = torch.rand(6) + 0.5
    out, grad_x, grad_steps, grad_shares = mixed(weight, log_steps, statistic, shares, WEIGHTS, 1.0, grad)
    singles = [
        run(PlainPasses, weight, log_steps, torch.zeros(2), WEIGHTS, k, Estimate(), grad, statistic) for k in range(3)
    ]
    torch.testing.assert_close(out, sum(p * single[0] for p, single in zip(shares, singles, strict=True)))
    torch.testing.assert_close(grad_x, sum(p * single[1] for p, single in zip(shares, singles, strict=True)))
    torch.testing.assert_close(
        grad_steps, sum(p * s[2] for p, s in zip(shares, singles, strict=True)), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(grad_shares, torch.stack([(grad * single[0]).sum() for single in singles]))
