"""The arithmetic ``tflite`` against LiteRT's own reference kernels, one operator at a time."""

from __future__ import annotations

import numpy as np
import pytest

from ddq_search.integer import executor
from ddq_search.integer.lowering import _fixed, _mean_factor, _product_scale
from ddq_search.integer.program import AveragePool, Mean
from ddq_search.integer.tables import activation_table
from ddq_search.precision import ActivationGrid
from tests.litert_kernels import litert, schema
from tests.test_integer_executor import run_step


def random_grid(rng, low=-3.0, high=0.5, factor=1.0):
    return ActivationGrid(float(np.float32(factor * 10 ** rng.uniform(low, high))), int(rng.integers(0, 256)), 8)


EVERY_CODE = np.arange(256, dtype=np.uint8).reshape(1, 256)


@pytest.mark.parametrize("seed", range(30))
def test_hard_swish_is_the_runtimes_for_every_code(seed):
    rng = np.random.default_rng(seed)
    source = random_grid(rng, -4, 1)
    output = random_grid(rng, -2, 1, source.scale)
    found = litert("HARD_SWISH", 1, [EVERY_CODE], [source], (1, 256), output)
    table = activation_table("hardswish", source, output, "tflite")
    if found is not None:
        np.testing.assert_array_equal(table, found[0])
    else:
        np.testing.assert_array_equal(table, activation_table("hardswish", source, output, "single"))


@pytest.mark.parametrize(
    ("operator", "function", "output"),
    [
        ("LOGISTIC", "sigmoid", ActivationGrid(1 / 256, 0, 8)),
        ("TANH", "tanh", ActivationGrid(1 / 128, 128, 8)),
        ("GELU", "gelu", None),
        ("RELU", "relu", None),
        ("RELU6", "relu6", None),
    ],
)
def test_tables_are_the_runtimes_for_every_code(operator, function, output):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        source = random_grid(rng)
        target = output or random_grid(rng, -0.5, 0.3, source.scale)
        options = schema.GeluOptionsT() if operator == "GELU" else None
        found = litert(operator, 2, [EVERY_CODE], [source], (1, 256), target, options)
        np.testing.assert_array_equal(activation_table(function, source, target, "tflite"), found[0])


@pytest.mark.parametrize("seed", range(20))
def test_mean_is_the_runtimes(seed):
    rng = np.random.default_rng(seed)
    height, width, channels = (int(v) for v in (*rng.integers(1, 20, 2), 4))
    source = random_grid(rng)
    output = source if seed % 5 == 0 else random_grid(rng, -2, 1, source.scale)
    codes = rng.integers(0, 256, (1, height, width, channels)).astype(np.uint8)
    options = schema.ReducerOptionsT()
    found = litert("MEAN", 2, [codes], [source], (1, channels), output, options, [(np.int32([1, 2]), None)])
    factor = _mean_factor("mean", source.scale / output.scale, height * width, "tflite")
    step = Mean("mean", ("input",), factor, "double")
    np.testing.assert_array_equal(run_step(step, codes.transpose(0, 3, 1, 2), (channels,), source, output), found)


@pytest.mark.parametrize("seed", range(10))
def test_multiply_is_the_runtimes(seed):
    rng = np.random.default_rng(seed)
    first, second = random_grid(rng), random_grid(rng)
    output = random_grid(rng, 1, 2.5, first.scale * second.scale)
    codes = rng.integers(0, 256, (2, 1, 1, 1, 64)).astype(np.uint8)
    found = litert("MUL", 2, list(codes), [first, second], (1, 1, 1, 64), output, schema.MulOptionsT())
    factor = _fixed("mul", _product_scale(first.scale, second.scale, output.scale, "tflite"))
    product = (codes[0].astype(np.int64) - first.zero_point) * (codes[1].astype(np.int64) - second.zero_point)
    computed = executor.requantize(product, factor.multiplier, factor.shift, "double") + output.zero_point
    np.testing.assert_array_equal(np.clip(computed, 0, 255), found)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_average_pool_is_the_runtimes(size):
    rng = np.random.default_rng(size)
    codes = rng.integers(0, 256, (1, 6, 6, 5)).astype(np.uint8)
    codes[0, :2] = rng.integers(126, 130, (2, 6, 5))  # ties around zero of int8
    options = schema.Pool2DOptionsT()
    options.padding, options.strideH, options.strideW = schema.Padding.VALID, 1, 1
    options.filterHeight = options.filterWidth = size
    grid, count = ActivationGrid(0.1, 31, 8), 7 - size
    found = litert("AVERAGE_POOL_2D", 2, [codes], [grid], (1, count, count, 5), grid, options)
    step = AveragePool("pool", ("input",), (size, size), (1, 1), (0, 0, 0, 0), False, "half_away")
    computed = run_step(step, codes.transpose(0, 3, 1, 2), (5, count, count), grid, grid)
    np.testing.assert_array_equal(computed, found.transpose(0, 3, 1, 2))
