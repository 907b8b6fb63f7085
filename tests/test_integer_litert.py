"""The arithmetic ``tflite`` against LiteRT's own reference kernels, one operator at a time."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from ddq_search.integer import executor
from ddq_search.integer.lowering import _fixed, _mean_factor, _product_scale, activation_table
from ddq_search.integer.program import AveragePool, Mean
from ddq_search.precision import ActivationGrid
from tests.test_integer_executor import run_step

flatbuffers = pytest.importorskip("flatbuffers", reason="needs flatbuffers to write TFLite files")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="needs LiteRT, whose kernels are the oracle")
interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="needs LiteRT, whose kernels are the oracle")


def litert(operator, version, codes, grids, shape, output, options=None, constant=None):
    """Runs one operator on uint8 codes ``[1, ...]`` (channel-last) with the reference kernels; None if refused."""
    model, graph, op = schema.ModelT(), schema.SubGraphT(), schema.OperatorT()
    model.version, model.buffers = 3, [schema.BufferT(), schema.BufferT()]
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, operator)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version, model.operatorCodes = version, [code]
    graph.tensors = [_tensor(f"x{i}", x.shape, grid) for i, (x, grid) in enumerate(zip(codes, grids, strict=True))]
    graph.inputs = list(range(len(codes)))
    if constant is not None:
        model.buffers[1].data = np.frombuffer(np.asarray(constant, "<i4").tobytes(), np.uint8)
        axes = schema.TensorT()
        axes.name, axes.shape, axes.type, axes.buffer = "axes", [len(constant)], schema.TensorType.INT32, 1
        graph.tensors.append(axes)
    op.inputs, op.outputs = list(range(len(graph.tensors))), [len(graph.tensors)]
    graph.outputs = op.outputs
    graph.tensors.append(_tensor("y", shape, output))
    if options is not None:
        kind = type(options).__name__.removesuffix("T")
        op.builtinOptions, op.builtinOptionsType = options, getattr(schema.BuiltinOptions, kind)
    graph.operators, model.subgraphs = [op], [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = interpreter.Interpreter(
            model_content=bytes(builder.Output()),
            experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_REF,
            num_threads=1,
        )
    try:
        run.allocate_tensors()
    except RuntimeError:
        return None
    for details, x in zip(run.get_input_details(), codes, strict=True):
        run.set_tensor(details["index"], (x.astype(int) - 128).astype(np.int8))
    run.invoke()
    return run.get_tensor(run.get_output_details()[0]["index"]).astype(int) + 128


def _tensor(name, shape, grid):
    tensor, quantization = schema.TensorT(), schema.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = np.float32([grid.scale]), np.int64([grid.zero_point - 128])
    tensor.name, tensor.shape, tensor.type, tensor.buffer = name, list(shape), schema.TensorType.INT8, 0
    tensor.quantization = quantization
    return tensor


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
    found = litert("MEAN", 2, [codes], [source], (1, channels), output, options, [1, 2])
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
