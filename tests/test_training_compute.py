"""Where and how training computes: devices that are not there, tensors that follow, 16 bits, loss scaling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddq_search import batch_statistics, supernet
from ddq_search import compute as places
from ddq_search.compute import Compute, compute_of, trainable_compute
from ddq_search.config import TrainingConfig, load_config
from ddq_search.distributed import Part
from ddq_search.errors import ConfigError, RunError
from ddq_search.loss_scale import LossScale
from ddq_search.record import RunDirectory
from ddq_search.training import Phase, run_phase
from tests.networks import sample_images
from tests.test_gate_training import training as gate_training
from tests.test_supernet import small
from tests.test_training import Counter, Stop, network, phase_of
from tests.toys import ToySource

# -- devices -------------------------------------------------------------------------------------------------------


def settings(**changes):
    return TrainingConfig(**changes)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "cuda:01", "CPU", "", "meta", "cuda:0 "])
def test_an_unknown_device_is_refused_with_the_known_ones(name):
    with pytest.raises(ConfigError, match=r"training\.device.*expected cpu, cuda, cuda:0, cuda:1, … or mps, got"):
        load_config(None, {"training.device": name})


def test_a_device_that_is_not_there_is_one_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=r"training\.device = 'cuda': torch \S+ finds no CUDA device here; use 'cpu'"):
        compute_of(settings(device="cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"'cuda:2': there is no such CUDA device here, only cuda:0, cuda:1"):
        compute_of(settings(device="cuda:2"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="'mps': torch finds no Metal device here"):
        compute_of(settings(device="mps"))


def test_each_process_of_a_machine_takes_a_cuda_device_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert compute_of(settings(device="cuda")).device == torch.device("cuda", 0)
    monkeypatch.setattr(places, "world_size", lambda: 3)
    for rank in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert compute_of(settings(device="cuda")).device == torch.device("cuda", rank)
    assert compute_of(settings(device="cuda:0")).device == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match=r"process 2 of this machine finds 2 CUDA device\(s\); start at most 2"):
        compute_of(settings(device="cuda"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="serves one process"):
        compute_of(settings(device="mps"))


def test_fp16_trains_on_cuda_only(monkeypatch):
    with pytest.raises(ConfigError, match=r"'fp16' needs training\.device = 'cuda', not 'cpu'; bf16"):
        trainable_compute(settings(precision="fp16"))
    assert compute_of(settings(precision="fp16")).precision == "fp16"  # for a finished run that is only read here
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert isinstance(trainable_compute(settings(precision="fp16", device="cuda")).loss_scale(), LossScale)
    assert trainable_compute(settings(precision="bf16")).loss_scale() is None


def test_integers_run_where_there_is_float64():
    found = [Compute(torch.device(name)).integer_device for name in ("cpu", "cuda:1", "mps")]
    assert found == [torch.device("cpu"), torch.device("cuda:1"), torch.device("cpu")]


def test_the_place_is_no_part_of_what_is_asked_for():
    base = load_config(None, {})
    for key, value in {"device": "cuda:1", "compile": True}.items():
        assert load_config(None, {f"training.{key}": value}).fingerprint() == base.fingerprint()
    assert load_config(None, {"training.precision": "bf16"}).fingerprint() != base.fingerprint()


def test_batches_reach_cuda_from_page_locked_memory(monkeypatch):
    calls = []

    def pinned(tensor):
        calls.append("pin")
        return tensor

    def moved(tensor, device, **options):
        calls.append((device, options, tensor.is_contiguous(memory_format=torch.channels_last)))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.Tensor, "to", moved)
    cuda = torch.device("cuda:0")
    Compute(cuda, layout="channels_last").place(torch.zeros(2, 3, 4, 5))
    assert calls == ["pin", (cuda, {"non_blocking": True}, True)]
    calls.clear()
    Compute(torch.device("mps")).place(torch.zeros(2, 3, 4, 5))
    assert calls == [(torch.device("mps"), {}, False)]


def test_labels_and_vectors_keep_their_layout():
    (x, y), (flat, _) = Compute(layout="channels_last").placed(
        [(torch.zeros(2, 3, 4, 5), torch.arange(2)), (torch.zeros(2, 7), torch.arange(2))]
    )
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert y.tolist() == [0, 1]
    assert flat.is_contiguous()


# -- tensors follow ------------------------------------------------------------------------------------------------


class Foreign(TorchDispatchMode):
    """Fails where an operation makes a tensor that is not on the device; numbers (no dimensions) may be anywhere."""

    def __init__(self, device):
        super().__init__()
        self.device, self.seen = torch.device(device), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.ndim:
                assert tensor.device.type == self.device.type, f"{func} makes a tensor on {tensor.device}"
                self.seen += 1
        return result


@pytest.mark.parametrize("name", ["Residual", "Mobile"])
@pytest.mark.parametrize("mode", ["float", "fixed", "gated"])
def test_everything_in_a_step_follows_the_inputs_device(monkeypatch, name, mode):
    """The meta device stands for any device but the CPU: operations that mix the two fail, as on a GPU."""
    net = small(name, gradient_share=0.5)
    net.train()
    Compute(torch.device("meta"), layout="channels_last").place_net(net)
    assert {t.device.type for t in net.state_dict().values()} == {"meta"}
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # does not know the meta device
    x, y = torch.empty(8, 3, 9, 9, device="meta"), torch.empty(8, dtype=torch.long, device="meta")
    parts = []
    with Foreign("meta") as seen:
        if mode == "fixed":
            net.set_policy({v.name: v.candidates[0] for v in net.space.variables})
        elif mode == "gated":
            monkeypatch.setattr(supernet, "choose", lambda cumulative, uniform: [0] * len(cumulative))
            parts = [net.gates.cumulative(0).detach().requires_grad_()]
            net.sample_from(parts[0], torch.rand((), device="meta"))
        F.cross_entropy(net(x), y).backward()
    assert seen.seen > 50
    parts += list(net.model.parameters())
    parts += list(net.quantizers.parameters()) if mode == "gated" else []
    assert all(p.grad is not None and p.grad.device.type == "meta" for p in parts)


def test_a_tensor_left_behind_is_noticed():
    with Foreign("meta"), pytest.raises(AssertionError, match="makes a tensor on cpu"):
        torch.zeros(3)
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(3) + torch.zeros(3, device="meta")


def test_prices_and_scores_of_gates_are_in_main_memory():
    """Float64 there: Metal has none. The gates' gradient finds its way back."""
    gates = small(sets=2).gates
    assert gates.scores(0).device.type == gates.probabilities(gates.all_cumulative()).device.type == "cpu"
    assert gates.scores(0).dtype == torch.float64


