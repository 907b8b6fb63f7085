"""From fx nodes to operations: what a layer absorbs (normalisation, clamp), and what each node means in integers.

Legend: N images, F features, C channels, H height, W width.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from typing import Any

import networkx as nx
import torch
import torch.nn.functional as F
from torch import fx, nn

from ddq_search.fx_nodes import bind, conv_padding, image_dim, only_user, permutation, pool_attributes, unsupported
from ddq_search.graph import CLAMPS, SAME_GRID, ModelGraph, Operation

_MODULE_FUNCTIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Tanh: "tanh",
}
_FREE_FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, torch.relu, "relu", "relu_"), "relu"),
    **dict.fromkeys((F.relu6,), "relu6"),
    **dict.fromkeys((F.hardswish,), "hardswish"),
    **dict.fromkeys((F.hardsigmoid,), "hardsigmoid"),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), "sigmoid"),
    **dict.fromkeys((F.silu,), "silu"),
    **dict.fromkeys((F.gelu,), "gelu"),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), "tanh"),
}
_NOTHING = {F.dropout, "contiguous", "detach", "clone"}
_ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}
_MUL = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_RESHAPE = {torch.flatten, torch.reshape, "view", "reshape", "flatten", torch.squeeze, "squeeze", "unsqueeze"}
_TRANSPOSE = {torch.transpose, "transpose", torch.permute, "permute"}
_SPLIT = {torch.chunk, "chunk", torch.split, "split"}
_NONNEGATIVE_FUNCTIONS = {"relu", "relu6", "hardsigmoid", "sigmoid"}


class Fusion:
    """One walk over an fx graph with shapes that emits fused operations."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.modules = dict(traced.named_modules())
        self.names: Counter[str] = Counter()
        self.alias: dict[fx.Node, str] = {}  # fx node → operation whose output it is
        self.fused: set[fx.Node] = set()  # nodes inside an operation whose value nobody else sees
        self.result: ModelGraph = nx.MultiDiGraph(model=type(traced).__name__)

    def graph(self) -> ModelGraph:
        """Returns the graph, in the order in which fx recorded it."""
        for node in self.traced.graph.nodes:
            done = node in self.alias or node in self.fused
            if not done and (node.op in ("placeholder", "output") or "shape" in node.meta):
                self._visit(node)
        return self.result

    # -- emitting ---------------------------------------------------------------------------------------------

    def _emit(
        self, node: fx.Node, kind: str, sources: list[fx.Node], attributes: dict[str, Any] | None = None, **facts: Any
    ) -> None:
        producers = [self._producer(node, source) for source in sources]
        shapes = tuple(tuple(source.meta["shape"][1:]) for source in sources)
        last = facts.pop("last", node)
        name = facts.pop("name", None) or self._name(node, kind)
        output_shape = tuple(last.meta["shape"][1:]) if "shape" in last.meta else shapes[0]
        nonnegative = facts.pop("nonnegative", False) or self._keeps_sign(kind, producers)
        self.result.add_node(
            name,
            operation=Operation(name, kind, shapes, output_shape, attributes or {}, nonnegative=nonnegative, **facts),
        )
        for position, producer in enumerate(producers):
            self.result.add_edge(producer, name, key=position)
        self.alias[last] = name

    def _keeps_sign(self, kind: str, producers: list[str]) -> bool:
        keeps = SAME_GRID | {"mean", "add", "mul"}
        return kind in keeps and all(self.result.nodes[p]["operation"].nonnegative for p in producers)

    def _name(self, node: fx.Node, kind: str) -> str:
        if node.op == "call_module":
            name = str(node.target)
        else:
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            parent = stack[-1][0] if stack else ""
            name = f"{parent}.{kind}" if parent else kind
        uses = self.names[name]
        self.names[name] += 1
        return f"{name}#{uses}" if uses else name

    def _producer(self, node: fx.Node, source: Any) -> str:
        if not isinstance(source, fx.Node) or source not in self.alias:
            raise unsupported(node, f"argument {source} is not a tensor computed by the model")
        return self.alias[source]

    def _source(self, node: fx.Node) -> fx.Node:
        """Returns the first argument, which must be a tensor."""
        source = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(source, fx.Node):
            raise unsupported(node, f"its first argument {source} is not a tensor computed by the model")
        return source

    # -- reading ----------------------------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if any(op["operation"].kind == "input" for _, op in self.result.nodes(data=True)):
                raise unsupported(node, "models with one input tensor are supported")
            self._emit(node, "input", [], name="input")
        elif node.op == "output":
            result = node.args[0]
            if not isinstance(result, fx.Node) or "shape" not in result.meta:
                raise unsupported(node, "the model must return one tensor")
            self._emit(node, "output", [result], name="output")
        elif node.op == "call_module":
            self._visit_module(node, self.modules[str(node.target)])
        elif node.op in ("call_function", "call_method"):
            self._visit_function(node)
        else:
            raise unsupported(node, "constants and parameters used as tensors are not supported")

    def _visit_module(self, node: fx.Node, module: nn.Module) -> None:
        source = self._source(node)
        if isinstance(module, nn.Conv2d | nn.Linear):
            self._weighted(node, module)
        elif type(module) in _MODULE_FUNCTIONS:
            if isinstance(module, nn.GELU) and module.approximate != "none":
                raise unsupported(node, "GELU(approximate='tanh') is not supported; use GELU()")
            self._function(node, _MODULE_FUNCTIONS[type(module)])
        elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            self._pool(node, vars(module))
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            self._adaptive(node)
        elif isinstance(module, nn.Flatten):
            self._emit(node, "reshape", [source])
        elif isinstance(module, nn.PixelShuffle):
            self._pixel_shuffle(node)
        elif isinstance(module, nn.Dropout | nn.Dropout2d | nn.Identity):
            self.alias[node] = self._producer(node, source)
        else:
            raise unsupported(node, f"modules of type {type(module).__name__} are not supported here")

    def _visit_function(self, node: fx.Node) -> None:
        target = node.target
        if target in _FREE_FUNCTIONS:
            self._function(node, _FREE_FUNCTIONS[target])
        elif target in _NOTHING:
            self.alias[node] = self._producer(node, self._source(node))
        elif target in _ADD or target in _MUL:
            self._binary(node, "add" if target in _ADD else "mul")
        elif target in (torch.cat, torch.concat):
            tensors, dim = bind(node, ("tensors", "dim"), (None, 0))
            self._emit(node, "concat", list(tensors), {"dim": image_dim(dim, node.meta["shape"])})
        elif target in _RESHAPE:
            if node.meta["shape"][:1] != self._source(node).meta["shape"][:1]:
                raise unsupported(node, "reshaping that touches the batch dimension is not supported")
            self._emit(node, "reshape", [self._source(node)])
        elif target in _TRANSPOSE:
            self._emit(node, "transpose", [self._source(node)], {"dims": permutation(node)})
        elif target in (F.pixel_shuffle,):
            self._pixel_shuffle(node)
        elif target in (torch.mean, "mean"):
            self._mean(node)
        elif target in (F.adaptive_avg_pool2d,):
            self._adaptive(node)
        elif target in (F.max_pool2d, F.avg_pool2d, torch.max_pool2d):
            names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
            if target is F.avg_pool2d:
                names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
            self._pool(node, dict(zip(names, node.args, strict=False)) | dict(node.kwargs))
        elif target is operator.getitem:
            self._slice(node)
        else:
            raise unsupported(node, "this operation is not supported")

    def _weighted(self, node: fx.Node, module: nn.Conv2d | nn.Linear) -> None:
        source = self._source(node)
        last, norm, clamp = node, None, None
        follower = only_user(last)
        norms = nn.BatchNorm2d if isinstance(module, nn.Conv2d) else nn.BatchNorm1d
        is_module = follower is not None and follower.op == "call_module"
        if follower is not None and is_module and isinstance(self.modules[str(follower.target)], norms):
            last, norm = follower, str(follower.target)
            self.fused.add(last)
        last, clamp = self._fused_clamp(last)
        shape = tuple(last.meta["shape"][1:])
        attributes: dict[str, Any] = {}
        if isinstance(module, nn.Conv2d):
            if module.padding_mode != "zeros":
                raise unsupported(node, f"padding_mode={module.padding_mode!r}; only zeros is supported")
            attributes = {
                "kernel_size": tuple(module.kernel_size),
                "stride": tuple(module.stride),
                "padding": conv_padding(module),
                "dilation": tuple(module.dilation),
                "groups": module.groups,
            }
            kind = "conv2d"
        else:
            if len(shape) != 1:
                raise unsupported(node, f"Linear on a tensor of shape {shape}; flatten it to [N, features] first")
            kind = "linear"
        macs = math.prod(shape) * module.weight[0].numel()
        self._emit(
            node, kind, [source], attributes, last=last, module=str(node.target), norm=norm, clamp=clamp, macs=macs,
            weights=module.weight.numel(), has_bias=module.bias is not None or norm is not None,
            nonnegative=clamp is not None,
        )  # fmt: skip

    def _fused_clamp(self, node: fx.Node) -> tuple[fx.Node, str | None]:
        follower = only_user(node)
        if follower is None:
            return node, None
        if follower.op == "call_module":
            function = _MODULE_FUNCTIONS.get(type(self.modules[str(follower.target)]))
        else:
            function = _FREE_FUNCTIONS.get(follower.target)
        return (follower, function) if function in CLAMPS else (node, None)

    def _binary(self, node: fx.Node, kind: str) -> None:
        sources = [source for source in node.args[:2] if isinstance(source, fx.Node) and "shape" in source.meta]
        if len(sources) != 2:
            raise unsupported(node, f"{kind} with a constant; fold it into a layer, or use Hardswish/Hardsigmoid")
        if node.kwargs or len(node.args) > 2:
            raise unsupported(node, f"{kind} with alpha or out arguments is not supported")
        shapes = [tuple(source.meta["shape"]) for source in sources]
        spread = [s for s in shapes if s != node.meta["shape"]]
        if (kind == "add" and spread) or any(s[2:] != (1, 1) or s[:2] != node.meta["shape"][:2] for s in spread):
            raise unsupported(node, f"{kind} of shapes {shapes}: only per-channel scaling may broadcast")
        last, clamp = self._fused_clamp(node)
        self._emit(node, kind, sources, last=last, clamp=clamp, nonnegative=clamp is not None)

    def _function(self, node: fx.Node, function: str) -> None:
        self._emit(
            node,
            "activation",
            [self._source(node)],
            {"function": function},
            nonnegative=function in _NONNEGATIVE_FUNCTIONS,
        )

    def _pool(self, node: fx.Node, options: dict[str, Any]) -> None:
        maximum = "max_pool" in str(getattr(node.target, "__name__", node.target)) or (
            node.op == "call_module" and isinstance(self.modules[str(node.target)], nn.MaxPool2d)
        )
        attributes = pool_attributes(node, options, maximum=maximum)
        self._emit(node, "max_pool2d" if maximum else "avg_pool2d", [self._source(node)], attributes)

    def _adaptive(self, node: fx.Node) -> None:
        source = self._source(node)
        height, width = source.meta["shape"][2:]
        rows, columns = node.meta["shape"][2:]
        if (rows, columns) == (1, 1):
            self._emit(node, "mean", [source], {"keepdim": True})
        elif (rows, columns) == (height, width):
            self.alias[node] = self._producer(node, source)
        elif height % rows == 0 and width % columns == 0:
            window = (height // rows, width // columns)
            facts = {"kernel_size": window, "stride": window, "padding": (0, 0, 0, 0), "ceil_mode": False}
            self._emit(node, "avg_pool2d", [source], {**facts, "count_include_pad": True})
        else:
            raise unsupported(node, f"adaptive pooling from {height}x{width} to {rows}x{columns} has no fixed window")

    def _pixel_shuffle(self, node: fx.Node) -> None:
        source = self._source(node)
        if len(source.meta["shape"]) != 4:
            raise unsupported(node, f"pixel shuffle of shape {source.meta['shape']}; images [N, C, H, W] only")
        self._emit(node, "pixel_shuffle", [source])

    def _mean(self, node: fx.Node) -> None:
        source, dims, keepdim = bind(node, ("input", "dim", "keepdim"), (None, None, False))
        rank = len(source.meta["shape"])
        if dims is None or sorted(d % rank for d in ([dims] if isinstance(dims, int) else dims)) != [2, 3] or rank != 4:
            raise unsupported(node, "mean is supported over the two spatial dimensions")
        self._emit(node, "mean", [source], {"keepdim": bool(keepdim)})

    def _slice(self, node: fx.Node) -> None:
        split, index = node.args
        if not (isinstance(split, fx.Node) and split.target in _SPLIT and isinstance(index, int)):
            raise unsupported(node, "indexing is supported on the result of chunk and split only")
        dim = bind(split, ("input", "size", "dim"), (None, None, 0))[2]
        sizes = [shape[dim] for shape in split.meta["shapes"]]
        start = sum(sizes[: index % len(sizes)])
        attributes = {
            "dim": image_dim(dim, node.meta["shape"]),
            "start": start,
            "stop": start + node.meta["shape"][dim],
        }
        self._emit(node, "slice", [self._source(split)], attributes)
