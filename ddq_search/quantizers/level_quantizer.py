"""What quantizers with a vector of levels share: scales, codes, gates, calibration, deployment.

A candidate of s bits has ``2^s`` levels in units of a scale. Weights share one table per tensor and have one scale per
output channel, a learned multiple of the channel's mean magnitude; their levels are integers within ±127, so they are
deployed as an int8 codebook. Activations have one scale per tensor; where their levels are not evenly spaced they
serve research only, because an integer program computes on affine grids.

The defaults of the options are the paper's, except the gate gradient: the difference of neighbouring quantizations is
what opening the gate changes, whereas the derivative of ``U/Z_U`` at a closed gate is half of that, and at an open
one of a higher bit compares levels far apart.
"""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ddq_search.distributed import leading
from ddq_search.errors import ConfigError, PolicyError
from ddq_search.precision import FLOAT_BITS, MAX_BITS, ActivationGrid
from ddq_search.quantizers.contract import ActivationQuantizer, Quantizer, WeightNumbers, WeightQuantizer
from ddq_search.quantizers.level_calibration import best_scales
from ddq_search.quantizers.merging import gate_direction
from ddq_search.quantizers.nearest_level import Backward, Levels, QuantizeToLevels, codes

GateGradient = Literal["neighbours", "through_z", "constant_z"]
Nearest = Literal["merged", "raw"]
ScaleGradient = Literal["levels", "step"]
Window = Literal["levels", "half_step", "everywhere"]

_SMALLEST = 1e-8
_CALIBRATION_VALUES = 512
"""Weights per output channel on which a scale is judged."""
_ACTIVATION_VALUES = 8192
"""Activations on which a scale is judged; the largest is taken over all."""


