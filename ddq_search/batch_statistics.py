"""Batch normalisation over the parts of a batch that several processes hold (`ddq_search.distributed`).

``torch.nn.SyncBatchNorm`` does not take CPU tensors. Here the means and variances of the parts are gathered and
combined in float64 (Chan's update: no difference of large sums), so mean, variance and running statistics are those of
the whole batch, the same in every process. Backward, the two sums of the gradient are reduced likewise:

    ``∂L/∂x = γ/σ · (g − mean(g) − x̂ · mean(g · x̂))``, means over the whole batch.

Two exchanges of 2 C numbers per layer and step.

Legend: N samples of this part, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ddq_search.distributed import Part, gather, sum_in_place

Norm = nn.BatchNorm1d | nn.BatchNorm2d


def normalize(norm: Norm, x: Tensor, part: Part) -> Tensor:
    """Returns what ``norm`` in training mode gives for this part of the batch; updates its running statistics.

    Args:
        norm: the layer.
        x: ``[N, C, ...]``.
        part: which part of the batch it is.
    """
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    per_sample = x[0, 0].numel()
    counts = torch.tensor(part.sizes(), dtype=torch.float64, device=x.device) * per_sample
    mean, variance = _combined(gather(torch.stack(torch.batch_norm_update_stats(x, None, None, 0.0))), counts)
    count = part.batch * per_sample
    _update(norm, mean, variance * (count / (count - 1)))
    result: Tensor = _Normalize.apply(x, norm.weight, norm.bias, mean.to(x), variance.to(x), norm.eps, count)
    return result


def _combined(statistics: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and (biased) variance ``[C]`` float64 of the union of parts with ``statistics`` ``[W, 2, C]``."""
    means, variances = statistics.double().unbind(1)
    shares = (counts / counts.sum())[:, None]
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean) ** 2)).sum(0)


@torch.no_grad()
def _update(norm: Norm, mean: Tensor, variance: Tensor) -> None:
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    momentum = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), momentum)
    norm.running_var.lerp_(variance.to(norm.running_var), momentum)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float,
        count: int,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.count = eps, count
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, variance, None, None, False, ctx.eps, [False, True, True]
        )
        sums = torch.stack([grad_weight, grad_bias])
        sum_in_place([sums])
        mean_product, mean_grad = sums / ctx.count
        inverse = (variance + ctx.eps).rsqrt()
        gain = inverse if weight is None else inverse * weight
        slope = gain * inverse * mean_product
        constant = slope * mean - gain * mean_grad

        def aligned(channels: Tensor) -> Tensor:
            return channels.reshape(-1, *[1] * (x.ndim - 2))

        grad_x = torch.addcmul(aligned(constant), x, aligned(slope), value=-1).addcmul_(grad, aligned(gain))
        wanted = ctx.needs_input_grad
        return grad_x, grad_weight if wanted[1] else None, grad_bias if wanted[2] else None, None, None, None, None
