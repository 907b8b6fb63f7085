"""What a policy makes of a trained supernet: codes, scales and folded normalisation, and nothing else.

This is the border between training and deployment. Everything behind it (evaluation mode, integer program,
exporters) starts from these numbers, so nothing is quantized twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddq_search.graph import ModelGraph
from ddq_search.precision import ActivationGrid, weight_code_range


@dataclass(frozen=True)
class LayerNumbers:
    """One weighted layer: ``real output = gain * scale * input_scale * accumulator + offset``, per output channel.

    Attributes:
        codes: weight codes, shape of the module's weight, within `weight_code_range(bits)`.
        bits: precision of the weights.
        scale: ``[rows]`` float64, > 0; the real weight is ``codes * scale``.
        gain: ``[rows]`` float64, γ/σ of the fused batch norm (may be negative or 0); 1 without one.
        offset: ``[rows]`` float64, bias after normalisation: ``β + (bias − mean) * gain``.
    """

    codes: NDArray[np.int32]
    bits: int
    scale: NDArray[np.float64]
    gain: NDArray[np.float64]
    offset: NDArray[np.float64]

    def __post_init__(self) -> None:
        low, high = weight_code_range(self.bits)
        rows = (self.codes.shape[0],)
        if self.codes.min() < low or self.codes.max() > high:
            raise ValueError(f"weight codes exceed {self.bits} bits")
        if not self.scale.shape == self.gain.shape == self.offset.shape == rows:
            raise ValueError("scale, gain and offset need one entry per output channel")
        if not (np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError("scales must be positive and finite")


@dataclass(frozen=True)
class DiscreteNetwork:
    """A network whose every weight and activation has its grid.

    Attributes:
        graph: the model graph.
        policy: variable name (`ddq_search.space`) → bitwidth.
        layers: weighted operation → its numbers.
        grids: operation → grid of its output tensor; tied tensors have equal grids.
    """

    graph: ModelGraph
    policy: Mapping[str, int]
    layers: Mapping[str, LayerNumbers]
    grids: Mapping[str, ActivationGrid]
