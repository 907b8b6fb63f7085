"""Uniform levels with a learned step at every candidate precision: DDQ's zero-preserving levels, and LSQ.

Weights: symmetric narrow-range codes, one step per output channel. Activations: affine unsigned codes, one step per
tensor. The step of a weight channel is a learned multiple of the channel's mean magnitude, so candidates that are
seldom chosen follow the weights while they move. Families that only calibrate otherwise override `best_steps` and
`value_range`.

Source: Zhang et al., "Differentiable Dynamic Quantization", ICML 2021 (gates, straight-through); Esser et al., "Learned
Step Size Quantization", ICLR 2020 (step gradient); the zero-preserving levels and the per-channel steps are ours
(docs/methods-ddq.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddq_search.precision import FLOAT_BITS, ActivationGrid, activation_code_range, weight_code_range
from ddq_search.quantizers.contract import ActivationQuantizer, Quantizer, WeightNumbers, WeightQuantizer
from ddq_search.quantizers.mixing import MixPasses
from ddq_search.quantizers.registry import Family
from ddq_search.quantizers.straight_through import Estimate, Grid, codes, quantize_with_gates
from ddq_search.quantizers.traced import TracedPasses, bounds

_SMALLEST = 1e-8
_CALIBRATION_VALUES = 1024
"""Weights per output channel on which the error of a step is judged; the channel's largest is taken over all."""


class UniformQuantizer(Quantizer):
    """What uniform quantizers of weights and of activations share.

    Attributes:
        log_steps: learned; ``[K]`` (activations) or ``[K, rows]`` (weights, relative to the row's mean magnitude).
        grids: code range and zero point of every candidate; None for float32.
    """

    log_steps: nn.Parameter

    def __init__(self, candidates: tuple[int, ...]) -> None:
        super().__init__(candidates)
        self.grids: list[Grid | None] = [None] * len(candidates)

    def statistic(self, x: Tensor) -> Tensor | None:
        """Returns what the learned steps are relative to, without gradient; None for absolute steps."""
        return None

    @property
    def plain(self) -> bool:
        """Whether values and gradients are those of this class, so that candidates may be mixed in one pass."""
        own = type(self)
        as_here = own.fake_quantize is UniformQuantizer.fake_quantize and own.steps is UniformQuantizer.steps
        return as_here and not self.correction

    def steps(self, x: Tensor) -> Tensor:
        """Returns the step of every candidate for this tensor: ``[K]`` or ``[K, rows]``."""
        statistic = self.statistic(x)
        return self.log_steps.exp() if statistic is None else self.log_steps.exp() * statistic

    def best_steps(self, rows: Tensor, full: Tensor, grid: Grid) -> Tensor:
        """Returns the step ``[R]`` for a sample of values ``[R, E]``: here the one of least squared error.

        Args:
            rows: the sample.
            full: ``[R]``, step at which nothing is clipped.
            grid: code range and zero point.
        """
        return least_squared_error(rows, full, grid)

    def fake_quantize(self, x: Tensor, choice: int, cumulative: Tensor | None = None) -> Tensor:
        """As the contract says; one fused autograd function."""
        if self.grids[choice] is None and cumulative is None:
            return x
        statistic = self.statistic(x)
        estimate = Estimate(self.gradient_share, self.own_correction, self.overwrites_input, self.overwrites_gradient)
        return quantize_with_gates(x, self.log_steps, statistic, cumulative, tuple(self.grids), choice, estimate)

    def traced(self, x: Tensor, choice: Tensor, cumulative: Tensor | None = None) -> Tensor:
        """As `fake_quantize` of a `plain` quantizer, for a compiler: ``choice`` is an int64 tensor of one entry."""
        limits = bounds(tuple(self.grids), x.device)
        return TracedPasses.apply(  # type: ignore[no-any-return]
            x, self.steps(x), cumulative, limits, choice, self.gradient_share
        )

    def mix(self, x: Tensor, shares: Tensor) -> Tensor:
        """As the contract says; one fused autograd function unless float32 or gradients of their own are in the way."""
        grids = tuple(grid for grid in self.grids if grid is not None)
        if len(grids) < len(self.grids) or not self.plain:
            return super().mix(x, shares)
        return MixPasses.apply(  # type: ignore[no-any-return]
            x, self.log_steps, self.statistic(x), shares, grids, self.gradient_share
        )

    @torch.no_grad()
    def take(self, other: UniformQuantizer) -> None:
        """As the contract says."""
        rows = [other.candidates.index(bits) for bits in self.candidates]
        self.log_steps.copy_(other.log_steps[rows])

    def quantize(self, x: Tensor, choice: int) -> Tensor:
        """As the contract says."""
        return codes(x, self.steps(x)[choice], self._grid(choice))

    @torch.no_grad()
    def levels(self, x: Tensor, choice: int) -> Tensor:
        """As the contract says."""
        grid = self._grid(choice)
        values = torch.arange(grid.low, grid.high + 1, device=x.device) - grid.zero_point
        return self.steps(x)[choice][..., None] * values

    def _grid(self, choice: int) -> Grid:
        self._bits(choice)
        grid = self.grids[choice]
        assert grid is not None
        return grid


