"""Forms of the NEON kernels with dot product for `fit.py`."""

from __future__ import annotations

from neon_forms import COUNTS, FURTHER, MORE_COUNTS, TERMS, depthwise, linear, product

__all__ = ["COUNTS", "FORMS", "FURTHER", "MORE_COUNTS", "TERMS"]

FORMS = (
    product(dict.fromkeys((8, 4, 2), "ddq_neon_dot_product"), (8, 4, 2), 4),
    depthwise("ddq_neon_dot_depthwise"),
    linear("ddq_neon_dot_linear"),
)
