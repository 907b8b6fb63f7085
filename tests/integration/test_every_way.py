"""What holds in every way of training: loss scales change nothing, networks do not pile up, notes are told once."""

from __future__ import annotations

import weakref

import pytest
import torch

from ddq_search import stages as stages_module
from ddq_search.compute import Compute
from ddq_search.config import load_config
from ddq_search.cost import CostTables
from ddq_search.lagrangian import AugmentedLagrangian
from ddq_search.loss_scale import LossScale
from ddq_search.mixture_training import MixtureTraining
from ddq_search.problem import pose
from ddq_search.quantizers.relaxations import Softmax
from ddq_search.record import RunDirectory
from ddq_search.search import search
from ddq_search.supernet import Supernet
from ddq_search.task import Classification
from ddq_search.training import Phase, Silent, run_phase
from hardware_models.model import cost_model
from tests.networks import Residual
from tests.test_supernet import supernet_of
from tests.toys import ToySource
from tests.two_processes import checkpoints

SETTINGS = {
    "training.float_epochs": 1, "training.joint_epochs": 1, "training.finetune_epochs": 1, "training.norm_batches": 2,
    "training.calibration_batches": 1, "training.batch_size": 8, "training.accumulate": 2, "budgets.flash": "80%",
    "search.points": 2, "search.relaxed_points": 0, "search.extra_points": 0, "search.uniform": [],
    "search.solve_steps": 4,
}  # fmt: skip
WAYS = {
    "ddq": {},
    "supernet": {"search.mode": "supernet"},
    "edmips": {"search.method": "edmips"},
    "bayesian-bits": {"search.method": "bayesian-bits"},
    "dqss": {"search.method": "dqss", "space.weight_bits": [4, 8], "space.activation_bits": [8]},
    "dq": {"search.method": "dq"},
    "hawq-ilp": {"search.method": "hawq-ilp", "search.hessian_vectors": 1},
}
QUICK = ("ddq", "edmips", "dq")
ALL = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in WAYS]


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def searched(path, changes, progress=None, task=None):
    torch.manual_seed(5)
    device = cost_model("cortex-a53-rpi3-lowbit-neon")
    problem = pose(Residual(), ToySource(), device, load_config(None, SETTINGS | changes), task)
    return search(problem, RunDirectory(path), progress)


# -- number formats -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_loss_scale_of_a_power_of_two_changes_no_bit(monkeypatch, tmp_path, name):
    """In float32, where nothing overflows: every gradient is used at its own size, whoever uses it."""
    searched(tmp_path / "plain", WAYS[name])
    scales = []

    def scaled(compute):
        scales.append(LossScale(2.0**20))
        return scales[-1]

    monkeypatch.setattr(Compute, "loss_scale", scaled)
    searched(tmp_path / "scaled", WAYS[name])
    assert scales
    assert all(scale.scale == 2.0**20 for scale in scales)
    wanted, found = checkpoints(tmp_path / "plain"), checkpoints(tmp_path / "scaled")
    assert {key for key in found if not key.endswith("extra.loss_scale")} == set(wanted)
    assert [key for key, value in wanted.items() if not torch.equal(found[key], value)] == []


def test_losses_are_float32_where_the_network_is_not(tmp_path):
    seen = []

    class Watched(Classification):
        def loss(self, output, target):
            seen.append(output.dtype)
            return super().loss(output, target)

        def distance(self, output, reference):
            seen.extend((output.dtype, reference.dtype))
            return super().distance(output, reference)

    searched(tmp_path / "bf16", {"training.precision": "bf16"}, task=Watched())
    assert set(seen) == {torch.float32}
    searched(tmp_path / "float32", {})
    half, full = (RunDirectory(tmp_path / name).history()[0]["train_loss"] for name in ("bf16", "float32"))
    assert half == pytest.approx(full, rel=0.05)
    assert half != full


def test_a_step_that_overflows_leaves_no_pull_behind(tmp_path):
    """Batches 0 and 1 are a step that overflows, 2 and 3 one that does not: the same as if only the latter came."""
    found = [_pulled(tmp_path / "a", overflow=True, skip=0), _pulled(tmp_path / "b", overflow=False, skip=2)]
    assert torch.equal(*found)
    assert bool((found[0] != 0).any())


def _pulled(path, *, overflow, skip):
    torch.manual_seed(0)
    net = supernet_of(Residual())
    net.calibrate([torch.randn(4, 3, 9, 9)])
    relaxation = Softmax([quantizer.columns for quantizer in net.tensor_quantizers()])
    device = cost_model("cortex-a53-rpi3-lowbit-neon")
    choices = MixtureTraining(
        net, relaxation, CostTables(net.space, device.factors(net.graph, net.space)), AugmentedLagrangian([{}])
    )

    def loss(x, y, number):
        choices.sample(torch.full(relaxation.exists.shape, 0.5))
        value = net(x).square().mean()
        if overflow and number == 1:
            value = value + (choices.leaves()[0] * 0).sum().sqrt()  # finite, but its gradient is not
        return value, {}

    class Batches(ToySource):
        def train(self, *, seed, epoch, batch_size):
            yield from list(super().train(seed=seed, epoch=epoch, batch_size=batch_size))[skip:]

        def train_batches(self, batch_size):
            return 4 - skip

    phase = Phase(
        "joint", "joint", net, [(torch.optim.SGD(relaxation.parameters()), 1.0)], loss, 1, lambda f: 1.0,
        after_backward=choices.collect, batch_leaves=choices.leaves, before_step=choices.backward,
        after_overflow=choices.forget, loss_scale=LossScale(1.0 if skip else 2.0), accumulate=2,
    )  # fmt: skip
    path.mkdir()
    run_phase(
        phase, Batches((3, 9, 9), 4), RunDirectory(path, "f"), seed=3, batch_size=4, compute=Compute(),
        progress=Silent(),
    )  # fmt: skip
    return relaxation.logits.detach()


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_networks_do_not_pile_up(monkeypatch, tmp_path, name):
    """However many policies there are, a few networks are in memory: float, searched, baseline, the one at work."""
    living, seen = weakref.WeakSet(), []
    made = Supernet.__init__
    monkeypatch.setattr(Supernet, "__init__", lambda net, *a, **k: (living.add(net), made(net, *a, **k))[1])
    evaluated = stages_module.evaluate_policy

    def counting(*arguments):
        seen.append(len(living))
        return evaluated(*arguments)

    monkeypatch.setattr(stages_module, "evaluate_policy", counting)
    changes = {**WAYS[name], "search.points": 4, "search.uniform": [[8, 8], [2, 2]]}
    front = searched(tmp_path, changes)
    assert len(front.points) >= 5
    assert len(seen) == 2 * len(front.points)
    assert max(seen) <= 4
    first, again = front.points[0].net, front.points[0].net
    assert first is not again
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in first.state_dict().items())


# -- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("ddq", []),
        ("edmips", ["where networks mix their candidates"]),
        ("dqss", ["where networks mix their candidates", "quantizers of these families"]),
    ],
)
def test_what_is_not_compiled_is_said_once(monkeypatch, tmp_path, name, wanted):
    monkeypatch.setattr(stages_module, "CompiledForward", lambda net, tell: net)
    progress = Notes()
    searched(tmp_path, {**WAYS[name], "training.compile": True}, progress)
    told = [note for note in progress.notes if "training.compile" in note]
    assert len(told) == len(wanted)
    assert all(any(text in note for note in told) for text in wanted)
