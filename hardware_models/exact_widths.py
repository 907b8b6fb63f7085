"""The accounting of papers: every weight and activation takes exactly its bits, and time is bit operations.

No device: it is for comparing methods in the terms in which they were published. Flash is the weights alone, with all
their points but no bias, multipliers, packing or tables of levels; peak RAM the planned arena of tensors; latency the
bit operations of the weighted layers over those of a processor that does one 8 x 8-bit product per nanosecond.

Mixed Precision DNNs count activations otherwise: what ReLUs return, all of it (constraint 8b) or the largest tensor
(8c). Two variants put that in the place of peak RAM.

Source: Uhlich et al., "Mixed Precision DNNs: All you need is a good parametrization", ICLR 2020 (arXiv 1905.11452).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ddq_search.cost import FLASH, PEAK_RAM, Factor
from ddq_search.errors import CostError
from ddq_search.graph import WEIGHTED, ModelGraph, Operation, operations
from ddq_search.layer_shape import layer_shape
from ddq_search.precision import FLOAT_BITS
from ddq_search.size_constraints import rectified
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
                codes = op.weights * (1 + space.further_points.get(weights, 0))
                table = np.array(space[weights].candidates, dtype=np.float64) * codes / 8
                result.append(Factor(FLASH, op.name, "weights", (weights,), table))
        return result


class AllActivations(ExactWidths):
    """Peak RAM is the sum of all tensors that ReLUs return (8b)."""

    name = "exact-widths-sum"

    def factors(self, graph: ModelGraph, space: SearchSpace) -> list[Factor]:
        """As the base class says, with peak RAM as the class says.

        Raises:
            CostError: the model has no such tensor.
        """
        result = [factor for factor in super().factors(graph, space) if factor.cost != PEAK_RAM]
        for number, op in enumerate(self._counted(graph)):
            variable = space.activations_of[op.name]
            table = np.array(space[variable].candidates, dtype=np.float64) * op.output_elements / 8
            result.append(Factor(PEAK_RAM, op.name, "tensor", (variable,), table, self._step(number)))
        return result

    def arena_bytes(self, graph: ModelGraph, space: SearchSpace, choices: Mapping[str, int]) -> int:
        """Returns what peak RAM stands for here, in whole bytes."""
        steps: dict[int, float] = {}
        for number, op in enumerate(self._counted(graph)):
            size = op.output_elements * choices[space.activations_of[op.name]] / 8
            steps[self._step(number)] = steps.get(self._step(number), 0.0) + size
        return math.ceil(max(steps.values()))

    def _step(self, number: int) -> int:
        """The step in which the tensor of that number counts: one for all of them."""
        return 0

    def _counted(self, graph: ModelGraph) -> list[Operation]:
        found = [op for op in operations(graph) if rectified(op)]
        if not found:
            raise CostError(f"{self.name!r} counts what ReLUs return, of which this model has none; use 'exact-widths'")
        return found


class LargestActivation(AllActivations):
    """Peak RAM is the largest tensor that a ReLU returns (8c)."""

    name = "exact-widths-max"

    def _step(self, number: int) -> int:
        """One of its own."""
        return number


PAPERS = {model.name: model for model in (ExactWidths, AllActivations, LargestActivation)}
"""The accountings by name."""
