"""The model as data: a `networkx.MultiDiGraph` of fused operations.

A node is one operation as it will be deployed (convolution + batch norm + clamp is one node); its key is the path of
the module that computes it, with ``#1``, ``#2`` … for further uses of the same module. An edge is a tensor going into
argument ``key``, so ``add(x, x)`` keeps two edges. Every node has exactly one output tensor, named like the node.

Shapes leave the batch out: ``(C, H, W)`` for images, ``(F,)`` for features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import networkx as nx

from ddq_search.errors import GraphError

WEIGHTED = frozenset({"conv2d", "linear"})
"""Operations with weights: the searchable layers."""

CLAMPS = frozenset({"relu", "relu6"})
"""Activations that fuse into the operation before them because they only clamp codes."""

TABLES = frozenset({"relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "tanh"})
"""Element-wise functions that are executed as a look-up over codes when they stand alone."""

SAME_GRID = frozenset(
    {"max_pool2d", "avg_pool2d", "reshape", "transpose", "pixel_shuffle", "slice", "concat", "output"}
)
"""Operations whose inputs and output share one scale in integer formats: their tensors are tied."""

ALIASES = frozenset({"reshape", "output"})
"""Operations that run no code: their output is their input's buffer."""

KINDS = frozenset({"input", "add", "mul", "mean", "activation"}) | WEIGHTED | SAME_GRID

ModelGraph: TypeAlias = nx.MultiDiGraph


@dataclass(frozen=True)
class Operation:
    """One deployed operation.

    Attributes:
        name: stable key, see the module docstring.
        kind: one of `KINDS`.
        input_shapes: shape of each argument, batch left out.
        output_shape: shape of the result, batch left out.
        attributes: what the kind needs: ``kernel_size, stride, padding (top, bottom, left, right), dilation, groups``
            of conv2d and pools, ``count_include_pad`` of avg_pool2d, ``keepdim`` of mean, ``dim`` of concat,
            ``dims`` of transpose, ``dim, start, stop`` of slice, ``function`` of activation. The shapes tell the factor
            of pixel_shuffle, ``[C r², H, W]`` → ``[C, H r, W r]``.
        module: path of the module that holds the weights.
        norm: path of the fused batch norm.
        clamp: the fused clamp, one of `CLAMPS`.
        macs: multiply-accumulates for one sample.
        weights: number of weight scalars.
        has_bias: whether the layer or its batch norm adds a bias.
        nonnegative: whether the output is known to be ≥ 0.
    """

    name: str
    kind: str
    input_shapes: tuple[tuple[int, ...], ...]
    output_shape: tuple[int, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    module: str | None = None
    norm: str | None = None
    clamp: str | None = None
    macs: int = 0
    weights: int = 0
    has_bias: bool = False
    nonnegative: bool = False

    @property
    def output_elements(self) -> int:
        """Number of scalars in the output tensor of one sample."""
        return math.prod(self.output_shape)

    @property
    def is_depthwise(self) -> bool:
        """Whether this is a convolution with one input channel per group and several groups."""
        return self.kind == "conv2d" and self.attributes["groups"] == self.input_shapes[0][0] > 1

    @property
    def rows(self) -> int:
        """Output channels of a weighted layer: rows of its weight matrix."""
        return self.output_shape[0] if self.kind == "conv2d" else self.output_shape[-1]

    @property
    def row_length(self) -> int:
        """Weights per output channel (K of the matrix product)."""
        return self.weights // self.rows


def operations(graph: ModelGraph) -> Iterator[Operation]:
    """Yields the operations in the order the model executed them, which is a topological order."""
    for _, data in graph.nodes(data=True):
        yield data["operation"]


def operation(graph: ModelGraph, name: str) -> Operation:
    """Returns one operation by name; raises `GraphError` when the graph has none of that name."""
    if name not in graph:
        raise GraphError(f"no operation {name!r} in the graph; `ddq-search inspect` lists them")
    found: Operation = graph.nodes[name]["operation"]
    return found


def inputs_of(graph: ModelGraph, name: str) -> list[str]:
    """Returns the producers of an operation's arguments, in argument order (a producer may appear twice)."""
    return [source for source, _, _ in sorted(graph.in_edges(name, keys=True), key=lambda edge: int(edge[2]))]


def consumers_of(graph: ModelGraph, name: str) -> list[str]:
    """Returns the operations that read a tensor, each once, in execution order."""
    return list(dict.fromkeys(target for _, target in graph.out_edges(name)))


def tensor_groups(graph: ModelGraph) -> dict[str, str]:
    """Returns, for every tensor, the first tensor of its group: tensors of a group share one quantizer.

    Pools, operations that only move codes, and the output keep their input's grid; a concat needs all its inputs on one
    grid.
    """
    group = nx.utils.UnionFind(graph.nodes)
    for op in operations(graph):
        if op.kind in SAME_GRID:
            group.union(op.name, *inputs_of(graph, op.name))
    first: dict[str, str] = {}
    return {name: first.setdefault(group[name], name) for name in graph.nodes}


def holders(graph: ModelGraph) -> dict[str, str]:
    """Returns, for every operation, the operation whose buffer holds its tensor (itself unless it is an alias)."""
    holder: dict[str, str] = {}
    for op in operations(graph):
        holder[op.name] = holder[inputs_of(graph, op.name)[0]] if op.kind in ALIASES else op.name
    return holder


def to_json(graph: ModelGraph) -> str:
    """Returns the graph in networkx's node-link JSON."""
    plain = nx.MultiDiGraph(**graph.graph)
    for op in operations(graph):
        plain.add_node(op.name, **_plain_facts(op))
    plain.add_edges_from(graph.edges(keys=True))
    return json.dumps(nx.node_link_data(plain, edges="edges"), indent=1)


def from_json(text: str) -> ModelGraph:
    """Inverse of `to_json`.

    Raises:
        GraphError: the text is not a graph written by `to_json`.
    """
    try:
        plain = nx.node_link_graph(json.loads(text), edges="edges")
        graph = nx.MultiDiGraph(**plain.graph)
        for name, facts in plain.nodes(data=True):
            graph.add_node(name, operation=_operation(name, facts))
        graph.add_edges_from(plain.edges(keys=True))
    except (ValueError, KeyError, TypeError, nx.NetworkXError) as error:
        raise GraphError(f"not a graph written by ddq-search: {error}") from error
    return graph


def write_graphml(graph: ModelGraph, path: Path) -> None:
    """Writes GraphML for graph viewers; shapes and attributes become strings."""
    plain = nx.MultiDiGraph()
    for op in operations(graph):
        facts = {key: value for key, value in asdict(op).items() if value is not None and key != "name"}
        plain.add_node(op.name, **{k: v if isinstance(v, str | int | bool) else str(v) for k, v in facts.items()})
    plain.add_edges_from((a, b, {"position": int(key)}) for a, b, key in graph.edges(keys=True))
    nx.write_graphml(plain, path)


def _plain_facts(op: Operation) -> dict[str, Any]:
    facts = asdict(op)
    del facts["name"]
    return facts


def _operation(name: str, facts: Mapping[str, Any]) -> Operation:
    values = dict(facts)
    values["input_shapes"] = tuple(tuple(shape) for shape in values["input_shapes"])
    values["output_shape"] = tuple(values["output_shape"])
    values["attributes"] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values["attributes"].items()
    }
    return Operation(name=name, **values)
