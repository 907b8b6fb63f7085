"""Two processes, each on half of every batch, train what one process trains on whole batches."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ddq_search import distributed
from ddq_search.batch_statistics import normalize
from ddq_search.config import load_config
from ddq_search.distributed import Part, dividing, first_ahead, from_first, leading, part_of, processes, require_same
from ddq_search.errors import ConfigError, RunError
from ddq_search.joint import conclude, train_jointly
from ddq_search.problem import pose
from ddq_search.record import RunDirectory
from ddq_search.stages import Stages, begin
from ddq_search.training import Silent
from hardware_models.model import cost_model
from tests.networks import Residual
from tests.threads import threads
from tests.two_processes import WORLD, Uneven, assert_same_tensors, double, environment, in_two

SETTINGS = {
    "training.float_epochs": 2, "training.joint_epochs": 3, "training.finetune_epochs": 1, "training.norm_batches": 2,
    "training.calibration_batches": 1, "training.batch_size": 10, "training.accumulate": 2, "training.ema_decay": 0.5,
    "budgets.latency": "96%", "search.points": 2, "search.relaxed_points": 0, "search.front_points": 1,
    "search.uniform": [[4, 4]], "search.gradient_share": 0.5,
}  # fmt: skip


class Stop(BaseException):
    pass


class Stopper(Silent):
    def __init__(self, at):
        self.left = at

    def step(self, facts):
        self.left -= 1
        if self.left == 0:
            raise Stop


# -- without other processes ------------------------------------------------------------------------------------------


@given(batch=st.integers(2, 300), parts=st.integers(2, 9), share=st.floats(0.01, 1))
def test_parts_hold_the_samples_that_one_process_would_lead_with(batch, parts, share):
    samples, count = torch.arange(batch), min(parts, batch)
    wanted, factor = leading(batch, share)
    found = []
    for rank in range(count):
        part = Part(batch, rank, count, 0.0)
        mine = part.of(samples)
        assert len(mine) == part.sizes()[rank]
        with dividing(part):
            size, same = leading(len(mine), share)
        assert same == factor
        found += mine[:size].tolist()
    assert sorted(found) == list(range(wanted))
    assert distributed.current() is None


def test_one_process_divides_nothing():
    assert part_of(8) is None
    assert distributed.world_size() == 1
    with processes(), first_ahead():
        assert from_first(lambda: 3) == 3
    assert not torch.distributed.is_initialized()


def test_a_wrong_time_limit_is_said(monkeypatch):
    for name, value in environment(0, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(distributed.TIMEOUT, "soon")
    with pytest.raises(ConfigError, match="DDQ_SEARCH_TIMEOUT_S='soon'"), processes():
        pass


# -- what both processes do -------------------------------------------------------------------------------------------


def searched(path, progress=None):
    """A whole search of a network with batch norms; returns everything that it trained, and what it chose."""
    torch.manual_seed(5)
    device = cost_model("cortex-a53-rpi3-lowbit-neon")
    config = load_config(None, {**SETTINGS, "out": str(path)})
    problem = pose(Residual(), Uneven(), device, config)
    record, progress = RunDirectory(path), progress or Silent()
    begin(problem, record, progress)
    stages = Stages(problem, record, progress)
    teacher = stages.train_float()
    joint = train_jointly(stages, teacher)
    front = conclude(stages, joint, teacher)
    nets = {"float": teacher, "joint": joint.net, **{point.policy.name: point.net for point in front.points}}
    states = {f"{name} {key}": value for name, net in nets.items() for key, value in net.state_dict().items()}
    choices = [(p.policy.name, dict(p.policy.bits), p.within_budgets, p.on_front) for p in front.points]
    return states, choices


def normalized(norm, x):
    """Output, all gradients and the state of a layer for this process's part of a batch, or for all of it."""
    part = part_of(len(x))
    mine = (x if part is None else part.of(x)).requires_grad_()
    out = norm(mine) if part is None else normalize(norm, mine, part)
    weights = torch.linspace(-1, 1, x.numel()).reshape(x.shape) * (1 + torch.sin(x.detach()))
    (out * (weights if part is None else part.of(weights))).sum().backward()
    gradients = [p.grad for p in norm.parameters()]
    distributed.sum_in_place(gradients)
    return [out.detach(), mine.grad], [*gradients, *norm.state_dict().values()]


