"""Tasks and a user's own loaders."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ddq_search.config import load_config
from ddq_search.errors import ConfigError, RunError
from ddq_search.problem import pose
from ddq_search.record import RunDirectory
from ddq_search.task import Classification, LoaderSource, SuperResolution, identity, measure
from hardware_models.model import cost_model
from tests.networks import Residual
from tests.toys import ToySource


def batches(sizes=(3, 5), shape=(1, 4, 4)):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(n, *shape, generator=generator), torch.arange(n) % 3) for n in sizes]


def test_measure_weights_batches_by_their_size():
    task = Classification()
    pairs = [(torch.randn(n, 3), torch.arange(n) % 3) for n in (3, 5)]
    outputs, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    found = measure(task, pairs)
    assert found.loss == pytest.approx(float(F.cross_entropy(outputs, targets)), rel=1e-5)
    assert found.score == pytest.approx(100 * float((outputs.argmax(-1) == targets).double().mean()))


class Other(Classification):
    """Another loss under the same names."""

    def loss(self, output, target):
        return super().loss(output, target) + 1


class Plain:
    """A task without fields; what it holds is not all plain."""

    metric, direction, unit = "error", "min", "1"

    def __init__(self, scale):
        self.scale, self.weights = scale, torch.zeros(2)


def test_tasks_are_told_apart():
    tasks = [Classification(), Other(), Classification(loss_name="focal"), Plain(1.0), Plain(2.0)]
    tasks += [SuperResolution(border) for border in (0, 4)]
    assert len({identity(task) for task in tasks}) == len(tasks)
    assert identity(Plain(1.0)) == identity(Plain(1.0))
    assert identity(SuperResolution(4)) == identity(SuperResolution(4))


def test_checkpoints_belong_to_a_task(tmp_path):
    config = load_config(None, {"training.float_epochs": 1, "training.calibration_batches": 1})
    device = cost_model("cortex-a53-rpi3-lowbit-neon")
    posed = [pose(Residual(), ToySource(), device, config, task) for task in (None, Classification(), Other())]
    for problem in posed[1:]:
        problem.model.load_state_dict(posed[0].model.state_dict())
    prints = [problem.fingerprint for problem in posed]
    assert prints[0] == prints[1] != prints[2]
    RunDirectory(tmp_path, prints[0]).save_checkpoint("float", {}, {})
    with pytest.raises(RunError, match="belongs to another configuration, model, data or task"):
        RunDirectory(tmp_path, prints[2]).load_checkpoint("float")


def test_an_empty_split_is_an_error():
    with pytest.raises(ConfigError, match="holds no samples"):
        measure(Classification(), [])


def test_distance_is_zero_at_the_reference_and_positive_elsewhere():
    task, x = Classification(), torch.randn(4, 3)
    assert float(task.distance(x, x)) == pytest.approx(0, abs=1e-6)
    assert float(task.distance(x, -x)) > 0


def test_loader_source():
    train, validation = batches(), batches((4,))
    source = LoaderSource(train, validation)
    assert source.input_shape == (1, 4, 4)
    assert source.train_batches(99) == 2
    assert [len(x) for x, _ in source.train(seed=0, epoch=1, batch_size=99)] == [3, 5]
    assert [len(x) for x, _ in source.plain("test", 99)] == [4]
    assert source.fingerprint == LoaderSource(train, validation).fingerprint
    assert source.fingerprint != LoaderSource(train, validation, name="other").fingerprint


@pytest.mark.parametrize("validation", [[], [torch.zeros(2)], [(1, 2)], [(torch.zeros(1),)]])
def test_loaders_that_yield_no_pairs_are_refused(validation):
    with pytest.raises(ConfigError, match="pairs"):
        LoaderSource(batches(), validation)


def test_loaders_that_can_be_read_once_only_are_refused():
    with pytest.raises(ConfigError, match="more than once"):
        LoaderSource(iter(batches()), batches())
