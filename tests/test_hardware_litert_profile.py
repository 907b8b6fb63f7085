"""Operator profiles as benchmark_model prints them, matched with a network's layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ddq_search.errors import ConfigError
from ddq_search.graph import Operation
from ddq_search.layer_shape import LayerShape
from hardware_models.executions import Execution
from hardware_models.litert_profile import is_litert_profile, match, profiled_nodes, read_profile


def layer(kind: str, k: int, channels: int, size: int) -> LayerShape:
    window = (3, 3) if kind in ("conv", "depthwise") else (1, 1)
    inputs = channels if kind == "depthwise" else k
    if kind == "linear":
        return LayerShape("linear", (1, 1, k), (1, 1, channels))
    padding = (window[0] // 2, window[1] // 2)
    groups = channels if kind == "depthwise" else 1
    return LayerShape(kind, (size, size, inputs), (size, size, channels), window, padding=padding, groups=groups)  # type: ignore[arg-type]


TEXT_HEAD = "\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]\n"


def text_profile(nodes: Sequence[tuple[str, float]], *, start: bool = False) -> str:
    """The run order as `benchmark_model` prints it: an initialization first, the regular runs, the same by time."""
    lines = []
    for index, (kind, ms) in enumerate(nodes):
        began = "\t            0.100" if start else ""
        lines.append(
            f"\t{kind:>24}{began}\t    9.000\t{ms:9.3f}\t  1.500%\t 50.000%\t     0.000\t        1"
            f"\t[some/name]:{index}\n"
        )
    head = "============================== {} ==============================\n"
    return (
        "STARTING!\nProfiling Info for Benchmark Initialization:\n" + head.format("Run Order") + TEXT_HEAD
        + "\t         AllocateTensors\t    7.000\t    7.000\t100.000%\t100.000%\t     0.000\t        1\t"
        + "AllocateTensors/0\n\n"
        + "Operator-wise Profiling Info for Regular Benchmark Runs:\n" + head.format("Run Order") + TEXT_HEAD
        + "".join(lines) + "\n" + head.format("Top by Computation Time") + TEXT_HEAD + "".join(reversed(lines))
        + "\nNumber of nodes executed: 3\n"
    )  # fmt: skip


def small_network() -> tuple[Execution, ...]:
    return (
        Execution("stem", layer("conv", 3, 8, 8)),
        Execution("dw", layer("depthwise", 8, 8, 8)),
        Execution("pw", layer("pointwise", 8, 16, 8)),
        Execution("add", Operation("add", "add", ((16, 8, 8), (16, 8, 8)), (16, 8, 8))),
        Execution("fc", layer("linear", 16, 10, 1)),
    )


BUILTIN = [
    ("CONV_2D", 4.0), ("DEPTHWISE_CONV_2D", 2.0), ("CONV_2D", 1.5), ("ADD", 0.25), ("FULLY_CONNECTED", 0.5),
    ("SOFTMAX", 0.01),
]  # fmt: skip
DELEGATED = [
    ("Convolution (NHWC, QC8) IGEMM", 4.0), ("Convolution (NHWC, QC8) DWConv", 2.0),
    ("Convolution (NHWC, QC8) GEMM", 1.5), ("Add (ND, QS8)", 0.25), ("Fully Connected (NC, QS8, QC8W) GEMM", 0.5),
    ("SoftMax (NC, F32)", 0.01),
]  # fmt: skip


def csv_profile(nodes: Sequence[tuple[str, float]]) -> str:
    lines = [f"{kind}, 9, {ms:g}, 1.5%, 50%, 0, 1, Delegate/{kind}:{i}\n" for i, (kind, ms) in enumerate(nodes)]
    head = "============================== Run Order ==============================\n"
    return head + "node type, first, avg_ms, %, cdf%, mem KB, times called, name\n" + "".join(lines) + "\n"


@pytest.mark.parametrize("nodes", [BUILTIN, DELEGATED])
@pytest.mark.parametrize("form", ["text", "text with start", "csv"])
def test_an_operator_profile_times_every_layer(nodes: list[tuple[str, float]], form: str, tmp_path: Path) -> None:
    text = csv_profile(nodes) if form == "csv" else text_profile(nodes, start="start" in form)
    assert is_litert_profile(text)
    path = tmp_path / "profile.txt"
    path.write_text(text)
    found, unmatched = read_profile(path, small_network())
    times = {measurement.executions[0].name: measurement.seconds for measurement in found}
    assert times == pytest.approx({"stem": 4e-3, "dw": 2e-3, "pw": 1.5e-3, "fc": 5e-4, "add": 2.5e-4})
    assert unmatched == [nodes[-1][0]]


def test_a_profile_of_another_network_is_refused() -> None:
    nodes = profiled_nodes(text_profile(BUILTIN), "p.txt")
    with pytest.raises(ConfigError, match=r"p\.txt profiles 4 weighted layers, the network has 3"):
        match(nodes, small_network()[1:], "p.txt")
    swapped = (small_network()[1], small_network()[0], *small_network()[2:])
    with pytest.raises(ConfigError, match="'CONV_2D' is a convolution layer, 'dw' a depthwise one"):
        match(nodes, swapped, "p.txt")


def test_profiles_that_do_not_say_whose_time_it_is() -> None:
    with pytest.raises(ConfigError, match="holds no operator profile; run benchmark_model with"):
        profiled_nodes("INFO: nothing\n", "p.txt")
    merged = text_profile(BUILTIN).replace("        1\t[some/name]:0", "       13\t[some/name]:0")
    with pytest.raises(ConfigError, match="was called 13 times per run"):
        profiled_nodes(merged, "p.txt")


def test_operations_whose_number_differs_are_left_out() -> None:
    nodes = profiled_nodes(text_profile([*BUILTIN, ("ADD", 0.3)]), "p.txt")
    found, unmatched = match(nodes, small_network(), "p.txt")
    assert {m.executions[0].name for m in found} == {"stem", "dw", "pw", "fc"}
    assert set(unmatched) == {"ADD", "SOFTMAX"}


def test_times_of_mostly_rounding_are_left_out() -> None:
    short = [(kind, 0.004 if kind == "FULLY_CONNECTED" else ms) for kind, ms in BUILTIN]
    found, unused = match(profiled_nodes(text_profile(short), "p.txt"), small_network(), "p.txt")
    assert "fc" not in {m.executions[0].name for m in found}
    assert unused == ["SOFTMAX", "1 lines below 0.01 ms"]
