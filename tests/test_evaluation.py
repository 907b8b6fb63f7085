"""Evaluation mode and the reference executor agree on every code of every tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.errors import VerificationError
from ddq_search.evaluation import IntegerEvaluator
from ddq_search.integer import executor
from ddq_search.integer.lowering import lower, quantize_input
from tests.networks import MODELS, float_tensors, random_network, sample_images


def assert_equal_everywhere(name, seed, arithmetic, bits):
    network, _ = random_network(name, seed, bits)
    program = lower(network, arithmetic)
    codes = quantize_input(sample_images(3, seed=seed + 1).numpy() * 1.5, program.input.grid)
    expected = executor.run(program, codes)
    found = IntegerEvaluator(program).run(codes)
    assert list(expected) == list(found) == [step.name for step in program.steps]
    for tensor, value in expected.items():
        np.testing.assert_array_equal(found[tensor].numpy(), value, err_msg=tensor)
        assert value.shape[1:] == program.tensors[tensor].shape


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    seed=st.integers(0, 50),
    arithmetic=st.sampled_from(["tflite", "single"]),
    choices=st.randoms(use_true_random=False),
)
def test_random_networks_and_policies_agree_on_every_code(name, seed, arithmetic, choices):
    assert_equal_everywhere(name, seed, arithmetic, lambda _: choices.choice([2, 3, 4, 5, 8]))


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("arithmetic", ["tflite", "single"])
def test_eight_bit_integers_stay_close_to_the_float_model(name, arithmetic):
    network, model = random_network(name, 3)
    images = sample_images(8, seed=3)
    with torch.no_grad():
        expected = model(images)
        rounded_weights = float_tensors(network.graph, network.layers, images)["output"]
    scores = IntegerEvaluator(lower(network, arithmetic)).scores(images)
    span = float(expected.max() - expected.min())
    assert float((rounded_weights - expected).abs().max()) < 0.03 * span
    assert float((scores - expected).abs().max()) < 0.05 * span


def test_wide_layers_leave_float32():
    network, _ = random_network("Residual", 0)
    program = lower(network, "single")
    evaluator = IntegerEvaluator(program)
    assert "fc" in evaluator.float32_layers
    assert evaluator._weights["fc"].dtype == torch.float32
    fc = next(step for step in program.steps if step.name == "fc")
    fc.bias[0] = 2**24
    assert "fc" not in IntegerEvaluator(program).float32_layers
    codes = quantize_input(sample_images(2).numpy(), program.input.grid)
    np.testing.assert_array_equal(
        IntegerEvaluator(program).run(codes)["fc"].numpy(), executor.run(program, codes)["fc"]
    )


def test_images_and_their_codes_give_the_same_scores():
    network, _ = random_network("Mobile", 1)
    evaluator = IntegerEvaluator(lower(network, "tflite"))
    images = sample_images(4)
    codes = quantize_input(images.numpy(), evaluator.program.input.grid)
    assert torch.equal(evaluator.scores(images), evaluator.scores(codes))
    assert torch.equal(evaluator.quantize(images), torch.from_numpy(codes))


def test_scores_do_not_depend_on_the_global_precision_setting():
    network, _ = random_network("Residual", 1)
    evaluator = IntegerEvaluator(lower(network, "tflite"))
    expected = evaluator.scores(sample_images(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(evaluator.scores(sample_images(2)), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("codes", [np.zeros((1, 3, 4, 4), np.uint8), np.zeros((1, 3, 9, 9), np.float32)])
def test_inputs_that_do_not_fit_are_refused(codes):
    network, _ = random_network("Residual", 0)
    with pytest.raises(VerificationError, match="integer codes of shape"):
        IntegerEvaluator(lower(network, "single")).run(codes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", sorted(MODELS))
def test_an_accelerator_computes_the_same_codes(name):
    network, _ = random_network(name, 2, lambda variable: 4 if "conv" in variable else 8)
    program = lower(network, "tflite")
    codes = quantize_input(sample_images(4).numpy(), program.input.grid)
    expected = executor.run(program, codes)
    for tensor, value in IntegerEvaluator(program, "cuda").run(codes).items():
        np.testing.assert_array_equal(value.cpu().numpy(), expected[tensor], err_msg=tensor)
