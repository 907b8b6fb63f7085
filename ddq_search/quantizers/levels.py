"""DDQ's level vectors: averaged uniform levels, learned levels, powers of two.

- ``averaged`` is the paper's merging of uniform levels: a candidate of s bits has ``2^s`` equal cells of one range, its
  levels in their middle (``… −½, +½ …``). No level is 0, except at the widest candidate of activations.
- ``learned`` has a level vector of ``2^b`` entries for the widest candidate and averages neighbours for the others.
  Levels are 8-bit integers times one scale, the paper's ``R(q̃)``; we round after averaging, so that the levels of a
  candidate do not depend on which wider ones there are. Weights' levels are mirrored about zero (ours): the sign of a
  batch normalisation goes into the weights and needs the mirrored level in the codebook.
- ``power-of-two`` has 0 and ``± scale · 2^−j`` at every candidate, each with its own scale. int8 holds seven octaves:
  from 4 bits on, the levels of weights stay the same.

The `uniform` family is the zero-preserving alternative, and the default.

Source: Zhang et al., "Differentiable Dynamic Quantization with Mixed Precision and Adaptive Resolution", ICML 2021;
what is reconstructed and what is ours: docs/methods-ddq.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddq_search.discrete import LARGEST_LEVEL
from ddq_search.precision import MAX_BITS
from ddq_search.quantizers.level_calibration import lloyd_levels
from ddq_search.quantizers.level_quantizer import LevelActivations, LevelQuantizer, LevelWeights
from ddq_search.quantizers.merging import merged, rounded
from ddq_search.quantizers.registry import Family

LARGEST_CODE = 2**MAX_BITS - 1
"""Range of the integers ``R(q̃)`` of activations."""
WEIGHT_OCTAVES, ACTIVATION_OCTAVES = 7, 24
"""Magnitudes ``2^0 … 2^6`` fit int8; below ``2^−24`` of the largest, float32 sums do not notice."""


class AveragedWeights(LevelWeights):
    """``2^s`` equal cells of ``± range``; `log_scales` is the logarithm of half the range."""

    def table(self, choice: int) -> Tensor:
        """Odd integers; at 8 bits, of which int8 has too few, 255 evenly spaced integers (0 twice)."""
        levels = self._cells(self._bits(choice))
        if levels[-1] > LARGEST_LEVEL:
            levels = (levels * (LARGEST_LEVEL / (LARGEST_CODE / 2)) / 2).round()
        return levels

    def unit(self, choice: int) -> float:
        """Half a cell, or the step between integers at 8 bits."""
        bits = self._bits(choice)
        half_cell = 2.0**-bits
        return half_cell if bits < MAX_BITS else 2 * half_cell * (LARGEST_CODE / 2) / LARGEST_LEVEL

    def fine_levels(self) -> Tensor:
        """Middles of the widest candidate's cells, in terms of half the range."""
        return self._cells(self.bits) * 2.0**-self.bits

    def _cells(self, bits: int) -> Tensor:
        return torch.arange(2**bits, device=self.log_scales.device).mul(2.0).sub(2**bits - 1)


class AveragedActivations(LevelActivations):
    """Fine levels ``step · (0 … 2^b − 1 − zero point)``, averaged; `log_scales` is the logarithm of the fine step."""

    origin: Tensor

    def __init__(self, candidates: tuple[int, ...], nonnegative: bool) -> None:
        super().__init__(candidates, nonnegative)
        self.register_buffer("origin", torch.tensor([self.bits, 0]))  # bits and zero point of the fine levels

    def own_table(self, choice: int) -> Tensor:
        """Means of integers, as they are."""
        return merged(self.fine_levels(), self._bits(choice))

    def fine_levels(self) -> Tensor:
        """Evenly spaced integers."""
        bits, zero_point = self.origin.tolist()
        return torch.arange(2.0**bits, device=self.origin.device).sub(zero_point)

    def fit_levels(self, sample: Tensor) -> None:
        """Places the zero point in proportion to the sample's range."""
        low, high = min(sample.min().item(), 0.0), max(sample.max().item(), 0.0)
        share = -low / (high - low) if high > low else 0.0
        self.origin.copy_(torch.tensor([self.bits, round(share * (2**self.bits - 1))]))

    @torch.no_grad()
    def take(self, other: LevelQuantizer) -> None:
        """As the contract says; the fine levels stay the other's."""
        super().take(other)
        assert isinstance(other, AveragedActivations)
        self.origin.copy_(other.origin)


