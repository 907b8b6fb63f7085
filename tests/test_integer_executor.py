"""The reference executor against integers worked out by hand, and against exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ddq_search.arithmetic import quantize_multiplier
from ddq_search.errors import VerificationError
from ddq_search.evaluation import IntegerEvaluator, _requantized
from ddq_search.integer import executor
from ddq_search.integer.program import (
    Add,
    AveragePool,
    FixedPoint,
    Input,
    IntegerProgram,
    Lookup,
    MaxPool,
    Mean,
    Move,
    Multiply,
    Tensor,
    Weighted,
)  # fmt: skip
from ddq_search.precision import ActivationGrid

ONE = FixedPoint(2**30, 1)
HALF = FixedPoint(2**30, 0)


def run_step(step, codes, shape, source, output, *, second=None):
    """Runs one step on codes ``[N, *]``; both implementations must agree. ``second`` is ``(slice of codes, grid)``."""
    codes = np.asarray(codes, np.uint16 if source.bits == 16 else np.uint8)
    program = IntegerProgram(
        "tflite",
        {
            "input": Tensor("input", codes.shape[1:], source),
            step.name: Tensor(step.name, shape, output),
            "output": Tensor("output", shape, output),
        },
        (Input("input", ()), step, Move("output", (step.name,), "output")),
        {},
    )
    found = executor.run(program, codes)[step.name]
    np.testing.assert_array_equal(IntegerEvaluator(program).run(codes)[step.name].numpy(), found)
    return found


def weighted(codes, bias, factors, *, rounding="double", low=0, high=255, kind="conv2d", **geometry):
    return Weighted(
        "layer", ("input",), kind, "layer", np.asarray(codes, np.int8), 8, np.asarray(bias, np.int32),
        np.array([f.multiplier for f in factors], np.int32), np.array([f.shift for f in factors], np.int8),
        np.ones(len(factors), np.float32), rounding, low, high, **geometry,
    )  # fmt: skip


# -- requantization ---------------------------------------------------------------------------------------------


def exact(acc, multiplier, shift, rounding):
    """The two roundings in unbounded integers."""

    def half_up(value):
        return floor(value + Fraction(1, 2))

    if rounding == "single":
        return half_up(Fraction(acc * multiplier, 2**31) * Fraction(2) ** shift)
    raised = min(max(acc * 2 ** max(shift, 0), -(2**31)), 2**31 - 1)
    value = Fraction(half_up(Fraction(raised * multiplier, 2**31)), 2 ** max(-shift, 0))
    return half_up(value) if value >= 0 else -half_up(-value)


accumulators = st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(-600, 600))
multipliers = st.one_of(st.integers(2**30, 2**31 - 1), st.just(2**30))


@given(
    acc=accumulators, multiplier=multipliers, shift=st.integers(-31, 30), rounding=st.sampled_from(["double", "single"])
)
def test_requantization_rounds_as_defined(acc, multiplier, shift, rounding):
    expected = exact(acc, multiplier, shift, rounding)
    assert int(executor.requantize(np.array([acc]), multiplier, shift, rounding)[0]) == expected
    torch_values = (torch.tensor([v], dtype=torch.int64) for v in (acc, multiplier, shift))
    assert int(_requantized(*torch_values, rounding)[0]) == expected


@pytest.mark.parametrize(
    ("acc", "real", "double", "single"),
    [
        (3, 0.5, 2, 2),  # 1.5
        (-3, 0.5, -1, -1),  # −1.5: the high multiply breaks ties towards +∞
        (6, 0.25, 2, 2),  # 1.5 by a right shift of 1
        (-6, 0.25, -2, -1),  # −1.5: the right shift breaks ties away from zero
        (-2, 0.25, -1, 0),  # −0.5
        (5, 3.0, 15, 15),  # multiplier above 1
        (-7, 1.0, -7, -7),
        (11, 0.2, 2, 2),
        (1000, 0.0, 0, 0),
    ],
)
def test_requantization_by_hand(acc, real, double, single):
    multiplier, shift = quantize_multiplier(real)
    assert executor.requantize(np.array([acc]), multiplier, shift, "double")[0] == double
    assert executor.requantize(np.array([acc]), multiplier, shift, "single")[0] == single


def test_a_left_shift_saturates_instead_of_wrapping():
    assert executor.requantize(np.array([2**30, -(2**30)]), 2**30, 4, "double").tolist() == [2**30, -(2**30)]


# -- steps ------------------------------------------------------------------------------------------------------


def test_convolution_pads_with_nothing():
    step = weighted([[[[1, 2], [3, -4]]]], [10], [HALF], padding=(1, 0, 0, 0), low=5)
    found = run_step(step, [[[[7, 2], [0, 3]]]], (1, 2, 1), ActivationGrid(1, 2, 8), ActivationGrid(1, 5, 8))
    # centred rows: (0, 0), (5, 0), (−2, 1); sums 3·5 − 4·0 + 10 = 25 and 1·5 + 3·(−2) − 4·1 + 10 = 5
    assert found.ravel().tolist() == [13 + 5, 3 + 5]


def test_convolution_clamps():
    step = weighted([[[[1]]], [[[-1]]]], [0, 0], [ONE, ONE], low=3, high=9)
    found = run_step(step, [[[[0, 4, 5, 12]]]], (2, 1, 4), ActivationGrid(1, 4, 4), ActivationGrid(1, 3, 8))
    assert found.reshape(2, 4).tolist() == [[3, 3, 4, 9], [7, 3, 3, 3]]


@pytest.mark.parametrize(
    ("channels", "rows", "kernel", "geometry"),
    [
        (4, 6, (3, 3), {"padding": (1, 1, 1, 1), "stride": (2, 1)}),
        (4, 4, (3, 2), {"padding": (0, 2, 1, 0), "groups": 4, "dilation": (2, 1)}),
        (6, 4, (2, 3), {"padding": (1, 0, 0, 2), "groups": 2, "stride": (1, 2), "dilation": (1, 2)}),
        (4, 8, (1, 1), {"groups": 4}),
    ],
)
def test_convolution_geometry_is_that_of_torch(channels, rows, kernel, geometry):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (2, channels, 7, 8))
    weights = rng.integers(-7, 8, (rows, channels // geometry.get("groups", 1), *kernel))
    top, bottom, left, right = geometry.get("padding", (0, 0, 0, 0))
    centred = F.pad(torch.from_numpy(codes - 131).double(), (left, right, top, bottom))
    options = {key: value for key, value in geometry.items() if key != "padding"}
    expected = F.conv2d(centred, torch.from_numpy(weights).double(), **options).numpy()
    fine = FixedPoint(2**30, -4)
    step = weighted(weights, [0] * rows, [fine] * rows, rounding="single", **geometry)
    found = run_step(step, codes, expected.shape[1:], ActivationGrid(1, 131, 8), ActivationGrid(1, 128, 8))
    np.testing.assert_array_equal(found, np.clip(np.floor(expected / 32 + 0.5) + 128, 0, 255))


def test_linear():
    step = weighted([[1, -1, 2], [0, 0, 3]], [1, -4], [ONE, HALF], kind="linear", rounding="single")
    found = run_step(step, [[1, 2, 3], [9, 0, 1]], (2,), ActivationGrid(1, 1, 8), ActivationGrid(1, 10, 8))
    assert found.tolist() == [[14, 11], [20, 8]]


def test_add_of_two_scales():
    step = Add("add", ("input", "input"), 20, (HALF, FixedPoint(2**30, -1)), FixedPoint(2**30, -18), "double", 0, 255)
    # real: x/2 + x/4 of the larger scale's double, times 2^20, times 2^-19: 1.5 x
    found = run_step(step, [[13, 10, 3, 200]], (4,), ActivationGrid(1, 10, 8), ActivationGrid(1, 20, 8))
    assert found.tolist() == [[25, 20, 9, 255]]  # 24.5 → away from zero; 20; 20 − 10.5 → 9; 305 → 255


def test_multiply_broadcasts_over_an_image():
    grid = ActivationGrid(1, 2, 8)
    program = IntegerProgram(
        "single",
        {
            "input": Tensor("input", (2, 2, 2), grid),
            "mean": Tensor("mean", (2, 1, 1), grid),
            "mul": Tensor("mul", (2, 2, 2), grid),
            "output": Tensor("output", (2, 2, 2), grid),
        },
        (
            Input("input", ()),
            Mean("mean", ("input",), HALF, "single"),
            Multiply("mul", ("input", "mean"), HALF, "single", 0, 9),
            Move("output", ("mul",), "output"),
        ),
        {},
    )
    codes = np.array([[[[3, 3], [3, 3]], [[2, 2], [0, 5]]]], np.uint8)
    found = executor.run(program, codes)
    assert found["mean"].ravel().tolist() == [2 + 2, 2 + 1]  # sums 4 and 1, halved: 2 and 0.5 → 1
    assert found["mul"].ravel().tolist() == [3, 3, 3, 3, 2, 2, 1, 4]  # ·2/2, ·1/2: −1 and 1.5 → 2
    np.testing.assert_array_equal(IntegerEvaluator(program).run(codes)["mul"].numpy(), found["mul"])


def test_padding_never_wins_a_maximum():
    grid = ActivationGrid(1, 200, 8)
    found = run_step(
        MaxPool("pool", ("input",), (2, 2), (2, 2), (1, 1, 1, 1)), [[[[0, 1], [2, 3]]]], (1, 2, 2), grid, grid
    )
    assert found.ravel().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("rounding", "include", "expected"),
    [
        ("half_up", False, [1, 2, 4, 129, 7]),
        ("half_up", True, [6, 2, 4, 129, 9]),
        ("half_away", False, [1, 1, 3, 129, 7]),  # below code 128, which is zero in int8, ties go down
        ("half_away", True, [6, 1, 3, 129, 9]),
    ],
)
def test_average_of_codes(rounding, include, expected):
    grid = ActivationGrid(1, 11, 8)
    step = AveragePool("pool", ("input",), (1, 2), (1, 2), (0, 0, 1, 1), include, rounding)
    # windows, 11 being padding: (11, 1) (1, 2) (5, 2) (128, 129) (7, 11)
    found = run_step(step, [[[[1, 1, 2, 5, 2, 128, 129, 7]]]], (1, 1, 5), grid, grid)
    assert found.ravel().tolist() == expected


def test_lookup_reads_its_table():
    table = np.arange(255, -1, -1).astype(np.uint8)
    grid = ActivationGrid(1, 0, 8)
    assert run_step(Lookup("f", ("input",), "tanh", table), [[0, 7, 255]], (3,), grid, grid).tolist() == [[255, 248, 0]]


def test_codes_move():
    grid, codes = ActivationGrid(1, 0, 8), np.arange(12).reshape(1, 3, 2, 2)
    moved = run_step(Move("m", ("input",), "transpose", dims=(2, 0, 1)), codes, (2, 3, 2), grid, grid)
    np.testing.assert_array_equal(moved, codes.transpose(0, 3, 1, 2))
    cut = run_step(Move("m", ("input",), "slice", dim=0, start=1, stop=3), codes, (2, 2, 2), grid, grid)
    np.testing.assert_array_equal(cut, codes[:, 1:3])
    joined = run_step(Move("m", ("input", "input"), "concat", dim=1), codes, (3, 4, 2), grid, grid)
    np.testing.assert_array_equal(joined, np.concatenate([codes, codes], 2))
    assert run_step(Move("m", ("input",), "reshape"), codes, (12,), grid, grid).tolist() == [list(range(12))]


def test_an_accumulator_that_leaves_int32_is_an_error():
    step = weighted([[[[127]]]], [2**31 - 1], [HALF])
    with pytest.raises(VerificationError, match="'layer': an accumulator left int32"):
        run_step(step, [[[[255]]]], (1, 1, 1), ActivationGrid(1, 0, 8), ActivationGrid(1, 0, 8))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((1, 2), np.int64), r"shape \[N, 3\]"),
        (np.zeros((1, 3)), "integer codes"),
        (np.full((1, 3), 16), "leave the range 0 … 15"),
    ],
)
def test_codes_that_do_not_fit_the_input_are_refused(codes, message):
    grid = ActivationGrid(1, 0, 4)
    tensors = {name: Tensor(name, (3,), grid) for name in ("input", "output")}
    program = IntegerProgram("single", tensors, (Input("input", ()), Move("output", ("input",), "output")), {})
    with pytest.raises(VerificationError, match=message):
        executor.run(program, codes)
