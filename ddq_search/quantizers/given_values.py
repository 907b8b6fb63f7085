"""A quantization computed elsewhere, with the gradients that every quantizer owes: its input's and the gates'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddq_search.precision import FLOAT_BITS
from ddq_search.quantizers.contract import Quantizer

Computed = Callable[[Tensor, int], Tensor]


class GivenValues(torch.autograd.Function):
    """Returns the value of the chosen candidate.

    Inputs: the tensor; ``slope``, of its shape, which stands for ``∂x_q/∂x``; ``c`` ``[K − 1]`` or None; the choice;
    and the values of all candidates (of the chosen one alone where there is no ``c``). Neither slope nor values receive
    a gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, cumulative: Tensor | None, choice: int, *values: Tensor) -> Tensor:
        """Returns the chosen values."""
        gated = cumulative is not None
        ctx.save_for_backward(slope, *(values if gated else ()))
        return values[choice if gated else 0].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of the tensor and of ``c``: ``<g, x_q(k) − x_q(k−1)>``."""
        slope, *values = ctx.saved_tensors
        grad_cumulative = None
        if values and ctx.needs_input_grad[2]:
            grad_cumulative = torch.stack([(grad * value).sum() for value in values]).diff()
        return grad * slope, None, grad_cumulative, None, *([None] * (len(ctx.needs_input_grad) - 4))


def given_values(
    quantizer: Quantizer, x: Tensor, choice: int, cumulative: Tensor | None, value: Computed, slope: Computed
) -> Tensor:
    """Returns the value of one candidate, with the gradients of `GivenValues`.

    Args:
        quantizer: whose candidates they are.
        x: the tensor.
        choice: index of the candidate.
        cumulative: as in `Quantizer.fake_quantize`.
        value: tensor, candidate → ``x_q``.
        slope: tensor, candidate → what stands for ``∂x_q/∂x``.
    """
    if quantizer.candidates[choice] == FLOAT_BITS and cumulative is None:
        return x
    wanted = [choice] if cumulative is None else range(len(quantizer.candidates))
    with torch.no_grad():
        values = [value(x, k) for k in wanted]
        passed = slope(x, choice)
    return GivenValues.apply(x, passed, cumulative, choice, *values)  # type: ignore[no-any-return]
