"""Quantizers as ``torch.compile`` sees them: the choice is a tensor, so one graph serves every policy.

The same values and gradients as `ddq_search.quantizers.straight_through`; the compiler fuses what is here a dozen
operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddq_search.distributed import leading
from ddq_search.quantizers import fused
from ddq_search.quantizers.straight_through import Grid, ranges


def bounds(grids: tuple[Grid | None, ...], device: torch.device) -> Tensor:
    """Returns ``[2, K]``: the smallest and largest code less the zero point; infinite for float32."""
    return torch.tensor(ranges(grids), dtype=torch.float32, device=device).T.contiguous()


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
        serves = x.device.type == "cpu" and x.dtype == torch.float32 and fused.is_built()
        gradients = _in_one_pass if serves else _in_torch
        grad_x, grad_log_steps, grad_cumulative = gradients(x, grad, steps, limits, choice, size, factor, ctx.gated)
        return grad_x, grad_log_steps / steps, grad_cumulative if ctx.gated else None, None, None, None


@torch.library.custom_op("ddq_search::gradients_of_quantizing", mutates_args=(), tags=[torch.Tag.flexible_layout])
def _in_one_pass(
    x: Tensor, grad: Tensor, steps: Tensor, limits: Tensor, choice: Tensor, size: int, factor: float, gated: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`_in_torch` by the C kernel. Left to the compiler, masks of all tensors are written at the end of its forward."""
    if not fused.dense(x):
        x = x.contiguous()
    grad = fused.laid_out(grad, x.stride())
    found = fused.backward(
        x, grad, steps, tuple(zip(*limits.tolist(), strict=True)), int(choice), leading=size * (x.numel() // len(x)),
        factor=factor, gated=gated, correction=0.0, overwrite=False,
    )  # fmt: skip
    nothing = steps.new_zeros(len(steps) - 1)
    return found.x, found.log_steps, nothing if found.cumulative is None else found.cumulative


@_in_one_pass.register_fake
def _(
    x: Tensor, grad: Tensor, steps: Tensor, limits: Tensor, choice: Tensor, size: int, factor: float, gated: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(steps), steps.new_empty(len(steps) - 1)


def _in_torch(
    x: Tensor, grad: Tensor, steps: Tensor, limits: Tensor, choice: Tensor, size: int, factor: float, gated: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of the input, of the log steps, and of ``c`` if ``gated``.

    The last two are sums over the first ``size`` entries, times ``factor``.
    """
    own = _chosen(steps, choice, 0)
    step, (low, high) = _aligned(own, x), _chosen(limits, choice, 1)
    inside = (x > (low - 0.5) * step) & (x < (high + 0.5) * step)
    grad_x = torch.where(inside, grad, 0.0)
    part_x, part_grad, part_inside = x[:size], grad[:size], grad_x[:size]
    change = part_grad * _on_grid(part_x, step, low, high) - part_inside * part_x
    change = change.flatten(1).sum(1) if steps.ndim == 2 else change.sum()
    change = torch.where(torch.isinf(high), 0.0, change)
    chosen = torch.arange(len(steps), device=steps.device) == choice
    grad_log_steps = torch.where(chosen.reshape(-1, *[1] * (steps.ndim - 1)), factor * change, 0.0)
    candidates = range(len(steps) if gated else 0)
    dots = [(part_grad * _on_grid(part_x, _aligned(steps[k], x), limits[0, k], limits[1, k])).sum() for k in candidates]
    return grad_x, grad_log_steps, factor * torch.stack(dots).diff() if gated else steps.new_zeros(len(steps) - 1)


def _chosen(table: Tensor, choice: Tensor, dim: int) -> Tensor:
    """Selects by a tensor; plain indexing would wait for its value."""
    return table.index_select(dim, choice.reshape(1)).squeeze(dim)


def _on_grid(x: Tensor, step: Tensor, low: Tensor, high: Tensor) -> Tensor:
    rounded = torch.clamp(torch.round(x * (1 / step)), low, high) * step
    return torch.where(torch.isinf(high), x, rounded)


def _aligned(step: Tensor, x: Tensor) -> Tensor:
    return step.reshape(-1, *[1] * (x.ndim - 1)) if step.ndim else step
