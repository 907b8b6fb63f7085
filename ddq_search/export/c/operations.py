"""What the C operations without weights are given: the text of their facts (`runtime/ddq_steps.h`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ddq_search.errors import ExportError
from ddq_search.export.c.ordering import RANK, Shape, memory_strides
from ddq_search.export.c.text import braces
from ddq_search.integer.program import (
    INT32_MAX,
    Add,
    AveragePool,
    FixedPoint,
    IntegerProgram,
    Lookup,
    MaxPool,
    Mean,
    Move,
    Multiply,
    Step,
    Tensor,
    shuffle_factor,
)  # fmt: skip
from ddq_search.precision import activation_code_range

SOURCES = {
    "ddq_weighted": "ddq_weighted.c",
    "ddq_add": "ddq_add.c",
    "ddq_multiply": "ddq_multiply.c",
    "ddq_mean": "ddq_mean.c",
    "ddq_max_pool": "ddq_pool.c",
    "ddq_average_pool": "ddq_pool.c",
    "ddq_lookup": "ddq_lookup.c",
    "ddq_move": "ddq_move.c",
    "ddq_reorder": "ddq_reorder.c",
}
"""C operation → the file of the runtime that defines it."""


def facts_of(
    index: int, step: Step, program: IntegerProgram, first_bytes: Sequence[int], table: str
) -> tuple[str, str]:
    """Returns the C operation of a step and the definition of its facts.

    Args:
        index: number of the step, in the name of the facts.
        step: a step that runs code and has no weights.
        program: the program it belongs to.
        first_bytes: where each argument lies in the arena.
        table: name of the array of a look-up.

    Raises:
        ExportError: a sum may leave int32, or shapes do not broadcast per channel.
    """
    sources = [program.tensors[name] for name in step.inputs]
    output = program.tensors[step.name]
    if isinstance(step, Add | Multiply):
        kind = "add" if isinstance(step, Add) else "multiply"
        return f"ddq_{kind}", _definition(kind, index, _two(step, sources, output))
    if isinstance(step, Mean):
        return "ddq_mean", _definition("mean", index, _mean(step, sources[0], output))
    if isinstance(step, MaxPool | AveragePool):
        name = "ddq_max_pool" if isinstance(step, MaxPool) else "ddq_average_pool"
        return name, _definition("pool", index, _pool(step, sources[0], output))
    if isinstance(step, Lookup):
        return "ddq_lookup", _definition("lookup", index, braces([table]))
    assert isinstance(step, Move)
    copies = _copies(step, sources, output, first_bytes)
    text = f"static const ddq_copy copies_{index}[] = {{\n" + "".join(f"    {copy},\n" for copy in copies) + "};\n"
    return "ddq_move", text + _definition("move", index, braces((f"copies_{index}", len(copies))))


def _definition(kind: str, index: int, values: str) -> str:
    return f"static const ddq_{kind}_facts facts_{index} = {values};\n"


def _factor(factor: FixedPoint) -> str:
    return braces((factor.multiplier, factor.shift))


def _two(step: Add | Multiply, sources: list[Tensor], output: Tensor) -> str:
    for source in sources:
        per_channel = source.shape == (*output.shape[:1], *[1] * (len(output.shape) - 1))
        if source.shape != output.shape and not (per_channel and len(output.shape) == 3):
            raise ExportError(
                f"{step.name!r}: an argument of shape {list(source.shape)} does not repeat per channel of "
                f"{list(output.shape)}; the C export broadcasts [C, 1, 1] only"
            )
    counts = braces(math.prod(source.shape) for source in sources)
    zeros = braces(source.grid.zero_point for source in sources)
    tail = (zeros, output.grid.zero_point, step.low, step.high, f"DDQ_{step.rounding.upper()}")
    if isinstance(step, Add):
        factors = (braces(_factor(factor) for factor in step.factors), _factor(step.output_factor))
        return braces((*factors, counts, step.left_shift, *tail))
    return braces((_factor(step.factor), counts, *tail))


def _mean(step: Mean, source: Tensor, output: Tensor) -> str:
    channels, positions = source.shape[0], math.prod(source.shape[1:])
    _require_int32(step.name, positions * activation_code_range(source.grid.bits)[1])
    high = activation_code_range(output.grid.bits)[1]
    zeros = (source.grid.zero_point, output.grid.zero_point)
    return braces((_factor(step.factor), positions, channels, *zeros, high, f"DDQ_{step.rounding.upper()}"))


def _pool(step: MaxPool | AveragePool, source: Tensor, output: Tensor) -> str:
    channels, height, width = source.shape
    top, bottom, left, right = step.padding
    _require_int32(step.name, 2 * 255 * math.prod(step.kernel_size))
    numbers = (height, width, channels, *output.shape[1:], *step.kernel_size, *step.stride, top, bottom, left, right)
    if isinstance(step, MaxPool):
        return braces((*numbers, 0, 0, 0))
    rounding = f"DDQ_{step.rounding.upper()}"
    return braces((*numbers, source.grid.zero_point, int(step.count_include_pad), rounding))


def _copies(step: Move, sources: list[Tensor], output: Tensor, first_bytes: Sequence[int]) -> list[str]:
    strides = memory_strides(output.shape)
    if step.kind == "concat":
        copies, start = [], 0
        for source, first in zip(sources, first_bytes, strict=True):
            inner = memory_strides(source.shape)
            copies.append(_copy(first, 0, start * strides[step.dim], source.shape, inner, strides))
            start += source.shape[step.dim]
        return copies
    inner = memory_strides(sources[0].shape)
    if step.kind == "slice":
        return [_copy(first_bytes[0], step.start * inner[step.dim], 0, output.shape, inner, strides)]
    if step.kind == "pixel_shuffle":
        return [_shuffled(first_bytes[0], sources[0].shape, output.shape)]
    moved = tuple(inner[dim] for dim in step.dims)  # transpose
    return [_copy(first_bytes[0], 0, 0, output.shape, moved, strides)]


def _shuffled(first: int, source: Shape, output: Shape) -> str:
    """Axes: channel, row, row in the block, column, column in the block."""
    factor = shuffle_factor(source, output)
    (depth, row, column), (channel, line, place) = memory_strides(source), memory_strides(output)
    size = (output[0], source[1], factor, source[2], factor)
    inner = (factor**2 * depth, row, factor * depth, column, depth)
    return _copy(first, 0, 0, size, inner, (channel, factor * line, line, factor * place, place))


def _copy(first: int, start: int, to: int, size: Shape, inner: Sequence[int], outer: Sequence[int]) -> str:
    """The axes ordered so that the last runs over neighbours of the result."""
    axes = sorted(range(len(size)), key=lambda axis: -outer[axis])
    missing = RANK - len(axes)
    columns = (
        [1] * missing + [size[axis] for axis in axes],
        [0] * missing + [inner[axis] for axis in axes],
        [0] * missing + [outer[axis] for axis in axes],
    )
    return braces((first, start, to, *(braces(column) for column in columns)))


def _require_int32(name: str, sum_: int) -> None:
    if sum_ > INT32_MAX:
        raise ExportError(f"{name!r}: a sum over its window may leave int32; pool in two steps")
