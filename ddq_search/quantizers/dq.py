"""DQ: quantizers that learn step and range and infer the bitwidth from them (Mixed Precision DNNs).

While `inferring` (`ddq_search.quantizers.dq_inference`), a tensor has one learned range, the paper's
(`ddq_search.quantizers.dq_range`). At a fixed precision it has one learned step per candidate and
``q_max = (2^(b−1) − 1) d``, gradients as in U1 at constant b; gates may choose there as in any other family.

Ours: deployed weights repeat the tensor's scale for every output channel; signed activations are affine codes with the
zero point in the middle, so at a fixed precision there is one more level below zero than above; fixed steps start from
least squared error. While inferring, levels are symmetric and gradients are summed over the whole batch.

Source: Uhlich et al., "Mixed Precision DNNs: All you need is a good parametrization", ICLR 2020 (arXiv 1905.11452).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddq_search.precision import FLOAT_BITS, ActivationGrid
from ddq_search.quantizers.clipped import QuantizeClipped
from ddq_search.quantizers.contract import WeightQuantizer
from ddq_search.quantizers.dq_gradients import instead_of, to_power_of_two
from ddq_search.quantizers.dq_inference import InferringQuantizer, gated
from ddq_search.quantizers.dq_power import DqP1Weights, DqP2Weights, DqP3Weights
from ddq_search.quantizers.dq_range import SMALLEST, BitsAndLargest, BitsAndStep
from ddq_search.quantizers.lsq import LsqActivations, LsqWeights
from ddq_search.quantizers.registry import Family
from ddq_search.quantizers.straight_through import Grid
from ddq_search.quantizers.uniform import UniformQuantizer, least_squared_error

_CALIBRATION_VALUES = 65536


class UniformDq(InferringQuantizer, UniformQuantizer):
    """What weights and activations on uniform levels share.

    Attributes:
        log_steps: learned, ``[K]``: the steps at fixed precisions.
    """

    def fake_quantize(self, x: Tensor, choice: int | None = None, cumulative: Tensor | None = None) -> Tensor:
        """As the contract says; while inferring, on the learned levels, whatever the choice."""
        if self.infers:
            return self.place_inferred(x)
        choice, grids = self.fixed_choice(choice), tuple(self.grids)
        if grids[choice] is None and cumulative is None:
            return x
        if self.range.power_of_two:
            steps = self.steps(x)
            return gated(lambda k: _clipped(x, steps[k], grids[k]), choice, cumulative)
        share = 1.0 if isinstance(self, WeightQuantizer) else self.gradient_share
        return QuantizeClipped.apply(  # type: ignore[no-any-return]
            x, self.log_steps, None, cumulative, grids, choice, share, 1.0, True
        )

    def steps(self, x: Tensor) -> Tensor:
        """As `UniformQuantizer` says: powers of two where the range has such a step."""
        steps = self.log_steps.exp()
        return to_power_of_two(steps) if self.range.power_of_two else steps

    def first_step(self, values: Tensor, grid: Grid) -> Tensor:
        """Returns the step of least squared error."""
        flat = values.flatten()
        sample = flat[:: -(-flat.numel() // _CALIBRATION_VALUES)]
        full = flat.abs().amax(0, keepdim=True).clamp_min(SMALLEST) / max(grid.high - grid.zero_point, 1)
        return least_squared_error(sample[None], full, grid)[0]

    @torch.no_grad()
    def fix_largest(self, largest: Tensor) -> None:
        """As `InferringQuantizer` says."""
        for k, bits in enumerate(self.candidates):
            if bits != FLOAT_BITS:
                self.log_steps[k] = (largest / max(2 ** (bits - self.range.signed) - 1, 1)).log()

    @torch.no_grad()
    def take(self, other: UniformQuantizer) -> None:
        """As the contract says."""
        super().take(other)
        assert isinstance(other, UniformDq)
        self.range.load_state_dict(other.range.state_dict())

    def limit_gradients(self) -> None:
        """Clips those of fixed steps as those of the learned one, and those of the range."""
        self.range.limit_gradients()
        self.range.limit_gradient(self.log_steps, self.log_steps.detach().exp())

    def _grid(self, choice: int) -> Grid:
        self.refuse_inferring()
        return super()._grid(choice)


class DqWeights(UniformDq, LsqWeights):
    """Symmetric narrow-range codes, one step for all output channels."""

    def __init__(self, candidates: tuple[int, ...], rows: int) -> None:
        super().__init__(candidates, rows)
        self.range = self.new_range(signed=True)

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """Sets every step to its start, and the range to the paper's."""
        super().calibrate(weight)
        self.range.start(weight.detach().abs().max())


class DqActivations(UniformDq, LsqActivations):
    """Affine unsigned codes, zero point 0 or the middle, one step per tensor."""

    def __init__(self, candidates: tuple[int, ...], nonnegative: bool) -> None:
        super().__init__(candidates, nonnegative)
        self.range = self.new_range(signed=not nonnegative)

    @torch.no_grad()
    def calibrate(self, sample: Tensor) -> None:
        """Sets every step to its start, and the range to the paper's."""
        sample = sample.detach().relu() if self.nonnegative else sample.detach()
        super().calibrate(sample)
        self.range.start(sample.abs().max())

    def grid(self, choice: int) -> ActivationGrid:
        """As the contract says."""
        grid = self._grid(choice)
        return ActivationGrid(self.steps(self.log_steps)[choice].item(), grid.zero_point, self.candidates[choice])


class DqU1Weights(DqWeights):
    """Learns bitwidth and step."""

    range_class = BitsAndStep


class DqU2Weights(DqWeights):
    """Learns bitwidth and largest level."""

    range_class = BitsAndLargest


class DqU1Activations(DqActivations):
    """Learns bitwidth and step."""

    range_class = BitsAndStep


class DqU2Activations(DqActivations):
    """Learns bitwidth and largest level."""

    range_class = BitsAndLargest


def _clipped(x: Tensor, step: Tensor, grid: Grid | None) -> Tensor:
    """Returns ``x`` on a grid; ``∂/∂step`` is ``e/step`` between the outermost levels and their code beyond."""
    if grid is None:
        return x
    scaled = torch.clamp(x / step, grid.low - grid.zero_point, grid.high - grid.zero_point)
    return instead_of(scaled, scaled.round()) * step


_OPTIONS = ("power_of_two_steps", "clips_gradients")
_PAPER = "Mixed Precision DNNs (ICLR 2020)"
FAMILIES = (
    Family(
        "dq-u3",
        f"{_PAPER}: step and largest level learned, bitwidth inferred",
        DqWeights,
        DqActivations,
        options=_OPTIONS,
    ),
    Family("dq-u1", f"{_PAPER}: bitwidth and step learned", DqU1Weights, DqU1Activations, options=_OPTIONS),
    Family("dq-u2", f"{_PAPER}: bitwidth and largest level learned", DqU2Weights, DqU2Activations, options=_OPTIONS),
    *(
        Family(
            name,
            f"{_PAPER}: powers of two, {learned}; weights only (ours)",
            weights,
            codebook=True,
            options=("clips_gradients",),
            exceptions={"error_falls_with_bits": "int8 holds seven octaves, so levels stay the same from 4 bits on"},
        )
        for name, learned, weights in (
            ("dq-p3", "smallest and largest level learned, bitwidth inferred", DqP3Weights),
            ("dq-p1", "bitwidth and smallest level learned", DqP1Weights),
            ("dq-p2", "bitwidth and largest level learned", DqP2Weights),
        )
    ),
)
