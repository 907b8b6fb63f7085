"""What DQ learns of a tensor's quantizer while it infers the bitwidth: two of bitwidth, smallest and largest level.

Levels, steps and ranges are learned on a log scale, so they stay positive (ours). The paper's gradients of raw values
are kept: where it clips the gradient of a value v to ± bound and steps ``v ← v − η g``, here ``log v`` receives
``g/v``, which is the same step of SGD to first order in η and bounded by ``bound/v``; searches train with Adam (ours).
The bound is the step d (q_min for powers of two) and the gradient is the whole one of an optimizer step, task and
constraints together, as in the official code, which clips for U3 and P3 only.

Values are rounded straight-through before they are used: U3's q_max to a whole number of steps, a learned bitwidth to
a whole one, a step to a power of two where that is asked for, the ends of powers of two always. What is paid for is
what is used, as in the official code: the bitwidth of the levels that there are is the paid one, rounded up. Learned
values are moved back where the bitwidth would leave the candidates.

Source: Uhlich et al., "Mixed Precision DNNs: All you need is a good parametrization", ICLR 2020 (arXiv 1905.11452).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ddq_search.quantizers.dq_gradients import instead_of, to_power_of_two, top_level, u3

START_BITS = 4
"""Bitwidth that the first step is made for."""

SMALLEST = 1e-8
"""Largest magnitude of a tensor of zeros."""


def bits_of_levels(top: int, signed: bool) -> int:
    """Returns the bitwidth of codes ``−top … top``, or ``0 … top`` unsigned.

    >>> [bits_of_levels(top, True) for top in (1, 3, 4, 7, 8, 15, 16)]
    [2, 3, 4, 4, 5, 5, 6]
    >>> [bits_of_levels(top, False) for top in (1, 3, 4, 7, 8, 15, 16)]
    [1, 2, 3, 3, 4, 4, 5]
    """
    return int(top).bit_length() + signed


class LearnedRange(nn.Module, ABC):
    """Two learned numbers of one tensor.

    Args:
        signed: whether values below 0 have levels.
        limits: smallest and largest bitwidth.

    Attributes:
        power_of_two: round the step to a power of two in the forward pass.
        clips_gradients: see the module docstring; without, logarithms receive the plain gradient ``v ∂L/∂v``.
    """

    power_of_two: bool = False
    clips_gradients: bool = True

    def __init__(self, signed: bool, limits: tuple[int, int]) -> None:
        super().__init__()
        self.signed, self.limits = signed, limits

    @abstractmethod
    def limit_gradients(self) -> None:
        """Clips the gradients that an optimizer is about to use."""

    @abstractmethod
    def start(self, largest: Tensor) -> None:
        """Sets the range from the largest magnitude of the tensor, a scalar."""

    @abstractmethod
    def place(self, x: Tensor) -> Tensor:
        """Returns ``x`` on its levels, differentiable in what is learned."""

    @abstractmethod
    def bits(self) -> Tensor:
        """Returns the bitwidth that is paid for, a scalar, differentiable: rounded up, it is `inferred_bits`."""

    @abstractmethod
    def inferred_bits(self) -> int:
        """Returns the bitwidth of the levels that there are."""

    @abstractmethod
    def largest_level(self) -> Tensor:
        """Returns the largest level, without gradient."""

    @abstractmethod
    def keep_within(self) -> None:
        """Moves what is learned back to where the bitwidth is within the limits."""

    @torch.no_grad()
    def limit_gradient(self, logarithm: nn.Parameter, bound: Tensor) -> None:
        """Gives a learned ``log value`` the gradient that follows from one of ``value`` clipped to ± ``bound``."""
        if self.clips_gradients and logarithm.grad is not None:
            value = logarithm.exp()
            logarithm.grad.copy_((logarithm.grad / value).clamp(-bound, bound) / value)


class UniformRange(LearnedRange):
    """Uniform levels: what U1, U2 and U3 share. They say what step and range are, and that is all."""

    @abstractmethod
    def step_and_largest(self) -> tuple[Tensor, Tensor]:
        """Returns d and q_max as they are learned, differentiable, neither rounded nor snapped."""

    def start(self, largest: Tensor) -> None:
        """The paper's ``d = 2^⌊log₂(max|x| / top level)⌋`` at four bits; q_max as far as these reach."""
        top = top_level(torch.tensor(float(START_BITS)), self.signed)
        step = torch.exp2((largest.clamp_min(SMALLEST) / top).log2().floor())
        self.set_start(step, step * top)
        self.keep_within()

    @abstractmethod
    def set_start(self, step: Tensor, largest: Tensor) -> None:
        """Takes over d and q_max at four bits."""

    def place(self, x: Tensor) -> Tensor:
        """Rounds to whole steps, up to a whole number of them."""
        step, largest, top = self._whole()
        return u3(x, step, instead_of(largest, step * top), self.signed)

    def top(self) -> int:
        """Returns the largest code's magnitude."""
        return self._whole()[2]

    def bits(self) -> Tensor:
        """``log₂(q_max/d + 1)`` of whole steps, and a sign bit."""
        step, largest, top = self._whole()
        return (instead_of(largest / step, torch.full_like(step, top)) + 1).log2() + self.signed

    def inferred_bits(self) -> int:
        """From the integer number of levels."""
        return bits_of_levels(self.top(), self.signed)

    @torch.no_grad()
    def largest_level(self) -> Tensor:
        """A whole number of steps."""
        step, _, top = self._whole()
        return step * top

    def _whole(self) -> tuple[Tensor, Tensor, int]:
        """Returns the step, the learned q_max, and how many whole steps stand for it."""
        step, largest = self.step_and_largest()
        step = to_power_of_two(step) if self.power_of_two else step
        return step, largest, self.whole_steps(step, largest)

    def whole_steps(self, step: Tensor, largest: Tensor) -> int:
        """Returns the number of steps, within the limits, that is nearest to ``largest``."""
        low, high = (2 ** (bits - self.signed) - 1 for bits in self.limits)
        return int(min(max(round((largest / step).item()), low), high))


