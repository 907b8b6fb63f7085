"""Evaluation mode: the integer program in torch, fast and in batches. Every reported score comes from here.

Written apart from the reference executor (`ddq_search.integer.executor`) on purpose: the two check each other. They
share the program, not one line that runs it.

Sums of products run in floating point only where that is exact: in float32 where the largest accumulator of the layer
stays below 2^24, in float64 otherwise (an int32 accumulator always fits its 53 bits). Requantization is int64.

Legend: ``[N, C, H, W]`` or ``[N, F]`` codes, uint8, or int32 on grids of 16 bits; ``zp`` zero point.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddq_search.errors import VerificationError
from ddq_search.integer.program import (
    Add,
    AveragePool,
    FixedPoint,
    Input,
    IntegerProgram,
    Lookup,
    MaxPool,
    Mean,
    Move,
    Multiply,
    Step,
    Weighted,
    accumulator_bound,
)  # fmt: skip
from ddq_search.integer.program import Tensor as ProgramTensor
from ddq_search.precision import ActivationGrid, activation_code_range
from ddq_search.requantization import Form, serves

FLOAT32_EXACT = 2**24
"""Below this, every integer is a float32, so sums are exact in any order."""

CHUNK = 64
"""Samples of one pass on a CPU: large batches leave its cache."""


class IntegerEvaluator:
    """Runs an integer program in torch.

    Args:
        program: what to run.
        device: where to run it; results do not depend on it.
    """

    def __init__(self, program: IntegerProgram, device: str | torch.device = "cpu") -> None:
        self.program = program
        self.device = torch.device(device)
        self.float32_layers: set[str] = set()
        self._weights: dict[str, Tensor] = {}
        self._channels: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._tables: dict[str, Tensor] = {}
        self._forms: dict[str, Form] = {}
        self._addends: dict[str, tuple[Tensor, Tensor]] = {}
        for step in program.steps:
            if isinstance(step, Weighted):
                self._prepare(step)
            elif isinstance(step, Lookup):
                self._tables[step.name] = torch.from_numpy(step.table.copy()).to(self.device)
            elif isinstance(step, Add):
                self._prepare_sum(step)
        self._uses = Counter(name for step in program.steps for name in step.inputs)

    def run(self, codes: Tensor | np.ndarray[Any, Any]) -> dict[str, Tensor]:
        """Returns the codes of every tensor, step name → ``[N, ...]``."""
        return self._execute(self._codes(codes), keep=True)

    def output_codes(self, codes: Tensor | np.ndarray[Any, Any]) -> Tensor:
        """Returns the codes of the output alone, ``[N, ...]``; other tensors are freed after their last use."""
        given = self._codes(codes)
        if given.ndim == 4:
            given = given.contiguous(memory_format=torch.channels_last)  # in which convolutions are faster
        parts = given.split(CHUNK if self.device.type == "cpu" else 16 * CHUNK)
        return torch.cat([self._execute(part, keep=False)[self.program.output.name] for part in parts])

    def scores(self, images: Tensor | np.ndarray[Any, Any]) -> Tensor:
        """Returns the real output ``[N, ...]`` float32 for real images ``[N, ...]``, or for their codes."""
        given = torch.as_tensor(images)
        codes = self.quantize(given) if given.is_floating_point() else given
        grid = self.program.output.grid
        return ((self.output_codes(codes).double() - grid.zero_point) * grid.scale).float()

    def quantize(self, images: Tensor) -> Tensor:
        """Returns the codes ``[N, ...]`` of real images, rounded half to even in float32."""
        grid = self.program.input.grid
        low, high = activation_code_range(grid.bits)
        codes = torch.round(images.to(self.device, torch.float32) / grid.scale) + grid.zero_point
        return codes.clamp(low, high).to(_code_type(grid))

    # -- preparing --------------------------------------------------------------------------------------------

    def _prepare(self, step: Weighted) -> None:
        bound = accumulator_bound(step, self.program.tensors[step.inputs[0]].grid)
        exact = int(bound.max()) < FLOAT32_EXACT
        if exact:
            self.float32_layers.add(step.name)
        self._weights[step.name] = _weights(step).to(self.device, torch.float32 if exact else torch.float64)
        shape = (-1, 1, 1) if step.kind == "conv2d" else (-1,)
        bias, multiplier, shift = (
            torch.from_numpy(part.astype(np.int64)).reshape(shape).to(self.device)
            for part in (step.bias, step.multiplier, step.shift)
        )
        self._channels[step.name] = (bias, multiplier, shift)
        if exact:
            self._prepare_form(step, bias, multiplier, shift)

    def _prepare_sum(self, step: Add) -> None:
        grids = [self.program.tensors[name].grid for name in step.inputs]
        if len(grids) == 2 and all(grid.bits <= 8 for grid in grids):
            first, second = (
                self._scaled((torch.arange(256) - grid.zero_point) * 2**step.left_shift, factor, step.rounding)
                for grid, factor in zip(grids, step.factors, strict=True)
            )
            self._addends[step.name] = (first, second)
            multiplier, shift = (torch.tensor([value]) for value in vars(step.output_factor).values())
            self._prepare_form(step, torch.zeros(1, dtype=torch.int64), multiplier, shift)

    def _prepare_form(self, step: Weighted | Add, bias: Tensor, multiplier: Tensor, shift: Tensor) -> None:
        grid = self.program.tensors[step.name].grid
        if grid.bits <= 8 and step.rounding != "reduced" and self.device.type == "cpu":
            facts = (bias, multiplier, shift, step.rounding, grid.zero_point, step.low, step.high)
            self._forms[step.name] = Form.of(*facts)

    def _codes(self, codes: Tensor | np.ndarray[Any, Any]) -> Tensor:
        given = torch.as_tensor(codes)
        given = given.int() if given.dtype == torch.uint16 else given
        expected = self.program.input
        if given.is_floating_point() or tuple(given.shape[1:]) != expected.shape:
            raise VerificationError(
                f"the program reads integer codes of shape [N, {', '.join(map(str, expected.shape))}], "
                f"not {given.dtype} of shape {list(given.shape)}"
            )
        low, high = activation_code_range(expected.grid.bits)
        if given.numel() and not (low <= int(given.min()) and int(given.max()) <= high):
            raise VerificationError(f"input codes leave the range {low} … {high} of the input's grid")
        return given.to(self.device, _code_type(expected.grid))

    # -- executing --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _execute(self, codes: Tensor, *, keep: bool) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        waiting = Counter(self._uses)
        with _exact_floats(self.device):
            for step in self.program.steps:
                x = [values[name] for name in step.inputs]
                values[step.name] = codes if isinstance(step, Input) else self._step(step, x)
                for name in step.inputs:
                    waiting[name] -= 1
                    if not keep and waiting[name] == 0:
                        values.pop(name, None)
        return values

    def _step(self, step: Step, x: list[Tensor]) -> Tensor:
        output = self.program.tensors[step.name]
        zero_points = [self.program.tensors[name].grid.zero_point for name in step.inputs]
        if isinstance(step, Weighted):
            sums = self._products(step, x[0], zero_points[0])
            if step.name in self._forms and serves(sums):
                return self._forms[step.name].codes(sums)
            bias, multiplier, shift = self._channels[step.name]
            scaled = _requantized(sums.to(torch.int64).add_(bias), multiplier, shift, step.rounding)
            return _clamped(scaled, output.grid, step.low, step.high)
        if isinstance(step, Add):
            if step.name in self._addends and step.name in self._forms and serves(*x):
                return self._forms[step.name].codes_of_sum(x[0], x[1], self._addends[step.name])
            total = sum(
                (
                    self._scaled((codes.to(torch.int64) - zp) * 2**step.left_shift, factor, step.rounding)
                    for codes, zp, factor in zip(x, zero_points, step.factors, strict=True)
                ),
                start=torch.zeros((), dtype=torch.int64, device=self.device),
            )
            scaled = self._scaled(total, step.output_factor, step.rounding)
            return _clamped(scaled, output.grid, step.low, step.high)
        if isinstance(step, Multiply):
            first, second = (codes.to(torch.int64) - zp for codes, zp in zip(x, zero_points, strict=True))
            scaled = self._scaled(first * second, step.factor, step.rounding)
            return _clamped(scaled, output.grid, step.low, step.high)
        if isinstance(step, Mean):
            count = x[0].shape[2] * x[0].shape[3]
            acc = x[0].sum((2, 3), dtype=torch.int64) - count * zero_points[0]
            low, high = activation_code_range(output.grid.bits)
            scaled = _clamped(self._scaled(acc, step.factor, step.rounding), output.grid, low, high)
            return scaled.reshape(-1, *output.shape)
        if isinstance(step, MaxPool):
            return _max_pool(step, x[0], output.shape)
        if isinstance(step, AveragePool):
            return _average_pool(step, x[0], output)
        if isinstance(step, Lookup):
            return self._tables[step.name][x[0].int()]
        assert isinstance(step, Move)
        return _moved(step, x, output.shape)

    def _products(self, step: Weighted, codes: Tensor, zero_point: int) -> Tensor:
        weights = self._weights[step.name]
        centred = codes.to(weights.dtype)
        if zero_point:
            centred.sub_(zero_point)
        if step.kind == "linear":
            return F.linear(centred, weights)
        top, bottom, left, right = step.padding
        if (top, left) == (bottom, right):
            return F.conv2d(centred, weights, None, step.stride, (top, left), step.dilation, step.groups)
        padded = F.pad(centred, (left, right, top, bottom))
        return F.conv2d(padded, weights, None, step.stride, 0, step.dilation, step.groups)

    def _scaled(self, acc: Tensor, factor: FixedPoint, rounding: str) -> Tensor:
        multiplier, shift = (torch.tensor(v, dtype=torch.int64, device=self.device) for v in vars(factor).values())
        return _requantized(acc.clone(), multiplier, shift, rounding)


def _weights(step: Weighted) -> Tensor:
    """Integer weights in float64: looked up, or summed over the points."""
    codes = torch.from_numpy(step.codes.copy())
    if step.codebook is not None:
        return torch.from_numpy(step.codebook.copy()).double().take(codes.long())
    weights = codes.double()
    for point in step.points:
        further = torch.from_numpy(point.codes.copy()).double()
        weights += (further.flatten(1) * torch.from_numpy(point.ratio.copy()).double()[:, None]).view_as(weights)
    return weights


def _requantized(acc: Tensor, multiplier: Tensor, shift: Tensor, rounding: str) -> Tensor:
    """``acc * multiplier / 2^31 * 2^shift`` in int64; overwrites ``acc``."""
    if rounding in ("single", "reduced"):
        right = 31 - shift
        if rounding == "reduced":  # 15 bits of the multiplier
            multiplier, right = ((multiplier + 2**15) >> 16).clamp(max=2**15 - 1), right - 16
        half = torch.ones_like(right).bitwise_left_shift(right - 1)
        return acc.mul_(multiplier).add_(half).bitwise_right_shift_(right)
    if bool((shift > 0).any()):
        acc = acc.mul_(torch.ones_like(shift).bitwise_left_shift(shift.clamp(min=0))).clamp_(-(2**31), 2**31 - 1)
    acc = acc.mul_(multiplier).add_(2**30).bitwise_right_shift_(torch.full_like(shift, 31))
    right = (-shift).clamp(min=0)
    half = torch.ones_like(right).bitwise_left_shift(right) // 2
    towards_zero = (acc < 0) & (half > 0)  # a tie below zero belongs to the farther integer
    return acc.add_(half).sub_(towards_zero.to(torch.int64)).bitwise_right_shift_(right)


def _clamped(values: Tensor, grid: ActivationGrid, low: int, high: int) -> Tensor:
    return values.add_(grid.zero_point).clamp_(low, high).to(_code_type(grid))


def _code_type(grid: ActivationGrid) -> torch.dtype:
    """Torch computes little on its uint16."""
    return torch.uint8 if grid.bits <= 8 else torch.int32


def _max_pool(step: MaxPool, codes: Tensor, shape: tuple[int, ...]) -> Tensor:
    grown = _grown(codes.float() + 1, step, shape)  # 0 = padding, below every code
    return (F.max_pool2d(grown, step.kernel_size, step.stride) - 1).to(codes.dtype)


def _average_pool(step: AveragePool, codes: Tensor, output: ProgramTensor) -> Tensor:
    """Sums of ``x − zp`` (padding adds 0) by pooling with divisor 1, then one integer division by the count."""
    shape, zero_point = output.shape, output.grid.zero_point
    counted = torch.ones_like(codes[:1, :1], dtype=torch.float64)
    if step.count_include_pad:
        top, bottom, left, right = step.padding
        counted = F.pad(counted, (left, right, top, bottom), value=1.0)
    count = _sums(_grown(counted, step, shape, padded=step.count_include_pad), step)
    total = _sums(_grown(codes.double() - zero_point, step, shape), step) + zero_point * count
    if step.rounding == "half_up":
        return torch.div(2 * total + count, 2 * count, rounding_mode="floor").to(codes.dtype)
    zero = 128 if output.grid.bits <= 8 else 2**15
    signed = total - zero * count
    away = torch.div(2 * signed + count * signed.sign(), 2 * count, rounding_mode="trunc")
    return (away + zero).to(codes.dtype)


def _grown(images: Tensor, step: MaxPool | AveragePool, shape: tuple[int, ...], *, padded: bool = False) -> Tensor:
    """Zero-pads images so that plain windows give ``shape``; ``padded`` images carry the layer's padding already."""
    top, bottom, left, right = (0, 0, 0, 0) if padded else step.padding
    needed = [(n - 1) * s + k for n, s, k in zip(shape[1:], step.stride, step.kernel_size, strict=True)]
    images = F.pad(images, (left, right, top, bottom))
    more = [max(n - size, 0) for n, size in zip(needed, images.shape[2:], strict=True)]
    return F.pad(images, (0, more[1], 0, more[0]))[:, :, : needed[0], : needed[1]]


def _sums(images: Tensor, step: AveragePool) -> Tensor:
    return F.avg_pool2d(images, step.kernel_size, step.stride, divisor_override=1).to(torch.int64)


def _moved(step: Move, x: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    if step.kind == "concat":
        return torch.cat(x, step.dim + 1)
    if step.kind == "transpose":
        return x[0].permute(0, *(dim + 1 for dim in step.dims)).contiguous()
    if step.kind == "pixel_shuffle":
        return F.pixel_shuffle(x[0], shape[1] // x[0].shape[2])
    if step.kind == "slice":
        return x[0].narrow(step.dim + 1, step.start, step.stop - step.start)
    return x[0].reshape(x[0].shape[0], *shape)


@contextlib.contextmanager
def _exact_floats(device: torch.device) -> Iterator[None]:
    """Keeps float32 products exact: no autocast, no TF32 or bfloat16, no transformed convolutions on accelerators."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False), torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
