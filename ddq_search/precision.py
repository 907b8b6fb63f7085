"""The words of precision: bitwidths and the integer ranges they stand for.

Weights are symmetric with a narrow range (no -128, no -8): widening kernels and int32 accumulators rely on it.
Activations are affine with unsigned codes ``0 … 2^b - 1`` and a zero point; a container of another signedness
shifts both by the same constant.
"""

from __future__ import annotations

from dataclasses import dataclass

FLOAT_BITS = 32
"""The bitwidth that stands for float32 (no quantization)."""

MAX_BITS = 8
"""The widest integer precision that is searched."""

WIDE_BITS = 16
"""int16 activations of TensorFlow Lite: executed where the runtime has them, never a default candidate."""

INTERFACE_BITS = 8
"""Precision of the network's input and output tensors, which other software reads and writes."""


def weight_code_range(bits: int) -> tuple[int, int]:
    """Returns the smallest and largest weight code at ``bits``.

    >>> weight_code_range(2), weight_code_range(8)
    ((-1, 1), (-127, 127))
    """
    _check(bits, minimum=2)
    largest = 2 ** (bits - 1) - 1
    return -largest, largest


def activation_code_range(bits: int) -> tuple[int, int]:
    """Returns the smallest and largest activation code at ``bits``.

    >>> activation_code_range(2), activation_code_range(8), activation_code_range(16)
    ((0, 3), (0, 255), (0, 65535))
    """
    if bits != WIDE_BITS:
        _check(bits, minimum=1)
    return 0, 2**bits - 1


def storage_bits(bits: int) -> int:
    """Returns the width of the container that stores codes of ``bits`` (3 is stored as 4; 5 to 7 as 8).

    >>> [storage_bits(b) for b in (1, 2, 3, 4, 5, 8, 16, 32)]
    [1, 2, 4, 4, 8, 8, 16, 32]
    """
    if bits in (WIDE_BITS, FLOAT_BITS):
        return bits
    _check(bits, minimum=1)
    return next(width for width in (1, 2, 4, 8) if width >= bits)


def _check(bits: int, minimum: int) -> None:
    if not minimum <= bits <= MAX_BITS:
        raise ValueError(f"bitwidth {bits} is outside {minimum} … {MAX_BITS}")


@dataclass(frozen=True)
class ActivationGrid:
    """Affine grid of an activation tensor: ``real = scale * (code - zero_point)``, codes ``0 … 2^bits - 1``.

    A grid of 16 bits is symmetric: its zero point is code 32768, which is zero in an int16 container.
    """

    scale: float
    zero_point: int
    bits: int

    def __post_init__(self) -> None:
        low, high = activation_code_range(self.bits)
        if not self.scale > 0 or not low <= self.zero_point <= high:
            raise ValueError(f"not a valid grid: {self}")
        if self.bits == WIDE_BITS and self.zero_point != 2 ** (WIDE_BITS - 1):
            raise ValueError(f"a grid of {WIDE_BITS} bits has its zero point at {2 ** (WIDE_BITS - 1)}: {self}")
