"""The order of execution: the one whose largest sum of live activation bytes is smallest.

Branches may run in any topological order; which one decides the peak of RAM. The order is chosen once, when a model
is traced, for 8-bit tensors, and everything downstream (prices, planner, exporters) follows the order of the graph.
Legend: a *state* is the set of operations already executed, as a bit mask.

Source: minimax best-first search over the closed sets of the partial order; exact until `EXACT_STATES` states have been
visited, beyond that a beam of `BEAM` states per step, which is a heuristic.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import networkx as nx

from ddq_search.graph import ModelGraph, holders, operations

EXACT_STATES = 20_000
"""States visited before the search stops promising the optimum."""

BEAM = 32
"""States kept per step by the heuristic."""


def lowest_peak(graph: ModelGraph) -> ModelGraph:
    """Returns the graph with its operations in the order of the lowest peak; the same graph if none is lower.

    The input stays first and the output last.
    """
    search = _Search(graph)
    order = search.exact() or search.beam()
    if search.peak(order) >= search.peak(range(len(search.names))):
        return graph
    ordered = nx.MultiDiGraph(**graph.graph)
    names = [search.names[index] for index in order]
    position = {name: index for index, name in enumerate(names)}
    ordered.add_nodes_from((name, graph.nodes[name]) for name in names)
    ordered.add_edges_from(sorted(graph.edges(keys=True), key=lambda edge: (position[edge[1]], edge[2])))
    return ordered


def peak_bytes(graph: ModelGraph) -> int:
    """Returns the largest sum of live 8-bit activations when the graph runs in its own order."""
    search = _Search(graph)
    return search.peak(range(len(search.names)))


class _Search:
    """The partial order in bit masks: who must run before whom, and which buffers each operation writes and reads."""

    def __init__(self, graph: ModelGraph) -> None:
        self.names = list(graph)
        self.everything = (1 << len(self.names)) - 1
        index = {name: number for number, name in enumerate(self.names)}
        holder = holders(graph)
        self.needs = [0] * len(self.names)  # predecessors
        self.size = [0] * len(self.names)  # bytes of the buffer that the operation writes
        self.readers = [0] * len(self.names)  # operations that keep that buffer alive
        self.reads: list[set[int]] = [set() for _ in self.names]  # buffers the operation touches
        for op in operations(graph):
            number = index[op.name]
            self.size[number] = op.output_elements if holder[op.name] == op.name else 0
            self.reads[number].add(number)
            if op.kind == "output":
                self.needs[number] |= self.everything & ~(1 << number)
        for source, target in graph.edges():
            self.needs[index[target]] |= 1 << index[source]
            self.readers[index[holder[source]]] |= 1 << index[target]
            self.reads[index[target]].add(index[holder[source]])

    def run(self, done: int, live: int, index: int) -> tuple[int, int, int]:
        """Executes an operation: returns the state after it, the bytes live after it, and those live while it ran."""
        after, during = done | 1 << index, live + self.size[index]
        freed = sum(self.size[buffer] for buffer in self.reads[index] if not self.readers[buffer] & ~after)
        return after, during - freed, during

    def peak(self, order: range | list[int]) -> int:
        """Largest live bytes of an order."""
        done = live = largest = 0
        for index in order:
            done, live, during = self.run(done, live, index)
            largest = max(largest, during)
        return largest

    def exact(self) -> list[int] | None:
        """The order of the lowest peak, or ``None`` when too many states would have to be visited."""
        queue: list[tuple[int, int, int, int]] = [(0, 0, 0, 0)]  # peak, -operations executed, state, bytes live
        best = {0: (0, 0, -1)}  # state → peak, state before, operation executed
        visited: set[int] = set()
        while queue and len(visited) <= EXACT_STATES:
            peak, depth, done, live = heapq.heappop(queue)
            if done == self.everything:
                return self._path(best)
            if done in visited:
                continue
            visited.add(done)
            for index in self._ready(done):
                after, left, during = self.run(done, live, index)
                reached = max(peak, during)
                if after not in best or reached < best[after][0]:
                    best[after] = (reached, done, index)
                    heapq.heappush(queue, (reached, depth - 1, after, left))
        return None

    def beam(self) -> list[int]:
        """A good order: at every step the states of the lowest peak, then the fewest live bytes, survive."""
        states: dict[int, tuple[int, int, list[int]]] = {0: (0, 0, [])}  # state → peak, bytes live, order
        for _ in self.names:
            found: dict[int, tuple[int, int, list[int]]] = {}
            for done, (peak, live, order) in states.items():
                for index in self._ready(done):
                    after, left, during = self.run(done, live, index)
                    reached = max(peak, during)
                    if after not in found or reached < found[after][0]:
                        found[after] = (reached, left, [*order, index])
            states = dict(sorted(found.items(), key=lambda item: item[1][:2])[:BEAM])
        return states[self.everything][2]

    def _ready(self, done: int) -> Iterator[int]:
        for index, needs in enumerate(self.needs):
            if not done >> index & 1 and not needs & ~done:
                yield index

    def _path(self, best: dict[int, tuple[int, int, int]]) -> list[int]:
        order, state = [], self.everything
        while state:
            _, state, index = best[state]
            order.append(index)
        return order[::-1]
