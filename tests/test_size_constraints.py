"""DQ's memory constraints, against the sizes that the paper states for ResNet-20."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from ddq_search.errors import BudgetError
from ddq_search.quantizers.dq import DqWeights
from ddq_search.size_constraints import SizeLimits, SizeModel, expected_bits
from ddq_search.space import build_space
from ddq_search.trace import trace
from search_spaces.models import build_model


class Anything:
    """A device that executes every bitwidth."""

    def legal_weight_bits(self, op):
        return tuple(range(2, 9))

    legal_activation_bits = legal_weight_bits


class PaperBlock(nn.Module):
    """A residual block of the paper's ResNet-20; a shortcut of zeros and subsampling has no weights and is left out."""

    def __init__(self, in_channels, channels):
        super().__init__()
        self.keeps_shape = in_channels == channels
        self.conv1 = nn.Conv2d(in_channels, channels, 3, 1 if self.keeps_shape else 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + x if self.keeps_shape else y)


def papers_resnet20():
    """Ours has 1×1 convolutions in its shortcuts, 2,560 weights more than the paper's zero-padded ones."""
    channels = [16] * 4 + [32] * 3 + [64] * 3
    blocks = [PaperBlock(a, b) for a, b in pairwise(channels)]
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def model_of(network):
    graph = trace(network.eval(), torch.zeros(1, 3, 32, 32))
    space = build_space(graph, Anything(), weight_bits=range(2, 9), activation_bits=range(2, 9))
    return SizeModel(graph, space), space


@pytest.fixture(scope="module")
def paper():
    return model_of(papers_resnet20())


def test_resnet20_has_the_papers_sizes(paper):
    sizes, _ = paper
    assert int(sizes.weights.sum()) == 268_346
    assert int(sizes.activations.sum()) == 188_416
    whole = sizes.float_sizes()
    assert whole.weights_kb.item() * 1024 == 268_346 * 4
    assert (whole.activations_kb.item(), whole.largest_activation_kb.item()) == (736.0, 64.0)
    assert round(whole.weights_kb.item(), 2) == 1048.23
    two, four = (sizes.sizes(torch.full_like(sizes.weights, bits)) for bits in (2.0, 4.0))
    assert two.weights_kb.item() * 1024 == 268_346 / 4
    assert round(two.weights_kb.item(), 2) == 65.51
    assert (four.activations_kb.item(), four.largest_activation_kb.item()) == (92.0, 8.0)


def test_our_resnet20_differs_by_its_shortcuts_alone():
    sizes, _ = model_of(build_model("resnet20", 3, 10, 32))
    assert int(sizes.weights.sum()) == 268_346 + 16 * 32 + 32 * 64
    assert int(sizes.activations.sum()) == 188_416
    assert int(sizes.largest.max()) == 16_384


def test_penalty_is_the_squared_hinge(paper):
    sizes, _ = paper
    found = sizes.sizes(torch.full_like(sizes.weights, 4.0))
    over = found.weights_kb.item() - 70  # 131.03 KB
    assert SizeLimits(weights_kb=70).penalty(found).item() == pytest.approx(0.1 * over**2)
    assert SizeLimits(weights_kb=132, activations_kb=92, largest_activation_kb=8).penalty(found).item() == 0
    both = SizeLimits(activations_kb=90, largest_activation_kb=5)
    assert both.penalty(found, strength=2.0).item() == pytest.approx(2 * (2.0**2 + 3.0**2))
    assert SizeLimits().penalty(found).item() == 0
    with pytest.raises(BudgetError, match="activations_kb must be above 0"):
        SizeLimits(activations_kb=0)


def test_gradients_are_exact(paper):
    sizes, space = paper
    bits = (2 + 6 * torch.rand(len(space.variables), dtype=torch.float64)).requires_grad_()
    limits = SizeLimits(weights_kb=60, activations_kb=50, largest_activation_kb=4)
    assert torch.autograd.gradcheck(lambda b: limits.penalty(sizes.sizes(b)), (bits,))
    excess = sizes.sizes(bits).weights_kb - 60
    (found,) = torch.autograd.grad(SizeLimits(weights_kb=60).penalty(sizes.sizes(bits)), bits)
    torch.testing.assert_close(found, 0.2 * excess.detach() * sizes.weights / 8192)


def test_the_largest_tensor_alone_feels_its_constraint(paper):
    sizes, space = paper
    bits = torch.full((len(space.variables),), 4.0, dtype=torch.float64)
    row = int(sizes.largest.argmax())
    bits[row] = 6.0
    bits.requires_grad_()
    SizeLimits(largest_activation_kb=8).penalty(sizes.sizes(bits)).backward()
    assert torch.nonzero(bits.grad).flatten().tolist() == [row]


def test_expected_bits_of_a_quantizer_are_its_continuous_ones():
    quantizer = DqWeights((2, 4, 8), 1)
    quantizer.inferring = True
    quantizer.range.set_start(torch.tensor(0.5), torch.tensor(0.5 * 11))
    found = expected_bits(quantizer.probabilities(), quantizer.candidates)
    torch.testing.assert_close(found, quantizer.range.bits().double())
