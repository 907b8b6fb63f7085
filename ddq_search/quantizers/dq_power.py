"""DQ's power-of-two weights: ``± q_min, ± 2 q_min, … ± q_max``, without a zero, as int8 codebooks.

While inferring, two of bitwidth, smallest and largest level are learned (P1, P2, P3); at a fixed precision the largest
of every candidate is, gradients as in P2 at constant b. int8 holds seven octaves: from four bits on, the levels stay
the same (ours). The paper's four bits have eight: the gradient of b keeps their factor, at the ends that there are.

Source: Uhlich et al., "Mixed Precision DNNs: All you need is a good parametrization", ICLR 2020 (arXiv 1905.11452).
"""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor, nn

from ddq_search.precision import FLOAT_BITS
from ddq_search.quantizers.contract import WeightNumbers, WeightQuantizer
from ddq_search.quantizers.dq_gradients import instead_of, p3, to_power_of_two
from ddq_search.quantizers.dq_inference import InferringQuantizer, gated
from ddq_search.quantizers.dq_range import SMALLEST, START_BITS, LearnedBits, LearnedRange, keep_ratio

MOST_OCTAVES = 7
"""Powers of two ``2^0 … 2^6`` are what int8 holds."""

_CALIBRATION_VALUES = 65536


def bits_of_octaves(octaves: int) -> int:
    """Returns the bitwidth of ``± q_min, ± 2 q_min, …``: of a sign and the index of one of ``octaves`` magnitudes.

    >>> [bits_of_octaves(octaves) for octaves in (1, 2, 3, 4, 5, 8, 9)]
    [1, 2, 3, 3, 4, 4, 5]
    """
    return (octaves - 1).bit_length() + 1


def octaves_of(bits: int) -> int:
    """Returns how many magnitudes codes of ``bits`` tell apart, as far as int8 has them."""
    return min(int(2 ** (bits - 1)), MOST_OCTAVES)


class PowerRange(LearnedRange):
    """Powers of two, whatever `power_of_two` says: what P1, P2 and P3 share. They say where they begin and end.

    Bits beyond those of `MOST_OCTAVES` are no use and not learned.
    """

    def __init__(self, signed: bool, limits: tuple[int, int]) -> None:
        most = bits_of_octaves(MOST_OCTAVES)
        super().__init__(signed, (min(limits[0], most), min(limits[1], most)))

    @abstractmethod
    def smallest_and_largest(self) -> tuple[Tensor, Tensor]:
        """Returns q_min and q_max, powers of two, differentiable in what is learned."""

    @abstractmethod
    def octaves(self) -> int:
        """Returns the number of magnitudes."""

    @torch.no_grad()
    def start(self, largest: Tensor) -> None:
        """The power of two below the largest magnitude, and as many octaves as four bits have (ours)."""
        self.set_start(torch.exp2(largest.clamp_min(SMALLEST).log2().floor()))
        self.keep_within()

    @abstractmethod
    def set_start(self, largest: Tensor) -> None:
        """Takes over q_max at four bits, a power of two."""

    def place(self, x: Tensor) -> Tensor:
        """Rounds logarithms between the ends."""
        return p3(x, *self.smallest_and_largest())

    def inferred_bits(self) -> int:
        """From the integer number of magnitudes."""
        return bits_of_octaves(self.octaves())

    @torch.no_grad()
    def largest_level(self) -> Tensor:
        """A power of two."""
        return self.smallest_and_largest()[1]