class UniformWeights(UniformQuantizer, WeightQuantizer):
    """Symmetric narrow-range codes, one step per output channel (first dimension)."""

    def __init__(self, candidates: tuple[int, ...], rows: int) -> None:
        super().__init__(candidates)
        self.log_steps = nn.Parameter(torch.zeros(len(candidates), rows))
        self.grids = [None if b == FLOAT_BITS else Grid(*weight_code_range(b), 0) for b in candidates]

    def statistic(self, x: Tensor) -> Tensor:
        """Mean magnitude per output channel, never 0."""
        return x.detach().abs().flatten(1).mean(1).clamp_min(_SMALLEST)

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """Sets every step to the one of least squared error, channel by channel."""
        flat = weight.detach().flatten(1)
        statistic = self.statistic(weight)
        largest = flat.abs().amax(1).clamp_min(_SMALLEST)
        sample = flat[:, :: -(-flat.shape[1] // _CALIBRATION_VALUES)]
        for k, grid in enumerate(self.grids):
            if grid is not None:
                best = self.best_steps(sample, largest / grid.high, grid)
                self.log_steps[k] = (best / statistic).log()

    @torch.no_grad()
    def numbers(self, weight: Tensor, choice: int) -> WeightNumbers:
        """As the contract says."""
        steps = self.steps(weight)[choice].cpu().double().numpy()
        return WeightNumbers(self.quantize(weight, choice).cpu().numpy(), steps)


class UniformActivations(UniformQuantizer, ActivationQuantizer):
    """Affine unsigned codes, one step per tensor; the zero point is set by calibration and then kept."""

    zero_points: Tensor

    def __init__(self, candidates: tuple[int, ...], nonnegative: bool) -> None:
        super().__init__(candidates)
        self.nonnegative = nonnegative
        self.log_steps = nn.Parameter(torch.zeros(len(candidates)))
        self.register_buffer("zero_points", torch.zeros(len(candidates), dtype=torch.int32))
        self._set_grids()

    def _set_grids(self) -> None:
        points = self.zero_points.tolist()
        self.grids = [
            None if bits == FLOAT_BITS else Grid(*activation_code_range(bits), point)
            for bits, point in zip(self.candidates, points, strict=True)
        ]

    def _load_from_state_dict(self, *args: object) -> None:
        super()._load_from_state_dict(*args)
        self._set_grids()

    @torch.no_grad()
    def take(self, other: UniformQuantizer) -> None:
        """As the contract says."""
        super().take(other)
        assert isinstance(other, UniformActivations)
        self.zero_points.copy_(other.zero_points[[other.candidates.index(bits) for bits in self.candidates]])
        self._set_grids()

    @torch.no_grad()
    def set_grid(self, scale: float, zero_point: int) -> None:
        """Fixes one known grid for every candidate (an input tensor whose codes are given)."""
        self.log_steps.fill_(scale).log_()
        self.zero_points.fill_(zero_point)
        self._set_grids()

    def value_range(self, flat: Tensor, steps: int) -> tuple[float, float]:
        """Returns the range, 0 in it, that sets the zero point and the largest step: here that of all values.

        Args:
            flat: a sample of the tensor's values.
            steps: number of steps that shall cover the range.
        """
        low = 0.0 if self.nonnegative else min(flat.min().item(), 0.0)
        return low, flat.max().clamp_min(_SMALLEST).item()

    @torch.no_grad()
    def calibrate(self, sample: Tensor) -> None:
        """Sets steps and zero points to those of least squared error on a sample of the tensor's values."""
        flat = sample.detach().flatten()
        for k, bits in enumerate(self.candidates):
            if bits == FLOAT_BITS:
                continue
            codes_low, codes_high = activation_code_range(bits)
            low, high = self.value_range(flat, codes_high)
            full = (high - low) / codes_high
            point = min(codes_high, max(codes_low, round(-low / full)))
            grid = Grid(codes_low, codes_high, point)
            self.zero_points[k] = point
            best = self.best_steps(flat[None], torch.tensor([full], dtype=flat.dtype, device=flat.device), grid)
            self.log_steps[k] = best[0].log()
        self._set_grids()

    def grid(self, choice: int) -> ActivationGrid:
        """Returns the grid of one candidate as plain numbers."""
        grid = self._grid(choice)
        step = self.log_steps.detach().exp()[choice].item()
        return ActivationGrid(step, grid.zero_point, self.candidates[choice])


def least_squared_error(rows: Tensor, full: Tensor, grid: Grid) -> Tensor:
    """Returns, per row ``[R, E]``, the step among fractions of ``full`` ``[R]`` that minimises the squared error."""
    best, least = full, torch.full_like(full, torch.inf)
    for fraction in torch.linspace(0.02, 1.0, 50).tolist():
        step = full * fraction
        x = rows / step[:, None]
        q = torch.clamp(torch.round(x), grid.low - grid.zero_point, grid.high - grid.zero_point)
        error = ((q - x) * step[:, None]).square().mean(1)
        best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    return best


FAMILIES = (
    Family(
        "uniform",
        "DDQ (ICML 2021) with zero-preserving levels (ours); steps learned as in LSQ (ICLR 2020)",
        UniformWeights,
        UniformActivations,
        options=("correction",),
    ),
)
