"""Profiles of our own C kernels: they predict every counted layer, price what C runs, and plan what it needs."""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

import hardware_models
from ddq_search.errors import CostError
from ddq_search.export.c.registry import all_kernels
from ddq_search.layer_shape import LayerShape
from hardware_models import list_profiles, load_profile
from hardware_models.engine import Kernel
from hardware_models.pricing import WeightForm, pricer_of
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


PORTABLE = {
    "cortex-m4-stm32l4r5-ddq": "cortex-m4", "cortex-m7-stm32h743-ddq": "cortex-m7",
    "cortex-m33-ra6m4-ddq": "cortex-m33", "cortex-m55-an547-ddq": "cortex-m55-clang",
    "cortex-a53-rpi3-lowbit-neon": "aarch64", "cortex-a76-rpi5-ddq": "aarch64",
}  # fmt: skip
"""Profile → core that its portable kernels were counted on."""


@pytest.mark.parametrize("name", PORTABLE)
@pytest.mark.parametrize(
    ("kernel_name", "form"),
    [("ddq_portable_codebook", WeightForm(codebook=True)), ("ddq_portable_points", WeightForm(points=1))],
)
def test_codebooks_and_points_are_priced_on_their_own_kernels(name: str, kernel_name: str, form: WeightForm) -> None:
    """Each counted call is predicted within 7 % (M55: 10 %), and costs more than plain codes do on any kernel."""
    pricer = pricer_of(load_profile(name))
    counted = [row for row in rows("own_kernels_portable.csv", PORTABLE[name]) if row["kernel"] == kernel_name]
    assert len(counted) == 135
    for row in counted:
        shape, widths = shape_of(row), (int(row["weight_bits"]), int(row["input_bits"]))
        kernel = pricer.kernel_of(row["case"], shape, *widths, form)
        assert kernel.name == kernel_name
        assert predicted(kernel, shape, 8) == pytest.approx(
            float(row["instructions"]), rel=0.1 if "m55" in name else 0.07
        )
        special, plain = (
            pricer.layer("layer", shape, widths[:1], widths[1:], f)[0].item() for f in (form, WeightForm())
        )
        assert special > plain


def test_every_further_point_is_another_pass() -> None:
    shape = LayerShape("conv", (9, 9, 16), (9, 9, 24), (3, 3), padding=(1, 1))
    pricer = pricer_of(load_profile("cortex-m4-stm32l4r5-ddq"))
    portable = next(
        k for k in pricer.engine.kernels
        if (k.name, k.weight_bits, k.activation_bits) == ("ddq_portable", 4, 8) and "conv" in k.classes
    )  # fmt: skip
    none = work(portable.terms, shape, portable) * pricer.seconds_per_unit
    one, two, three = (pricer.layer("layer", shape, (4,), (8,), WeightForm(points=n))[0].item() for n in (1, 2, 3))
    assert two - one == pytest.approx(one - none, rel=0.01)  # its weights are loaded as well
    assert three - two == pytest.approx(two - one)
    assert 1.3 * none < one < 2.1 * none  # the window is gathered once


def test_runtimes_without_such_kernels_get_the_levels_written_out_as_eight_bits() -> None:
    shape = LayerShape("conv", (9, 9, 16), (9, 9, 24), (3, 3), padding=(1, 1))
    for name in ("cortex-m4-stm32l4r5-cmsis-nn", "cortex-a53-rpi3-xnnpack"):
        pricer = pricer_of(load_profile(name))
        eight, scratch = pricer.layer("layer", shape, (8,), (8,))
        for form in (WeightForm(codebook=True), WeightForm(points=1)):
            for bits in (4, 8):
                found = pricer.layer("layer", shape, (bits,), (8,), form)
                assert (found[0].item(), found[1].item()) == (eight.item(), scratch.item())


def test_a_profile_that_prices_no_such_kernel_says_so() -> None:
    profile = load_profile("cortex-m4-stm32l4r5-ddq")
    engine = profile.engine.model_copy(
        update={"kernels": tuple(k for k in profile.engine.kernels if not k.name.endswith(("codebook", "points")))}
    )
    pricer, shape = pricer_of(profile.model_copy(update={"engine": engine})), LayerShape("linear", (1, 1, 8), (1, 1, 4))
    for form, said in ((WeightForm(codebook=True), "as codebook"), (WeightForm(points=1), "with further points")):
        with pytest.raises(CostError, match=rf"'fc' \(linear\): 4-bit weights {said} with 8-bit .* no price"):
            pricer.layer("fc", shape, (4,), (8,), form)
