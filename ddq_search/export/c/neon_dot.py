"""Our kernels for AArch64 with dot product: the layouts and the scratch of `neon`, other inner loops.

A depthwise layer has no dot product to gain from and runs on the same code as without.
"""

from __future__ import annotations

from dataclasses import replace

from ddq_search.export.c.kernels import Kernel
from ddq_search.export.c.neon import KERNELS as NEON_KERNELS
from ddq_search.export.c.neon import PRODUCTS, WIDE_PIXELS, WIDTHS, planar_rows, product_scratch

_BOUND = "int32 lanes of a dot product of four codes; the program holds the whole sum within int32"


def _like(name: str) -> Kernel:
    kernel = next(kernel for kernel in NEON_KERNELS if kernel.name == f"ddq_neon_{name}")
    return replace(kernel, name=f"ddq_neon_dot_{name}", family="neon_dot", source="ddq_neon_dot.c")


KERNELS: tuple[Kernel, ...] = (
    Kernel(
        "ddq_neon_dot_product", "neon_dot", "ddq_neon_dot.c", PRODUCTS, WIDTHS, WIDTHS, 128, _BOUND, planar_rows,
        product_scratch(WIDE_PIXELS),
    ),
    _like("depthwise"),
    replace(_like("linear"), bound=_BOUND),
)  # fmt: skip
