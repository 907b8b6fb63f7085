"""Flash of whole networks against the figures that ST publishes for its runtime (measurements/memory.csv).

Published is what the runtime stores: int8 weights and int32 biases. Ours adds a multiplier and a shift per channel,
which that runtime derives when it starts. Its RAM rules are not published (in-place depthwise layers, input and output
inside the arena or not), so RAM is not compared here; docs/hardware-models.md shows what the planner gives.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import hardware_models
from ddq_search.cost import FLASH, CostTables
from ddq_search.graph import WEIGHTED, operations
from ddq_search.packing import BIAS_BYTES
from ddq_search.policy import uniform
from ddq_search.space import build_space
from ddq_search.trace import trace
from hardware_models import cost_model
from search_spaces.models import build_model


def unit(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> nn.Module:
    """Convolution, batch norm, ReLU6."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class MobileNetV1(nn.Module):
    """Source: Howard et al., "MobileNets", 2017, table 1; `fast`: Qin et al., "FD-MobileNet", 2018, table 1."""

    def __init__(self, width: float, classes: int, *, fast: bool = False) -> None:
        super().__init__()
        plain = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
        early = [(64, 2), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 4, (1024, 1)]
        channels = int(32 * width)
        layers = [unit(3, channels, 3, 2)]
        for outputs, stride in early if fast else plain:
            layers += [unit(channels, channels, 3, stride, channels), unit(channels, int(outputs * width), 1, 1)]
            channels = int(outputs * width)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def v2(width: float, classes: int) -> nn.Module:
    """torchvision's MobileNetV2."""
    return torchvision.models.mobilenet_v2(width_mult=width, num_classes=classes)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "MobileNetV1-0.25 (5 cls) 224x224x3": (lambda: MobileNetV1(0.25, 5), 224),
    "MobileNetV1-0.5 (5 cls) 224x224x3": (lambda: MobileNetV1(0.5, 5), 224),
    "MobileNetV1-0.25 (5 cls) 96x96x3": (lambda: MobileNetV1(0.25, 5), 96),
    "MobileNetV1-0.25 224x224x3": (lambda: MobileNetV1(0.25, 1000), 224),
    "MobileNetV1-0.5 224x224x3": (lambda: MobileNetV1(0.5, 1000), 224),
    "MobileNetV1-1.0 224x224x3": (lambda: MobileNetV1(1.0, 1000), 224),
    "MobileNetV2-0.35 (5 cls) 128x128x3": (lambda: v2(0.35, 5), 128),
    "MobileNetV2-0.35 128x128x3": (lambda: v2(0.35, 1000), 128),
    "MobileNetV2-1.0 224x224x3": (lambda: v2(1.0, 1000), 224),
    "MobileNetV2-1.4 224x224x3": (lambda: v2(1.4, 1000), 224),
    "FdMobileNet-0.25 224x224x3": (lambda: MobileNetV1(0.25, 5, fast=True), 224),
    "ResNetV1-8 32x32x3": (lambda: build_model("resnet8", 3, 10, 32), 32),
}


def published() -> dict[str, float]:
    """Network → flash in KiB."""
    path = Path(hardware_models.__file__).parent / "measurements" / "memory.csv"
    with path.open(newline="") as file:
        return {row["model"]: float(row["flash"]) for row in csv.DictReader(file)}


@pytest.mark.parametrize("name", NETWORKS)
def test_flash_of_published_networks(name: str) -> None:
    build, size = NETWORKS[name]
    with torch.device("meta"):
        graph = trace(build(), torch.zeros(1, 3, size, size))
    cost = cost_model("cortex-m7-stm32h743-cmsis-nn")
    space = build_space(graph, cost)
    ours = CostTables(space, cost.factors(graph, space)).price(uniform(space, 8, 8))[FLASH] / 1024
    stored = sum(op.weights + BIAS_BYTES * op.rows for op in operations(graph) if op.kind in WEIGHTED) / 1024
    assert stored == pytest.approx(published()[name], rel=0.01)
    assert ours == pytest.approx(published()[name], rel=0.1)
