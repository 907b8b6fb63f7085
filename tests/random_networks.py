"""Random graphs of every operation with random numbers: what property tests of exporters run on.

`random_graph_network` builds the graph of operations itself, without a torch module, so that shapes and orders appear
that no tracer meets: transposed images that are flattened, chunks of chunks, one tensor in both arguments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import networkx as nx
import numpy as np
import torch

from ddq_search.discrete import DiscreteNetwork, LayerNumbers
from ddq_search.graph import Operation, tensor_groups
from ddq_search.precision import ActivationGrid, weight_code_range
from tests.networks import float_tensors

WIDTHS = (2, 4, 8)
ODD_NAMES = ('quote"', "back\\slash", "new\nline", "日本", "per?cent%s", "*/ /*", "comma,", "a b")


class _Builder:
    """Adds operations one by one; ``shapes`` are those of all tensors so far."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.graph = nx.MultiDiGraph()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.layers: dict[str, tuple[int, ...]] = {}  # weighted operation → shape of its weights
        self.modules: dict[str, str] = {}

    def add(
        self, kind: str, sources: list[str], shape: tuple[int, ...], attributes: Mapping[str, Any] | None = None,
        **facts: Any,
    ) -> str:  # fmt: skip
        odd = ODD_NAMES[self.rng.integers(len(ODD_NAMES))] if self.rng.random() < 0.2 else ""
        name = f"{kind}{len(self.shapes)}{odd}"
        inputs = tuple(self.shapes[source] for source in sources)
        self.graph.add_node(name, operation=Operation(name, kind, inputs, shape, attributes or {}, **facts))
        for position, source in enumerate(sources):
            self.graph.add_edge(source, name, key=position)
        self.shapes[name] = shape
        return name

    def pick(self, *ranks: int) -> str | None:
        """A tensor of one of these ranks, the latest most likely."""
        found = [name for name, shape in self.shapes.items() if len(shape) in ranks]
        return found[-1 - min(int(self.rng.geometric(0.6)) - 1, len(found) - 1)] if found else None

    def clamp(self) -> str | None:
        return self.choice(None, "relu", "relu6")

    def choice(self, *values: Any) -> Any:
        return values[self.rng.integers(len(values))]

    # -- operations -------------------------------------------------------------------------------------------

    def conv(self) -> None:
        source = self.pick(3)
        if source is None:
            return
        channels, *size = self.shapes[source]
        groups = int(
            self.choice(1, 1, channels, self.choice(*[g for g in range(1, channels + 1) if channels % g == 0]))
        )
        rows = groups * int(self.rng.integers(1, 5))
        kernel = (int(self.rng.integers(1, 4)), int(self.rng.integers(1, 4)))
        stride = (int(self.rng.integers(1, 3)), int(self.rng.integers(1, 3)))
        dilation = (int(self.rng.integers(1, 3)), int(self.rng.integers(1, 3)))
        top, left = (int(self.rng.integers(0, k * d - d + 1)) for k, d in zip(kernel, dilation, strict=True))
        padding = (top, int(self.rng.integers(0, top + 2)), left, int(self.rng.integers(0, left + 2)))
        out = [
            (n + before + after - (k - 1) * d - 1) // s + 1
            for n, before, after, k, d, s in zip(
                size, padding[::2], padding[1::2], kernel, dilation, stride, strict=True
            )
        ]
        if min(out) < 1:
            return
        attributes = {
            "kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
        }  # fmt: skip
        weights = (rows, channels // groups, *kernel)
        self._weighted("conv2d", source, (rows, *out), attributes, weights)

    def linear(self) -> None:
        source = self.pick(1)
        if source is not None:
            (features,) = self.shapes[source]
            rows = int(self.rng.integers(1, 7))
            self._weighted("linear", source, (rows,), {}, (rows, features))

    def _weighted(
        self, kind: str, source: str, shape: tuple[int, ...], attributes: dict[str, Any], weights: tuple[int, ...]
    ) -> None:
        same = [name for name, known in self.layers.items() if known == weights]
        module = self.modules[same[0]] if same and self.rng.random() < 0.5 else f"module{len(self.layers)}"
        name = self.add(
            kind, [source], shape, attributes, module=module, clamp=self.clamp(), weights=math.prod(weights)
        )
        self.layers[name], self.modules[name] = weights, module

    def two(self) -> None:
        source = self.pick(1, 2, 3, 4)
        assert source is not None
        shape = self.shapes[source]
        others = [name for name, other in self.shapes.items() if other == shape]
        kind = self.choice("add", "mul")
        if kind == "mul" and len(shape) == 3:
            others += [name for name, other in self.shapes.items() if other == (shape[0], 1, 1)]
        pair = [source, self.choice(*others)]
        if self.shapes[pair[1]] == shape and self.rng.random() < 0.5:
            pair.reverse()
        self.add(kind, pair, shape, clamp=self.clamp())

    def pool(self) -> None:
        source = self.pick(3)
        if source is None:
            return
        channels, *size = self.shapes[source]
        kernel = (int(self.rng.integers(1, 4)), int(self.rng.integers(1, 4)))
        stride = (int(self.rng.integers(1, 4)), int(self.rng.integers(1, 4)))
        pad = [int(self.rng.integers(0, k // 2 + 1)) for k in kernel]
        padding = (pad[0], pad[0], pad[1], pad[1])
        out = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, pad, kernel, stride, strict=True)]
        if min(out) < 1:
            return
        attributes: dict[str, Any] = {
            "kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": False,
        }  # fmt: skip
        kind = self.choice("max_pool2d", "avg_pool2d")
        if kind == "avg_pool2d":
            attributes["count_include_pad"] = bool(self.choice(True, False))
        self.add(kind, [source], (channels, *out), attributes)

    def mean(self) -> None:
        source = self.pick(3)
        if source is not None:
            keep = bool(self.choice(True, False))
            channels = self.shapes[source][0]
            self.add("mean", [source], (channels, 1, 1) if keep else (channels,), {"keepdim": keep})

    def function(self) -> None:
        source = self.pick(1, 2, 3, 4)
        assert source is not None
        names = ("relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "tanh")
        self.add("activation", [source], self.shapes[source], {"function": self.choice(*names)})

    def concat(self) -> None:
        source = self.pick(1, 3)
        assert source is not None
        shape = self.shapes[source]
        dim = int(self.rng.integers(len(shape)))
        fits = [n for n, s in self.shapes.items() if len(s) == len(shape) and _without(s, dim) == _without(shape, dim)]
        chosen = [self.choice(*fits) for _ in range(int(self.rng.integers(1, 4)))]
        total = sum(self.shapes[name][dim] for name in chosen)
        self.add("concat", chosen, (*shape[:dim], total, *shape[dim + 1 :]), {"dim": dim})

    def slice(self) -> None:
        source = self.pick(1, 2, 3, 4)
        assert source is not None
        shape = self.shapes[source]
        dim = int(self.rng.integers(len(shape)))
        start = int(self.rng.integers(shape[dim]))
        stop = int(self.rng.integers(start + 1, shape[dim] + 1))
        size = (*shape[:dim], stop - start, *shape[dim + 1 :])
        self.add("slice", [source], size, {"dim": dim, "start": start, "stop": stop})

    def transpose(self) -> None:
        source = self.pick(2, 3, 4)
        if source is not None:
            dims = tuple(int(d) for d in self.rng.permutation(len(self.shapes[source])))
            self.add("transpose", [source], tuple(self.shapes[source][d] for d in dims), {"dims": dims})

    def reshape(self) -> None:
        source = self.pick(1, 2, 3, 4)
        assert source is not None
        count = math.prod(self.shapes[source])
        rank = int(self.choice(1, 1, 2, 3, 3, 4))
        sizes = []
        for _ in range(rank - 1):
            sizes.append(int(self.choice(*[n for n in range(1, count + 1) if count % n == 0][:6])))
            count //= sizes[-1]
        self.add("reshape", [source], tuple(int(n) for n in self.rng.permutation([*sizes, count])))


def random_graph_network(seed: int, *, weight_bits: int | None = None) -> DiscreteNetwork:
    """Returns a network of 3 to 10 random operations on a small image.

    Args:
        seed: decides everything.
        weight_bits: bits of all weights; drawn per module where absent.
    """
    rng = np.random.default_rng(seed)
    build = _Builder(rng)
    shape = tuple(int(n) for n in rng.integers([1, 2, 2], [5, 8, 8]))
    build.add("input", [], shape)
    steps = (
        build.conv, build.conv, build.conv, build.linear, build.linear, build.two, build.two, build.pool, build.mean,
        build.function, build.concat, build.slice, build.transpose, build.reshape, build.reshape,
    )  # fmt: skip
    for _ in range(int(rng.integers(3, 11))):
        build.choice(*steps)()
    last = next(reversed(build.shapes))
    build.add("output", [last], build.shapes[last])
    return _numbers(build, rng, weight_bits)


def _numbers(build: _Builder, rng: np.random.Generator, weight_bits: int | None) -> DiscreteNetwork:
    policy: dict[str, int] = {}
    weights: dict[str, np.ndarray] = {}
    layers = {}
    for name, shape in build.layers.items():
        module = build.modules[name]
        bits = policy.setdefault(f"weights/{module}", weight_bits or int(rng.choice(WIDTHS)))
        low, high = weight_code_range(bits)
        codes = weights.setdefault(module, rng.integers(low, high + 1, shape).astype(np.int32))
        rows = shape[0]
        gain = rng.choice([-1.0, 1.0, 1.0], rows) * rng.uniform(0.5, 1.5, rows) * (rng.random(rows) > 0.1)
        scale = rng.uniform(0.3, 1.0, rows) / high / math.sqrt(math.prod(shape[1:]))
        layers[name] = LayerNumbers(codes, bits, scale, gain, rng.normal(0, 0.3, rows))
    first = next(iter(build.shapes))
    images = torch.from_numpy(rng.normal(0, 1, (4, *build.shapes[first]))).float()
    values = float_tensors(build.graph, layers, images)
    groups = tensor_groups(build.graph)
    grids = {}
    for leader in dict.fromkeys(groups.values()):
        members = [name for name, group in groups.items() if group == leader]
        bits = policy.setdefault(f"activations/{leader}", int(rng.choice(WIDTHS)))
        low = min(0.0, *(float(values[name].min()) for name in members))
        high = max(0.0, *(float(values[name].max()) for name in members))
        scale = ((high - low) or 1.0) / (2**bits - 1)
        grids |= dict.fromkeys(members, ActivationGrid(scale, min(max(round(-low / scale), 0), 2**bits - 1), bits))
    return DiscreteNetwork(build.graph, policy, layers, grids)


def _without(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return (*shape[:dim], *shape[dim + 1 :])
