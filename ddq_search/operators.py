"""What the graph's operations without weights compute in torch, and the functions that end others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ddq_search.graph import Operation

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
}
"""Function name in the graph → torch."""
CLAMPED_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": partial(F.relu, inplace=True),
    "relu6": partial(F.relu6, inplace=True),
}
"""The functions that an operation absorbs (`ddq_search.graph.CLAMPS`); no such operation reads its result again."""


def free_operation(op: Operation, arguments: list[Tensor]) -> Tensor:
    """Returns the result of an operation that is no layer, sum or product of tensors; arguments are batches."""
    x, facts = arguments[0], op.attributes
    if op.kind == "activation":
        return FUNCTIONS[facts["function"]](x)
    if op.kind == "mean":
        return x.mean((2, 3), keepdim=facts["keepdim"])
    if op.kind == "max_pool2d":
        return F.max_pool2d(x, facts["kernel_size"], facts["stride"], facts["padding"][::2], 1, facts["ceil_mode"])
    if op.kind == "avg_pool2d":
        return F.avg_pool2d(
            x,
            facts["kernel_size"],
            facts["stride"],
            facts["padding"][::2],
            facts["ceil_mode"],
            facts["count_include_pad"],
        )
    if op.kind == "reshape":
        return x.reshape(-1, *op.output_shape)
    if op.kind == "transpose":
        return x.permute(0, *(d + 1 for d in facts["dims"]))
    if op.kind == "pixel_shuffle":
        return F.pixel_shuffle(x, op.output_shape[1] // x.shape[2])
    if op.kind == "slice":
        return x.narrow(facts["dim"] + 1, facts["start"], facts["stop"] - facts["start"])
    assert op.kind == "concat", op.kind
    return torch.cat(arguments, facts["dim"] + 1)
