"""What counts need to know of a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ddq_search.layer_shape import LayerShape


class Tiles(Protocol):
    """What the terms need to know of a kernel."""

    @property
    def weight_bits(self) -> int:
        """Storage width of the weights it reads."""

    @property
    def activation_bits(self) -> int:
        """Storage width of the activations it reads."""

    @property
    def tile_pixels(self) -> int:
        """Output positions per tile."""

    @property
    def tile_channels(self) -> int:
        """Output channels per tile."""

    @property
    def k_multiple(self) -> int:
        """K per step of the inner loop."""

    @property
    def block(self) -> int | None:
        """K after which narrow accumulators are widened."""


Term = Callable[[LayerShape, Tiles], float]
"""A count: (layer, kernel) → how often."""
