"""Loss scaling: keeps small gradients from vanishing in float16.

The loss is multiplied by a power of two before the backward pass, gradients are divided by it afterwards. Where one of
them is not finite, the step is left out and the scale halved; after 2,000 steps in a row without that, it is doubled.
In float32 such a scale changes no bit of a gradient that is neither subnormal nor infinite.

Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2; the constants are those of
``torch.amp.GradScaler``, which this is not: gates want their gradient after every batch, and a step of several
optimizers is left out as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_START, _LARGEST, _PATIENCE = 2.0**16, 2.0**24, 2000


class LossScale:
    """The scale and its rule.

    Attributes:
        state: ``[2]`` float64: scale, and steps since it changed. Part of a checkpoint.
    """

    def __init__(self, scale: float = _START) -> None:
        self.state = torch.tensor([scale, 0.0], dtype=torch.float64)

    @property
    def scale(self) -> float:
        """The present scale."""
        return self.state[0].item()

    @property
    def exhausted(self) -> bool:
        """Whether gradients overflow even without a scale above 1: the training diverges."""
        return self.scale < 1

    @torch.no_grad()
    def restore(self, gradients: Sequence[Tensor]) -> bool:
        """Divides gradients of scaled losses by the scale, in place; returns whether all of them are finite."""
        for gradient in gradients:
            gradient.mul_(1 / self.scale)
        if not gradients:
            return True
        place = gradients[0].device  # relaxed choices are in main memory, wherever the network is
        return bool(torch.stack([g.isfinite().all().to(place) for g in gradients]).all())

    def update(self, finite: bool) -> None:
        """After every step, taken or left out."""
        scale, steps = self.state.tolist()
        if not finite:
            scale, steps = scale / 2, 0.0
        elif steps + 1 >= _PATIENCE:
            scale, steps = min(2 * scale, _LARGEST), 0.0
        else:
            steps += 1
        self.state.copy_(torch.tensor([scale, steps]))
