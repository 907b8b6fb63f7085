"""Calibration: times taken apart exactly, known corrections recovered, honest errors, profiles written."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.cost import LATENCY, CostTables
from ddq_search.errors import CostError, GraphError
from ddq_search.graph import ModelGraph
from ddq_search.layer_shape import LayerShape
from ddq_search.space import build_space
from ddq_search.trace import trace
from hardware_models.calibrated_profile import calibrated, extrapolations
from hardware_models.calibration import fit
from hardware_models.cmsis_nn import MEASUREMENTS, counted_layers
from hardware_models.engine import Rate
from hardware_models.executions import Execution, Measurement, executions_of
from hardware_models.model import ArmCostModel
from hardware_models.networks import load_network
from hardware_models.pricing import pricer_of
from hardware_models.profile import DeviceProfile, list_profiles, load_profile
from hardware_models.profile_file import write_profile
from hardware_models.time_parts import Anatomy, Coefficient
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


SHAPES = st.builds(
    layer, st.sampled_from(["conv", "pointwise", "depthwise", "linear"]), st.integers(2, 80), st.integers(2, 80),
    st.integers(1, 14),
)  # fmt: skip


# -- times taken apart --------------------------------------------------------------------------------------------


@given(shape=SHAPES, data=st.data())
@settings(max_examples=8, deadline=None)
@pytest.mark.parametrize("name", list_profiles())
def test_the_parts_add_up_to_the_price(name: str, shape: LayerShape, data: st.DataObject) -> None:
    profile = load_profile(name)
    bits = data.draw(st.sampled_from(profile.legal.weights[shape.layer_class]))
    inputs, output = (data.draw(st.sampled_from(profile.legal.activations)) for _ in range(2))
    pricer = pricer_of(profile)
    seconds, _ = pricer.layer("layer", shape, (bits,), (inputs,))
    if pricer.kernel_of("layer", shape, bits, inputs).pack:
        stored = pricer.packing("layer", shape, bits, inputs, (output,))
    else:
        stored = pricer.layer_output(shape, (output,))
    price = pricer.call_s + seconds.item() + (0.0 if stored is None else stored.item())
    assert Anatomy(profile).seconds(Execution("layer", shape, bits, inputs, output)) == pytest.approx(price, rel=1e-12)


@pytest.mark.parametrize("name", [M4, A53])
def test_a_network_taken_apart_is_its_price(name: str) -> None:
    graph, model = traced(), ArmCostModel(load_profile(name))
    space = build_space(graph, model, weight_bits=(8,), activation_bits=(8,))
    price = CostTables(space, model.factors(graph, space)).price({v.name: 8 for v in space.variables})[LATENCY]
    anatomy = Anatomy(model.profile)
    assert sum(map(anatomy.seconds, executions_of(graph, 8, 8))) == pytest.approx(price, rel=1e-9)


# -- fits ---------------------------------------------------------------------------------------------------------


def measured(
    profile: DeviceProfile, factor_of: dict[str, float], count: int, noise: float = 0.0, seed: int = 0
) -> list[Measurement]:
    """Layers of the emulated tables, timed by a device that is the profile with a factor per layer class."""
    generator, anatomy = np.random.default_rng(seed), Anatomy(profile)
    layers = counted_layers("M33")
    result = []
    for index in generator.permutation(len(layers))[:count]:
        run = Execution(layers[index].name, layers[index].shape, layers[index].weight_bits)
        factor = factor_of[layers[index].shape.layer_class] * float(generator.normal(1, noise))
        result.append(Measurement(run.name, anatomy.seconds(run) * factor, (run,)))
    return result


EVEN = {"conv": 1.7, "pointwise": 1.7, "depthwise": 1.7, "linear": 1.7}
UNEVEN = {"conv": 2.0, "pointwise": 1.5, "depthwise": 1.1, "linear": 1.8}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_measurements_give_a_scale_only(count: int) -> None:
    base = load_profile(M4)
    result = fit(base, measured(base, UNEVEN, count))
    assert result.level == "scale"
    assert set(result.factors.values()) == {result.scale}
    assert (result.error_pct is None) == (count == 1)


def test_a_scale_by_hand() -> None:
    """Two layers at 1.5 and 2 times the base: the relative least squares is (1/1.5 + 1/2) / (1/1.5² + 1/2²)."""
    base, anatomy = load_profile(M4), Anatomy(load_profile(M4))
    runs = [Execution(str(k), layer("linear", k, 16, 1)) for k in (64, 128)]
    result = fit(base, [Measurement(r.name, anatomy.seconds(r) * f, (r,)) for r, f in zip(runs, (1.5, 2), strict=True)])
    assert result.scale == pytest.approx((1 / 1.5 + 1 / 2) / (1 / 1.5**2 + 1 / 2**2))
    assert [r.held_out / r.measured for r in result.residuals] == pytest.approx([2 / 1.5, 1.5 / 2])  # type: ignore[operator]
    assert result.error_pct == pytest.approx((100 / 3 + 25) / 2)
    assert result.worst_pct == pytest.approx(100 / 3)


def test_an_even_device_needs_one_factor_whatever_was_measured() -> None:
    base = load_profile(M4)
    result = fit(base, measured(base, EVEN, 60))
    assert (result.level, result.scale) == ("scale", pytest.approx(1.7))
    assert result.error_pct == pytest.approx(0, abs=1e-9)


def test_many_measurements_find_the_classes() -> None:
    base = load_profile(M4)
    few, many = (fit(base, measured(base, UNEVEN, count, noise=0.02)) for count in (3, 78))
    assert many.level != "scale"
    assert many.error_pct is not None
    assert many.error_pct < 5 < few.error_pct  # type: ignore[operator]
    kernels = {kernel.name: index for index, kernel in enumerate(base.engine.kernels)}
    for name, layer_class in (("conv_s8", "conv"), ("depthwise_s4", "depthwise"), ("pointwise_s4", "pointwise")):
        largest = max(
            base.engine.kernels[kernels[name]].terms, key=lambda term: term == "macs" or term == "padded_macs"
        )
        assert many.factors[Coefficient("kernel", kernels[name], largest)] == pytest.approx(
            UNEVEN[layer_class], rel=0.2
        )


def published_layers() -> list[Measurement]:
    """Cycles of 26 layers of MobileNetV1-0.25-160 measured on a NUCLEO-H743ZI at 400 MHz."""
    with (MEASUREMENTS / "h743_layers_insn.csv").open(newline="") as file:
        cycles = [float(row["measured_cycles_stm32h743"]) for row in csv.DictReader(file)]
    layers = [run for run in load_network("mobilenet_v1-0.25-160") if isinstance(run.work, LayerShape)]
    return [Measurement(r.name, c / 400e6, (r,)) for r, c in zip(layers[1:-1], cycles, strict=True)]


@pytest.mark.parametrize(
    ("base", "error_pct"),
    [("cortex-m7-stm32h743-cmsis-nn", 5), (M4, 5), ("cortex-a53-rpi3-xnnpack", 10)],
)
def test_published_layers_of_a_real_board_are_predicted_when_left_out(base: str, error_pct: float) -> None:
    """18 distinct layers, from profiles of another kernel library, of another core, and of another world."""
    result = fit(load_profile(base), published_layers())
    assert result.distinct == 18
    assert result.error_pct is not None
    assert result.error_pct <= error_pct


def test_repetitions_are_held_out_together() -> None:
    """A layer measured ten times is one distinct measurement: nothing is known about others."""
    base, run = load_profile(M4), Execution("c", layer("conv", 16, 16, 8))
    result = fit(base, [Measurement(f"run {i}", 0.01 + 0.001 * i, (run,)) for i in range(10)])
    assert (result.distinct, result.level, result.error_pct) == (1, "scale", None)


def test_the_slower_of_compute_and_memory_is_what_gets_scaled() -> None:
    """Weights that stream twice as slowly: layers that wait for them teach the bandwidth, the others the kernels."""
    base = load_profile(A53)
    slow = {"weight_bandwidth_bytes_per_s": Rate(value=2e8, kind="static", source="test")}
    base = base.model_copy(update={"engine": base.engine.model_copy(update=slow)})
    runs = [Execution(f"fc {k}", LayerShape("linear", (1, 1, k), (1, 1, 1024))) for k in (512, 1024, 2048, 4096)]
    runs += [Execution(f"conv {c}", layer("conv", c, c, 14)) for c in (16, 32, 48, 64, 80)]
    anatomy, found = Anatomy(base), []
    for run in runs:
        call, work = anatomy.pieces(run)
        waits = sum(work.memory.values()) > sum(work.compute.values())
        assert waits == (run.work.layer_class == "linear")  # type: ignore[union-attr]
        memory = sum(2 * s if c.place == "weight memory" else s for c, s in work.memory.items())
        seconds = sum(call.compute.values()) + max(sum(work.compute.values()), memory)
        found.append(Measurement(run.name, seconds, (run,)))
    result = fit(base, found)
    assert result.level != "scale"
    assert result.factors[Coefficient("weight memory")] == pytest.approx(2, rel=0.1)
    assert [r.fitted / r.measured for r in result.residuals] == pytest.approx([1] * 9, rel=0.05)


@given(scale=st.floats(0.05, 50), seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_a_fit_is_never_worse_than_its_base_where_it_was_fitted(scale: float, seed: int) -> None:
    base = load_profile(M4)
    factors = {name: factor * scale for name, factor in UNEVEN.items()}
    measurements = measured(base, factors, 12, noise=0.05, seed=seed)
    result = fit(base, measurements)
    before = np.mean([(r.base / r.measured - 1) ** 2 for r in result.residuals])
    after = np.mean([(r.fitted / r.measured - 1) ** 2 for r in result.residuals])
    assert after <= before + 1e-12


def test_mistakes_in_measurements() -> None:
    base, run = load_profile(M4), Execution("c", layer("conv", 16, 16, 8))
    with pytest.raises(CostError, match="no measurements"):
        fit(base, [])
    with pytest.raises(CostError, match="'c': measured times must be positive, got 0"):
        fit(base, [Measurement("c", 0.0, (run,))])
    with pytest.raises(CostError, match=r"'c' .*2-bit weights .*no price"):
        fit(base, [Measurement("c", 1.0, (replace(run, weight_bits=2),))])


# -- the profile written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 8, 40])
def test_the_written_profile_predicts_what_the_fit_did_and_says_where_numbers_come_from(
    count: int, tmp_path: Path
) -> None:
    base = load_profile(M4)
    measurements = measured(base, UNEVEN, count, noise=0.02)
    result = fit(base, measurements)
    write_profile(calibrated(base, measurements, result, "My board!", "bench.csv"), tmp_path / "mine.toml")
    profile = load_profile(tmp_path / "mine.toml")
    assert profile.name == "my-board"
    anatomy = Anatomy(profile)
    for measurement, residual in zip(measurements, result.residuals, strict=True):
        assert anatomy.seconds(measurement.executions[0]) == pytest.approx(residual.fitted, rel=1e-4)
    rate = profile.engine.cycles_per_unit
    assert rate.kind == "measured"
    assert "measured by the user (bench.csv" in rate.source
    assert "(published: " in rate.source
    changed = [k for k, b in zip(profile.engine.kernels, base.engine.kernels, strict=True) if k.terms != b.terms]
    assert bool(changed) == (result.level != "scale")
    assert all(kernel.kind == "measured" and "base (" in kernel.source for kernel in changed)
    assert profile.memory == base.memory
    assert profile.clock_hz == base.clock_hz


def test_calibrated_only_with_a_held_out_error_within_the_bar() -> None:
    base, anatomy = load_profile(M4), Anatomy(load_profile(M4))
    runs = [Execution(str(k), layer("linear", k, 16, 1)) for k in (64, 128, 256)]

    def status(factors: Sequence[float], *, timed: bool = True) -> str:
        found = [
            Measurement(r.name, anatomy.seconds(r) * f, (r,), timed)
            for r, f in zip(runs[: len(factors)], factors, strict=True)
        ]
        return calibrated(base, found, fit(base, found), "mine", "x.csv").calibration.status

    assert status([2.0]) == "uncalibrated"  # nothing held out
    assert status([2.0, 2.1, 2.2]) == "calibrated"
    assert status([1.0, 2.0, 4.0]) == "uncalibrated"
    assert status([2.0, 2.1, 2.2], timed=False) == "uncalibrated"  # counted, not timed


def test_predictions_outside_the_fitted_shapes_say_so() -> None:
    base, anatomy = load_profile(M4), Anatomy(load_profile(M4))
    run = Execution("c", layer("conv", 3, 16, 8))
    found = [Measurement("c", anatomy.seconds(run), (run,))]
    profile = calibrated(base, found, fit(base, found), "mine", "x.csv")
    assert profile.calibration.fitted["conv"].row_length == (27, 27)
    said = extrapolations(profile, traced())
    assert any("conv K 27..27, asked" in sentence for sentence in said)
    assert any("no linear layer was fitted" in sentence for sentence in said)
    assert extrapolations(load_profile(A53), traced()) == []  # records no shapes
