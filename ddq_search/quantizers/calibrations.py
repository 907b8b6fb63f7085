"""Uniform quantizers that calibration alone sets, one family per way to find the step: candidates of DQSS.

All share the grids, the codes and the straight-through gradient of `ddq_search.quantizers.uniform` and differ in one
*rule*. Their steps are no trained parameters: of activations they stay as calibrated; of a weight channel, as every
uniform step, at the calibrated multiple of the channel's mean magnitude, which is the same as long as weights rest.

Legend: a row is a weight channel, or all values of an activation; E values per row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ddq_search.quantizers.analytic_clip import best_clip
from ddq_search.quantizers.divergence import clip_of_least_divergence
from ddq_search.quantizers.registry import Family
from ddq_search.quantizers.straight_through import Grid, fake_quantize
from ddq_search.quantizers.uniform import UniformActivations, UniformWeights, least_squared_error

WEIGHTS_ONE_IN = 1_000
"""`percentile` clips one weight of a channel in so many: the 99.9th percentile of magnitudes."""
ACTIVATIONS_ONE_IN = 10_000
"""`percentile` clips one activation in so many, at either end: the 99.99th percentile."""
_FRACTIONS = 50
_SMALLEST = 1e-8

StepRule = Callable[[Tensor, Tensor, Grid], Tensor]
"""As `ddq_search.quantizers.uniform.UniformQuantizer.best_steps`."""
RangeRule = Callable[[Tensor, int, bool], tuple[float, float]]
"""Values ``[E]``, number of steps, whether none is negative → lowest and highest value that is not clipped."""


@dataclass(frozen=True)
class Rule:
    """How one family calibrates.

    Attributes:
        weights: step of weight channels.
        activations: step of an activation, once its range and zero point are set.
        value_range: range of an activation; it is then widened to hold 0 and cut to the values that occur.
    """

    weights: StepRule
    activations: StepRule
    value_range: RangeRule


class CalibratedWeights(UniformWeights):
    """Symmetric narrow-range codes, one calibrated step per output channel."""

    def __init__(self, candidates: tuple[int, ...], rows: int, *, rule: Rule) -> None:
        super().__init__(candidates, rows)
        self.log_steps.requires_grad_(False)
        self.rule = rule

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """Sets every step by the family's rule, from all weights of the channel."""
        rows, statistic = weight.detach().flatten(1), self.statistic(weight)
        largest = rows.abs().amax(1).clamp_min(_SMALLEST)
        for k, grid in enumerate(self.grids):
            if grid is not None:
                steps = self.rule.weights(rows, largest / grid.high, grid)
                self.log_steps[k] = (steps / statistic).log()


class CalibratedActivations(UniformActivations):
    """Affine unsigned codes, calibrated step and zero point."""

    def __init__(self, candidates: tuple[int, ...], nonnegative: bool, *, rule: Rule) -> None:
        super().__init__(candidates, nonnegative)
        self.log_steps.requires_grad_(False)
        self.rule = rule

    def best_steps(self, rows: Tensor, full: Tensor, grid: Grid) -> Tensor:
        """Returns the step by the family's rule."""
        return self.rule.activations(rows, full, grid)

    def value_range(self, flat: Tensor, steps: int) -> tuple[float, float]:
        """Returns the range by the family's rule."""
        least, most = super().value_range(flat, steps)
        low, high = self.rule.value_range(flat, steps, self.nonnegative)
        low, high = min(max(low, least), 0.0), max(min(high, most), 0.0)
        return (low, high) if high - low >= _SMALLEST else (least, most)


# -- rules for steps --------------------------------------------------------------------------------------------------


def full_step(rows: Tensor, full: Tensor, grid: Grid) -> Tensor:
    """The step at which nothing of the range is clipped."""
    return full


