"""Laws of the values: levels, codes, errors, what is deployed, what is saved and taken over."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

from ddq_search.discrete import integer_weights, weight_problem
from ddq_search.errors import PolicyError
from ddq_search.precision import FLOAT_BITS
from ddq_search.quantizers.conformance_subject import Subject, close, integers, same
from ddq_search.quantizers.contract import ActivationQuantizer, Quantizer, WeightQuantizer

ERROR_BITS = (2, 3, 4, 6, 8)
_MOST_LEVELS = 9
"""Levels of one candidate that are checked to be fixed points, the outermost among them."""


@torch.no_grad()
def kinds_and_shapes(subject: Subject) -> None:
    """Values keep type, shape and memory layout; codes are int32; the tensor itself is not changed."""
    quantizer, x = subject.calibrated(), subject.small
    before = x.clone()
    for k, bits in integers(quantizer):
        value = quantizer.fake_quantize(x, k)
        assert value.dtype == x.dtype, f"{bits} bits: {value.dtype} values of {x.dtype}"
        assert torch.isfinite(value).all(), f"{bits} bits: values are not finite"
        codes = quantizer.quantize(x, k)
        assert codes.dtype == torch.int32, f"{bits} bits: codes are {codes.dtype}, not int32"
        assert codes.shape == x.shape, f"{bits} bits: codes of shape {list(codes.shape)}, not {list(x.shape)}"
        last = quantizer.fake_quantize(x.contiguous(memory_format=torch.channels_last), k)
        close(last, value, f"{bits} bits, channels last", 1e-6)
    same(x, before, "the tensor that is quantized")
    probabilities = quantizer.probabilities()
    if probabilities is not None:
        assert probabilities.shape == (len(quantizer.candidates),), "one probability per candidate"
        assert abs(float(probabilities.sum()) - 1) < 1e-6, f"probabilities {probabilities.tolist()} do not sum to 1"


@torch.no_grad()
def codes_fit_the_bitwidth(subject: Subject) -> None:
    """No code leaves the range of its bits, however large the value; there is one level for every code."""
    quantizer = subject.calibrated()
    for x in (subject.small, 100 * subject.small, -100 * subject.small):
        for k, bits in integers(quantizer):
            levels = quantizer.levels(x, k)
            assert levels.ndim == (2 if subject.is_weights else 1), f"{bits} bits: levels of shape {list(levels.shape)}"
            assert levels.shape[:-1] == (x.shape[:1] if subject.is_weights else ()), f"{bits} bits: one row per channel"
            if subject.is_weights and subject.family.points:
                continue  # the codes of points: `deployed_integers_are_the_values`
            low, high = subject.code_range(bits)
            codes = quantizer.quantize(x, k)
            found = int(codes.min()), int(codes.max())
            assert low <= found[0] <= found[1] <= high, f"{bits} bits: codes {found} leave {low} … {high}"
            count = high - low + 1
            assert levels.shape[-1] == count, f"{bits} bits: {levels.shape[-1]} levels for {count} codes"
            assert bool((levels.diff() >= 0).all()), f"{bits} bits: levels do not ascend"


@torch.no_grad()
def values_are_levels(subject: Subject) -> None:
    """A fake-quantized value is the level of its code, exactly."""
    quantizer, x = subject.calibrated(), subject.small
    for k, bits in integers(quantizer):
        expected = subject.looked_up(quantizer.levels(x, k), quantizer.quantize(x, k), bits)
        same(quantizer.fake_quantize(x, k), expected, f"{bits} bits, levels[codes]")


@torch.no_grad()
def fixed_points(subject: Subject) -> None:
    """A value on a level stays there; one value in 25,000 moves the statistics of a weight by next to nothing."""
    quantizer, x = subject.calibrated(sample=subject.sample), subject.sample
    for k, bits in integers(quantizer):
        levels = quantizer.levels(x, k)
        count = levels.shape[-1]
        for j in sorted({round(share) for share in np.linspace(0, count - 1, min(count, _MOST_LEVELS))}):
            changed = x.clone()
            place = changed.flatten(1)[:, 0] if subject.is_weights else changed.flatten()[:1]
            place.copy_(levels[..., j] if subject.is_weights else levels[j])
            found = quantizer.fake_quantize(changed, k)
            expected = quantizer.levels(changed, k)[..., j].reshape(-1)
            first = found.flatten(1)[:, 0] if subject.is_weights else found.flatten()[:1]
            same(first, expected, f"{bits} bits, level {j} of {count}")


@torch.no_grad()
def error_falls_with_bits(subject: Subject) -> None:
    """The mean squared error on 10⁵ Gaussian samples falls with every step of bits."""
    quantizer, x = subject.calibrated(ERROR_BITS, subject.sample), subject.sample
    errors = [float((quantizer.fake_quantize(x, k) - x).square().mean()) for k in range(len(ERROR_BITS))]
    shown = ", ".join(f"{bits} bits: {error:.3g}" for bits, error in zip(ERROR_BITS, errors, strict=True))
    assert all(wide < narrow for narrow, wide in pairwise(errors)), shown


@torch.no_grad()
def deployed_integers_are_the_values(subject: Subject) -> None:
    """What is deployed (codes, scale, codebook, points; or grid) gives the fake-quantized values exactly in float32."""
    quantizer, x = subject.calibrated(), subject.small
    for k, bits in integers(quantizer):
        value = quantizer.fake_quantize(x, k)
        if isinstance(quantizer, WeightQuantizer):
            numbers = quantizer.numbers(x, k)
            problem = weight_problem(numbers.codes, bits, numbers.codebook, numbers.points)
            assert not problem, f"{bits} bits: {problem}"
            assert (numbers.codebook is not None) == subject.family.codebook, "Family.codebook says otherwise"
            assert len(numbers.points) == subject.family.points, "Family.points says otherwise"
            assert numbers.codes.dtype == np.int32, f"{bits} bits: codes are {numbers.codes.dtype}, not int32"
            assert numbers.scale.shape == (len(x),), f"{bits} bits: one scale per output channel"
            assert numbers.scale.dtype == np.float64, f"{bits} bits: scales are {numbers.scale.dtype}, not float64"
            assert bool((numbers.scale > 0).all()), f"{bits} bits: a scale is not positive"
            if not numbers.points:
                same(torch.from_numpy(numbers.codes), quantizer.quantize(x, k), f"{bits} bits, codes")
            whole = integer_weights(numbers.codes, numbers.codebook, numbers.points).astype(np.float32)
            scale = numbers.scale.astype(np.float32).reshape(-1, *[1] * (x.ndim - 1))
            same(torch.from_numpy(whole * scale), value, f"{bits} bits, codes * scale")
        elif isinstance(quantizer, ActivationQuantizer) and subject.is_deployable:
            grid = quantizer.grid(k)
            assert grid.bits == bits, f"a grid of {grid.bits} bits at {bits} bits"
            centred = quantizer.quantize(x, k) - grid.zero_point
            same(centred * torch.tensor(grid.scale, dtype=x.dtype), value, f"{bits} bits, (code - zero point) * scale")
        else:
            _refuses(quantizer, k)


def _refuses(quantizer: Quantizer, choice: int) -> None:
    assert isinstance(quantizer, ActivationQuantizer)
    try:
        quantizer.grid(choice)
    except PolicyError:
        return
    raise AssertionError("grid() must raise PolicyError where Family.uniform_activations is False")


@torch.no_grad()
def zero_is_exact(subject: Subject) -> None:
    """0 stays 0 where padding and ReLU rely on it; a one-sided quantizer may stand for the ReLU before it."""
    quantizer = subject.calibrated()
    x = subject.small.clone()
    x.flatten(1)[:, :3] = 0
    for k, bits in integers(quantizer):
        value = quantizer.fake_quantize(x, k)
        if subject.is_deployable and not (subject.is_weights and subject.family.codebook):
            assert bool((value[x == 0] == 0).all()), f"{bits} bits: 0 becomes {float(value[x == 0].abs().max()):.3g}"
        if isinstance(quantizer, ActivationQuantizer) and quantizer.nonnegative:
            same(quantizer.fake_quantize(-x, k), quantizer.fake_quantize((-x).relu(), k), f"{bits} bits, ReLU")
            assert float(value.min()) >= 0, f"{bits} bits: a one-sided quantizer returns {float(value.min()):.3g}"


@torch.no_grad()
def odd_samples_are_safe(subject: Subject) -> None:
    """Calibration on zeros, on one value and on hardly any values leaves finite values and a valid deployment."""
    for constant in (0.0, 1e-3, 7.0):
        x = torch.full_like(subject.small, constant)
        if subject.is_weights:
            x[1:] = subject.small[1:]
        quantizer = subject.calibrated(sample=x)
        for k, bits in integers(quantizer):
            value = quantizer.fake_quantize(x, k)
            assert torch.isfinite(value).all(), f"{bits} bits, calibrated on {constant}: values are not finite"
            if isinstance(quantizer, WeightQuantizer):
                scale = quantizer.numbers(x, k).scale
                assert bool(np.isfinite(scale).all() and (scale > 0).all()), f"{bits} bits: a scale is not positive"
            elif isinstance(quantizer, ActivationQuantizer) and subject.is_deployable:
                quantizer.grid(k)  # raises ValueError where it is none


@torch.no_grad()
def a_known_grid_is_kept(subject: Subject) -> None:
    """`set_grid` fixes the grid of an input whose codes are given."""
    quantizer = subject.make((8,))
    if isinstance(quantizer, ActivationQuantizer):
        quantizer.set_grid(0.25, 17 if subject.role == "two-sided activations" else 0)
        grid = quantizer.grid(0)
        assert math.isclose(grid.scale, 0.25, rel_tol=1e-6), f"scale {grid.scale} instead of 0.25"
        assert grid.bits == 8, f"{grid.bits} bits instead of 8"
        assert grid.zero_point == (17 if subject.role == "two-sided activations" else 0), str(grid)


@torch.no_grad()
def state_is_saved_and_loaded(subject: Subject) -> None:
    """A fresh quantizer with the state of another computes the same."""
    trained, fresh, x = _moved(subject.calibrated()), subject.make((2, 4, 8)), subject.small
    fresh.load_state_dict(trained.state_dict())
    for k, bits in integers(trained):
        same(fresh.fake_quantize(x, k), trained.fake_quantize(x, k), f"{bits} bits, state_dict")


@torch.no_grad()
def a_subset_is_taken_over(subject: Subject) -> None:
    """`take` gives the candidates that remain what they had."""
    trained, x = _moved(subject.calibrated((2, 3, 4, 8))), subject.small
    for remaining in ((3,), (2, 4), (2, 3, 4, 8)):
        fresh = subject.make(remaining)
        fresh.take(trained)
        for k, bits in integers(fresh):
            expected = trained.fake_quantize(x, trained.candidates.index(bits))
            close(fresh.fake_quantize(x, k), expected, f"{bits} bits of {remaining}, taken over", 1e-6)


@torch.no_grad()
def float32_is_left_alone(subject: Subject) -> None:
    """A candidate of 32 bits returns the tensor and has neither codes nor grid."""
    quantizer, x = subject.calibrated((4, FLOAT_BITS)), subject.small
    same(quantizer.fake_quantize(x, 1), x, "32 bits")
    asked: list[Callable[[], object]] = [lambda: quantizer.quantize(x, 1), lambda: quantizer.levels(x, 1)]
    if isinstance(quantizer, ActivationQuantizer) and subject.is_deployable:
        activations = quantizer
        asked.append(lambda: activations.grid(1))
    for question in asked:
        try:
            question()
        except ValueError:
            continue
        raise AssertionError("codes, levels and grid of a float32 candidate must raise ValueError")


def _moved(quantizer: Quantizer) -> Quantizer:
    """Moves every learned parameter a little, as training does."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return quantizer


LAWS: tuple[Callable[[Subject], None], ...] = (
    kinds_and_shapes, codes_fit_the_bitwidth, values_are_levels, fixed_points, error_falls_with_bits,
    deployed_integers_are_the_values, zero_is_exact, odd_samples_are_safe, a_known_grid_is_kept,
    state_is_saved_and_loaded, a_subset_is_taken_over, float32_is_left_alone,
)  # fmt: skip
"""Laws in the order in which they are checked."""