class LevelQuantizer(Quantizer):
    """Every value takes its nearest level.

    Attributes:
        gate_gradient: ``neighbours``: ``<g, x_q(k) − x_q(k−1)>``; ``through_z``: the derivative of ``U/Z_U`` times the
            fine levels; ``constant_z``: the same with ``Z_U`` a constant. A step to float32, and levels that are not
            merged, always have neighbours.
        nearest: a value looks for its nearest level among the ``merged`` ones, or among the fine ones (``raw``), whose
            block it then joins.
        window: where the input receives a gradient: between the extreme fine ``levels``, up to a ``half_step`` beyond
            the extreme merged ones, or ``everywhere``.
        shared_scale: one scale for all candidates, as merging implies, instead of one for each.
        scale_gradient: ``levels``: a scale moves its levels and values keep their codes, as in the paper; ``step``:
            values change codes as well, as in LSQ, without which a scale before a batch normalisation learns nothing.
        log_scales: learned; ``[1 or K]`` for activations, ``[1 or K, rows]`` for weights.
        bits: of the widest integer candidate.
    """

    gate_gradient: GateGradient = "neighbours"
    nearest: Nearest = "merged"
    window: Window = "levels"
    shared_scale: bool = True
    scale_gradient: ScaleGradient = "step"
    log_scales: nn.Parameter

    def __init__(self, candidates: tuple[int, ...], *rows: int) -> None:
        super().__init__(candidates)
        integers = [bits for bits in candidates if bits != FLOAT_BITS]
        if any(bits > MAX_BITS for bits in integers):
            raise ConfigError(
                f"level vectors have at most {MAX_BITS} bits, not {max(integers)}; cut the candidates or quantize "
                "this tensor with the family 'uniform'"
            )
        self.bits = max(integers, default=1)
        self.log_scales = nn.Parameter(torch.zeros(1 if self.shared_scale else len(candidates), *rows))

    # -- what a family says ------------------------------------------------------------------------------------

    @abstractmethod
    def table(self, choice: int) -> Tensor:
        """Returns the levels ``[2^s]`` of an integer candidate in units of its scale, ascending, differentiable."""

    def unit(self, choice: int) -> float:
        """Returns the candidate's unit in terms of `log_scales`."""
        return 1.0

    def fine_levels(self) -> Tensor | None:
        """Returns ``[n]`` levels whose blocks are merged, in terms of `log_scales`; None where nothing is merged."""
        return None

    def fit_levels(self, sample: Tensor) -> None:
        """Fits what is learned of the levels to a sample of (normalised) values; scales are fitted afterwards."""
        return

    def statistic(self, x: Tensor) -> Tensor | None:
        """Returns what the scales are relative to, without gradient; None for absolute scales."""
        return None

    # -- the contract ------------------------------------------------------------------------------------------

    def scale(self, x: Tensor, choice: int) -> Tensor:
        """Returns the scale of a candidate: ``[]``, or ``[rows]`` for weights."""
        statistic = self.statistic(x)
        own = self.log_scales[0 if self.shared_scale else choice].exp() * self.unit(choice)
        return own if statistic is None else own * statistic

    def fake_quantize(self, x: Tensor, choice: int, cumulative: Tensor | None = None) -> Tensor:
        """As the contract says; one fused autograd function."""
        fine = None
        if self.candidates[choice] != FLOAT_BITS:
            table, scale, fine = self.table(choice), self.scale(x, choice), self._fine(choice)
        elif cumulative is None:
            return x
        else:
            table, scale = x.new_zeros(1), x.new_ones(())
        how = self._backward(x, choice, table.detach(), fine, cumulative is not None)
        raw = fine.detach() if fine is not None and self.nearest == "raw" else None
        return QuantizeToLevels.apply(x, table, scale, cumulative, how, raw)  # type: ignore[no-any-return]

    @torch.no_grad()
    def quantize(self, x: Tensor, choice: int) -> Tensor:
        """As the contract says."""
        self._bits(choice)
        return codes(x, self._at(x, choice))

    @torch.no_grad()
    def levels(self, x: Tensor, choice: int) -> Tensor:
        """As the contract says."""
        self._bits(choice)
        return self.scale(x, choice)[..., None] * self.table(choice)

    @torch.no_grad()
    def take(self, other: LevelQuantizer) -> None:
        """As the contract says."""
        rows = [0] if self.shared_scale else [other.candidates.index(bits) for bits in self.candidates]
        self.log_scales.copy_(other.log_scales[rows])

    # -- inside ------------------------------------------------------------------------------------------------

    def _fine(self, choice: int) -> Tensor | None:
        fine = self.fine_levels()
        return None if fine is None else fine / self.unit(choice)

    def _at(self, x: Tensor, choice: int) -> Levels:
        fine = self._fine(choice) if self.nearest == "raw" else None
        return Levels(self.table(choice), self.scale(x, choice), fine)

    @torch.no_grad()
    def _backward(self, x: Tensor, choice: int, table: Tensor, fine: Tensor | None, gated: bool) -> Backward:
        by_row = self.log_scales.ndim == 2
        part = (x.shape[0], 1.0) if by_row else leading(x.shape[0], self.gradient_share)
        others: list[Levels | None] = [None] * len(self.candidates)
        for k, bits in enumerate(self.candidates):
            if bits != FLOAT_BITS and (gated or k == choice):
                others[k] = self._at(x, k)
        directions = None
        if gated and fine is not None and self.gate_gradient != "neighbours":
            directions = self._directions(fine, self.candidates[choice])
        window = self._window(table, fine)
        as_step = self.scale_gradient == "step"
        return Backward(tuple(others), choice, as_step, window, fine, directions, part, self.own_correction)

    def _directions(self, fine: Tensor, opened: int) -> Tensor:
        constant_z = self.gate_gradient == "constant_z"
        opened = min(opened, fine.numel().bit_length() - 1)
        rows = []
        for low, high in pairwise(self.candidates):
            if high == FLOAT_BITS:
                rows.append(torch.full_like(fine, torch.nan))
            else:
                rows.append(gate_direction(fine, opened, range(low, high), constant_z=constant_z))
        return torch.stack(rows)

    def _window(self, table: Tensor, fine: Tensor | None) -> tuple[float, float] | None:
        if self.window == "everywhere":
            return None
        if self.window == "half_step" and table.numel() > 1:
            ends = torch.stack([1.5 * table[0] - 0.5 * table[1], 1.5 * table[-1] - 0.5 * table[-2]])
        else:
            ends = (table if fine is None else fine)[[0, -1]]
        low, high = ends.tolist()
        return low, high

    @torch.no_grad()
    def _fit_scales(self, rows: Tensor, largest: Tensor) -> None:
        integers = [k for k, bits in enumerate(self.candidates) if bits != FLOAT_BITS]
        if integers:
            tables = [self.table(k) * self.unit(k) for k in integers]
            best = best_scales(rows, tables, largest, shared=self.shared_scale).log()
            self.log_scales[[0] if self.shared_scale else integers] = best.reshape(-1, *self.log_scales.shape[1:])


