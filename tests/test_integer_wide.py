"""16-bit activations: the integers of TensorFlow Lite's 16x8 operators, in both executions; refusals by name."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddq_search.arithmetic import quantize_multiplier
from ddq_search.errors import ExportError, VerificationError
from ddq_search.evaluation import IntegerEvaluator, _requantized
from ddq_search.export.onnx import export_onnx
from ddq_search.graph import Operation
from ddq_search.integer import executor, lowering
from ddq_search.integer.lowering import dequantize, lower, quantize_input
from ddq_search.integer.program import AveragePool, FixedPoint, IntegerProgram, MaxPool, Tensor, Weighted, check
from ddq_search.integer.serialize import encode, load_program, save_program
from ddq_search.packing import activation_bytes
from ddq_search.precision import ActivationGrid, activation_code_range
from tests.networks import float_tensors, random_network, sample_images
from tests.nonuniform import with_codebooks, with_points, with_wide_activations
from tests.test_integer_executor import run_step, weighted
from tests.test_integer_lowering import layer_of, linear_network

ZERO = 2**15
X, Y = ActivationGrid(2.0**-10, ZERO, 16), ActivationGrid(2.0**-8, ZERO, 16)


def wide_network(name, seed, weights=8):
    return with_wide_activations(random_network(name, seed, lambda v: weights if v.startswith("weights/") else 8)[0])


def both(program, codes):
    expected = executor.run(program, codes)
    for tensor, value in IntegerEvaluator(program).run(codes).items():
        assert expected[tensor].dtype == np.uint16
        np.testing.assert_array_equal(value.numpy(), expected[tensor], err_msg=tensor)
    return expected


@given(
    acc=st.one_of(st.integers(-(2**47) + 1, 2**47 - 1), st.integers(-600, 600)),
    multiplier=st.one_of(st.integers(2**30, 2**31 - 1), st.sampled_from([2**30, 0x7FFEFFFF, 0x7FFF0000, 2**31 - 1])),
    shift=st.integers(-31, 7),
)
def test_the_reduced_requantization_is_exact(acc, multiplier, shift):
    fifteen = 0x7FFF if multiplier >= 0x7FFF0000 else (multiplier + 2**15) // 2**16
    expected = floor(Fraction(acc * fifteen, 2**15) * Fraction(2) ** shift + Fraction(1, 2))
    assert int(executor.requantize(np.array([acc]), multiplier, shift, "reduced")[0]) == expected
    torch_values = (torch.tensor([v], dtype=torch.int64) for v in (acc, multiplier, shift))
    assert int(_requantized(*torch_values, "reduced")[0]) == expected


def test_a_convolution_by_hand():
    network = linear_network([[3, -2]], [0.25], [1.0], [1.0], source=X, output=Y, kind="conv2d")
    step = layer_of(network, "tflite")
    assert step.rounding == "reduced"
    assert step.bias.tolist() == [2**12]  # 1 / (2^-10 · 2^-2)
    codes = np.array([[ZERO + 1000, ZERO - 32768], [ZERO, ZERO + 7]], np.uint16).reshape(2, 2, 1, 1)
    found = both(lower(network, "tflite"), codes)["fc"].ravel().tolist()
    # the accumulator's step is 1/16 of the output's: (3000 + 65536 + 4096) / 16 = 4539.5 and (4096 - 14) / 16 = 255.1
    assert found == [ZERO + 4540, ZERO + 255]


@pytest.mark.parametrize("name", ["Residual", "Mobile", "Fire"])
@pytest.mark.parametrize("weights", [2, 4, 8])
def test_evaluation_and_executor_agree_on_every_code(name, weights):
    program = lower(wide_network(name, weights, weights), "tflite")
    both(program, quantize_input(sample_images(2).numpy() * 1.5, program.input.grid))


def test_other_weights_meet_wide_activations():
    network, _ = random_network("Residual", 1)
    for other in (with_codebooks(network, lambda _: 3), with_points(network)):
        program = lower(with_wide_activations(other), "tflite")
        both(program, quantize_input(sample_images(2).numpy(), program.input.grid))


def test_wide_activations_leave_little_but_the_rounding_of_weights():
    network, _ = random_network("Fire", 3)
    images = sample_images(8, seed=3)
    exact = float_tensors(network.graph, network.layers, images)["output"]
    narrow, wide = (
        float((IntegerEvaluator(lower(n, "tflite")).scores(images) - exact).abs().max())
        for n in (network, with_wide_activations(network))
    )
    assert wide < 0.02 * narrow


def test_accumulators_beyond_int32_are_exact():
    grid = replace(X, scale=1.0)
    coarse = replace(Y, scale=2.0**19)
    network = linear_network([[127] * 4096], [1.0], [1.0], [0.0], source=grid, output=coarse, kind="conv2d")
    codes = np.stack([np.full(4096, 65535), np.full(4096, 0)]).astype(np.uint16).reshape(2, 4096, 1, 1)
    found = both(lower(network, "tflite"), codes)["fc"].ravel().tolist()
    assert found == [min(ZERO + (127 * 4096 * 32767 + 2**18) // 2**19, 65535), ZERO - 127 * 4096 * 32768 // 2**19]


def test_files_hold_wide_programs(tmp_path):
    program = lower(wide_network("Residual", 0), "tflite")
    save_program(program, tmp_path)
    assert encode(load_program(tmp_path)) == encode(program)


def test_codes_and_bytes_of_16_bits():
    assert activation_code_range(16) == (0, 65535)
    assert activation_bytes(5, 16) == 10
    codes = np.array([[0, 1, ZERO, 65535]], np.uint16)
    found = quantize_input(dequantize(codes, X), X)
    np.testing.assert_array_equal(found, codes)
    assert found.dtype == np.uint16
    for bits in (9, 12, 15, 17):
        with pytest.raises(ValueError, match="outside"):
            activation_code_range(bits)
    with pytest.raises(ValueError, match="has its zero point at 32768"):
        ActivationGrid(1.0, 128, 16)


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "output", "arithmetic", "message"),
    [
        (X, Y, "single", "'input': 16-bit activations exist in the arithmetic 'tflite' only, not in 'single'"),
        (X, ActivationGrid(1.0, 3, 8), "tflite", "linear 'fc': 16-bit activations need inputs and output alike"),
        (ActivationGrid(1.0, 3, 8), Y, "tflite", "linear 'fc': 16-bit activations need inputs and output alike"),
    ],
)
def test_wide_activations_are_refused_where_the_runtime_has_none(source, output, arithmetic, message):
    with pytest.raises(ExportError, match=message):
        lower(linear_network([[1]], [1.0], [1.0], [0.0], source=source, output=output), arithmetic)


def test_tables_have_no_wide_codes():
    with pytest.raises(ExportError, match="activation 'act': 16-bit activations have no look-up tables"):
        lower(with_wide_activations(random_network("SqueezeExcite", 0)[0]), "tflite")


def test_a_linear_layer_keeps_an_int32_accumulator():
    network = linear_network([[127] * 600], [1.0], [1.0], [0.0], source=X, output=Y)
    with pytest.raises(ExportError, match="'fc', channel 0: its products may sum to 2496921600, which overflows"):
        lower(network, "tflite")
    half = linear_network([[63] * 600], [1.0], [1.0], [0.0], source=X, output=Y)
    assert layer_of(half, "tflite").rounding == "single"


def test_a_multiplier_beyond_the_runtimes_is_refused():
    network = linear_network([[1]], [2.0**10], [1.0], [0.0], source=X, output=Y, kind="conv2d")
    with pytest.raises(ExportError, match="'fc', channel 0: a multiplier of 256 is beyond 16-bit arithmetic"):
        lower(network, "tflite")


def test_an_accumulator_beyond_47_bits_is_an_error():
    network = linear_network([[1]], [0.25], [1.0], [0.0], source=X, output=Y, kind="conv2d")
    program = lower(network, "tflite")
    step = program.steps[1]
    wider = replace(step, codes=np.full((1, 1, 1, 1), 127, np.int8), bias=np.array([2**46 * 2], np.int64))
    broken = replace(program, steps=(program.steps[0], wider, program.steps[2]))
    with pytest.raises(ExportError, match="channel 0 may overflow its int64 accumulator"):
        check(broken)
    with pytest.raises(VerificationError, match="an accumulator left"):
        executor.run(broken, np.full((1, 1, 1, 1), 65535, np.uint16))


def test_onnx_has_no_wide_codes(tmp_path):
    with pytest.raises(ExportError, match="tensor 'input' has 16 bits; the ONNX export writes up to 8"):
        export_onnx(lower(wide_network("Residual", 0), "tflite"), tmp_path / "model.onnx")


# -- against the runtime ------------------------------------------------------------------------------------------


@pytest.fixture
def kernels():
    pytest.importorskip("ai_edge_litert", reason="needs LiteRT, whose kernels are the oracle")
    from tests import litert_kernels

    return litert_kernels


def random_wide(rng, low, high, factor=1.0):
    return ActivationGrid(float(np.float32(factor * 10 ** rng.uniform(low, high))), ZERO, 16)


@pytest.mark.parametrize("kind", ["conv2d", "linear"])
@pytest.mark.parametrize("seed", range(8))
def test_weighted_layers_are_the_runtimes(kernels, kind, seed):
    rng = np.random.default_rng(seed)
    rows, length = 24, int(rng.integers(3, 200))
    source = random_wide(rng, -5, -3)
    output = random_wide(rng, -1, 0.5, source.scale * length**0.5)
    network = linear_network(
        rng.integers(-127, 128, (rows, length)), rng.uniform(0.005, 0.02, rows), rng.choice([-1.0, 1.0], rows),
        rng.normal(0, 1000 * source.scale, rows), source=source, output=output, kind=kind,
    )  # fmt: skip
    program = lower(network, "tflite")
    step = program.steps[1]
    assert isinstance(step, Weighted)
    trail = (1, 1) if kind == "conv2d" else ()
    codes = rng.integers(0, 65536, (1, length, *trail)).astype(np.uint16)
    found = both(program, codes)["fc"].reshape(-1)
    constants = [(step.weights.astype(np.int8).reshape(rows, *trail, length), step.scale)]
    constants.append((step.bias.astype(np.int64), None))
    if kind == "conv2d":
        options = kernels.schema.Conv2DOptionsT()
        options.padding, options.strideW, options.strideH = kernels.schema.Padding.VALID, 1, 1
        expected = kernels.litert(
            "CONV_2D", 4, [codes.reshape(1, 1, 1, length)], [source], (1, 1, 1, rows), output, options, constants
        )
    else:
        options = kernels.schema.FullyConnectedOptionsT()
        expected = kernels.litert("FULLY_CONNECTED", 11, [codes], [source], (1, rows), output, options, constants)
    assert (np.abs(expected - ZERO) < ZERO - 1).mean() > 0
    np.testing.assert_array_equal(found, expected.reshape(-1))


@pytest.mark.parametrize("seed", range(3))
def test_depthwise_convolutions_are_the_runtimes(kernels, seed):
    rng = np.random.default_rng(seed)
    channels, source = 12, random_wide(rng, -5, -3)
    output = random_wide(rng, -1, 0.5, source.scale)
    scale = rng.uniform(0.002, 0.02, channels).astype(np.float32)
    factors = [FixedPoint(*quantize_multiplier(source.scale * float(s) / output.scale)) for s in scale]
    weights = rng.integers(-127, 128, (channels, 1, 3, 3))
    step = weighted(weights, [0] * channels, factors, rounding="reduced", high=65535, groups=channels)
    step = replace(step, scale=scale)
    image = rng.integers(0, 65536, (1, 6, 7, channels)).astype(np.uint16)
    options = kernels.schema.DepthwiseConv2DOptionsT()
    options.padding, options.strideW, options.strideH = kernels.schema.Padding.VALID, 1, 1
    options.depthMultiplier = 1
    constants = [(weights.astype(np.int8).transpose(1, 2, 3, 0).copy(), scale), (np.zeros(channels, np.int64), None)]
    shape = (1, 4, 5, channels)
    expected = kernels.litert("DEPTHWISE_CONV_2D", 4, [image], [source], shape, output, options, constants, axis=3)
    found = run_step(step, image.transpose(0, 3, 1, 2), (channels, 4, 5), source, output)
    np.testing.assert_array_equal(found, expected.transpose(0, 3, 1, 2))


def lowered(kind, grids, output, shape=(256,)):
    """The step of one operation on tensors ``a``, ``b`` (or ``input`` alone)."""
    names = ("a", "b") if len(grids) == 2 else ("input",)
    result = shape[:1] if kind == "mean" else shape
    tensors = {name: Tensor(name, shape, grid) for name, grid in zip(names, grids, strict=True)}
    tensors["out"] = Tensor("out", result, output)
    op = Operation("out", kind, (shape,) * len(names), result)
    return lowering._step(op, names, None, tensors, "tflite"), tensors


@pytest.mark.parametrize("kind", ["add", "mul"])
@pytest.mark.parametrize("seed", range(5))
def test_sums_and_products_are_the_runtimes(kernels, kind, seed):
    rng = np.random.default_rng(seed)
    first, second = random_wide(rng, -5, -3), random_wide(rng, -5, -3)
    a, b = rng.integers(0, 65536, (2, 1, 256)).astype(np.uint16)
    if kind == "add":
        output, options = random_wide(rng, 0, 0.5, max(first.scale, second.scale)), kernels.schema.AddOptionsT()
        options.potScaleInt16 = False
    else:
        output, options = random_wide(rng, 3.5, 4.5, first.scale * second.scale), kernels.schema.MulOptionsT()
    step, tensors = lowered(kind, [first, second], output)
    program = IntegerProgram("tflite", tensors, (step,), {})
    sources = [tensors["a"], tensors["b"]]
    found = executor._execute(step, tensors["out"], sources, [a.astype(np.int64), b.astype(np.int64)])
    in_torch = IntegerEvaluator(program)._step(step, [torch.from_numpy(x.astype(np.int32)) for x in (a, b)])
    np.testing.assert_array_equal(in_torch.numpy(), found)
    expected = kernels.litert(kind.upper(), 4, [a, b], [first, second], (1, 256), output, options)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("seed", range(5))
def test_means_are_the_runtimes(kernels, seed):
    rng = np.random.default_rng(seed)
    source = random_wide(rng, -5, -3)
    output = random_wide(rng, -1, 0.5, source.scale)
    height, width = (int(v) for v in rng.integers(1, 12, 2))
    image = rng.integers(0, 65536, (1, height, width, 3)).astype(np.uint16)
    step, _ = lowered("mean", [source], output, (3, height, width))
    options, axes = kernels.schema.ReducerOptionsT(), np.int32([1, 2])
    expected = kernels.litert("MEAN", 2, [image], [source], (1, 3), output, options, [(axes, None)])
    np.testing.assert_array_equal(run_step(step, image.transpose(0, 3, 1, 2), (3,), source, output), expected)


@pytest.mark.parametrize("operator", ["AVERAGE_POOL_2D", "MAX_POOL_2D"])
def test_pools_are_the_runtimes(kernels, operator):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 65536, (1, 5, 6, 3)).astype(np.uint16)
    image[0, :3] = rng.integers(ZERO - 2, ZERO + 3, (3, 6, 3))  # ties around zero of int16
    options = kernels.schema.Pool2DOptionsT()
    options.padding, options.strideH, options.strideW = kernels.schema.Padding.VALID, 1, 1
    options.filterHeight = options.filterWidth = 2
    window = ((2, 2), (1, 1), (0, 0, 0, 0))
    step = MaxPool("pool", ("input",), *window)
    if operator == "AVERAGE_POOL_2D":
        step = AveragePool("pool", ("input",), *window, False, "half_away")
    expected = kernels.litert(operator, 3, [image], [X], (1, 4, 5, 3), X, options)
    found = run_step(step, image.transpose(0, 3, 1, 2), (3, 4, 5), X, X)
    np.testing.assert_array_equal(found, expected.transpose(0, 3, 1, 2))
