"""Two processes, each on half of every batch, end where one process ends, whatever the way of training."""

from __future__ import annotations

import pytest
import torch

from ddq_search.config import load_config
from ddq_search.problem import pose
from ddq_search.quantizers.registry import families
from ddq_search.record import RunDirectory
from ddq_search.search import search
from hardware_models.model import cost_model
from tests.networks import Residual
from tests.threads import threads
from tests.two_processes import Uneven, assert_same_runs, double, in_two

pytestmark = pytest.mark.timeout(900)
families()  # what their modules compute when they are first imported is float32 everywhere

SETTINGS = {
    "training.float_epochs": 1, "training.joint_epochs": 2, "training.finetune_epochs": 1, "training.norm_batches": 2,
    "training.calibration_batches": 1, "training.batch_size": 10, "training.accumulate": 2, "budgets.flash": "80%",
    "search.points": 1, "search.relaxed_points": 0, "search.extra_points": 0, "search.uniform": [],
    "search.gradient_share": 0.5, "search.solve_steps": 6, "search.hessian_vectors": 1,
}  # fmt: skip
LSQ = {"search.weight_quantizers": ["lsq"], "search.activation_quantizers": ["lsq"]}
WAYS = {
    "edmips": {"search.method": "edmips"},
    "dqss": {"search.method": "dqss", "space.weight_bits": [4, 8], "space.activation_bits": [8]},
    "dq": {"search.method": "dq"},
    "supernet": {"search.mode": "supernet"},
    "lsq-uniform": {"search.method": "lsq-uniform", "space.weight_bits": [4, 8], "space.activation_bits": [8], **LSQ},
}
SLOW_WAYS = {
    "fracbits": {"search.method": "fracbits"},
    "bayesian-bits": {"search.method": "bayesian-bits"},
    "dqss ptq": {"search.method": "dqss", "search.mode": "ptq", "search.ptq_images": 20},
    "ddq ptq": {"search.mode": "ptq", "search.ptq_images": 20},
    "hawq-ilp": {"search.method": "hawq-ilp"},
    "greedy": {"search.method": "greedy"},
    "averaged": {"search.weight_quantizers": ["averaged"]},
    "learned": {"search.weight_quantizers": ["learned"], "space.weight_bits": [2, 4], "quantizers.correction": 0.1},
    "corrected": {"quantizers.correction": 0.1},
    "lsq-plus": {"search.weight_quantizers": ["lsq-plus"], "search.activation_quantizers": ["lsq-plus"]},
    "dq-u1": {"search.method": "dq", "search.weight_quantizers": ["dq-u1"], "search.activation_quantizers": ["dq-u1"]},
    "moving average": {"training.ema_decay": 0.5},
}  # fmt: skip


def searched(path, changes):
    torch.manual_seed(5)
    problem = pose(
        Residual(), Uneven(), cost_model("cortex-a53-rpi3-lowbit-neon"), load_config(None, SETTINGS | changes)
    )
    search(problem, RunDirectory(path))


def _shared(folder, ways):
    """What both processes do; returns the errors."""
    found = {}
    for name, changes in ways.items():
        try:
            with double():
                searched(folder / name, changes)
        except Exception as error:
            found[name] = repr(error)
    return found


def default_ways(folder):
    return _shared(folder, WAYS)


def slow_ways(folder):
    return _shared(folder, SLOW_WAYS)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The folder of the runs of two processes, and what went wrong in each."""
    folder = tmp_path_factory.mktemp("shared")
    return folder, in_two(folder, default_ways)


@pytest.fixture(scope="module")
def slowly_shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slowly")
    return folder, in_two(folder, slow_ways)


def assert_same(shared, alone, name, changes):
    folder, found = shared
    assert [own[0].get(name) for own in found] == [None, None]
    with threads(1), double():
        searched(alone, changes)
    assert_same_runs(folder / name, alone)


@pytest.mark.parametrize("name", WAYS)
def test_two_processes_train_what_one_trains(shared, tmp_path, name):
    assert_same(shared, tmp_path, name, WAYS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_WAYS)
def test_two_processes_train_what_one_trains_in_further_ways(slowly_shared, tmp_path, name):
    assert_same(slowly_shared, tmp_path, name, SLOW_WAYS[name])
