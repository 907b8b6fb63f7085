"""The Cortex-M DSP kernels: layouts by hand, codes equal NumPy on a sanitized host and emulated cores, speed bars."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddq_search.export.c import targets
from ddq_search.export.c.dsp import KERNELS, depthwise_layout, matrix_layout
from ddq_search.export.c.targets import OPTIMISATION, TARGETS
from ddq_search.export.c.trials import SANITIZERS, Runner, Trial
from ddq_search.layer_shape import LayerShape
from ddq_search.packing import weight_bytes

BY_NAME = {kernel.name: kernel for kernel in KERNELS}
CORES = ("cortex-m4", "cortex-m7", "cortex-m33")


def kernel_for(shape: LayerShape, bits: int):
    return BY_NAME["ddq_dsp_depthwise" if shape.layer_class == "depthwise" else f"ddq_dsp_conv_w{bits}"]


def runner(name: str, directory, **options) -> Runner:
    gap = targets.missing(TARGETS[name])
    if gap:
        pytest.skip(gap)
    return Runner(TARGETS[name], KERNELS, directory, **options)


# -- layouts ----------------------------------------------------------------------------------------------------


def linear(inputs: int, outputs: int, positions: int = 1) -> LayerShape:
    return LayerShape("linear", (positions, 1, inputs), (positions, 1, outputs))


def test_pairs_of_8_bit_channels_by_hand():
    codes = np.array([[1, 2, 3, 4, 5], [-1, -2, -3, -4, -5], [6, 7, 8, 9, 10]], np.int8)
    # quad of channel 0, quad of channel 1, rest of 0, rest of 1; the third channel alone
    assert matrix_layout(codes, 8, linear(5, 3)).hex() == "01020304" + "fffefdfc" + "05" + "fb" + "060708090a"


def test_pairs_of_4_bit_channels_by_hand():
    codes = np.array([[-7, -6, -5, -4, 7], [1, 2, 3, 4, -1]], np.int8)
    # plus 8: channel 0 is 1 2 3 4 f, channel 1 is 9 a b c 7. Bits from the top:
    # 28: c(1, k3) 24: b(1, k2) 20: 4(0, k3) 16: 3(0, k2) 12: a(1, k1) 8: 9(1, k0) 4: 2(0, k1) 0: 1(0, k0)
    word = 0xCB43A921
    assert matrix_layout(codes, 4, linear(5, 2)) == word.to_bytes(4, "little") + bytes([0x0F, 0x07])


def test_pairs_of_2_bit_channels_by_hand():
    codes = np.array([[-1, 0, 1, 0, 1, 1, 1, 1, -1], [1, 1, 0, 0, -1, -1, -1, -1, 1]], np.int8)
    # plus 2: channel 0 is 1 2 3 2 | 3 3 3 3 | 1, channel 1 is 3 3 2 2 | 1 1 1 1 | 3
    quads = ((1, 2, 3, 2), (3, 3, 2, 2), (3, 3, 3, 3), (1, 1, 1, 1))
    word = 0
    for unit, (k0, k1, k2, k3) in enumerate(quads):
        word |= k0 << 4 * unit | k1 << 4 * unit + 2 | k2 << 4 * unit + 16 | k3 << 4 * unit + 18
    assert matrix_layout(codes, 2, linear(9, 2)) == word.to_bytes(4, "little") + bytes([1, 3])


def test_blocks_of_depthwise_channels_by_hand():
    shape = LayerShape("depthwise", (4, 4, 5), (4, 4, 5), (1, 3), groups=5)
    codes = np.array([[0, 1, 2], [3, 4, 5], [-1, -2, -3], [-4, -5, -6], [7, -7, 0]], np.int8)
    assert depthwise_layout(codes, 8, shape).hex() == "0003fffc" + "0104fefb" + "0205fdfa" + "07f900"
    # plus 8, low nibble first: taps (8 b 7 4), (9 c 6 3), (a d 5 2); two bytes of zero; the last channel f 1 8
    assert depthwise_layout(codes, 4, shape).hex() == "b847" + "c936" + "da25" + "0000" + "1f08"


@given(rows=st.integers(1, 9), depth=st.integers(1, 19), groups=st.integers(1, 3), bits=st.sampled_from([2, 4, 8]))
def test_layouts_have_exactly_the_packed_bytes(rows, depth, groups, bits):
    shape = LayerShape("grouped", (1, 1, depth * groups), (1, 1, rows * groups), groups=groups)
    codes = np.ones((rows * groups, depth), np.int8)
    assert len(matrix_layout(codes, bits, shape)) == weight_bytes(rows * groups, depth, bits)
    assert len(depthwise_layout(codes, bits, shape)) == weight_bytes(rows * groups, depth, bits)


def test_scratch_by_hand():
    conv, depthwise = KERNELS[0].scratch_bytes, KERNELS[-1].scratch_bytes
    assert conv(LayerShape("conv", (8, 8, 64), (8, 8, 64), (3, 3)), 8, 8) == 2 * 576 * 2  # CMSIS-NN: 2304
    assert conv(LayerShape("conv", (8, 8, 3), (8, 8, 16), (3, 3)), 4, 8) == 2 * 28 * 2 + 27
    assert depthwise(LayerShape("depthwise", (8, 8, 6), (8, 8, 6), (3, 3), groups=6), 2, 8) == 9 * 4 * 2
    assert depthwise(LayerShape("depthwise", (8, 8, 6), (8, 8, 6), (3, 3), groups=6), 2, 4) == 9 * 4 * 2 + 9 * 4


def test_depthwise_with_a_channel_multiplier_is_not_taken():
    assert not KERNELS[-1].executes(LayerShape("depthwise", (4, 4, 4), (4, 4, 8), (3, 3), groups=4))


# -- codes ------------------------------------------------------------------------------------------------------

AWKWARD = (
    LayerShape("conv", (5, 6, 8), (5, 6, 6), (3, 3), (1, 1), (1, 1)),
    LayerShape("conv", (9, 7, 6), (5, 4, 5), (3, 3), (2, 2), (1, 1)),  # rest of K, odd channels, stride
    LayerShape("conv", (5, 7, 3), (5, 7, 4), (3, 3), (1, 1), (1, 1)),
    LayerShape("conv", (6, 5, 1), (6, 5, 7), (3, 3), (1, 1), (1, 1)),
    LayerShape("conv", (3, 3, 4), (3, 3, 2), (5, 5), (1, 1), (2, 2)),  # windows larger than the image
    LayerShape("grouped", (9, 7, 6), (5, 4, 6), (3, 3), (2, 2), (1, 1), groups=2),
    LayerShape("grouped", (9, 7, 8), (5, 3, 6), (3, 3), (1, 1), (0, 0), (2, 2), groups=2),
    LayerShape("grouped", (4, 5, 8), (4, 4, 6), (1, 2), groups=2),  # K is the channels of all groups
    LayerShape("conv", (3, 5, 8), (4, 6, 4)),  # padded below and to the right only
    LayerShape("pointwise", (3, 5, 20), (3, 5, 14)),
    LayerShape("pointwise", (3, 5, 2), (3, 5, 3)),
    LayerShape("pointwise", (5, 5, 12), (3, 3, 4), stride=(2, 2)),
    *(linear(inputs, 3, 3) for inputs in range(1, 18)),
    linear(64, 11),
    LayerShape("depthwise", (5, 6, 8), (5, 6, 8), (3, 3), (1, 1), (1, 1), groups=8),
    LayerShape("depthwise", (9, 6, 7), (5, 3, 7), (3, 3), (2, 2), (1, 1), groups=7),
    LayerShape("depthwise", (9, 9, 12), (9, 9, 12), (5, 5), (1, 1), (4, 4), (2, 2), groups=12),
    LayerShape("depthwise", (2, 2, 4), (2, 2, 4), (3, 3), (1, 1), (1, 1), groups=4),
    LayerShape("depthwise", (7, 1, 4), (7, 1, 4), (3, 1), (1, 1), (1, 0), groups=4),
)


def awkward_trials() -> list[Trial]:
    """Every shape and weight width with three pairs of input and output widths; roundings, clamps, shifts in turn."""
    pairs = ((8, 8), (4, 4), (2, 2), (8, 2), (2, 8), (8, 4))
    ways = (("double", False, 0), ("single", True, 0), ("double", True, 12), ("single", False, 3), ("double", False, 2))
    listed: list[Trial] = []
    for shape in AWKWARD:
        for weights in (8, 4, 2):
            for _ in range(3):
                turn = len(listed)
                widths = weights, *pairs[(turn + turn // 6) % 6]
                listed.append(Trial(kernel_for(shape, weights), shape, *widths, *ways[turn % 5], seed=turn))
    return listed


def large_bias_trials() -> list[Trial]:
    """Accumulators up to the ends of int32, which the instruction with one rounding could not double."""
    return [
        dataclasses.replace(trial, large_bias=True, raised=raised)
        for trial in awkward_trials()[::7]
        for raised in (0, 20)
    ]


def test_codes_equal_numpy_on_a_sanitized_host(tmp_path):
    runner("host", tmp_path, flags=SANITIZERS).run([*awkward_trials(), *large_bias_trials()])


@pytest.mark.parametrize("core", CORES)
def test_codes_equal_numpy_on_an_emulated_core(core, tmp_path):
    runner(core, tmp_path).run([*awkward_trials(), *large_bias_trials()])


def test_codes_equal_numpy_without_the_assembly_loops(tmp_path):
    """Unoptimised builds run the intrinsics in plain loops."""
    runner("cortex-m4", tmp_path, flags=("-O0",)).run(awkward_trials()[::3])


def random_trial(seed: int) -> Trial:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 12, 2)
    kernel, stride, dilation = rng.integers(1, 6, 2), rng.integers(1, 4, 2), rng.integers(1, 3, 2)
    padding = [int(rng.integers(0, (k - 1) * d + 1)) for k, d in zip(kernel, dilation, strict=True)]
    sizes = zip((height, width), kernel, stride, padding, dilation, strict=True)
    output = [max(int((n + 2 * p - (k - 1) * d - 1) // s + 1), 1) for n, k, s, p, d in sizes]
    if rng.random() < 0.2:  # more padding below and to the right
        output = [count + 1 for count in output]
    groups = int(rng.choice([1, 1, 2, 3]))
    depth, channels = groups * int(rng.integers(1, 14)), groups * int(rng.integers(1, 8))
    is_depthwise = rng.random() < 0.4
    if is_depthwise:
        groups = channels = depth
    shape = LayerShape(
        "depthwise" if is_depthwise else "grouped" if groups > 1 else "conv", (int(height), int(width), depth),
        (output[0], output[1], channels), (int(kernel[0]), int(kernel[1])), (int(stride[0]), int(stride[1])),
        (padding[0], padding[1]), (int(dilation[0]), int(dilation[1])), groups,
    )  # fmt: skip
    weights, inputs, outputs = (int(bits) for bits in rng.choice([2, 4, 8], 3))
    rounding = "single" if rng.random() < 0.5 else "double"
    raised = int(rng.choice([0, 0, 1, 2, 5, 11, 14]))
    return Trial(
        kernel_for(shape, weights),
        shape,
        weights,
        inputs,
        outputs,
        rounding,
        bool(rng.random() < 0.3),
        raised,
        seed=seed,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("target", "flags"), [("host", SANITIZERS), ("cortex-m4", OPTIMISATION)])
def test_codes_of_random_layers_equal_numpy(target, flags, tmp_path):
    runner(target, tmp_path, flags=flags).run([random_trial(seed) for seed in range(600)])


# -- speed ------------------------------------------------------------------------------------------------------

BARS = {
    "ic_c2_3x3_32x32_16_16": LayerShape("conv", (32, 32, 16), (32, 32, 16), (3, 3), (1, 1), (1, 1)),
    "ic_c5_3x3_8x8_64_64": LayerShape("conv", (8, 8, 64), (8, 8, 64), (3, 3), (1, 1), (1, 1)),
    "pw_12x12_64_64": LayerShape("pointwise", (12, 12, 64), (12, 12, 64)),
    "dw_25x5_64": LayerShape("depthwise", (25, 5, 64), (25, 5, 64), (3, 3), (1, 1), (1, 1), groups=64),
    "fc_640_128": linear(640, 128),
}


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    counter = runner("cortex-m4", tmp_path_factory.mktemp("counts"), count=True)
    pairs = [(name, bits) for name in BARS for bits in (8, 4, 2)]
    counts = counter.run([Trial(kernel_for(BARS[name], bits), BARS[name], bits) for name, bits in pairs])
    return dict(zip(pairs, counts, strict=True))


@pytest.mark.parametrize("case", BARS)
def test_8_bit_layers_need_no_more_than_cmsis_nn_and_narrow_weights_no_more_than_those(counted, case, repository):
    with (repository / "hardware_models/measurements/cmsis_nn_insn.csv").open(encoding="utf-8") as file:
        published = {
            (row["kernel_case"], row["w_bits"]): int(row["instructions"])
            for row in csv.DictReader(file)
            if row["core"] == "M4"
        }
    if (case, "8") in published:
        assert counted[case, 8] <= 1.1 * published[case, "8"]
        assert counted[case, 4] <= published[case, "4"]
    assert counted[case, 4] <= 1.15 * counted[case, 8]
    assert counted[case, 2] <= 1.25 * counted[case, 8]
