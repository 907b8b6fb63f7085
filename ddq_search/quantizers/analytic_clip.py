"""Where to clip a Laplace or Gauss variable for the least squared error: ACIQ's analytic clipping.

A variable clipped at ±α and rounded to N steps of ``2α/N`` has, per unit of squared scale, the expected squared error

    Laplace(b = 1):  α²/(3N²) + 2 e^(−α)
    Gauss(σ = 1):    α²/(3N²) + 2 [(1 + α²) Q(α) − α φ(α)]

(rounding noise of a twelfth of the squared step, and the tails beyond α; φ is the standard normal density, Q its upper
tail). The derivatives vanish where ``α e^α = 3N²`` and where ``α/(3N²) = 2 [φ(α) − α Q(α)]``.

Source: Banner, Nahshan, Hoffer, Soudry, "Post training 4-bit quantization of convolutional networks for
rapid-deployment", NeurIPS 2019, with N = 2^M steps; N is the number of steps of our grids here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

LAPLACE_SHARE = math.sqrt(math.pi / (2 * math.e))
"""Mean magnitude over root mean square below which a Laplace fit is likelier than a Gauss fit (0.760; theirs: 0.707
and 0.798): the maximum log-likelihoods per value are ``−log(2b) − 1`` and ``−log(2πσ²)/2 − 1/2``."""


@cache
def laplace_clip(steps: int) -> float:
    """Returns the best α of a Laplace variable of mean magnitude 1 over ``steps`` steps.

    >>> [round(laplace_clip(2**bits), 3) for bits in (2, 3, 4)]  # the paper prints 2.83, 3.89, 5.03
    [2.831, 3.897, 5.029]
    """
    return _root(lambda alpha: alpha + math.log(alpha) - math.log(3.0 * steps**2), 64.0)


@cache
def gauss_clip(steps: int) -> float:
    """Returns the best α of a Gauss variable of variance 1 over ``steps`` steps.

    >>> [round(gauss_clip(2**bits), 3) for bits in (2, 3, 4)]  # the paper prints 1.71, 2.15, 2.55
    [1.711, 2.152, 2.559]
    """

    def slope(alpha: float) -> float:
        density = math.exp(-(alpha**2) / 2) / math.sqrt(2 * math.pi)
        tail = math.erfc(alpha / math.sqrt(2)) / 2
        return alpha / (3.0 * steps**2) - 2 * (density - alpha * tail)

    return _root(slope, 16.0)


def best_clip(deviations: Tensor, steps: int) -> Tensor:
    """Returns, per row, α of the likelier fit to deviations from the centre.

    Args:
        deviations: ``[R, E]``, of either sign; one half of a symmetric variable serves as well.
        steps: number of steps between −α and α.

    Returns:
        ``[R]``.
    """
    magnitude = deviations.abs().mean(1)
    spread = deviations.square().mean(1).sqrt()
    laplace = magnitude < LAPLACE_SHARE * spread
    return torch.where(laplace, laplace_clip(steps) * magnitude, gauss_clip(steps) * spread)


def _root(slope: Callable[[float], float], high: float) -> float:
    """Returns the zero of an increasing function on (0, high)."""
    low = 0.0
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return high
