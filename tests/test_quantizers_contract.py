"""Every family keeps the contract, the suite finds families that do not, and what is exported is what was evaluated."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ddq_search.evaluation import IntegerEvaluator
from ddq_search.integer import executor
from ddq_search.integer.lowering import lower
from ddq_search.policy import uniform
from ddq_search.quantizers.choice_of_families import Quantizers
from ddq_search.quantizers.conformance import LAWS, check_family, problem_of, subjects_of
from ddq_search.quantizers.registry import Family, families
from ddq_search.quantizers.straight_through import Grid
from ddq_search.quantizers.uniform import UniformActivations, UniformWeights
from ddq_search.space import build_space
from ddq_search.supernet import Supernet
from ddq_search.trace import trace
from tests.networks import MODELS, sample_images
from tests.toys import AnyDevice

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", families())
def test_every_family_keeps_the_contract(name):
    check_family(families()[name])


# -- the suite finds what is wrong --------------------------------------------------------------------------------


class LongCodes(UniformWeights):
    def quantize(self, x, choice):
        return super().quantize(x, choice).long()


class WideCodes(UniformWeights):
    def __init__(self, candidates, rows):
        super().__init__(candidates, rows)
        self.grids = [grid and Grid(grid.low - 1, grid.high, 0) for grid in self.grids]


class OtherLevels(UniformWeights):
    def levels(self, x, choice):
        return super().levels(x, choice) * 1.001


class FloorsValues(UniformWeights):
    def quantize(self, x, choice):
        return super().quantize(x - self._half(x, choice), choice)

    def fake_quantize(self, x, choice, cumulative=None):
        nearest = super().fake_quantize(x, choice, cumulative)
        if self.grids[choice] is None:
            return nearest
        return nearest + (self.quantize(x, choice) * self._half(x, choice) / 0.49 - nearest).detach()

    def _half(self, x, choice):
        return 0.49 * self.steps(x)[choice].detach().reshape(-1, *[1] * (x.ndim - 1))


class WorseWithBits(UniformWeights):
    def calibrate(self, weight):
        super().calibrate(weight)
        self.log_steps.data[-1] = self.log_steps.data[0]


class OtherScale(UniformWeights):
    def numbers(self, weight, choice):
        found = super().numbers(weight, choice)
        return replace(found, scale=found.scale * 1.0001)


class NoZero(UniformActivations):
    def calibrate(self, sample):
        super().calibrate(sample)
        self.zero_points.fill_(1)
        self._set_grids()


class ZeroSteps(UniformWeights):
    def calibrate(self, weight):
        super().calibrate(weight)
        self.log_steps.data += weight.flatten(1).abs().amax(1).sign().log()


class OwnGrid(UniformActivations):
    def set_grid(self, scale, zero_point):
        super().set_grid(scale, 0)


class ForgetfulState(UniformActivations):
    def _load_from_state_dict(self, *args):
        nn.Module._load_from_state_dict(self, *args)


class TakesByPosition(UniformWeights):
    def take(self, other):
        self.log_steps.data.copy_(other.log_steps[: len(self.candidates)])


class CodesOfFloats(UniformWeights):
    def quantize(self, x, choice):
        return torch.zeros_like(x, dtype=torch.int32) if self.grids[choice] is None else super().quantize(x, choice)


class LearnsNothing(UniformWeights):
    def fake_quantize(self, x, choice, cumulative=None):
        return x + (super().fake_quantize(x, choice, cumulative) - x).detach() * 1.0


class NoWindow(UniformWeights):
    def fake_quantize(self, x, choice, cumulative=None):
        found = super().fake_quantize(x.detach(), choice, cumulative)
        return found + (x - x.detach())


class DeafGates(UniformWeights):
    def fake_quantize(self, x, choice, cumulative=None):
        found = super().fake_quantize(x, choice)
        return found if cumulative is None else found + 0 * cumulative.sum()


class EqualMixture(UniformWeights):
    def mix(self, x, shares):
        return super().mix(x, 0 * shares + 1 / len(shares))


class SmallerSums(UniformActivations):
    def fake_quantize(self, x, choice, cumulative=None):
        found = super().fake_quantize(x, choice, cumulative)
        return found if cumulative is None or self.gradient_share == 1 else found / 2


class BlindMixture(UniformWeights):
    def mix(self, x, shares):
        return super().mix(x.detach(), shares)


BROKEN = {
    "kinds_and_shapes": LongCodes,
    "codes_fit_the_bitwidth": WideCodes,
    "values_are_levels": OtherLevels,
    "fixed_points": FloorsValues,
    "error_falls_with_bits": WorseWithBits,
    "deployed_integers_are_the_values": OtherScale,
    "zero_is_exact": NoZero,
    "odd_samples_are_safe": ZeroSteps,
    "a_known_grid_is_kept": OwnGrid,
    "state_is_saved_and_loaded": ForgetfulState,
    "a_subset_is_taken_over": TakesByPosition,
    "float32_is_left_alone": CodesOfFloats,
    "gradients_are_finite": LearnsNothing,
    "input_window": NoWindow,
    "gates_feel_their_neighbours": DeafGates,
    "one_hot_mixture": EqualMixture,
    "mixtures_reach_everything": BlindMixture,
    "a_share_of_the_batch_scales_up": SmallerSums,
}


def family_of(cls, **facts):
    role = "weights" if issubclass(cls, UniformWeights) else "activations"
    return Family(cls.__name__, "a broken one", **{role: cls}, **facts)


@pytest.mark.parametrize("law", LAWS)
def test_a_family_that_breaks_a_law_is_found(law):
    found = family_of(BROKEN[law])
    problems = [problem_of(LAWS[law], subject) for subject in subjects_of(found)]
    assert any(problem.startswith(f"quantizer family {found.name!r}, ") and law in problem for problem in problems)
    with pytest.raises(AssertionError, match=f"quantizer family {found.name!r}, "):
        check_family(found)


def test_exceptions_need_a_reason_a_law_and_a_fault():
    stated = {"error_falls_with_bits": "8 bits have the step of 2", "fixed_points": "one value moves the mean"}
    check_family(replace(family_of(WorseWithBits), exceptions=stated))
    for exceptions, problem in (
        ({"fixed_points": "it rounds down"}, "'fixed_points' holds; remove it"),
        ({"fixed_points": " "}, "has no reason"),
        ({"zero_is_exact": "no need"}, "allows no exception"),
    ):
        with pytest.raises(AssertionError, match=problem):
            check_family(replace(family_of(UniformWeights), exceptions=exceptions))


def test_a_family_says_what_it_is():
    for wrong, problem in (
        (Family("", "ours", UniformWeights), "no name"),
        (Family("x", "", UniformWeights), "no source"),
        (Family("x", "ours"), "neither weights nor activations"),
        (Family("x", "ours", UniformWeights, codebook=True), "codes .* leave 0"),
        (Family("x", "ours", UniformWeights, points=1), "Family.points says otherwise"),
        (Family("x", "ours", activations=UniformActivations, uniform_activations=False), "must raise PolicyError"),
    ):
        with pytest.raises(AssertionError, match=problem):
            check_family(wrong)


def test_the_documented_family_keeps_the_contract():
    text = (Path(__file__).parent.parent / "docs" / "own-quantizer.md").read_text(encoding="utf-8")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)[:2]:
        exec(block, names)
    names["test_my_family"]()
    weight = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    quantizer = names["FAMILY"].weights((4,), 2)
    quantizer.calibrate(weight)
    assert float(quantizer.levels(weight, 0).max()) == pytest.approx(3.0, rel=0.05)


# -- exported integers equal evaluated values ---------------------------------------------------------------------


def quantizers_of(name):
    """The family for weights and activations; the default one where it has no deployable quantizer."""
    family = families()[name]
    return Quantizers(
        (name if family.weights else "uniform",),
        (name if family.activations and family.uniform_activations else "uniform",),
    )


@pytest.mark.parametrize("name", families())
@pytest.mark.parametrize("bits", [(4, 8), *(pytest.param(b, marks=pytest.mark.slow) for b in [(2, 8), (4, 4), (8, 8)])])
def test_exported_integers_equal_evaluated_values(name, bits):
    torch.manual_seed(0)
    model = MODELS["Residual"]().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.mul_(torch.where(torch.rand_like(module.weight) < 0.3, -1.0, 1.0))
    images = sample_images(8)
    graph = trace(model, images[:2])
    chosen = quantizers_of(name)
    net = Supernet(model, graph, build_space(graph, AnyDevice()), quantizers=chosen).eval()
    net.calibrate([images])
    policy = uniform(net.space, *bits)
    network = net.discretize(policy)
    for op_name, layer in network.layers.items():
        assert (layer.codebook is not None) == chosen.codebook, op_name
    assert any((layer.gain < 0).any() for layer in network.layers.values())
    program = lower(network, "tflite")
    evaluator = IntegerEvaluator(program)
    codes = evaluator.quantize(images)
    found = evaluator.run(codes)
    for by_code in (False, True):
        for tensor, expected in executor.run(program, codes.numpy(), by_code=by_code).items():
            np.testing.assert_array_equal(found[tensor].numpy(), expected, err_msg=tensor)
    net.set_policy(policy)
    with torch.no_grad():
        trained = net(images)
    apart = (evaluator.scores(images) - trained).abs().max() / program.output.grid.scale
    assert float(apart) <= (3 if bits[1] == 8 else 8)  # rounding alone: one flip of 4 bits moves sums of 8 bits