class StepAndLargest(UniformRange):
    """U3: the step and the largest level."""

    def __init__(self, signed: bool, limits: tuple[int, int]) -> None:
        super().__init__(signed, limits)
        self.log_step = nn.Parameter(torch.zeros(()))
        self.log_largest = nn.Parameter(torch.zeros(()))

    def limit_gradients(self) -> None:
        """Both are bounded by the step."""
        step = self.log_step.detach().exp()
        self.limit_gradient(self.log_step, step)
        self.limit_gradient(self.log_largest, step)

    def step_and_largest(self) -> tuple[Tensor, Tensor]:
        """As they are."""
        return self.log_step.exp(), self.log_largest.exp()

    @torch.no_grad()
    def set_start(self, step: Tensor, largest: Tensor) -> None:
        """As it says."""
        self.log_step.copy_(step.log())
        self.log_largest.copy_(largest.log())

    @torch.no_grad()
    def keep_within(self) -> None:
        """Moves both by half of what their ratio is off, on the log scale."""
        low, high = (math.log(2 ** (bits - self.signed) - 1) for bits in self.limits)
        keep_ratio(self.log_step, self.log_largest, low, high)


class LearnedBits(LearnedRange):
    """The bitwidth, rounded straight-through, and one more: what U1, U2, P1 and P2 share."""

    def __init__(self, signed: bool, limits: tuple[int, int]) -> None:
        super().__init__(signed, limits)
        self.learned_bits = nn.Parameter(torch.tensor(float(START_BITS)))
        self.log_other = nn.Parameter(torch.zeros(()))

    def limit_gradients(self) -> None:
        """Nothing is clipped."""

    def bits(self) -> Tensor:
        """As it is learned, rounded."""
        return instead_of(self.learned_bits, self.learned_bits.round())

    def whole_top(self) -> Tensor:
        """Returns the top level of the rounded bitwidth, differentiable in the learned one."""
        return top_level(self.bits(), self.signed)

    @torch.no_grad()
    def keep_within(self) -> None:
        """Clamps the bitwidth."""
        self.learned_bits.clamp_(*self.limits)


class BitsAndOther(LearnedBits, UniformRange):
    """What U1 and U2 share."""

    def whole_steps(self, step: Tensor, largest: Tensor) -> int:
        """As many as the bitwidth has, also where the step is rounded to a power of two."""
        return round(self.whole_top().item())


class BitsAndStep(BitsAndOther):
    """U1: `log_other` is the logarithm of the step."""

    def step_and_largest(self) -> tuple[Tensor, Tensor]:
        """The range grows with the bitwidth; it follows the step, rounded or not."""
        step = self.log_other.exp()
        used = to_power_of_two(step) if self.power_of_two else step
        return step, self.whole_top() * used

    @torch.no_grad()
    def set_start(self, step: Tensor, largest: Tensor) -> None:
        """As it says."""
        self.learned_bits.fill_(START_BITS)
        self.log_other.copy_(step.log())


class BitsAndLargest(BitsAndOther):
    """U2: `log_other` is the logarithm of the largest level."""

    def step_and_largest(self) -> tuple[Tensor, Tensor]:
        """The step shrinks with the bitwidth."""
        largest = self.log_other.exp()
        return largest / self.whole_top(), largest

    @torch.no_grad()
    def set_start(self, step: Tensor, largest: Tensor) -> None:
        """As it says."""
        self.learned_bits.fill_(START_BITS)
        self.log_other.copy_(largest.log())


def keep_ratio(log_small: Tensor, log_large: Tensor, low: float, high: float) -> None:
    """Moves two logarithms in place, both as far, until their difference is within ``low … high``."""
    ratio = (log_large - log_small).item()
    change = min(max(ratio, low), high) - ratio
    if change:
        log_large.add_(change / 2)
        log_small.sub_(change / 2)
