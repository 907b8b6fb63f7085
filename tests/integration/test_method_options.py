"""The choices that the papers leave, each from the configuration to a front within its budgets."""

from __future__ import annotations

import pytest
import torch

from ddq_search.cost import FLASH, PEAK_RAM
from ddq_search.lagrangian import AugmentedLagrangian
from ddq_search.precision import FLOAT_BITS
from ddq_search.quantizers import dq, dq_power, dq_range
from ddq_search.quantizers.contract import WeightQuantizer
from ddq_search.quantizers.levels import LearnedWeights
from ddq_search.quantizers.relaxations import Softmax
from ddq_search.size_constraints import SizeModel
from ddq_search.supernet import Supernet
from tests.integration.test_methods import check, run

ONE = {"search.points": 1, "training.float_epochs": 1}


def weights_of(front):
    net = next(p for p in front.points if p.policy.name == front.best).net
    return [quantizer for quantizer in net.tensor_quantizers() if isinstance(quantizer, WeightQuantizer)]


def spied(monkeypatch, owner, name):
    """Returns the list that the calls' positional arguments (without ``self``) go to."""
    seen, real = [], getattr(owner, name)

    def spy(self, *arguments, **keywords):
        seen.append(arguments)
        return real(self, *arguments, **keywords)

    monkeypatch.setattr(owner, name, spy)
    return seen


def test_ddq_as_the_paper_has_it(tmp_path, monkeypatch):
    """A free vector of levels, gates thresholded and differentiated through Z_U, correction, a two-sided penalty."""
    drawn = spied(monkeypatch, Supernet, "sample_from")
    options = {
        "gate_gradient": "through_z", "nearest": "raw", "window": "levels", "correction": 0.1, "mirrored": False,
        "scale_gradient": "levels",
    }  # fmt: skip
    changes = {f"quantizers.{name}": value for name, value in options.items()}
    search = {"weight_quantizers": ["learned"], "gates": "thresholded", "constraint": "squared-gap", "penalty": 0.1}
    changes |= {f"search.{name}": value for name, value in search.items()}
    problem, front = run(tmp_path, **{**ONE, **changes, "budgets.flash": "70%", "search.points": 2})
    check(problem, front)
    for quantizer in weights_of(front):
        assert isinstance(quantizer, LearnedWeights)
        assert {name: getattr(quantizer, name) for name in options} == options
        assert len(quantizer.vector) == 2**quantizer.bits
    assert drawn
    assert all(uniform is None for _, uniform, _ in drawn)


@pytest.mark.parametrize(("option", "coldest"), [({}, 0.2), ({"search.coldest": 0.5}, 0.5)])
def test_sampled_policies_cool(tmp_path, monkeypatch, option, coldest):
    drawn = spied(monkeypatch, Supernet, "sample_from")
    run(tmp_path, **ONE, **option)
    temperatures = [temperature for _, _, temperature in drawn]
    assert temperatures[0] == 1
    assert temperatures == sorted(temperatures, reverse=True)
    assert temperatures[-1] == pytest.approx(coldest ** (1 - 1 / len(temperatures)))


@pytest.mark.parametrize(
    ("family", "range_class"),
    [
        ("dq-u1", dq_range.BitsAndStep), ("dq-u2", dq_range.BitsAndLargest), ("dq-p3", dq_power.SmallestAndLargest),
        ("dq-p1", dq_power.BitsAndSmallestPower), ("dq-p2", dq_power.BitsAndLargestPower),
    ],
)  # fmt: skip
def test_dq_in_every_parametrisation(tmp_path, family, range_class):
    problem, front = run(tmp_path, **ONE, **{"search.method": "dq", "search.weight_quantizers": [family]})
    check(problem, front)
    assert all(type(quantizer.range) is range_class for quantizer in weights_of(front))


@pytest.mark.parametrize(("device", "kind"), [("exact-widths-sum", "sum"), ("exact-widths-max", "max")])
def test_dq_under_the_papers_constraints(tmp_path, monkeypatch, device, kind):
    """(8a) with (8b) or (8c), the squared hinge with λ = 0.1 in KB, steps of powers of two."""
    totals = spied(monkeypatch, AugmentedLagrangian, "total")
    limits = {"sum": 0.15, "max": 0.07}  # KiB; the hidden layers have 128 and 128 activations
    changes = {
        "search.method": "dq", "search.constraint": "squared-hinge", "search.penalty": 0.1, "device.profile": device,
        "budgets.flash": "50%", "budgets.peak_ram": limits[kind], "quantizers.power_of_two_steps": True,
    }  # fmt: skip
    problem, front = run(tmp_path, **ONE, **changes)
    point = next(p for p in front.points if p.policy.name == front.best)
    price = problem.pricing.price(point.policy.bits)
    sizes = SizeModel(problem.graph, problem.space)
    bits = sizes.weights.new_tensor([point.policy.bits[v.name] for v in problem.space.variables])
    found = sizes.sizes(bits)
    activations = found.activations_kb if kind == "sum" else found.largest_activation_kb
    assert price[PEAK_RAM] == activations * 1024
    assert activations <= limits[kind]
    assert price[FLASH] <= problem.budgets[FLASH]
    assert totals
    assert all(quantizer.power_of_two_steps for quantizer in weights_of(front))
    assert all(isinstance(quantizer, dq.DqWeights) for quantizer in weights_of(front))
    assert FLOAT_BITS not in point.policy.bits.values()


def test_the_temperature_of_strategies(tmp_path, monkeypatch):
    made = []
    real = Softmax.__init__
    monkeypatch.setattr(
        Softmax,
        "__init__",
        lambda self, *arguments, **keywords: (made.append(self), real(self, *arguments, **keywords))[1],
    )
    problem, front = run(tmp_path, **ONE, **{"search.method": "dqss", "search.coldest": 0.7})
    check(problem, front)
    assert {softmax.temperature for softmax in made[1:]} == {0.7}  # the first was trained, the others read from it


def test_fixed_precisions_with_learned_levels(tmp_path, monkeypatch):
    """DDQ at fixed bits: nothing is searched, the level vector is learned."""
    started = []
    real = LearnedWeights.fit_levels
    monkeypatch.setattr(
        LearnedWeights, "fit_levels", lambda self, x: (real(self, x), started.append(self.vector.detach().clone()))[0]
    )
    changes = {
        "search.method": "lsq-uniform", "search.weight_quantizers": ["learned"], "space.weight_bits": [4],
        "space.activation_bits": [8], "budgets.flash": "100%",
    }  # fmt: skip
    problem, front = run(tmp_path, **{**ONE, **changes})
    check(problem, front)
    for quantizer in weights_of(front):
        assert all(
            not torch.equal(quantizer.vector, start) for start in started if start.shape == quantizer.vector.shape
        )
