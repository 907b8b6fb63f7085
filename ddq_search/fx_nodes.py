"""What a torch.fx node says: its arguments, options and place in the source."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from ddq_search.errors import GraphError


def unsupported(node: fx.Node, why: str) -> GraphError:
    """Returns the error that names a node: operation, module, source line, and why it cannot be read."""
    what = f"module {node.target!r}" if node.op == "call_module" else f"{node.op} {_target_name(node.target)}"
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    frames = [frame for frame in frames if "/torch/" not in frame[0]] or frames
    where = f" at {frames[-1][0]}:{frames[-1][1]}" if frames else ""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    inside = f" in module {stack[-1][0]!r}" if stack and stack[-1][0] and node.op != "call_module" else ""
    return GraphError(f"{what} ({node.name}){inside}{where}: {why}")


def pool_attributes(node: fx.Node, options: Mapping[str, Any], *, maximum: bool) -> dict[str, Any]:
    """Returns the attributes of a pooling from a module's, or a call's, options.

    Raises:
        GraphError: an option has no meaning here.
    """
    kernel = pair(options["kernel_size"])
    padding = pair(options.get("padding", 0))
    if pair(options.get("dilation", 1)) != (1, 1):
        raise unsupported(node, "dilated pooling is not supported")
    if options.get("divisor_override"):
        raise unsupported(node, "divisor_override is not supported")
    attributes: dict[str, Any] = {
        "kernel_size": kernel,
        "stride": pair(options.get("stride") or kernel),
        "padding": (padding[0], padding[0], padding[1], padding[1]),
        "ceil_mode": bool(options.get("ceil_mode", False)),
    }
    if not maximum:
        attributes["count_include_pad"] = bool(options.get("count_include_pad", True))
    return attributes


def permutation(node: fx.Node) -> tuple[int, ...]:
    """Returns the order of dimensions, batch left out, of a transposition.

    Raises:
        GraphError: the batch dimension moves.
    """
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
        raise unsupported(node, "moving the batch dimension is not supported")
    return tuple(d - 1 for d in dims[1:])


def only_user(node: fx.Node) -> fx.Node | None:
    """Returns the only node that uses a node's result."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def bind(node: fx.Node, names: tuple[str, ...], defaults: tuple[Any, ...]) -> list[Any]:
    """Returns a call's arguments by name, positional or not; ``axis`` is another name of ``dim``."""
    values = dict(zip(names, defaults, strict=True))
    values.update(zip(names, node.args, strict=False))
    values.update({("dim" if k == "axis" else k): v for k, v in node.kwargs.items()})
    return [values[name] for name in names]


def pair(value: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """Returns (vertical, horizontal)."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def conv_padding(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Returns (top, bottom, left, right)."""
    if conv.padding == "valid":
        return 0, 0, 0, 0
    if conv.padding == "same":
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        (top, left) = (total // 2 for total in totals)
        return top, totals[0] - top, left, totals[1] - left
    vertical, horizontal = pair(conv.padding)  # type: ignore[arg-type]
    return vertical, vertical, horizontal, horizontal


def image_dim(dim: int, shape: tuple[int, ...]) -> int:
    """Returns a dimension of ``shape`` counted without the batch.

    Raises:
        GraphError: it is the batch.
    """
    positive = dim % len(shape)
    if positive == 0:
        raise GraphError("an operation along the batch dimension is not supported")
    return positive - 1


def _target_name(target: str | Callable[..., Any]) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))
