"""DQ's constraints on memory, in KB of 1024 bytes: weights (8a), all activations (8b), the largest activation (8c).

Sizes are what the paper counts: scalars times their bits, nothing shared, nothing padded, no codebook. What a device
stores is another number (`ddq_search.packing`, `ddq_search.cost`); a comparison with the paper wants this one. The
penalty is ``Σ_j λ max(0, g_j)²`` with ``g_j = size_j − limit_j``.

Legend: V variables of the search space.

Source: Uhlich et al., "Mixed Precision DNNs: All you need is a good parametrization", ICLR 2020 (arXiv 1905.11452).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddq_search.errors import BudgetError
from ddq_search.graph import WEIGHTED, ModelGraph, Operation, operations
from ddq_search.precision import FLOAT_BITS
from ddq_search.space import SearchSpace

_BITS_PER_KB = 8 * 1024
STRENGTH = 0.1
"""λ of the paper, for sizes in KB."""


def rectified(op: Operation) -> bool:
    """The paper's activations: what a ReLU returned and is stored, one tensor per ReLU."""
    return op.clamp is not None or (op.kind == "activation" and op.nonnegative)


@dataclass(frozen=True)
class Sizes:
    """Memory in KB, each a float64 scalar, differentiable in the bits."""

    weights_kb: Tensor
    activations_kb: Tensor
    largest_activation_kb: Tensor


class SizeModel:
    """The scalars of every variable.

    Args:
        graph: the model graph.
        space: its search space, which orders the variables.
        counted: which operations' outputs are activations that count.

    Attributes:
        weights: ``[V]`` float64 number of weights, a layer's own bias (none that a batch norm adds) with them, as in
            the paper.
        activations: ``[V]`` float64 number of activations of one sample.
        largest: ``[V]`` float64 number of activations in the largest tensor of the variable.
    """

    def __init__(self, graph: ModelGraph, space: SearchSpace, counted: Callable[[Operation], bool] = rectified) -> None:
        row = {variable.name: index for index, variable in enumerate(space.variables)}
        self.weights, self.activations, self.largest = torch.zeros(3, len(row), dtype=torch.float64).unbind()
        seen = set()
        for op in operations(graph):
            if op.kind in WEIGHTED and op.module not in seen:
                seen.add(op.module)
                bias = op.rows if op.has_bias and op.norm is None else 0
                self.weights[row[space.weights_of[op.name]]] += op.weights + bias
            if counted(op):
                index = row[space.activations_of[op.name]]
                self.activations[index] += op.output_elements
                self.largest[index] = max(self.largest[index].item(), op.output_elements)

    def sizes(self, bits: Tensor) -> Sizes:
        """Returns the sizes for bits ``[V]`` of every variable, whole or expected."""
        bits = bits.cpu().double()
        return Sizes(
            (self.weights * bits).sum() / _BITS_PER_KB,
            (self.activations * bits).sum() / _BITS_PER_KB,
            (self.largest * bits).max() / _BITS_PER_KB,
        )

    def float_sizes(self) -> Sizes:
        """Returns the sizes of the float32 network."""
        return self.sizes(torch.full_like(self.weights, float(FLOAT_BITS)))


@dataclass(frozen=True)
class SizeLimits:
    """Largest sizes in KB; None: no constraint.

    Raises:
        BudgetError: a limit is not above 0.
    """

    weights_kb: float | None = None
    activations_kb: float | None = None
    largest_activation_kb: float | None = None

    def __post_init__(self) -> None:
        for name in ("weights_kb", "activations_kb", "largest_activation_kb"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise BudgetError(f"{name} must be above 0, not {limit}; leave it out for no limit")

    def excesses(self, sizes: Sizes) -> Tensor:
        """Returns ``g_j`` in KB of every limit that is set, ``[J]``."""
        pairs = (
            (sizes.weights_kb, self.weights_kb),
            (sizes.activations_kb, self.activations_kb),
            (sizes.largest_activation_kb, self.largest_activation_kb),
        )
        found = [size - limit for size, limit in pairs if limit is not None]
        return torch.stack(found) if found else torch.zeros(0, dtype=torch.float64)

    def penalty(self, sizes: Sizes, strength: float = STRENGTH) -> Tensor:
        """Returns ``Σ_j λ max(0, g_j)²``, float64."""
        return strength * self.excesses(sizes).clamp_min(0).square().sum()


def expected_bits(probabilities: Tensor, candidates: tuple[int, ...]) -> Tensor:
    """Returns the mean bitwidth of ``probabilities`` ``[K]`` over the candidates, differentiable."""
    return probabilities @ probabilities.new_tensor(candidates)
