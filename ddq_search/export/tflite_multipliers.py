"""The multipliers that TFLite's kernels derive from the scales in a file, held against those of the program.

Convolutions, and fully connected layers of several scales, take the ratio per channel in double precision; a fully
connected layer of one scale multiplies its two scales in float32; MUL takes its whole ratio in float32; MEAN divides
the integer multiplier by the count.

Source: published semantics of LiteRT's kernels; our code.
"""

from __future__ import annotations

import math

import numpy as np

from ddq_search.arithmetic import quantize_multiplier
from ddq_search.errors import ExportError
from ddq_search.integer.program import Add, FixedPoint, IntegerProgram, Mean, Multiply, Rounding, Step, Weighted
from ddq_search.precision import WIDE_BITS

Pairs = list[tuple[int, int]]


def check_multipliers(program: IntegerProgram) -> None:
    """States that the runtime will execute the program's own multipliers and roundings.

    Raises:
        ExportError: it would not; the message names the layer.
    """
    for step in program.steps:
        if not isinstance(step, Weighted | Add | Multiply | Mean):
            continue
        rounding = _rounding(step, program)
        if step.rounding != rounding:
            raise ExportError(f"{step.name!r} rounds {step.rounding}, TFLite's kernel rounds {rounding}")
        wanted, derived = _stated(step), _derived(step, program)
        for row, (stated, found) in enumerate(zip(wanted, derived, strict=True)):
            if stated != found:
                raise ExportError(
                    f"{step.name!r}, factor {row}: the program multiplies by {stated}, TFLite would by {found}; "
                    "lower the network for the arithmetic 'tflite'"
                )
        if isinstance(step, Add) and step.output_factor.shift > 0:
            raise ExportError(
                f"add {step.name!r}: its output scale is less than 2^-20 of its inputs', which TFLite's ADD refuses"
            )


def _rounding(step: Step, program: IntegerProgram) -> Rounding:
    if not isinstance(step, Weighted):
        return "double"
    if step.kind == "linear":
        return "single"
    return "reduced" if program.tensors[step.inputs[0]].grid.bits == WIDE_BITS else "double"


def _stated(step: Weighted | Add | Multiply | Mean) -> Pairs:
    if isinstance(step, Weighted):
        return list(zip(step.multiplier.tolist(), step.shift.tolist(), strict=True))
    factors = [*step.factors, step.output_factor] if isinstance(step, Add) else [step.factor]
    return [_pair(factor) for factor in factors]


def _derived(step: Weighted | Add | Multiply | Mean, program: IntegerProgram) -> Pairs:
    output = program.tensors[step.name].grid.scale
    inputs = [program.tensors[source].grid.scale for source in step.inputs]
    if isinstance(step, Weighted):
        if step.kind == "linear" and step.rows == 1:
            return [quantize_multiplier(float(np.float32(inputs[0]) * step.scale[0]) / output)]
        return [quantize_multiplier(inputs[0] * float(scale) / output) for scale in step.scale]
    if isinstance(step, Add):
        twice = 2 * max(inputs)
        return [quantize_multiplier(r) for r in (*(s / twice for s in inputs), twice / (2**step.left_shift * output))]
    if isinstance(step, Multiply):
        ratio = np.float32(inputs[0]) * np.float32(inputs[1]) / np.float32(output)
        return [quantize_multiplier(float(ratio))]
    count = math.prod(_positions(step, program))
    multiplier, shift = quantize_multiplier(inputs[0] / output)
    raised = min(count.bit_length() - 1, 31 + shift)
    return [((multiplier << raised) // count, shift - raised)]


def _positions(step: Step, program: IntegerProgram) -> tuple[int, ...]:
    return program.tensors[step.inputs[0]].shape[1:]


def _pair(factor: FixedPoint) -> tuple[int, int]:
    return factor.multiplier, factor.shift
