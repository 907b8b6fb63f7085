"""From an `nn.Module` to the model graph: torch.fx with shape propagation, then fusion.

Nothing in the model needs to be written for us. What fx cannot follow, or an operation that has no meaning in
integers yet, ends in a `GraphError` that names the module, the source line and what to change.
"""

from __future__ import annotations

import math
import operator
import re
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import networkx as nx
import torch
import torch.nn.functional as F
from torch import fx, nn

from ddq_search.errors import GraphError
from ddq_search.graph import CLAMPS, SAME_GRID, ModelGraph, Operation
from ddq_search.schedule import lowest_peak

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


def trace(model: nn.Module, example: torch.Tensor) -> ModelGraph:
    """Returns the graph of fused operations that ``model`` executes on ``example``, in the order of the lowest peak.

    Args:
        model: any module that torch.fx can follow; it is not modified.
        example: one input batch ``[N, C, H, W]`` (or ``[N, F]``); only its shape matters.

    Raises:
        GraphError: fx cannot follow the model, the input does not fit, or an operation is not supported.
    """
    return lowest_peak(_Tracing(_symbolic(model, example)).graph())


def _symbolic(model: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    tracer = fx.Tracer()
    tracer.record_stack_traces = True
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        try:
            traced = fx.GraphModule(model, tracer.trace(model))
        except Exception as error:
            inside = next(reversed(tracer.module_stack), "")
            raise GraphError(
                f"torch.fx cannot follow {_module_name(model, inside)}{_own_line(error)}: {_first_line(error)}. Move "
                "data-dependent Python (if, for, len over tensors) into a module marked as a leaf, or out of forward"
            ) from error
        try:
            with torch.no_grad():
                _Shapes(traced.eval()).run(example)
        except Exception as error:
            raise GraphError(
                f"{type(model).__name__} does not accept an input of shape {tuple(example.shape)}: {_first_line(error)}"
            ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    return traced


def _module_name(model: nn.Module, inside: str) -> str:
    return f"module {inside.partition('@')[0]!r} of {type(model).__name__}" if inside else type(model).__name__


def _own_line(error: Exception) -> str:
    """Returns the innermost line outside of torch that led to the error, as `` at file:line``."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
    frames = [f for f in frames if f.filename != __file__]
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


class _Shapes(fx.Interpreter):
    """Records each node's output shape (or the plain value) in its meta."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            n.meta["shape"] = tuple(value.shape)
        elif isinstance(value, (tuple, list)) and value and all(isinstance(v, torch.Tensor) for v in value):
            n.meta["shapes"] = [tuple(v.shape) for v in value]
        return value


class _Tracing:
    """One walk over the fx graph that emits fused operations."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.modules = dict(traced.named_modules())
        self.names: Counter[str] = Counter()
        self.alias: dict[fx.Node, str] = {}  # fx node → operation whose output it is
        self.fused: set[fx.Node] = set()  # nodes inside an operation whose value nobody else sees
        self.result: ModelGraph = nx.MultiDiGraph(model=type(traced).__name__)

    def graph(self) -> ModelGraph:
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
            raise self._unsupported(node, f"argument {source} is not a tensor computed by the model")
        return self.alias[source]

    def _source(self, node: fx.Node) -> fx.Node:
        """Returns the first argument, which must be a tensor."""
        source = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(source, fx.Node):
            raise self._unsupported(node, f"its first argument {source} is not a tensor computed by the model")
        return source

    # -- reading ----------------------------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if any(op["operation"].kind == "input" for _, op in self.result.nodes(data=True)):
                raise self._unsupported(node, "models with one input tensor are supported")
            self._emit(node, "input", [], name="input")
        elif node.op == "output":
            result = node.args[0]
            if not isinstance(result, fx.Node) or "shape" not in result.meta:
                raise self._unsupported(node, "the model must return one tensor")
            self._emit(node, "output", [result], name="output")
        elif node.op == "call_module":
            self._visit_module(node, self.modules[str(node.target)])
        elif node.op in ("call_function", "call_method"):
            self._visit_function(node)
        else:
            raise self._unsupported(node, "constants and parameters used as tensors are not supported")

    def _visit_module(self, node: fx.Node, module: nn.Module) -> None:
        source = self._source(node)
        if isinstance(module, nn.Conv2d | nn.Linear):
            self._weighted(node, module)
        elif type(module) in _MODULE_FUNCTIONS:
            if isinstance(module, nn.GELU) and module.approximate != "none":
                raise self._unsupported(node, "GELU(approximate='tanh') is not supported; use GELU()")
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
            raise self._unsupported(node, f"modules of type {type(module).__name__} are not supported here")

    def _visit_function(self, node: fx.Node) -> None:
        target = node.target
        if target in _FREE_FUNCTIONS:
            self._function(node, _FREE_FUNCTIONS[target])
        elif target in _NOTHING:
            self.alias[node] = self._producer(node, self._source(node))
        elif target in _ADD or target in _MUL:
            self._binary(node, "add" if target in _ADD else "mul")
        elif target in (torch.cat, torch.concat):
            tensors, dim = _bind(node, ("tensors", "dim"), (None, 0))
            self._emit(node, "concat", list(tensors), {"dim": _image_dim(dim, node.meta["shape"])})
        elif target in _RESHAPE:
            if node.meta["shape"][:1] != self._source(node).meta["shape"][:1]:
                raise self._unsupported(node, "reshaping that touches the batch dimension is not supported")
            self._emit(node, "reshape", [self._source(node)])
        elif target in _TRANSPOSE:
            self._emit(node, "transpose", [self._source(node)], {"dims": self._permutation(node)})
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
            raise self._unsupported(node, "this operation is not supported")

    def _weighted(self, node: fx.Node, module: nn.Conv2d | nn.Linear) -> None:
        source = self._source(node)
        last, norm, clamp = node, None, None
        follower = _only_user(last)
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
                raise self._unsupported(node, f"padding_mode={module.padding_mode!r}; only zeros is supported")
            attributes = {
                "kernel_size": tuple(module.kernel_size),
                "stride": tuple(module.stride),
                "padding": _conv_padding(module),
                "dilation": tuple(module.dilation),
                "groups": module.groups,
            }
            kind = "conv2d"
        else:
            if len(shape) != 1:
                raise self._unsupported(node, f"Linear on a tensor of shape {shape}; flatten it to [N, features] first")
            kind = "linear"
        macs = math.prod(shape) * module.weight[0].numel()
        self._emit(
            node, kind, [source], attributes, last=last, module=str(node.target), norm=norm, clamp=clamp, macs=macs,
            weights=module.weight.numel(), has_bias=module.bias is not None or norm is not None,
            nonnegative=clamp is not None,
        )  # fmt: skip

    def _fused_clamp(self, node: fx.Node) -> tuple[fx.Node, str | None]:
        follower = _only_user(node)
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
            raise self._unsupported(node, f"{kind} with a constant; fold it into a layer, or use Hardswish/Hardsigmoid")
        if node.kwargs or len(node.args) > 2:
            raise self._unsupported(node, f"{kind} with alpha or out arguments is not supported")
        shapes = [tuple(source.meta["shape"]) for source in sources]
        spread = [s for s in shapes if s != node.meta["shape"]]
        if (kind == "add" and spread) or any(s[2:] != (1, 1) or s[:2] != node.meta["shape"][:2] for s in spread):
            raise self._unsupported(node, f"{kind} of shapes {shapes}: only per-channel scaling may broadcast")
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
        kernel = _pair(options["kernel_size"])
        padding = _pair(options.get("padding", 0))
        if _pair(options.get("dilation", 1)) != (1, 1):
            raise self._unsupported(node, "dilated pooling is not supported")
        if options.get("divisor_override"):
            raise self._unsupported(node, "divisor_override is not supported")
        attributes: dict[str, Any] = {
            "kernel_size": kernel,
            "stride": _pair(options.get("stride") or kernel),
            "padding": (padding[0], padding[0], padding[1], padding[1]),
            "ceil_mode": bool(options.get("ceil_mode", False)),
        }
        if not maximum:
            attributes["count_include_pad"] = bool(options.get("count_include_pad", True))
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
            raise self._unsupported(
                node, f"adaptive pooling from {height}x{width} to {rows}x{columns} has no fixed window"
            )

    def _pixel_shuffle(self, node: fx.Node) -> None:
        source = self._source(node)
        if len(source.meta["shape"]) != 4:
            raise self._unsupported(node, f"pixel shuffle of shape {source.meta['shape']}; images [N, C, H, W] only")
        self._emit(node, "pixel_shuffle", [source])

    def _mean(self, node: fx.Node) -> None:
        source, dims, keepdim = _bind(node, ("input", "dim", "keepdim"), (None, None, False))
        rank = len(source.meta["shape"])
        if dims is None or sorted(d % rank for d in ([dims] if isinstance(dims, int) else dims)) != [2, 3] or rank != 4:
            raise self._unsupported(node, "mean is supported over the two spatial dimensions")
        self._emit(node, "mean", [source], {"keepdim": bool(keepdim)})

    def _slice(self, node: fx.Node) -> None:
        split, index = node.args
        if not (isinstance(split, fx.Node) and split.target in _SPLIT and isinstance(index, int)):
            raise self._unsupported(node, "indexing is supported on the result of chunk and split only")
        dim = _bind(split, ("input", "size", "dim"), (None, None, 0))[2]
        sizes = [shape[dim] for shape in split.meta["shapes"]]
        start = sum(sizes[: index % len(sizes)])
        attributes = {
            "dim": _image_dim(dim, node.meta["shape"]),
            "start": start,
            "stop": start + node.meta["shape"][dim],
        }
        self._emit(node, "slice", [self._source(split)], attributes)

    def _permutation(self, node: fx.Node) -> tuple[int, ...]:
        rank = len(node.meta["shape"])
        dims: list[Any] = []
        for argument in node.args[1:]:
            dims.extend(argument if isinstance(argument, tuple | list) else [argument])
        dims = [d % rank for d in dims]
        if node.target in (torch.transpose, "transpose"):
            order = list(range(rank))
            order[dims[0]], order[dims[1]] = order[dims[1]], order[dims[0]]
            dims = order
        if dims[0] != 0:
            raise self._unsupported(node, "moving the batch dimension is not supported")
        return tuple(d - 1 for d in dims[1:])

    def _unsupported(self, node: fx.Node, why: str) -> GraphError:
        what = f"module {node.target!r}" if node.op == "call_module" else f"{node.op} {_target_name(node.target)}"
        frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
        frames = [frame for frame in frames if "/torch/" not in frame[0]] or frames
        where = f" at {frames[-1][0]}:{frames[-1][1]}" if frames else ""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        inside = f" in module {stack[-1][0]!r}" if stack and stack[-1][0] and node.op != "call_module" else ""
        return GraphError(f"{what} ({node.name}){inside}{where}: {why}")


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _bind(node: fx.Node, names: tuple[str, ...], defaults: tuple[Any, ...]) -> list[Any]:
    values = dict(zip(names, defaults, strict=True))
    values.update(zip(names, node.args, strict=False))
    values.update({("dim" if k == "axis" else k): v for k, v in node.kwargs.items()})
    return [values[name] for name in names]


def _pair(value: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _conv_padding(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    if conv.padding == "valid":
        return 0, 0, 0, 0
    if conv.padding == "same":
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        (top, left) = (total // 2 for total in totals)
        return top, totals[0] - top, left, totals[1] - left
    vertical, horizontal = _pair(conv.padding)  # type: ignore[arg-type]
    return vertical, vertical, horizontal, horizontal


def _image_dim(dim: int, shape: tuple[int, ...]) -> int:
    positive = dim % len(shape)
    if positive == 0:
        raise GraphError("an operation along the batch dimension is not supported")
    return positive - 1


def _target_name(target: str | Callable[..., Any]) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