class LevelWeights(LevelQuantizer, WeightQuantizer):
    """Integer levels within ±127, one table per tensor, one scale per output channel."""

    def __init__(self, candidates: tuple[int, ...], rows: int) -> None:
        super().__init__(candidates, rows)

    def statistic(self, x: Tensor) -> Tensor:
        """Mean magnitude per output channel, never 0."""
        return x.detach().abs().flatten(1).mean(1).clamp_min(_SMALLEST)

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """Fits the levels to all channels together, then the scale of every channel."""
        flat = weight.detach().flatten(1)
        normal = flat / self.statistic(weight)[:, None]
        sample = normal[:, :: -(-flat.shape[1] // _CALIBRATION_VALUES)]
        self.fit_levels(sample.flatten())
        self._fit_scales(sample, normal.abs().amax(1).clamp_min(_SMALLEST))

    @torch.no_grad()
    def numbers(self, weight: Tensor, choice: int) -> WeightNumbers:
        """As the contract says: codes into an int8 codebook."""
        codebook = self.table(choice).cpu().numpy().astype(np.int8)
        scale = self.scale(weight, choice).cpu().double().numpy()
        return WeightNumbers(self.quantize(weight, choice).cpu().numpy(), scale, codebook)


class LevelActivations(LevelQuantizer, ActivationQuantizer):
    """One scale per tensor; one-sided (no level below 0) where the tensor is.

    Attributes:
        known: scale and zero point of an affine grid that was given, scale 0 where none was.
    """

    known: Tensor

    def __init__(self, candidates: tuple[int, ...], nonnegative: bool) -> None:
        super().__init__(candidates)
        self.nonnegative = nonnegative
        self.register_buffer("known", torch.zeros(2))

    def table(self, choice: int) -> Tensor:
        """As `LevelQuantizer` says: the family's levels, or the grid that was given."""
        if not self._is_known():
            return self.own_table(choice)
        count = 2 ** self._bits(choice)
        return torch.arange(count, device=self.known.device) - self.known[1]

    @abstractmethod
    def own_table(self, choice: int) -> Tensor:
        """Returns the family's levels, as `table`."""

    def scale(self, x: Tensor, choice: int) -> Tensor:
        """As `LevelQuantizer` says."""
        return self.known[0] if self._is_known() else super().scale(x, choice)

    def _fine(self, choice: int) -> Tensor | None:
        return None if self._is_known() else super()._fine(choice)

    def _is_known(self) -> bool:
        return bool(self.known[0] > 0)

    @torch.no_grad()
    def calibrate(self, sample: Tensor) -> None:
        """Fits the levels to a sample of the tensor's values, then the scale."""
        flat = sample.detach().flatten()
        flat = flat.relu() if self.nonnegative else flat
        self.known.zero_()
        self.fit_levels(flat)
        largest = flat.abs().amax(0, keepdim=True).clamp_min(_SMALLEST)
        self._fit_scales(flat[None, :: -(-flat.numel() // _ACTIVATION_VALUES)], largest)

    def grid(self, choice: int) -> ActivationGrid:
        """As the contract says; these levels are no affine grid unless one was given."""
        bits = self._bits(choice)
        if self._is_known():
            scale, zero_point = self.known.tolist()
            return ActivationGrid(scale, int(zero_point), bits)
        raise PolicyError(
            f"activations on {type(self).__name__} lie on no affine grid, so no integer program can run them; use a "
            "family with uniform activations (such as 'uniform') for them, and level vectors for the weights"
        )

    @torch.no_grad()
    def set_grid(self, scale: float, zero_point: int) -> None:
        """As the contract says."""
        self.known.copy_(torch.tensor([scale, zero_point]))

    @torch.no_grad()
    def take(self, other: LevelQuantizer) -> None:
        """As the contract says."""
        super().take(other)
        assert isinstance(other, LevelActivations)
        self.known.copy_(other.known)