NORMS = {
    "maps": lambda: (nn.BatchNorm2d(4), (7, 4, 3, 5)),
    "channels last": lambda: (nn.BatchNorm2d(4).to(memory_format=torch.channels_last), (8, 4, 3, 5)),
    "vectors": lambda: (nn.BatchNorm1d(4), (5, 4)),
    "bare": lambda: (nn.BatchNorm2d(4, affine=False, momentum=None), (6, 4, 2, 2)),
    "few": lambda: (nn.BatchNorm1d(4, track_running_stats=False), (3, 4)),
}


def norm_results(name):
    torch.manual_seed(3)
    norm, shape = NORMS[name]()
    x = 1e6 + 3 * torch.randn(shape)  # far from 0: a difference of squares would be wrong in the fifth digit
    if "last" in name:
        x = x.contiguous(memory_format=torch.channels_last)
    return normalized(norm, x)


def works(folder):
    """Everything that two processes can be asked in one go; returns what each found."""
    found = {}
    with double():
        found["norms"] = {name: norm_results(name) for name in NORMS}
        found["search"] = searched(folder / "two")
        with contextlib.suppress(Stop):
            searched(folder / "resumed", Stopper(17))
        from_first(lambda: shutil.copytree(folder / "resumed", folder / "left"))
        found["resumed"] = searched(folder / "resumed")
    rank = distributed.rank()
    found["first"] = from_first(lambda: from_first(lambda: f"of {rank}"))
    for name, attempt in (("shared error", failing), ("disagreement", disagreeing)):
        with pytest.raises((ConfigError, RunError)) as error:
            attempt()
        found[name] = repr(error.value)
    order = folder / "order"
    with first_ahead():
        time.sleep(0.2 * (1 - rank))
        with order.open("a") as file:
            file.write(str(rank))
    return found


def failing():
    def work():
        raise ConfigError(f"said by {distributed.rank()}")

    from_first(work)


def disagreeing():
    require_same({"same": torch.ones(2), "gates": torch.tensor([1.0, float(distributed.rank())])}, "here")


def one_fails(folder):
    """The second process meets a mistake while the first waits for it."""
    if distributed.rank() == 1:
        raise ConfigError("the mistake")
    from_first(lambda: None)


def one_is_late(folder):
    if distributed.rank() == 1:
        time.sleep(2.5)
    distributed.gather(torch.zeros(1))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    found = in_two(folder, works, one_fails, (one_is_late, 1.0))
    assert all(isinstance(own[0], dict) for own in found), found
    return folder, found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    with threads(1), double():
        folder = tmp_path_factory.mktemp("alone")
        result = searched(folder / "run")
    return *result, RunDirectory(folder / "run").history()


@pytest.mark.parametrize("name", NORMS)
def test_batch_norm_of_parts_is_that_of_the_whole(outcomes, name):
    """Float64: values of 1e6 have steps of 1e-10, the spread is near 1."""
    with double():
        (whole_out, whole_grad), whole = norm_results(name)
    for rank, own in enumerate(outcomes[1]):
        parts, shared = own[0]["norms"][name]
        part = Part(len(whole_out), rank, WORLD, 0.0)
        assert torch.allclose(parts[0], part.of(whole_out), rtol=0, atol=1e-7), name
        assert torch.allclose(parts[1], part.of(whole_grad), rtol=0, atol=1e-7 * float(whole_grad.abs().max())), name
        assert len(shared) == len(whole)
        for ours, wanted in zip(shared, whole, strict=True):
            assert torch.allclose(ours, wanted, rtol=0, atol=1e-7 * float(wanted.abs().max())), name


def assert_same_search(found, alone):
    """Every tensor of every phase, and what was chosen."""
    (ours, chosen), (states, choices, _) = found, alone
    assert chosen == choices
    assert_same_tensors(ours, states)


def test_two_processes_train_what_one_trains(outcomes, alone):
    for own in outcomes[1]:
        assert_same_search(own[0]["search"], alone)


def test_one_process_goes_on_with_what_two_began(outcomes, alone):
    path = outcomes[0] / "left"
    assert not (path / "front.json").exists()
    with double():
        assert_same_search(searched(path), alone)


