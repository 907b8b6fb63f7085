"""The ARM cost models: numbers by hand, laws, golden orderings, and the contract over devices and models."""

from __future__ import annotations

import itertools
import math
import time
from functools import cache

import networkx as nx
import pytest
import torch
import torchvision
from torch import nn

from ddq_search.cost import FLASH, LATENCY, PEAK_RAM, CostTables
from ddq_search.errors import CostError
from ddq_search.graph import ModelGraph, Operation, operation, operations
from ddq_search.layer_shape import layer_shape
from ddq_search.space import SearchSpace, Variable, build_space
from ddq_search.trace import trace
from hardware_models import ArmCostModel, contract, cost_model, list_profiles

A53, M7, M4 = "cortex-a53-rpi3-lowbit-neon", "cortex-m7-stm32h743-cmsis-nn", "cortex-m4-stm32l4r5-cmsis-nn"
M4_OWN, M7_OWN, M55_OWN = "cortex-m4-stm32l4r5-ddq", "cortex-m7-stm32h743-ddq", "cortex-m55-an547-ddq"


def conv(name: str, shape: tuple[int, int, int], out: int, kernel: int, stride: int = 1, groups: int = 1) -> Operation:
    """A convolution with same padding."""
    channels, height, width = shape
    pad = kernel // 2
    rows, columns = -(-height // stride), -(-width // stride)
    weights = out * (channels // groups) * kernel * kernel
    facts = {
        "kernel_size": (kernel, kernel), "stride": (stride, stride), "padding": (pad,) * 4,
        "dilation": (1, 1), "groups": groups,
    }  # fmt: skip
    return Operation(
        name, "conv2d", (shape,), (out, rows, columns), facts, name, macs=weights * rows * columns, weights=weights
    )


class Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1)
        self.shortcut = nn.Conv2d(channels, out, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))


class ResNet8(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.pool(self.blocks(torch.relu(self.stem(x)))), 1))


MODELS = {
    "resnet8": (ResNet8, (3, 32, 32)),
    "unusual": (contract.Unusual, (8, 8, 8)),
    "resnet18": (torchvision.models.resnet18, (3, 64, 64)),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, (3, 64, 64)),
    "mobilenet_v3": (torchvision.models.mobilenet_v3_small, (3, 64, 64)),
    "squeezenet": (torchvision.models.squeezenet1_1, (3, 64, 64)),
    "shufflenet": (torchvision.models.shufflenet_v2_x0_5, (3, 64, 64)),
}


@cache
def traced(name: str) -> ModelGraph:
    build, shape = MODELS[name]
    with torch.device("meta"):
        return trace(build(), torch.zeros(1, *shape))


@cache
def priced(model: str, device: str) -> tuple[SearchSpace, CostTables, ArmCostModel]:
    graph, cost = traced(model), cost_model(device)
    space = build_space(graph, cost)
    return space, CostTables(space, cost.factors(graph, space)), cost


def uniform(space: SearchSpace, weight_bits: int, act_bits: int) -> dict[str, int]:
    """The policy nearest to a uniform one among the candidates."""
    wanted = {"weights": weight_bits, "activations": act_bits}
    return {v.name: min(v.candidates, key=lambda bits: abs(bits - wanted[v.role])) for v in space.variables}


def latency(device: str, op: Operation, weight_bits: int, act_bits: int) -> float:
    """Seconds of one weighted layer without its output and call."""
    seconds, _ = cost_model(device).pricer.layer(op.name, layer_shape(op), (weight_bits,), (act_bits,))
    return float(seconds.item())


# -- by hand ------------------------------------------------------------------------------------------------------


def test_m7_convolution_by_hand() -> None:
    op = conv("c", (16, 32, 32), 16, 3)
    instructions = 1.623 * 2359296 + 46.25 * 16384 + 2.571 * 144 * 1024 + 181.6 * 3 * 1024
    assert latency(M7, op, 8, 8) == pytest.approx(instructions * 1.052 / 400e6, rel=1e-12)
    instructions = 3.065 * 131072 + 42.93 * 8192 + 1.512 * 512 * 16
    assert latency(M7, conv("p", (16, 32, 32), 32, 1, 2), 4, 8) == pytest.approx(
        instructions * 1.052 / 400e6, rel=1e-12
    )


@pytest.mark.parametrize(
    ("op", "bits", "expected"),
    [
        (conv("first", (3, 32, 32), 16, 3), 8, 112),
        (conv("first", (3, 32, 32), 16, 3), 4, 108),
        (conv("last", (64, 8, 8), 64, 3), 8, 2304),
        (conv("pointwise", (64, 8, 8), 64, 1), 4, 0),
        (conv("depthwise", (64, 12, 12), 64, 3, groups=64), 8, 0),
        (conv("depthwise", (64, 12, 12), 64, 3, groups=64), 4, 1152),
    ],
)
def test_cmsis_nn_scratch_as_counted(op: Operation, bits: int, expected: int) -> None:
    _, scratch = cost_model(M7).pricer.layer(op.name, layer_shape(op), (bits,), (8,))
    assert scratch.item() == expected


