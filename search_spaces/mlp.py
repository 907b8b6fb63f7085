"""Fully connected networks.

Legend: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from torch import nn


def mlp(in_channels: int, classes: int, image_size: tuple[int, int] = (8, 8)) -> nn.Module:
    """Returns a network of two hidden layers of 64 units: ``[N, C, H, W]`` → ``[N, K]``.

    Unlike the convolutional families it fits one image size only.
    """
    height, width = image_size
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * height * width, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )
