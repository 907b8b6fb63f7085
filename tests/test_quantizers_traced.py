"""What the compiler sees is what runs eagerly: values, gradients, and one graph for every choice."""

from __future__ import annotations

import pytest
import torch

from ddq_search.precision import activation_code_range, weight_code_range
from ddq_search.quantizers import fused
from ddq_search.quantizers.straight_through import Estimate, Grid, PlainPasses
from ddq_search.quantizers.traced import TracedPasses, bounds

ACTIVATIONS = (*(Grid(*activation_code_range(b), p) for b, p in ((2, 1), (4, 5), (8, 100))), None)
WEIGHTS = (*(Grid(*weight_code_range(bits), 0) for bits in (2, 4, 8)), None)


@pytest.mark.parametrize("choice", range(4))
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("kernels", [False, True])
def test_as_in_plain_torch(choice, weights, share, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(fused, "is_built", lambda: False)
    generator = torch.Generator().manual_seed(choice)
    x, grad = (torch.randn(8, 3, 5, 5, generator=generator) * 2 for _ in range(2))
    shape = (4, 8) if weights else (4,)
    log_steps = (torch.rand(shape, generator=generator) * 0.3 + 0.02).log()
    grids = WEIGHTS if weights else ACTIVATIONS
    found = []
    for traced in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, log_steps, torch.tensor([0.9, 0.5, 0.2]))]
        if traced:
            limits = bounds(grids, x.device)
            out = TracedPasses.apply(leaves[0], leaves[1].exp(), leaves[2], limits, torch.tensor(choice), share)
        else:
            out = PlainPasses.apply(leaves[0], leaves[1], None, leaves[2], grids, choice, Estimate(share))
        out.backward(grad)
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


needs_kernels = pytest.mark.skipif(not fused.is_built(), reason="no C compiler that can")


def gradient_inputs(weights):
    x, grad = (torch.randn(8, 3, 4, 5, generator=torch.Generator().manual_seed(seed)) * 2 for seed in (1, 2))
    steps = torch.rand((4, 8) if weights else (4,), generator=torch.Generator().manual_seed(3)) * 0.3 + 0.02
    limits = bounds(WEIGHTS if weights else ACTIVATIONS, x.device)
    return [x, grad, steps, limits, torch.tensor([1]), 8 if weights else 2, 1.0 if weights else 4.0, True]


@needs_kernels
@pytest.mark.parametrize("weights", [False, True])
def test_the_compiler_may_rely_on_what_the_operator_declares(weights):
    torch.library.opcheck(
        torch.ops.ddq_search.gradients_of_quantizing,
        gradient_inputs(weights),
        test_utils=("test_schema", "test_faketensor"),
    )


@needs_kernels
@pytest.mark.parametrize("x_layout", [torch.contiguous_format, torch.channels_last, None])
@pytest.mark.parametrize("grad_layout", [torch.contiguous_format, torch.channels_last, None])
def test_the_operator_takes_what_layouts_the_compiler_chooses(x_layout, grad_layout):
    """None stands for every second value of a larger tensor."""
    expected = torch.ops.ddq_search.gradients_of_quantizing(*gradient_inputs(False))
    inputs = gradient_inputs(False)
    for position, layout in ((0, x_layout), (1, grad_layout)):
        if layout is None:
            inputs[position] = torch.stack([inputs[position]] * 2, -1)[..., 0]
        else:
            inputs[position] = inputs[position].contiguous(memory_format=layout)
    for mine, theirs in zip(torch.ops.ddq_search.gradients_of_quantizing(*inputs), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
