"""DQ's six parametrisations of a symmetric quantizer, with the gradients that the paper tabulates.

Uniform levels, step d and largest level q_max, ``Q = sign(x) d ⌊|x|/d + ½⌋`` up to q_max and ``sign(x) q_max`` beyond
it; powers of two from q_min to q_max, ``Q = sign(x) 2^⌊½ + log₂|x|⌋`` between the two. With ``e = Q − x``:

| learned | up to q_max | beyond q_max |
|---|---|---|
| U1: b, d | ∂_b = 0, ∂_d = e/d | ∂_b = 2^(b−1) ln 2 · d sign x, ∂_d = (2^(b−1) − 1) sign x |
| U2: b, q_max | ∂_b = −2^(b−1) ln 2 / (2^(b−1) − 1) · e, ∂_qmax = e/q_max | ∂_b = 0, ∂_qmax = sign x |
| U3: d, q_max | ∂_d = e/d, ∂_qmax = 0 | ∂_d = 0, ∂_qmax = sign x |

| learned | up to q_min | between | beyond q_max |
|---|---|---|---|
| P3: q_min, q_max | sign x · (1, 0) | (0, 0) | sign x · (0, 1) |
| P1: b, q_min (derived) | (0, 1) sign x | (0, 0) | (2^(b−1) ln² 2 · q_max, 2^(2^(b−1) − 1)) sign x |
| P2: b, q_max (derived) | (−2^(b−1) ln² 2 · q_min, 2^−(2^(b−1) − 1)) sign x | (0, 0) | (0, 1) sign x |

``∂_x Q = 1[|x| ≤ q_max]`` everywhere. U3 and P3 are autograd functions; the other tables are theirs through
``q_max = (2^(b−1) − 1) d`` and ``q_max = 2^(2^(b−1) − 1) q_min``, which torch differentiates.

Unsigned quantizers stand for the ReLU: what is below 0 becomes 0 and has no gradient at all; 2^b replaces 2^(b−1).

Source: Uhlich et al., "Mixed Precision DNNs: All you need is a good parametrization", ICLR 2020 (arXiv 1905.11452);
P1 and P2 and the unsigned tables are derived in the same way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class UniformByStepAndLargest(torch.autograd.Function):
    """U3. Inputs: x; d and q_max, scalars; whether values below 0 have levels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, largest: Tensor, signed: bool) -> Tensor:
        """Returns Q."""
        size = x.abs() if signed else x.clamp_min(0)
        inside = size <= largest
        level = torch.where(inside, (size / step + 0.5).floor() * step, largest)
        out = level * x.sign() if signed else level
        ctx.save_for_backward(x, out, inside, step)
        ctx.signed = signed
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the tabulated gradients."""
        x, out, inside, step = ctx.saved_tensors
        grad_largest = (grad * x.sign()).masked_fill(inside, 0).sum()
        if not ctx.signed:
            inside = inside & (x >= 0)
        grad_x = grad * inside
        return grad_x, (grad_x * (out - x)).sum() / step, grad_largest, None


class PowersBySmallestAndLargest(torch.autograd.Function):
    """P3. Inputs: x; q_min and q_max, scalars."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, smallest: Tensor, largest: Tensor) -> Tensor:
        """Returns Q; 0, which has no sign, takes the positive level."""
        size = x.abs()
        small, large = size <= smallest, size > largest
        sign = torch.where(x < 0, -1.0, 1.0).to(x.dtype)
        level = torch.exp2((size.log2() + 0.5).floor())
        ctx.save_for_backward(sign, small, large)
        return torch.where(small, smallest, torch.where(large, largest, level)) * sign

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the tabulated gradients."""
        sign, small, large = ctx.saved_tensors
        signed = grad * sign
        return grad.masked_fill(large, 0), (signed * small).sum(), (signed * large).sum()


class _InPlaceOf(torch.autograd.Function):
    """A value that takes the place of another; its gradient goes there as it is (straight-through)."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def instead_of(source: Tensor, value: Tensor) -> Tensor:
    """Returns ``value``; its gradient goes to ``source`` unchanged."""
    return _InPlaceOf.apply(source, value.detach())  # type: ignore[no-any-return]


def to_power_of_two(value: Tensor) -> Tensor:
    """Returns the power of two nearest to a positive value on a log scale, straight-through."""
    return instead_of(value, torch.exp2(value.detach().log2().round()))


def top_level(bits: Tensor, signed: bool) -> Tensor:
    """Returns the number of steps up to the largest level: ``2^(b−1) − 1``, unsigned ``2^b − 1``; differentiable."""
    return torch.exp2(bits - 1 if signed else bits) - 1


def u1(x: Tensor, bits: Tensor, step: Tensor, signed: bool = True) -> Tensor:
    """Returns Q for learned bitwidth and step."""
    return u3(x, step, top_level(bits, signed) * step, signed)


def u2(x: Tensor, bits: Tensor, largest: Tensor, signed: bool = True) -> Tensor:
    """Returns Q for learned bitwidth and largest level."""
    return u3(x, largest / top_level(bits, signed), largest, signed)


def u3(x: Tensor, step: Tensor, largest: Tensor, signed: bool = True) -> Tensor:
    """Returns Q for learned step and largest level."""
    return UniformByStepAndLargest.apply(x, step, largest, signed)  # type: ignore[no-any-return]


def p1(x: Tensor, bits: Tensor, smallest: Tensor) -> Tensor:
    """Returns Q for learned bitwidth and smallest level."""
    return p3(x, smallest, smallest * torch.exp2(top_level(bits, True)))


def p2(x: Tensor, bits: Tensor, largest: Tensor) -> Tensor:
    """Returns Q for learned bitwidth and largest level."""
    return p3(x, largest * torch.exp2(-top_level(bits, True)), largest)


def p3(x: Tensor, smallest: Tensor, largest: Tensor) -> Tensor:
    """Returns Q for learned smallest and largest level."""
    return PowersBySmallestAndLargest.apply(x, smallest, largest)  # type: ignore[no-any-return]
