"""What a C kernel of a weighted layer is: which layers it executes, how it lays out weights, what it needs.

A kernel is a C function of the type ``ddq_kernel`` (`runtime/ddq_kernels.h`) in a file of `runtime`. Every kernel also
compiles as portable C with the same weight layout, so that a host proves layout and logic, and an emulator the
instructions.

Legend: K weights per output channel, ordered as in `ddq_search.layer_shape`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ddq_search.layer_shape import LayerClass, LayerShape

Family = Literal["portable", "dsp", "helium", "neon", "neon_dot"]
"""Instruction sets: any C compiler, Cortex-M DSP extension, Helium (MVE), NEON, NEON with dot product."""

Layout = Callable[[NDArray[np.int8], int, LayerShape], bytes]
"""``(codes [rows, K], bits, shape)`` → packed bytes, exactly ``packing.weight_bytes(rows, K, bits)`` of them."""


@dataclass(frozen=True)
class Kernel:
    """One C kernel.

    Attributes:
        name: the C function.
        family: the instruction set it is written for.
        source: file in `runtime` that defines it.
        classes: layer classes it executes.
        weight_bits: storage widths of weights it reads.
        activation_bits: storage widths of inputs it reads.
        offset: what it subtracts from activation codes itself; the exporter folds the rest into the bias. None: it
            subtracts the zero point.
        codebook: whether it looks weights up in ``layer->codebook``; it then executes no other layer.
        points: whether it adds ``layer->points`` of multipoint weights; it then executes no other layer.
        bound: the accumulators' bound, in words: which type sums what, and why it cannot overflow.
        layout: how codes become bytes.
        scratch_bytes: ``(shape, weight_bits, input_bits)`` → bytes of scratch.
        executes: further condition on the shape (stride, channels, K …).
    """

    name: str
    family: Family
    source: str
    classes: tuple[LayerClass, ...]
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    offset: int | None
    bound: str
    layout: Layout
    scratch_bytes: Callable[[LayerShape, int, int], int]
    codebook: bool = False
    points: bool = False
    executes: Callable[[LayerShape], bool] = lambda shape: True
