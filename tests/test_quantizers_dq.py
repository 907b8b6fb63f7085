"""DQ's quantizers: bits counted in levels, codes within them, inferring, clipping, settling, deployment."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.evaluation import IntegerEvaluator
from ddq_search.integer.lowering import lower
from ddq_search.quantizers.choice_of_families import Quantizers
from ddq_search.quantizers.dq import (
    DqActivations,
    DqU1Activations,
    DqU1Weights,
    DqU2Activations,
    DqU2Weights,
    DqWeights,
)
from ddq_search.quantizers.dq_gradients import p1, p2, u3
from ddq_search.quantizers.dq_power import (
    BitsAndLargestPower,
    BitsAndSmallestPower,
    DqP1Weights,
    DqP2Weights,
    DqP3Weights,
    SmallestAndLargest,
    bits_of_octaves,
)
from ddq_search.quantizers.dq_range import BitsAndLargest, BitsAndStep, StepAndLargest, bits_of_levels
from ddq_search.size_constraints import SizeLimits, SizeModel, expected_bits
from ddq_search.space import build_space
from ddq_search.supernet import Supernet
from ddq_search.trace import trace
from tests.networks import MODELS, sample_images
from tests.toys import AnyDevice

UNIFORM = (StepAndLargest, BitsAndStep, BitsAndLargest)
WEIGHTS = (DqWeights, DqU1Weights, DqU2Weights, DqP3Weights, DqP1Weights, DqP2Weights)


def learned(range_class, signed, limits, step, largest, power_of_two=False):
    """A range with a given step and largest level; the bitwidth of U1 and U2 follows."""
    found = range_class(signed, limits)
    found.power_of_two = power_of_two
    with torch.no_grad():
        if range_class is StepAndLargest:
            found.set_start(torch.tensor(step), torch.tensor(largest))
        else:
            found.learned_bits.fill_(math.log2(largest / step + 1) + signed)
            found.log_other.fill_(math.log(step if range_class is BitsAndStep else largest))
    found.keep_within()
    return found


def inferring(quantizer, step, largest):
    """The U3 quantizer, inferring from a given step and largest level."""
    quantizer.range.set_start(torch.tensor(step), torch.tensor(largest))
    quantizer.inferring = True
    return quantizer


@pytest.mark.parametrize(
    ("top", "signed", "unsigned"),
    [(1, 2, 1), (3, 3, 2), (4, 4, 3), (7, 4, 3), (8, 5, 4), (15, 5, 4), (16, 6, 5)],
)
def test_bits_are_counted_in_levels(top, signed, unsigned):
    assert (bits_of_levels(top, True), bits_of_levels(top, False)) == (signed, unsigned)
    assert learned(StepAndLargest, True, (2, 8), 0.1, 0.1 * top).inferred_bits() == signed
    assert learned(StepAndLargest, False, (1, 8), 0.1, 0.1 * top).inferred_bits() == unsigned


@pytest.mark.parametrize(("octaves", "bits"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (7, 4), (8, 4), (9, 5)])
def test_bits_of_powers_of_two(octaves, bits):
    assert bits_of_octaves(octaves) == bits == math.ceil(math.log2(octaves) + 1)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(UNIFORM), st.booleans(), st.booleans(), st.floats(-12, 6), st.floats(-3, 14),
    st.sampled_from([(2, 8), (2, 4), (3, 5), (4, 8), (1, 8)]),
)  # fmt: skip
def test_no_code_exceeds_the_bitwidth(range_class, signed, power_of_two, log_step, log_ratio, limits):
    if signed and limits[0] == 1:
        limits = (2, 8)
    step = 2.0**log_step
    found = learned(range_class, signed, limits, step, step * 2.0**log_ratio, power_of_two)
    bits, largest = found.inferred_bits(), float(found.largest_level())
    assert limits[0] <= bits <= limits[1]
    assert limits[0] - 1e-4 <= found.bits().item() <= limits[1] + 1e-4
    top = 2 ** (bits - signed) - 1
    unit = largest / found.top()
    x = torch.cat([torch.linspace(-2, 2, 401) * largest, torch.tensor([-1e6, 1e6])])
    codes = found.place(x).detach() / unit
    assert float((codes - codes.round()).abs().max()) < 1e-3
    assert float(codes.abs().max().round()) == found.top() <= top
    assert float(codes.min()) < 0 if signed else float(codes.min()) == 0
    if power_of_two:
        assert math.frexp(unit)[0] == pytest.approx(0.5, rel=1e-6)


def test_a_rounded_step_does_not_widen_the_codes():
    """q_max/15 = 1.41 · 2^−4 rounds down to 2^−4, of which q_max holds 21: the official code's slip."""
    largest = 15 * 1.413 * 2**-4
    assert round(largest / 2**-4) == 21
    found = learned(BitsAndLargest, False, (2, 4), largest / 15, largest, power_of_two=True)
    assert found.inferred_bits() == 4
    assert found.place(torch.tensor([100.0])).item() == 15 * 2**-4


