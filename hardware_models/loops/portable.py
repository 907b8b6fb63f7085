"""What the loops of the portable kernels repeat: they gather one window of one group at a time."""

from __future__ import annotations

from collections.abc import Mapping

from hardware_models.tiling import Term

PORTABLE_TERMS: Mapping[str, Term] = {
    "taps": lambda shape, kernel: shape.pixels * shape.kernel[0] * shape.kernel[1] * shape.groups,
    "inside_taps": lambda shape, kernel: shape.inside_taps * shape.groups,
    "inside_codes": lambda shape, kernel: shape.inside_taps * shape.input_channels,
    "outside_codes": lambda shape, kernel: (
        (shape.pixels * shape.kernel[0] * shape.kernel[1] - shape.inside_taps) * shape.input_channels
    ),
}
"""Term → count of it: window positions of all groups, those of them inside the image, and the codes at positions inside
and outside."""
