"""Options of quantizer families, from the configuration to the quantizer; what belongs to nobody is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddq_search.config import QuantizerConfig, load_config
from ddq_search.errors import ConfigError
from ddq_search.methods import quantizers_of
from ddq_search.quantizers.choice_of_families import with_options
from ddq_search.quantizers.conformance import LAWS, problem_of, subjects_of
from ddq_search.quantizers.registry import families
from ddq_search.space import build_space
from ddq_search.supernet import Supernet
from ddq_search.trace import trace
from tests.networks import MODELS, sample_images
from tests.test_quantizers_merging import gaussian
from tests.toys import AnyDevice

VALUES = {
    "gate_gradient": ["through_z", "constant_z"],
    "nearest": ["raw"],
    "window": ["half_step", "everywhere"],
    "shared_scale": [False],
    "scale_gradient": ["levels", "step"],
    "mirrored": [False],
    "correction": [0.25],
    "power_of_two_steps": [True],
    "clips_gradients": [False],
    "further_points": [2],
}
"""Values of every option, other than the default of at least one family."""

BROKEN = {
    ("gate_gradient", "through_z"): {"gates_feel_their_neighbours"},
    ("gate_gradient", "constant_z"): {"gates_feel_their_neighbours"},
    ("correction", 0.25): {"gates_feel_their_neighbours"},
    ("window", "everywhere"): {"input_window"},
    ("nearest", "raw"): {"a_subset_is_taken_over"},
    ("further_points", 2): {"fixed_points"},
}
"""Laws that an option breaks: gates feel something else, the window is open, fine levels are fewer.