POWERS = (SmallestAndLargest, BitsAndSmallestPower, BitsAndLargestPower)


def learned_powers(range_class, limits, octaves, largest):
    """A range of powers of two with so many magnitudes up to a largest level; the bitwidth of P1 and P2 follows."""
    found = range_class(True, limits)
    smallest = largest * 2.0 ** (1 - octaves)
    with torch.no_grad():
        if range_class is SmallestAndLargest:
            found.log_largest.fill_(math.log(largest))
            found.log_smallest.fill_(math.log(smallest))
        else:
            found.learned_bits.fill_(math.log2(octaves) + 1)
            found.log_other.fill_(math.log(smallest if range_class is BitsAndSmallestPower else largest))
    found.keep_within()
    return found


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(POWERS), st.integers(1, 40), st.floats(0.02, 50), st.sampled_from([(2, 4), (2, 3), (3, 8)]))
def test_powers_of_two_stay_within_the_codebook(range_class, octaves, largest, limits):
    found = learned_powers(range_class, limits, octaves, largest)
    magnitudes = found.place(torch.linspace(-2, 2, 1001) * found.largest_level()).detach().abs().unique()
    assert 2 <= len(magnitudes) <= found.octaves() <= 7
    assert {math.frexp(value)[0] for value in magnitudes.tolist()} == {0.5}
    assert float(magnitudes.max()) == found.largest_level()
    assert limits[0] <= found.inferred_bits() <= min(limits[1], 4)
    assert limits[0] - 1e-4 <= found.bits().item() <= min(limits[1], 4) + 1e-4


def assert_paid_rounded_up_is_used(found):
    bits = found.bits()
    assert math.ceil(bits.item() - 1e-5) == found.inferred_bits()
    bits.backward()
    slopes = [parameter.grad for parameter in found.parameters() if parameter.grad is not None]
    assert slopes
    assert all(torch.isfinite(slope) and slope != 0 for slope in slopes)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(UNIFORM), st.booleans(), st.booleans(), st.floats(-12, 6), st.floats(-3, 14),
    st.sampled_from([(2, 8), (2, 4), (3, 5), (4, 8)]),
)  # fmt: skip
def test_paid_bits_rounded_up_are_the_bits_used(range_class, signed, power_of_two, log_step, log_ratio, limits):
    step = 2.0**log_step
    assert_paid_rounded_up_is_used(learned(range_class, signed, limits, step, step * 2.0**log_ratio, power_of_two))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(POWERS), st.floats(0.5, 40), st.floats(0.02, 50), st.sampled_from([(2, 4), (2, 3), (3, 8)]))
def test_paid_bits_of_powers_of_two_rounded_up_are_the_bits_used(range_class, octaves, largest, limits):
    assert_paid_rounded_up_is_used(learned_powers(range_class, limits, octaves, largest))


@pytest.mark.parametrize(
    ("step", "largest", "used"), [(1.4, 4.2, (1, 4, 4)), (1.0, 5.3, (1, 5, 4)), (1.6, 5.3, (2, 6, 3))]
)
def test_a_range_is_a_whole_number_of_rounded_steps(step, largest, used):
    """As in the official code: d is rounded to a power of two, q_max to a multiple of it."""
    found = learned(StepAndLargest, True, (2, 8), step, largest, power_of_two=True)
    unit, top = found.place(torch.tensor([0.8 * used[0], 100.0])).tolist()
    assert (unit, top, found.inferred_bits()) == used
    bits = found.bits()
    assert bits.item() == pytest.approx(math.log2(used[1] / used[0] + 1) + 1)
    bits.backward()
    slope = 1 / math.log(2) / (used[1] / used[0] + 1) / used[0]  # by q_max: straight-through
    assert found.log_largest.grad.item() == pytest.approx(slope * largest, rel=1e-5)


