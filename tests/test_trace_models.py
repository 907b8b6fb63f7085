"""Tracing torchvision's networks: shapes, MACs, names, ties, files; and what it says when it cannot."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from ddq_search.errors import GraphError
from ddq_search.graph import (
    ModelGraph,
    consumers_of,
    from_json,
    inputs_of,
    operation,
    operations,
    tensor_groups,
    to_json,
    write_graphml,
)
from ddq_search.trace import trace

# torchvision publishes GFLOPS (multiply-accumulates) with its weights; nothing is downloaded to read them.
NETWORKS = {
    "resnet18": models.ResNet18_Weights.IMAGENET1K_V1,
    "mobilenet_v2": models.MobileNet_V2_Weights.IMAGENET1K_V1,
    "mobilenet_v3_small": models.MobileNet_V3_Small_Weights.IMAGENET1K_V1,
    "shufflenet_v2_x1_0": models.ShuffleNet_V2_X1_0_Weights.IMAGENET1K_V1,
    "squeezenet1_1": models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
}


@pytest.fixture(scope="module", params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    torch.manual_seed(0)
    name: str = request.param
    model: nn.Module = models.get_model(name, weights=None)
    return name, model.eval()


@pytest.fixture(scope="module")
def graph(network: tuple[str, nn.Module]) -> ModelGraph:
    return trace(network[1], torch.zeros(1, 3, 64, 64))


def _hooked(model: nn.Module, size: int) -> tuple[int, dict[str, tuple[int, ...]]]:
    """Returns MACs counted from the weights' shapes, and each weighted module's output shape, as PyTorch ran them."""
    macs = 0
    shapes: dict[str, tuple[int, ...]] = {}
    handles = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):

            def count(m: nn.Module, _: object, y: torch.Tensor, path: str = path) -> None:
                nonlocal macs
                macs += y[0].numel() * m.weight[0].numel()
                shapes[path] = tuple(y.shape[1:])

            handles.append(module.register_forward_hook(count))
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    for handle in handles:
        handle.remove()
    return macs, shapes


def test_macs_are_the_published_ones(network: tuple[str, nn.Module]) -> None:
    name, model = network
    macs = sum(op.macs for op in operations(trace(model, torch.zeros(1, 3, 224, 224))))
    assert round(macs / 1e9, 3) == NETWORKS[name].meta["_ops"]
    assert macs == _hooked(model, 224)[0]


def test_every_layer_is_found_by_its_path_with_its_shape(network: tuple[str, nn.Module], graph: ModelGraph) -> None:
    model = network[1]
    _, shapes = _hooked(model, 64)
    layers = {op.name: op for op in operations(graph) if op.kind in ("conv2d", "linear")}
    assert {name: op.output_shape for name, op in layers.items()} == shapes
    for name, op in layers.items():
        module = model.get_submodule(name)
        assert op.module == name
        assert op.weights == module.weight.numel()
        assert op.rows * op.row_length == op.weights
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {op.norm for op in layers.values() if op.norm} == norms


def test_the_graph_is_one_path_in_execution_order(graph: ModelGraph) -> None:
    assert nx.is_directed_acyclic_graph(graph)
    assert nx.is_weakly_connected(graph)
    order = {op.name: i for i, op in enumerate(operations(graph))}
    assert all(order[source] < order[target] for source, target in graph.edges())
    assert [op.name for op in operations(graph) if not graph.in_degree(op.name)] == ["input"]
    assert [op.name for op in operations(graph) if not graph.out_degree(op.name)] == ["output"]
    for op in operations(graph):
        produced = tuple(operation(graph, name).output_shape for name in inputs_of(graph, op.name))
        assert produced == op.input_shapes


def test_concats_tie_their_inputs_and_adds_do_not(graph: ModelGraph) -> None:
    groups = tensor_groups(graph)
    for op in operations(graph):
        if op.kind == "concat":
            assert {groups[name] for name in inputs_of(graph, op.name)} == {groups[op.name]}
        if op.kind == "add":
            assert groups[op.name] == op.name


def test_a_graph_survives_json(graph: ModelGraph, tmp_path: Path) -> None:
    again = from_json(to_json(graph))
    assert list(operations(again)) == list(operations(graph))
    assert list(again.edges(keys=True)) == list(graph.edges(keys=True))
    assert again.graph == graph.graph
    write_graphml(graph, tmp_path / "graph.graphml")
    assert set(nx.read_graphml(tmp_path / "graph.graphml").nodes) == set(graph.nodes)


def test_the_model_is_left_as_it_was() -> None:
    model = models.resnet18(num_classes=3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trace(model, torch.randn(2, 3, 32, 32))
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_modes_of_submodules_are_left_as_they_were() -> None:
    model = models.resnet18(num_classes=3).train()
    model.bn1.eval()
    trace(model, torch.randn(2, 3, 32, 32))
    assert not model.bn1.training
    assert model.layer1.training


class _Twice(nn.Module):
    """One convolution and one ReLU, both used twice, and a tensor added to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.conv(x))
        x = self.relu(self.conv(x))
        return x + x


