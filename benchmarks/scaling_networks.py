"""What `benchmarks/scaling.py` measures on: networks of any depth, a device of any bitwidth, and one training step.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ddq_search.cost import FLASH, LATENCY, PEAK_RAM, CostModel, CostTables
from ddq_search.feasibility import Pricing
from ddq_search.gate_training import GateTraining
from ddq_search.graph import ModelGraph, Operation
from ddq_search.lagrangian import AugmentedLagrangian
from ddq_search.policy import uniform
from ddq_search.space import SearchSpace, build_space
from ddq_search.supernet import Supernet
from ddq_search.trace import trace
from hardware_models.plugin import OperationCostModel

CHANNELS, SIZE, CLASSES = 16, 16, 10
"""Of every layer; height and width of images; classes."""


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = _convolution(CHANNELS), _convolution(CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + x)


class Deep(nn.Module):
    """``layers`` weighted layers, one after the other or in residual blocks: ``[N, 3, H, W]`` → ``[N, 10]``."""

    def __init__(self, kind: str, layers: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3), nn.ReLU())
        if kind == "residual":
            body = [Block() for _ in range((layers - 2) // 2)]
        else:
            body = [part for _ in range(layers - 2) for part in (_convolution(CHANNELS), nn.ReLU())]
        self.body = nn.Sequential(*body)
        self.fc = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


def _convolution(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS))


class AnyBits(OperationCostModel):
    """An imagined device that executes every bitwidth: a product takes weight bits times input bits."""

    name = "any-bits"
    calibration = "uncalibrated: an imagined device"
    weight_bits = activation_bits = (2, 3, 4, 5, 6, 7, 8, 32)

    def latency_s(self, op: Operation, weight_bits: int | None, input_bits: tuple[int, ...], output_bits: int) -> float:
        work = op.macs * (weight_bits or 0) * input_bits[0] + op.output_elements * (sum(input_bits) + output_bits)
        return 1e-11 * work


def image_batch(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, 3, SIZE, SIZE, generator=generator)
    return x, torch.randint(0, CLASSES, (images,), generator=generator)


def traced(model: nn.Module) -> ModelGraph:
    return trace(model, torch.zeros(2, 3, SIZE, SIZE))


def priced(graph: ModelGraph, device: CostModel, bits: Sequence[int] = (2, 4, 8)) -> Pricing:
    space = build_space(graph, device, weight_bits=bits, activation_bits=bits)
    return Pricing.build(graph, device, CostTables(space, device.factors(graph, space)))


def budgets(pricing: Pricing, costs: Sequence[str] = (LATENCY, FLASH, PEAK_RAM)) -> dict[str, float]:
    """Halfway between the least and uniform 8 bit, loosened together where they cannot be kept together."""
    least = {cost: pricing.price(_found(pricing.cheapest(cost, {})))[cost] for cost in costs}
    share = 0.5
    while True:
        limits = {cost: least[cost] + share * (pricing.reference[cost] - least[cost]) for cost in costs}
        if pricing.cheapest(costs[0], limits) is not None:
            return limits
        share = (share + 1) / 2


def _found(policy: dict[str, int] | None) -> dict[str, int]:
    assert policy is not None, "without limits there is always a policy"
    return policy


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    """Processor seconds of each call, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return times


def alternating(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Processor seconds of each call of several works that take turns, two rounds before left out."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 2):
        for name, work in works.items():
            began = time.process_time()
            work()
            times[name].append(time.process_time() - began)
    return {name: values[2:] for name, values in times.items()}


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    """Median over rounds of one work's time over another's."""
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def plain_step(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> Callable[[], None]:
    """A step of float training."""
    net, (x, y) = copy.deepcopy(model).train(), batch
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def search_step(
    model: nn.Module, pricing: Pricing, batch: tuple[torch.Tensor, torch.Tensor], sets: int = 20
) -> Callable[[], None]:
    """A step of the joint search, as `ddq_search.stages` makes it: weights, quantizers and the gates of all sets."""
    graph: ModelGraph = pricing.graph
    space: SearchSpace = pricing.tables.space
    x, y = batch
    net = Supernet(model, graph, space, sets=sets)
    net.calibrate([x])
    net.train()
    limits = {cost: 0.8 * pricing.price(uniform(space, 8, 8))[cost] for cost in (LATENCY, FLASH)}
    gates = GateTraining(net, pricing.tables, AugmentedLagrangian([limits] * sets))
    optimizers = [
        torch.optim.SGD(net.model.parameters(), lr=1e-3, momentum=0.9),
        torch.optim.Adam(net.quantizers.parameters(), lr=1e-3),
        torch.optim.Adam(net.gates.parameters(), lr=1e-3),
    ]
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        gates.sample(1, torch.rand(len(space.variables), generator=generator))
        F.cross_entropy(net(x), y).backward()
        gates.collect()
        gates.backward()
        for optimizer in optimizers:
            optimizer.step()
        gates.update()

    return step


def random_choices(space: SearchSpace, policies: int) -> np.ndarray:
    sizes = [len(variable.candidates) for variable in space.variables]
    return np.random.default_rng(0).integers(0, sizes, (policies, len(sizes)))


def random_scores(space: SearchSpace) -> np.ndarray:
    """Log-probabilities ``[V, C]`` as undecided gates have them."""
    width = max(len(variable.candidates) for variable in space.variables)
    return np.log(np.random.default_rng(0).dirichlet(np.ones(width), len(space.variables)))
