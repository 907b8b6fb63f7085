"""CMSIS-NN latency: executed instructions from a closed form, times cycles per instruction.

Covers 8-bit activations and 4- or 8-bit weights. Not covered: flash wait states that depend on the layer (weights
larger than the data cache are streamed again for every pair of output pixels), the interpreter around the kernels.

Legend: W candidates of the weights, A candidates of the input (always one here, 8 bits).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ddq_search.errors import CostError
from ddq_search.graph import Operation
from hardware_models.layers import LayerFacts, elements_read
from hardware_models.profile import ClosedForm, ElementCost, InstructionEngine

Table = NDArray[np.float64]


def layer_instructions(form: ClosedForm, facts: LayerFacts) -> float:
    """Returns the instructions of one weighted layer.

    Source: non-negative least squares over emulated layers, see ``measurements/README.md``.
    """
    columns = facts.row_length * facts.pixels * facts.groups
    return (
        form.macs * facts.macs
        + form.outputs * facts.outputs
        + form.columns * columns
        + form.pixels * facts.pixels
        + form.once
    )


class InstructionPricer:
    """Seconds and scratch bytes of operations on a CMSIS-NN device."""

    def __init__(self, engine: InstructionEngine, clock_hz: float) -> None:
        self.engine = engine
        self.seconds_per_instruction = engine.cycles_per_instruction.value / clock_hz
        self.call_s = engine.call_instructions.value * self.seconds_per_instruction

    def layer(
        self, name: str, facts: LayerFacts, weight_bits: Sequence[int], input_bits: Sequence[int]
    ) -> tuple[Table, Table]:
        """Returns latency in seconds and scratch in bytes of a weighted layer, both ``[W, A]``."""
        forms = self.engine.layers.get(facts.layer_class, {})
        scratch = self.engine.scratch.get(facts.layer_class, {})
        seconds = np.zeros((len(weight_bits), len(input_bits)))
        scratch_bytes = np.zeros_like(seconds)
        for row, bits in enumerate(weight_bits):
            if bits not in forms:
                raise CostError(
                    f"{name!r} ({facts.layer_class}): {bits}-bit weights have no price; priced: {sorted(forms)}"
                )
            seconds[row] = layer_instructions(forms[bits], facts) * self.seconds_per_instruction
            if bits in scratch:
                rule = scratch[bits]
                length = -(-facts.row_length // rule.row_multiple) * rule.row_multiple
                lanes = facts.channels if facts.layer_class == "depthwise" else 1
                scratch_bytes[row] = rule.bytes_per_row_element * length * lanes
        return seconds, scratch_bytes

    def layer_output(self, facts: LayerFacts, output_bits: Sequence[int]) -> Table | None:
        """Returns ``None``: requantizing and storing are inside the closed form."""
        return None

    def element(
        self, op: Operation, cost: ElementCost, input_bits: Sequence[NDArray[np.int64]], output_bits: NDArray[np.int64]
    ) -> Table:
        """Returns the seconds of an operation without weights, broadcast over its tensors' bitwidths."""
        shape = np.broadcast_shapes(*(bits.shape for bits in input_bits), output_bits.shape)
        instructions = elements_read(op) * cost.per_read.value + op.output_elements * cost.per_output.value
        return np.full(shape, instructions * self.seconds_per_instruction)
