"""What a layer's weights and its batch normalisation are in integers: codes, and one gain and offset per channel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ddq_search.discrete import LayerNumbers
from ddq_search.quantizers.contract import WeightQuantizer


def layer_numbers(quantizer: WeightQuantizer, choice: int, layer: nn.Module, norm: nn.Module | None) -> LayerNumbers:
    """Returns a layer's codes and scales at one of its candidates, the normalisation behind it folded.

    Args:
        quantizer: of its weights.
        choice: index of the candidate.
        layer: a convolution or linear layer of ``K`` output channels.
        norm: the batch normalisation behind it, whose running statistics count; None where there is none.
    """
    weight: Any = layer.weight
    own_bias: Any = layer.bias
    channels = weight.shape[0]
    numbers = quantizer.numbers(weight, choice)
    bias = np.zeros(channels) if own_bias is None else _numpy(own_bias)
    gain, offset = (np.ones(channels), bias) if norm is None else _folded(norm, bias)
    return LayerNumbers(
        numbers.codes, quantizer.candidates[choice], numbers.scale, gain, offset, numbers.codebook, numbers.points
    )


def _folded(norm: Any, bias: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    gamma = _numpy(norm.weight) if norm.affine else np.ones_like(bias)
    beta = _numpy(norm.bias) if norm.affine else np.zeros_like(bias)
    gain = gamma / np.sqrt(_numpy(norm.running_var) + norm.eps)
    return gain, beta + (bias - _numpy(norm.running_mean)) * gain


def _numpy(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().double().numpy()
