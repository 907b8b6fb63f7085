"""DoReFa: weights squashed by tanh before they are rounded; activations clipped at a fixed bound.

The paper's weights are ``2 · round((2^b − 1) w̃) / (2^b − 1) − 1`` with ``w̃ = tanh(w) / (2 max|tanh(w)|) + 1/2``, the
maximum taken over the tensor: 2^b levels from −1 to 1, none of them 0. Its activations are clipped to [0, 1].

Ours: the codes are ``round(Q t)``, ``t = tanh(w) / max|tanh(w)|``, from −Q to Q with ``Q = 2^(b−1) − 1``, which hold 0
and deploy; they are scaled by the factor of least squared error to the weights, one per tensor, because our networks
begin with trained float weights, while the paper's learn at scale 1. Gradient, the maximum and the factor taken as
constants: ``∂w_q/∂w = factor · Q (1 − tanh²(w)) / max|tanh(w)|``, the rounding straight-through. Activations are
clipped at a bound that calibration (least squared error) sets and that stays, as the paper's 1 does.

Source: Zhou et al., "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients", 2016
(arXiv 1606.06160); its quantized gradients are left out.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ddq_search.precision import FLOAT_BITS, weight_code_range
from ddq_search.quantizers.calibrations import MSE, CalibratedActivations
from ddq_search.quantizers.contract import WeightNumbers, WeightQuantizer
from ddq_search.quantizers.given_values import given_values
from ddq_search.quantizers.registry import Family

_SMALLEST = 1e-8


class DorefaWeights(WeightQuantizer):
    """Symmetric narrow-range codes of squashed weights, one scale per tensor; nothing is learned but the weights."""

    def __init__(self, candidates: tuple[int, ...], rows: int) -> None:
        super().__init__(candidates)
        self.rows = rows

    def calibrate(self, sample: Tensor) -> None:
        """Does nothing: the scale follows from the weights."""

    def take(self, other: Any) -> None:
        """Does nothing: there is nothing to take over."""

    def fake_quantize(self, x: Tensor, choice: int, cumulative: Tensor | None = None) -> Tensor:
        """As the contract says."""
        return given_values(self, x, choice, cumulative, self._value, self._slope)

    @torch.no_grad()
    def quantize(self, x: Tensor, choice: int) -> Tensor:
        """As the contract says."""
        return self._codes(x, choice).int()

    @torch.no_grad()
    def levels(self, x: Tensor, choice: int) -> Tensor:
        """As the contract says."""
        low, high = weight_code_range(self._bits(choice))
        codes = torch.arange(low, high + 1, device=x.device)
        return (self._scale(x, self._codes(x, choice)) * codes).expand(self.rows, -1)

    @torch.no_grad()
    def numbers(self, weight: Tensor, choice: int) -> WeightNumbers:
        """As the contract says."""
        codes = self._codes(weight, choice)
        scale = self._scale(weight, codes).cpu().double().expand(self.rows).numpy().copy()
        return WeightNumbers(codes.int().cpu().numpy(), scale)

    def _codes(self, x: Tensor, choice: int) -> Tensor:
        squashed = x.detach().tanh()
        largest = squashed.abs().max().clamp_min(_SMALLEST)
        return (squashed / largest * weight_code_range(self._bits(choice))[1]).round()

    @staticmethod
    def _scale(x: Tensor, codes: Tensor) -> Tensor:
        return ((x.detach() * codes).sum() / codes.square().sum().clamp_min(1.0)).clamp_min(_SMALLEST)

    def _value(self, x: Tensor, choice: int) -> Tensor:
        if self.candidates[choice] == FLOAT_BITS:
            return x.detach()
        codes = self._codes(x, choice)
        return codes * self._scale(x, codes)

    def _slope(self, x: Tensor, choice: int) -> Tensor:
        if self.candidates[choice] == FLOAT_BITS:
            return torch.ones_like(x)
        squashed = x.tanh()
        largest = squashed.abs().max().clamp_min(_SMALLEST)
        scale = self._scale(x, self._codes(x, choice)) * weight_code_range(self._bits(choice))[1] / largest
        return scale * (1 - squashed.square())


FAMILIES = (
    Family(
        "dorefa",
        "Zhou et al. (2016); weights squashed by tanh, fixed clip of activations; scales by least squared error (ours)",
        DorefaWeights,
        partial(CalibratedActivations, rule=MSE),
        trained=False,
        exceptions={
            "fixed_points": "weights are squashed by tanh before they are rounded, levels are not",
            "error_falls_with_bits": "finer levels follow tanh(w), not w",
        },
    ),
)
