"""The order of execution: by hand, against every topological order, and against the planner's live bytes."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ddq_search import schedule
from ddq_search.graph import Operation, inputs_of
from ddq_search.schedule import lowest_peak, peak_bytes
from ddq_search.trace import trace
from hardware_models.memory import plan_arena


def graph_of(nodes: list[tuple[str, str, int, list[str]]]) -> nx.MultiDiGraph:
    """Builds a graph from (name, kind, elements, inputs)."""
    graph = nx.MultiDiGraph()
    for name, kind, elements, inputs in nodes:
        graph.add_node(name, operation=Operation(name, kind, (), (elements,)))
        for position, source in enumerate(inputs):
            graph.add_edge(source, name, key=position)
    return graph


def two_branches() -> nx.MultiDiGraph:
    """A wide and a narrow branch: executing the wide one first frees its large tensor early."""
    return graph_of(
        [
            ("input", "input", 10, []),
            ("narrow", "activation", 50, ["input"]),
            ("wide", "activation", 100, ["input"]),
            ("shrunk", "activation", 5, ["wide"]),
            ("sum", "add", 5, ["shrunk", "narrow"]),
            ("output", "output", 5, ["sum"]),
        ]
    )


def test_the_wide_branch_runs_first() -> None:
    graph = two_branches()
    assert peak_bytes(graph) == 10 + 50 + 100
    ordered = lowest_peak(graph)
    assert list(ordered) == ["input", "wide", "shrunk", "narrow", "sum", "output"]
    assert peak_bytes(ordered) == 10 + 100 + 5
    assert inputs_of(ordered, "sum") == ["shrunk", "narrow"]


def test_a_chain_and_a_tie_keep_their_graph() -> None:
    chain = graph_of([("input", "input", 4, []), ("a", "activation", 9, ["input"]), ("output", "output", 9, ["a"])])
    assert lowest_peak(chain) is chain


@st.composite
def graphs(draw: st.DrawFn) -> nx.MultiDiGraph:
    count = draw(st.integers(2, 7))
    nodes: list[tuple[str, str, int, list[str]]] = [("input", "input", draw(st.integers(1, 30)), [])]
    for number in range(count):
        names = [name for name, _, _, _ in nodes]
        sources = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2))
        if len(sources) == 1 and draw(st.booleans()):
            elements = next(size for name, _, size, _ in nodes if name == sources[0])
            nodes.append((f"n{number}", "reshape", elements, sources))
        else:
            nodes.append((f"n{number}", "activation", draw(st.integers(1, 30)), sources))
    last, _, size, _ = nodes[-1]
    return graph_of([*nodes, ("output", "output", size, [last])])


@settings(deadline=None, max_examples=60)
@given(graphs(), st.booleans())
def test_against_every_order(graph: nx.MultiDiGraph, heuristic: bool) -> None:
    """The exact search finds the minimum over all orders that end with the output; the beam a valid order."""

    def planned(order: list[str]) -> int:
        plan = plan_arena(graph, dict.fromkeys(graph, 8), {}, 1, order)
        return max(plan.live_bytes)

    least = min(planned(order) for order in nx.all_topological_sorts(nx.DiGraph(graph)) if order[-1] == "output")
    assert peak_bytes(graph) == planned(list(graph))
    if heuristic:
        search = schedule._Search(graph)
        order = [search.names[index] for index in search.beam()]
        assert least <= planned(order) <= planned(list(graph))
    else:
        assert planned(list(lowest_peak(graph))) == least


class Branches(nn.Module):
    """Traced narrow branch first."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(4, 16, 1)
        self.wide = nn.Conv2d(4, 32, 1)
        self.shrink = nn.Conv2d(32, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        narrow = self.narrow(x)
        return self.shrink(self.wide(x)) + narrow


def test_tracing_orders_branches() -> None:
    graph = trace(Branches(), torch.zeros(1, 4, 8, 8))
    assert list(graph)[1:4] == ["wide", "shrink", "narrow"]


def test_the_heuristic_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "EXACT_STATES", 2)
    assert peak_bytes(lowest_peak(two_branches())) == 115
