"""The arena planner: live ranges by hand, aliases, and that nothing alive ever overlaps."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.errors import CostError
from ddq_search.graph import Operation
from hardware_models.memory import ArenaPlan, buffers, place, plan_arena


def chain(*nodes: tuple[str, str, int, list[str]]) -> nx.MultiDiGraph:
    """Builds a graph from (name, kind, elements, inputs)."""
    graph = nx.MultiDiGraph()
    size = {name: elements for name, _, elements, _ in nodes}
    for name, kind, elements, inputs in nodes:
        shapes = tuple((size[source],) for source in inputs)
        graph.add_node(name, operation=Operation(name, kind, shapes, (elements,)))
        for position, source in enumerate(inputs):
            graph.add_edge(source, name, key=position)
    return graph


def residual() -> nx.MultiDiGraph:
    return chain(
        ("input", "input", 100, []),
        ("a", "activation", 60, ["input"]),
        ("b", "activation", 40, ["a"]),
        ("sum", "add", 60, ["a", "b"]),
        ("flat", "reshape", 60, ["sum"]),
        ("output", "output", 60, ["flat"]),
    )


def check(plan: ArenaPlan, alignment: int) -> None:
    names = list(plan.sizes)
    for index, first in enumerate(names):
        assert plan.offsets[first] % alignment == 0
        assert plan.sizes[first] % alignment == 0
        assert plan.offsets[first] + plan.sizes[first] <= plan.total
        for second in names[index + 1 :]:
            (a, b), (c, d) = plan.ranges[first], plan.ranges[second]
            if a <= d and c <= b and min(plan.sizes[first], plan.sizes[second]) > 0:
                low, high = sorted((first, second), key=lambda name: plan.offsets[name])
                assert plan.offsets[low] + plan.sizes[low] <= plan.offsets[high]
    assert plan.total >= max(plan.live_bytes)


def test_live_ranges_by_hand() -> None:
    found = {b.name: (b.first, b.last) for b in buffers(residual())}
    assert found == {"input": (0, 1), "a": (1, 3), "b": (2, 3), "sum": (3, 5)}


def test_plan_by_hand() -> None:
    graph = residual()
    plan = plan_arena(graph, dict.fromkeys(graph, 8), {"b": 10}, 8)
    assert plan.sizes == {"input": 104, "a": 64, "b": 40, "sum": 64, "scratch/b": 16}
    assert plan.live_bytes == (104, 168, 120, 168, 64, 64)
    assert plan.total == 168
    assert plan.aliases == {"flat": "sum", "output": "sum"}
    check(plan, 8)


def test_codes_are_packed() -> None:
    graph = residual()
    plan = plan_arena(graph, {"input": 8, "a": 4, "b": 2, "sum": 2, "flat": 2, "output": 2}, {}, 1)
    assert plan.sizes == {"input": 100, "a": 30, "b": 10, "sum": 15}
    assert plan.total == 130


def test_a_schedule_may_be_given_but_must_be_valid() -> None:
    graph = chain(
        ("input", "input", 8, []),
        ("wide", "activation", 100, ["input"]),
        ("left", "activation", 8, ["wide"]),
        ("right", "activation", 8, ["input"]),
        ("sum", "add", 8, ["left", "right"]),
    )
    bits = dict.fromkeys(graph, 8)
    early = plan_arena(graph, bits, {}, 1, ["input", "right", "wide", "left", "sum"])
    assert early.steps[1] == "right"
    assert early.total == 116
    assert plan_arena(graph, bits, {}, 1).total == 116
    with pytest.raises(CostError, match=r"'left' .* before its input 'wide'"):
        plan_arena(graph, bits, {}, 1, ["input", "right", "left", "wide", "sum"])
    with pytest.raises(CostError, match="exactly once"):
        plan_arena(graph, bits, {}, 1, ["input", "right", "left", "wide"])


ranges = st.tuples(st.integers(0, 12), st.integers(0, 6)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(ranges, st.integers(0, 500)), min_size=1, max_size=20))
def test_nothing_alive_overlaps(items: list[tuple[tuple[int, int], int]]) -> None:
    spans = {str(i): span for i, (span, _) in enumerate(items)}
    sizes = {str(i): size for i, (_, size) in enumerate(items)}
    offsets, total = place(spans, sizes)
    live = [sum(sizes[n] for n, (a, b) in spans.items() if a <= step <= b) for step in range(19)]
    check(ArenaPlan((), sizes, offsets, spans, {}, tuple(live), total), 1)
    assert total <= sum(sizes.values())


@st.composite
def graphs(draw: st.DrawFn) -> nx.MultiDiGraph:
    nodes: list[tuple[str, str, int, list[str]]] = [("input", "input", draw(st.integers(1, 300)), [])]
    for index in range(draw(st.integers(1, 12))):
        names = [name for name, *_ in nodes]
        kind = draw(st.sampled_from(["add", "activation", "reshape"]))
        inputs = [draw(st.sampled_from(names)) for _ in range(2 if kind == "add" else 1)]
        size = {n: e for n, _, e, _ in nodes}[inputs[0]] if kind == "reshape" else draw(st.integers(1, 300))
        nodes.append((f"n{index}", kind, size, inputs))
    return chain(*nodes, ("output", "output", nodes[-1][2], [nodes[-1][0]]))


@settings(deadline=None, max_examples=60)
@given(graphs(), st.sampled_from([1, 8, 16]), st.data())
def test_plans_of_random_graphs(graph: nx.MultiDiGraph, alignment: int, data: st.DataObject) -> None:
    bits = {name: data.draw(st.sampled_from([2, 4, 8])) for name in graph}
    scratch = {name: data.draw(st.integers(0, 100)) for name in list(graph)[:3]}
    check(plan_arena(graph, bits, scratch, alignment), alignment)
