"""Channels that do not depend on their input: weights of zeros, or a normalisation with γ = 0, in every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.arithmetic import quantize_multiplier
from ddq_search.evaluation import IntegerEvaluator
from ddq_search.export.onnx import export_onnx
from ddq_search.integer import executor
from ddq_search.integer.lowering import lower
from ddq_search.integer.program import INT32_MAX
from ddq_search.integer.serialize import save_program
from ddq_search.integer.weight_codes import drowned
from ddq_search.policy import uniform
from ddq_search.quantizers.choice_of_families import Quantizers
from ddq_search.quantizers.registry import families
from ddq_search.space import build_space
from ddq_search.supernet import Supernet
from ddq_search.trace import trace
from ddq_search.verify import verify_program
from tests.c_projects import CompiledRuntime, random_codes, runtime_sources, written
from tests.networks import Residual, sample_images
from tests.test_integer_lowering import layer_of
from tests.test_integer_weights import with_weights
from tests.toys import AnyDevice

FULL = [-5, 3, 4, 9]
"""A codebook of 2 bits without a zero, all of whose levels other channels use."""


def constant_codes(codebook, level, arithmetic):
    """Outputs of a dead channel beside a live one that uses every level, for extreme and random inputs."""
    network = with_weights([[0, 0, 0, 0], [0, 1, 2, 3]], codebook=codebook, gain=[0.0, 1.0], offset=[0.25 * level, 0.0])
    program = lower(network, arithmetic)
    codes = np.random.default_rng(0).integers(0, 256, (200, 4)).astype(np.uint8)
    codes[:4] = np.array([[0] * 4, [255] * 4, [0, 255, 0, 255], [255, 0, 255, 0]])
    expected = executor.run(program, codes)["fc"]
    np.testing.assert_array_equal(IntegerEvaluator(program).run(codes)["fc"].numpy(), expected)
    return expected[:, 0], layer_of(network, arithmetic)


@pytest.mark.parametrize("arithmetic", ["tflite", "single"])
@pytest.mark.parametrize("level", [0, 1, -10, 245, 400])
def test_a_full_codebook_without_zero_still_gives_a_constant(level, arithmetic):
    found, step = constant_codes(FULL, level, arithmetic)
    assert set(found.tolist()) == {min(10 + level, 255)}  # the output's zero point is 10
    assert step.weights.tolist() == [[3, 3, 3, 3], [-5, 3, 4, 9]]


def test_mirrored_levels_alternate_and_room_is_used_for_a_zero():
    _, step = constant_codes([-9, -4, 4, 9], 7, "single")
    assert step.weights[0].tolist() in ([-4, 4, -4, 4], [4, -4, 4, -4])
    assert abs(int(step.bias[0])) == 2**30  # 4 · 4 · 251 leaves room below 2^31 for one bit less
    _, step = constant_codes([-9, -9, 4, 9], 7, "single")
    assert step.weights[0].tolist() == [0, 0, 0, 0]


@settings(max_examples=300)
@given(level=st.integers(-(2**15), 2**15), products=st.integers(1, INT32_MAX), share=st.floats(-1, 1))
def test_no_input_moves_a_drowned_channel_further_than_stated(level, products, share):
    bias, factor = drowned(level, products, INT32_MAX)
    assert abs(bias) + products <= INT32_MAX or abs(bias) <= 1
    multiplier, shift = quantize_multiplier(factor)
    assert multiplier * 2.0 ** (shift - 31) == factor  # nothing is lost in fixed point
    if 2 * products * factor < 1:
        assert abs((bias + round(share * products)) * factor - level) < 0.5


# -- whole networks -----------------------------------------------------------------------------------------------


def dead_network(name, bits):
    """A trained-looking network with two channels of γ = 0 and two all-zero rows of a folded convolution."""
    torch.manual_seed(0)
    model = Residual().eval()
    with torch.no_grad():
        for norm in (model.bn1, model.bn2):
            norm.weight.copy_(torch.rand_like(norm.weight) + 0.5)
            norm.bias.copy_(torch.randn_like(norm.bias))
        model.bn1.weight[:2] = 0
        model.short.weight[1:3] = 0
        model.short.bias[1:3] = torch.tensor([0.7, -0.4])
    graph = trace(model, sample_images(2))
    net = Supernet(model, graph, build_space(graph, AnyDevice()), quantizers=Quantizers((name,))).eval()
    net.calibrate([sample_images(8)])
    return model, net, net.discretize(uniform(net.space, bits, 8))


def constants(model, network):
    """Real values that the dead channels have, rounded to the codes of their tensors: ``{tensor: {channel: code}}``."""
    found = {}
    for tensor, channels, values in (
        ("conv1", (0, 1), model.bn1.bias.detach().clamp_min(0)),
        ("short", (1, 2), model.short.bias.detach()),
    ):
        grid = network.grids[tensor]
        codes = (values.double() / grid.scale).numpy()
        found[tensor] = {c: int(np.clip(np.floor(codes[c] + 0.5) + grid.zero_point, 0, 255)) for c in channels}
    return found


WEIGHT_FAMILIES = [name for name, family in families().items() if family.weights]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", WEIGHT_FAMILIES)
def test_dead_channels_export_as_their_constants(name, bits):
    model, net, network = dead_network(name, bits)
    images = sample_images(8, seed=3)
    for arithmetic in ("tflite", "single"):
        program = lower(network, arithmetic)
        evaluator = IntegerEvaluator(program)
        codes = evaluator.quantize(images)
        found = executor.run(program, codes.numpy())
        for tensor, value in evaluator.run(codes).items():
            np.testing.assert_array_equal(value.numpy(), found[tensor], err_msg=tensor)
        expected = constants(model, network)
        if name.startswith("dq-p"):  # its levels have no zero: weights of 0 are trained as the smallest level
            del expected["short"]
        for tensor, channels in expected.items():
            for channel, code in channels.items():
                assert set(np.unique(found[tensor][:, channel]).tolist()) == {code}, (tensor, channel)
    net.set_policy(uniform(net.space, bits, 8))
    with torch.no_grad():
        trained = net(images)
    assert float((evaluator.scores(images) - trained).abs().max() / program.output.grid.scale) <= 3


@pytest.mark.parametrize("name", ["averaged", "learned", "multipoint"])
def test_dead_channels_keep_the_proof(tmp_path, name):
    pytest.importorskip("onnxruntime")
    _, _, network = dead_network(name, 2)
    program = lower(network, "single")
    save_program(program, tmp_path)
    export_onnx(program, tmp_path / "model.onnx")
    assert verify_program(network, tmp_path, sample_images(16).numpy(), strict=True).passed


def test_dead_channels_run_in_c(tmp_path):
    _, _, network = dead_network("learned", 2)
    program = lower(network, "single")
    runtime = CompiledRuntime(tmp_path, runtime_sources(portable_only=True))
    inputs = random_codes(program, 3, 0)
    found = runtime.codes(written(network, program, tmp_path / "c"), program, inputs)
    expected = executor.run(program, inputs)
    for tensor, value in found.items():
        np.testing.assert_array_equal(value, expected[tensor], err_msg=tensor)
