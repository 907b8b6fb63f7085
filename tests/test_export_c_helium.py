"""Helium kernels: layouts by hand, every code against NumPy on a sanitized host and an emulated Cortex-M55."""

from __future__ import annotations

import csv
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddq_search.errors import VerificationError
from ddq_search.export.c import trials
from ddq_search.export.c.helium import KERNELS
from ddq_search.export.c.kernels import Kernel
from ddq_search.export.c.targets import TARGETS, build, compiler_version, missing, run
from ddq_search.export.c.trials import SANITIZERS, Runner, Trial
from ddq_search.integer.program import Rounding
from ddq_search.layer_shape import LayerClass, LayerShape
from ddq_search.packing import row_bytes, weight_bytes

M55 = TARGETS["cortex-m55-clang"]
BY_NAME = {kernel.name: kernel for kernel in KERNELS}

needs_m55 = pytest.mark.skipif(missing(M55) is not None, reason=f"{missing(M55)}")
needs_host = pytest.mark.skipif(missing(TARGETS["host"]) is not None, reason=f"{missing(TARGETS['host'])}")


def conv(
    size: tuple[int, int],
    channels: tuple[int, int],
    kernel: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> LayerShape:
    """A convolution padded alike on both sides."""
    output = [
        (length + 2 * pad - (taps - 1) * gap - 1) // step + 1
        for length, pad, taps, gap, step in zip(size, padding, kernel, dilation, stride, strict=True)
    ]
    kind: LayerClass = "conv"
    if groups > 1:
        kind = "depthwise" if groups == channels[0] == channels[1] else "grouped"
    elif kernel == (1, 1):
        kind = "pointwise"
    return LayerShape(
        kind, (*size, channels[0]), (output[0], output[1], channels[1]), kernel, stride, padding, dilation, groups
    )


def linear(inputs: int, outputs: int, positions: int = 1) -> LayerShape:
    return LayerShape("linear", (positions, 1, inputs), (positions, 1, outputs))


SHAPES = (
    conv((5, 4), (3, 5)),
    conv((6, 5), (7, 6), (3, 2), (2, 2), (1, 0)),
    conv((7, 7), (5, 3), padding=(2, 2), dilation=(2, 2)),
    conv((3, 3), (33, 2)),
    conv((2, 2), (3, 4), (7, 7), padding=(3, 3)),
    conv((4, 4), (18, 9), (1, 1), padding=(0, 0)),
    conv((5, 3), (64, 3), (1, 1), (2, 2), (0, 0)),
    conv((5, 5), (8, 4), groups=2),
    conv((7, 6), (6, 6), groups=3),
    linear(37, 3),
    linear(130, 10, positions=4),
    linear(5, 1),
    linear(64, 5, positions=2),
    conv((5, 6), (5, 5), groups=5),
    conv((6, 5), (20, 20), (3, 2), (2, 1), (0, 1), groups=20),
    conv((4, 3), (18, 18), (7, 7), padding=(3, 3), groups=18),
    conv((7, 9), (16, 16), padding=(2, 1), dilation=(2, 1), groups=16),
    conv((6, 9), (19, 19), (3, 2), (1, 2), (2, 3), (2, 3), groups=19),
    conv((9, 9), (12, 12), padding=(2, 2), dilation=(2, 2), groups=12),
)


ROUNDINGS: tuple[Rounding, ...] = ("single", "double")


def every_trial() -> list[Trial]:
    """Each shape with each combination of widths, roundings in turn; some clamped, some with multipliers above 1."""
    found = []
    for shape, widths in itertools.product(SHAPES, itertools.product((8, 4, 2), repeat=3)):
        kernel = BY_NAME[f"ddq_helium_{'depthwise' if shape.layer_class == 'depthwise' else 'conv'}_w{widths[0]}"]
        assert shape.layer_class in kernel.classes
        assert kernel.executes(shape)
        seed = len(found)
        raised, rounding = 6 if seed % 5 == 0 else 0, ROUNDINGS[seed % 2]
        found.append(Trial(kernel, shape, *widths, rounding, clamped=seed % 3 == 0, raised=raised, seed=seed))
    return found


def extreme(draw: Callable[[Trial], trials.Layer], sign: int) -> Callable[[Trial], trials.Layer]:
    """Layers whose products are all as large as they get, of one sign."""

    def drawn(trial: Trial) -> trials.Layer:
        layer = draw(trial)
        codes = np.full_like(layer.codes, sign * np.abs(layer.codes).max())
        return dataclasses.replace(layer, codes=codes, x=np.zeros_like(layer.x), in_zero=255)

    return drawn


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(TARGETS["host"], KERNELS, tmp_path_factory.mktemp("helium_host"), flags=SANITIZERS)


@pytest.fixture(scope="module")
def m55(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(M55, KERNELS, tmp_path_factory.mktemp("helium_m55"), count=True)


def test_rows_of_nibbles_by_hand() -> None:
    layout = BY_NAME["ddq_helium_conv_w4"].layout
    codes = np.arange(40, dtype=np.int8)[None] % 8
    whole = [(j % 8) | ((16 + j) % 8) << 4 for j in range(16)]  # codes j and 16 + j
    half = [((32 + 2 * j) % 8) | ((33 + 2 * j) % 8) << 4 for j in range(4)]  # codes 2 j and 2 j + 1 of the last 8
    assert layout(codes, 4, linear(40, 1)) == bytes(whole + half)
    odd = [j % 8 | ((11 + j) % 8 if 11 + j < 21 else 0) << 4 for j in range(11)]  # 21 codes: more than half a block
    assert layout(codes[:, :21], 4, linear(21, 1)) == bytes(odd)


def test_rows_of_two_bits_by_hand() -> None:
    layout = BY_NAME["ddq_helium_conv_w2"].layout
    codes = np.array([[1, -1, 0, 1, -1, 1, 1]], dtype=np.int8)  # fields 1, 3, 0, 1 | 3, 1, 1; two bytes
    assert layout(codes, 2, linear(7, 1)) == bytes([1 | 3 << 2 | 3 << 4 | 1 << 6, 0 | 1 << 2 | 1 << 4])


def test_depthwise_blocks_by_hand() -> None:
    shape = LayerShape("depthwise", (4, 4, 18), (3, 3, 18), (2, 2), groups=18)
    codes = (np.arange(18 * 4, dtype=np.int8) % 7 - 3).reshape(18, 4)
    stored = BY_NAME["ddq_helium_depthwise_w8"].layout(codes, 8, shape)
    assert list(np.frombuffer(stored, np.int8)[:17]) == [*codes[:16, 0], codes[0, 2]]  # tap (0, 0), then (1, 0)
    assert list(np.frombuffer(stored, np.int8)[64:68]) == [codes[16, 0], codes[17, 0], codes[16, 2], codes[17, 2]]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 200), st.sampled_from((8, 4, 2)), st.integers(0, 2**32 - 1))
