"""LSQ and LSQ+: one learned step per tensor, and for LSQ+ a learned offset of activations.

LSQ starts at a step of ``2 E|v| / √Q_P`` and scales the step's gradient by ``1/√(N Q_P)``: Q_P is the largest positive
level, N the number of weights, or of an activation's elements per sample. Gradients: `ddq_search.quantizers.clipped`.

Ours: steps on a log scale; weight codes narrow, ``−Q_P … Q_P``, so that they deploy; two-sided activations are
unsigned codes with the zero point in the middle, which are the paper's signed codes; LSQ+'s offset β is rounded to a
whole number of steps, straight-through, because integer kernels have whole zero points, and starts from our calibration
of least squared error; β is learned in units of the calibrated range, so that one learning rate serves all tensors.

Source: Esser et al., "Learned Step Size Quantization", ICLR 2020; Bhalgat et al., "LSQ+: Improving low-bit quantization
through learnable offsets and better initialization", CVPR Workshops 2020 (the scaling of β's gradient: reconstructed).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ddq_search.precision import FLOAT_BITS, activation_code_range, weight_code_range
from ddq_search.quantizers.clipped import QuantizeClipped
from ddq_search.quantizers.contract import WeightNumbers, WeightQuantizer
from ddq_search.quantizers.registry import Family
from ddq_search.quantizers.straight_through import Grid
from ddq_search.quantizers.uniform import UniformActivations, UniformQuantizer

_SMALLEST = 1e-8


class LsqWeights(UniformQuantizer, WeightQuantizer):
    """Symmetric narrow-range codes, one learned step for all output channels.

    Attributes:
        log_steps: learned, ``[K]``.
    """

    def __init__(self, candidates: tuple[int, ...], rows: int) -> None:
        super().__init__(candidates)
        self.rows = rows
        self.log_steps = nn.Parameter(torch.zeros(len(candidates)))
        self.grids = [None if b == FLOAT_BITS else Grid(*weight_code_range(b), 0) for b in candidates]

    def first_step(self, weight: Tensor, grid: Grid) -> Tensor:
        """Returns the step that training starts from."""
        return 2 * weight.abs().mean() / math.sqrt(grid.high)

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """Sets every step to its start."""
        for k, grid in enumerate(self.grids):
            if grid is not None:
                self.log_steps[k] = self.first_step(weight.detach(), grid).clamp_min(_SMALLEST).log()

    def fake_quantize(self, x: Tensor, choice: int, cumulative: Tensor | None = None) -> Tensor:
        """As the contract says."""
        grid = self.grids[choice]
        if grid is None and cumulative is None:
            return x
        factor = 1.0 if grid is None else 1 / math.sqrt(x.numel() * grid.high)
        return QuantizeClipped.apply(  # type: ignore[no-any-return]
            x, self.log_steps, None, cumulative, tuple(self.grids), choice, 1.0, factor, True
        )

    @torch.no_grad()
    def levels(self, x: Tensor, choice: int) -> Tensor:
        """As the contract says."""
        return super().levels(x, choice).expand(self.rows, -1)

    @torch.no_grad()
    def numbers(self, weight: Tensor, choice: int) -> WeightNumbers:
        """As the contract says."""
        step = self.steps(weight)[choice].cpu().double().expand(self.rows).numpy().copy()
        return WeightNumbers(self.quantize(weight, choice).cpu().numpy(), step)


class LsqPlusWeights(LsqWeights):
    """LSQ's weights from LSQ+'s start: three standard deviations around the mean are not clipped."""

    def first_step(self, weight: Tensor, grid: Grid) -> Tensor:
        """Returns ``max(|μ − 3σ|, |μ + 3σ|) / 2^(bits − 1)``."""
        return (weight.mean().abs() + 3 * weight.std(correction=0)) / (grid.high + 1)


class LsqActivations(UniformActivations):
    """Affine unsigned codes with a fixed zero point, 0 or the middle, and one learned step."""

    rounding = True
    """Whether the step's gradient counts the rounding inside the window."""

    def first_step(self, flat: Tensor, grid: Grid) -> Tensor:
        """Returns the step that training starts from."""
        return 2 * flat.abs().mean() / math.sqrt(grid.high - grid.zero_point)

    @torch.no_grad()
    def calibrate(self, sample: Tensor) -> None:
        """Sets steps and zero points to their start."""
        flat = sample.detach().flatten()
        for k, bits in enumerate(self.candidates):
            if bits != FLOAT_BITS:
                low, high = activation_code_range(bits)
                point = 0 if self.nonnegative or high == 1 else (high + 1) // 2
                self.zero_points[k] = point
                self.log_steps[k] = self.first_step(flat, Grid(low, high, point)).clamp_min(_SMALLEST).log()
        self._set_grids()

    def gradient_factor(self, x: Tensor, grid: Grid) -> float:
        """Returns the factor of the step's gradient."""
        return 1 / math.sqrt(x[0].numel() * max(grid.high - grid.zero_point, 1))

    def fake_quantize(self, x: Tensor, choice: int, cumulative: Tensor | None = None) -> Tensor:
        """As the contract says."""
        return self._clipped(x, choice, cumulative, None)

    def _clipped(self, x: Tensor, choice: int, cumulative: Tensor | None, offsets: Tensor | None) -> Tensor:
        grid = self.grids[choice]
        if grid is None and cumulative is None:
            return x
        factor = 1.0 if grid is None else self.gradient_factor(x, grid)
        return QuantizeClipped.apply(  # type: ignore[no-any-return]
            x,
            self.log_steps,
            offsets,
            cumulative,
            tuple(self.grids),
            choice,
            self.gradient_share,
            factor,
            self.rounding,
        )


