"""The rows of the benchmark: what every layer is, ready to be printed before its measured value."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from ddq_search.export.c.geometry import layer_shape
from ddq_search.export.c.kernels import Kernel
from ddq_search.export.c.text import array, string
from ddq_search.integer.program import IntegerProgram, Weighted
from ddq_search.precision import storage_bits

COLUMNS = (
    "layer", "kernel", "layer_class", "in_h", "in_w", "in_c", "out_h", "out_w", "out_c", "kernel_h", "kernel_w",
    "stride_h", "stride_w", "pad_top", "pad_left", "dilation_h", "dilation_w", "groups", "weight_bits", "input_bits",
    "output_bits", "macs", "value", "unit",
)  # fmt: skip
"""Columns of the benchmark's CSV; ``value`` and ``unit`` (instructions, cycles or nanoseconds) are measured."""


def layers_source(program: IntegerProgram, kernels: Mapping[str, Kernel]) -> str:
    """Returns the C text of ``model_layers[]``: a row per tensor, NULL for those that no weighted layer computes."""
    rows = [
        string(_row(program, step, kernels[step.name].name)) if isinstance(step, Weighted) else "0"
        for step in program.steps
    ]
    head = string(",".join(COLUMNS))
    return (
        "/* Facts of the weighted layers, by number of their tensor, in the columns of the benchmark. */\n"
        f"const char model_layer_columns[] = {head};\n\n" + array("const char *const model_layers[]", rows)
    )


def _row(program: IntegerProgram, step: Weighted, kernel: str) -> str:
    shape = layer_shape(program, step)
    widths = (step.bits, *(program.tensors[name].grid.bits for name in (step.inputs[0], step.name)))
    macs = prod(shape.output) * shape.row_length
    numbers = (
        *shape.input, *shape.output, *shape.kernel, *shape.stride, *shape.padding, *shape.dilation, shape.groups,
        *(storage_bits(width) for width in widths), macs,
    )  # fmt: skip
    return ",".join((_field(step.name), kernel, shape.layer_class, *map(str, numbers)))


def _field(text: str) -> str:
    text = "".join(c if c.isprintable() else " " for c in text)
    quoted = text.replace('"', '""')
    return f'"{quoted}"' if any(c in text for c in ',"') else text