@pytest.mark.parametrize(("range_class", "table"), [(BitsAndSmallestPower, p1), (BitsAndLargestPower, p2)])
@pytest.mark.parametrize(("bits", "end"), [(2.0, 0.25), (2.8, 0.25), (3.3, 0.23)])
def test_gradients_are_those_of_the_tables_at_the_rounded_bitwidth(range_class, table, bits, end):
    found = range_class(True, (2, 8))
    with torch.no_grad():
        found.learned_bits.fill_(bits)
        found.log_other.fill_(math.log(end))
    x, grad = torch.randn(2, 400), torch.randn(2, 400)
    whole, power = torch.tensor(float(round(bits)), requires_grad=True), torch.tensor(0.25, requires_grad=True)
    expected = table(x, whole, power)
    by_bits, by_end = torch.autograd.grad(expected, (whole, power), grad)
    out = found.place(x)
    out.backward(grad)
    assert torch.equal(out, expected)
    assert by_bits.item() != 0
    assert found.learned_bits.grad.item() == pytest.approx(by_bits.item(), rel=1e-5)
    assert found.log_other.grad.item() == pytest.approx(end * by_end.item(), rel=1e-4)


def test_four_bits_of_powers_of_two_have_the_gradient_of_eight_octaves_at_the_ends_of_seven():
    x = torch.tensor([[1e-4, -1e-4, 1e-4, 0.3, 50.0, -50.0, 50.0]])
    for range_class, expected in (
        (BitsAndSmallestPower, 8 * math.log(2) ** 2 * 4.0),
        (BitsAndLargestPower, -8 * math.log(2) ** 2 / 16),
    ):
        found = learned_powers(range_class, (2, 8), 7, 4.0)
        out = found.place(x)
        assert out.detach().abs().unique().tolist() == [1 / 16, 0.25, 4]
        out.sum().backward()
        assert found.learned_bits.grad.item() == pytest.approx(expected)


@pytest.mark.parametrize("weights", WEIGHTS[3:])
@pytest.mark.parametrize(("candidates", "octaves"), [((2, 4, 8), 7), ((4, 8), 7), ((2, 3), 4)])
def test_powers_of_two_start_below_the_largest_magnitude(weights, candidates, octaves):
    """At four bits, or what the candidates allow; P3 then moves both ends."""
    quantizer = weights(candidates, 1)
    for _ in range(2):
        quantizer.calibrate(torch.tensor([[0.3, -9.0]]))
        smallest, largest = (end.item() for end in quantizer.range.smallest_and_largest())
        assert largest == pytest.approx(8 if octaves == 7 or weights is not DqP3Weights else 4)
        assert largest / smallest == 2 ** (octaves - 1)
        quantizer.inferring = True
        assert quantizer.inferred_bits() == candidates[-1] - 4 * (candidates[-1] == 8)
        with torch.no_grad():
            for parameter in quantizer.range.parameters():
                parameter.add_(-0.7)


@pytest.mark.parametrize("weights", WEIGHTS[:3])
def test_start_is_the_papers(weights):
    x = torch.tensor([[0.3, -1.9], [0.01, 0.5]])
    quantizer = weights((2, 4, 8), 2)
    quantizer.calibrate(x)
    step, largest = quantizer.range.step_and_largest()
    assert step.item() == pytest.approx(0.25)  # 2^⌊log2(1.9/7)⌋
    assert largest.item() == pytest.approx(1.75)
    quantizer.inferring = True
    assert quantizer.inferred_bits() == 4
    rectified = DqActivations((2, 4, 8), nonnegative=True)
    rectified.calibrate(torch.tensor([0.0, 1.9]))
    step, largest = rectified.range.step_and_largest()
    assert (step.item(), largest.item()) == (pytest.approx(0.125), pytest.approx(1.875))  # 1.9/15


@pytest.mark.parametrize(
    ("largest", "expected"),
    [(1, [1, 0, 0]), (3, [0.5, 0.5, 0]), (7, [0, 1, 0]), (31, [0, 0.5, 0.5]), (127, [0, 0, 1])],
)
def test_probabilities_interpolate_the_continuous_bitwidth(largest, expected):
    quantizer = inferring(DqWeights((2, 4, 8), 1), 0.5, 0.5 * largest)
    found = quantizer.probabilities()
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert (found @ torch.tensor([2.0, 4, 8], dtype=torch.float64)).item() == pytest.approx(math.log2(largest + 1) + 1)