class SmallestAndLargest(PowerRange):
    """P3: smallest and largest level."""

    def __init__(self, signed: bool, limits: tuple[int, int]) -> None:
        super().__init__(signed, limits)
        self.log_smallest = nn.Parameter(torch.zeros(()))
        self.log_largest = nn.Parameter(torch.zeros(()))

    def limit_gradients(self) -> None:
        """Both are bounded by the smallest level."""
        smallest = self.log_smallest.detach().exp()
        self.limit_gradient(self.log_smallest, smallest)
        self.limit_gradient(self.log_largest, smallest)

    @torch.no_grad()
    def set_start(self, largest: Tensor) -> None:
        """As it says."""
        self.log_largest.copy_(largest.log())
        self.log_smallest.copy_(self.log_largest - (octaves_of(START_BITS) - 1) * math.log(2))

    def smallest_and_largest(self) -> tuple[Tensor, Tensor]:
        """The largest level is rounded, the smallest is whole octaves below."""
        largest = to_power_of_two(self.log_largest.exp())
        return instead_of(self.log_smallest.exp(), largest.detach() * 2.0 ** (1 - self.octaves())), largest

    @torch.no_grad()
    def octaves(self) -> int:
        """From the ends, each rounded."""
        exponents = (torch.stack([self.log_smallest, self.log_largest]) / math.log(2)).round().tolist()
        low, high = (octaves_of(bits) for bits in self.limits)
        return min(max(int(exponents[1] - exponents[0]) + 1, low), high)

    def bits(self) -> Tensor:
        """``log₂(log₂(q_max/q_min) + 1) + 1`` of whole octaves."""
        smallest, largest = self.smallest_and_largest()
        return ((largest / smallest).log2() + 1).log2() + 1

    @torch.no_grad()
    def keep_within(self) -> None:
        """Moves both by half of what their ratio is off, on the log scale."""
        low, high = ((octaves_of(bits) - 1) * math.log(2) for bits in self.limits)
        keep_ratio(self.log_smallest, self.log_largest, low, high)


class BitsAndEnd(LearnedBits, PowerRange):
    """What P1 and P2 share: the bitwidth, and one end, `log_other`."""

    def octaves(self) -> int:
        """As many as the rounded bitwidth has and int8 holds."""
        return round(self.whole_top().item()) + 1

    def whole_top(self) -> Tensor:
        """Returns ``log₂(q_max/q_min)`` of the rounded bitwidth, differentiable; int8's limit is straight-through."""
        top = super().whole_top()
        return instead_of(top, top.clamp_max(MOST_OCTAVES - 1))

    def end(self) -> Tensor:
        """Returns the learned end, a power of two, differentiable."""
        return to_power_of_two(self.log_other.exp())


class BitsAndSmallestPower(BitsAndEnd):
    """P1: `log_other` is the logarithm of the smallest level."""

    def smallest_and_largest(self) -> tuple[Tensor, Tensor]:
        """The largest level grows with the bitwidth."""
        smallest = self.end()
        return smallest, smallest * torch.exp2(self.whole_top())

    @torch.no_grad()
    def set_start(self, largest: Tensor) -> None:
        """As many octaves lower as the bitwidth has within its limits."""
        self.learned_bits.fill_(START_BITS)
        self.keep_within()
        self.log_other.copy_((largest * torch.exp2(-self.whole_top())).log())


class BitsAndLargestPower(BitsAndEnd):
    """P2: `log_other` is the logarithm of the largest level."""

    def smallest_and_largest(self) -> tuple[Tensor, Tensor]:
        """The smallest level shrinks with the bitwidth."""
        largest = self.end()
        return largest * torch.exp2(-self.whole_top()), largest

    @torch.no_grad()
    def set_start(self, largest: Tensor) -> None:
        """As it says."""
        self.learned_bits.fill_(START_BITS)
        self.log_other.copy_(largest.log())


