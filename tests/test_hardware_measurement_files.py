"""Measured times read from CSV files, and every mistake in them named."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from ddq_search.errors import ConfigError, GraphError
from ddq_search.export.c.layers import COLUMNS
from ddq_search.graph import ModelGraph, to_json
from ddq_search.layer_shape import LayerShape
from ddq_search.trace import trace
from hardware_models.cmsis_nn import MEASUREMENTS
from hardware_models.executions import Execution, executions_of
from hardware_models.measurement_files import PER_LAYER, read_measurements
from hardware_models.profile import load_profile
from hardware_models.time_parts import Anatomy
from search_spaces.models import build_model

M4, A53 = "cortex-m4-stm32l4r5-cmsis-nn", "cortex-a53-rpi3-lowbit-neon"


@cache
def traced() -> ModelGraph:
    return trace(build_model("ds_cnn", 1, 10, (32, 32)), torch.zeros(1, 1, 32, 32))


def refuse(model: str, size: str) -> ModelGraph:
    raise GraphError(f"no model {model!r} here")


def layer(kind: str, k: int, channels: int, size: int) -> LayerShape:
    window = (3, 3) if kind in ("conv", "depthwise") else (1, 1)
    inputs = channels if kind == "depthwise" else k
    if kind == "linear":
        return LayerShape("linear", (1, 1, k), (1, 1, channels))
    padding = (window[0] // 2, window[1] // 2)
    groups = channels if kind == "depthwise" else 1
    return LayerShape(kind, (size, size, inputs), (size, size, channels), window, padding=padding, groups=groups)  # type: ignore[arg-type]


ROW = {
    "layer": "conv1", "kernel": "", "layer_class": "conv", "in_h": 8, "in_w": 8, "in_c": 3, "out_h": 8, "out_w": 8,
    "out_c": 4, "kernel_h": 3, "kernel_w": 3, "stride_h": 1, "stride_w": 1, "pad_top": 1, "pad_left": 1,
    "dilation_h": 1, "dilation_w": 1, "groups": 1, "weight_bits": 4, "input_bits": 8, "output_bits": 8, "macs": 6912,
    "value": 120000, "unit": "cycles",
}  # fmt: skip


def write_rows(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("value", "unit", "seconds"),
    [(120000, "cycles", 1e-3), (3, "ms", 3e-3), (5e4, "ns", 5e-5), (5e4, "nanoseconds", 5e-5), (7, "us", 7e-6)],
)
def test_a_row_per_layer(tmp_path: Path, value: float, unit: str, seconds: float) -> None:
    path = write_rows(tmp_path / "bench.csv", [{**ROW, "value": value, "unit": unit}])
    (found,) = read_measurements(path, load_profile(M4), refuse)
    assert found.seconds == pytest.approx(seconds)
    assert found.timed
    shape = LayerShape("conv", (8, 8, 3), (8, 8, 4), (3, 3), padding=(1, 1))
    assert found.executions == (Execution("conv1", shape, 4, 8, 8),)


def test_counted_instructions_are_no_time(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "bench.csv", [{**ROW, "unit": "instructions"}])
    (found,) = read_measurements(path, load_profile(M4), refuse)
    assert not found.timed
    assert found.seconds == pytest.approx(120000 * 1.545 / 120e6, rel=1e-3)
    with pytest.raises(ConfigError, match="does not count instructions"):
        read_measurements(path, load_profile(A53), refuse)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"macs": 7000}, "row 1: macs is 7000, but the geometry has 6912"),
        ({"unit": "minutes"}, "unit is 'minutes'; known: s, ms"),
        ({"value": "fast"}, "value is 'fast', not a number"),
        ({"value": "nan"}, "value is 'nan', not a number"),
        ({"in_h": 0}, "in_h is '0', expected a whole number of at least 1"),
        ({"in_h": 1.5}, "in_h is '1.5', expected a whole number"),
        ({"layer_class": "lstm"}, "layer_class is 'lstm'; known: conv"),
        ({"groups": 2}, "2 groups do not divide 3 and 4 channels"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write_rows(tmp_path / "bench.csv", [{**ROW, **change}])
    with pytest.raises(ConfigError, match=message):
        read_measurements(path, load_profile(M4), refuse)


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.csv"):
        read_measurements(tmp_path / "absent.csv", load_profile(M4), refuse)
    (tmp_path / "empty.csv").write_text("model,weight_bits,act_bits,latency_ms\n")
    with pytest.raises(ConfigError, match=r"empty\.csv holds no measurements"):
        read_measurements(tmp_path / "empty.csv", load_profile(M4), refuse)
    for row, more in (("resnet8,8,8,1,2", "more"), ("resnet8,8", "fewer")):
        (tmp_path / "ragged.csv").write_text(f"model,weight_bits,act_bits,latency_ms\n{row}\n")
        with pytest.raises(ConfigError, match=rf"ragged\.csv, row 1: has {more} fields than the header"):
            read_measurements(tmp_path / "ragged.csv", load_profile(M4), refuse)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=r"neither a file of layers .* nor of networks \(lacks act_bits, latency_ms"):
        read_measurements(tmp_path / "other.csv", load_profile(M4), refuse)


def test_a_row_per_network_from_graph_table_and_name(tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(to_json(traced()))
    write_rows(tmp_path / "net.csv", [{name: ROW[name] for name in PER_LAYER if name in ROW}])
    asked: list[tuple[str, str]] = []

    def resolve(model: str, size: str) -> ModelGraph:
        asked.append((model, size))
        return traced()

    path = tmp_path / "nets.csv"
    path.write_text(
        "model,input,weight_bits,act_bits,latency_ms\nnet.json,,8,8,12\nnet.csv,,4,8,3\nds_cnn,1x32x32,8,8,12.5\n"
    )
    graph, table, named = read_measurements(path, load_profile(M4), resolve)
    assert [m.seconds for m in (graph, table, named)] == pytest.approx([12e-3, 3e-3, 12.5e-3])
    assert graph.executions == named.executions == executions_of(traced(), 8, 8)
    assert [run.weight_bits for run in table.executions] == [4]
    assert asked == [("ds_cnn", "1x32x32")]
    with pytest.raises(ConfigError, match="row 3: no model 'ds_cnn' here"):
        read_measurements(path, load_profile(M4), refuse)


def test_a_table_shipped_with_the_profiles_is_a_network(tmp_path: Path) -> None:
    path = tmp_path / "nets.csv"
    path.write_text("model,weight_bits,act_bits,latency_ms\nmobilenet_v1-0.25-160,4,8,70\n")
    (found,) = read_measurements(path, load_profile(M4), refuse)
    layers = [run for run in found.executions if isinstance(run.work, LayerShape)]
    assert len(layers) == 28  # 1 + 13 x 2 convolutions, and the classifier
    assert {run.weight_bits for run in layers} == {4}
    with (MEASUREMENTS / "h743_layers_insn.csv").open(newline="") as file:
        published = [int(row["macs"]) for row in csv.DictReader(file)]
    assert [run.work.macs for run in layers[1:-1] if isinstance(run.work, LayerShape)] == published


def test_the_kernel_that_was_measured_is_the_one_fitted(tmp_path: Path) -> None:
    base = load_profile(A53)
    eight = next(k.name for k in base.engine.kernels if (k.weight_bits, k.activation_bits) == (8, 8))
    run = Execution("c", layer("conv", 64, 64, 8), 4, 8, 8)
    used = {c.number for piece in Anatomy(base).pieces(run) for c in piece.compute if c.place == "kernel"}
    named = {
        c.number for p in Anatomy(base).pieces(replace(run, kernel=eight)) for c in p.compute if c.place == "kernel"
    }
    assert {base.engine.kernels[index].weight_bits for index in used} == {4}
    assert {base.engine.kernels[index].name for index in named} == {eight}


def test_the_benchmark_of_the_c_export_prints_what_is_read() -> None:
    assert set(COLUMNS) == {*PER_LAYER, "kernel", "macs"}
