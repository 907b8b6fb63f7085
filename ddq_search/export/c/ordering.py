"""In which order the codes of every tensor lie in memory, and where a reshape makes them move.

Images lie channel-last: of a shape with at least two dimensions the last two come first, ``[H, W, C]`` of ``[C, H, W]``
and ``[H, W, A, B]`` of ``[A, B, H, W]``. That is a shape's *natural* order.

A reshape keeps every code's number in the program's order (channel-first), and the planner makes it an alias, so no
code moves: the buffer goes on holding the natural order of the shape it was written with. A reader that needs the
natural order of another shape is served in the cheapest way:

* a linear layer takes its weights' columns in the order in which the codes lie;
* a look-up, and an addition or product of equally ordered tensors, keep whatever order they find;
* before any other reader the codes are reordered in place, which needs no memory beside the buffer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddq_search.errors import ExportError
from ddq_search.integer.program import Add, IntegerProgram, Lookup, Move, Multiply, Step, Weighted

RANK = 6
"""Dimensions that the C operations can move."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Reorder:
    """The codes of a buffer go from the natural order of one shape to that of another, before a step runs."""

    tensor: str
    source: Shape
    target: Shape


@dataclass(frozen=True)
class Ordering:
    """Where the codes of a program's tensors lie.

    Attributes:
        written: tensor → the shape in whose natural order its codes lie when its step has run.
        reorders: step → what is reordered in place before it runs.
        columns: linear layer → the column of its weights for each code of its input, where they are not in order.
    """

    written: Mapping[str, Shape]
    reorders: Mapping[str, tuple[Reorder, ...]]
    columns: Mapping[str, NDArray[np.intp]]


def natural_dims(rank: int) -> tuple[int, ...]:
    """Returns the dimensions of a shape in the order in which they lie in memory, slowest first.

    >>> natural_dims(1), natural_dims(3), natural_dims(5)
    ((0,), (1, 2, 0), (3, 4, 0, 1, 2))
    """
    spatial = tuple(range(max(rank - 2, 1), rank))
    return (*spatial, *range(rank - len(spatial)))


def natural_order(shape: Shape) -> NDArray[np.intp]:
    """Returns, for every place in memory, the number (channel-first) of the code that lies there.

    >>> natural_order((2, 1, 3)).tolist()
    [0, 3, 1, 4, 2, 5]
    """
    return np.arange(math.prod(shape)).reshape(shape).transpose(natural_dims(len(shape))).ravel()


def memory_strides(shape: Shape) -> tuple[int, ...]:
    """Returns how many codes apart two neighbours along each dimension lie in natural order.

    >>> memory_strides((3, 4, 5))
    (1, 15, 3)
    """
    strides = [0] * len(shape)
    step = 1
    for dim in reversed(natural_dims(len(shape))):
        strides[dim], step = step, step * shape[dim]
    return tuple(strides)


def order_tensors(program: IntegerProgram) -> Ordering:
    """Returns the order of every tensor and the movements that reshapes cause.

    Raises:
        ExportError: a tensor has more dimensions than the C operations move.
    """
    walk = _Walk(program)
    for step in program.steps:
        walk.visit(step)
    return Ordering(walk.written, walk.reorders, walk.columns)


class _Walk:
    """Follows the schedule; ``held`` is the order of every buffer at the step that is being visited."""

    def __init__(self, program: IntegerProgram) -> None:
        self.program = program
        self.holder: dict[str, str] = {}
        self.held: dict[str, Shape] = {}
        self.written: dict[str, Shape] = {}
        self.reorders: dict[str, tuple[Reorder, ...]] = {}
        self.columns: dict[str, NDArray[np.intp]] = {}
        self.column_shape: dict[str, Shape] = {}

    def visit(self, step: Step) -> None:
        shape = self.program.tensors[step.name].shape
        if len(shape) > RANK:
            raise ExportError(f"{step.name!r}: the C export moves at most {RANK} dimensions, not {list(shape)}")
        alias = isinstance(step, Move) and step.kind in ("reshape", "output")
        self.holder[step.name] = self.holder[step.inputs[0]] if alias else step.name
        if not (isinstance(step, Move) and step.kind == "reshape"):
            order = shape
            if self._keeps_order(step):
                order = self._order(step.inputs[0])
            elif isinstance(step, Weighted) and step.kind == "linear":
                self._take_columns(step)
            else:
                self._need_natural(step)
            self.held[self.holder[step.name]] = order
        self.written[step.name] = self._order(step.name)

    def _order(self, tensor: str) -> Shape:
        return self.held[self.holder[tensor]]

    def _keeps_order(self, step: Step) -> bool:
        if isinstance(step, Lookup):
            return True
        if not isinstance(step, Add | Multiply):
            return False
        shapes = {self.program.tensors[name].shape for name in step.inputs}
        return len(shapes) == 1 and _same_order(*(self._order(name) for name in step.inputs))

    def _take_columns(self, step: Weighted) -> None:
        """Uses of one module store one set of columns; a later use that finds another order has its input moved."""
        stored = self.column_shape.setdefault(step.module, self._order(step.inputs[0]))
        self._need(step, {step.inputs[0]: stored})
        columns = natural_order(stored)
        if not np.array_equal(columns, np.arange(len(columns))):
            self.columns[step.name] = columns

    def _need_natural(self, step: Step) -> None:
        self._need(step, {name: self.program.tensors[name].shape for name in step.inputs})

    def _need(self, step: Step, orders: Mapping[str, Shape]) -> None:
        """Arguments that share a buffer have one shape (operations of two arguments ask for it): one order serves."""
        needed = []
        for name, shape in orders.items():
            held = self._order(name)
            if not _same_order(held, shape):
                needed.append(Reorder(name, held, shape))
                self.held[self.holder[name]] = shape
        if needed:
            self.reorders[step.name] = tuple(needed)


def _same_order(first: Shape, second: Shape) -> bool:
    return first == second or np.array_equal(natural_order(first), natural_order(second))
