"""From a discrete network to an integer program: every real number becomes a code, a multiplier or a table here.

Legend: ``s`` scale, ``zp`` zero point, ``x`` input, ``y`` output, ``c`` output channel,
``A_c = |gain_c| * weight scale_c * s_x`` the real value of one step of channel c's accumulator.

Source: the published integer definitions of TensorFlow Lite's operators (``tflite``) and of XNNPACK-like runtimes
(``single``); our code.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddq_search.arithmetic import ARITHMETICS, Arithmetic, quantize_multiplier
from ddq_search.discrete import DiscreteNetwork, LayerNumbers, weight_reach
from ddq_search.errors import ExportError
from ddq_search.graph import SAME_GRID, WEIGHTED, Operation, inputs_of, operations
from ddq_search.integer.program import (
    INT32_MAX,
    WIDE_ACCUMULATOR_MAX,
    WIDE_SHIFT_MAX,
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
    PoolRounding,
    Rounding,
    Step,
    Tensor,
    Weighted,
    check,
    reach,
)  # fmt: skip
from ddq_search.integer.tables import activation_table, round_half_away
from ddq_search.integer.weight_codes import drowned, signed_indices, signed_points, signed_values
from ddq_search.precision import WIDE_BITS, ActivationGrid, activation_code_range

ADD_LEFT_SHIFT, WIDE_ADD_LEFT_SHIFT = 20, 15
"""Headroom of an add: 8-bit codes shifted by 20, and 16-bit codes shifted by 15, still fit int32."""


def lower(network: DiscreteNetwork, arithmetic: Arithmetic) -> IntegerProgram:
    """Returns the integer program of a network for a runtime's arithmetic.

    Raises:
        ExportError: tied tensors differ in grid, an accumulator may overflow, or a ratio of scales has no fixed-point
            form; the message names the layer and channel.
    """
    if arithmetic not in ARITHMETICS:
        raise ExportError(f"unknown arithmetic {arithmetic!r}; known: {', '.join(ARITHMETICS)}")
    tensors: dict[str, Tensor] = {}
    steps: list[Step] = []
    for op in operations(network.graph):
        if op.name not in network.grids:
            raise ExportError(f"{op.name!r} has no activation grid")
        sources = inputs_of(network.graph, op.name)
        if op.kind in SAME_GRID and any(network.grids[source] != network.grids[op.name] for source in sources):
            raise ExportError(f"{op.kind} {op.name!r} needs one grid for inputs and output; tie their quantizers")
        tensors[op.name] = Tensor(op.name, op.output_shape, _stored_grid(op.name, network.grids[op.name]))
        _check_wide(op, [tensors[name].grid for name in (*sources, op.name)], arithmetic)
        steps.append(_step(op, tuple(sources), network, tensors, arithmetic))
    program = IntegerProgram(arithmetic, tensors, tuple(steps), {k: int(v) for k, v in network.policy.items()})
    check(program)
    return program


def _check_wide(op: Operation, grids: list[ActivationGrid], arithmetic: Arithmetic) -> None:
    """16-bit activations only as TensorFlow Lite has them: its arithmetic, no tables, input and output alike."""
    wide = [grid.bits == WIDE_BITS for grid in grids]
    if not any(wide):
        return
    if arithmetic != "tflite":
        problem = f"exist in the arithmetic 'tflite' only, not in {arithmetic!r}"
    elif op.kind == "activation":
        problem = "have no look-up tables"
    elif not all(wide):
        problem = "need inputs and output alike at 16 bits"
    else:
        return
    raise ExportError(f"{op.kind} {op.name!r}: 16-bit activations {problem}; give it 8 bits or fewer")


def quantize_input(images: NDArray[np.floating], grid: ActivationGrid) -> NDArray[Any]:
    """Returns the codes ``[N, ...]`` of real inputs, rounded half to even in float32 as ONNX and torch do.

    They are uint8, or uint16 on a grid of 16 bits.

    >>> quantize_input(np.array([[-9.0, 0.0, 0.26]]), ActivationGrid(0.1, 3, 8))
    array([[0, 3, 6]], dtype=uint8)
    """
    low, high = activation_code_range(grid.bits)
    codes = np.rint(np.asarray(images, np.float32) / np.float32(grid.scale)) + np.float32(grid.zero_point)
    return np.asarray(np.clip(codes, low, high), np.uint16 if grid.bits == WIDE_BITS else np.uint8)


def dequantize(codes: NDArray[np.integer], grid: ActivationGrid) -> NDArray[np.float32]:
    """Returns the real values ``[N, ...]`` that codes stand for."""
    real: NDArray[np.float32] = ((codes.astype(np.int64) - grid.zero_point) * grid.scale).astype(np.float32)
    return real


def _step(
    op: Operation, sources: tuple[str, ...], network: DiscreteNetwork, tensors: dict[str, Tensor],
    arithmetic: Arithmetic,
) -> Step:  # fmt: skip
    grids = [tensors[source].grid for source in sources]
    output = tensors[op.name].grid
    facts = op.attributes
    if op.kind == "input":
        return Input(op.name, ())
    if op.kind in WEIGHTED:
        if op.name not in network.layers:
            raise ExportError(f"layer {op.name!r} has no weight codes")
        return _weighted(op, sources, network.layers[op.name], grids[0], output, arithmetic)
    if op.kind == "add":
        return _add(op, sources, grids, output, arithmetic)
    if op.kind == "mul":
        real = _product_scale(grids[0].scale, grids[1].scale, output.scale, arithmetic)
        low, high = _clamp(op, output)
        return Multiply(op.name, sources, _fixed(op.name, real), _rounding(arithmetic, op.kind), low, high)
    if op.kind == "mean":
        count = math.prod(op.input_shapes[0][1:])
        factor = _mean_factor(op.name, grids[0].scale / output.scale, count, arithmetic)
        return Mean(op.name, sources, factor, _rounding(arithmetic, op.kind))
    if op.kind == "activation":
        table = activation_table(facts["function"], grids[0], output, arithmetic)
        return Lookup(op.name, sources, facts["function"], table)
    if op.kind in ("max_pool2d", "avg_pool2d"):
        window = (tuple(facts["kernel_size"]), tuple(facts["stride"]), tuple(facts["padding"]))
        if op.kind == "max_pool2d":
            return MaxPool(op.name, sources, *window)
        ties: PoolRounding = "half_away" if arithmetic == "tflite" else "half_up"
        return AveragePool(op.name, sources, *window, bool(facts["count_include_pad"]), ties)
    moved = {key: facts[key] for key in ("dim", "start", "stop") if key in facts}
    return Move(op.name, sources, op.kind, dims=tuple(facts.get("dims", ())), **moved)


def _weighted(
    op: Operation, sources: tuple[str, ...], layer: LayerNumbers, source: ActivationGrid, output: ActivationGrid,
    arithmetic: Arithmetic,
) -> Weighted:  # fmt: skip
    rows = layer.codes.shape[0]
    low, high = _clamp(op, output)
    wide = source.bits == WIDE_BITS and op.kind == "conv2d"
    limit = WIDE_ACCUMULATOR_MAX if wide else INT32_MAX
    signs = np.sign(layer.gain).astype(np.int8)
    magnitudes = weight_reach(layer.codes, layer.codebook, layer.points) * np.abs(signs)
    scale = (np.abs(layer.gain) * layer.scale).astype(np.float32)
    for c in range(rows):
        offset = float(layer.offset[c])
        if not (math.isfinite(offset) and math.isfinite(float(scale[c]))):
            raise ExportError(f"layer {op.name!r}, channel {c}: scale or offset is not finite; re-estimate BatchNorm")
        if _is_constant(op.name, c, int(magnitudes[c]), float(scale[c]), offset, source, output, limit):
            signs[c] = 0
    codes: NDArray[np.int8] | NDArray[np.uint8]
    if layer.codebook is None:
        codes, codebook = signed_values(layer.codes, signs), None
    else:
        codes, codebook = signed_indices(op.name, layer, signs)
    points = signed_points(layer.points, signs)
    products = weight_reach(codes, codebook, points) * reach(source)
    bias = np.zeros(rows, np.int32)
    factors: list[FixedPoint] = []
    for c in range(rows):
        offset = float(layer.offset[c])
        if signs[c]:
            bias[c] = round_half_away(offset / (source.scale * float(scale[c])))
        else:
            level = round_half_away(min(max(offset / output.scale, -1e6), 1e6))
            level = min(max(level, low - output.zero_point), high - output.zero_point)
            bias[c], factor = drowned(level, int(products[c]), limit) if products[c] else (level, 1.0)
            scale[c] = factor * output.scale / source.scale
        real = source.scale * float(scale[c]) / output.scale
        if rows == 1 and op.kind == "linear" and arithmetic == "tflite":  # one scale: the product is a float32
            real = float(np.float32(source.scale) * scale[c]) / output.scale
        factors.append(_fixed(f"{op.name}, channel {c}", real))
        if wide and factors[-1].shift > WIDE_SHIFT_MAX:
            raise ExportError(f"layer {op.name!r}, channel {c}: a multiplier of {real:.3g} is beyond 16-bit arithmetic")
    geometry = {key: tuple(op.attributes[key]) for key in ("stride", "padding", "dilation") if key in op.attributes}
    return Weighted(
        op.name, sources, op.kind, op.module or op.name, codes, layer.bits, bias,
        np.array([f.multiplier for f in factors], np.int32), np.array([f.shift for f in factors], np.int8), scale,
        "reduced" if wide else _rounding(arithmetic, op.kind), low, high, **geometry,
        groups=op.attributes.get("groups", 1), codebook=codebook, points=points,
    )  # fmt: skip


def _is_constant(
    name: str, channel: int, magnitude: int, scale: float, offset: float, source: ActivationGrid,
    output: ActivationGrid, limit: int,
) -> bool:  # fmt: skip
    """Whether the channel's output does not depend on its input; refuses one whose accumulator cannot hold it."""
    step = source.scale * scale
    largest = magnitude * reach(source)
    if largest == 0 or quantize_multiplier(min(step / output.scale, 1.0))[0] == 0:
        return True
    bias = abs(offset) / step + 1
    if bias <= INT32_MAX and largest + bias <= limit:
        return False
    if largest * step / output.scale < 0.5:
        return True
    if largest > limit:
        raise ExportError(
            f"layer {name!r}, channel {channel}: its products may sum to {largest}, which overflows its accumulator; "
            "give its input or its weights fewer bits"
        )
    raise ExportError(
        f"layer {name!r}, channel {channel}: a bias of {offset:.6g} at an accumulator step of {step:.3g} overflows "
        "int32; raise the weight bits of this layer or remove the channel (its weights are tiny next to its bias)"
    )


