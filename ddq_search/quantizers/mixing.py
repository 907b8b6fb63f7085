"""Mixtures of uniform quantizations, ``Σ_k p_k x_q(k)``: what EdMIPS, FracBits, Bayesian Bits and DQSS compute forward.

Gradients: ``∂L/∂p_k = <g, x_q(k)>``; of the log step of candidate k, ``p_k (<g, x_q(k)> − <g·1[in range of k], x>)``;
of the input ``g Σ_k p_k 1[in range of k]``. Sums are estimated on a leading share of the batch, as in
`ddq_search.quantizers.straight_through`.

Source: Cai and Vasconcelos, "Rethinking Differentiable Search for Mixed-Precision Neural Networks", CVPR 2020 (one
composite convolution).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddq_search.distributed import leading
from ddq_search.quantizers import fused
from ddq_search.quantizers.straight_through import Grid, fake_quantize, inner_product, inside_range, ranges


class MixPasses(torch.autograd.Function):
    """See the module docstring. Inputs: tensor, log steps ``[K]`` or ``[K, rows]``, statistic, shares ``[K]``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_steps: Tensor, statistic: Tensor | None, shares: Tensor, grids: tuple[Grid, ...],
        share: float,
    ) -> Tensor:  # fmt: skip
        """Returns the mixture."""
        steps = log_steps.exp() if statistic is None else log_steps.exp() * statistic
        ctx.grids, ctx.fused = grids, fused.serves(x)
        ctx.leading = (len(x), 1.0) if steps.ndim == 2 else leading(len(x), share)
        ctx.save_for_backward(x, steps, shares)
        if ctx.fused:
            return fused.mix(x, steps, ranges(grids), shares)
        total = torch.zeros_like(x)
        for part, step, grid in zip(shares.tolist(), steps, grids, strict=True):
            total.add_(fake_quantize(x, step, grid), alpha=part)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of the input, the log steps and the shares."""
        x, steps, shares = ctx.saved_tensors
        size, factor = ctx.leading
        if ctx.fused:
            count, ours = size * (x.numel() // len(x)), fused.laid_out(grad, x.stride())
            grad_x, sums = fused.mix_backward(x, ours, steps, ranges(ctx.grids), shares, count)
            return grad_x, factor * sums.change, None, (factor * sums.dots).to(shares.dtype), None, None
        grad_x, change, dots = torch.zeros_like(x), torch.zeros_like(steps), torch.zeros_like(shares)
        for k, (step, grid) in enumerate(zip(steps, ctx.grids, strict=True)):
            passed = inside_range(grad, x, step, grid)
            grad_x.add_(passed, alpha=float(shares[k]))
            part, inside, level = grad[:size], passed[:size], fake_quantize(x[:size], step, grid)
            dots[k] = factor * inner_product(part, level)
            if step.ndim:
                change[k] = shares[k] * (part * level - inside * x[:size]).flatten(1).sum(1)
            else:
                change[k] = factor * shares[k] * (inner_product(part, level) - inner_product(inside, x[:size]))
        return grad_x, change, None, dots, None, None
