"""Networks of depthwise-separable convolutions for small images.

Legend: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import torch
from torch import nn

INVERTED_RESIDUALS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""MobileNetV2's stages as (expansion, channels, blocks, stride); the stem and the second stage keep the resolution."""


class InvertedResidual(nn.Module):
    """Expand, depthwise, project, and a shortcut where the shapes agree."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_convolution(in_channels, hidden, 1))
        layers.append(_convolution(hidden, hidden, 3, stride=stride, groups=hidden))
        layers += [nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        self.conv = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and in_channels == channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the block's output ``[N, channels, H / stride, W / stride]``."""
        y: torch.Tensor = self.conv(x)
        return x + y if self.has_shortcut else y


class Stack(nn.Module):
    """Features, global average pooling and a classifier: ``[N, C, H, W]`` → ``[N, K]``."""

    def __init__(self, features: list[nn.Module], channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits."""
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))  # type: ignore[no-any-return]


def _convolution(
    in_channels: int, channels: int, size: int, stride: int = 1, groups: int = 1, clamp: type[nn.Module] = nn.ReLU6
) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, size, stride=stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), clamp())


def mobilenetv2_cifar(in_channels: int, classes: int) -> nn.Module:
    """Returns MobileNetV2 for small images: three of its five strides are kept (32x32 ends at 4x4).

    Source: Sandler et al. 2018, table 2; the removal of the first two strides is what CIFAR versions commonly do.
    """
    features: list[nn.Module] = [_convolution(in_channels, 32, 3)]
    width = 32
    for expansion, channels, blocks, stride in INVERTED_RESIDUALS:
        for block in range(blocks):
            features.append(InvertedResidual(width, channels, stride if block == 0 else 1, expansion))
            width = channels
    features.append(_convolution(width, 1280, 1))
    return Stack(features, 1280, classes)


def ds_cnn(in_channels: int, classes: int) -> nn.Module:
    """Returns a small depthwise-separable network: a 3x3 stem with stride 2 and four blocks of 64 channels.

    Source: the shape of MLPerf Tiny's keyword-spotting network (Zhang et al. 2017, DS-CNN S) with a square stem.
    """
    features: list[nn.Module] = [_convolution(in_channels, 64, 3, stride=2, clamp=nn.ReLU)]
    for _ in range(4):
        features.append(_convolution(64, 64, 3, groups=64, clamp=nn.ReLU))
        features.append(_convolution(64, 64, 1, clamp=nn.ReLU))
    return Stack(features, 64, classes)