def test_layouts_keep_every_code_in_its_row(rows: int, length: int, bits: int, seed: int) -> None:
    top = 2 ** (bits - 1) - 1
    codes = np.random.default_rng(seed).integers(-top, top + 1, (rows, length)).astype(np.int8)
    stored = BY_NAME[f"ddq_helium_conv_w{bits}"].layout(codes, bits, linear(length, rows))
    assert len(stored) == weight_bytes(rows, length, bits)
    per_byte = 8 // bits
    raw = np.frombuffer(stored, np.uint8).reshape(rows, row_bytes(length, bits), 1)
    fields = (raw >> (bits * np.arange(per_byte))) & ((1 << bits) - 1)
    values = np.where(fields > top, fields.astype(int) - (1 << bits), fields).reshape(rows, -1)
    padded = np.concatenate([codes, np.zeros((rows, values.shape[1] - length), np.int8)], 1)
    assert np.array_equal(np.sort(values, 1), np.sort(padded, 1))


def test_a_row_too_long_for_int32_is_not_executed() -> None:
    for bits, longest in ((8, 132_104), (4, 149_796), (2, 262_143)):
        kernel = BY_NAME[f"ddq_helium_conv_w{bits}"]
        assert kernel.executes(linear(longest, 1))
        assert not kernel.executes(linear(longest + 1, 1))


def test_depthwise_kernels_leave_other_shapes_to_others() -> None:
    kernel = BY_NAME["ddq_helium_depthwise_w8"]
    assert not kernel.executes(LayerShape("depthwise", (5, 5, 4), (5, 5, 8), (3, 3), padding=(1, 1), groups=4))


@needs_host
def test_portable_code_equals_numpy_under_sanitizers(host: Runner) -> None:
    host.run(every_trial())


@needs_m55
def test_helium_code_equals_numpy(m55: Runner) -> None:
    assert len(m55.run(every_trial())) == len(SHAPES) * 27


@needs_m55
@needs_host
@pytest.mark.parametrize("sign", [-1, 1])
def test_no_sum_overflows_where_all_products_are_extreme(
    host: Runner, m55: Runner, monkeypatch: pytest.MonkeyPatch, sign: int
) -> None:
    monkeypatch.setattr(trials, "draw", extreme(trials.draw, sign))
    shapes = (conv((9, 9), (16, 16), (7, 7), groups=16), conv((17, 17), (16, 16), (17, 17), groups=16), linear(700, 4))
    listed = [Trial(kernel, shape, kernel.weight_bits[0]) for shape in shapes for kernel in able(shape)]
    host.run(listed)
    m55.run(listed)