class DqP3Weights(InferringQuantizer, WeightQuantizer):
    """One pair of ends for all output channels.

    Attributes:
        log_largests: learned, ``[K]``: largest levels at fixed precisions; powers of two in the forward pass.
    """

    range_class: type[LearnedRange] = SmallestAndLargest

    def __init__(self, candidates: tuple[int, ...], rows: int) -> None:
        super().__init__(candidates)
        self.rows = rows
        self.log_largests = nn.Parameter(torch.zeros(len(candidates)))
        self.range = self.new_range(signed=True)

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """Sets every largest level to the power of two of least squared error, and the range to its start."""
        flat = weight.detach().flatten()
        sample = flat[:: -(-flat.numel() // _CALIBRATION_VALUES)]
        largest = flat.abs().max().clamp_min(SMALLEST)
        tops = torch.exp2(largest.log2().ceil() - torch.arange(8.0, device=flat.device))
        for k, bits in enumerate(self.candidates):
            if bits != FLOAT_BITS:
                errors = [(self._powers(sample, top, bits) - sample).square().mean() for top in tops.unbind()]
                self.log_largests[k] = tops[torch.stack(errors).argmin()].log()
        self.range.start(largest)

    def fake_quantize(self, x: Tensor, choice: int | None = None, cumulative: Tensor | None = None) -> Tensor:
        """As the contract says; while inferring, on the learned levels, whatever the choice."""
        if self.infers:
            return self.place_inferred(x)
        return gated(lambda k: self._place(x, k), self.fixed_choice(choice), cumulative)

    @torch.no_grad()
    def quantize(self, x: Tensor, choice: int) -> Tensor:
        """As the contract says: codes ascend with the levels; those without a level of their own are not used."""
        octaves = octaves_of(self._bits(choice))
        place = (x.abs().log2() + 0.5).floor() - self._smallest(choice).log2()
        place = place.clamp(0, octaves - 1).int()
        return torch.where(x < 0, octaves - 1 - place, octaves + place)

    @torch.no_grad()
    def levels(self, x: Tensor, choice: int) -> Tensor:
        """As the contract says; codes without a level of their own repeat the largest."""
        return (self._smallest(choice) * self._table(choice)).expand(self.rows, -1)

    @torch.no_grad()
    def numbers(self, weight: Tensor, choice: int) -> WeightNumbers:
        """As the contract says: codes into an int8 codebook."""
        scale = np.full(self.rows, self._smallest(choice).item())
        codebook = self._table(choice).cpu().numpy().astype(np.int8)
        return WeightNumbers(self.quantize(weight, choice).cpu().numpy(), scale, codebook)

    @torch.no_grad()
    def fix_largest(self, largest: Tensor) -> None:
        """As `InferringQuantizer` says."""
        self.log_largests.fill_(largest.log())

    @torch.no_grad()
    def take(self, other: DqP3Weights) -> None:
        """As the contract says."""
        self.log_largests.copy_(other.log_largests[[other.candidates.index(bits) for bits in self.candidates]])
        self.range.load_state_dict(other.range.state_dict())

    def limit_gradients(self) -> None:
        """Clips those of fixed largest levels to the smallest ones, and those of the range."""
        self.range.limit_gradients()
        largests = self.log_largests.detach().exp()
        octaves = [1 if bits == FLOAT_BITS else octaves_of(bits) for bits in self.candidates]
        self.range.limit_gradient(self.log_largests, largests * torch.exp2(1.0 - largests.new_tensor(octaves)))

    # -- inside ------------------------------------------------------------------------------------------------

    def _bits(self, choice: int) -> int:
        self.refuse_inferring()
        return super()._bits(choice)

    def _place(self, x: Tensor, choice: int) -> Tensor:
        bits = self.candidates[choice]
        return x if bits == FLOAT_BITS else self._powers(x, to_power_of_two(self.log_largests[choice].exp()), bits)

    @staticmethod
    def _powers(x: Tensor, largest: Tensor, bits: int) -> Tensor:
        return p3(x, largest * 2.0 ** (1 - octaves_of(bits)), largest)

    def _smallest(self, choice: int) -> Tensor:
        largest = to_power_of_two(self.log_largests[choice].exp())
        return largest * 2.0 ** (1 - octaves_of(self._bits(choice)))

    def _table(self, choice: int) -> Tensor:
        bits = self._bits(choice)
        positive = torch.exp2(torch.arange(float(octaves_of(bits)), device=self.log_largests.device))
        levels = torch.cat([-positive.flip(0), positive])
        return torch.cat([levels, levels[-1:].expand(2**bits - levels.numel())])


class DqP1Weights(DqP3Weights):
    """Learns bitwidth and smallest level."""

    range_class = BitsAndSmallestPower


class DqP2Weights(DqP3Weights):
    """Learns bitwidth and largest level."""

    range_class = BitsAndLargestPower