def _add(
    op: Operation, sources: tuple[str, ...], grids: list[ActivationGrid], output: ActivationGrid, arithmetic: Arithmetic
) -> Add:
    twice = 2 * max(grid.scale for grid in grids)
    left_shift = WIDE_ADD_LEFT_SHIFT if output.bits == WIDE_BITS else ADD_LEFT_SHIFT
    first, second = (_fixed(op.name, grid.scale / twice) for grid in grids)
    total = _fixed(op.name, twice / (2**left_shift * output.scale))
    low, high = _clamp(op, output)
    return Add(op.name, sources, left_shift, (first, second), total, _rounding(arithmetic, op.kind), low, high)


def _mean_factor(name: str, ratio: float, count: int, arithmetic: Arithmetic) -> FixedPoint:
    """The ratio of scales over the count; TFLite divides the integer multiplier, keeping what bits it can."""
    if arithmetic == "single":
        return _fixed(name, ratio / count)
    factor = _fixed(name, ratio)
    if factor.multiplier == 0:
        return factor
    raised = min(count.bit_length() - 1, 31 + factor.shift)
    return FixedPoint((factor.multiplier << raised) // count, factor.shift - raised)


def _product_scale(first: float, second: float, output: float, arithmetic: Arithmetic) -> float:
    if arithmetic == "tflite":  # its MUL computes this ratio in float32
        return float(np.float32(first) * np.float32(second) / np.float32(output))
    return first * second / output


def _rounding(arithmetic: Arithmetic, kind: str) -> Rounding:
    """TFLite's fully connected layer rounds once, everything else of it twice."""
    return "single" if arithmetic == "single" or kind == "linear" else "double"


def _clamp(op: Operation, grid: ActivationGrid) -> tuple[int, int]:
    low, high = activation_code_range(grid.bits)
    if op.clamp is not None:
        low = grid.zero_point
    if op.clamp == "relu6":
        high = min(high, grid.zero_point + round_half_away(min(6 / grid.scale, 1e6)))
    return low, high


def _fixed(name: str, real: float) -> FixedPoint:
    try:
        return FixedPoint(*quantize_multiplier(real))
    except ValueError as error:
        raise ExportError(f"{name!r}: {error}; the scales of its input and output are too far apart") from error


def _stored_grid(name: str, grid: ActivationGrid) -> ActivationGrid:
    try:
        return replace(grid, scale=float(np.float32(grid.scale)))
    except ValueError as error:
        raise ExportError(f"{name!r}: scale {grid.scale} has no float32 value") from error