def able(shape: LayerShape) -> list[Kernel]:
    return [kernel for kernel in KERNELS if shape.layer_class in kernel.classes]


@needs_host
def test_a_wrong_layout_is_found(host: Runner) -> None:
    kernel = BY_NAME["ddq_helium_conv_w4"]
    plain = dataclasses.replace(kernel, layout=lambda codes, bits, shape: kernel.layout(codes[:, ::-1], bits, shape))
    with pytest.raises(VerificationError, match="codes differ"):
        host.run([Trial(plain, SHAPES[0], 4)])


REQUANTIZE = """
#include <stdio.h>
#include "ddq_helium.h"
static uint32_t state = 1;
static uint32_t next(void) { return state = state * 1664525u + 1013904223u; }
static int32_t drawn(void) {
    static const int32_t edges[] = {0, 1, -1, 2, -2, 3, -3, INT32_MAX, INT32_MIN, INT32_MIN + 1, 1 << 30, -(1 << 30)};
    const uint32_t kind = next() >> 28;
    const int32_t value = (int32_t)next();
    if (kind < 3)
        return edges[(next() >> 16) % (sizeof edges / sizeof *edges)];
    return kind < 8 ? value >> (next() >> 27) : kind < 11 ? (1 << (next() >> 28)) * ((value >> 20) | 1) : value;
}
int main(void) {
    long wrong = 0, cases = 0;
    for (int rounding = 0; rounding < 2; rounding++)
        for (int shift = -31; shift <= 30; shift++)
            for (int i = 0; i < 1500; i++) {
                int32_t acc[4], multiplier[4], found[4];
                for (int lane = 0; lane < 4; lane++) {
                    acc[lane] = drawn();
                    multiplier[lane] = next() >> 31 ? 1 << 30 : (int32_t)((1u << 30) + (next() >> 2));
                }
                const int32x4_t n = vdupq_n_s32(shift), left = ddq_left_shift(n, rounding);
                vst1q_s32(found, ddq_requantize4(vld1q_s32(acc), vld1q_s32(multiplier), left, vsubq_s32(n, left),
                                                 rounding));
                for (int lane = 0; lane < 4; lane++, cases++) {
                    const int64_t want = ddq_requantize_exact(acc[lane], multiplier[lane], shift, rounding);
                    const int above = want >= 1 << 29 && found[lane] >= 1 << 28;
                    const int below = want <= -(1 << 29) && found[lane] <= -(1 << 28);
                    wrong += want != found[lane] && !above && !below;
                }
            }
    printf("%ld cases, %ld wrong\\n", cases, wrong);
    return wrong != 0;
}
"""


@needs_m55
def test_four_lanes_requantize_as_the_scalar_definition(tmp_path: Path) -> None:
    """Bit for bit below 2^29 at every shift, ties and edges included; beyond, both exceed every code alike."""
    (tmp_path / "requantize.c").write_text(REQUANTIZE, encoding="utf-8")
    done = run(M55, build(M55, [tmp_path / "requantize.c"], tmp_path / "requantize.elf"), tmp_path)
    assert (done.returncode, done.stdout) == (0, "744000 cases, 0 wrong\n"), done.stderr


@needs_m55
def test_shipped_counts_are_what_the_emulator_executes(m55: Runner, repository: Path) -> None:
    with (repository / "hardware_models/measurements/own_kernels_helium.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if int(row["macs"]) < 25_000]
    if rows[0]["compiler"] != compiler_version(M55):
        pytest.skip(f"counted with {rows[0]['compiler']}, this machine has {compiler_version(M55)}")
    assert len(rows) > 20
    shipped = [Trial(BY_NAME[row["kernel"]], shape_of(row), *widths_of(row)) for row in rows]
    assert m55.run(shipped) == [int(row["instructions"]) for row in rows]


def shape_of(row: dict[str, str]) -> LayerShape:
    numbers = {name: int(text) for name, text in row.items() if text.isdigit()}
    kind: LayerClass = row["layer_class"]  # type: ignore[assignment]
    kernel, stride, dilation = (
        (numbers[f"{name}_h"], numbers[f"{name}_w"]) for name in ("kernel", "stride", "dilation")
    )
    source, output = ((numbers[f"{name}_h"], numbers[f"{name}_w"], numbers[f"{name}_c"]) for name in ("in", "out"))
    padding = numbers["pad_top"], numbers["pad_left"]
    return LayerShape(kind, source, output, kernel, stride, padding, dilation, numbers["groups"])


def widths_of(row: dict[str, str]) -> tuple[int, int, int]:
    return int(row["weight_bits"]), int(row["input_bits"]), int(row["output_bits"])