def test_all_processes_hold_the_same_bits(outcomes):
    (first, _), (second, _) = (own[0]["search"] for own in outcomes[1])
    assert any("gates.own" in key for key in first)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_the_joint_phase_moved_gates_and_steps(alone):
    """What is compared above is not the start."""
    states, *_ = alone
    gates = [value for key, value in states.items() if key.startswith("joint gates.own")]
    assert all((value != 0.6).any() for value in gates)
    steps = [key for key in states if key.startswith("joint quantizers.") and key.endswith("log_steps")]
    assert any(not torch.equal(states[key], states[key.replace("joint", "float", 1)]) for key in steps)


def test_interrupted_and_resumed_ends_the_same(outcomes):
    for own in outcomes[1]:
        (straight, choices), (resumed, chosen) = own[0]["search"], own[0]["resumed"]
        assert chosen == choices
        assert all(torch.equal(value, resumed[key]) for key, value in straight.items())


def test_the_first_process_writes_alone(outcomes):
    folder, _ = outcomes
    rows = RunDirectory(folder / "two").history()
    float_rows = [row["epoch"] for row in rows if row["phase"] == "float"]
    assert float_rows == [0, 1]
    assert json.loads((folder / "two" / "environment.json").read_text())["processes"] == WORLD


def test_history_holds_the_loss_of_whole_batches(outcomes, alone):
    *_, one = alone
    losses = [row["train_loss"] for row in RunDirectory(outcomes[0] / "two").history()]
    assert losses == pytest.approx([row["train_loss"] for row in one], rel=1e-9)


def test_results_and_errors_of_the_first_reach_all(outcomes):
    for own in outcomes[1]:
        assert own[0]["first"] == "of 0"
        assert own[0]["shared error"] == "ConfigError('said by 0')"
    assert (outcomes[0] / "order").read_text() == "01"


def test_disagreement_names_the_tensor(outcomes):
    for own in outcomes[1]:
        assert "process 1 no longer agrees with process 0 here: 'gates' differs" in own[0]["disagreement"]


def test_one_message_when_one_process_fails(outcomes):
    assert [own[1] for own in outcomes[1]] == ["SystemExit(1)", "ConfigError('the mistake')"]


def test_nobody_waits_for_ever(outcomes):
    (_, _, first), (_, _, second) = outcomes[1]
    assert "did not answer in time (DDQ_SEARCH_TIMEOUT_S)" in first
    assert second.startswith(("SystemExit", "RunError"))  # the store, here in the first process, may be gone


# -- the command ------------------------------------------------------------------------------------------------------

COMMAND = {
    "training.float_epochs": 3, "training.joint_epochs": 3, "training.finetune_epochs": 1, "search.points": 3,
    "search.relaxed_points": 0, "search.front_points": 1, "search.uniform": "[[8, 8]]", "training.norm_batches": 4,
    "training.threads": 1, "data.limit": 400,
}  # fmt: skip


def search_command(out, *launcher):
    settings = [f"--set={key}={value}" for key, value in COMMAND.items()]
    budgets = ["--data", "digits", "--latency", "90%", "--flash-kib", "40"]
    start = [sys.executable, *launcher, "-m", "ddq_search", "search"]
    return [*start, *budgets, *settings, "--out", str(out), "--resume"]


def two(out):
    return search_command(out, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")


def result(out: Path):
    document = json.loads((out / "front.json").read_text())
    return document, [{k: v for k, v in row.items() if k != "seconds"} for row in RunDirectory(out).history()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_torchrun_killed_and_resumed(tmp_path):
    """The launcher's second process is killed with -9; the other ends too, and the run goes on to the same front."""
    done = subprocess.run(two(tmp_path / "whole"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best: ") == 1
    process = subprocess.Popen(two(tmp_path / "killed"), stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL)
    history = tmp_path / "killed" / "history.jsonl"
    while process.poll() is None and not (history.exists() and len(history.read_text().splitlines()) >= 4):
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (tmp_path / "killed" / "front.json").exists()
    assert said.count("error: ") <= 1
    done = subprocess.run(two(tmp_path / "killed"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "killed") == result(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_torchrun_says_a_mistake_once(tmp_path):
    done = subprocess.run([*two(tmp_path), "--model", "nosuch"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    assert "nosuch" in done.stderr
