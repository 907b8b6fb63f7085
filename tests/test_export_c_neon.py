"""The NEON kernels: layouts by hand, codes equal NumPy on host and emulated AArch64, bounds, measured figures."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hardware_models
from ddq_search.export.c import neon, neon_dot, targets, trials
from ddq_search.export.c.neon import planar, planar_rows, tap_major
from ddq_search.export.c.targets import TARGETS
from ddq_search.export.c.trials import SANITIZERS, Runner, Trial
from ddq_search.layer_shape import LayerShape
from ddq_search.packing import weight_bytes

MEASUREMENTS = Path(hardware_models.__file__).parent / "measurements"
FAMILIES = {"neon": neon.KERNELS, "neon_dot": neon_dot.KERNELS}


def conv(size, channels, kernel=(3, 3), stride=1, pad=1, groups=1, dilation=1) -> LayerShape:
    output = [(n + 2 * pad - (k - 1) * dilation - 1) // stride + 1 for n, k in zip(size, kernel, strict=True)]
    kind = "depthwise" if groups == channels[0] > 1 else "grouped" if groups > 1 else "conv"
    if kernel == (1, 1) and groups == 1:
        kind = "pointwise"
    return LayerShape(
        kind, (*size, channels[0]), (*output, channels[1]), kernel, (stride, stride), (pad, pad),
        (dilation, dilation), groups,
    )  # fmt: skip


def linear(inputs, outputs, positions=1) -> LayerShape:
    return LayerShape("linear", (positions, 1, inputs), (positions, 1, outputs))


SHAPES = (
    conv((5, 7), (3, 5)),  # K 27, tails of channels and positions
    conv((6, 6), (16, 8)),  # pieces of windows are whole steps
    conv((9, 9), (17, 6), stride=2),
    conv((9, 9), (16, 4), dilation=3),
    conv((9, 10), (33, 6), (1, 1), pad=0),  # more than one panel, seen as rows of panels
    conv((4, 4), (40, 4), (2, 3), pad=2),
    conv((8, 8), (12, 12), groups=3),
    conv((2, 2), (96, 5)),  # K 864: several blocks of int16 and int8 lanes
    conv((6, 9), (17, 17), groups=17),
    conv((5, 5), (3, 3), groups=3),
    conv((8, 7), (24, 24), (7, 7), pad=3, groups=24),
    conv((7, 7), (32, 32), (3, 3), stride=2, groups=32),
    linear(17, 5),
    linear(63, 9, 3),
    linear(1300, 20),
)


def trials_of(family: str, shapes=SHAPES) -> list[Trial]:
    """Every kernel of the family with every width it reads on the shapes it executes."""
    rng = np.random.default_rng(7)
    return [
        Trial(
            kernel, shape, weight_bits, input_bits, int(rng.choice((8, 4, 2))),
            rounding=("single", "double")[int(rng.integers(2))], clamped=bool(rng.integers(2)),
            raised=int(rng.choice((0, 0, 1, 3))), large_bias=bool(rng.integers(2)), seed=int(rng.integers(1 << 30)),
        )
        for shape in shapes
        for kernel in FAMILIES[family]
        if shape.layer_class in kernel.classes and kernel.executes(shape)
        for weight_bits in kernel.weight_bits
        for input_bits in kernel.activation_bits
    ]  # fmt: skip


def runner(target: str, family: str, directory, flags=("-O1",)) -> Runner:
    gap = targets.missing(TARGETS[target])
    if gap:
        pytest.skip(gap)
    return Runner(TARGETS[target], FAMILIES[family], directory, flags=flags)


# -- layouts ----------------------------------------------------------------------------------------------------


def test_planar_4_bit_by_hand():
    codes = np.arange(32) % 15 - 7
    row = np.concatenate([codes, [1, 2, -3, 4, 5]]).astype(np.int8)[None]
    # byte i holds codes i and 16 + i; the rest of five in three bytes: 1 and 4, 2 and 5, -3 alone
    whole = bytes((int(codes[i]) & 15) | (int(codes[16 + i]) & 15) << 4 for i in range(16))
    assert planar(row, 4) == whole + bytes([0x41, 0x52, 0x0D])


def test_planar_2_bit_by_hand():
    # runs of two: 1 -1 | 0 1 | -1 0 | 1
    assert planar(np.array([[1, -1, 0, 1, -1, 0, 1]], np.int8), 2) == bytes([0b01_11_00_01, 0b00_00_01_11])


def test_depthwise_layout_is_tap_major():
    codes = np.array([[1, 2, 3], [-1, -2, -3]], np.int8)  # two channels, three taps
    shape = LayerShape("depthwise", (3, 1, 2), (1, 1, 2), (3, 1), groups=2)
    assert tap_major(codes, 8, shape).hex() == "01ff02fe03fd"
    assert tap_major(codes, 4, shape) == planar(np.array([[1, -1, 2, -2, 3, -3]], np.int8), 4) + b"\0"


@given(rows=st.integers(1, 6), length=st.integers(1, 200), bits=st.sampled_from((2, 4, 8)), seed=st.integers(0, 99))
def test_planar_holds_every_code_once_in_the_priced_bytes(rows, length, bits, seed):
    top = {8: 127, 4: 7, 2: 1}[bits]
    codes = np.random.default_rng(seed).integers(-top, top + 1, (rows, length)).astype(np.int8)
    data = planar_rows(codes, bits, linear(length, rows))
    assert len(data) == weight_bytes(rows, length, bits)
    each, size = 8 // bits, len(data) // rows
    found = np.zeros_like(codes)
    for k in range(length):
        whole = length // (16 * each) * 16 * each
        run = 16 if k < whole else -(-(length - whole) // each)
        base, place = (k // (16 * each) * 16, k % (16 * each)) if k < whole else (whole // each, k - whole)
        byte = np.frombuffer(data, np.uint8).reshape(rows, size)[:, base + place % run].astype(int)
        field = byte >> (bits * (place // run)) & ((1 << bits) - 1)
        found[:, k] = field - ((field >> (bits - 1)) << bits)
    assert (found == codes).all()


# -- codes equal NumPy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["neon", "neon_dot"])
def test_portable_intrinsics_equal_numpy(family, tmp_path):
    runner("host", family, tmp_path).run(trials_of(family))


@pytest.mark.parametrize(("family", "target"), [("neon", "aarch64"), ("neon_dot", "aarch64-dot")])
def test_aarch64_equals_numpy(family, target, tmp_path):
    runner(target, family, tmp_path, ("-O2",)).run(trials_of(family))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["neon", "neon_dot"])
def test_sanitizers_see_no_byte_too_far(family, tmp_path):
    runner("host", family, tmp_path, SANITIZERS).run(trials_of(family))


def extreme(sign: int, ordinary):
    """Layers whose every product has the largest magnitude that the kernel's narrow lanes are sized for."""

    def draw(trial: Trial):
        layer = ordinary(trial)
        top = {8: 127, 4: 7, 2: 1}[trial.weight_bits]
        high = (1 << trial.input_bits) - 1
        offset = trial.kernel.offset or 0
        farthest = 0 if offset >= high - offset else high
        return dataclasses.replace(
            layer, codes=np.full_like(layer.codes, sign * top), x=np.full_like(layer.x, farthest), in_zero=0,
            bias=np.zeros_like(layer.bias), shift=np.full_like(layer.shift, -8), out_zero=128,
        )  # fmt: skip

    return draw


