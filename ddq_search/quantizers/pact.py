"""PACT: activations clipped at a learned α.

Values are clipped to [0, α] and rounded to ``2^b − 1`` steps; only the clipping is differentiated, ``∂x_q/∂α = 1`` from
α on. α is the largest level, so it is learned through the step: ``∂/∂ log α = ∂/∂ log s``.

Ours: α on a log scale, starting from our calibration of least squared error instead of a constant; two-sided tensors,
which the paper has none of, are clipped at α above and at one step less than −α below, zero point in the middle, both
ends moving with α. The paper's penalty on α² is left to the weight decay of whoever trains.

Source: Choi et al., "PACT: Parameterized Clipping Activation for Quantized Neural Networks", 2018 (arXiv 1805.06085).
"""

from __future__ import annotations

from torch import Tensor

from ddq_search.quantizers.lsq import LsqActivations
from ddq_search.quantizers.registry import Family
from ddq_search.quantizers.straight_through import Grid
from ddq_search.quantizers.uniform import least_squared_error


class PactActivations(LsqActivations):
    """Affine unsigned codes, zero point 0 or the middle, and a learned largest level."""

    rounding = False

    def first_step(self, flat: Tensor, grid: Grid) -> Tensor:
        """Returns the step of least squared error."""
        full = flat.abs().amax(0, keepdim=True).clamp_min(1e-8) / (grid.high - grid.zero_point)
        return least_squared_error(flat[None], full, grid)[0]

    def gradient_factor(self, x: Tensor, grid: Grid) -> float:
        """Returns 1: the paper scales nothing."""
        return 1.0


FAMILIES = (Family("pact", "Choi et al. (2018); learned clip of activations", activations=PactActivations),)
