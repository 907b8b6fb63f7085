"""The one autograd function of the supernet: quantize at the chosen precision, let every gate feel its neighbours.

Forward, only the chosen candidate s is computed: ``x_q(s)``, one fused kernel. Backward:

- input: straight-through inside the clipping window, ``∂x_q/∂x = 1[code in range]``;
- step of the chosen candidate, in the log domain: ``∂L/∂log s = <g, x_q> − <g·1[in range], x>``, the LSQ gradient;
- gates: with ``c_i = P(candidate ≥ i)`` the expectation telescopes to ``x_0 + Σ c_i (x_i − x_{i−1})``, hence
  ``∂L/∂c_i = <g, x_q(i) − x_q(i−1)>``: the difference of the two neighbouring quantizations.

Step and gate gradients are sums over all elements. They are estimated on a leading share of the batch and scaled up
(`gradient_share`), which keeps a search step close to the price of a plain training step.

Legend: K candidates; a weight is ``[rows, ...]`` with one step per row; an activation is ``[N, ...]`` with one step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Grid(NamedTuple):
    """Integer range and zero point of one candidate."""

    low: int
    high: int
    zero_point: int


def fake_quantize(x: Tensor, step: Tensor, grid: Grid | None) -> tuple[Tensor, Tensor | None]:
    """Returns ``x`` on the grid and the mask of elements inside the clipping window; float32 when ``grid`` is None.

    ``step`` is a scalar, or ``[rows]`` for one step per entry of the first dimension.
    """
    if grid is None:
        return x, None
    if step.ndim:
        zeros = torch.zeros(step.shape[0], dtype=torch.int32, device=x.device)
        return torch.ops.aten.fake_quantize_per_channel_affine_cachemask(x, step, zeros, 0, grid.low, grid.high)
    if x.device.type == "cpu":
        return torch.ops.aten.fake_quantize_per_tensor_affine_cachemask(
            x, step.item(), grid.zero_point, grid.low, grid.high
        )
    zero_point = torch.tensor(grid.zero_point, dtype=torch.int32, device=x.device)
    enabled = torch.ones(1, device=x.device)
    return torch.ops.aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams(
        x, step, zero_point, enabled, grid.low, grid.high
    )


def codes(x: Tensor, step: Tensor, grid: Grid) -> Tensor:
    """Returns the integer codes (int32) whose dequantized values `fake_quantize` gives."""
    steps = step.reshape(-1, *([1] * (x.ndim - 1))) if step.ndim else step
    return torch.clamp(torch.round(x * (1 / steps)) + grid.zero_point, grid.low, grid.high).to(torch.int32)


class QuantizeWithGates(torch.autograd.Function):
    """See the module docstring. Inputs: tensor, steps ``[K]`` or ``[K, rows]``, ``c`` ``[K − 1]`` or None."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        log_steps: Tensor,
        statistic: Tensor | None,
        cumulative: Tensor | None,
        grids: tuple[Grid | None, ...],
        choice: int,
        share: float,
        correction: float,
    ) -> Tensor:
        steps = log_steps.exp() if statistic is None else log_steps.exp() * statistic
        out, mask = fake_quantize(x, steps[choice], grids[choice])
        ctx.save_for_backward(x, steps, mask)
        ctx.grids, ctx.choice, ctx.share, ctx.correction = grids, choice, share, correction
        ctx.gated = cumulative is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, steps, mask = ctx.saved_tensors
        grad_x = grad if mask is None else grad * mask
        per_row = steps.ndim == 2
        size = x.shape[0] if per_row else max(1, round(x.shape[0] * ctx.share))
        part_x, part_grad = x[:size], grad[:size]
        chosen = fake_quantize(part_x, steps[ctx.choice], ctx.grids[ctx.choice])[0]
        if ctx.correction:
            part_grad = part_grad + ctx.correction * (chosen - part_x)
        scale = x.shape[0] / size
        grad_steps = torch.zeros_like(steps)
        if mask is not None:
            inner = torch.where(mask[:size], part_grad, 0) if ctx.correction else grad_x[:size]
            if per_row:
                change = (part_grad * chosen - inner * part_x).flatten(1).sum(1)
            else:
                change = _dot(part_grad, chosen) - _dot(inner, part_x)
            grad_steps[ctx.choice] = scale * change
        grad_cumulative = None
        if ctx.gated and ctx.needs_input_grad[3]:
            dots = [
                _dot(part_grad, chosen if k == ctx.choice else fake_quantize(part_x, steps[k], grid)[0])
                for k, grid in enumerate(ctx.grids)
            ]
            grad_cumulative = scale * torch.stack(dots).diff()
        return grad_x, grad_steps, None, grad_cumulative, None, None, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    if a.is_contiguous() and b.is_contiguous():
        return torch.dot(a.reshape(-1), b.reshape(-1))
    return (a * b).sum()
