"""Networks that enlarge images.

Legend: N images, C channels, H height, W width, r factor.

Source: Shi et al. 2016 (arXiv:1609.05158), section 3: convolutions at low resolution, then a pixel shuffle. Du et al.
2021 (arXiv:2105.09750) and its code: the image, repeated r² times per channel, is added before the pixel shuffle, so
that the convolutions compute a residual around 0, which 8 bits hold better than the image. Ours: half the first one's
width, ReLU for tanh, and the start of the weights, which interpolates.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

REACH = 4
"""Low-resolution pixels between a pixel of the result and the farthest that it depends on."""

TRAINING: Mapping[str, float | str] = MappingProxyType(
    {
        "batch_size": 16, "optimizer": "adam", "float_epochs": 100, "float_rate": 3e-4, "joint_rate": 1e-5,
        "finetune_rate": 1e-5, "weight_decay": 0.0,
    }
)  # fmt: skip
"""Training settings where the user gives none.

Weights hardly move once precisions are sampled. A sample of few bits does not see its weights move within a step, so
its gradient pushes them to the edge; a sample of more bits does see it, summed over the brightness of 75 inputs.
"""

RANDOM_GAIN = 1 / 3
"""Size of random filters in He's: the largest responses to photographs are then those of the slopes, about 1/2."""


class Espcn(nn.Module):
    """Convolutions of 5x5, 3x3 and 3x3 added to the repeated image, then a pixel shuffle.

    ``[N, C, H, W]`` → ``[N, C, rH, rW]``. Untrained, every pixel becomes r x r pixels on the plane of its value and its
    slopes, which are half the differences between its neighbours: what finite-volume methods make of cell means. The
    layers that compute it have rows of one magnitude only, so the start is the same at any weight precision.

    Args:
        in_channels: C.
        factor: r.
        widths: channels of the two hidden layers, at least 4 C each.
    """

    def __init__(self, in_channels: int, factor: int, widths: tuple[int, int] = (32, 16)) -> None:
        super().__init__()
        first, second = widths
        self.in_channels, self.factor = in_channels, factor
        self.conv1 = nn.Conv2d(in_channels, first, 5, padding=2)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.conv3 = nn.Conv2d(second, in_channels * factor**2, 3, padding=1)
        self.relu = nn.ReLU()
        self.shuffle = nn.PixelShuffle(factor)
        with torch.no_grad():
            self._start()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the enlarged images; pixels in 0 … 1 give pixels around 0 … 1."""
        chunks = x.chunk(self.in_channels, 1)
        channels = [chunks[channel] for channel in range(self.in_channels)]  # a traced tuple cannot be iterated
        repeated = [channel for channel in channels for _ in range(self.factor**2)]
        residual = self.conv3(self.relu(self.conv2(self.relu(self.conv1(x)))))
        enlarged: Tensor = self.shuffle(torch.cat(repeated, 1) + residual)
        return enlarged

    def _start(self) -> None:
        """Sets the weights: slopes along rows and columns, of either sign, handed on, times the offset of a part.

        The other filters of the first two layers are random (He et al. 2015), those of the first without mean: slopes
        and details are small next to the brightness, which would drown them. The last layer does not use them yet.
        """
        for layer in (self.conv1, self.conv2, self.conv3):
            assert layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            layer.weight *= RANDOM_GAIN
            layer.bias.zero_()
        self.conv1.weight -= self.conv1.weight.mean((2, 3), keepdim=True)
        self.conv3.weight.zero_()
        slopes = itertools.product(range(self.in_channels), ((1, 0), (0, 1)), (0.5, -0.5))
        for row, (channel, (down, right), half) in enumerate(slopes):
            self.conv1.weight[row], self.conv2.weight[row] = 0, 0
            self.conv1.weight[row, channel, 2 + down, 2 + right] = half
            self.conv1.weight[row, channel, 2 - down, 2 - right] = -half
            self.conv2.weight[row, row, 1, 1] = 0.5
            for part in range(self.factor**2):
                place = part // self.factor if down else part % self.factor
                offset = (place + 0.5) / self.factor - 0.5
                self.conv3.weight[channel * self.factor**2 + part, row, 1, 1] = 4 * half * offset


def espcn(in_channels: int, factor: int = 2) -> nn.Module:
    """Returns the network with 32 and 16 channels: 8,736 weights for colour images at factor 2."""
    return Espcn(in_channels, factor, (max(32, 4 * in_channels), max(16, 4 * in_channels)))