The law of fixed points changes one weight, which moves the mean magnitude by more than three points of 8 bits resolve.
"""


def config_of(*, weights=(), activations=(), method="ddq", **options):
    settings = {f"quantizers.{name}": value for name, value in options.items()}
    search = {"weight_quantizers": list(weights), "activation_quantizers": list(activations), "method": method}
    return load_config(None, {**settings, **{f"search.{name}": value for name, value in search.items()}})


def test_every_option_of_the_configuration_belongs_to_a_family_and_is_checked_here():
    have = {option for family in families().values() for option in family.options}
    assert have == set(QuantizerConfig.model_fields) == set(VALUES)
    for family in families().values():
        for option in family.options:
            assert any(hasattr(one, option) for one in (family.weights, family.activations)), (family.name, option)


def test_the_parametrisation_that_mixed_precision_dnns_recommends_is_the_default():
    found = quantizers_of(config_of(method="dq"))
    assert (found.weights, found.activations) == (("dq-u3",), ("dq-u3",))


@pytest.mark.parametrize("option", VALUES)
def test_an_option_reaches_the_quantizers_of_the_families_that_have_it(option):
    for name, family in families().items():
        if option not in family.options:
            continue
        for value in VALUES[option]:
            kinds = {"weights": (name,)} if family.weights else {"activations": (name,)}
            method = "dq" if name.startswith("dq-") else "ddq"
            found = quantizers_of(config_of(**kinds, method=method, **{option: value}))
            quantizer = found.for_weights((2, 4, 8), 3)
            assert getattr(quantizer, option) == value
            assert isinstance(quantizer, family.weights)
            assert getattr(
                quantizers_of(config_of(**kinds, method=method)).for_weights((2, 4, 8), 3), option
            ) == getattr(family.weights, option)


def test_options_that_decide_what_is_learned_do_so():
    free = quantizers_of(config_of(weights=["learned"], mirrored=False)).for_weights((2, 4), 3)
    assert free.vector.shape == (16,)
    own = quantizers_of(config_of(weights=["averaged"], shared_scale=False)).for_weights((2, 4), 3)
    assert own.log_scales.shape == (2, 3)
    weight = gaussian(3, 200)
    for settled in (False, True):
        dq = quantizers_of(config_of(method="dq", power_of_two_steps=True)).for_weights((2, 4), 3)
        dq.calibrate(weight)
        dq.inferring = not settled
        levels = dq.fake_quantize(weight, 1).detach().unique()
        exponent = levels[levels > 0].min().log2()
        assert exponent == exponent.round()


def test_clipping_of_gradients_is_an_option():
    weight, grad = gaussian(3, 200), 1000 * gaussian(3, 200, seed=1)
    found = {}
    for clips in (True, False):
        dq = quantizers_of(config_of(method="dq", clips_gradients=clips)).for_weights((2, 4), 3)
        dq.calibrate(weight)
        dq.inferring = True
        dq.fake_quantize(weight, 1).backward(grad)
        dq.limit_gradients()
        found[clips] = abs(float(dq.range.log_step.grad))
    assert found[True] == pytest.approx(1.0)  # a bound of d on the gradient of d, for log d
    assert found[False] > 100


def test_a_correction_takes_uniform_quantizers_out_of_fused_mixtures_and_compiled_graphs():
    torch.manual_seed(0)
    model = MODELS["Residual"]().eval()
    graph = trace(model, sample_images(2))
    weight, grad = gaussian(3, 200), gaussian(3, 200, seed=1)
    shares = torch.tensor([0.3, 0.7])
    for correction, plain in ((None, True), (0.0, True), (0.25, False)):
        found = quantizers_of(config_of(**({} if correction is None else {"correction": correction})))
        quantizer = found.for_weights((2, 4), 3)
        assert quantizer.plain == plain
        assert Supernet(model, graph, build_space(graph, AnyDevice()), quantizers=found).traceable == plain
        quantizer.calibrate(weight)
        mixed, parts = quantizer.mix(weight, shares), [quantizer.fake_quantize(weight, k) for k in (0, 1)]
        torch.testing.assert_close(mixed, 0.3 * parts[0] + 0.7 * parts[1])
        one, two = (
            torch.autograd.grad(out, quantizer.log_steps, grad)[0] for out in (mixed, 0.3 * parts[0] + 0.7 * parts[1])
        )
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": "half_step"}, "among uniform has the option quantizers.window; it belongs to averaged"),
        ({"weights": ["averaged"], "mirrored": False}, "averaged, uniform has .*mirrored; it belongs to learned"),
        ({"weights": ["learned"], "power_of_two_steps": True}, "it belongs to dq-u3, dq-u1, dq-u2 "),
        ({"weights": ["averaged"], "gate_gradient": "through_z", "method": "edmips"}, "method 'edmips' has no gates"),
        ({"window": "open"}, "'quantizers.window'.*'levels', 'half_step' or 'everywhere'.*got 'open'"),
        ({"correction": -1.0}, "'quantizers.correction'.*greater than or equal to 0"),
        ({"levels": "averaged"}, "unknown configuration key 'quantizers.levels'; known here: gate_gradient, nearest"),
        ({"further_points": 2}, "among uniform has the option quantizers.further_points; it belongs to multipoint "),
        ({"weights": ["multipoint"], "further_points": 0}, "'quantizers.further_points'.*greater than or equal to 1"),
        ({"method": "dq", "weights": ["lsq"]}, "one family of weights .* not lsq; .*dq-u3, .*dq-p3, dq-p1, dq-p2"),
        ({"method": "dq", "activations": ["dq-u1", "dq-u2"]}, "one family of activations .* not dq-u1, dq-u2; "),
    ],
)  # fmt: skip
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        quantizers_of(config_of(**arguments))


def test_options_at_their_defaults_leave_older_runs_alone():
    plain = load_config(None, {})
    assert not plain.asked().keys() & {"quantizers"}
    assert not plain.asked()["search"].keys() & {"gates", "constraint", "coldest"}
    for key, value in (
        ("quantizers.correction", 0.0), ("quantizers.further_points", 1), ("search.gates", "thresholded"),
        ("search.constraint", "squared-gap"),
    ):  # fmt: skip
        assert load_config(None, {key: value}).fingerprint() != plain.fingerprint()


# -- the laws of all families hold with every option --------------------------------------------------------------

ALL = [
    pytest.param(
        name, option, value,
        marks=() if name == "uniform" or (name == "learned" and value in ("through_z", "raw")) else pytest.mark.slow,
    )
    for name, family in families().items()
    for option in family.options
    for value in VALUES[option]
]  # fmt: skip


@pytest.mark.parametrize(("name", "option", "value"), ALL)
def test_laws_hold_with_every_option_but_those_it_is_there_to_break(name, option, value):
    family = families()[name]
    makers = {
        kind: with_options(getattr(family, kind), {option: value}) if getattr(family, kind) else None
        for kind in ("weights", "activations")
    }
    points = value if option == "further_points" else family.points
    changed, broken = replace(family, **makers, points=points), set()
    for subject in subjects_of(changed):
        for law in LAWS:
            if law not in family.exceptions and problem_of(LAWS[law], subject):
                broken.add(law)
    expected = BROKEN.get((option, value), set())
    assert broken == (expected if name != "averaged" or option != "nearest" else set())  # its fine levels are rebuilt