def test_flash_is_what_the_serializer_writes() -> None:
    space, tables, _ = priced("unusual", A53)
    policy = uniform(space, 4, 8)
    shared = 8 * 36 + 2 * 8 * 9  # 4-bit weights once, constants for both uses
    others = 8 * 18 + 8 * 9 + 8 * 5 + 8 * 9 + 8 * 4 + 8 * 9 + 5 * 8 + 5 * 9
    assert tables.price(policy)[FLASH] == shared + others + 2 * 256


def test_resnet8_on_m7_trades_flash_for_time() -> None:
    """55 % of the 8-bit flash costs about 1.4 x the latency, 65 % about 1.2 x. Source: emulated counts of CMSIS-NN."""
    space, tables, _ = priced("resnet8", M7)
    base = tables.price(uniform(space, 8, 8))
    points = []
    for choice in itertools.product((4, 8), repeat=len(space.searched)):
        flash = latency_s = 0.0
        bits = dict(zip((v.name for v in space.searched), choice, strict=True))
        for factor in tables.factors:
            if factor.cost in (FLASH, LATENCY):
                index = tuple(
                    space[name].candidates.index(bits[name]) if name in bits else 0 for name in factor.variables
                )
                value = float(factor.table[index])
                flash, latency_s = (flash + value, latency_s) if factor.cost == FLASH else (flash, latency_s + value)
        points.append((flash / base[FLASH], latency_s / base[LATENCY]))
    assert min(time for flash, time in points if flash <= 0.55) == pytest.approx(1.42, abs=0.06)
    assert min(time for flash, time in points if flash <= 0.65) == pytest.approx(1.21, abs=0.05)


# -- golden orderings ---------------------------------------------------------------------------------------------


LAYERS = [
    conv("3x3", (16, 32, 32), 16, 3), conv("3x3b", (64, 8, 8), 64, 3), conv("1x1", (64, 12, 12), 128, 1),
    conv("stem", (3, 32, 32), 16, 3),
]  # fmt: skip


@pytest.mark.parametrize("device", [M7, M4])
@pytest.mark.parametrize("op", [*LAYERS, conv("dw", (64, 12, 12), 64, 3, groups=64)], ids=lambda op: op.name)
def test_cmsis_nn_4_bit_weights_cost_time(device: str, op: Operation) -> None:
    assert latency(device, op, 4, 8) > 1.15 * latency(device, op, 8, 8)


