"""Quantizers as ``torch.compile`` sees them: the choice is a tensor, so one graph serves every policy.

The same values and gradients as `ddq_search.quantizers.straight_through`; the compiler fuses what is here a dozen
operations.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddq_search.distributed import leading
from ddq_search.quantizers.straight_through import Grid


def bounds(grids: tuple[Grid | None, ...], device: torch.device) -> Tensor:
    """Returns ``[2, K]``: the smallest and largest code less the zero point; infinite for float32."""
    pairs = [(-math.inf, math.inf) if g is None else (g.low - g.zero_point, g.high - g.zero_point) for g in grids]
    return torch.tensor(pairs, dtype=torch.float32, device=device).T.contiguous()


class TracedPasses(torch.autograd.Function):
    """Inputs: tensor; steps ``[K]`` or ``[K, rows]``; ``c`` ``[K − 1]`` or None; bounds ``[2, K]``; choice, int64."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, steps: Tensor, cumulative: Tensor | None, limits: Tensor, choice: Tensor, share: float
    ) -> Tensor:
        """Returns ``x`` on the grid of the chosen candidate."""
        ctx.save_for_backward(x, steps, limits, choice)
        ctx.gated = cumulative is not None
        ctx.leading = (x.shape[0], 1.0) if steps.ndim == 2 else leading(x.shape[0], share)
        low, high = _chosen(limits, choice, 1)
        return _on_grid(x, _aligned(_chosen(steps, choice, 0), x), low, high)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of the input, the steps and ``c``."""
        x, steps, limits, choice = ctx.saved_tensors
        size, factor = ctx.leading
        own = _chosen(steps, choice, 0)
        step, (low, high) = _aligned(own, x), _chosen(limits, choice, 1)
        inside = (x > (low - 0.5) * step) & (x < (high + 0.5) * step)
        grad_x = torch.where(inside, grad, 0.0)
        part_x, part_grad, part_inside = x[:size], grad[:size], grad_x[:size]
        change = part_grad * _on_grid(part_x, step, low, high) - part_inside * part_x
        change = change.flatten(1).sum(1) if steps.ndim == 2 else change.sum()
        change = torch.where(torch.isinf(high), 0.0, factor * change / own)
        chosen = torch.arange(len(steps), device=steps.device) == choice
        grad_steps = torch.where(chosen.reshape(-1, *[1] * (steps.ndim - 1)), change, 0.0)
        grad_cumulative = None
        if ctx.gated:
            values = [
                (part_grad * _on_grid(part_x, _aligned(steps[k], x), limits[0, k], limits[1, k])).sum()
                for k in range(len(steps))
            ]
            grad_cumulative = factor * torch.stack(values).diff()
        return grad_x, grad_steps, grad_cumulative, None, None, None


def _chosen(table: Tensor, choice: Tensor, dim: int) -> Tensor:
    """Selects by a tensor; plain indexing would wait for its value."""
    return table.index_select(dim, choice.reshape(1)).squeeze(dim)


def _on_grid(x: Tensor, step: Tensor, low: Tensor, high: Tensor) -> Tensor:
    rounded = torch.clamp(torch.round(x * (1 / step)), low, high) * step
    return torch.where(torch.isinf(high), x, rounded)


def _aligned(step: Tensor, x: Tensor) -> Tensor:
    return step.reshape(-1, *[1] * (x.ndim - 1)) if step.ndim else step
