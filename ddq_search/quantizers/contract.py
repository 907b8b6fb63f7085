"""The contract of a quantizer: one tensor, several candidate precisions.

Everything the search, the export and the reports need of a tensor's quantizer is here. A *family*
(`ddq_search.quantizers.registry`) provides one class for weights and one for activations; the supernet knows no other
words than these.

Legend: K candidates; a weight is ``[rows, ...]``, rows being output channels; an activation is ``[N, ...]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddq_search.discrete import Point
from ddq_search.distributed import current
from ddq_search.precision import FLOAT_BITS, ActivationGrid


@dataclass(frozen=True, eq=False)
class WeightNumbers:
    """What deployment gets of a weight tensor: ``real weight = integer weight * scale``, per output channel.

    Attributes:
        codes: int32, shape of the weights.
        scale: ``[rows]`` float64, > 0.
        codebook: see `ddq_search.discrete.LayerNumbers`.
        points: see `ddq_search.discrete.LayerNumbers`.
    """

    codes: NDArray[np.int32]
    scale: NDArray[np.float64]
    codebook: NDArray[np.int8] | None = None
    points: tuple[Point, ...] = ()


class Quantizer(nn.Module, ABC):
    """A tensor's quantizer over its candidate precisions.

    Attributes:
        candidates: bitwidths, ascending; 32 leaves the tensor in float32.
        gradient_share: share of the batch on which an activation's step and gate gradients may be estimated.
        correction: weight λ of DDQ's gradient correction ``λ (x_q − x)``, for levels and gates only; families that
            have none ignore it.
        inferring: the bitwidth follows the quantizer's own parameters instead of a choice, in families that imply one.
        overwrites_input: nothing else reads the tensor, so it may be quantized where it lies.
        overwrites_gradient: nothing else reads the gradient of the result.
    """

    gradient_share: float = 1.0
    correction: float = 0.0
    inferring: bool = False
    overwrites_input: bool = False
    overwrites_gradient: bool = False

    def __init__(self, candidates: tuple[int, ...]) -> None:
        super().__init__()
        self.candidates = candidates

    @abstractmethod
    def calibrate(self, sample: Tensor) -> None:
        """Sets the quantizer from a sample of the tensor's values: the weight itself, or activations flattened."""

    @abstractmethod
    def fake_quantize(self, x: Tensor, choice: int, cumulative: Tensor | None = None) -> Tensor:
        """Returns ``x`` on the levels of one candidate, differentiable.

        Args:
            x: the tensor.
            choice: index of the candidate.
            cumulative: ``[K − 1]`` probabilities ``c_k`` that the candidate is at least 1, 2, …. They receive
                ``∂L/∂c_k = <g, x_q(k) − x_q(k−1)>``, g being the gradient of what is returned. None: fixed choice.
        """

    @abstractmethod
    def quantize(self, x: Tensor, choice: int) -> Tensor:
        """Returns the codes of ``x`` at one candidate, int32, same shape.

        Raises:
            ValueError: the candidate is float32.
        """

    @abstractmethod
    def levels(self, x: Tensor, choice: int) -> Tensor:
        """Returns the real value of every code, ascending by code: ``[rows, n]`` for weights, ``[n]`` otherwise.

        Args:
            x: the tensor, on which the levels of some families depend.
            choice: index of the candidate.
        """

    @abstractmethod
    def take(self, other: Any) -> None:
        """Takes over what another quantizer of this class learned for these candidates, all of which it has."""

    @property
    def columns(self) -> tuple[int, ...]:
        """Candidate index of every column that `mix` weighs; more than one strategy may stand for a candidate."""
        return tuple(range(len(self.candidates)))

    def probabilities(self) -> Tensor | None:
        """Returns ``[K]`` float64 where the quantizer's own parameters imply a bitwidth; None where gates choose."""
        return None

    def settle(self, scores: Tensor | None = None) -> None:
        """Ends a search in which the quantizer followed parameters of its own; nothing to do where it has none."""
        self.inferring = False

    @property
    def own_correction(self) -> float:
        """``correction`` as this process applies it, whose gradients are added to those of the others.

        Samples that all processes compute count as much as their loss, samples of one process count in full.
        """
        part = current()
        return self.correction if part is None or part.parts > 1 else self.correction * part.weight

    def limit_gradients(self) -> None:
        """Called before each optimizer step, when gradients are whole: over all batches of the step and all processes.

        Families that bound theirs do it here, in place.
        """

    def mix(self, x: Tensor, shares: Tensor) -> Tensor:
        """Returns the mixture of all `columns`, ``Σ_k shares[k] x_q(k)``, differentiable in everything."""
        total = torch.zeros_like(x)
        for choice, share in enumerate(shares.to(x.dtype).unbind()):
            own = x.clone() if self.overwrites_input else x  # every candidate reads it
            total = total + share * self.fake_quantize(own, choice)
        return total

    def _bits(self, choice: int) -> int:
        bits = self.candidates[choice]
        if bits == FLOAT_BITS:
            raise ValueError("a float32 tensor has no codes and no grid")
        return bits


class WeightQuantizer(Quantizer):
    """A quantizer of weights. Classes are called with ``(candidates, rows)``."""

    @property
    def own_correction(self) -> float:
        """As the base class says; every process has the weights."""
        part = current()
        return self.correction if part is None else self.correction * part.weight

    @abstractmethod
    def numbers(self, weight: Tensor, choice: int) -> WeightNumbers:
        """Returns the codes and scales that are deployed; their product is what `fake_quantize` returns."""


class ActivationQuantizer(Quantizer):
    """A quantizer of an activation tensor. Classes are called with ``(candidates, nonnegative)``.

    Attributes:
        nonnegative: no value is below 0 and code 0 is 0: the quantizer may stand for the ReLU before it.
    """

    nonnegative: bool

    @abstractmethod
    def grid(self, choice: int) -> ActivationGrid:
        """Returns the affine grid that is deployed.

        Raises:
            ValueError: the candidate is float32.
            PolicyError: the levels are not uniform, so there is no such grid.
        """

    @abstractmethod
    def set_grid(self, scale: float, zero_point: int) -> None:
        """Fixes one known grid for every candidate (an input tensor whose codes are given)."""