@pytest.mark.parametrize("k", [64, 128, 144, 256, 288, 576, 1152])
def test_a53_narrow_weights_are_faster(k: int) -> None:
    """4- and 2-bit weights on 8-bit inputs about alike, 2-bit weights on 2-bit inputs about twice as fast as 8 bit."""
    op = conv("c", (k // 9, 8, 8), 64, 3) if k % 9 == 0 else conv("c", (k, 8, 8), 64, 1)
    assert latency(A53, op, 4, 8) < 0.86 * latency(A53, op, 8, 8)
    assert latency(A53, op, 2, 8) <= 1.02 * latency(A53, op, 4, 8)
    assert latency(A53, op, 2, 2) < 0.75 * latency(A53, op, 4, 8)


def test_a53_gains_of_a_large_layer() -> None:
    op = conv("c", (512, 16, 16), 512, 3)
    assert latency(A53, op, 8, 8) / latency(A53, op, 4, 8) == pytest.approx(1.34, abs=0.03)
    assert latency(A53, op, 8, 8) / latency(A53, op, 2, 2) == pytest.approx(2.23, abs=0.05)


def test_a53_short_rows_gain_little() -> None:
    stem = conv("stem", (3, 32, 32), 16, 3)
    for weight_bits, act_bits in itertools.product((4, 8), repeat=2):
        assert latency(A53, stem, weight_bits, act_bits) > 0.94 * latency(A53, stem, 8, 8)
    assert latency(A53, stem, 2, 2) > 0.85 * latency(A53, stem, 8, 8)


def test_a53_depthwise_low_bits_gain_nothing() -> None:
    op = conv("dw", (64, 12, 12), 64, 3, groups=64)
    for weight_bits, act_bits in ((4, 8), (2, 8), (8, 4), (8, 2), (2, 2)):
        assert latency(A53, op, weight_bits, act_bits) > latency(A53, op, 8, 8)


def test_a53_narrow_inputs_keep_sums_narrow() -> None:
    """8-bit weights on 4-bit inputs sum in 16 bits as 4-bit weights on 8-bit inputs do; 2 x 2 bits sum in 8."""
    op = conv("c", (64, 16, 16), 64, 3)
    assert latency(A53, op, 8, 4) == pytest.approx(latency(A53, op, 4, 8), rel=0.1)
    assert latency(A53, op, 2, 2) < 0.75 * latency(A53, op, 4, 4) < latency(A53, op, 4, 8)


@pytest.mark.parametrize("device", [M4_OWN, M7_OWN, M55_OWN])
@pytest.mark.parametrize("op", LAYERS, ids=lambda op: op.name)
def test_own_cortex_m_kernels_unpack_weights_for_little(device: str, op: Operation) -> None:
    """Far from the 1.3-2.0 x that 4-bit weights cost elsewhere on these cores."""
    for bits in (4, 2):
        assert 0.85 < latency(device, op, bits, 8) / latency(device, op, 8, 8) < 1.25


@pytest.mark.parametrize("device", ["cortex-a55-rk3566-ddq", "cortex-a76-rpi5-ddq"])
@pytest.mark.parametrize("op", LAYERS, ids=lambda op: op.name)
def test_dot_product_cores_gain_no_time(device: str, op: Operation) -> None:
    for weight_bits, act_bits in itertools.product((2, 4, 8), repeat=2):
        assert latency(device, op, weight_bits, act_bits) > 0.96 * latency(device, op, 8, 8)
    if op.name != "stem":
        assert latency("cortex-a76-rpi5-ddq", op, 4, 8) > latency("cortex-a76-rpi5-ddq", op, 8, 8)


@pytest.mark.parametrize("device", [A53, M4_OWN])
@pytest.mark.parametrize("k", [17, 40])
def test_staircase_of_k(device: str, k: int) -> None:
    """A row takes whole steps: 4-bit weights of K and of K rounded up to 16 differ by gathering only."""
    seconds = [latency(device, conv("c", (n, 8, 8), 64, 1), 4, 8) for n in (k, -(-k // 16) * 16, -(-k // 16) * 16 + 16)]
    assert seconds[2] - seconds[1] > 0
    assert abs(seconds[1] - seconds[0]) < seconds[2] - seconds[1] or seconds[0] > seconds[1]


# -- contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", list_profiles())
@pytest.mark.parametrize("model", MODELS)
def test_contract(model: str, device: str) -> None:
    space, tables, cost = priced(model, device)
    graph = traced(model)
    assert cost.name == device
    contract.check_facts(cost, graph, tables)
    contract.check_expectations(tables)
    contract.check_policies(cost, graph, space, tables)
    contract.check_flash(tables)
    for weight_bits, act_bits in contract.CHOICES:
        policy = uniform(space, weight_bits, act_bits)
        plan = cost.plan(graph, space, policy)
        assert max(plan.live_bytes) == tables.price(policy)[PEAK_RAM]
        assert [float(b) for b in plan.live_bytes] == tables.step_sums(tables.one_hot(policy)).tolist()


def test_factors_of_mobilenet_v2_are_quick() -> None:
    graph, cost = traced("mobilenet_v2"), cost_model(A53)
    space = build_space(graph, cost)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        cost.factors(graph, space)
        best = min(best, time.perf_counter() - start)
    assert best <= 0.1


def test_tied_tensors_share_an_axis() -> None:
    _, tables, _ = priced("unusual", A53)
    doubled = next(f for f in tables.factors if f.operation.startswith("add") and f.part == "compute")
    assert len(doubled.variables) == 2  # x + x reads one variable
    assert all(len(set(factor.variables)) == len(factor.variables) for factor in tables.factors)


def test_storing_outputs_is_priced_for_every_kernel() -> None:
    _, tables, _ = priced("resnet8", A53)
    output = next(f for f in tables.factors if f.part == "output" and f.table.shape == (3, 3, 3))
    assert (output.table >= 0).all()
    assert output.table.max() > 0
    residual = next(f for f in tables.factors if f.operation.startswith("blocks.0.add") and f.part == "compute")
    assert residual.table.min() == residual.table[(-1,) * residual.table.ndim]


# -- errors -------------------------------------------------------------------------------------------------------


def test_an_unknown_operation_is_never_free() -> None:
    graph = nx.MultiDiGraph()
    graph.add_node("warp", operation=Operation("warp", "grid_sample", (), (4,)))
    cost = cost_model(M7)
    space = SearchSpace(
        (Variable("activations/warp", "activations", (8,), ("warp",)),), {}, {"warp": "activations/warp"}
    )
    for call in (lambda: cost.factors(graph, space), lambda: build_space(graph, cost)):
        with pytest.raises(CostError, match=r"'warp'.*grid_sample"):
            call()


def test_an_illegal_precision_names_the_layer() -> None:
    graph = traced("resnet8")
    space = build_space(graph, cost_model(A53))
    with pytest.raises(CostError, match=r"'stem'.*weight bits \[2\] are not executed by cortex-m7"):
        cost_model(M7).factors(graph, space)


def test_legality() -> None:
    cost = cost_model(M7)
    assert cost.legal_weight_bits(conv("g", (8, 4, 4), 8, 3, groups=2)) == (8,)
    assert cost.legal_weight_bits(operation(traced("resnet8"), "fc")) == (4, 8)
    assert {cost.legal_activation_bits(op) for op in operations(traced("resnet8"))} == {(8,)}
