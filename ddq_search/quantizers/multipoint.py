"""Multipoint weights: a channel as a sum of several low-bit vectors, each with a scale of its own.

Greedily, the coarsest point first: it is the channel on the grid of least squared error; every further point is what
the points before it left, on a grid finer by a whole number, again the one of least squared error. Whole numbers make
the sum of all points one integer per weight: ``real = step * (codes + Σ ratio_i * codes_i)``, the finest point being
the base (`ddq_search.discrete.Point`).

The paper gives every channel as many points as bring the error of its output below a threshold. Here all channels of a
layer have the same number: points are stored for a layer as a whole, so a channel would save nothing, and the price of
the layer is known before calibration, to the byte. All layers have the further points; the search chooses their bits.

Source: Liu, Ye, Zhou, Liu, "Post-training Quantization with Multiple Points: Mixed Precision without Mixed Precision",
AAAI 2021; whole-number ratios and one number of points for all channels are ours.

Legend: K candidates, P further points, rows output channels, E weights per row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddq_search.discrete import Point
from ddq_search.precision import FLOAT_BITS, weight_code_range
from ddq_search.quantizers.contract import WeightNumbers, WeightQuantizer
from ddq_search.quantizers.given_values import given_values
from ddq_search.quantizers.registry import Family
from ddq_search.quantizers.straight_through import Grid, fake_quantize
from ddq_search.quantizers.uniform import least_squared_error

_SMALLEST = 1e-8
_LARGEST_WEIGHT = 2**15 - 1
"""Of the sums of all points: int16 holds them, and accumulators what two points of 8 bits ask of them."""
_RATIOS = 64
"""Most ratios that are tried for one point."""


class MultipointWeights(WeightQuantizer):
    """A base and further points, all with symmetric narrow-range codes of the candidate's bits.

    Attributes:
        further_points: their number.
        log_steps: ``[K, rows]``, the finest step relative to the row's mean magnitude; calibrated, not trained.
        ratios: ``[K, P, rows]`` int32, coarsest point first.
    """

    further_points: int = 1
    ratios: Tensor

    def __init__(self, candidates: tuple[int, ...], rows: int) -> None:
        super().__init__(candidates)
        self.log_steps = nn.Parameter(torch.zeros(len(candidates), rows), requires_grad=False)
        self.register_buffer("ratios", torch.ones(len(candidates), self.further_points, rows, dtype=torch.int32))

    @torch.no_grad()
    def calibrate(self, sample: Tensor) -> None:
        """Sets steps and ratios of every candidate greedily, from all weights."""
        rows, statistic = sample.detach().flatten(1), _mean_magnitude(sample)
        for k, bits in enumerate(self.candidates):
            if bits == FLOAT_BITS:
                continue
            grid = Grid(*weight_code_range(bits), 0)
            step = least_squared_error(rows, rows.abs().amax(1).clamp_min(_SMALLEST) / grid.high, grid)
            rest, ratios = rows - fake_quantize(rows, step, grid), torch.ones_like(self.ratios[k])
            for n in range(self.further_points):
                finer = _best_ratio(rest, step, grid, self.further_points)
                step = step / finer
                ratios[: n + 1] *= finer.int()
                rest = rest - fake_quantize(rest, step, grid)
            self.ratios[k] = ratios
            self.log_steps[k] = (step / statistic).log()

    def fake_quantize(self, x: Tensor, choice: int, cumulative: Tensor | None = None) -> Tensor:
        """As the contract says; straight-through up to half a step beyond the largest sum of points."""
        return given_values(self, x, choice, cumulative, self._value, self._inside)

    @torch.no_grad()
    def quantize(self, x: Tensor, choice: int) -> Tensor:
        """Returns one number for the codes of all points: they are its digits, base ``2^bits − 1``, coarsest first."""
        digits = 2 * self._high(choice) + 1
        total = torch.zeros_like(x, dtype=torch.int32)
        for codes in self._codes(x, choice):
            total = total * digits + codes.int()
        return total

    @torch.no_grad()
    def levels(self, x: Tensor, choice: int) -> Tensor:
        """As the contract says, for the codes of `quantize`; several may have one value."""
        high, total = self._high(choice), torch.zeros(self.log_steps.shape[1], 1, device=x.device)
        values = torch.arange(-high, high + 1, device=x.device)
        for ratio in self._all_ratios(choice):
            total = (total[:, :, None] + values * ratio[:, None, None]).flatten(1)
        return total * self._step(x, choice)[:, None]

    @torch.no_grad()
    def numbers(self, weight: Tensor, choice: int) -> WeightNumbers:
        """As the contract says: the base is the finest point."""
        bits = self.candidates[choice]
        *further, base = (codes.cpu().numpy() for codes in self._codes(weight, choice))
        ratios = self.ratios[choice].cpu().numpy()
        points = tuple(
            Point(codes.astype("int8"), bits, ratio.astype("int16"))
            for codes, ratio in zip(further, ratios, strict=True)
        )
        step = self._step(weight, choice).cpu().double().numpy()
        return WeightNumbers(base.astype("int32"), step, points=points)

    @torch.no_grad()
    def take(self, other: MultipointWeights) -> None:
        """As the contract says."""
        rows = [other.candidates.index(bits) for bits in self.candidates]
        self.log_steps.copy_(other.log_steps[rows])
        self.ratios.copy_(other.ratios[rows])

    def _high(self, choice: int) -> int:
        return weight_code_range(self._bits(choice))[1]

    def _step(self, x: Tensor, choice: int) -> Tensor:
        return self.log_steps[choice].exp() * _mean_magnitude(x)

    def _all_ratios(self, choice: int) -> Tensor:
        ratios = self.ratios[choice]
        return torch.cat([ratios, torch.ones_like(ratios[:1])])

    def _codes(self, x: Tensor, choice: int) -> list[Tensor]:
        """Returns the codes of all points, coarsest first and the base last: whole numbers of the type of ``x``."""
        high, column = self._high(choice), (-1, *[1] * (x.ndim - 1))
        rest, found = x / self._step(x, choice).reshape(column), []
        for ratio in self._all_ratios(choice).to(x.dtype):
            codes = (rest / ratio.reshape(column)).round().clamp(-high, high)
            rest = rest - codes * ratio.reshape(column)
            found.append(codes)
        return found

    def _value(self, x: Tensor, choice: int) -> Tensor:
        if self.candidates[choice] == FLOAT_BITS:
            return x.detach()
        column = (-1, *[1] * (x.ndim - 1))
        total = torch.zeros_like(x)
        for codes, ratio in zip(self._codes(x, choice), self._all_ratios(choice), strict=True):
            total = total + codes * ratio.to(x.dtype).reshape(column)
        return total * self._step(x, choice).reshape(column)

    def _inside(self, x: Tensor, choice: int) -> Tensor:
        if self.candidates[choice] == FLOAT_BITS:
            return torch.ones_like(x)
        reach = (self._high(choice) * self._all_ratios(choice).sum(0) + 0.5) * self._step(x, choice)
        return (x.abs() <= reach.reshape(-1, *[1] * (x.ndim - 1))).to(x.dtype)


def _mean_magnitude(x: Tensor) -> Tensor:
    return x.detach().abs().flatten(1).mean(1).clamp_min(_SMALLEST)


def _best_ratio(rest: Tensor, step: Tensor, grid: Grid, points: int) -> Tensor:
    """Returns, per row, the whole number by which a grid for ``rest`` ``[R, E]`` is finer, of least squared error.

    What an unclipped grid of step d leaves lies within d/2: a grid finer by ``2·high`` just covers it.
    """
    largest = 2 * grid.high + 2
    while grid.high * sum(largest**n for n in range(points + 1)) > _LARGEST_WEIGHT:
        largest -= 1
    best, least = torch.ones_like(step), torch.full_like(step, torch.inf)
    for ratio in torch.linspace(1, largest, min(largest, _RATIOS)).round().tolist():
        error = (rest - fake_quantize(rest, step / ratio, grid)).square().sum(1)
        best, least = torch.where(error < least, ratio, best), torch.minimum(error, least)
    return best


FAMILIES = (
    Family(
        "multipoint",
        "Liu et al. (AAAI 2021); as many points in every channel, whole-number ratios (ours)",
        MultipointWeights,
        points=MultipointWeights.further_points,
        trained=False,
        options=("further_points",),
    ),
)