def test_probabilities_are_differentiable():
    quantizer = inferring(DqWeights((2, 4, 8), 1), 0.5, 5.5).double()
    quantizer.range.clips_gradients = False
    mean = quantizer.probabilities() @ torch.tensor([2.0, 4, 8], dtype=torch.float64)
    mean.backward()
    slope = 11 / 12 / math.log(2)  # of log2(r + 1) by log r, at r = 11
    assert quantizer.range.log_largest.grad.item() == pytest.approx(slope)
    assert quantizer.range.log_step.grad.item() == pytest.approx(-slope)
    assert quantizer.probabilities()[2].item() == pytest.approx((math.log2(12) + 1 - 4) / 4)


@pytest.mark.parametrize("ratio", [2.0, 7.0, 127.0, 1e5])
def test_the_slope_at_candidates_and_limits_is_that_of_the_bitwidth(ratio):
    quantizer = inferring(DqWeights((2, 4, 8), 1), 0.5, 0.5 * ratio)
    quantizer.range.clips_gradients = False
    (quantizer.probabilities() @ torch.tensor([2.0, 4, 8], dtype=torch.float64)).backward()
    at = min(ratio, 127.0)
    assert quantizer.range.log_largest.grad.item() == pytest.approx(at / (at + 1) / math.log(2), rel=1e-4)


def test_float32_is_never_inferred():
    quantizer = inferring(DqWeights((2, 4, 32), 1), 0.5, 1e4)
    assert quantizer.probabilities().tolist() == pytest.approx([0, 1, 0], abs=1e-5)
    only = inferring(DqWeights((4, 32), 1), 0.5, 1e4)
    assert only.probabilities().tolist() == [1, 0]
    x = torch.randn(1, 50)
    assert torch.equal(only.fake_quantize(x), only.fake_quantize(x, 0))
    with pytest.raises(ValueError, match="nothing is inferred"):
        only.inferred_bits()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_inferring_ignores_the_choice_and_codes_wait_for_settling(weights):
    x = torch.randn(4, 300)
    quantizer = weights((2, 4, 8), 4)
    quantizer.calibrate(x)
    assert quantizer.probabilities() is None
    with pytest.raises(ValueError, match="choose among"):
        quantizer.fake_quantize(x)
    fixed = [quantizer.fake_quantize(x, k) for k in range(2)]
    quantizer.inferring = True
    values = [quantizer.fake_quantize(x, k) for k in range(3)]
    assert torch.equal(values[0], values[2])
    assert torch.equal(values[0], quantizer.fake_quantize(x))
    with pytest.raises(ValueError, match="settle"):
        quantizer.numbers(x, 1)
    quantizer.inferring = False
    assert torch.equal(quantizer.fake_quantize(x, 0), fixed[0])
    assert not torch.equal(*fixed)


def test_gradients_of_task_and_constraint_are_clipped_together():
    """log d receives clip(∂L/∂d, ± d)/d, log q_max clip(∂L/∂q_max, ± d)/q_max, whatever L is made of."""
    x = torch.tensor([[0.1, 0.9, 5.0]])
    for weight, price in ((1e-4, 0.0), (1.0, 0.0), (1.0, -10.0), (1.0, 10.0)):
        quantizer = inferring(DqWeights((2, 4, 8), 1), 0.25, 1.75)
        bits = quantizer.probabilities() @ torch.tensor([2.0, 4, 8], dtype=torch.float64)
        (weight * quantizer.fake_quantize(x).sum() + price * bits).backward()
        quantizer.limit_gradients()
        slope = 1 / math.log(2) / 8  # of log2(q/d + 1): 1/(q + d) by q, −q/d/(q + d) by d
        by_step = weight * ((0.0 - 0.1) + (1.0 - 0.9)) / 0.25 - price * slope * 7 / 0.25
        by_largest = weight * 1.0 + price * slope / 0.25
        expected = min(max(by_step, -0.25), 0.25) / 0.25, min(max(by_largest, -0.25), 0.25) / 1.75
        found = quantizer.range.log_step.grad.item(), quantizer.range.log_largest.grad.item()
        assert found == (pytest.approx(expected[0], abs=1e-6), pytest.approx(expected[1], abs=1e-6))


