"""The autograd function of level vectors: every value takes its nearest level, levels and gates learn.

Forward, ``x_q = scale · levels[code]``. Backward, with ``g`` the gradient of ``x_q`` (DDQ):

- input: straight-through inside a window, ``∂x_q/∂x = 1[low ≤ x/scale ≤ high]``;
- levels: ``∂L/∂levels_k = Σ g · scale`` over the values whose code is k; dividing by ``Z_U`` is merging's own gradient;
- scale: ``∂L/∂log scale = <g, x_q>`` as for levels, or ``<g, x_q> − <g · 1[inside], x>`` as for a learned step;
- gates: the difference of neighbouring quantizations, or the derivative of ``U/Z_U`` (`merging.gate_direction`);
- correction: ``g + λ (x_q − x)`` instead of ``g`` for levels, scale and gates; the input never sees it.

Legend: K candidates; a weight is ``[rows, ...]`` with a scale ``[rows]``; an activation is ``[N, ...]`` with one scale.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddq_search.quantizers.merging import look_up, nearest


class Levels(NamedTuple):
    """Levels of one candidate: the real level is ``levels * scale``.

    Attributes:
        levels: ``[2^s]``, ascending.
        scale: a scalar, or ``[rows]``.
        fine: ``[n]`` fine levels in units of the scale, on which values look for their nearest; None: on ``levels``.
    """

    levels: Tensor
    scale: Tensor
    fine: Tensor | None = None


class Backward(NamedTuple):
    """What the gradients depend on.

    Attributes:
        candidates: levels of every candidate, without gradient; None for float32. Needed where gates learn.
        choice: the chosen candidate.
        as_step: the scale has the gradient of a learned step.
        window: smallest and largest ``x/scale`` that passes a gradient to the input; None: everywhere.
        fine: ``[n]`` fine levels in units of the chosen scale, where gates learn through merging.
        directions: ``[K − 1, n]``, `merging.gate_direction` of the step to every candidate but the first; a row of NaN
            falls back on the difference of neighbours. None: so do all.
        leading: number of leading samples on which sums are estimated, and the factor that scales them up.
        correction: λ.
    """

    candidates: tuple[Levels | None, ...]
    choice: int
    as_step: bool
    window: tuple[float, float] | None
    fine: Tensor | None
    directions: Tensor | None
    leading: tuple[int, float]
    correction: float


def codes(x: Tensor, at: Levels) -> Tensor:
    """Returns the code of every value, int32."""
    scaled = x / aligned(at.scale, x)
    if at.fine is None:
        return nearest(scaled, at.levels)
    return nearest(scaled, at.fine) // (at.fine.numel() // at.levels.numel())


def place(x: Tensor, at: Levels) -> Tensor:
    """Returns every value on its level."""
    return take_levels(at, codes(x, at))


def take_levels(at: Levels, found: Tensor) -> Tensor:
    """Returns the real levels of codes."""
    return look_up(at.levels, found) * aligned(at.scale, found)


def aligned(scale: Tensor, x: Tensor) -> Tensor:
    """Returns a scale that broadcasts over ``x``."""
    return scale.reshape(-1, *([1] * (x.ndim - 1))) if scale.ndim else scale


class QuantizeToLevels(torch.autograd.Function):
    """See the module docstring. Inputs: tensor, chosen levels and scale, ``c`` ``[K − 1]`` or None."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        levels: Tensor,
        scale: Tensor,
        cumulative: Tensor | None,
        how: Backward,
        fine: Tensor | None,
    ) -> Tensor:
        """Returns ``x`` on the chosen levels; ``x`` itself at a float32 candidate."""
        ctx.how, ctx.gated = how, cumulative is not None
        if how.candidates[how.choice] is None:
            ctx.save_for_backward(x, levels, scale, x)
            return x.clone()
        at = Levels(levels, scale, fine)
        found = codes(x, at)
        ctx.save_for_backward(x, levels, scale, found.to(torch.uint8))
        return take_levels(at, found).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of input, levels, scale and ``c``."""
        x, levels, scale, found = ctx.saved_tensors
        how: Backward = ctx.how
        size, factor = how.leading
        part, part_grad = x[:size], grad[:size]
        if how.candidates[how.choice] is None:
            return grad, None, None, _by_neighbours(ctx, part, part, part_grad, factor), None, None
        inside = _inside(x, scale, how.window)
        out = take_levels(Levels(levels, scale), found[:size])
        if how.correction:
            part_grad = part_grad + how.correction * (out - part)
        weighted = part_grad * aligned(scale, part)
        change = part_grad * out
        if how.as_step:
            change = change - part_grad * (part if inside is None else part * inside[:size])
        grad_scale = (change.flatten(1).sum(1) if scale.ndim else change.sum()) / scale
        grad_levels = _sums(found[:size], weighted, levels.numel())
        grad_cumulative = _by_neighbours(ctx, part, out, part_grad, factor)
        if grad_cumulative is not None and how.directions is not None and how.fine is not None:
            per_level = _sums(_fine_codes(part, found[:size], levels, scale, how.fine), weighted, how.fine.numel())
            through = factor * (how.directions @ per_level)
            grad_cumulative = torch.where(through.isnan(), grad_cumulative, through)
        grad_x = grad if inside is None else grad * inside
        return grad_x, factor * grad_levels, factor * grad_scale, grad_cumulative, None, None


def _by_neighbours(ctx: Any, part: Tensor, out: Tensor, grad: Tensor, factor: float) -> Tensor | None:
    """``<g, x_q(k) − x_q(k−1)>`` for every step between candidates."""
    if not (ctx.gated and ctx.needs_input_grad[3]):
        return None
    how: Backward = ctx.how
    values = [
        part if at is None else out if k == how.choice else place(part, at) for k, at in enumerate(how.candidates)
    ]
    return factor * torch.stack([(grad * (high - low)).sum() for low, high in pairwise(values)])


def _inside(x: Tensor, scale: Tensor, window: tuple[float, float] | None) -> Tensor | None:
    if window is None:
        return None
    scaled = x / aligned(scale, x)
    rounding = 4 * torch.finfo(x.dtype).eps * max(-window[0], window[1])  # calibrated scales put values on the border
    return (scaled >= window[0] - rounding) & (scaled <= window[1] + rounding)


def _sums(found: Tensor, values: Tensor, count: int) -> Tensor:
    """Returns the sum of the values of every code, ``[count]``."""
    sums = torch.zeros(count, dtype=values.dtype, device=values.device)
    return sums.scatter_add_(0, found.reshape(-1).long(), values.reshape(-1))


def _fine_codes(x: Tensor, found: Tensor, levels: Tensor, scale: Tensor, fine: Tensor) -> Tensor:
    """Returns the index of the fine level of every value: the nearest among those merged into its level."""
    block = fine.numel() // levels.numel()
    first = found.int() * block
    return torch.minimum(torch.maximum(nearest(x / aligned(scale, x), fine), first), first + block - 1)
