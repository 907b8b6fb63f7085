"""From an `nn.Module` to the model graph: torch.fx with shape propagation, then fusion (`ddq_search.fusion`).

Nothing in the model needs to be written for us. What fx cannot follow, or an operation that has no meaning in
integers yet, ends in a `GraphError` that names the module, the source line and what to change.
"""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch import fx, nn

from ddq_search.errors import GraphError
from ddq_search.fusion import Fusion
from ddq_search.graph import ModelGraph
from ddq_search.schedule import lowest_peak


def trace(model: nn.Module, example: torch.Tensor) -> ModelGraph:
    """Returns the graph of fused operations that ``model`` executes on ``example``, in the order of the lowest peak.

    Args:
        model: any module that torch.fx can follow; it is not modified.
        example: one input batch ``[N, C, H, W]`` (or ``[N, F]``); only its shape matters.

    Raises:
        GraphError: fx cannot follow the model, the input does not fit, or an operation is not supported.
    """
    return lowest_peak(Fusion(_symbolic(model, example)).graph())


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


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
