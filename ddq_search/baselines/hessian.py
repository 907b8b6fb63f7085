"""Traces of the loss's Hessian, tensor by tensor, by Hutchinson's estimator; and what quantizing moves each tensor by.

For a vector ``v`` of independent signs, ``E[vᵀ H v] = tr H``; ``H v`` is the gradient of ``gᵀ v``. Where ``H`` is
diagonal every single vector gives the trace exactly. Each tensor has vectors of its own, so what couples two tensors
adds no noise to either.

Source: Dong et al., HAWQ-V2: Hessian Aware trace-Weighted Quantization, NeurIPS 2020 (arXiv 1911.03852), for weights
and activations; Hutchinson, Communications in Statistics 19(2), 1990.

Legend: T tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddq_search.graph import WEIGHTED, operations
from ddq_search.quantizers.contract import Quantizer
from ddq_search.supernet import Supernet

SAMPLES = 32
"""Samples of a batch that are used: second derivatives keep every intermediate tensor."""


@dataclass
class Curvature:
    """What is known of one tensor.

    Attributes:
        elements: scalars of the tensor; of an activation, those of the samples it is estimated on.
        estimates: one ``vᵀ H v`` per vector.
    """

    elements: int
    estimates: list[float] = field(default_factory=list)

    @property
    def trace(self) -> float:
        """Mean of the estimates."""
        return sum(self.estimates) / len(self.estimates)

    @property
    def standard_error(self) -> float:
        """Standard error of the mean; infinite for a single estimate."""
        count, mean = len(self.estimates), self.trace
        if count < 2:
            return float("inf")
        return math.sqrt(sum((e - mean) ** 2 for e in self.estimates) / (count - 1) / count)


def hutchinson(loss: Tensor, tensors: Sequence[Tensor], signs: Callable[[Tensor], Tensor]) -> list[float]:
    """Returns ``vᵀ H v`` for every one of T tensors, H being the loss's Hessian with respect to that tensor alone.

    Args:
        loss: a scalar that depends on the tensors.
        tensors: leaves, or intermediate results of the graph of ``loss``.
        signs: called with each tensor, returns its ``v`` of the same shape.
    """
    gradients = torch.autograd.grad(loss, tensors, create_graph=True, materialize_grads=True)
    result = []
    for gradient, tensor in zip(gradients, tensors, strict=True):
        vector = signs(tensor)
        product = (gradient * vector).sum()
        if not product.requires_grad:  # linear in this tensor
            result.append(0.0)
            continue
        (curved,) = torch.autograd.grad(product, [tensor], retain_graph=True, materialize_grads=True)
        result.append(float((curved * vector).sum()))
    return result


def random_signs(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Returns a function that draws independent signs (Rademacher) of a tensor's shape, on its device."""

    def draw(tensor: Tensor) -> Tensor:
        bits = torch.randint(0, 2, tensor.shape, generator=generator)
        return (2 * bits - 1).to(tensor)

    return draw


def traces(
    net: Supernet,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    vectors: int,
    seed: int,
) -> dict[str, Curvature]:
    """Returns the curvature of the loss in every quantized tensor of the float network.

    Keys are ``weights/<layer>`` (the name of the variable) and ``activations/<operation>`` (several may belong to one
    variable). Batch-norm statistics stay fixed.

    Args:
        net: the trained float network.
        batches: (input, target); the first `SAMPLES` samples of each are used.
        loss: called with (output, target); a mean over the samples.
        vectors: sign vectors per batch and tensor.
        seed: the same seed gives the same vectors.
    """
    found: dict[str, Curvature] = {}
    net.set_float()
    net.eval()
    weights = weights_of(net)
    for number, (inputs, targets) in enumerate(batches):
        x, y = inputs[:SAMPLES], targets[:SAMPLES]
        tensors = dict(weights)
        with torch.enable_grad():
            tensors |= _activations(net, x.detach().clone().requires_grad_())
            value = loss(tensors.pop("output"), y)
        for name, tensor in tensors.items():
            found.setdefault(name, Curvature(tensor.numel()))
        for vector in range(vectors):
            generator = torch.Generator().manual_seed((seed * 1_000_003 + number) * 1_000_003 + vector)
            estimates = hutchinson(value, list(tensors.values()), random_signs(generator))
            for name, estimate in zip(tensors, estimates, strict=True):
                found[name].estimates.append(estimate)
    return found


def weights_of(net: Supernet) -> dict[str, Tensor]:
    """Returns the weight tensor of every weight variable, by the variable's name."""
    modules = dict(net.model.named_modules())
    result: dict[str, Tensor] = {}
    for op in operations(net.graph):
        if op.kind in WEIGHTED:
            weight = modules[op.module or ""].weight
            assert isinstance(weight, Tensor)
            result.setdefault(net.space.weights_of[op.name], weight)
    return result


def _activations(net: Supernet, x: Tensor) -> dict[str, Tensor]:
    """Returns the quantized activation tensors of one forward pass as ``activations/<operation>``, and ``output``."""
    found: dict[str, Tensor] = {}

    def watch(name: str, value: Tensor) -> None:
        found[f"activations/{name}"] = value

    net.watch = watch
    try:
        found["output"] = net(x)
    finally:
        net.watch = None
    return found


@torch.no_grad()
def squared_errors(net: Supernet, batches: Iterable[Tensor]) -> dict[str, list[float]]:
    """Returns ``‖x_q − x‖²`` of every quantized tensor at every candidate, with all others in float32.

    Keys are as in `traces`; activations are those of the first `SAMPLES` samples of each batch, the mean over batches.

    Args:
        net: the calibrated network; its quantizers are used, its mode becomes float.
        batches: inputs.
    """
    quantizers = dict(zip((variable.name for variable in net.space.variables), net.quantizers, strict=True))

    def errors(variable: str, value: Tensor) -> list[float]:
        candidates = range(len(net.space[variable].candidates))
        quantizer = quantizers[variable]
        assert isinstance(quantizer, Quantizer)
        moved = (quantizer.fake_quantize(value.clone(), k) - value for k in candidates)  # it may write in place
        return [float(difference.double().square().sum()) for difference in moved]

    net.set_float()
    net.eval()
    found = {name: errors(name, weight) for name, weight in weights_of(net).items()}
    sums: dict[str, list[list[float]]] = {}
    for x in batches:
        activations = _activations(net, x[:SAMPLES])
        activations.pop("output")
        for name, value in activations.items():
            variable = net.space.activations_of[name.partition("/")[2]]
            sums.setdefault(name, []).append(errors(variable, value))
    means = {name: [sum(column) / len(rows) for column in zip(*rows, strict=True)] for name, rows in sums.items()}
    return found | means
