"""The accounting of papers: every weight and activation takes exactly its bits, and time is bit operations.

No device: it is for comparing methods in the terms in which they were published. Flash is the weights alone (no bias,
no multipliers, no packing), peak RAM the planned arena of tensors, latency the bit operations of the weighted layers
over those of a processor that does one 8 x 8-bit product per nanosecond.
"""

from __future__ import annotations

import numpy as np

from ddq_search.cost import FLASH, Factor
from ddq_search.graph import WEIGHTED, ModelGraph, Operation, operations
from ddq_search.layer_shape import layer_shape
from ddq_search.precision import FLOAT_BITS
from ddq_search.space import SearchSpace
from hardware_models.plugin import OperationCostModel

_ALL = (2, 3, 4, 5, 6, 7, 8, FLOAT_BITS)


class ExactWidths(OperationCostModel):
    """See the module docstring. Tensors may stay in float32; such policies have no integer program."""

    name = "exact-widths"
    core = "none: accounting of papers"
    runtime = "none"
    calibration = "uncalibrated: no device; bit operations stand for time"
    alignment_bytes = 1
    weight_bits = _ALL
    activation_bits = _ALL

    def latency_s(self, op: Operation, weight_bits: int | None, input_bits: tuple[int, ...], output_bits: int) -> float:
        """As the module says; operations without weights take no time."""
        return 0.0 if weight_bits is None else layer_shape(op).macs * weight_bits * input_bits[0] / 64 * 1e-9

    def factors(self, graph: ModelGraph, space: SearchSpace) -> list[Factor]:
        """As the base class says, with flash as the module says."""
        result = [factor for factor in super().factors(graph, space) if factor.cost != FLASH]
        priced: set[str] = set()
        for op in operations(graph):
            weights = space.weights_of.get(op.name)
            if op.kind in WEIGHTED and weights is not None and weights not in priced:
                priced.add(weights)
                table = np.array(space[weights].candidates, dtype=np.float64) * op.weights / 8
                result.append(Factor(FLASH, op.name, "weights", (weights,), table))
        return result