def test_clipping_survives_copies():
    original = inferring(DqWeights((2, 4, 8), 1), 0.25, 1.75)
    stream = io.BytesIO()
    torch.save(original, stream)
    stream.seek(0)
    for quantizer in (original, copy.deepcopy(original), torch.load(stream, weights_only=False)):
        (1e6 * quantizer.fake_quantize(torch.tensor([[0.3, 5.0]])).sum()).backward()
        quantizer.limit_gradients()
        assert quantizer.range.log_step.grad.item() == pytest.approx(-1)
        assert quantizer.range.log_largest.grad.item() == pytest.approx(1 / 7)
        quantizer.inferring = False
        (1e6 * quantizer.fake_quantize(torch.tensor([[50.0]]), 1).sum()).backward()
        quantizer.limit_gradients()
        assert quantizer.log_steps.grad.tolist() == pytest.approx([0, 1, 0])
        quantizer.range.clips_gradients = False
        quantizer.log_steps.grad = None
        quantizer.fake_quantize(torch.tensor([[500.0]]), 1).sum().backward()
        quantizer.limit_gradients()
        assert quantizer.log_steps.grad[1].item() == pytest.approx(7 * quantizer.log_steps[1].exp().item())


@pytest.mark.parametrize("weights", WEIGHTS)
def test_settling_keeps_the_largest_level(weights):
    x = torch.randn(4, 300)
    quantizer = weights((2, 4, 8), 4)
    quantizer.calibrate(x)
    quantizer.inferring = True
    before = quantizer.fake_quantize(x)
    quantizer.settle()
    assert not quantizer.inferring
    for k in range(3):
        assert float(quantizer.levels(x, k).abs().max()) == pytest.approx(before.abs().max().item())
    assert quantizer.inferred_bits() == 4
    torch.testing.assert_close(quantizer.fake_quantize(x, 1), before)  # four bits are what was inferred


@pytest.mark.parametrize("top", [2, 5, 8, 20])
@pytest.mark.parametrize("kind", ["gaussian", "laplace", "rectified"])
def test_settling_on_the_range_loses_less_than_settling_on_the_step(kind, top):
    """With the best range for ``top`` levels: at the bitwidth that they take, and at a wider one."""
    signed = kind != "rectified"
    share = (torch.arange(4000) + 0.5) / 4000
    if kind == "laplace":
        x = -(share - 0.5).sign() * (1 - 2 * (share - 0.5).abs()).log()
    else:
        x = torch.special.ndtri(share)
    x = x if signed else x.relu()

    def error(step, largest):
        return float((u3(x, torch.tensor(step), torch.tensor(largest), signed) - x).square().mean())

    largest = min(torch.linspace(0.5, 9, 120).tolist(), key=lambda q: error(q / top, q))
    bits = bits_of_levels(top, signed)
    for wider in (bits, max(bits, 8)):
        levels = 2 ** (wider - signed) - 1
        assert error(largest / levels, largest) < error(largest / top, largest / top * levels)
        assert error(largest / levels, largest) < error(largest / top, largest)


@pytest.mark.parametrize("activations", [DqActivations, DqU1Activations, DqU2Activations])
def test_activations_are_affine(activations):
    x = torch.randn(5000)
    two_sided, one_sided = activations((2, 4, 8), False), activations((2, 4, 8), True)
    two_sided.calibrate(x)
    one_sided.calibrate(x)
    assert [two_sided.grid(k).zero_point for k in range(3)] == [2, 8, 128]
    assert [one_sided.grid(k).zero_point for k in range(3)] == [0, 0, 0]
    one_sided.inferring = two_sided.inferring = True
    assert one_sided.fake_quantize(x).min().item() == 0
    assert one_sided.inferred_bits() == two_sided.inferred_bits() == 4
    values = two_sided.fake_quantize(x)
    assert values.min().item() == -values.max().item()
    two_sided.settle()
    assert float(two_sided.quantize(100 * x, 1).min()) == 0
    assert float(two_sided.quantize(100 * x, 1).max()) == 15


def test_one_scale_for_all_channels_is_deployed():
    x = torch.randn(3, 8) * torch.tensor([[0.1], [1.0], [3.0]])
    for weights in WEIGHTS:
        quantizer = weights((2, 4), 3)
        quantizer.calibrate(x)
        assert len(set(quantizer.numbers(x, 1).scale.tolist())) == 1