def test_reuse_is_numbered_and_adding_a_tensor_to_itself_keeps_both_edges() -> None:
    graph = trace(_Twice(), torch.zeros(1, 4, 8, 8))
    assert list(graph.nodes) == ["input", "conv", "conv#1", "add", "output"]
    assert operation(graph, "conv#1").module == "conv"
    assert operation(graph, "conv").clamp == operation(graph, "conv#1").clamp == "relu"
    assert inputs_of(graph, "add") == ["conv#1", "conv#1"]
    assert graph.number_of_edges("conv#1", "add") == 2
    assert consumers_of(graph, "conv#1") == ["add"]
    assert graph.number_of_edges("conv#1", "add") == from_json(to_json(graph)).number_of_edges("conv#1", "add")


class _ReadTwice(nn.Module):
    """The convolution's output is read before and after the ReLU, so the ReLU cannot fuse."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return F.relu(x) + x


def test_a_clamp_does_not_fuse_when_others_read_the_unclamped_tensor() -> None:
    graph = trace(_ReadTwice(), torch.zeros(1, 4, 8, 8))
    assert operation(graph, "conv").clamp is None
    assert operation(graph, "activation").attributes["function"] == "relu"
    assert consumers_of(graph, "conv") == ["activation", "add"]


class _DataDependent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x
        return -x


class _Inside(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


class _Unsupported(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, 1)


class _Two(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.relu(), x.tanh()


class _Flat(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.flatten(x)


class _Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0.5


def _line(code: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, start=1) if line.strip() == code)


@pytest.mark.parametrize(
    ("module", "code", "said"),
    [
        (_DataDependent(), "if x.sum() > 0:", "torch.fx cannot follow"),
        (_Unsupported(), "return torch.cumsum(x, 1)", "cumsum"),
        (_Scaled(), "return x * 0.5", "mul with a constant"),
    ],
)
def test_what_cannot_be_traced_is_named_with_module_and_line(module: nn.Module, code: str, said: str) -> None:
    with pytest.raises(GraphError, match=said) as caught:
        trace(_Inside(module), torch.zeros(1, 3, 8, 8))
    message = str(caught.value)
    assert f"{Path(__file__).name}:{_line(code)}" in message
    assert "inner" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelUnshuffle(2)), "module '1'"),
        (nn.Conv2d(5, 4, 1), r"does not accept an input of shape \(1, 3, 8, 8\)"),
        (_Inside(_Two()), "one tensor"),
        (_Inside(_Flat()), "batch dimension"),
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")), "padding_mode='reflect'"),
    ],
)
def test_other_refusals_name_the_module(module: nn.Module, said: str) -> None:
    with pytest.raises(GraphError, match=said):
        trace(module, torch.zeros(1, 3, 8, 8))


def test_json_of_something_else_is_refused() -> None:
    with pytest.raises(GraphError, match="not a graph"):
        from_json('{"nodes": 3}')
