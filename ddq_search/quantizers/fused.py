"""The quantizers' passes over memory in C, compiled on first use; plain torch does the same where that cannot be.

`fused.c` (`ddq_search.native`) computes what `ddq_search.quantizers.straight_through` computes with a dozen torch
operations, one pass forward and one backward.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddq_search import native

_SOURCE = Path(__file__).with_suffix(".c")
_PARALLEL_VALUES = 32768
"""Smaller tensors are not worth waking a thread."""


def status() -> str:
    """Says in a few words what the quantizers run on."""
    return (
        "fused C kernels" if _library() is not None else "plain torch (no C compiler that can, or DDQ_SEARCH_FUSED=0)"
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_built() -> bool:
    """Whether there are kernels at all."""
    return _library() is not None


def serves(x: Tensor) -> bool:
    """Whether the kernels can read this tensor: float32 on a CPU, dense and not empty."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() > 0
        and dense(x)
        and not torch.compiler.is_compiling()
        and _library() is not None
    )


class Kept(NamedTuple):
    """What the backward pass needs of a tensor that was overwritten.

    Attributes:
        leading: copy of its leading values, flat.
        inside: uint8, one per value in storage order: 1 where the code was within the range.
    """

    leading: Tensor
    inside: Tensor


def forward(x: Tensor, step: Tensor, low: float, high: float) -> Tensor:
    """Returns ``x`` on the grid; ``step`` is a scalar or ``[rows]``, low and high are codes less the zero point."""
    out = torch.empty_like(x)
    _forward(x, out, step, low, high, None)
    return out


def forward_in_place(x: Tensor, step: Tensor, low: float, high: float, leading: int) -> Kept:
    """Puts ``x`` on the grid of one step where it lies.

    Args:
        x: changed.
        step: scalar.
        low: smallest code less the zero point.
        high: largest code less the zero point.
        leading: how many leading values, in storage order, the sums of the backward pass are to run over.
    """
    kept = Kept(
        torch.empty(leading, dtype=torch.float32, device="cpu"), torch.empty(x.numel(), dtype=torch.uint8, device="cpu")
    )
    _forward(x, x, step, low, high, kept)
    return kept


def _forward(x: Tensor, out: Tensor, step: Tensor, low: float, high: float, kept: Kept | None) -> None:
    library = _library()
    assert library is not None
    rows = step.numel()
    step = step.detach().contiguous()
    inverse = 1 / step
    library.ddq_forward(
        _pointer(x), _pointer(out), rows, x.numel() // rows, _pointer(inverse), _pointer(step), low, high,
        _pointer(kept.inside) if kept else None, _pointer(kept.leading) if kept else None,
        kept.leading.numel() if kept else 0, _threads(x),
    )  # fmt: skip


class Sums(NamedTuple):
    """What `backward` sums over leading values.

    Attributes:
        change: gradient of the log step of the chosen candidate, scalar or ``[rows]``.
        dots: ``<grad, x_q(k)>`` of every candidate, ``[K]``.
    """

    change: Tensor
    dots: Tensor


def backward(
    kept: Tensor | Kept, grad: Tensor, steps: Tensor, ranges: Sequence[tuple[float, float]], choice: int, *,
    leading: int, gated: bool, correction: float, overwrite: bool,
) -> tuple[Tensor, Sums]:  # fmt: skip
    """Returns the gradient of the input, and sums that are not scaled up.

    Args:
        kept: what was quantized, or what is left of it.
        grad: gradient of the result, values stored in the order of what was quantized.
        steps: ``[K]`` or ``[K, rows]``.
        ranges: per candidate the smallest and largest code less the zero point; infinite for float32.
        choice: the candidate computed forward.
        leading: how many values are summed over, in storage order; all of them where there are several rows.
        gated: whether ``dots`` are wanted; zeros otherwise.
        correction: λ of the gradient correction.
        overwrite: whether ``grad`` may become the result.
    """
    library = _library()
    assert library is not None
    x = kept.leading if isinstance(kept, Kept) else kept
    candidates, rows = len(ranges), steps[0].numel()
    columns = grad.numel() // rows
    steps = steps.detach().contiguous()
    inverses = 1 / steps
    grad_x = grad if overwrite else torch.empty_like(grad)
    partial = torch.empty(library.ddq_blocks(rows, columns) * (1 + candidates), dtype=torch.float64)
    change = torch.empty(rows, dtype=torch.float64)
    dots = torch.empty(candidates, dtype=torch.float64)
    lows, highs = _tables(ranges)
    library.ddq_backward(
        _pointer(x), _pointer(kept.inside) if isinstance(kept, Kept) else None, _pointer(grad), _pointer(grad_x), rows,
        columns, leading // rows, candidates, choice, int(gated), _pointer(inverses), _pointer(steps),
        lows, highs, correction, _pointer(partial), _pointer(change), _pointer(dots), _threads(grad),
    )  # fmt: skip
    return grad_x, Sums(change.to(steps.dtype).reshape(steps.shape[1:]), dots.to(steps.dtype))


