"""torch.compile: the same numbers where it works, the eager ones and one note where it does not."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddq_search import compilation
from ddq_search.compilation import CompiledForward
from tests.networks import sample_images
from tests.test_supernet import small, supernet_of


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))


def tiny():
    net = supernet_of(Tiny())
    net.calibrate([sample_images(8)])
    return net.train()


def gradients(net, forward, x):
    net.zero_grad(set_to_none=True)
    forward(x).square().sum().backward()
    return [p.grad for p in net.parameters() if p.grad is not None]


@pytest.fixture
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("mode", ["float", "fixed"])
def test_compiled_is_eager_and_one_graph(mode):
    """What the compiler would get is run as it is: no other arithmetic may come in between."""
    net, other, graphs, notes = tiny(), tiny(), [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    for each in (net, other):
        each.load_state_dict(net.state_dict())
        if mode == "fixed":
            each.set_policy({v.name: v.candidates[0] for v in each.space.variables})
    forward, x = CompiledForward(net, notes.append, backend), sample_images(8)
    for seed in range(2):
        x = sample_images(8, seed=seed)
        pairs = list(zip(gradients(net, forward, x), gradients(other, other, x), strict=True))
        assert len(pairs) >= 5
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs)
    assert len(graphs) == 1
    assert notes == []
    for (name, ours), theirs in zip(net.named_buffers(), other.buffers(), strict=True):
        assert torch.allclose(ours.float(), theirs.float()), name  # the try left no trace in the statistics
    assert forward(sample_images(3)).shape == (3, 2)
    assert len(graphs) == 1  # another shape runs eager


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("late", [False, True])
def test_a_platform_that_cannot_gets_one_note_and_eager_results(late):
    net, other, notes = tiny(), tiny(), []
    other.load_state_dict(net.state_dict())

    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise OSError("no compiler\nand much more")

    def backend(graph, inputs):
        if late:  # only in the backward pass
            return lambda *arguments: [Breaks.apply(result) for result in graph.forward(*arguments)]
        raise OSError("no compiler\nand much more")

    forward = CompiledForward(net, notes.append, backend)
    level = logging.getLogger("torch._dynamo").level
    for seed in range(2):
        x = sample_images(8, seed=seed)
        for ours, theirs in zip(gradients(net, forward, x), gradients(other, other, x), strict=True):
            assert torch.equal(ours, theirs)
    assert len(notes) == 1
    assert notes[0].startswith("training.compile is left out, this platform cannot: ")
    assert "no compiler" in notes[0]
    assert "\n" not in notes[0]
    assert len(notes[0]) < 300
    assert logging.getLogger("torch._dynamo").level == level
    for ours, theirs in zip(net.buffers(), other.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_several_processes_run_eager(monkeypatch):
    monkeypatch.setattr(compilation, "world_size", lambda: 2)
    net, notes = tiny(), []
    forward = CompiledForward(net, notes.append)
    assert forward(sample_images(4)).shape == (4, 2)
    assert len(notes) == 1
    assert "processes" in notes[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("mode", ["float", "fixed"])
def test_inductor_agrees_with_eager(mode):
    net, other, notes = small("Residual"), small("Residual"), []
    other.load_state_dict(net.state_dict())
    for each in (net.train(), other.train()):
        if mode == "fixed":
            each.set_policy({v.name: v.candidates[0] for v in each.space.variables})
    x = sample_images(16)
    forward = CompiledForward(net, notes.append)
    for ours, theirs in zip(gradients(net, forward, x), gradients(other, other, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert notes == []


@pytest.mark.usefixtures("_fresh")
def test_a_search_is_one_graph_for_every_choice():
    net, other, graphs, notes = tiny(), tiny(), [], []
    other.load_state_dict(net.state_dict())

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    forward = CompiledForward(net, notes.append, backend)
    variables = len(net.space.variables)
    for seed in range(4):
        x, found = sample_images(8, seed=seed), []
        for each, run in ((net, forward), (other, other)):
            cumulative = each.gates.cumulative(0).detach().requires_grad_()
            each.sample_from(cumulative, torch.full((variables,), 0.2 + seed / 4))
            each.zero_grad(set_to_none=True)
            run(x).square().sum().backward()
            found.append([cumulative.grad, *(p.grad for p in each.parameters() if p.grad is not None)])
        assert float(found[0][0].abs().sum()) > 0
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1
    assert notes == []
