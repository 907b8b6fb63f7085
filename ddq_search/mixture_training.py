"""Training of relaxed choices: the task's gradient and the penalty of the budgets, both in every step.

A mixing network computes ``Σ_k share_k x_q(k)`` for every tensor, so the task's gradient of all shares comes with the
ordinary backward pass. The penalty is an augmented Lagrangian on the expected costs, in units of the task's own
sensitivity to the choices (a running mean of how much a variable's columns differ), so no weight is tuned by hand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddq_search.cost import CostTables
from ddq_search.lagrangian import AugmentedLagrangian
from ddq_search.quantizers.relaxations import Relaxation
from ddq_search.supernet import Supernet

_MEMORY = 0.98
"""Share of the running sensitivity that a step keeps."""


class MixtureTraining:
    """Gradients of one network's relaxation, under one set of budgets.

    Attributes:
        sensitivity: ``[2]``, running sum of the spread of the task's gradients over columns, and its weight.
        expected: budgeted cost → expected value ``[1]``, as of the last `backward`.
    """

    def __init__(
        self, net: Supernet, relaxation: Relaxation, tables: CostTables, lagrangian: AugmentedLagrangian
    ) -> None:
        self._net, self._relaxation, self._tables, self._lagrangian = net, relaxation, tables, lagrangian
        self.sensitivity = torch.zeros(2, dtype=torch.float64)
        self.expected: dict[str, Tensor] = {}
        self._shares: Tensor | None = None
        self._leaf: Tensor | None = None
        self._pulls: list[tuple[Tensor, Tensor]] = []

    def sample(self, noise: Tensor) -> None:
        """Lets the next forward pass mix; ``noise`` is ``[V, C]`` in [0, 1)."""
        self._shares = self._relaxation.shares(noise.to(self._relaxation.exists.device))
        self._leaf = self._shares.detach().requires_grad_()
        self._net.mix(self._leaf)

    def leaves(self) -> list[Tensor]:
        """Returns what the task loss's backward pass gives the shares' gradient to."""
        return [] if self._leaf is None else [self._leaf]

    def collect(self) -> None:
        """After the task loss's backward pass: measures how much the choices matter."""
        assert self._leaf is not None
        assert self._leaf.grad is not None, "sample, forward and backward come first"
        assert self._shares is not None
        self._pulls.append((self._leaf.grad, self._shares))
        exists = self._relaxation.exists
        highest = self._leaf.grad.masked_fill(~exists, -torch.inf).amax(1)
        lowest = self._leaf.grad.masked_fill(~exists, torch.inf).amin(1)
        spread = (highest - lowest).double().sum().cpu()
        self.sensitivity.mul_(_MEMORY).add_(torch.stack([spread, torch.ones_like(spread)]) * (1 - _MEMORY))

    def backward(self) -> None:
        """Before the optimizer step: gives every choice its gradient."""
        probabilities = self._relaxation.probabilities()[None]
        self.expected = self._tables.expected(probabilities, self._lagrangian.costs)
        scale = float(self.sensitivity[0] / self.sensitivity[1].clamp_min(1e-12))
        scale = max(scale, 1e-12) if self._lagrangian.is_scaled else 1.0
        penalty = scale * self._lagrangian.total(self.expected)
        task = torch.stack([(pull * shares).sum() for pull, shares in self._pulls]).sum()
        (task + penalty).backward()
        self._pulls.clear()

    def forget(self) -> None:
        """Where a step is left out: drops what its batches said."""
        self._pulls.clear()

    def update(self) -> None:
        """After the optimizer step: keeps choices where they are allowed and raises or lowers the multipliers."""
        self._relaxation.project()
        self._lagrangian.update_all({cost: value.detach() for cost, value in self.expected.items()})


class InferredTraining:
    """Gradients where the quantizers' own parameters imply the bitwidth (Mixed Precision DNNs): the penalty only.

    The task's gradient reaches the parameters in the ordinary backward pass.

    Attributes:
        expected: budgeted cost → expected value ``[1]``, as of the last `penalty`.
    """

    def __init__(self, net: Supernet, tables: CostTables, lagrangian: AugmentedLagrangian) -> None:
        self._net, self._tables, self._lagrangian = net, tables, lagrangian
        self.expected: dict[str, Tensor] = {}

    def penalty(self) -> Tensor:
        """Returns what a batch's loss gets on top, so that the clipping of range gradients sees their sum."""
        self.expected = self._tables.expected(self._net.inferred_probabilities()[None], self._lagrangian.costs)
        return self._lagrangian.total(self.expected).float()

    def update(self) -> None:
        """After the optimizer step: raises or lowers the multipliers."""
        self._lagrangian.update_all({cost: value.detach() for cost, value in self.expected.items()})