def mix(x: Tensor, steps: Tensor, ranges: Sequence[tuple[float, float]], shares: Tensor) -> Tensor:
    """Returns ``Σ_k shares[k] x_q(k)``; ``steps`` is ``[K]`` or ``[K, rows]``, ``shares`` ``[K]``."""
    library = _library()
    assert library is not None
    steps, shares = steps.detach().contiguous(), shares.detach().float().contiguous()
    inverses, out, rows = 1 / steps, torch.empty_like(x), steps[0].numel()
    lows, highs = _tables(ranges)
    library.ddq_mix_forward(
        _pointer(x), _pointer(out), rows, x.numel() // rows, len(ranges), _pointer(inverses), _pointer(steps), lows,
        highs, _pointer(shares), _threads(x),
    )  # fmt: skip
    return out


def mix_backward(
    x: Tensor, grad: Tensor, steps: Tensor, ranges: Sequence[tuple[float, float]], shares: Tensor, leading: int
) -> tuple[Tensor, Sums]:
    """Returns the gradient of the input of `mix`, and sums over ``leading`` values: ``change`` has a row per step."""
    library = _library()
    assert library is not None
    steps, shares = steps.detach().contiguous(), shares.detach().float().contiguous()
    inverses, grad_x, candidates, rows = 1 / steps, torch.empty_like(x), len(ranges), steps[0].numel()
    columns = x.numel() // rows
    partial = torch.empty(library.ddq_blocks(rows, columns) * 2 * candidates, dtype=torch.float64)
    change, dots = torch.empty(steps.shape, dtype=torch.float64), torch.empty(candidates, dtype=torch.float64)
    lows, highs = _tables(ranges)
    library.ddq_mix_backward(
        _pointer(x), _pointer(grad), _pointer(grad_x), rows, columns, leading // rows, candidates, _pointer(inverses),
        _pointer(steps), lows, highs, _pointer(shares), _pointer(partial), _pointer(change), _pointer(dots),
        _threads(x),
    )  # fmt: skip
    return grad_x, Sums(change.to(steps.dtype), dots.to(steps.dtype))


def _tables(ranges: Sequence[tuple[float, float]]) -> tuple[ctypes.Array[ctypes.c_float], ctypes.Array[ctypes.c_float]]:
    floats = ctypes.c_float * len(ranges)
    return floats(*(low for low, _ in ranges)), floats(*(high for _, high in ranges))


def dense(x: Tensor) -> bool:
    """Whether values lie one after the other, samples outermost."""
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


def laid_out(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Returns a tensor's values in another dense layout; the tensor itself where it has it already."""
    return x if x.stride() == stride else x.new_empty_strided(x.shape, stride).copy_(x)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _threads(x: Tensor) -> int:
    return torch.get_num_threads() if x.numel() >= _PARALLEL_VALUES else 1


@cache
def _library() -> ctypes.CDLL | None:
    library = native.load(_SOURCE)
    if library is None:
        return None
    library.ddq_blocks.argtypes = [ctypes.c_int64, ctypes.c_int64]
    library.ddq_blocks.restype = ctypes.c_int64
    pointer, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    real, table = ctypes.c_float, ctypes.POINTER(ctypes.c_float)
    library.ddq_forward.argtypes = [
        pointer, pointer, count, count, pointer, pointer, real, real, pointer, pointer, count, number,
    ]  # fmt: skip
    library.ddq_forward.restype = None
    library.ddq_backward.argtypes = [
        pointer, pointer, pointer, pointer, count, count, count, number, number, number, pointer, pointer,
        table, table, real, pointer, pointer, pointer, number,
    ]  # fmt: skip
    library.ddq_backward.restype = None
    library.ddq_mix_forward.argtypes = [
        pointer, pointer, count, count, number, pointer, pointer, table, table, pointer, number,
    ]  # fmt: skip
    library.ddq_mix_forward.restype = None
    library.ddq_mix_backward.argtypes = [
        pointer, pointer, pointer, count, count, count, number, pointer, pointer, table, table, pointer, pointer,
        pointer, pointer, number,
    ]  # fmt: skip
    library.ddq_mix_backward.restype = None
    return library
