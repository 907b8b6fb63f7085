"""The loss of a training step: the task's, and the distance to the teacher on a leading share of the batch."""

from __future__ import annotations

import pytest
import torch

from ddq_search.cli.assembly import assemble
from ddq_search.config import load_config
from ddq_search.distributed import Part, dividing
from ddq_search.record import RunDirectory
from ddq_search.stages import Stages
from ddq_search.training import Silent


def _distilling(tmp_path, weight, share):
    """Stages of a toy problem, what a network gives for ten samples, their classes, and the teacher's output."""
    settings = {"model.name": "mlp", "training.distillation": weight, "training.distilled_share": share}
    problem = assemble(load_config(None, settings))
    stages = Stages(problem, RunDirectory(tmp_path), Silent())
    torch.manual_seed(0)
    x, y = torch.rand(10, 1, 8, 8), torch.arange(10)
    teacher = problem.supernet()
    teacher.set_float()
    with torch.no_grad():
        reference = teacher.eval()(x)
    return stages, torch.randn(10, 10), x, y, teacher, reference


@pytest.mark.parametrize(
    ("weight", "share", "leading"), [(0.5, 1.0, 10), (0.5, 0.25, 2), (0.9, 0.31, 3), (1.0, 0.25, 10)]
)
def test_distillation_is_estimated_on_a_leading_share(tmp_path, weight, share, leading):
    stages, output, x, y, teacher, reference = _distilling(tmp_path, weight, share)
    distance = stages.task.distance(output[:leading], reference[:leading])
    expected = (1 - weight) * stages.task.loss(output, y) + weight * distance
    assert float(stages.loss_of(lambda _: output, teacher)(x, y)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_parts_of_a_batch_distil_what_the_whole_does(tmp_path, share):
    """One of two parts holds none of the leading samples where there is only one."""
    stages, output, x, y, teacher, _ = _distilling(tmp_path, 0.7, share)
    whole, summed = stages.loss_of(lambda _: output, teacher)(x, y), 0.0
    for rank in range(3):
        part = Part(10, rank, 3, len(range(rank, 10, 3)) / 10)
        with dividing(part):
            loss = stages.loss_of(lambda _, part=part: part.of(output), teacher)
            summed += part.weight * float(loss(part.of(x), part.of(y)))
    assert summed == pytest.approx(float(whole), rel=1e-6)
