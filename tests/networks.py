"""Small networks with random numbers: a `DiscreteNetwork` for any torch module, without training.

`float_tensors` runs a graph in float32 with given weights, independently of everything under test.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddq_search.discrete import DiscreteNetwork, LayerNumbers
from ddq_search.graph import WEIGHTED, ModelGraph, Operation, inputs_of, operations, tensor_groups
from ddq_search.precision import ActivationGrid, weight_code_range
from ddq_search.trace import trace

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "sigmoid": torch.sigmoid,
    "silu": F.silu, "gelu": F.gelu, "tanh": torch.tanh,
}  # fmt: skip


class Residual(nn.Module):
    """Strided residual block with a projection, then the global mean and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.short = nn.Conv2d(6, 8, 1, stride=2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)) + self.short(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Mobile(nn.Module):
    """Inverted bottleneck: expansion, dilated depthwise and grouped convolutions, relu6, an add without clamp."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 12, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=2, dilation=2, groups=12, bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.project = nn.Conv2d(12, 3, 1, groups=3)
        self.same = nn.Conv2d(3, 4, (1, 3), padding="same")
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn1(self.expand(x)))
        y = F.relu6(self.bn2(self.depthwise(y)))
        return self.fc(self.same(x + self.project(y)).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """Hardswish, and channels scaled by a hardsigmoid gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.act = nn.Hardswish()
        self.down = nn.Conv2d(8, 4, 1)
        self.up = nn.Conv2d(4, 8, 1)
        self.gate = nn.Hardsigmoid()
        self.smooth = nn.SiLU()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        gate = self.gate(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.fc(self.smooth(x * gate).mean((2, 3)))


class Fire(nn.Module):
    """Pools of every kind around a concat."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(3, 4, 3, stride=2)
        self.left = nn.Conv2d(4, 5, 1)
        self.right = nn.Conv2d(4, 3, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        self.average = nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False)
        self.counted = nn.AvgPool2d(2, 1, padding=1)
        self.fc = nn.Linear(8 * 3 * 3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.squeeze(x))
        x = torch.cat([F.relu(self.left(x)), self.right(x)], 1)
        return self.fc(torch.flatten(self.counted(self.average(x)), 1))


class Shuffle(nn.Module):
    """Chunk, concat and channel shuffle; the same convolution twice; smooth functions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(4, 4, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.tanh(self.norm(self.stem(x))).chunk(2, 1)
        x = torch.cat([first, F.gelu(self.branch(torch.sigmoid(self.branch(second))))], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Upscale(nn.Module):
    """Pixel shuffles into several channels and into one: images come out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.last = nn.Conv2d(2, 9, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.last(self.shuffle(F.relu(self.stem(x)))), 3)


MODELS: dict[str, type[nn.Module]] = {
    cls.__name__: cls for cls in (Residual, Mobile, SqueezeExcite, Fire, Shuffle, Upscale)
}


def sample_images(count: int, size: int = 9, seed: int = 0) -> Tensor:
    """Returns ``[count, 3, size, size]`` standard normal images."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def random_network(
    name: str, seed: int, bits: Callable[[str], int] | None = None, size: int = 9
) -> tuple[DiscreteNetwork, nn.Module]:
    """Returns a discrete network over a model of `MODELS` and the float model it stands for.

    Args:
        name: which model.
        seed: random weights and normalisation, channels with γ < 0 and γ = 0 among them.
        bits: variable name → bitwidth; 8 everywhere by default.
        size: height and width of the images.
    """
    torch.manual_seed(seed)
    model = MODELS[name]().eval()
    rng = np.random.default_rng(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            _randomise(module, rng)
    return discrete(model, sample_images(8, size, seed), bits or (lambda _: 8)), model


def discrete(model: nn.Module, images: Tensor, bits: Callable[[str], int]) -> DiscreteNetwork:
    """Returns the discrete network of a model: weight scales by maximum, activation grids by range over ``images``."""
    graph = trace(model, images[:1])
    modules = dict(model.named_modules())
    layers, policy, grids = {}, {}, {}
    for op in operations(graph):
        if op.kind in WEIGHTED:
            variable = f"weights/{op.module}"
            policy[variable] = policy.get(variable) or bits(variable)
            layers[op.name] = _layer(modules[op.module], modules[op.norm] if op.norm else None, policy[variable])
    values = float_tensors(graph, layers, images)
    groups = tensor_groups(graph)
    for first in dict.fromkeys(groups.values()):
        members = [name for name in groups if groups[name] == first]
        kinds = {graph.nodes[name]["operation"].kind for name in members}
        variable = f"activations/{first}"
        policy[variable] = 8 if kinds & {"input", "output"} else bits(variable)
        low = min(float(values[name].min()) for name in members)
        high = max(float(values[name].max()) for name in members)
        grids |= dict.fromkeys(members, _grid(low, high, policy[variable]))
    return DiscreteNetwork(graph, policy, layers, grids)


def float_tensors(graph: ModelGraph, layers: dict[str, LayerNumbers], images: Tensor) -> dict[str, Tensor]:
    """Returns every tensor of the graph in float32, weights being ``gain * codes * scale``."""
    values: dict[str, Tensor] = {}
    for op in operations(graph):
        x = [values[name] for name in inputs_of(graph, op.name)]
        y = images if op.kind == "input" else _float(op, layers.get(op.name), x)
        values[op.name] = _FUNCTIONS[op.clamp](y) if op.clamp else y
    return values


def _float(op: Operation, layer: LayerNumbers | None, x: list[Tensor]) -> Tensor:
    a = op.attributes
    if layer is not None:
        shape = (-1, *[1] * (layer.codes.ndim - 1))
        weight = torch.from_numpy(layer.codes * (layer.scale * layer.gain).reshape(shape)).float()
        bias = torch.from_numpy(layer.offset).float()
        if op.kind == "linear":
            return F.linear(x[0], weight, bias)
        top, bottom, left, right = a["padding"]
        padded = F.pad(x[0], (left, right, top, bottom))
        return F.conv2d(padded, weight, bias, a["stride"], 0, a["dilation"], a["groups"])
    if op.kind in ("max_pool2d", "avg_pool2d"):
        padding = (a["padding"][0], a["padding"][2])
        if op.kind == "max_pool2d":
            return F.max_pool2d(x[0], a["kernel_size"], a["stride"], padding, ceil_mode=a["ceil_mode"])
        return F.avg_pool2d(x[0], a["kernel_size"], a["stride"], padding, a["ceil_mode"], a["count_include_pad"])
    if op.kind == "slice":
        return x[0].narrow(a["dim"] + 1, a["start"], a["stop"] - a["start"])
    if op.kind == "transpose":
        return x[0].permute(0, *(d + 1 for d in a["dims"]))
    if op.kind == "pixel_shuffle":
        return nn.PixelShuffle(op.output_shape[1] // x[0].shape[2])(x[0])
    if op.kind == "concat":
        return torch.cat(x, a["dim"] + 1)
    if op.kind == "activation":
        return _FUNCTIONS[a["function"]](x[0])
    simple: dict[str, Callable[[], Tensor]] = {
        "add": lambda: x[0] + x[1],
        "mul": lambda: x[0] * x[1],
        "mean": lambda: x[0].mean((2, 3), keepdim=a["keepdim"]),
        "reshape": lambda: x[0].reshape(len(x[0]), *op.output_shape),
        "output": lambda: x[0],
    }
    return simple[op.kind]()


def _layer(module: nn.Module, norm: nn.Module | None, bits: int) -> LayerNumbers:
    weight = module.weight.detach().double().numpy()
    rows = weight.shape[0]
    high = weight_code_range(bits)[1]
    scale = np.abs(weight).reshape(rows, -1).max(1) / high
    codes = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int32)
    bias = np.zeros(rows) if module.bias is None else module.bias.detach().double().numpy()
    if norm is None:
        return LayerNumbers(codes, bits, scale, np.ones(rows), bias)
    gamma, beta, mean, variance = (
        t.detach().double().numpy() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    gain = gamma / np.sqrt(variance + norm.eps)
    return LayerNumbers(codes, bits, scale, gain, beta + (bias - mean) * gain)


def _grid(low: float, high: float, bits: int) -> ActivationGrid:
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1) or 1.0
    return ActivationGrid(scale, min(max(round(-low / scale), 0), 2**bits - 1), bits)


def _randomise(norm: nn.BatchNorm2d, rng: np.random.Generator) -> None:
    count = norm.num_features
    gamma = rng.uniform(0.5, 1.5, count) * rng.choice([-1.0, 1.0, 1.0, 1.0], count)
    gamma[0] = 0.0
    norm.weight.data = torch.from_numpy(gamma).float()
    norm.bias.data = torch.from_numpy(rng.normal(0, 0.5, count)).float()
    norm.running_mean = torch.from_numpy(rng.normal(0, 0.3, count)).float()
    norm.running_var = torch.from_numpy(rng.uniform(0.2, 1.5, count)).float()
