"""Quantize forward; backward the gradients of LSQ, LSQ+ and PACT, whose window ends at the outermost levels.

With step s, zero point z, codes ``0 … p``, levels from ``low = −z s`` to ``high = (p − z) s``, and value ``x_q``:

| gradient of | low < x < high | x ≤ low or x ≥ high |
|---|---|---|
| x | 1 | 0 |
| log s, LSQ | x_q − x | x_q |
| log s, PACT, which differentiates the clipping alone | 0 | x_q |
| log s beside a learned offset β (LSQ+), levels being ``s·code + β`` | x_q − x | x_q + z s |
| β | 0 | 1 |

These are ``s ∂x_q/∂s`` of the papers: steps are learned on a log scale, so they stay positive and one learning rate
serves all tensors (ours). The gates receive ``∂L/∂c_k = <g, x_q(k) − x_q(k−1)>``, as everywhere. Sums of an
activation's gradients may be estimated on a leading share of the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddq_search.distributed import leading
from ddq_search.quantizers.straight_through import Grid, fake_quantize


class QuantizeClipped(torch.autograd.Function):
    """See the module docstring.

    Inputs: the tensor; log steps ``[K]``; offsets β ``[K]`` or None; ``c`` ``[K − 1]`` or None; the K grids; the
    choice; share of the batch for the sums; factor of the step's and the offset's gradient; whether the rounding
    counts (LSQ).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_steps: Tensor, offsets: Tensor | None, cumulative: Tensor | None,
        grids: tuple[Grid | None, ...], choice: int, share: float, factor: float, rounding: bool,
    ) -> Tensor:  # fmt: skip
        """Returns ``x`` on the grid of the chosen candidate."""
        steps = log_steps.exp()
        out = fake_quantize(x, steps[choice], grids[choice])
        ctx.save_for_backward(x, steps, out)
        ctx.settings = grids, choice, factor, rounding
        ctx.leading = (len(x), 1.0) if share == 1.0 else leading(len(x), share)
        return out.clone() if out is x else out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of the tensor, the log steps, the offsets and ``c``."""
        x, steps, out = ctx.saved_tensors
        grids, choice, factor, rounding = ctx.settings
        grid, needs = grids[choice], ctx.needs_input_grad
        size, scale = ctx.leading
        part_x, part_out, part_grad = x[:size], out[:size], grad[:size]
        grad_x, grad_steps = grad, torch.zeros_like(steps)
        grad_offsets = torch.zeros_like(steps) if needs[2] else None
        if grid is not None:
            step = steps[choice].item()
            low, high = (grid.low - grid.zero_point) * step, (grid.high - grid.zero_point) * step
            grad_x = torch.ops.aten.hardtanh_backward(grad, x, low, high)
            inside = grad_x[:size]
            change = (part_grad * part_out).sum() - (inside * (part_x if rounding else part_out)).sum()
            if grad_offsets is not None:
                outside = part_grad.sum() - inside.sum()
                grad_offsets[choice] = scale * factor * outside
                change = change + grid.zero_point * step * outside
            grad_steps[choice] = scale * factor * change
        grad_cumulative = None
        if needs[3]:
            values = [
                part_out if k == choice else fake_quantize(part_x, steps[k], other) for k, other in enumerate(grids)
            ]
            grad_cumulative = scale * torch.stack([(part_grad * value).sum() for value in values]).diff()
        return grad_x, grad_steps, grad_offsets, grad_cumulative, None, None, None, None, None
