"""Training of the gates: what the task says is averaged and shared, what a budget says belongs to its set.

In every step one gate set is sampled and the forward pass computes its policy. The task gradient of its gates,
``∂L/∂c``, says how much the loss falls when a tensor gets its next candidate; that is a property of the tensor more
than of the budget, so it is averaged over recent steps, all sets together. Then *every* set takes a step against that
average plus the exact gradient of its own budgets' penalty. A set therefore learns in all steps and not only in its
turn, and from less noise.

The penalty is measured in units of the task's total sensitivity ``Σ |∂L/∂c|``, so multipliers are of order one
whatever the loss (squared penalties are in those of the loss).

All of it happens in float64 in main memory, wherever the supernet computes: the tensors are small.

Legend: S sets, V variables, C candidates of the widest variable.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddq_search.cost import CostTables
from ddq_search.lagrangian import AugmentedLagrangian
from ddq_search.supernet import Supernet

_MEMORY = 0.98
"""Share of the average that a step keeps: about fifty steps."""


class GateTraining:
    """Gate gradients of all sets of a supernet.

    Attributes:
        sensitivity: running sum of task gradients ``[V, C − 1]``.
        weight: ``[1]``, total weight in that sum.
        expected: budgeted cost → expected value of every set ``[S]``, as of the last `backward`.
    """

    def __init__(self, net: Supernet, tables: CostTables, lagrangian: AugmentedLagrangian) -> None:
        self._net, self._tables, self._lagrangian = net, tables, lagrangian
        self.sensitivity = torch.zeros(net.gates.exists.shape, dtype=torch.float64)
        self.weight = torch.zeros(1, dtype=torch.float64)
        self.expected: dict[str, Tensor] = {}
        self._start = self._probabilities()
        self._sampled: Tensor | None = None

    def sample(self, index: int, uniform: Tensor | None, temperature: float = 1.0) -> None:
        """Lets the next forward pass compute a policy drawn from one set; as `Supernet.sample_from`."""
        self._sampled = self._net.gates.cumulative(index).detach().requires_grad_()
        self._net.sample_from(self._sampled, uniform, temperature)

    def leaves(self) -> list[Tensor]:
        """Returns what the task loss's backward pass gives the sampled policy's gradient to."""
        return [] if self._sampled is None else [self._sampled]

    def collect(self) -> None:
        """After the task loss's backward pass: adds the sampled policy's gradient to the average."""
        gradient = None if self._sampled is None else self._sampled.grad
        assert gradient is not None, "sample, forward and backward come first"
        self.sensitivity.mul_(_MEMORY).add_(gradient.cpu().double() * (1 - _MEMORY))
        self.weight.mul_(_MEMORY).add_(1 - _MEMORY)

    def backward(self) -> None:
        """Before the optimizer step: gives every gate of every set its gradient."""
        average = self.sensitivity / self.weight
        gates = self._net.gates
        cumulative = gates.all_cumulative().cpu().double()
        self.expected = self._tables.expected(gates.probabilities(cumulative), self._lagrangian.costs)
        scale = average.abs().sum().clamp_min(1e-12).item() if self._lagrangian.is_scaled else 1.0
        objective = (average * cumulative).sum() + scale * self._lagrangian.total(self.expected)
        objective.backward()

    def update(self) -> None:
        """After the optimizer step: keeps gates in their window and raises or lowers the multipliers."""
        self._net.gates.project()
        self._lagrangian.update_all(self.expected)

    def facts(self) -> dict[str, Any]:
        """What the history keeps of the gates after an epoch: `gate_facts`, and whether gates are pulled and move.

        By searched variable: ``gate_gradient_norms``, the L2 norm of the averaged task gradient of its gates; and
        ``gate_movement``, the total variation distance (0 to 1) of its probabilities from those before the phase's
        first step, averaged over sets.
        """
        average = self.sensitivity / self.weight.clamp_min(torch.finfo(torch.float64).tiny)
        movement = (self._probabilities() - self._start).abs().sum(-1).mean(0) / 2
        searched = [(row, v.name) for row, v in enumerate(self._net.space.variables) if len(v.candidates) > 1]
        return {
            **gate_facts(self._net, self._lagrangian, self._tables),
            "gate_gradient_norms": {name: float(f"{average[row].norm().item():.4g}") for row, name in searched},
            "gate_movement": {name: round(movement[row].item(), 4) for row, name in searched},
        }

    @torch.no_grad()
    def _probabilities(self) -> Tensor:
        """``[S, V, C]``."""
        return self._net.gates.probabilities(self._net.gates.all_cumulative())


@torch.no_grad()
def gate_facts(net: Supernet, lagrangian: AugmentedLagrangian, tables: CostTables) -> dict[str, Any]:
    """What the history keeps of the gates after an epoch; see `choice_facts`."""
    return choice_facts(net, net.gates.probabilities(net.gates.all_cumulative()), lagrangian, tables)


@torch.no_grad()
def choice_facts(
    net: Supernet, probabilities: Tensor, lagrangian: AugmentedLagrangian, tables: CostTables
) -> dict[str, Any]:
    """What the history keeps of choices after an epoch: the tightest set's probabilities, and every set's costs.

    ``probabilities`` is ``[S, V, C]``.
    """
    costs = {cost: values.tolist() for cost, values in tables.expected(probabilities).items()}
    expected = [{cost: values[index] for cost, values in costs.items()} for index in range(len(probabilities))]
    rows = zip(probabilities[0].tolist(), net.space.variables, strict=True)
    targets = [dict(target) for target in lagrangian.targets]
    return {
        "expected": expected[0],
        "target": dict(targets[0]),
        "expected_by_set": expected,
        "targets_by_set": targets,
        "gates": {v.name: [round(p, 4) for p in row[: len(v.candidates)]] for row, v in rows if len(v.candidates) > 1},
        "set": 0,
    }
