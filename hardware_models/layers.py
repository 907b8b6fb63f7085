"""Facts of operations without weights, and the check that nothing is priced by omission."""

from __future__ import annotations

import math

from ddq_search.errors import CostError
from ddq_search.graph import KINDS, WEIGHTED, Operation


def check_kind(op: Operation) -> None:
    """Raises `CostError` with the operation's name if no cost model knows its kind."""
    if op.kind not in KINDS:
        raise CostError(f"{op.name!r}: operations of kind {op.kind!r} have no price; known kinds: {sorted(KINDS)}")


PRICED_AS = {"pixel_shuffle": "transpose"}
"""Kind → the kind whose price in a profile it has: every code moves once, to another place."""

PRICED = KINDS - WEIGHTED - PRICED_AS.keys()
"""Kinds of operations without weights that a profile prices."""


def elements_read(op: Operation) -> int:
    """Returns how many input scalars an operation without weights reads."""
    if op.kind in ("max_pool2d", "avg_pool2d"):
        rows, columns = op.attributes["kernel_size"]
        return op.output_elements * int(rows) * int(columns)
    if op.kind == "slice":
        return op.output_elements
    return sum(math.prod(shape) for shape in op.input_shapes)