class LsqPlusActivations(LsqActivations):
    """Affine unsigned codes with a learned step and a learned offset: none where code 0 must be 0.

    Attributes:
        offsets: learned, ``[K]``: β in units of `ranges`.
        ranges: ``[K]``, width of the calibrated grid.
    """

    ranges: Tensor

    def __init__(self, candidates: tuple[int, ...], nonnegative: bool) -> None:
        super().__init__(candidates, nonnegative)
        self.offsets = nn.Parameter(torch.zeros(len(candidates)), requires_grad=not nonnegative)
        self.register_buffer("ranges", torch.ones(len(candidates)))

    @torch.no_grad()
    def calibrate(self, sample: Tensor) -> None:
        """Sets steps and offsets to those of least squared error."""
        UniformActivations.calibrate(self, sample)
        self._start_offsets()

    @torch.no_grad()
    def set_grid(self, scale: float, zero_point: int) -> None:
        """As the contract says."""
        super().set_grid(scale, zero_point)
        self._start_offsets()

    @torch.no_grad()
    def take(self, other: UniformQuantizer) -> None:
        """As the contract says."""
        assert isinstance(other, LsqPlusActivations)
        rows = [other.candidates.index(bits) for bits in self.candidates]
        self.offsets.copy_(other.offsets[rows])
        self.ranges.copy_(other.ranges[rows])
        super().take(other)

    def fake_quantize(self, x: Tensor, choice: int, cumulative: Tensor | None = None) -> Tensor:
        """As the contract says."""
        self._round_offsets()
        return self._clipped(x, choice, cumulative, None if self.nonnegative else self.offsets * self.ranges)

    def _start_offsets(self) -> None:
        for k, grid in enumerate(self.grids):
            if grid is not None:
                step = self.log_steps[k].exp()
                self.ranges[k] = grid.high * step
                self.offsets[k] = -grid.zero_point / grid.high

    @torch.no_grad()
    def _round_offsets(self) -> None:
        """Keeps 0 within the levels, and sets the zero points to the whole numbers of steps nearest to ``−β``."""
        units = self.ranges / self.log_steps.exp()
        for k, bits in enumerate(self.candidates):
            if bits != FLOAT_BITS:
                self.offsets[k].clamp_(-activation_code_range(bits)[1] / units[k].item(), 0.0)
        self.zero_points.copy_((-self.offsets * units).round())
        self._set_grids()

    def _grid(self, choice: int) -> Grid:
        self._round_offsets()
        return super()._grid(choice)


FAMILIES = (
    Family("lsq", "Esser et al. (ICLR 2020); one learned step per tensor", LsqWeights, LsqActivations),
    Family(
        "lsq-plus",
        "Bhalgat et al. (CVPRW 2020); learned step and offset, offset rounded to whole steps (ours)",
        LsqPlusWeights,
        LsqPlusActivations,
    ),
)
