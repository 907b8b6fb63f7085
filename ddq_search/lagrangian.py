"""Hard budgets in a differentiable search: an augmented Lagrangian, one row of multipliers per gate set.

The constraint of set s on cost j is ``v = E[cost_j]/target_sj − 1 ≤ 0``; relative, so seconds and bytes weigh alike
and no weight has to be tuned. Penalty ``(max(0, λ + ρ v)² − λ²)/(2ρ)``; after each step of a set
``λ ← max(0, λ + η v)``.

Source: Nocedal & Wright, Numerical Optimization, ch. 17 (inequality form).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class AugmentedLagrangian:
    """Penalties and multipliers.

    Args:
        targets: for each gate set, cost name → largest allowed value.
        penalty: ρ.
        rate: η.
    """

    def __init__(self, targets: Sequence[Mapping[str, float]], *, penalty: float = 1.0, rate: float = 1.0) -> None:
        self.targets = list(targets)
        self.costs = sorted({cost for target in targets for cost in target})
        self.penalty, self.rate = penalty, rate
        limits = [[target.get(cost, float("inf")) for cost in self.costs] for target in self.targets]
        self.limits = torch.tensor(limits, dtype=torch.float64)
        self.multipliers = torch.zeros(len(self.targets), max(len(self.costs), 1), dtype=torch.float64)

    def violations(self, index: int, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns ``E[cost]/target − 1`` of one set by cost."""
        return {cost: expected[cost] / limit - 1 for cost, limit in self.targets[index].items()}

    def term(self, index: int, expected: Mapping[str, Tensor]) -> Tensor:
        """Returns the penalty of one set, differentiable in the expected costs; float64 scalar."""
        total = torch.zeros((), dtype=torch.float64)
        for cost, violation in self.violations(index, expected).items():
            multiplier = self.multipliers[index, self.costs.index(cost)].to(violation.device)
            active = (multiplier + self.penalty * violation).clamp_min(0)
            total = total.to(violation.device) + (active**2 - multiplier**2) / (2 * self.penalty)
        return total

    @torch.no_grad()
    def update(self, index: int, expected: Mapping[str, Tensor]) -> None:
        """Dual ascent for one set."""
        for cost, violation in self.violations(index, expected).items():
            column = self.costs.index(cost)
            raised = self.multipliers[index, column] + self.rate * violation.detach().cpu()
            self.multipliers[index, column] = raised.clamp_min(0)

    def total(self, expected: Mapping[str, Tensor]) -> Tensor:
        """Returns the summed penalty of all sets; ``expected`` holds one value per set, ``[S]``."""
        multipliers, violations = self._all(expected)
        active = (multipliers + self.penalty * violations).clamp_min(0)
        return (active**2 - multipliers**2).sum() / (2 * self.penalty)

    @torch.no_grad()
    def update_all(self, expected: Mapping[str, Tensor]) -> None:
        """Dual ascent for all sets; ``expected`` holds one value per set, ``[S]``."""
        multipliers, violations = self._all(expected)
        self.multipliers.copy_((multipliers + self.rate * violations).clamp_min(0))

    def _all(self, expected: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Multipliers and violations ``[S, costs]``; a cost without a limit is violated by −1."""
        if not self.costs:
            return self.multipliers, torch.full_like(self.multipliers, -1.0)
        values = torch.stack([expected[cost] for cost in self.costs], 1)
        return self.multipliers.to(values.device), values / self.limits.to(values.device) - 1
