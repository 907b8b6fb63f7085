"""Hard budgets in a differentiable search: an augmented Lagrangian, one row of multipliers per gate set.

The constraint of set s on cost j is ``v = E[cost_j]/target_sj − 1 ≤ 0``; relative, so seconds and bytes weigh alike
and no weight has to be tuned. Penalty ``(max(0, λ + ρ v)² − λ²)/(2ρ)``; after each step of a set
``λ ← max(0, λ + η v)``.

Two other forms, as papers have them, are in the units of the cost (KiB, ms, …) and of the loss, with a weight to be
tuned: the squared hinge ``λ max(0, E[cost] − target)²`` and the squared gap ``λ (E[cost] − target)²``, which also pulls
costs up to the target.

Sources: Nocedal & Wright, Numerical Optimization, ch. 17 (inequality form); Uhlich et al., ICLR 2020 (hinge); Zhang et
al., ICML 2021 (gap, reconstructed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ddq_search.budget import UNITS

Form = Literal["lagrangian", "squared-hinge", "squared-gap"]


class AugmentedLagrangian:
    """Penalties and multipliers.

    Args:
        targets: for each gate set, cost name → largest allowed value.
        penalty: ρ; λ of the squares.
        rate: η.
        form: see the module docstring.
    """

    def __init__(
        self, targets: Sequence[Mapping[str, float]], *, penalty: float = 1.0, rate: float = 1.0,
        form: Form = "lagrangian",
    ) -> None:  # fmt: skip
        self.targets = list(targets)
        self.costs = sorted({cost for target in targets for cost in target})
        self.penalty, self.rate, self.form = penalty, rate, form
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

    @property
    def is_scaled(self) -> bool:
        """Whether the penalty is measured in units of the task's sensitivity, not in those of the loss."""
        return self.form == "lagrangian"

    def total(self, expected: Mapping[str, Tensor]) -> Tensor:
        """Returns the summed penalty of all sets; ``expected`` holds one value per set, ``[S]``."""
        if self.form != "lagrangian":
            return self.penalty * self._excesses(expected).square().sum()
        multipliers, violations = self._all(expected)
        active = (multipliers + self.penalty * violations).clamp_min(0)
        return (active**2 - multipliers**2).sum() / (2 * self.penalty)

    @torch.no_grad()
    def update_all(self, expected: Mapping[str, Tensor]) -> None:
        """Dual ascent for all sets; ``expected`` holds one value per set, ``[S]``."""
        if self.form != "lagrangian":
            return
        multipliers, violations = self._all(expected)
        self.multipliers.copy_((multipliers + self.rate * violations).clamp_min(0))

    def _all(self, expected: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Multipliers and violations ``[S, costs]``; a cost without a limit is violated by −1."""
        if not self.costs:
            return self.multipliers, torch.full_like(self.multipliers, -1.0)
        values = torch.stack([expected[cost] for cost in self.costs], 1)
        return self.multipliers.to(values.device), values / self.limits.to(values.device) - 1

    def _excesses(self, expected: Mapping[str, Tensor]) -> Tensor:
        """Costs less their limits in the units of `ddq_search.budget`, ``[S, costs]``; 0 where they do not count."""
        if not self.costs:
            return torch.zeros(0, dtype=torch.float64)
        values = torch.stack([expected[cost] for cost in self.costs], 1)
        limits = self.limits.to(values.device)
        sizes = values.new_tensor([UNITS[cost][1] for cost in self.costs])
        excesses = (values - limits.nan_to_num(posinf=0.0)) / sizes
        counts = limits.isfinite() if self.form == "squared-gap" else limits.isfinite() & (excesses > 0)
        return excesses.where(counts, 0.0)
