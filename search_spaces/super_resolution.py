"""Networks that enlarge images.

Legend: N images, C channels, H height, W width, r factor.

Source: Shi et al. 2016 (arXiv:1609.05158), section 3: convolutions at low resolution, then a pixel shuffle. Ours are
half as wide, clamp with ReLU, which integer layers do for nothing, where the paper has tanh, and start as bilinear
interpolation.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

REACH = 4
"""Low-resolution pixels between a pixel of the result and the farthest that it depends on."""

TRAINING: Mapping[str, float] = MappingProxyType(
    {"batch_size": 16, "float_rate": 0.003, "joint_rate": 0.0001, "finetune_rate": 0.001, "weight_decay": 0.0}
)
"""Training settings where the user gives none: without normalisation layers rates are a thirtieth of classifiers'.

Weights hardly move while precisions are sampled, since errors of 2-bit samples would undo the interpolation that the
network starts with; the chosen policies then train at the higher rate.
"""


class Espcn(nn.Module):
    """Convolutions of 5x5, 3x3 and 3x3, then a pixel shuffle: ``[N, C, H, W]`` → ``[N, C, rH, rW]``.

    Untrained it interpolates bilinearly images that are nowhere negative: the first C channels of the hidden layers
    hand the image on, the last layer mixes these alone.

    Args:
        in_channels: C.
        factor: r.
        widths: channels of the two hidden layers, at least C each.
    """

    def __init__(self, in_channels: int, factor: int, widths: tuple[int, int] = (32, 16)) -> None:
        super().__init__()
        first, second = widths
        self.conv1 = nn.Conv2d(in_channels, first, 5, padding=2)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.conv3 = nn.Conv2d(second, in_channels * factor**2, 3, padding=1)
        self.relu = nn.ReLU()
        self.shuffle = nn.PixelShuffle(factor)
        with torch.no_grad():
            for layer in (self.conv1, self.conv2):
                _hand_on(layer, in_channels)
            _interpolate(self.conv3, in_channels, factor)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the enlarged images; pixels in 0 … 1 give pixels around 0 … 1."""
        x = self.relu(self.conv1(x))
        x = self.relu(self.conv2(x))
        enlarged: Tensor = self.shuffle(self.conv3(x))
        return enlarged


def espcn(in_channels: int, factor: int = 2) -> nn.Module:
    """Returns the network with 32 and 16 channels: 8,736 weights for colour images at factor 2."""
    return Espcn(in_channels, factor)


def _hand_on(layer: nn.Conv2d, channels: int) -> None:
    """Makes the first channels of the output those of the input."""
    assert layer.bias is not None
    layer.weight[:channels] = 0
    layer.bias[:channels] = 0
    centre = layer.kernel_size[0] // 2
    for channel in range(channels):
        layer.weight[channel, channel, centre, centre] = 1


def _interpolate(layer: nn.Conv2d, channels: int, factor: int) -> None:
    """Makes the r² outputs of every channel the bilinear values at the centres of a pixel's r x r parts."""
    assert layer.bias is not None
    layer.weight.zero_()
    layer.bias.zero_()
    taps = []
    for part in range(factor):
        offset = (part + 0.5) / factor - 0.5
        taps.append(torch.tensor([max(-offset, 0), 1 - abs(offset), max(offset, 0)]))
    for row in range(layer.out_channels):
        channel, part = divmod(row, factor**2)
        layer.weight[row, channel] = torch.outer(taps[part // factor], taps[part % factor])
