"""A bitwidth that follows from what a quantizer learned: what DQ's quantizers of weights and activations share.

While `inferring`, a quantizer uses its learned range and ignores the choice; its `probabilities` interpolate the paid
bitwidth between neighbouring candidates, so every cost table can be contracted with them. `settle` moves on
to fixed precisions: the quantizer keeps the learned q_max at every candidate, whose levels then divide it evenly.
float32 is no result of inferring.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ddq_search.precision import FLOAT_BITS
from ddq_search.quantizers.contract import Quantizer
from ddq_search.quantizers.dq_gradients import instead_of
from ddq_search.quantizers.dq_range import LearnedRange, StepAndLargest


class InferringQuantizer(Quantizer):
    """Learns one range for the whole tensor, and a step for every candidate.

    Attributes:
        inferring: see `Quantizer`; without effect where there are not two integer candidates.
        range: what is learned while inferring.
        power_of_two_steps: round the step to a power of two in the forward pass; without effect on powers of two.
        clips_gradients: see `ddq_search.quantizers.dq_range`.
    """

    power_of_two_steps: bool = False
    clips_gradients: bool = True

    range_class: type[LearnedRange] = StepAndLargest
    range: LearnedRange

    def new_range(self, *, signed: bool) -> LearnedRange:
        """Returns a range of the class that the family names."""
        integers = self._integers()
        found = self.range_class(signed, (integers[0], integers[-1]) if integers else (2, 8))
        found.power_of_two, found.clips_gradients = self.power_of_two_steps, self.clips_gradients
        return found

    @property
    def infers(self) -> bool:
        """Whether the bitwidth is inferred now."""
        return self.inferring and len(self._integers()) > 1

    def place_inferred(self, x: Tensor) -> Tensor:
        """Returns ``x`` on the levels that are learned."""
        self.range.keep_within()
        return self.range.place(x)

    def fixed_choice(self, choice: int | None) -> int:
        """Returns the candidate to compute at: while inferring, the only integer one, if there is one.

        Raises:
            ValueError: none is given nor implied.
        """
        integers = self._integers()
        if self.inferring and len(integers) == 1:
            return self.candidates.index(integers[0])
        if choice is None and len(self.candidates) > 1:
            raise ValueError(f"choose among {list(self.candidates)} bits, or set inferring")
        return choice or 0

    def probabilities(self) -> Tensor | None:
        """Returns ``[K]`` float64 of the inferred bitwidth, in main memory; None while the precision is fixed."""
        if not self.inferring:
            return None
        integers = self._integers()
        found = torch.zeros(len(self.candidates), dtype=torch.float64)
        if not self.infers:
            found[self.fixed_choice(0)] = 1
            return found
        self.range.keep_within()
        bits = self.range.bits().cpu().double()
        bits = instead_of(bits, bits.clamp(integers[0], integers[-1]))
        upper = next(k for k in range(1, len(integers)) if bits.item() <= integers[k])
        low, high = integers[upper - 1], integers[upper]
        share = (bits - low) / (high - low)
        at_low, at_high = found.clone(), found.clone()
        at_low[self.candidates.index(low)] = 1
        at_high[self.candidates.index(high)] = 1
        return at_low * (1 - share) + at_high * share

    def inferred_bits(self) -> int:
        """Returns the bitwidth that the learned levels take, counted in whole levels.

        Raises:
            ValueError: there are not two integer candidates to infer from.
        """
        if len(self._integers()) < 2:
            raise ValueError(f"nothing is inferred among {list(self.candidates)} bits")
        self.range.keep_within()
        return self.range.inferred_bits()

    @torch.no_grad()
    def settle(self, scores: Tensor | None = None) -> None:
        """Ends inferring: every candidate's largest level becomes the learned one, whatever its step then is.

        Args:
            scores: not used; the learned range says it all.
        """
        if self.infers:
            self.range.keep_within()
            self.fix_largest(self.range.largest_level())
        self.inferring = False

    @abstractmethod
    def fix_largest(self, largest: Tensor) -> None:
        """Sets the learned step of every candidate from the largest level."""

    def refuse_inferring(self) -> None:
        """Checks that the precision is fixed.

        Raises:
            ValueError: it is not.
        """
        if self.infers:
            raise ValueError("codes and levels belong to a fixed precision; call settle() first")

    def _integers(self) -> list[int]:
        return [bits for bits in self.candidates if bits != FLOAT_BITS]


def gated(place: Callable[[int], Tensor], choice: int, cumulative: Tensor | None) -> Tensor:
    """Returns ``place(choice)``; gates receive ``∂L/∂c_k = <g, place(k) − place(k − 1)>``.

    Args:
        place: candidate → the tensor on its levels.
        choice: the candidate.
        cumulative: ``[K − 1]``, or None.
    """
    out = place(choice)
    if cumulative is not None:
        with torch.no_grad():
            steps = [high - low for low, high in pairwise(place(k) for k in range(len(cumulative) + 1))]
        for c, step in zip(cumulative.unbind(), steps, strict=True):
            out = out + (c - c.detach()) * step
    return out
