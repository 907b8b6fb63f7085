"""Augmented Lagrangian: penalty, its gradient and dual ascent by hand."""

from __future__ import annotations

import pytest
import torch

from ddq_search.lagrangian import AugmentedLagrangian


def expected(**values):
    return {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in values.items()}


def test_penalty_and_gradient_by_hand():
    lagrangian = AugmentedLagrangian([{"a": 10.0, "b": 4.0}], penalty=2.0, rate=0.5)
    costs = expected(a=12.0, b=3.0)
    term = lagrangian.term(0, costs)
    assert term.item() == pytest.approx((2.0 * 0.2) ** 2 / 4)  # b is kept and costs nothing
    term.backward()
    assert costs["a"].grad.item() == pytest.approx(2.0 * 0.2 / 10)
    assert costs["b"].grad.item() == 0.0
    lagrangian.update(0, costs)
    assert lagrangian.multipliers.tolist() == [[pytest.approx(0.1), 0.0]]
    costs = expected(a=9.5, b=3.0)
    term = lagrangian.term(0, costs)
    assert term.item() == pytest.approx((0.0**2 - 0.1**2) / 4)
    lagrangian.multipliers[0, 0] = 0.3  # a budget that is kept is still held by its multiplier
    lagrangian.term(0, costs).backward()
    assert costs["a"].grad.item() == pytest.approx((0.3 - 2.0 * 0.05) / 10)


def test_sets_have_multipliers_of_their_own():
    lagrangian = AugmentedLagrangian([{"a": 1.0}, {"b": 1.0}, {}])
    costs = {"a": torch.tensor(3.0), "b": torch.tensor(2.0)}
    for index in (0, 0, 1, 2):
        lagrangian.update(index, costs)
    assert lagrangian.multipliers.tolist() == [[4.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    assert lagrangian.term(2, costs).item() == 0.0


def test_multipliers_never_become_negative():
    lagrangian = AugmentedLagrangian([{"a": 1.0}])
    lagrangian.update(0, {"a": torch.tensor(0.1)})
    assert lagrangian.multipliers.tolist() == [[0.0]]


def test_finds_the_constrained_minimum():
    """min (x − 3)² subject to x ≤ 1: x = 1 and a multiplier of 4."""
    lagrangian = AugmentedLagrangian([{"x": 1.0}], penalty=5.0, rate=1.0)
    x = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        ((x - 3) ** 2 + lagrangian.term(0, {"x": x})).backward()
        optimizer.step()
        lagrangian.update(0, {"x": x})
    assert x.item() == pytest.approx(1.0, abs=1e-3)
    assert lagrangian.multipliers.item() == pytest.approx(4.0, abs=1e-2)


def test_all_sets_at_once_are_the_sets_one_by_one():
    targets = [{"a": 10.0, "b": 4.0}, {"b": 3.0}, {}]
    alone, together = AugmentedLagrangian(targets, rate=0.3), AugmentedLagrangian(targets, rate=0.3)
    for step in range(4):
        costs = {"a": torch.tensor([12.0, 30.0, 7.0]) - step, "b": torch.tensor([3.0, 5.0, 9.0]) - step}
        costs = {name: value.double() for name, value in costs.items()}
        single = [{name: value[i] for name, value in costs.items()} for i in range(3)]
        expected = sum(alone.term(i, single[i]) for i in range(3))
        assert together.total(costs).item() == pytest.approx(expected.item(), abs=1e-12)
        for i in range(3):
            alone.update(i, single[i])
        together.update_all(costs)
        torch.testing.assert_close(together.multipliers, alone.multipliers)
    assert float(together.multipliers[0, 0]) > 0
    none = AugmentedLagrangian([{}, {}])
    none.update_all(costs)
    assert none.total(costs).item() == 0.0


@pytest.mark.parametrize(
    ("form", "kib", "expected", "slope"),
    [
        ("squared-hinge", 73.0, 0.1 * 3**2, 0.2 * 3),
        ("squared-hinge", 60.0, 0.0, 0.0),
        ("squared-gap", 73.0, 0.1 * 3**2, 0.2 * 3),
        ("squared-gap", 60.0, 0.1 * 10**2, -0.2 * 10),  # two-sided: too little costs as well
    ],
)
def test_squares_of_papers_by_hand(form, kib, expected, slope):
    """λ = 0.1 and sizes in KiB, as Mixed Precision DNNs has them; a set without a limit and its cost do not count."""
    limits = [{"flash_bytes": 70 * 1024.0}, {"latency_s": 2e-3}]
    lagrangian = AugmentedLagrangian(limits, penalty=0.1, rate=5.0, form=form)
    costs = {
        "flash_bytes": torch.tensor([kib * 1024, 1e9], dtype=torch.float64, requires_grad=True),
        "latency_s": torch.tensor([9.0, 5e-3], dtype=torch.float64, requires_grad=True),
    }
    total = lagrangian.total(costs)
    assert total.item() == pytest.approx(expected + 0.1 * 3**2)  # the second set: 3 ms too much
    total.backward()
    assert costs["flash_bytes"].grad.tolist() == pytest.approx([slope / 1024, 0.0])
    assert costs["latency_s"].grad.tolist() == pytest.approx([0.0, 0.2 * 3 * 1e3])
    lagrangian.update_all(costs)
    assert not lagrangian.multipliers.any()
    assert not lagrangian.is_scaled
    assert AugmentedLagrangian([{}], form=form).total({}).item() == 0.0


def test_the_hinge_stops_at_the_limit_only_where_the_task_lets_it():
    """min (x − 3)² subject to x ≤ 1, in KiB: with λ = 4 the squared hinge ends at 1.4, the Lagrangian at 1."""
    ends = {}
    for form, penalty in (("squared-hinge", 4.0), ("lagrangian", 4.0)):
        lagrangian = AugmentedLagrangian([{"flash_bytes": 1024.0}], penalty=penalty, rate=0.5, form=form)
        x = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([x], lr=0.05)
        for _ in range(600):
            optimizer.zero_grad()
            ((x - 3).square().sum() + lagrangian.total({"flash_bytes": 1024 * x})).backward()
            optimizer.step()
            lagrangian.update_all({"flash_bytes": 1024 * x})
        ends[form] = x.item()
    assert ends["squared-hinge"] == pytest.approx(1.4, abs=1e-3)
    assert ends["lagrangian"] == pytest.approx(1.0, abs=1e-3)
