"""Codes of integer layers in C are those of the torch operations, and of exact arithmetic on Python's integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search import evaluation, requantization
from ddq_search.evaluation import IntegerEvaluator
from ddq_search.integer.lowering import lower
from ddq_search.policy import uniform
from ddq_search.requantization import Form, serves
from ddq_search.space import build_space
from ddq_search.supernet import Supernet
from ddq_search.trace import trace
from hardware_models.devices import find_device
from tests.networks import Residual

pytestmark = pytest.mark.skipif(requantization._library() is None, reason="no C compiler")


def by_hand(total, multiplier, shift, rounding):
    """gemmlowp's and the single rounding, on integers without bound."""
    if rounding == "single":
        return (total * multiplier + (1 << (30 - shift))) >> (31 - shift)
    total = max(-(2**31), min(2**31 - 1, total << max(shift, 0)))
    high = (total * multiplier + 2**30) >> 31
    right = max(-shift, 0)
    remainder, half = high & ((1 << right) - 1), (1 << right) >> 1
    threshold = half + (1 if high < 0 else 0)
    return (high >> right) + (1 if right and remainder >= threshold and remainder > 0 else 0)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), rounding=st.sampled_from(["single", "double"]),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]), large=st.booleans(),
    shifts=st.sampled_from([(-12, 0), (-3, 4), (-31, -20)]),
)  # fmt: skip
def test_codes_are_exact(seed, rounding, layout, large, shifts):
    torch.manual_seed(seed)
    channels = 3
    sums = torch.randint(-(2**24) + 1, 2**24, (2, channels, 5, 4)).float().contiguous(memory_format=layout)
    sums = sums if large else (sums / 2**14).round()
    bias = torch.randint(-(2**20), 2**20, (channels,))
    multiplier = torch.randint(2**30, 2**31, (channels,))
    shift = torch.randint(shifts[0], shifts[1] + 1, (channels,))
    form = Form.of(bias, multiplier, shift, rounding, 7, 3, 250)
    found = form.codes(sums)
    assert found.dtype == torch.uint8
    for index in np.ndindex(*sums.shape):
        c = index[1]
        total = int(sums[index]) + int(bias[c])
        expected = by_hand(total, int(multiplier[c]), int(shift[c]), rounding) + 7
        assert int(found[index]) == max(3, min(250, expected))
    view = (1, -1, 1, 1)
    plain = evaluation._requantized(
        sums.to(torch.int64) + bias.view(view), multiplier.view(view), shift.view(view), rounding
    )
    assert torch.equal(found, (plain + 7).clamp(3, 250).to(torch.uint8))


@pytest.mark.parametrize("device", ["cortex-a53-rpi3-lowbit-neon", "cortex-m7-stm32h743-cmsis-nn"])
def test_a_network_computes_the_same_without_it(device, monkeypatch):
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.rand(70, 3, 9, 9)
    graph, cost = trace(model, x[:2]), find_device(device)
    net = Supernet(model, graph, build_space(graph, cost))
    net.calibrate([x])
    program = lower(net.eval().discretize(uniform(net.space, 4, 8)), cost.arithmetic)
    evaluator = IntegerEvaluator(program)
    codes = evaluator.quantize(x)
    fast, tensors = evaluator.output_codes(codes), evaluator.run(codes)
    served = []
    monkeypatch.setattr(evaluation, "serves", lambda *tensors: bool(served.append(tensors)))
    assert torch.equal(evaluator.output_codes(codes), fast)
    plain = evaluator.run(codes)
    assert all(torch.equal(plain[name], tensors[name]) for name in plain)
    assert any(len(given) == 2 for given in served), "the sum of the network was one of them"


def test_what_it_serves():
    image = torch.zeros(2, 3, 4, 5)
    assert serves(image)
    assert serves(image.contiguous(memory_format=torch.channels_last))
    assert not serves(image.double())
    assert not serves(image[:, :, ::2])
    assert not serves(image[:0])
    assert not serves(image, image.contiguous(memory_format=torch.channels_last))
