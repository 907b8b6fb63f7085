"""The supernet: the model's own output in float, gradients for everything in the search, numbers for deployment."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import nn

from ddq_search.errors import PolicyError
from ddq_search.evaluation import IntegerEvaluator
from ddq_search.graph import WEIGHTED, operations
from ddq_search.integer.lowering import lower
from ddq_search.policy import uniform
from ddq_search.precision import ActivationGrid
from ddq_search.quantizers.uniform import UniformActivations, UniformWeights
from ddq_search.space import build_space
from ddq_search.supernet import Supernet
from ddq_search.trace import trace
from tests.networks import MODELS, sample_images
from tests.toys import AnyDevice

FAMILIES = {
    "resnet18": tv.resnet18,
    "mobilenet_v2": tv.mobilenet_v2,
    "mobilenet_v3_small": tv.mobilenet_v3_small,
    "shufflenet_v2": tv.shufflenet_v2_x0_5,
    "squeezenet": tv.squeezenet1_1,
}


pytestmark = pytest.mark.usefixtures("one_thread")


def supernet_of(model, shape=(3, 9, 9), **settings):
    graph = trace(model, torch.zeros(2, *shape))
    return Supernet(model, graph, build_space(graph, AnyDevice()), **settings)


@functools.cache
def family(name):
    torch.manual_seed(0)
    model = FAMILIES[name](weights=None, num_classes=10)
    with torch.no_grad():  # move the statistics off their start
        model.train()
        model(torch.randn(8, 3, 64, 64))
    return model.eval()


def small(name="Residual", **settings):
    model = MODELS[name]()
    with torch.no_grad():
        model(sample_images(64, seed=9))
    net = supernet_of(model.eval(), **settings)
    net.calibrate([sample_images(32)])
    return net


# -- float --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_float_output_equals_the_model(name):
    model = family(name)
    net = supernet_of(model, (3, 64, 64)).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(net(x), model(x))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_float_output_of_small_networks_in_training_mode(name):
    model = MODELS[name]()
    net = supernet_of(model.eval())
    x = sample_images(8)
    model.train(), net.train()
    torch.testing.assert_close(net(x), model(x))
    for ours, theirs in zip(net.model.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_users_model_is_not_touched():
    model = MODELS["Residual"]().eval()
    before = copy.deepcopy(model.state_dict())
    net = supernet_of(model)
    net.calibrate([sample_images(8)])
    with torch.no_grad():
        net.model.conv1.weight.zero_()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


# -- joint search -------------------------------------------------------------------------------------------------


def joint_gradients(net, x, y, uniform_draw=0.5, index=0):
    net.train()
    net.zero_grad(set_to_none=True)
    net.sample(index, torch.full((len(net.space.variables),), uniform_draw))
    F.cross_entropy(net(x), y).backward()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2", "squeezenet"])
def test_one_step_of_the_task_loss_reaches_weights_steps_and_gates(name):
    net = supernet_of(family(name), (3, 64, 64), gradient_share=1.0)
    x, y = torch.randn(4, 3, 64, 64), torch.randint(0, 10, (4,))
    net.calibrate([x])
    joint_gradients(net, x, y)
    missing = []
    for row, variable in enumerate(net.space.variables):
        quantizer = net.quantizers[row]
        constant = may_coincide(net, variable)
        if len(variable.candidates) > 1 and not constant:
            gates = net.gates.own[0].grad[row, : len(variable.candidates) - 1]
            if not bool((gates != 0).all()):
                missing.append(f"gates of {variable.name}")
            if not bool((quantizer.log_steps.grad[net._choices[row]] != 0).any()):
                missing.append(f"step of {variable.name}")
    for op in operations(net.graph):
        if op.kind in WEIGHTED and not bool((net._weight(op).grad != 0).any()):
            missing.append(f"weight of {op.name}")
    assert not missing
    for parameter in net.model.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


def may_coincide(net, variable):
    """Squeeze-excite gates of an untrained network sit on 0, ½ or 1, which several grids represent alike."""
    return variable.name.endswith("scale_activation")


def test_small_networks_all_gates_at_every_draw():
    for name in ("Residual", "Mobile", "SqueezeExcite", "Fire"):
        net = small(name, sets=2, gradient_share=1.0)
        x, y = sample_images(32, seed=3), torch.arange(32) % 3
        for draw in (0.05, 0.5, 0.95):
            joint_gradients(net, x, y, draw, index=1)
            assert net.gates.own[0].grad is None
            grad = net.gates.own[1].grad
            for row, variable in enumerate(net.space.variables):
                wanted = len(variable.candidates) - 1
                assert int((grad[row] != 0).sum()) == wanted, (name, draw, variable.name)


def test_cost_gradient_and_task_gradient_share_one_backward():
    net = small()
    p = net.sample(0, torch.full((len(net.space.variables),), 0.5))
    assert p.dtype == torch.float64
    assert p.requires_grad
    net.train()
    (net(sample_images(8)).square().mean() + p[:, 0].sum()).backward()
    assert torch.isfinite(net.gates.own[0].grad).all()


def test_sampling_chooses_what_it_computes():
    net = small()
    rows = len(net.space.variables)
    with torch.no_grad():
        net.gates.own[0].fill_(0.0)
    net.eval()
    x = sample_images(4)
    outputs = {}
    with torch.no_grad():
        for draw, wish in ((0.0, 8), (0.3, 4), (0.6, 2)):
            net.sample(0, torch.full((rows,), draw))
            outputs[wish] = net(x)
            net.set_policy(uniform(net.space, wish, wish))
            assert torch.equal(net(x), outputs[wish])
    assert not torch.equal(outputs[8], outputs[2])


# -- policies -----------------------------------------------------------------------------------------------------


def test_policy_errors_name_the_variable():
    net = small()
    policy = uniform(net.space, 8, 8)
    with pytest.raises(PolicyError, match=r"'weights/conv2': 3\.5 bits is not among \[2, 4, 8\]"):
        net.set_policy(policy | {"weights/conv2": 3.5})
    del policy["activations/conv1"]
    with pytest.raises(PolicyError, match="'activations/conv1': None bits"):
        net.set_policy(policy)


def test_fewer_bits_move_the_output_further():
    net = small().eval()
    x = sample_images(16)
    with torch.no_grad():
        expected = net(x)
        distances = []
        for bits in (2, 4, 8):
            net.set_policy(uniform(net.space, bits, bits))
            distances.append(float((net(x) - expected).square().mean()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.01 * float(expected.var())


# -- calibration and statistics -----------------------------------------------------------------------------------


def test_calibration_changes_no_output_mode_or_statistics():
    model = MODELS["Residual"]().eval()
    net = supernet_of(model)
    net.train()
    net.set_policy(uniform(net.space, 4, 4))
    buffers = copy.deepcopy(dict(net.model.named_buffers()))
    net.calibrate([sample_images(8), sample_images(8, seed=1)])
    assert net.training
    assert net.mode == "fixed"
    assert all(torch.equal(buffers[key], value) for key, value in net.model.named_buffers())
    net.set_float()
    x = sample_images(4)
    with torch.no_grad():
        assert torch.equal(net.eval()(x), model(x))


def test_statistics_become_the_average_over_the_batches():
    net = small()
    net.set_policy(uniform(net.space, 4, 4))
    net.eval()
    batches = [sample_images(16, seed=s) for s in (4, 5)]
    seen = []
    hook = net.model.bn1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net.reestimate_norms(iter(batches))
    hook.remove()
    torch.testing.assert_close(net.model.bn1.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0))
    torch.testing.assert_close(net.model.bn1.running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0))
    assert net.model.bn1.momentum == 0.1
    assert not net.training


def test_state_dict_restores_everything():
    net = small("Mobile", sets=2)
    with torch.no_grad():
        net.gates.own[1].add_(0.1)
    other = supernet_of(MODELS["Mobile"]().eval(), sets=2)
    other.load_state_dict(net.state_dict())
    policy = uniform(net.space, 4, 2)
    x = sample_images(4)
    for each in (net, other):
        each.set_policy(policy)
        each.eval()
    with torch.no_grad():
        assert torch.equal(net(x), other(x))
    ours, theirs = net.discretize(policy), other.discretize(policy)
    assert ours.grids == theirs.grids
    assert any(grid.zero_point for grid in ours.grids.values())


def test_a_copy_can_be_taken_in_every_mode():
    net = small()
    net.sample(0, torch.full((len(net.space.variables),), 0.5))
    net(sample_images(2))
    net.set_float()
    copied = copy.deepcopy(net)
    assert torch.equal(copied(sample_images(2)), net(sample_images(2)))


# -- deployment ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_discrete_weights_are_the_fake_quantized_ones(name, bits):
    net = small(name)
    policy = uniform(net.space, bits, bits)
    network = net.discretize(policy)
    for op in operations(net.graph):
        grid = network.grids[op.name]
        assert grid.bits == policy[net.space.activations_of[op.name]]
        if op.kind not in WEIGHTED:
            continue
        row = net._row[net.space.weights_of[op.name]]
        quantizer = net.quantizers[row]
        assert isinstance(quantizer, UniformWeights)
        numbers = network.layers[op.name]
        expected = quantizer.fake_quantize(net._weight(op), net._choices[row]).detach()
        shape = (-1, *[1] * (expected.ndim - 1))
        dequantized = torch.from_numpy(numbers.codes).float() * torch.from_numpy(numbers.scale).float().reshape(shape)
        assert torch.equal(dequantized, expected)


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("arithmetic", ["tflite", "single"])
def test_integers_compute_what_training_computed(name, arithmetic):
    """Fraction of codes that training rounds differently, tensor by tensor; ties of small pools differ by design."""
    net = small(name)
    x = sample_images(64, seed=8)
    for bits, most in ((8, 0.10), (4, 0.15)):
        policy = uniform(net.space, bits, bits)
        net.set_policy(policy)
        trained = record_tensors(net, x)
        evaluator = IntegerEvaluator(lower(net.discretize(policy), arithmetic))
        codes = evaluator.run(evaluator.quantize(x))
        pooled = averaged = False
        for op in operations(net.graph):
            pooled = pooled or op.kind == "avg_pool2d"
            grid = evaluator.program.tensors[op.name].grid
            sums = bits < 8 and op.name in ("fc", "last", "pixel_shuffle", "output")
            if pooled or sums:  # 8-bit sums of 4-bit tensors: one flip moves many
                continue
            real = (codes[op.name].double() - grid.zero_point) * grid.scale
            apart = (real.reshape(trained[op.name].shape) - trained[op.name]).abs() / grid.scale
            averaged = (
                averaged or op.kind == "mean"
            )  # two roundings of sums: one code, more often, also in what reads them
            share = 0.25 if op.kind == "mean" or (averaged and arithmetic == "tflite") else most
            assert float((apart > 0.5).double().mean()) <= share, (bits, op.name)
            assert bits < 8 or float(apart.max()) < 3.5, op.name


def record_tensors(net, x):
    """Returns every tensor of the eval-mode forward pass."""
    tensors = {}
    activate = net._activate

    def recorded(op, value):
        tensors[op.name] = activate(op, value).double()
        return tensors[op.name].float()

    net._activate = recorded
    with torch.no_grad():
        net.eval()(x)
    del net._activate
    return tensors


def test_known_input_grid_is_kept():
    net = supernet_of(MODELS["Residual"]().eval(), input_grid=ActivationGrid(1 / 255, 3, 8))
    net.calibrate([sample_images(8)])
    policy = uniform(net.space, 8, 8)
    grid = net.discretize(policy).grids["input"]
    assert (grid.zero_point, grid.bits) == (3, 8)
    assert grid.scale == pytest.approx(1 / 255, rel=1e-6)
    quantizer = net._activation_quantizer("input")
    joint_gradients(net, sample_images(4), torch.arange(4) % 5)
    assert isinstance(quantizer, UniformActivations)
    assert quantizer.log_steps.grad is None


def test_layers_without_norm_or_with_gamma_zero():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(4)
            self.fc = nn.Linear(4, 2, bias=False)

        def forward(self, x):
            return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))

    model = Net().eval()
    with torch.no_grad():
        model.norm.weight[0], model.norm.weight[1], model.norm.bias[0] = 0.0, -1.0, 0.7
    net = supernet_of(model)
    net.calibrate([sample_images(16)])
    network = net.discretize(uniform(net.space, 8, 8))
    conv = network.layers["conv"]
    assert conv.gain[0] == 0.0
    assert conv.gain[1] < 0
    assert conv.offset[0] == pytest.approx(0.7)
    assert network.layers["fc"].offset.tolist() == [0.0, 0.0]
    expected = model(sample_images(4)).detach()
    found = IntegerEvaluator(lower(network, "single")).scores(sample_images(4))
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)
