"""From the sums of an integer layer to codes, in one pass over memory where a C compiler is at hand.

`ddq_search.evaluation` does the same in a dozen torch operations; `serves` says where this can stand in for them.

Legend: N samples, C channels, H height, W width.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ddq_search import native

_SOURCE = Path(__file__).with_suffix(".c")
_PARALLEL_VALUES = 32768
"""Smaller tensors are not worth waking a thread."""


@dataclass(frozen=True)
class Form:
    """``clip(requantize(sum + bias) + zero_point, low, high)`` for every channel, or for all alike (C = 1).

    Attributes:
        multiplier: ``[C]`` int64, Q31.
        addend: ``[C]`` int64: the bias, or with one rounding what is added to the product.
        left: ``[C]`` int64, shift before the multiplication, where it rounds twice.
        right: ``[C]`` int64, shift after it.
        twice: whether the product is rounded before the shift too.
        zero_point: of the codes.
        low: least code.
        high: greatest code.
    """

    multiplier: Tensor
    addend: Tensor
    left: Tensor
    right: Tensor
    twice: bool
    zero_point: int
    low: int
    high: int

    @classmethod
    def of(
        cls, bias: Tensor, multiplier: Tensor, shift: Tensor, rounding: str, zero_point: int, low: int, high: int
    ) -> Form:
        """Returns the form of a step; ``rounding`` is ``single`` or ``double`` (`ddq_search.integer.program`)."""
        bias, multiplier, shift = (part.reshape(-1).contiguous() for part in (bias, multiplier, shift))
        left, right, addend = shift.clamp(min=0), (-shift).clamp(min=0), bias
        if rounding == "single":
            left, right = torch.zeros_like(shift), 31 - shift
            addend = bias * multiplier + torch.ones_like(right).bitwise_left_shift(right - 1)
        return cls(multiplier, addend, left, right, rounding == "double", zero_point, low, high)

    def codes(self, sums: Tensor) -> Tensor:
        """Returns the codes, uint8, of sums ``[N, C, H, W]`` or ``[N, C]`` that `serves` accepts."""
        library = _library()
        assert library is not None
        last = sums.ndim == 4 and sums.is_contiguous(memory_format=torch.channels_last)
        channels = sums.shape[1]
        inner = 1 if last or sums.ndim == 2 else sums.shape[2] * sums.shape[3]
        out = torch.empty_like(sums, dtype=torch.uint8)
        outer = sums.numel() // (channels * inner)
        library.ddq_requantize(
            _pointer(sums), _pointer(out), outer, channels, inner, *self._arguments(), _threads(sums)
        )
        return out

    def codes_of_sum(self, first: Tensor, second: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the codes of the sum of two tensors of codes, uint8 and alike in memory.

        ``tables`` hold the number, ``[256]`` int64, that each code of the first and of the second stands for.
        """
        library = _library()
        assert library is not None
        out = torch.empty_like(first)
        library.ddq_add(
            _pointer(first), _pointer(second), _pointer(tables[0]), _pointer(tables[1]), _pointer(out), first.numel(),
            *self._arguments(), _threads(first),
        )  # fmt: skip
        return out

    def _arguments(self) -> tuple[object, ...]:
        arrays = (_pointer(part) for part in (self.multiplier, self.addend, self.left, self.right))
        return (*arrays, self.zero_point, self.low, self.high, int(self.twice))


def serves(*tensors: Tensor) -> bool:
    """Whether the C code can read tensors together: on a CPU, not empty, in the same dense order."""
    first = tensors[0]
    dense = first.is_contiguous() or (first.ndim == 4 and first.is_contiguous(memory_format=torch.channels_last))
    alike = all(other.stride() == first.stride() and other.dtype == first.dtype for other in tensors[1:])
    return (
        first.device.type == "cpu"
        and first.dtype in (torch.float32, torch.uint8)
        and first.numel() > 0
        and dense
        and alike
        and _library() is not None
    )


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _threads(x: Tensor) -> int:
    return torch.get_num_threads() if x.numel() >= _PARALLEL_VALUES else 1


@cache
def _library() -> ctypes.CDLL | None:
    library = native.load(_SOURCE)
    if library is None:
        return None
    pointer, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    form = (pointer, pointer, pointer, pointer, count, count, count, number)
    library.ddq_requantize.argtypes = (pointer, pointer, count, count, count, *form, number)
    library.ddq_requantize.restype = None
    library.ddq_add.argtypes = (pointer, pointer, pointer, pointer, pointer, count, *form, number)
    library.ddq_add.restype = None
    return library
