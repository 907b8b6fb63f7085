"""The schedule of a network as C: the table of steps over the arena, and the facts that each operation needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Protocol

from ddq_search.errors import ExportError
from ddq_search.export.c.constants import Constants
from ddq_search.export.c.geometry import layer_shape
from ddq_search.export.c.kernels import Kernel
from ddq_search.export.c.operations import facts_of
from ddq_search.export.c.ordering import RANK, Ordering, Reorder, Shape, memory_strides, natural_dims
from ddq_search.export.c.text import LINE, braces, string
from ddq_search.integer.program import Input, IntegerProgram, Move, Step, Weighted
from ddq_search.packing import activation_bytes
from ddq_search.precision import storage_bits

SCRATCH = "scratch/"
"""Prefix of scratch buffers in a plan."""

_HALVES = ("in_h", "in_w", "in_c", "out_h", "out_w", "out_c", "groups")
_BYTES = ("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_top", "pad_left", "dilation_h", "dilation_w")
"""Sizes of ``ddq_layer``, of 16 and of 8 bits, in the order of a layer's shape."""


class Arena(Protocol):
    """What the export reads of the planner's layout (bytes)."""

    @property
    def steps(self) -> tuple[str, ...]:
        """Operations in execution order."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Buffer → bytes; scratch buffers are called ``scratch/<operation>``."""

    @property
    def offsets(self) -> Mapping[str, int]:
        """Buffer → first byte."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """Operation without a buffer of its own → the buffer that holds its tensor."""

    @property
    def total(self) -> int:
        """Bytes of the arena."""


def first_byte(plan: Arena, tensor: str) -> int:
    """Returns where a tensor lies in the arena."""
    return plan.offsets[plan.aliases.get(tensor, tensor)]


def check_plan(program: IntegerProgram, plan: Arena, scratch: Mapping[str, int]) -> None:
    """Refuses a plan that was not made for this program and these kernels.

    Raises:
        ExportError: another schedule, an alias that C cannot keep, or a buffer that is too small; names the layer.
    """
    if tuple(plan.steps) != tuple(step.name for step in program.steps):
        raise ExportError("the arena was planned for another schedule than the program's; plan it again")
    for step in program.steps:
        tensor = program.tensors[step.name]
        alias = isinstance(step, Move) and step.kind in ("reshape", "output")
        if alias != (step.name in plan.aliases):
            raise ExportError(f"{step.name!r}: the arena's plan and the C export disagree whether it is an alias")
        needed = activation_bytes(_elements(tensor.shape), tensor.grid.bits)
        if not alias and plan.sizes[step.name] < needed:
            raise ExportError(f"{step.name!r}: its buffer has {plan.sizes[step.name]} bytes instead of {needed}")
        planned = plan.sizes.get(SCRATCH + step.name, 0)
        if planned < scratch.get(step.name, 0):
            raise ExportError(
                f"layer {step.name!r}: its kernel needs {scratch[step.name]} bytes of scratch, the arena has {planned};"
                " plan the arena for the kernels of the export"
            )


def schedule_source(
    program: IntegerProgram, plan: Arena, kernels: Mapping[str, Kernel], constants: Constants, ordering: Ordering
) -> str:
    """Returns the C text of the facts and of ``model_steps``."""
    facts: list[str] = []
    rows: list[str] = []
    for index, step in enumerate(program.steps):
        for number, reorder in enumerate(ordering.reorders.get(step.name, ())):
            name = f"reorder_{index}_{number}"
            facts.append(f"static const ddq_reorder_facts {name} = {_reorder(reorder)};\n")
            rows.append(_movement(program, plan, reorder, name))
        operation, text = _facts(index, step, program, plan, kernels, constants)
        if text:
            facts.append(text)
        rows.append(_row(program, plan, step, operation, f"&facts_{index}" if text else "NULL"))
    table = "".join(f"    {row},\n" for row in rows)
    return "\n".join(facts) + f"\nconst ddq_step model_steps[] = {{\n{table}}};\n"


def _facts(
    index: int, step: Step, program: IntegerProgram, plan: Arena, kernels: Mapping[str, Kernel], constants: Constants
) -> tuple[str, str]:
    """The C operation of a step (``NULL``: none) and the definition of its facts."""
    if isinstance(step, Input) or step.name in plan.aliases:
        return "NULL", ""
    if isinstance(step, Weighted):
        return "ddq_weighted", _weighted(index, step, program, kernels[step.name], constants)
    sources = [first_byte(plan, name) for name in step.inputs]
    return facts_of(index, step, program, sources, constants.tables.get(step.name, "NULL"))


def _row(program: IntegerProgram, plan: Arena, step: Step, operation: str, facts: str) -> str:
    tensor = program.tensors[step.name]
    sources = [*step.inputs[:2], *[step.name] * 2][:2]
    return braces(
        (
            string(step.name),
            operation,
            facts,
            braces(first_byte(plan, name) for name in sources),
            first_byte(plan, step.name),
            plan.offsets.get(SCRATCH + step.name, 0),
            _elements(tensor.shape),
            braces(storage_bits(program.tensors[name].grid.bits) for name in sources),
            storage_bits(tensor.grid.bits),
        )
    )


def _movement(program: IntegerProgram, plan: Arena, reorder: Reorder, facts: str) -> str:
    tensor, at = program.tensors[reorder.tensor], first_byte(plan, reorder.tensor)
    bits = storage_bits(tensor.grid.bits)
    return braces(
        (
            "NULL",
            "ddq_reorder",
            f"&{facts}",
            braces((at, at)),
            at,
            0,
            _elements(tensor.shape),
            braces((bits, bits)),
            bits,
        )
    )


def _reorder(reorder: Reorder) -> str:
    source, target = reorder.source, reorder.target
    in_dims, out_dims = natural_dims(len(source)), range(len(target))
    count = _elements(source)
    columns = (
        [memory_strides(source)[dim] for dim in in_dims],
        [_flat_strides(source)[dim] for dim in in_dims],
        [_flat_strides(target)[dim] for dim in out_dims],
        [memory_strides(target)[dim] for dim in out_dims],
    )
    return braces(braces([count] * (RANK - len(values)) + values) for values in columns)


def _weighted(index: int, step: Weighted, program: IntegerProgram, kernel: Kernel, constants: Constants) -> str:
    shape, arrays = layer_shape(program, step), constants.layers[step.name]
    source, output = program.tensors[step.inputs[0]].grid, program.tensors[step.name].grid
    bytes_ = (*shape.kernel, *shape.stride, *shape.padding, *shape.dilation)
    halves = (*shape.input, *shape.output, shape.groups)
    if max(bytes_) > 255 or max(halves) > 65535:
        raise ExportError(
            f"layer {step.name!r}: the C kernels take kernels, strides, paddings and dilations up to 255 and sizes up "
            f"to 65535, not {bytes_} and {halves}"
        )
    points = ""
    if arrays.points:
        rows = braces(braces((p.weights, p.ratio, p.bits)) for p in arrays.points)
        points = f"static const ddq_point points_{index}[] = {rows};\n"
    fields = {
        "weights": arrays.weights, "bias": arrays.bias, "multiplier": arrays.multiplier, "shift": arrays.shift,
        "codebook": arrays.codebook,
        **dict(zip(_HALVES, halves, strict=True)), **dict(zip(_BYTES, bytes_, strict=True)),
        "w_bits": storage_bits(step.bits), "in_bits": storage_bits(source.bits), "out_bits": storage_bits(output.bits),
        "in_zero": source.zero_point, "out_zero": output.zero_point, "low": step.low, "high": step.high,
        "rounding": f"DDQ_{step.rounding.upper()}",
        "point_count": len(arrays.points), "points": f"points_{index}" if points else "NULL",
    }  # fmt: skip
    layer = ", ".join(f".{name}={value}" for name, value in fields.items() if value not in (0, "NULL"))
    text = "\n".join(wrap(layer, LINE, initial_indent=" " * 8, subsequent_indent=" " * 8, break_long_words=False))
    return f"{points}static const ddq_weighted_facts facts_{index} = {{{kernel.name}, {{\n{text}}}}};\n"


def _flat_strides(shape: Sequence[int]) -> list[int]:
    strides = [1] * len(shape)
    for dim in range(len(shape) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * shape[dim + 1]
    return strides


def _elements(shape: Shape) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
