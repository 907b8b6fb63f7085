"""A predicted time taken apart into the coefficients of the profile it comes from.

Every part is proportional to one coefficient, so a measured time gives an equation that is linear in corrections of
the coefficients. Only where a profile takes the *larger* of compute and memory time does a part drop out; a piece keeps
both sides.

    seconds of an execution = Σ over its pieces of combine(Σ compute parts, Σ memory parts)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ddq_search.errors import CostError
from ddq_search.graph import Operation
from ddq_search.layer_shape import LayerShape
from ddq_search.packing import activation_bytes, weight_bytes
from ddq_search.precision import storage_bits
from hardware_models.engine import Engine, Kernel
from hardware_models.executions import Execution
from hardware_models.layers import PRICED_AS
from hardware_models.pricing import pricer_of
from hardware_models.profile import DeviceProfile
from hardware_models.terms import counts


class Coefficient(NamedTuple):
    """Where a number stands in a profile.

    Attributes:
        place: kernel, call, output, unpack, pack, weight memory, activation memory or operation.
        number: of the kernel, bits of unpack and pack, 0 elsewhere.
        name: term of the kernel, kind of the operation, empty elsewhere.
    """

    place: str
    number: int = 0
    name: str = ""


Parts = dict[Coefficient, float]
"""Coefficient → seconds that come from it."""


@dataclass(frozen=True)
class Piece:
    """Parts of compute and of memory that a profile adds or takes the larger of."""

    compute: Parts
    memory: Parts


class Anatomy:
    """Takes the times that a profile predicts apart."""

    def __init__(self, profile: DeviceProfile) -> None:
        self.engine: Engine = profile.engine
        self.operations = profile.operations
        self.pricer = pricer_of(profile)
        unbound = profile.engine.model_copy(update={"activation_bandwidth_bytes_per_s": None})
        self._compute_only = pricer_of(profile.model_copy(update={"engine": unbound}))

    def pieces(self, execution: Execution) -> list[Piece]:
        """Returns the pieces of one execution.

        Raises:
            CostError: no kernel executes the layer at these widths; names it.
        """
        call = Piece({Coefficient("call"): self.pricer.call_s}, {})
        if isinstance(execution.work, LayerShape):
            return [call, *self._layer(execution, execution.work)]
        return [call, self._operation(execution, execution.work)]

    def seconds(self, execution: Execution) -> float:
        """Returns the predicted time."""
        total = 0.0
        for piece in self.pieces(execution):
            compute, memory = math.fsum(piece.compute.values()), math.fsum(piece.memory.values())
            total += compute + memory if self.engine.combine == "sum" else max(compute, memory)
        return total

    def _layer(self, execution: Execution, shape: LayerShape) -> list[Piece]:
        weights, inputs = storage_bits(execution.weight_bits), storage_bits(execution.input_bits)
        index = self._kernel_index(execution, shape)
        kernel, unit = self.engine.kernels[index], self.pricer.seconds_per_unit
        counted = counts(kernel.terms, shape, kernel)
        compute = {
            Coefficient("kernel", index, term): coefficient * counted[term] * unit
            for term, coefficient in kernel.terms.items()
        }
        self._widen(compute, shape.weights * unit, weights, kernel.weight_bits)
        self._widen(compute, shape.inputs * unit, inputs, kernel.activation_bits)
        memory: Parts = {}
        if self.engine.weight_bandwidth_bytes_per_s is not None:
            moved = weight_bytes(shape.channels, shape.row_length, execution.weight_bits)
            memory[Coefficient("weight memory")] = moved / self.engine.weight_bandwidth_bytes_per_s.value
        self._move(memory, activation_bytes(shape.inputs, execution.input_bits))
        if not kernel.pack:
            return [Piece(compute, memory), *self._output(execution, shape)]
        output_bits = storage_bits(execution.output_bits)
        packing = kernel.pack.get(output_bits, {})
        for term, count in counts(packing, shape, kernel).items():
            compute[Coefficient(f"pack {output_bits}", index, term)] = packing[term] * count * unit
        self._move(memory, activation_bytes(shape.outputs, execution.output_bits))
        return [Piece(compute, memory)]

    def _kernel_index(self, execution: Execution, shape: LayerShape) -> int:
        """The kernel that a measurement names, otherwise the one a layer is priced on."""
        widths = storage_bits(execution.weight_bits), storage_bits(execution.input_bits)
        for index, kernel in enumerate(self.engine.kernels):
            if kernel.name == execution.kernel and kernel.executes(shape) and _fits(kernel, widths, self.engine):
                return index
        chosen = self.pricer.kernel_of(execution.name, shape, execution.weight_bits, execution.input_bits)
        return self.engine.kernels.index(chosen)

    def _output(self, execution: Execution, shape: LayerShape) -> list[Piece]:
        if self.engine.output is None and not self.engine.pack:
            return []
        unit, bits = self.pricer.seconds_per_unit, storage_bits(execution.output_bits)
        compute: Parts = {}
        if self.engine.output is not None:
            compute[Coefficient("output")] = shape.outputs * self.engine.output.value * unit
        if bits in self.engine.pack:
            compute[Coefficient("pack", bits)] = shape.outputs * self.engine.pack[bits].value * unit
        memory: Parts = {}
        self._move(memory, activation_bytes(shape.outputs, execution.output_bits))
        return [Piece(compute, memory)]

    def _operation(self, execution: Execution, op: Operation) -> Piece:
        kind = PRICED_AS.get(op.kind, op.kind)
        if kind not in self.operations:
            raise CostError(f"{execution.name!r}: operations of kind {op.kind!r} have no price")
        inputs = [np.array(execution.input_bits) for _ in op.input_shapes]
        cost = self.operations[kind]
        compute = self._compute_only.element(op, cost, inputs, np.array(execution.output_bits)).item()
        if compute == 0.0:
            return Piece({}, {})
        memory: Parts = {}
        sizes = [op.output_elements] if op.kind == "slice" else [math.prod(shape) for shape in op.input_shapes]
        moved = sum(activation_bytes(size, execution.input_bits) for size in sizes)
        self._move(memory, moved + activation_bytes(op.output_elements, execution.output_bits))
        return Piece({Coefficient("operation", 0, kind): compute}, memory)

    def _widen(self, parts: Parts, elements_s: float, bits: int, width: int) -> None:
        if bits == width:
            return
        parts[Coefficient("unpack", bits)] = (
            parts.get(Coefficient("unpack", bits), 0.0) + elements_s * self.engine.unpack[bits].value
        )
        if width < 8:
            parts[Coefficient("pack", width)] = (
                parts.get(Coefficient("pack", width), 0.0) + elements_s * self.engine.pack[width].value
            )

    def _move(self, parts: Parts, moved_bytes: float) -> None:
        if self.engine.activation_bandwidth_bytes_per_s is not None:
            key = Coefficient("activation memory")
            parts[key] = parts.get(key, 0.0) + moved_bytes / self.engine.activation_bandwidth_bytes_per_s.value


def _fits(kernel: Kernel, widths: tuple[int, int], engine: Engine) -> bool:
    offered = (kernel.weight_bits, kernel.activation_bits)
    return offered == widths or (bool(engine.unpack) and offered[0] >= widths[0] and offered[1] >= widths[1])
