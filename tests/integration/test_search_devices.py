"""A whole search on a GPU, in every number format; begun there and finished on the CPU, and the other way round."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from ddq_search.cli.assembly import assemble, open_policy, open_run
from ddq_search.compute import Compute
from ddq_search.config import load_config
from ddq_search.evaluation import IntegerEvaluator
from ddq_search.integer.lowering import lower
from ddq_search.record import RunDirectory
from ddq_search.search import search
from ddq_search.solve import solve
from tests.integration.test_search import SETTINGS, Stop, Stopper
from tests.test_supernet import small

FOREIGN = "cuda"
SMALL = SETTINGS | {
    "model.name": "resnet8", "budgets.latency": "98%", "search.points": 2, "search.relaxed_points": 0,
    "search.extra_points": 0, "search.uniform": [[8, 8]],
}  # fmt: skip


def run(path, progress=None, **changes):
    problem = assemble(load_config(None, SMALL | {key.replace("__", "."): value for key, value in changes.items()}))
    front = search(problem, RunDirectory(path), progress)
    path.joinpath("config.toml").write_text(problem.config.to_toml())
    return problem, front


def check(path, front):
    """Finite and within the budgets; what is stored is in main memory and can be read without the device."""
    assert all(torch.isfinite(torch.tensor([p.validation.loss, p.test.loss])).all() for p in front.points)
    assert all(p.within_budgets for p in front.points if p.policy.origin == "search")
    for file in (path / "checkpoints").glob("*.safetensors"):
        assert all(t.device.type == "cpu" and bool(t.isfinite().all()) for t in load_file(file).values())
    problem, record = open_run(path)
    policy, net, _ = open_policy(problem, record, "best")
    assert next(net.parameters()).device.type == "cpu"
    program = lower(net.discretize(policy.bits), problem.device.arithmetic)
    x, _ = next(iter(problem.source.plain("validation", 32)))
    here, there = IntegerEvaluator(program).scores(x), IntegerEvaluator(program, FOREIGN).scores(x)
    assert torch.equal(here, there.cpu())


@pytest.mark.parametrize("mode", ["joint", "ptq"])
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_a_search_on_the_device(tmp_path, precision, mode):
    _, front = run(
        tmp_path, training__device=FOREIGN, training__precision=precision, search__mode=mode,
        search__baselines=["greedy", "random"] if mode == "joint" else [],
    )  # fmt: skip
    check(tmp_path, front)
    assert next(front.points[0].net.parameters()).device.type == FOREIGN
    rows = [row for row in RunDirectory(tmp_path).history() if row["phase"] in ("joint", "gates")]
    assert rows
    assert all(sum(row["gate_gradient_norms"].values()) > 0 for row in rows)
    assert sum(rows[-1]["gate_movement"].values()) > 0


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["edmips", "bayesian-bits", "dqss", "dq", "hawq-ilp"])
@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_every_method_on_the_device(tmp_path, precision, method):
    _, front = run(tmp_path, training__device=FOREIGN, training__precision=precision, search__method=method)
    check(tmp_path, front)


@pytest.mark.gpu
@pytest.mark.parametrize(("first", "second"), [(FOREIGN, "cpu"), ("cpu", FOREIGN)])
def test_begun_on_one_device_and_finished_on_another(tmp_path, first, second):
    with pytest.raises(Stop):
        run(tmp_path, Stopper(at=15), training__device=first)
    _, front = run(tmp_path, training__device=second)
    check(tmp_path, front)


@pytest.mark.gpu
def test_a_cpu_run_is_solved_on_the_device(tmp_path):
    trained, _ = run(tmp_path / "cpu")
    changed = assemble(load_config(None, SMALL | {"training.device": FOREIGN, "budgets.flash": "70%"}))
    record = RunDirectory(tmp_path / "solved")
    front = solve(changed, record, (trained, RunDirectory(tmp_path / "cpu", trained.fingerprint)))
    assert all(p.within_budgets for p in front.points if p.policy.origin == "search")


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["float", "fixed", "gated"])
def test_a_step_is_that_of_the_cpu(mode):
    """Float32 without TF32: outputs and gradients agree to rounding; codes may differ at ties only."""
    found = []
    for device in ("cpu", FOREIGN):
        torch.manual_seed(0)
        net = small("Residual", gradient_share=1.0).train()
        Compute(torch.device(device), layout="channels_last").place_net(net)
        if mode == "fixed":
            net.set_policy({v.name: 8 for v in net.space.variables})
        elif mode == "gated":
            net.sample(0, torch.full((len(net.space.variables),), 0.5))
        x = torch.randn(16, 3, 9, 9, generator=torch.Generator().manual_seed(1)).to(device)
        with torch.backends.cudnn.flags(allow_tf32=False):
            output = net(x)
            output.square().mean().backward()
        found.append([output.detach().cpu(), *(p.grad.cpu() for p in net.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 5
    for here, there in zip(*found, strict=True):
        assert torch.linalg.vector_norm(here - there) <= 0.02 * torch.linalg.vector_norm(here) + 1e-5


@pytest.mark.gpu
def test_fp16_codes_are_those_of_float32():
    net = small("Residual").eval()
    net.set_policy({v.name: 8 for v in net.space.variables})
    compute = Compute(torch.device(FOREIGN), "fp16")
    compute.place_net(net)
    before = [p.detach().clone() for p in net.parameters()]
    codes = net.discretize({v.name: 8 for v in net.space.variables})
    with compute.autocast(), torch.no_grad():
        output = net(compute.place(torch.randn(8, 3, 9, 9)))
    assert bool(output.isfinite().all())
    again = net.discretize({v.name: 8 for v in net.space.variables})
    assert all((again.layers[name].codes == layer.codes).all() for name, layer in codes.layers.items())
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
