"""Residual networks for small images.

Stages of 16, 32 and 64 channels at full, half and quarter resolution; where the shape changes, the shortcut is a
1x1 convolution with batch norm (integer formats have no zero-padded shortcut). Module names follow torchvision.

Source: He et al. 2016, section 4.2 (6n+2 layers); resnet8 is the image-classification network of MLPerf Tiny with
one block per stage. Legend: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import torch
from torch import nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``[N, C, H, W]`` → ``[N, channels, H / stride, W / stride]``."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.downsample(x))  # type: ignore[no-any-return]


class SmallResNet(nn.Module):
    """A stem, three stages, global average pooling and a classifier: ``[N, C, H, W]`` → ``[N, K]``."""

    def __init__(self, in_channels: int, classes: int, blocks: int, channels: tuple[int, int, int]) -> None:
        super().__init__()
        first, second, third = channels
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        self.layer1 = _stage(first, first, blocks, stride=1)
        self.layer2 = _stage(first, second, blocks, stride=2)
        self.layer3 = _stage(second, third, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = ResidualBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(ResidualBlock(channels, channels, 1) for _ in range(blocks - 1)))


def resnet8(in_channels: int, classes: int) -> nn.Module:
    """Returns the MLPerf Tiny ResNet-8 (about 78 k parameters and 12.5 M MACs at 3x32x32)."""
    return SmallResNet(in_channels, classes, 1, (16, 32, 64))


def resnet20(in_channels: int, classes: int) -> nn.Module:
    """Returns ResNet-20 for CIFAR (about 0.27 M parameters and 41 M MACs at 3x32x32)."""
    return SmallResNet(in_channels, classes, 3, (16, 32, 64))


def resnet32(in_channels: int, classes: int) -> nn.Module:
    """Returns ResNet-32 for CIFAR (about 0.47 M parameters and 69 M MACs at 3x32x32)."""
    return SmallResNet(in_channels, classes, 5, (16, 32, 64))


def resnet56(in_channels: int, classes: int) -> nn.Module:
    """Returns ResNet-56 for CIFAR (about 0.86 M parameters and 126 M MACs at 3x32x32)."""
    return SmallResNet(in_channels, classes, 9, (16, 32, 64))
