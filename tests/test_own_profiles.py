"""Profiles of our own C kernels: they predict every counted layer, price what C runs, and plan what it needs."""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

import hardware_models
from ddq_search.export.c.registry import all_kernels
from ddq_search.layer_shape import LayerShape
from hardware_models import list_profiles, load_profile
from hardware_models.engine import Kernel
from hardware_models.pricing import pricer_of
from hardware_models.terms import work

MEASUREMENTS = Path(hardware_models.__file__).parent / "measurements"
OWN = [name for name in list_profiles() if load_profile(name).runtime_key == "ddq-c"]
COUNTED = {
    "cortex-m4-stm32l4r5-ddq": ("own_kernels_cortex_m.csv", "cortex-m4", "instructions", 7.0),
    "cortex-m7-stm32h743-ddq": ("own_kernels_cortex_m.csv", "cortex-m7", "instructions", 7.0),
    "cortex-m33-ra6m4-ddq": ("own_kernels_cortex_m.csv", "cortex-m33", "instructions", 7.0),
    "cortex-m55-an547-ddq": ("own_kernels_helium.csv", "cortex-m55-clang", "instructions", 10.0),
    "cortex-a53-rpi3-lowbit-neon": ("neon_layers_mca.csv", "cortex-a53", "cycles", 7.0),
    "cortex-a72-rpi4-ddq": ("neon_layers_mca.csv", "cortex-a72", "cycles", 7.0),
    "cortex-a55-rk3566-ddq": ("neon_layers_mca.csv", "cortex-a55", "cycles", 7.0),
    "cortex-a76-rpi5-ddq": ("neon_layers_mca.csv", "cortex-a76", "cycles", 7.0),
}
"""Profile → file of counts, core in it, column, largest error of a layer in percent."""


@functools.cache
def rows(file: str, core: str) -> list[dict[str, str]]:
    with (MEASUREMENTS / file).open(newline="") as opened:
        return [row for row in csv.DictReader(opened) if row["core"] == core]


def shape_of(row: dict[str, str]) -> LayerShape:
    number = {key: int(value) for key, value in row.items() if value.isdigit()}
    pair = [(number[f"{name}_h"], number[f"{name}_w"]) for name in ("kernel", "stride", "dilation")]
    source, output = ((number[f"{name}_h"], number[f"{name}_w"], number[f"{name}_c"]) for name in ("in", "out"))
    padding = number["pad_top"], number["pad_left"]
    return LayerShape(row["layer_class"], source, output, pair[0], pair[1], padding, pair[2], number["groups"])


def predicted(kernel: Kernel, shape: LayerShape, output_bits: int) -> float:
    packing = work(kernel.pack[output_bits], shape, kernel) if output_bits < 8 else 0.0
    return work(kernel.terms, shape, kernel) + packing


def errors(name: str) -> Iterator[tuple[float, dict[str, str]]]:
    """Relative error of every counted call of a layer of networks, on the kernel that was counted."""
    file, core, column, _ = COUNTED[name]
    pricer = pricer_of(load_profile(name))
    for row in rows(file, core):
        shape, widths = shape_of(row), (int(row["weight_bits"]), int(row["input_bits"]))
        kernel = pricer.kernel_of(row["case"], shape, *widths)
        assert kernel.name == row["kernel"], row
        yield predicted(kernel, shape, int(row["output_bits"])) / float(row[column]) - 1, row


@pytest.mark.parametrize("name", [name for name in COUNTED if load_profile(name).engine.unit == "instructions"])
def test_every_counted_layer_is_predicted(name: str) -> None:
    bound, found = COUNTED[name][3], list(errors(name))
    assert len({row["case"] for _, row in found}) >= 40
    beyond = {f"{row['case']} w{row['weight_bits']}": round(100 * e, 1) for e, row in found if abs(e) > bound / 100}
    assert not beyond


@pytest.mark.parametrize("name", [name for name in COUNTED if load_profile(name).engine.unit == "cycles"])
def test_every_static_layer_is_predicted(name: str) -> None:
    """Fully connected layers of under two thousand cycles are left out: fixed costs that the form has not."""
    found = [(e, row) for e, row in errors(name) if row["layer_class"] != "linear" or float(row["cycles"]) > 2000]
    assert len({row["case"] for _, row in found}) >= 40
    beyond = {f"{row['case']} w{row['weight_bits']}": round(100 * e, 1) for e, row in found if abs(e) > 0.07}
    assert not beyond


def test_every_profile_of_ours_is_counted() -> None:
    """The F746 is the H743's core on another board."""
    assert set(OWN) == {*COUNTED, "cortex-m7-stm32f746-ddq"}


@pytest.mark.parametrize("name", OWN)
def test_prices_and_scratch_are_those_of_the_c_kernels(name: str) -> None:
    """No kernel is priced on a shape that it does not execute, and scratch is what the C kernel says."""
    profile = load_profile(name)
    pricer = pricer_of(profile)
    for row in rows("own_kernels_portable.csv", "cortex-m4")[::7]:
        shape, widths = shape_of(row), (int(row["weight_bits"]), int(row["input_bits"]))
        kernel = all_kernels()[pricer.kernel_of("layer", shape, *widths).name]
        assert kernel.executes(shape)
        assert shape.layer_class in kernel.classes
        assert (widths[0] in kernel.weight_bits, widths[1] in kernel.activation_bits) == (True, True)
        _, scratch = pricer.layer("layer", shape, widths[:1], widths[1:])
        assert scratch.item() == kernel.scratch_bytes(shape, *widths)


def test_what_no_special_kernel_executes_is_portable() -> None:
    twice = LayerShape("depthwise", (6, 6, 8), (6, 6, 16), (3, 3), padding=(1, 1), groups=8)
    for name in OWN:
        assert pricer_of(load_profile(name)).kernel_of("layer", twice, 4, 8).name == "ddq_portable"
