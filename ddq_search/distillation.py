"""The loss of a training step, part of it the distance to the float model's output.

Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddq_search import distributed
from ddq_search.compilation import Forward
from ddq_search.compute import widened
from ddq_search.task import Task


class DistilledLoss:
    """Runs a network on a batch and returns its loss.

    Args:
        task: what loss and distance are.
        forward: the network that learns: images to outputs.
        reference: the float model: images to the outputs that are aimed at; None for the task's loss alone.
        weight: of the distance, in [0, 1]; the task's loss has the rest.
        share: of the batch, from its start, on which the distance is estimated, unless it is all there is.
    """

    def __init__(self, task: Task, forward: Forward, reference: Forward | None, weight: float, share: float) -> None:
        self._task, self._forward, self._reference = task, forward, reference
        self._weight, self._share = weight, share if weight < 1 else 1.0

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the loss of inputs ``[N, …]`` and targets, differentiable."""
        output = widened(self._forward(x))
        if self._reference is None:
            return self._task.loss(output, y)
        weight = self._weight
        value = torch.zeros((), device=output.device) if weight == 1 else (1 - weight) * self._task.loss(output, y)
        count, factor = distributed.leading(len(x), self._share)
        if count == 0:
            return value
        with torch.no_grad():
            aim = widened(self._reference(x[:count]))
        own_share = count * factor / len(x)  # 1 in one process
        return value + weight * own_share * self._task.distance(output[:count], aim)
