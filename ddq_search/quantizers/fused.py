"""The quantizers' passes over memory in C, compiled on first use; plain torch does the same where that cannot be.

`fused.c` (`ddq_search.native`) computes what `ddq_search.quantizers.straight_through` computes with a dozen torch
operations, one pass forward and one backward.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddq_search import native

_SOURCE = Path(__file__).with_suffix(".c")
_PARALLEL_VALUES = 32768
"""Smaller tensors are not worth waking a thread."""

Ranges = tuple[tuple[float, float], ...]
"""Per candidate the smallest and largest code less the zero point; infinite for float32."""


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
    library, rows = _library(), step.numel()
    assert library is not None
    step = step.contiguous()
    library.ddq_forward(
        x.data_ptr(), out.data_ptr(), rows, x.numel() // rows, step.data_ptr(), low, high,
        kept.inside.data_ptr() if kept else None, kept.leading.data_ptr() if kept else None,
        kept.leading.numel() if kept else 0, _threads(x),
    )  # fmt: skip


class Gradients(NamedTuple):
    """What `backward` returns.

    Attributes:
        x: of the input.
        log_steps: ``[K]`` or ``[K, rows]``, zero but for the chosen candidate.
        cumulative: of ``c``, ``[K − 1]``: the differences of ``<grad, x_q(k)>``; None unless wanted.
    """

    x: Tensor
    log_steps: Tensor
    cumulative: Tensor | None


def backward(
    kept: Tensor | Kept, grad: Tensor, steps: Tensor, ranges: Ranges, choice: int, *,
    leading: int, factor: float, gated: bool, correction: float, overwrite: bool,
) -> Gradients:  # fmt: skip
    """Returns the gradients of quantizing.

    Args:
        kept: what was quantized, or what is left of it.
        grad: gradient of the result, values stored in the order of what was quantized.
        steps: ``[K]`` or ``[K, rows]``.
        ranges: of every candidate.
        choice: the candidate computed forward.
        leading: how many values are summed over, in storage order; all of them where there are several rows.
        factor: what the sums are multiplied by.
        gated: whether the gradient of ``c`` is wanted.
        correction: λ of the gradient correction.
        overwrite: whether ``grad`` may become the result.
    """
    library = _library()
    assert library is not None
    x, inside = (kept.leading, kept.inside.data_ptr()) if isinstance(kept, Kept) else (kept, None)
    candidates, rows = len(ranges), steps[0].numel()
    columns, steps = grad.numel() // rows, steps.contiguous()
    grad_x, grad_steps = grad if overwrite else torch.empty_like(grad), torch.empty_like(steps)
    grad_cumulative = steps.new_empty(candidates - 1) if gated else None
    partial = torch.empty(library.ddq_blocks(rows, columns) * (1 + candidates), dtype=torch.float64)
    library.ddq_backward(
        x.data_ptr(), inside, grad.data_ptr(), grad_x.data_ptr(), rows, columns, leading // rows, candidates, choice,
        steps.data_ptr(), *_tables(ranges), correction, factor, partial.data_ptr(), grad_steps.data_ptr(),
        None if grad_cumulative is None else grad_cumulative.data_ptr(), _threads(grad),
    )  # fmt: skip
    return Gradients(grad_x, grad_steps, grad_cumulative)


def mix(x: Tensor, steps: Tensor, ranges: Ranges, shares: Tensor) -> Tensor:
    """Returns ``Σ_k shares[k] x_q(k)``; ``steps`` is ``[K]`` or ``[K, rows]``, ``shares`` ``[K]``."""
    library = _library()
    assert library is not None
    steps, shares = steps.contiguous(), shares.float().contiguous()
    out, rows = torch.empty_like(x), steps[0].numel()
    library.ddq_mix_forward(
        x.data_ptr(), out.data_ptr(), rows, x.numel() // rows, len(ranges), steps.data_ptr(), *_tables(ranges),
        shares.data_ptr(), _threads(x),
    )  # fmt: skip
    return out


class Sums(NamedTuple):
    """What `mix_backward` sums over leading values.

    Attributes:
        change: gradients of the log steps, as these.
        dots: ``<grad, x_q(k)>`` of every candidate, ``[K]``.
    """

    change: Tensor
    dots: Tensor


def mix_backward(
    x: Tensor, grad: Tensor, steps: Tensor, ranges: Ranges, shares: Tensor, leading: int
) -> tuple[Tensor, Sums]:
    """Returns the gradient of the input of `mix`, and sums over ``leading`` values that are not scaled up."""
    library = _library()
    assert library is not None
    steps, shares = steps.contiguous(), shares.float().contiguous()
    grad_x, candidates, rows = torch.empty_like(x), len(ranges), steps[0].numel()
    columns = x.numel() // rows
    partial = torch.empty(library.ddq_blocks(rows, columns) * 2 * candidates, dtype=torch.float64)
    change, dots = torch.empty(steps.shape, dtype=torch.float64), torch.empty(candidates, dtype=torch.float64)
    library.ddq_mix_backward(
        x.data_ptr(), grad.data_ptr(), grad_x.data_ptr(), rows, columns, leading // rows, candidates, steps.data_ptr(),
        *_tables(ranges), shares.data_ptr(), partial.data_ptr(), change.data_ptr(), dots.data_ptr(), _threads(x),
    )  # fmt: skip
    return grad_x, Sums(change.to(steps.dtype), dots.to(steps.dtype))


@cache
def _tables(ranges: Ranges) -> tuple[ctypes.Array[ctypes.c_float], ctypes.Array[ctypes.c_float]]:
    floats = ctypes.c_float * len(ranges)
    return floats(*(low for low, _ in ranges)), floats(*(high for _, high in ranges))


def dense(x: Tensor) -> bool:
    """Whether values lie one after the other, samples outermost."""
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


def laid_out(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Returns a tensor's values in another dense layout; the tensor itself where it has it already."""
    return x if x.stride() == stride else x.new_empty_strided(x.shape, stride).copy_(x)


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
        pointer, pointer, count, count, pointer, real, real, pointer, pointer, count, number,
    ]  # fmt: skip
    library.ddq_forward.restype = None
    library.ddq_backward.argtypes = [
        pointer, pointer, pointer, pointer, count, count, count, number, number, pointer, table, table, real, real,
        pointer, pointer, pointer, number,
    ]  # fmt: skip
    library.ddq_backward.restype = None
    library.ddq_mix_forward.argtypes = [
        pointer, pointer, count, count, number, pointer, table, table, pointer, number,
    ]  # fmt: skip
    library.ddq_mix_forward.restype = None
    library.ddq_mix_backward.argtypes = [
        pointer, pointer, pointer, count, count, count, number, pointer, table, table, pointer, pointer, pointer,
        pointer, number,
    ]  # fmt: skip
    library.ddq_mix_backward.restype = None
    return library