LONG = (conv((4, 4), (320, 4), pad=0), conv((9, 9), (16, 16), (9, 9), pad=0, groups=16), linear(4700, 4))


@pytest.mark.parametrize("target", ["host", "aarch64"])
def test_narrow_lanes_hold_the_largest_products(target, tmp_path, monkeypatch):
    """K of 2880, 81 taps and K of 4700: beyond one block of every narrow lane but those for 584 products."""
    listed = [dataclasses.replace(trial, output_bits=8, clamped=False) for trial in trials_of("neon", LONG)]
    bench = runner(target, "neon", tmp_path)
    for sign in (1, -1):
        monkeypatch.setattr(trials, "draw", extreme(sign, trials.draw))
        bench.run(listed)
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("name", "products", "weight", "code", "limit"),
    [
        ("ddq_neon_w8a8", 2, 127, 128, 32767),
        ("ddq_neon_w8a4", 32, 127, 8, 32767),
        ("ddq_neon_w4a8", 36, 7, 128, 32767),
        ("ddq_neon_w4a4", 584, 7, 8, 32767),
        ("ddq_neon_w2a8", 254, 1, 128, 32767),
        ("ddq_neon_w2a4", 15, 1, 8, 127),
        ("ddq_neon_w2a2", 42, 1, 3, 127),
    ],
)
def test_stated_bounds_are_the_largest(name, products, weight, code, limit):
    kernel = next(kernel for kernel in neon.KERNELS if kernel.name == name)
    per_step = 1 if limit == 127 else 2
    assert products * weight * code <= limit < (products + per_step) * weight * code
    assert str(products * weight * code) in kernel.bound