def percentile_step(rows: Tensor, full: Tensor, grid: Grid) -> Tensor:
    """The step that puts the largest level on the percentile of the magnitudes."""
    count = rows.shape[1]
    largest = rows.abs().kthvalue(count - count // WEIGHTS_ONE_IN, 1).values
    return torch.where(largest > 0, (largest / grid.high).minimum(full), full)


def analytic_step(rows: Tensor, full: Tensor, grid: Grid) -> Tensor:
    """The step that puts the largest level on ACIQ's clip."""
    clip = best_clip(rows, 2 * grid.high) / grid.high
    return torch.where(clip > 0, clip.minimum(full), full)


def divergence_step(rows: Tensor, full: Tensor, grid: Grid) -> Tensor:
    """The step of least divergence, one threshold for all rows in units of their mean magnitude.

    A channel alone has too few values for a histogram.
    """
    unit = rows.abs().mean(1)
    scaled = rows.abs() / unit.clamp_min(_SMALLEST)[:, None]
    clip = unit * clip_of_least_divergence(scaled.flatten(), grid.high) / grid.high
    return torch.where(clip > 0, clip.minimum(full), full)


def greatest_cosine(rows: Tensor, full: Tensor, grid: Grid) -> Tensor:
    """The step, among fractions of ``full``, after which a row keeps its direction best; the first of equals.

    Steps that give the same codes are equal: their cosines differ by rounding alone.
    """
    best, greatest, rounding = full, torch.zeros_like(full), 4 * torch.finfo(full.dtype).eps
    for fraction in torch.linspace(1 / _FRACTIONS, 1.0, _FRACTIONS).tolist():
        step = full * fraction
        q = fake_quantize(rows, step, grid)
        along = (q * rows).sum(1)
        cosine = along / q.square().sum(1).sqrt().clamp_min(1e-30)  # times the row's length, which is the same for all
        better = cosine > greatest * (1 + rounding)
        best, greatest = torch.where(better, step, best), torch.where(better, cosine, greatest)
    return best


# -- rules for ranges -------------------------------------------------------------------------------------------------


def whole_range(values: Tensor, steps: int, nonnegative: bool) -> tuple[float, float]:
    """From the smallest to the largest value."""
    return values.min().item(), values.max().item()


def percentile_range(values: Tensor, steps: int, nonnegative: bool) -> tuple[float, float]:
    """From percentile to percentile."""
    outside = values.numel() // ACTIVATIONS_ONE_IN
    low = values.kthvalue(outside + 1).values.item()
    return low, values.kthvalue(values.numel() - outside).values.item()


def analytic_range(values: Tensor, steps: int, nonnegative: bool) -> tuple[float, float]:
    """ACIQ's clip around the mean, or of the positive values as one half of a symmetric variable."""
    if nonnegative:
        positive = values[values > 0]
        return 0.0, best_clip(positive[None], 2 * steps).item() if positive.numel() else 0.0
    mean = values.mean()
    clip = best_clip((values - mean)[None], steps).item()
    return mean.item() - clip, mean.item() + clip


def divergence_range(values: Tensor, steps: int, nonnegative: bool) -> tuple[float, float]:
    """Magnitudes up to the threshold of least divergence; half of the steps serve them unless none is negative."""
    clip = clip_of_least_divergence(values.abs(), steps if nonnegative else max(steps // 2, 1))
    return -clip, clip


MSE = Rule(least_squared_error, least_squared_error, whole_range)
"""Least squared error."""


def _family(name: str, source: str, rule: Rule) -> Family:
    return Family(
        name, source, partial(CalibratedWeights, rule=rule), partial(CalibratedActivations, rule=rule), trained=False
    )


FAMILIES = (
    _family("min-max", "common practice; nothing is clipped", Rule(full_step, full_step, whole_range)),
    _family(
        "percentile",
        "common practice; clips one weight in 1,000 and one activation in 10,000",
        Rule(percentile_step, full_step, percentile_range),
    ),
    _family("mse", "common practice; least squared error", MSE),
    _family(
        "kl",
        "Migacz (GTC 2017), TensorRT; least divergence of a histogram",
        Rule(divergence_step, full_step, divergence_range),
    ),
    _family(
        "aciq",
        "Banner et al. (NeurIPS 2019); analytic clip of the likelier of Laplace and Gauss",
        Rule(analytic_step, full_step, analytic_range),
    ),
    _family(
        "cosine", "common practice; greatest cosine similarity", Rule(greatest_cosine, greatest_cosine, whole_range)
    ),
)