# -- 16 bits -------------------------------------------------------------------------------------------------------


def test_quantizers_see_float32_within_autocast():
    net = small("Residual")
    net.set_policy({v.name: 8 for v in net.space.variables})
    net.eval()
    seen = []
    for quantizer in net.quantizers:
        quantizer.overwrites_input = False

        def recorded(x, choice, cumulative=None, quantizer=quantizer, own=quantizer.fake_quantize):
            result = own(x, choice, cumulative)
            seen.append((quantizer, x.detach().clone(), choice, result.detach().clone()))
            return result

        quantizer.fake_quantize = recorded
    x = sample_images(16)
    with torch.no_grad():
        plain = net(x)
        exact = {id(q): out for q, x_in, _, out in seen if x_in.shape[0] != 16}
        seen.clear()
        formats = {}
        net.watch = lambda name, value: formats.setdefault(name, value.dtype)
        with Compute(precision="bf16").autocast():
            half = net(x)
    assert formats["conv2"] == formats["fc"] == torch.bfloat16  # autocast was at work
    assert 0 < (half.float() - plain).abs().max() < 0.1 * plain.abs().max()
    assert len(seen) == len(net.quantizers)
    for quantizer, value, choice, result in seen:
        assert value.dtype == result.dtype == torch.float32
        step = quantizer.steps(value)[choice]
        aligned = step.reshape(-1, *[1] * (value.ndim - 1)) if step.ndim else step
        grid = quantizer.grids[choice]
        codes = quantizer.quantize(value, choice)
        assert torch.equal(codes, torch.round(result / aligned).int() + grid.zero_point)
        if id(quantizer) in exact:
            assert torch.equal(result, exact[id(quantizer)])  # weights: bit for bit those of float32
    halved = [q.quantize(v.bfloat16(), c) for q, v, c, _ in seen]
    assert any(not torch.equal(a, q.quantize(v, c)) for a, (q, v, c, _) in zip(halved, seen, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_of_several_processes_are_float32_within_autocast(monkeypatch, dtype):
    monkeypatch.setattr(batch_statistics, "gather", lambda tensor: tensor[None])
    monkeypatch.setattr(batch_statistics, "sum_in_place", lambda tensors: None)
    x = (3 + torch.randn(8, 4, 5, 5)).to(dtype)
    norms = [torch.nn.BatchNorm2d(4) for _ in range(2)]
    with Compute(precision="bf16").autocast():
        found = batch_statistics.normalize(norms[0], x, Part(batch=8, rank=0, parts=1, weight=1.0))
    torch.testing.assert_close(found, norms[1](x.float()))
    torch.testing.assert_close(norms[0].running_mean, norms[1].running_mean)


def run(phase, path, compute, progress=None):
    path.mkdir(exist_ok=True)
    run_phase(
        phase, ToySource(), RunDirectory(path, "f"), seed=3, batch_size=8, compute=compute,
        progress=progress or Counter(),
    )  # fmt: skip
    return [row["train_loss"] for row in RunDirectory(path).history()]


def test_bf16_trains_like_float32_and_resumes_to_the_bit(tmp_path):
    bf16 = Compute(precision="bf16", layout="channels_last")
    whole, resumed = phase_of(network()), phase_of(network())
    exact = run(phase_of(network()), tmp_path / "f", Compute())
    losses = run(whole, tmp_path / "a", bf16)
    with pytest.raises(Stop):
        run(phase_of(network(), stop_at=5), tmp_path / "b", bf16)
    assert run(resumed, tmp_path / "b", bf16) == losses != exact
    assert losses == pytest.approx(exact, rel=0.05)
    states = [phase.module.state_dict() for phase in (whole, resumed)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert all(value.dtype == torch.float32 for key, value in states[0].items() if "tracked" not in key)


def test_a_diverging_bf16_training_keeps_the_last_good_epoch(tmp_path):
    with pytest.raises(RunError, match="diverged"):
        run(phase_of(network(), nan_at=8), tmp_path, Compute(precision="bf16"))
    assert RunDirectory(tmp_path, "f").load_checkpoint("float")[1]["epoch"] == 2


# -- loss scaling --------------------------------------------------------------------------------------------------


def scaled(phase, scale=2.0**16):
    phase.loss_scale = LossScale(scale)
    return phase


def test_the_rule_by_hand():
    scale = LossScale()
    scale.update(False)
    assert scale.state.tolist() == [2.0**15, 0]
    for _ in range(1999):
        scale.update(True)
    assert scale.state.tolist() == [2.0**15, 1999]
    scale.update(True)
    assert scale.state.tolist() == [2.0**16, 0]
    gradients = [torch.tensor([2.0**16, -(2.0**15)]), torch.tensor([0.0])]
    assert scale.restore(gradients)
    assert gradients[0].tolist() == [1.0, -0.5]
    assert not scale.restore([torch.tensor([1.0, float("inf")])])
    assert not scale.restore([torch.tensor(float("nan"))])
    assert scale.restore([])
    assert not LossScale(1.0).exhausted
    assert LossScale(0.5).exhausted


def test_a_power_of_two_changes_no_bit_in_float32(tmp_path):
    plain, other = phase_of(network()), scaled(phase_of(network()))
    assert run(plain, tmp_path / "a", Compute()) == run(other, tmp_path / "b", Compute())
    assert all(torch.equal(a, b) for a, b in zip(plain.module.parameters(), other.module.parameters(), strict=True))
    assert [row["loss_scale"] for row in RunDirectory(tmp_path / "b").history()] == [2.0**16] * 3


def gated(path, scale):
    torch.manual_seed(0)
    net, _, lagrangian, gates = gate_training([10.0, 1e9])

    def loss(x, y, number):
        gates.sample(number % 2, torch.full((len(net.space.variables),), 0.5))
        return F.cross_entropy(net(x), y), {}

    optimizers = [(torch.optim.SGD(net.model.parameters()), 0.05), (torch.optim.Adam(net.gates.parameters()), 0.02)]
    phase = Phase(
        "joint", "joint", net, optimizers, loss, 2, lambda f: 1.0, after_backward=gates.collect,
        batch_leaves=gates.leaves, before_step=gates.backward, after_step=gates.update, loss_scale=scale, accumulate=2,
    )  # fmt: skip
    path.mkdir()
    run_phase(
        phase, ToySource((3, 9, 9)), RunDirectory(path, "f"), seed=3, batch_size=8, compute=Compute(),
        progress=Counter(),
    )  # fmt: skip
    return [gates.sensitivity, lagrangian.multipliers, *net.parameters()]


def test_gates_get_gradients_of_the_loss_and_not_of_the_scaled_one(tmp_path):
    pairs = zip(gated(tmp_path / "a", None), gated(tmp_path / "b", LossScale()), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class Watcher(Counter):
    def __init__(self, phase):
        super().__init__()
        self.phase, self.seen = phase, []

    def step(self, facts):
        self.seen.append((self.phase.module[0].weight.detach().clone(), float(self.phase.extra["multiplier"][0])))


def test_a_step_that_overflows_is_left_out(tmp_path):
    phase = scaled(phase_of(network(), poison_at=4))
    watcher = Watcher(phase)
    run(phase, tmp_path, Compute(), watcher)
    moved = [not torch.equal(a, b) for (a, _), (b, _) in zip(watcher.seen, watcher.seen[1:], strict=False)]
    assert moved == [True, True, True, False, True, True, True, True]
    assert [round(100 * multiplier) for _, multiplier in watcher.seen] == [1, 2, 3, 4, 4, 5, 6, 7, 8]
    assert [row["loss_scale"] for row in RunDirectory(tmp_path).history()] == [2.0**16, 2.0**15, 2.0**15]
    assert all(p.isfinite().all() for p in phase.module.parameters())


def test_the_scale_survives_a_resume(tmp_path):
    whole, resumed = scaled(phase_of(network(), poison_at=1)), scaled(phase_of(network(), poison_at=1))
    run(whole, tmp_path / "a", Compute())
    with pytest.raises(Stop):
        run(scaled(phase_of(network(), poison_at=1, stop_at=4)), tmp_path / "b", Compute())
    run(resumed, tmp_path / "b", Compute())
    assert whole.loss_scale.state.tolist() == resumed.loss_scale.state.tolist() == [2.0**15, 7]
    assert all(torch.equal(a, b) for a, b in zip(whole.module.parameters(), resumed.module.parameters(), strict=True))


def test_gradients_that_never_fit_stop_the_run_with_the_last_good_state(tmp_path):
    with pytest.raises(RunError, match=r"diverged in phase 'float': gradients exceed float16.*bf16"):
        run(scaled(phase_of(network(), poison_at=8), 1.0), tmp_path, Compute())
    tensors, facts = RunDirectory(tmp_path, "f").load_checkpoint("float")
    assert facts["epoch"] == 2
    assert all(t.isfinite().all() for t in tensors.values())


def test_a_loss_that_is_not_finite_stops_whatever_the_scale(tmp_path):
    with pytest.raises(RunError, match="the loss is not finite in epoch 3"):
        run(scaled(phase_of(network(), nan_at=8)), tmp_path, Compute())
