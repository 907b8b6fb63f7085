"""The one planner of the activation arena: which bytes are live when, and where they lie.

Rules, the same for every device:

* Operations run in the order of the graph, chosen by `ddq_search.schedule` for the lowest peak (or in one given).
* A tensor lives from the step that writes it to the last step that reads it; the input tensor from step 0.
* ``reshape`` and ``output`` run no code: their tensor *is* their input (an alias). Everything else, element-wise
  operations included, writes a buffer of its own; nothing is computed in place.
* Scratch of an operation is live in its step only.
* Every size is rounded up to the arena's alignment, so offsets are aligned.

Legend: a *step* is an index into the schedule; a *live range* is (first step, last step), both inclusive.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ddq_search.errors import CostError
from ddq_search.graph import ModelGraph, holders, operation, operations
from ddq_search.packing import activation_bytes

SCRATCH = "scratch/"
"""Prefix of scratch buffers in a plan: ``scratch/<operation>``."""


@dataclass(frozen=True)
class Buffer:
    """A tensor that gets memory of its own.

    Attributes:
        name: the operation that writes it.
        elements: scalars.
        first: step that writes it.
        last: last step that reads it or an alias of it.
    """

    name: str
    elements: int
    first: int
    last: int


@dataclass(frozen=True)
class ArenaPlan:
    """Addresses of all buffers of a policy.

    Attributes:
        steps: operations in execution order.
        sizes: buffer → bytes, aligned. Scratch buffers are called ``scratch/<operation>``.
        offsets: buffer → first byte.
        ranges: buffer → live range.
        aliases: operation without a buffer of its own → the buffer that holds its tensor.
        live_bytes: bytes live at every step; the arena is never smaller than their maximum.
        total: bytes of the arena.
    """

    steps: tuple[str, ...]
    sizes: Mapping[str, int]
    offsets: Mapping[str, int]
    ranges: Mapping[str, tuple[int, int]]
    aliases: Mapping[str, str]
    live_bytes: tuple[int, ...]
    total: int


def aligned(size: int, alignment: int) -> int:
    """Returns ``size`` rounded up to the alignment.

    >>> aligned(17, 16), aligned(16, 16), aligned(0, 16)
    (32, 16, 0)
    """
    return -(-size // alignment) * alignment


def tensor_bytes(elements: int, bits: int, alignment: int) -> int:
    """Returns the arena bytes of a tensor: its packed codes, rounded up to the alignment."""
    return aligned(activation_bytes(elements, bits), alignment)


def buffers(graph: ModelGraph, schedule: Sequence[str] | None = None) -> list[Buffer]:
    """Returns the tensors that need memory, with their live ranges, in the order they are written.

    Args:
        graph: the model.
        schedule: execution order; default: the order of the graph.

    Raises:
        CostError: the schedule is not a topological order of the graph's operations.
    """
    step = _steps(graph, schedule)
    holder = holders(graph)
    last = {name: step[name] for name in graph}
    for source, target in graph.edges():
        last[holder[source]] = max(last[holder[source]], step[target])
    found = [
        Buffer(op.name, op.output_elements, step[op.name], last[op.name])
        for op in operations(graph)
        if holder[op.name] == op.name
    ]
    return sorted(found, key=lambda buffer: buffer.first)


def place(ranges: Mapping[str, tuple[int, int]], sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Returns offsets and the arena's total, so that buffers alive in one step never overlap.

    Each buffer takes the lowest gap that fits among those already placed whose live range meets its own. Two orders
    are tried, largest first and first written first, and the smaller arena is kept (the former when equal).
    """
    by_size = sorted(sizes, key=lambda name: (-sizes[name], ranges[name]))
    by_time = sorted(sizes, key=lambda name: (ranges[name], -sizes[name]))
    return min((_lowest_gaps(order, ranges, sizes) for order in (by_size, by_time)), key=lambda layout: layout[1])


def plan_arena(
    graph: ModelGraph,
    bits: Mapping[str, int],
    scratch_bytes: Mapping[str, int],
    alignment: int,
    schedule: Sequence[str] | None = None,
) -> ArenaPlan:
    """Returns the arena of a model whose tensors are stored at the given bitwidths.

    Args:
        graph: the model.
        bits: operation → bitwidth of its output tensor.
        scratch_bytes: operation → scratch bytes while it runs; absent means none.
        alignment: bytes that every offset and size is a multiple of.
        schedule: execution order; default: the order of the graph.
    """
    tensors = buffers(graph, schedule)
    step = _steps(graph, schedule)
    sizes = {b.name: tensor_bytes(b.elements, bits[b.name], alignment) for b in tensors}
    ranges = {b.name: (b.first, b.last) for b in tensors}
    for name, size in scratch_bytes.items():
        if size > 0:
            sizes[SCRATCH + name] = aligned(size, alignment)
            ranges[SCRATCH + name] = (step[name], step[name])
    offsets, total = place(ranges, sizes)
    live = [0] * len(step)
    for name, (first, last) in ranges.items():
        for index in range(first, last + 1):
            live[index] += sizes[name]
    order = tuple(sorted(step, key=lambda name: step[name]))
    aliases = {name: holder for name, holder in holders(graph).items() if name != holder}
    return ArenaPlan(order, sizes, offsets, ranges, aliases, tuple(live), total)


def _lowest_gaps(
    order: Iterable[str], ranges: Mapping[str, tuple[int, int]], sizes: Mapping[str, int]
) -> tuple[dict[str, int], int]:
    offsets: dict[str, int] = {}
    alive: defaultdict[int, list[str]] = defaultdict(list)  # step → placed buffers alive in it
    begun: defaultdict[int, list[str]] = defaultdict(list)  # step → placed buffers whose live range begins there
    for name in order:
        first, last = ranges[name]
        others = itertools.chain(alive[first], *(begun[step] for step in range(first + 1, last + 1)))
        met = sorted((offsets[other], sizes[other]) for other in others)
        end = 0
        for offset, size in met:
            if offset - end >= sizes[name]:
                break
            end = max(end, offset + size)
        offsets[name] = end
        begun[first].append(name)
        for step in range(first, last + 1):
            alive[step].append(name)
    return offsets, max((offset + sizes[name] for name, offset in offsets.items()), default=0)


def _steps(graph: ModelGraph, schedule: Sequence[str] | None) -> dict[str, int]:
    order = list(graph.nodes) if schedule is None else list(schedule)
    step = {name: index for index, name in enumerate(order)}
    if len(order) != len(step) or set(step) != set(graph.nodes):
        raise CostError("the schedule does not hold every operation of the graph exactly once")
    for source, target in graph.edges():
        if step[source] >= step[target]:
            late = operation(graph, target)
            raise CostError(f"{late.name!r} ({late.kind}) is scheduled before its input {source!r}")
    return step