# -- what was measured ------------------------------------------------------------------------------------------


def static_cycles(core: str, column: str) -> dict[tuple[str, str], float]:
    with (MEASUREMENTS / "neon_layers_mca.csv").open(encoding="utf-8", newline="") as file:
        return {
            (line["case"], f"w{line['weight_bits']}a{line['input_bits']}"): float(line[column])
            for line in csv.DictReader(file)
            if line["core"] == core and (line["input_bits"] == line["output_bits"])
        }


RESNET8 = (
    "ic_c2_3x3_32x32_16_16",
    "ic_c3_3x3s2_32x32_16_32",
    "ic_c4_3x3_16x16_32_32",
    "ic_c5a_3x3s2_16x16_32_64",
    "ic_c5_3x3_8x8_64_64",
)


def test_golden_ordering_without_dot_product():
    for column in ("cycles", "product_cycles"):
        cycles = static_cycles("cortex-a53", column)
        for case in (*RESNET8, "pw_12x12_64_64", "pw_6x6_128_128", "pw_3x3_256_256"):
            assert cycles[case, "w4a8"] < cycles[case, "w8a8"]


def test_golden_ordering_with_dot_product():
    cycles = static_cycles("cortex-a76", "cycles")
    for case in (*RESNET8, "pw_12x12_64_64", "pw_6x6_128_128", "pw_3x3_256_256"):
        assert cycles[case, "w4a8"] > cycles[case, "w8a8"]


def test_inner_loops_are_as_much_faster_as_promised():
    """Product loops of Cortex-A53 against the 8-bit kernel of the same compiler: 1.3 x, and 2 x where K is long."""
    cycles = static_cycles("cortex-a53", "product_cycles")
    for case in (*RESNET8, "pw_6x6_128_128", "pw_7x7_240_40", "pw_3x3_256_256", "grouped_2_16x16_32_32"):
        assert cycles[case, "w8a8"] >= 1.3 * cycles[case, "w4a8"]
    for case in ("ic_c5_3x3_8x8_64_64", "conv_3x3_7x7_48_96"):
        assert cycles[case, "w8a8"] >= 2.0 * cycles[case, "w2a2"]
    whole = static_cycles("cortex-a53", "cycles")
    for case in ("ic_c4_3x3_16x16_32_32", "ic_c5a_3x3s2_16x16_32_64", "ic_c5_3x3_8x8_64_64"):
        assert whole[case, "w8a8"] >= 1.3 * whole[case, "w4a8"]