class LearnedWeights(LevelWeights):
    """A learned level vector, mirrored about zero.

    Attributes:
        mirrored: learn the positive half only, as deployment under batch normalisation needs it; False: the paper's
            free vector.
        vector: learned; ``[2^b]`` levels (``[2^(b−1)]`` mirrored) as fractions of the largest integer, in any order.
    """

    mirrored: bool = True
    scale_gradient = "levels"  # a learned step's gradient would shrink the scale and let the vector grow against it

    def __init__(self, candidates: tuple[int, ...], rows: int) -> None:
        super().__init__(candidates, rows)
        count = 2**self.bits
        start = (2 * torch.arange(count) - (count - 1.0)) / (count - 1)
        self.vector = nn.Parameter(start[count // 2 :].clone() if self.mirrored else start)

    def table(self, choice: int) -> Tensor:
        """Averaged, then rounded to integers."""
        return rounded(merged(self.fine_levels(), self._bits(choice)), -LARGEST_LEVEL, LARGEST_LEVEL)

    def fine_levels(self) -> Tensor:
        """The level vector in order, in units of one integer, not rounded."""
        whole = torch.cat([-self.vector, self.vector]) if self.mirrored else self.vector
        return whole.sort().values * LARGEST_LEVEL

    def fit_levels(self, sample: Tensor) -> None:
        """Lloyd's levels of all channels together, the largest becoming the largest integer."""
        levels = lloyd_levels(sample.abs() if self.mirrored else sample, self.vector.numel())
        largest = levels.abs().max()
        if largest > 0:
            self.vector.copy_(levels / largest)

    @torch.no_grad()
    def take(self, other: LevelQuantizer) -> None:
        """As the contract says; levels wider than the own candidates arrive averaged."""
        super().take(other)
        assert isinstance(other, LearnedWeights)
        fine = merged(other.fine_levels(), self.bits) / LARGEST_LEVEL
        self.vector.copy_(fine[fine.numel() - self.vector.numel() :])


class LearnedActivations(LevelActivations):
    """A learned level vector ``(R(q̃) − zero point) · scale``, ``R(q̃)`` being 8-bit integers.

    Attributes:
        vector: learned; ``[2^b]`` levels as fractions of the range of integers, in any order; 0 is real 0.
        zero_point: calibrated; the integer that is real 0, 0 where the tensor is one-sided.
    """

    zero_point: Tensor
    vector: nn.Parameter
    scale_gradient = "levels"

    def __init__(self, candidates: tuple[int, ...], nonnegative: bool) -> None:
        super().__init__(candidates, nonnegative)
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))
        self.vector = nn.Parameter(torch.linspace(0, 1, 2**self.bits))

    def own_table(self, choice: int) -> Tensor:
        """Averaged, then rounded to integers."""
        zero_point = int(self.zero_point)
        return rounded(merged(self.fine_levels(), self._bits(choice)), -zero_point, LARGEST_CODE - zero_point)

    def fine_levels(self) -> Tensor:
        """The level vector in order, in units of one integer, not rounded."""
        levels: Tensor = self.vector.sort().values * LARGEST_CODE
        return levels

    def fit_levels(self, sample: Tensor) -> None:
        """Lloyd's levels; their range, zero included, becomes the range of integers."""
        levels = lloyd_levels(sample, self.vector.numel())
        low, high = min(levels[0].item(), 0.0), max(levels[-1].item(), 0.0)
        if high > low:
            self.vector.copy_(levels / (high - low))
            self.zero_point.fill_(round(-low / (high - low) * LARGEST_CODE))

    @torch.no_grad()
    def take(self, other: LevelQuantizer) -> None:
        """As the contract says; levels wider than the own candidates arrive averaged."""
        super().take(other)
        assert isinstance(other, LearnedActivations)
        self.zero_point.copy_(other.zero_point)
        self.vector.copy_(merged(other.fine_levels(), self.bits) / LARGEST_CODE)


class PowerOfTwoWeights(LevelWeights):
    """0 and ``± 64, 32, …``: as many octaves as the candidate has codes for, the largest kept."""

    shared_scale = False

    def table(self, choice: int) -> Tensor:
        """Integers; codes without a level of their own repeat the largest."""
        return _powers_of_two(self._bits(choice), WEIGHT_OCTAVES, 2.0 ** (WEIGHT_OCTAVES - 1), True, self.log_scales)


class PowerOfTwoActivations(LevelActivations):
    """0 and ``2^−j``, one-sided or ``±``: as many octaves as the candidate has codes for."""

    shared_scale = False

    def own_table(self, choice: int) -> Tensor:
        """Fractions of the largest level; codes without a level of their own repeat the largest."""
        return _powers_of_two(self._bits(choice), ACTIVATION_OCTAVES, 1.0, not self.nonnegative, self.log_scales)


def _powers_of_two(bits: int, octaves: int, largest: float, two_sided: bool, like: Tensor) -> Tensor:
    count = min(2 ** (bits - 1) - 1 if two_sided else 2**bits - 1, octaves)
    positive = largest * 2.0 ** torch.arange(1 - count, 1, device=like.device)
    zero = positive.new_zeros(1)
    levels = torch.cat([-positive.flip(0), zero, positive] if two_sided else [zero, positive])
    return torch.cat([levels, levels[-1:].expand(2**bits - levels.numel())])


_OPTIONS = ("window", "scale_gradient", "shared_scale", "gate_gradient", "nearest", "correction")
_PAPER = "DDQ (ICML 2021, reconstructed)"
FAMILIES = (
    Family(
        "averaged",
        f"{_PAPER}: uniform levels merged by averaging",
        AveragedWeights,
        AveragedActivations,
        codebook=True,
        uniform_activations=False,
        options=_OPTIONS,
    ),
    Family(
        "learned",
        f"{_PAPER}: a learned level vector of 8-bit integers, merged by averaging",
        LearnedWeights,
        LearnedActivations,
        codebook=True,
        uniform_activations=False,
        options=(*_OPTIONS, "mirrored"),
    ),
    Family(
        "power-of-two",
        f"{_PAPER}: signed powers of two and zero, one learned scale per candidate (ours)",
        PowerOfTwoWeights,
        PowerOfTwoActivations,
        codebook=True,
        uniform_activations=False,
        options=("window", "scale_gradient", "shared_scale", "correction"),
        exceptions={"error_falls_with_bits": "further octaves are ever closer to 0, and int8 holds no more than seven"},
    ),
)
