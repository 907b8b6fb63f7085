"""DQ's gradients: the paper's table entry by entry, and finite differences where Q is smooth."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddq_search.quantizers.dq_gradients import instead_of, p1, p2, p3, to_power_of_two, u1, u2, u3

LN2 = math.log(2)
STEP, BITS = 0.25, 3.0
LARGEST = (2 ** (BITS - 1) - 1) * STEP  # 0.75
X = torch.tensor([0.0, 0.1, -0.13, 0.36, -0.6, 0.74, -0.74, 0.76, -0.9, 5.0, -7.0], dtype=torch.float64)
INSIDE = [abs(x) <= LARGEST for x in X.tolist()]


def scalar(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def per_element(quantize, x, *parameters):
    """Gradients of every element of Q by every parameter, and of x: ``[P + 1][E]``."""
    rows = []
    for i in range(x.numel()):
        leaf = x.clone().requires_grad_()
        out = quantize(leaf, *parameters)
        grads = torch.autograd.grad(out[i], [*parameters, leaf], allow_unused=True)
        rows.append([0.0 if g is None else g.item() if g.ndim == 0 else g[i].item() for g in grads])
    return [list(column) for column in zip(*rows, strict=True)]


def level(x, signed=True):
    if not signed and x < 0:
        return 0.0
    size = min(STEP * math.floor(abs(x) / STEP + 0.5), LARGEST) if abs(x) <= LARGEST else LARGEST
    return math.copysign(size, x)


def table(case, x):
    """The two tabulated derivatives at one value."""
    e, sign, inside = level(x) - x, math.copysign(1, x), abs(x) <= LARGEST
    power = 2 ** (BITS - 1)
    return {
        "u1": (0, e / STEP) if inside else (power * LN2 * STEP * sign, (power - 1) * sign),
        "u2": (-power * LN2 / (power - 1) * e, e / LARGEST) if inside else (0, sign),
        "u3": (e / STEP, 0) if inside else (0, sign),
    }[case]


@pytest.mark.parametrize(
    ("case", "quantize", "first", "second"),
    [("u1", u1, BITS, STEP), ("u2", u2, BITS, LARGEST), ("u3", u3, STEP, LARGEST)],
)
def test_uniform_table(case, quantize, first, second):
    parameters = scalar(first), scalar(second)
    torch.testing.assert_close(quantize(X, *parameters).tolist(), [level(x) for x in X.tolist()])
    found = per_element(quantize, X, *parameters)
    expected = list(zip(*(table(case, x) for x in X.tolist()), strict=True))
    assert found[0] == pytest.approx(list(expected[0]), rel=1e-12, abs=1e-15)
    assert found[1] == pytest.approx(list(expected[1]), rel=1e-12, abs=1e-15)
    assert found[2] == [float(inside) for inside in INSIDE]


def test_u3_is_bounded_and_decoupled():
    x = torch.linspace(-3, 3, 501, dtype=torch.float64)
    by_step, by_largest, _ = per_element(u3, x, scalar(0.2), scalar(1.4))
    assert max(map(abs, by_step)) <= 0.5 + 1e-9
    assert set(map(abs, by_largest)) == {0.0, 1.0}
    assert all(a == 0 or b == 0 for a, b in zip(by_step, by_largest, strict=True))


@pytest.mark.parametrize("quantize", [u1, u2, u3])
def test_the_sum_over_elements_is_the_gradient(quantize):
    g = torch.randn(X.numel(), dtype=torch.float64)
    parameters = (scalar(STEP), scalar(LARGEST)) if quantize is u3 else (scalar(BITS), scalar(STEP))
    found = torch.autograd.grad((g * quantize(X, *parameters)).sum(), parameters)
    columns = per_element(quantize, X, *parameters)
    for total, column in zip(found, columns, strict=False):
        assert total.item() == pytest.approx(sum(a * b for a, b in zip(g.tolist(), column, strict=True)))


def test_rounding_straight_through_gives_the_same_step_gradient():
    x, step = torch.randn(1000, dtype=torch.float64), scalar(0.3)
    scaled = (x / step).clamp(-3, 3)
    (expected,) = torch.autograd.grad((x * instead_of(scaled, scaled.round()) * step).sum(), step)
    bits = torch.tensor(3.0, dtype=torch.float64)
    (found,) = torch.autograd.grad((x * u1(x, bits, step)).sum(), step)
    assert found.item() == pytest.approx(expected.item())


def test_unsigned_is_the_relu_and_its_table():
    top = 2**BITS - 1
    largest = top * STEP  # 1.75
    x = torch.tensor([-2.0, -0.1, 0.0, 0.1, 0.36, 1.7, 1.76, 9.0], dtype=torch.float64)
    e = [0.0, 0.0, 0.0, -0.1, 0.25 - 0.36, 1.75 - 1.7, 0.0, 0.0]
    beyond = [0.0] * 6 + [1.0] * 2
    values = [0.0, 0.0, 0.0, 0.0, 0.25, 1.75, 1.75, 1.75]
    by_step, by_largest, by_x = per_element(lambda x, *p: u3(x, *p, False), x, scalar(STEP), scalar(largest))
    assert u3(x, torch.tensor(STEP), torch.tensor(largest), False).tolist() == values
    assert by_step == pytest.approx([value / STEP for value in e])
    assert by_largest == beyond
    assert by_x == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    by_bits, by_step, _ = per_element(lambda x, *p: u1(x, *p, False), x, scalar(BITS), scalar(STEP))
    assert by_bits == pytest.approx([2**BITS * LN2 * STEP * b for b in beyond])
    assert by_step == pytest.approx([a / STEP + top * b for a, b in zip(e, beyond, strict=True)])
    by_bits, by_largest, _ = per_element(lambda x, *p: u2(x, *p, False), x, scalar(BITS), scalar(largest))
    assert by_bits == pytest.approx([-(2**BITS) * LN2 / top * value for value in e])
    assert by_largest == pytest.approx([a / largest + b for a, b in zip(e, beyond, strict=True)])


POWERS = torch.tensor([0.1, -0.2, 0.0, 0.3, -0.36, 1.4, 1.5, -1.9, 2.1, -30.0], dtype=torch.float64)
SMALL = [1, -1, 1, 0, 0, 0, 0, 0, 0, 0]
LARGE = [0, 0, 0, 0, 0, 0, 0, 0, 1, -1]


def test_power_of_two_tables():
    """Three bits: q_min = 0.25, q_max = 2^(2^2 − 1) q_min = 2."""
    values = [0.25, -0.25, 0.25, 0.25, -0.5, 1.0, 2.0, -2.0, 2.0, -2.0]
    up_to = [1.0] * 8 + [0.0] * 2
    smallest, largest, bits = scalar(0.25), scalar(2.0), scalar(BITS)
    assert p3(POWERS, smallest, largest).tolist() == values
    assert per_element(p3, POWERS, smallest, largest) == [SMALL, LARGE, up_to]
    assert p1(POWERS, bits, smallest).tolist() == values
    by_bits, by_smallest, by_x = per_element(p1, POWERS, bits, smallest)
    assert by_bits == pytest.approx([4 * LN2**2 * 2.0 * large for large in LARGE])
    assert by_smallest == pytest.approx([small + 8 * large for small, large in zip(SMALL, LARGE, strict=True)])
    assert by_x == up_to
    assert p2(POWERS, bits, largest).tolist() == values
    by_bits, by_largest, by_x = per_element(p2, POWERS, bits, largest)
    assert by_bits == pytest.approx([-4 * LN2**2 * 0.25 * small for small in SMALL])
    assert by_largest == pytest.approx([small / 8 + large for small, large in zip(SMALL, LARGE, strict=True)])
    assert by_x == up_to


@pytest.mark.parametrize(
    ("quantize", "first", "second"),
    [(u1, BITS, STEP), (u2, BITS, LARGEST), (u3, STEP, LARGEST), (p1, BITS, 0.25), (p2, BITS, 2.0), (p3, 0.25, 2.0)],
)
def test_gradcheck_beyond_the_largest_level(quantize, first, second):
    x = torch.tensor([5.0, -7.0, 3.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: quantize(x, a, b), (scalar(first), scalar(second)))


@pytest.mark.parametrize(("quantize", "first", "second"), [(p1, BITS, 0.25), (p2, BITS, 2.0), (p3, 0.25, 2.0)])
def test_gradcheck_of_powers_of_two_everywhere(quantize, first, second):
    assert torch.autograd.gradcheck(lambda a, b: quantize(POWERS, a, b), (scalar(first), scalar(second)))


@given(st.floats(-20, 20))
def test_rounding_to_a_power_of_two_is_idempotent_and_nearest(exponent):
    value = torch.tensor(2.0**exponent)
    once = to_power_of_two(value)
    assert torch.equal(to_power_of_two(once), once)
    assert math.frexp(once.item())[0] == 0.5
    assert abs(math.log2(once.item()) - exponent) <= 0.5 + 1e-5


def test_rounding_to_a_power_of_two_is_straight_through():
    value = scalar(0.3)
    (3 * to_power_of_two(value)).backward()
    assert value.grad.item() == 3.0
