"""What the supernet does to every tensor: quantize at the chosen precision, let every gate feel its neighbours.

Forward, only the chosen candidate s is computed: ``x_q(s)``. Backward:

- input: straight-through inside the clipping window, ``∂x_q/∂x = 1[code in range]``;
- step of the chosen candidate, in the log domain: ``∂L/∂log s = <g, x_q> − <g·1[in range], x>``, the LSQ gradient;
- gates: with ``c_i = P(candidate ≥ i)`` the expectation telescopes to ``x_0 + Σ c_i (x_i − x_{i−1})``, hence
  ``∂L/∂c_i = <g, x_q(i) − x_q(i−1)>``: the difference of the two neighbouring quantizations.

Step and gate gradients are sums over all elements. They are estimated on a leading share of the batch and scaled up
(`gradient_share`), which keeps a search step close to the price of a plain training step.

Legend: K candidates; a weight is ``[rows, ...]`` with one step per row; an activation is ``[N, ...]`` with one step.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddq_search.distributed import leading
from ddq_search.quantizers import fused


class Grid(NamedTuple):
    """Integer range and zero point of one candidate."""

    low: int
    high: int
    zero_point: int


def ranges(grids: tuple[Grid | None, ...]) -> fused.Ranges:
    """Returns the smallest and largest code of every candidate, less its zero point; infinite for float32."""
    return tuple((-math.inf, math.inf) if g is None else (g.low - g.zero_point, g.high - g.zero_point) for g in grids)


def fake_quantize(x: Tensor, step: Tensor, grid: Grid | None) -> Tensor:
    """Returns ``x`` on the grid; ``x`` itself when ``grid`` is None (float32).

    ``step`` is a scalar, or ``[rows]`` for one step per entry of the first dimension. Four in-place passes: several
    times faster on a CPU than the built-in fake-quantize kernel, which is not vectorised.
    """
    if grid is None:
        return x
    low, high = grid.low - grid.zero_point, grid.high - grid.zero_point
    if fused.serves(x):
        return fused.forward(x, step, low, high)
    step = _aligned(step, x)
    return x.mul(1 / step).round_().clamp_(low, high).mul_(step)


def _aligned(step: Tensor, x: Tensor) -> Tensor:
    return step.reshape(-1, *([1] * (x.ndim - 1))) if step.ndim else step


def inside_range(grad: Tensor, x: Tensor, step: Tensor, grid: Grid | None) -> Tensor:
    """Returns ``grad`` where ``x`` falls inside the clipping window, 0 elsewhere."""
    if grid is None:
        return grad
    low, high = grid.low - grid.zero_point - 0.5, grid.high - grid.zero_point + 0.5
    if step.ndim or x.device.type != "cpu" or torch.compiler.is_compiling():  # there, a number is waited for
        scaled = x / _aligned(step, x)
        return torch.ops.aten.hardtanh_backward(grad, scaled, low, high)  # type: ignore[no-any-return]
    bound = step.item()
    return torch.ops.aten.hardtanh_backward(grad, x, low * bound, high * bound)  # type: ignore[no-any-return]


def codes(x: Tensor, step: Tensor, grid: Grid) -> Tensor:
    """Returns the integer codes (int32) whose dequantized values `fake_quantize` gives."""
    scaled = torch.round(x * (1 / _aligned(step, x)))
    return torch.clamp(scaled + grid.zero_point, grid.low, grid.high).to(torch.int32)


class Estimate(NamedTuple):
    """How gradients are estimated, and what may be overwritten.

    Attributes:
        share: share of an activation's batch on which step and gate gradients are estimated.
        correction: λ of the gradient correction.
        overwrites_input: nothing else reads the tensor, so it may be quantized where it lies.
        overwrites_gradient: nothing else reads the gradient of the result.
    """

    share: float = 1.0
    correction: float = 0.0
    overwrites_input: bool = False
    overwrites_gradient: bool = False


def quantize_with_gates(
    x: Tensor, log_steps: Tensor, statistic: Tensor | None, cumulative: Tensor | None, grids: tuple[Grid | None, ...],
    choice: int, estimate: Estimate,
) -> Tensor:  # fmt: skip
    """Returns ``x`` on the grid of one candidate, with the gradients that the module describes.

    Args:
        x: the tensor.
        log_steps: ``[K]`` or ``[K, rows]``.
        statistic: ``[rows]``, what the steps are relative to; None for absolute steps.
        cumulative: ``[K − 1]`` or None.
        grids: range and zero point of every candidate; None for float32.
        choice: the candidate.
        estimate: how gradients are estimated.
    """
    passes = FusedPasses if fused.serves(x) else PlainPasses
    return passes.apply(x, log_steps, statistic, cumulative, grids, choice, estimate)  # type: ignore[no-any-return]


class PlainPasses(torch.autograd.Function):
    """In torch operations, for any tensor."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        log_steps: Tensor,
        statistic: Tensor | None,
        cumulative: Tensor | None,
        grids: tuple[Grid | None, ...],
        choice: int,
        estimate: Estimate,
    ) -> Tensor:
        """Returns ``x`` on the grid of the chosen candidate."""
        steps = log_steps.exp() if statistic is None else log_steps.exp() * statistic
        out = fake_quantize(x, steps[choice], grids[choice])
        ctx.save_for_backward(x, steps, out)
        ctx.grids, ctx.choice, ctx.correction = grids, choice, estimate.correction
        ctx.leading = (x.shape[0], 1.0) if steps.ndim == 2 else leading(x.shape[0], estimate.share)
        ctx.gated = cumulative is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of the input, the log steps and ``c``."""
        x, steps, out = ctx.saved_tensors
        grid = ctx.grids[ctx.choice]
        grad_x = inside_range(grad, x, steps[ctx.choice], grid)
        per_row = steps.ndim == 2
        size, scale = ctx.leading
        part_x, part_grad, part_inside = x[:size], grad[:size], grad_x[:size]
        chosen = out[:size]
        if ctx.correction:
            part_grad = part_grad + ctx.correction * (chosen - part_x)
            part_inside = inside_range(part_grad, part_x, steps[ctx.choice], grid)
        grad_steps = torch.zeros_like(steps)
        if grid is not None:
            if per_row:
                change = (part_grad * chosen - part_inside * part_x).flatten(1).sum(1)
            else:
                change = inner_product(part_grad, chosen) - inner_product(part_inside, part_x)
            grad_steps[ctx.choice] = scale * change
        grad_cumulative = None
        if ctx.gated and ctx.needs_input_grad[3]:
            dots = [
                inner_product(part_grad, chosen if k == ctx.choice else fake_quantize(part_x, steps[k], other))
                for k, other in enumerate(ctx.grids)
            ]
            grad_cumulative = scale * torch.stack(dots).diff()
        return grad_x, grad_steps, None, grad_cumulative, None, None, None


class FusedPasses(torch.autograd.Function):
    """One pass over memory forward and one backward (`ddq_search.quantizers.fused`)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        log_steps: Tensor,
        statistic: Tensor | None,
        cumulative: Tensor | None,
        grids: tuple[Grid | None, ...],
        choice: int,
        estimate: Estimate,
    ) -> Tensor:
        """Returns ``x`` on the grid of the chosen candidate; ``x`` itself where it may be overwritten."""
        steps = log_steps.exp() if statistic is None else log_steps.exp() * statistic
        ctx.ranges = ranges(grids)
        ctx.choice, ctx.estimate, ctx.gated = choice, estimate, cumulative is not None
        size, ctx.factor = (len(x), 1.0) if steps.ndim == 2 else leading(len(x), estimate.share)
        ctx.leading, ctx.stride = size * (x.numel() // len(x)), x.stride()
        ctx.in_place = estimate.overwrites_input and steps.ndim == 1
        if ctx.in_place:
            low, high = ctx.ranges[choice]
            kept = fused.forward_in_place(x, steps[choice], low, high, ctx.leading)
            ctx.mark_dirty(x)
            ctx.save_for_backward(steps, *kept)
            return x
        ctx.save_for_backward(steps, x)
        return fused.forward(x, steps[choice], *ctx.ranges[choice])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of the input, the log steps and ``c``."""
        steps, *rest = ctx.saved_tensors
        ours = fused.laid_out(grad, ctx.stride)
        overwrite = ctx.estimate.overwrites_gradient or ours is not grad
        gated = ctx.gated and ctx.needs_input_grad[3]
        found = fused.backward(
            fused.Kept(*rest) if ctx.in_place else rest[0], ours, steps, ctx.ranges, ctx.choice, leading=ctx.leading,
            factor=ctx.factor, gated=gated, correction=ctx.estimate.correction, overwrite=overwrite,
        )  # fmt: skip
        return found.x, found.log_steps, None, found.cumulative, None, None, None


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """Returns ``Σ a b``."""
    if a.stride() == b.stride():
        if a.is_contiguous():
            return torch.dot(a.reshape(-1), b.reshape(-1))
        if a.ndim == 4 and a.is_contiguous(memory_format=torch.channels_last):
            return torch.dot(a.permute(0, 2, 3, 1).reshape(-1), b.permute(0, 2, 3, 1).reshape(-1))
    return (a * b).sum()
