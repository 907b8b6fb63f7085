"""The calibrated network without any training: how far a policy moves the output, on a few training batches.

The distance is the task's (`ddq_search.task.Task.distance`; for classification the Kullback-Leibler divergence from the
float model's class probabilities), so no label is read.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ddq_search.problem import Problem, inputs
from ddq_search.supernet import Supernet


class Untrained:
    """Measures policies on the calibrated float weights.

    Args:
        problem: the problem.
        teacher: the trained float model.
        batches: number of calibration batches that it is calibrated and measured on.
    """

    def __init__(self, problem: Problem, teacher: Supernet, batches: int) -> None:
        self._task = problem.task
        place = next(teacher.parameters()).device
        self._inputs = [x.to(place) for x in inputs(problem, batches)]
        self._net = problem.supernet().to(place)
        self._net.model.load_state_dict(teacher.model.state_dict())
        self._net.calibrate(self._inputs)
        self._net.eval()
        teacher.eval()
        with torch.no_grad():
            self._outputs = [teacher(x) for x in self._inputs]
        self._known: dict[tuple[tuple[str, int], ...], float] = {}

    @torch.no_grad()
    def distance(self, policy: Mapping[str, int]) -> float:
        """Returns the mean distance of a policy's output to the float model's; measured once per policy."""
        key = tuple(sorted(policy.items()))
        if key not in self._known:
            self._net.set_policy(policy)
            pairs = zip(self._inputs, self._outputs, strict=True)
            found = [self._task.distance(self._net(x), output) for x, output in pairs]
            self._known[key] = float(torch.stack(found).mean())
        return self._known[key]
