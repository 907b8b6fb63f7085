"""What was executed while a time was measured: layers and operations with the widths of their codes."""

from __future__ import annotations

from dataclasses import dataclass

from ddq_search.graph import ALIASES, WEIGHTED, ModelGraph, Operation, operations
from ddq_search.layer_shape import LayerShape, layer_shape


@dataclass(frozen=True)
class Execution:
    """One operation that takes time, once.

    Attributes:
        name: of the layer or operation, for messages.
        work: geometry of a weighted layer, or an operation without weights.
        weight_bits: of a weighted layer; 8 elsewhere.
        input_bits: of every input.
        output_bits: of the output.
        kernel: the profile's kernel that ran, where the measurement names it.
    """

    name: str
    work: LayerShape | Operation
    weight_bits: int = 8
    input_bits: int = 8
    output_bits: int = 8
    kernel: str | None = None

    @property
    def likeness(self) -> tuple[object, ...]:
        """Equal for executions that a cost model cannot tell apart."""
        if isinstance(self.work, LayerShape):
            work: tuple[object, ...] = (self.work,)
        else:
            work = (self.work.kind, self.work.input_shapes, self.work.output_shape)
        return (*work, self.weight_bits, self.input_bits, self.output_bits, self.kernel)


@dataclass(frozen=True)
class Measurement:
    """A measured time and all that was executed in it.

    Attributes:
        name: of the layer or network, for the table of residuals.
        seconds: measured, > 0.
        executions: a single one for a layer, all of them for a network.
        timed: whether a clock measured it; False for counted instructions turned into seconds.
    """

    name: str
    seconds: float
    executions: tuple[Execution, ...]
    timed: bool = True

    @property
    def likeness(self) -> tuple[object, ...]:
        """Equal for measurements that a cost model cannot tell apart: they are held out together."""
        return tuple(execution.likeness for execution in self.executions)


def executions_of(graph: ModelGraph, weight_bits: int, act_bits: int) -> tuple[Execution, ...]:
    """Returns all that a network with uniform widths executes; aliases take no time."""
    return tuple(
        Execution(op.name, layer_shape(op) if op.kind in WEIGHTED else op, weight_bits, act_bits, act_bits)
        for op in operations(graph)
        if op.kind not in ALIASES and op.kind != "input"
    )
