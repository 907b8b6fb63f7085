"""One phase: the same tensors whether it was interrupted or not; a diverging loss keeps the last good epoch."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddq_search.compute import Compute
from ddq_search.errors import RunError
from ddq_search.loss_scale import LossScale
from ddq_search.quantizers.dq import DqWeights
from ddq_search.record import RunDirectory
from ddq_search.training import SCHEDULES, Phase, Silent, constant, cosine, moving_average, run_phase, step
from tests.toys import ToySource

EPOCHS = 3


class Stop(BaseException):
    pass


class Counter(Silent):
    def __init__(self):
        self.begun, self.steps, self.facts = [], 0, []

    def begin(self, phase, total, done):
        self.begun.append((phase, total, done))

    def step(self, facts):
        self.steps += 1
        self.facts.append(dict(facts))


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)
    )


def phase_of(net, *, stop_at=None, nan_at=None, poison_at=None):
    multiplier = torch.zeros(2, dtype=torch.float64)
    weights = torch.optim.SGD(
        [{"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 1e-3},
         {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0}],
        lr=0.1, momentum=0.9, nesterov=True,
    )  # fmt: skip
    slow = torch.optim.Adam([net[4].bias])

    def loss(x, y, number):
        if number == stop_at:
            raise Stop
        value = F.cross_entropy(net(x), y) * (1 + multiplier[0].float())
        if number == nan_at:
            value = value * float("nan")
        if number == poison_at:
            value = value + (net[0].weight * 0).sum().sqrt()  # finite, but its gradient is not
        return value, {"loss": f"{float(value.detach()):.3f}"}

    def after():
        multiplier[0] += 0.01

    return Phase(
        "float", "float", net, [(weights, 0.05), (slow, 0.01)], loss, EPOCHS, cosine,
        after_step=after, after_epoch=lambda epoch: {"extra": epoch}, extra={"multiplier": multiplier},
    )  # fmt: skip


def run(phase, path, progress=None, layout="channels_last"):
    if layout == "channels_last":
        phase.module.to(memory_format=torch.channels_last)
    path.mkdir(exist_ok=True)
    run_phase(
        phase,
        ToySource(),
        RunDirectory(path, "f"),
        seed=3,
        batch_size=8,
        compute=Compute(layout=layout),
        progress=progress or Silent(),
    )


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("stop_at", [1, 3, 5, 8])
def test_resumed_equals_uninterrupted(tmp_path, layout, stop_at):
    straight, broken, resumed = (phase_of(network()), phase_of(network(), stop_at=stop_at), phase_of(network()))
    run(straight, tmp_path / "a", layout=layout)
    with pytest.raises(Stop):
        run(broken, tmp_path / "b", layout=layout)
    progress = Counter()
    run(resumed, tmp_path / "b", progress, layout=layout)
    done = stop_at // 3
    assert progress.begun == [("float", 9, 3 * done)]
    assert progress.steps == 9 - 3 * done
    for (key, ours), theirs in zip(
        resumed.module.state_dict().items(), straight.module.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), key
    assert torch.equal(resumed.extra["multiplier"], straight.extra["multiplier"])
    for name in ("a", "b"):
        rows = RunDirectory(tmp_path / name).history()
        assert [row["epoch"] for row in rows] == [0, 1, 2]
        assert [row["extra"] for row in rows] == [0, 1, 2]
    losses = [[row["train_loss"] for row in RunDirectory(tmp_path / name).history()] for name in ("a", "b")]
    assert losses[0] == losses[1]


def test_rows_written_before_their_checkpoint_are_dropped(tmp_path):
    """Killed between the history row and the checkpoint of epoch 1."""
    record = RunDirectory(tmp_path, "f")
    with pytest.raises(Stop):
        run(phase_of(network(), stop_at=4), tmp_path)
    record.append_history({"phase": "float", "point": None, "epoch": 1, "train_loss": 99.0})
    run(phase_of(network()), tmp_path)
    rows = record.history()
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[1]["train_loss"] < 99


def test_a_finished_phase_is_not_repeated(tmp_path):
    first = phase_of(network())
    run(first, tmp_path)
    again, progress = phase_of(network(), stop_at=0), Counter()
    run(again, tmp_path, progress)
    assert progress.steps == 0
    assert all(torch.equal(a, b) for a, b in zip(first.module.parameters(), again.module.parameters(), strict=True))


@pytest.mark.parametrize("trouble", ["nan_at", "poison_at"])
def test_divergence_keeps_the_last_good_epoch(tmp_path, trouble):
    """At the very end of an epoch, the moment before its checkpoint."""
    good = phase_of(network(), stop_at=6)
    with pytest.raises(Stop):
        run(good, tmp_path / "good")
    with pytest.raises(RunError, match=r"diverged in phase 'float': .*not finite .*epoch 3.*training\.float_rate"):
        run(phase_of(network(), **{trouble: 8}), tmp_path / "bad")
    stored = [RunDirectory(tmp_path / name, "f").load_checkpoint("float") for name in ("good", "bad")]
    assert stored[1][1]["epoch"] == 2
    assert all(torch.equal(stored[0][0][key], value) for key, value in stored[1][0].items())


def test_checkpoint_of_another_run_is_refused(tmp_path):
    run(phase_of(network()), tmp_path)
    with pytest.raises(RunError, match="another configuration"):
        run_phase(
            phase_of(network()), ToySource(), RunDirectory(tmp_path, "g"), seed=3, batch_size=8, compute=Compute(),
            progress=Silent(),
        )  # fmt: skip


def test_progress_sees_every_step(tmp_path):
    progress = Counter()
    run(phase_of(network()), tmp_path, progress)
    assert progress.begun == [("float", 9, 0)]
    assert [facts["epoch"] for facts in progress.facts] == ["1/3"] * 3 + ["2/3"] * 3 + ["3/3"] * 3


@pytest.mark.parametrize("scale", [None, LossScale(2.0**10)])
def test_quantizers_limit_whole_gradients_once_per_step(tmp_path, scale):
    """Two batches a step, ∂L/∂q_max of ± 1 each, limited to ± 0.25: their means are 0, 0.05 and 1."""
    quantizer = DqWeights((2, 4, 8), 1)
    quantizer.range.set_start(torch.tensor(0.25), torch.tensor(1.75))
    quantizer.inferring = True
    moved = []

    def loss(x, y, number):
        moved.append(quantizer.range.log_largest.item() - math.log(1.75))
        value = quantizer.fake_quantize(torch.tensor([[50.0]])).sum()  # ∂q/∂q_max is 1
        return value * (1.0, -1.0, 1.0, -0.9, 1.0, 1.0)[number], {}

    phase = Phase(
        "float", "float", quantizer, [(torch.optim.SGD(quantizer.parameters()), 0.1)], loss, 1, lambda f: 1.0,
        accumulate=2, loss_scale=scale,
    )  # fmt: skip
    run_phase(
        phase, ToySource(batches=6), RunDirectory(tmp_path, "f"), seed=3, batch_size=8, compute=Compute(),
        progress=Silent(),
    )  # fmt: skip
    moved.append(quantizer.range.log_largest.item() - math.log(1.75))
    steps = torch.tensor(moved[::2]).diff()
    assert steps.tolist() == pytest.approx([0, -0.1 * 0.05 / 1.75, -0.1 * 0.25 / 1.75], rel=5e-3, abs=1e-6)


def test_only_the_first_optimizers_gradients_are_clipped(tmp_path):
    net = network()
    phase = phase_of(net)
    phase.gradient_clip, phase.epochs = 1e-9, 1
    before = copy.deepcopy(net.state_dict())
    run(phase, tmp_path)
    assert (net[4].bias - before["4.bias"]).abs().max() > 1e-5  # Adam moved it: its step does not depend on scale
    assert (net[1].weight - before["1.weight"]).abs().max() < 1e-6


def test_cosine_warms_up_and_ends_at_zero():
    values = [cosine(i / 1000) for i in range(1001)]
    assert values[0] == pytest.approx(0.1, abs=0.01)
    assert max(values) > 0.99
    assert values.index(max(values)) < 60
    assert values[-1] == pytest.approx(0, abs=1e-9)


def test_schedules_by_hand():
    assert step(0.3) == constant(0.3) == constant(0.99) == 1.0
    assert (step(0.5), step(0.74), step(0.75)) == (0.1, 0.1, 0.01)
    assert constant(0.0) == pytest.approx(0.1)
    assert set(SCHEDULES) == {"cosine", "step", "constant"}


class Divided(ToySource):
    """24 samples an epoch, in batches of the wanted size."""

    def train(self, *, seed, epoch, batch_size):
        x, y = self._batch(seed * 7919 + epoch, 24)
        yield from zip(x.split(batch_size), y.split(batch_size), strict=True)

    def train_batches(self, batch_size):
        return 24 // batch_size


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    """Two batches of 12 in one step are the step of their 24 samples: no batch norm, plain SGD."""
    nets = []
    for accumulate in (1, 2):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Flatten(), nn.Linear(108, 2))
        phase = Phase(
            "float", "float", net, [(torch.optim.SGD(net.parameters()), 0.05)],
            lambda x, y, number, net=net: (F.cross_entropy(net(x), y), {}), 2, lambda f: 1.0, accumulate=accumulate,
        )  # fmt: skip
        size = 24 // accumulate
        (tmp_path / str(accumulate)).mkdir()
        run_phase(
            phase, Divided(), RunDirectory(tmp_path / str(accumulate), "f"), seed=3, batch_size=size,
            compute=Compute(), progress=Silent(),
        )  # fmt: skip
        nets.append(net)
    assert torch.allclose(nets[0][1].weight, nets[1][1].weight, atol=1e-7)


def test_a_moving_average_is_what_the_phase_leaves_and_survives_a_resume(tmp_path):
    def averaged(**options):
        phase = phase_of(network(), **options)
        phase.averaged = moving_average(phase.module, 0.5)
        return phase

    straight, broken, resumed, plain = averaged(), averaged(stop_at=4), averaged(), phase_of(network())
    run(straight, tmp_path / "a")
    with pytest.raises(Stop):
        run(broken, tmp_path / "b")
    run(resumed, tmp_path / "b")
    run(plain, tmp_path / "c")
    states = [phase.module.state_dict() for phase in (straight, resumed, plain)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["0.weight"], states[2]["0.weight"])


def test_the_average_by_hand(tmp_path):
    """Halving towards the weights after each of three steps, starting from the first."""
    seen = []
    phase = phase_of(network())
    phase.epochs, phase.averaged = 1, moving_average(phase.module, 0.5)
    phase.after_step = lambda: seen.append(phase.module[4].weight.detach().clone())
    run(phase, tmp_path, layout="contiguous")
    expected = seen[0] / 4 + seen[1] / 4 + seen[2] / 2
    assert torch.allclose(phase.module[4].weight, expected, atol=1e-7)
