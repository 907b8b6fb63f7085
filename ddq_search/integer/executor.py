"""The reference executor: NumPy int64, one obvious function per step. It is the specification.

Shapes: ``[N, C, H, W]`` or ``[N, F]`` codes; ``zp`` zero point. An accumulator that leaves int32 (int64 where 16-bit
activations are convolved: 2^47) is an error, never a wrap-around.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ddq_search.errors import VerificationError
from ddq_search.integer.program import (
    WIDE_ACCUMULATOR_MAX,
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
    Rounding,
    Step,
    Tensor,
    Weighted,
    shuffle_factor,
)  # fmt: skip
from ddq_search.precision import activation_code_range

Integers = NDArray[np.int64]
Codes = NDArray[Any]
"""Codes of a tensor: uint8, or uint16 on a grid of 16 bits."""
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def run(
    program: IntegerProgram, codes: NDArray[np.integer], *, chunk: int = 16, by_code: bool = False
) -> dict[str, Codes]:
    """Returns the codes of every tensor, step name → ``[N, ...]`` uint8, or uint16 on grids of 16 bits.

    Args:
        program: what to execute.
        codes: ``[N, ...]`` codes on the grid of the program's input.
        chunk: samples executed at a time; changes memory, not results.
        by_code: compute layers with a codebook as DDQ does, ``y = Σ_k level_k S_k``, where ``S_k`` is the sum of the
            inputs whose weight has code k: one multiplication per code. Changes time, not results.

    Raises:
        VerificationError: the codes do not fit the input, or an accumulator left int32.
    """
    _check_codes(program.input, codes)
    starts = range(0, max(len(codes), 1), chunk)
    parts = [_run_chunk(program, codes[i : i + chunk].astype(np.int64), by_code) for i in starts]
    return {step.name: np.concatenate([part[step.name] for part in parts]) for step in program.steps}


def requantize(acc: Integers, multiplier: Any, shift: Any, rounding: Rounding) -> Integers:
    """Returns ``acc * multiplier / 2^31 * 2^shift`` rounded as named; ``multiplier`` and ``shift`` broadcast."""
    m, s = np.asarray(multiplier, np.int64), np.asarray(shift, np.int64)
    if rounding == "reduced":
        fifteen_bits = np.minimum((m + (1 << 15)) >> 16, 0x7FFF)
        return np.asarray((acc * fifteen_bits + (np.int64(1) << (14 - s))) >> (15 - s))
    if rounding == "single":
        return np.asarray((acc * m + (np.int64(1) << (30 - s))) >> (31 - s))
    raised = np.clip(acc << np.maximum(s, 0), INT32_MIN, INT32_MAX)
    high = (raised * m + (1 << 30)) >> 31
    down = np.maximum(-s, 0)
    mask = (np.int64(1) << down) - 1
    remainder = high & mask
    threshold = (mask >> 1) + (high < 0)
    return np.asarray((high >> down) + (remainder > threshold))


def _check_codes(tensor: Tensor, codes: NDArray[np.integer]) -> None:
    if not np.issubdtype(codes.dtype, np.integer) or codes.shape[1:] != tensor.shape:
        raise VerificationError(
            f"the program reads integer codes of shape [N, {', '.join(map(str, tensor.shape))}], "
            f"not {codes.dtype} of shape {list(codes.shape)}"
        )
    low, high = activation_code_range(tensor.grid.bits)
    if codes.size and not low <= int(codes.min()) <= int(codes.max()) <= high:
        raise VerificationError(f"input codes leave the range {low} … {high} of the input's grid")


def _run_chunk(program: IntegerProgram, codes: Integers, by_code: bool) -> dict[str, Codes]:
    values: dict[str, Codes] = {}
    for step in program.steps:
        if isinstance(step, Input):
            result = codes
        else:
            sources = [program.tensors[name] for name in step.inputs]
            x = [values[name].astype(np.int64) for name in step.inputs]
            result = _execute(step, program.tensors[step.name], sources, x, by_code)
        wide = program.tensors[step.name].grid.bits > 8
        values[step.name] = result.astype(np.uint16 if wide else np.uint8)
    return values


def _execute(step: Step, output: Tensor, sources: list[Tensor], x: list[Integers], by_code: bool = False) -> Integers:
    zero_points = [source.grid.zero_point for source in sources]
    if isinstance(step, Weighted):
        acc = _accumulate(step, x[0] - zero_points[0], by_code)
        per_channel = (-1, 1, 1) if step.kind == "conv2d" else (-1,)
        acc = acc + step.bias.astype(np.int64).reshape(per_channel)
        acc = _within(step.name, acc, WIDE_ACCUMULATOR_MAX) if step.rounding == "reduced" else _int32(step.name, acc)
        y = requantize(acc, step.multiplier.reshape(per_channel), step.shift.reshape(per_channel), step.rounding)
        return np.clip(y + output.grid.zero_point, step.low, step.high)
    if isinstance(step, Add):
        first, second = (
            requantize((codes - zp) << step.left_shift, factor.multiplier, factor.shift, step.rounding)
            for codes, zp, factor in zip(x, zero_points, step.factors, strict=True)
        )
        y = _scaled(step.name, first + second, step.output_factor, step.rounding)
        return np.clip(y + output.grid.zero_point, step.low, step.high)
    if isinstance(step, Multiply):
        y = _scaled(step.name, (x[0] - zero_points[0]) * (x[1] - zero_points[1]), step.factor, step.rounding)
        return np.clip(y + output.grid.zero_point, step.low, step.high)
    if isinstance(step, Mean):
        y = _scaled(step.name, (x[0] - zero_points[0]).sum(axis=(2, 3)), step.factor, step.rounding)
        y = np.clip(y + output.grid.zero_point, *activation_code_range(output.grid.bits))
        return y.reshape(len(y), *output.shape)
    if isinstance(step, MaxPool):
        return np.asarray(_windows(step, _extend(step, x[0], output, outside=-1, overhang=-1), output).max(axis=(4, 5)))
    if isinstance(step, AveragePool):
        return _average(step, x[0], zero_points[0], output)
    if isinstance(step, Lookup):
        return step.table.astype(np.int64)[x[0]]
    assert isinstance(step, Move)
    return _move(step, output, x)


def _accumulate(step: Weighted, centred: Integers, by_code: bool) -> Integers:
    """Sum of products, ``[N, rows, ...]``; ``centred`` is ``x − zp``."""
    products = _convolve if step.kind == "conv2d" else _matrix_product
    if step.codebook is None or not by_code:
        return products(step, centred, step.weights.astype(np.int64))
    sums = (products(step, centred, (step.codes == code).astype(np.int64)) for code in range(step.codebook.size))
    return np.asarray(sum(int(level) * inputs for level, inputs in zip(step.codebook, sums, strict=True)))


def _convolve(step: Weighted, centred: Integers, weights: Integers) -> Integers:
    """Sum over each window, ``[N, rows, H_out, W_out]``; ``centred`` is ``x − zp``, so padding is zero."""
    rows, depth, height, width = weights.shape
    (top, bottom, left, right), (down, across) = step.padding, step.dilation
    padded = np.pad(centred, ((0, 0), (0, 0), (top, bottom), (left, right)))
    extent = ((height - 1) * down + 1, (width - 1) * across + 1)
    windows = sliding_window_view(padded, extent, axis=(2, 3))  # [N, C, H, W, extent...]
    windows = windows[:, :, :: step.stride[0], :: step.stride[1], ::down, ::across]
    samples, _, out_h, out_w = windows.shape[:4]
    columns = windows.transpose(0, 1, 4, 5, 2, 3).reshape(samples, step.groups, depth * height * width, out_h * out_w)
    grouped = weights.reshape(step.groups, rows // step.groups, depth * height * width)
    acc = np.stack([_products(grouped[g], columns[:, g]) for g in range(step.groups)], axis=1)
    return acc.reshape(samples, rows, out_h, out_w)


def _matrix_product(step: Weighted, centred: Integers, weights: Integers) -> Integers:
    return np.asarray(np.einsum("nk,ok->no", centred, weights))


def _products(weights: Integers, columns: Integers) -> Integers:
    """``[o, k] x [N, k, p] → [N, o, p]``."""
    return np.asarray(np.einsum("ok,nkp->nop", weights, columns))


def _extend(step: MaxPool | AveragePool, x: Integers, output: Tensor, *, outside: int, overhang: int) -> Integers:
    """Surrounds images with ``outside`` where the layer pads, ``overhang`` where a last window sticks out further."""
    top, bottom, left, right = step.padding
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=outside)
    windows = zip(output.shape[1:], step.stride, step.kernel_size, padded.shape[2:], strict=True)
    more = [max((count - 1) * stride + kernel - size, 0) for count, stride, kernel, size in windows]
    return np.pad(padded, ((0, 0), (0, 0), (0, more[0]), (0, more[1])), constant_values=overhang)


def _windows(step: MaxPool | AveragePool, extended: Integers, output: Tensor) -> Integers:
    """``[N, C, H_out, W_out, kh, kw]``."""
    windows = sliding_window_view(extended, step.kernel_size, axis=(2, 3))[:, :, :: step.stride[0], :: step.stride[1]]
    return np.asarray(windows[:, :, : output.shape[1], : output.shape[2]])


def _average(step: AveragePool, x: Integers, zero_point: int, output: Tensor) -> Integers:
    counted = int(step.count_include_pad)
    ones = np.ones_like(x[:1, :1])
    total = _windows(step, _extend(step, x, output, outside=zero_point * counted, overhang=0), output).sum(axis=(4, 5))
    count = _windows(step, _extend(step, ones, output, outside=counted, overhang=0), output).sum(axis=(4, 5))
    if step.rounding == "half_up":
        return np.asarray((total + count // 2) // count)
    zero = 2 ** (15 if output.grid.bits > 8 else 7)
    signed = total - zero * count
    magnitude = (np.abs(signed) + count // 2) // count
    return np.asarray(np.where(signed < 0, -magnitude, magnitude) + zero)


def _scaled(name: str, acc: Integers, factor: FixedPoint, rounding: Rounding) -> Integers:
    return requantize(_int32(name, acc), factor.multiplier, factor.shift, rounding)


def _within(name: str, acc: Integers, largest: int) -> Integers:
    if acc.size and int(np.abs(acc).max()) > largest:
        raise VerificationError(f"{name!r}: an accumulator left ±{largest}")
    return acc


def _int32(name: str, acc: Integers) -> Integers:
    if acc.size and not INT32_MIN <= int(acc.min()) <= int(acc.max()) <= INT32_MAX:
        raise VerificationError(f"{name!r}: an accumulator left int32")
    return acc


def _move(step: Move, output: Tensor, x: list[Integers]) -> Integers:
    if step.kind == "concat":
        return np.concatenate(x, axis=step.dim + 1)
    if step.kind == "transpose":
        return x[0].transpose(0, *(dim + 1 for dim in step.dims))
    if step.kind == "pixel_shuffle":
        samples, (channels, height, width) = len(x[0]), output.shape
        factor = shuffle_factor(x[0].shape[1:], output.shape)
        parts = x[0].reshape(samples, channels, factor, factor, height // factor, width // factor)
        return parts.transpose(0, 1, 4, 2, 5, 3).reshape(samples, *output.shape)
    if step.kind == "slice":
        return np.take(x[0], np.arange(step.start, step.stop), axis=step.dim + 1)
    return x[0].reshape(len(x[0]), *output.shape)