@pytest.mark.parametrize("weights", WEIGHTS[:3])
def test_steps_that_are_powers_of_two_are_deployed(weights):
    x, cumulative = torch.randn(3, 80), torch.tensor([0.5, 0.5], requires_grad=True)
    quantizer = weights((2, 4, 32), 3)
    quantizer.calibrate(x)
    quantizer.range.power_of_two = True
    out = quantizer.fake_quantize(x, 1, cumulative)
    numbers = quantizer.numbers(x, 1)
    assert math.frexp(numbers.scale[0])[0] == 0.5
    assert torch.equal(out.detach(), torch.from_numpy(numbers.codes) * float(numbers.scale[0]))
    quantizer.range.clips_gradients = False
    out.sum().backward()
    values = [quantizer.fake_quantize(x, k).sum().item() for k in range(3)]
    assert cumulative.grad.tolist() == pytest.approx([values[1] - values[0], values[2] - values[1]], abs=1e-4)
    step, codes = float(numbers.scale[0]), torch.from_numpy(numbers.codes)
    inside = (x / step).abs() <= 7
    expected = torch.where(inside, codes - x / step, codes.float()).sum() * quantizer.log_steps[1].exp().item()
    assert quantizer.log_steps.grad[1].item() == pytest.approx(expected.item(), rel=1e-4)


def test_what_is_learned_is_taken_over():
    trained = inferring(DqWeights((2, 4, 8), 2), 0.3, 1.7)
    fresh = DqWeights((4,), 2)
    fresh.take(trained)
    assert fresh.range.log_largest.item() == pytest.approx(math.log(1.7))


def test_bits_fall_to_what_a_penalty_allows():
    x = torch.randn(1, 500)
    quantizer = DqWeights((2, 3, 4, 5, 6, 7, 8), 1)
    quantizer.calibrate(x)
    quantizer.inferring = True
    sgd = torch.optim.SGD(quantizer.range.parameters(), lr=0.1)
    candidates = torch.tensor(quantizer.candidates, dtype=torch.float64)
    for _ in range(80):
        sgd.zero_grad()
        bits = quantizer.probabilities() @ candidates
        loss = (quantizer.fake_quantize(x) - x).square().mean() + 10 * (bits - 3).clamp_min(0) ** 2
        loss.backward()
        quantizer.limit_gradients()
        sgd.step()
    assert quantizer.inferred_bits() <= 3 + (bits.item() > 3)
    assert bits.detach().item() == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize(
    "families", [("dq-u3", "dq-u3"), ("dq-u1", "dq-u2"), ("dq-p3", "dq-u3"), ("dq-p1", "dq-u3"), ("dq-p2", "dq-u1")]
)
def test_a_network_infers_settles_and_computes_in_integers(families):
    """One step reaches weights and all ranges; what is settled computes what its integers compute."""
    model, images = MODELS["Residual"]().eval(), sample_images(8)
    graph = trace(model, images[:1])
    space = build_space(graph, AnyDevice())
    net = Supernet(model, graph, space, quantizers=Quantizers(*((name,) for name in families)))
    net.calibrate([images])
    net.train()
    net.set_policy({variable.name: variable.candidates[0] for variable in space.variables})
    sizes = SizeModel(graph, space)
    for quantizer in net.quantizers:
        quantizer.inferring = True
    bits = [expected_bits(quantizer.probabilities(), quantizer.candidates) for quantizer in net.quantizers]
    loss = net(images).square().mean() + SizeLimits(weights_kb=1e-3).penalty(sizes.sizes(torch.stack(bits)))
    loss.backward()
    for quantizer in net.quantizers:
        learned = [p.grad for p in quantizer.range.parameters()]
        if quantizer.infers:
            assert all(grad is not None and torch.isfinite(grad) for grad in learned)
            assert any(grad != 0 for grad in learned)
    policy = {}
    for variable, quantizer in zip(space.variables, net.quantizers, strict=True):
        wanted = quantizer.inferred_bits() if quantizer.infers else variable.candidates[0]
        policy[variable.name] = next(bits for bits in variable.candidates if bits >= wanted)
        quantizer.settle()
    assert set(policy.values()) == {4, 8}
    net.eval()
    program = lower(net.discretize(policy), "single")
    with torch.no_grad():
        expected = net(images)
    found = IntegerEvaluator(program).scores(images)
    assert float((found - expected).abs().max()) < 0.05 * float(expected.abs().max())
