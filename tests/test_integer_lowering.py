"""Lowering: multipliers, biases, clamps and tables, and the edge cases that must not slip through."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest

from ddq_search.arithmetic import quantize_multiplier
from ddq_search.discrete import DiscreteNetwork, LayerNumbers
from ddq_search.errors import ExportError
from ddq_search.graph import Operation
from ddq_search.integer import executor
from ddq_search.integer.lowering import dequantize, lower, quantize_input
from ddq_search.integer.program import Add, Mean, Multiply, accumulator_bound, check
from ddq_search.integer.tables import activation_table, round_half_away
from ddq_search.precision import ActivationGrid
from tests.networks import random_network, sample_images

X = ActivationGrid(0.5, 4, 8)
Y = ActivationGrid(0.25, 10, 8)


def linear_network(codes, scale, gain, offset, *, source=X, output=Y, clamp=None, kind="linear", bits=8):
    codes = np.asarray(codes, np.int32)
    rows, length = codes.shape
    trail = (1, 1) if kind == "conv2d" else ()
    attributes = (
        {"kernel_size": (1, 1), "stride": (1, 1), "padding": (0,) * 4, "dilation": (1, 1), "groups": 1} if trail else {}
    )
    graph = nx.MultiDiGraph()
    for op in (
        Operation("input", "input", (), (length, *trail)),
        Operation(
            "fc", kind, ((length, *trail),), (rows, *trail), attributes, module="fc", clamp=clamp, weights=codes.size
        ),
        Operation("output", "output", ((rows, *trail),), (rows, *trail)),
    ):
        graph.add_node(op.name, operation=op)
    graph.add_edges_from([("input", "fc", 0), ("fc", "output", 0)])
    vectors = (np.asarray(v, np.float64) for v in (scale, gain, offset))
    layer = LayerNumbers(codes.reshape(rows, length, *trail), bits, *vectors)
    return DiscreteNetwork(
        graph, {"weights/fc": bits}, {"fc": layer}, {"input": source, "fc": output, "output": output}
    )


def layer_of(network, arithmetic="single"):
    return next(step for step in lower(network, arithmetic).steps if step.name == "fc")


def outputs(network, codes, arithmetic="single"):
    return executor.run(lower(network, arithmetic), np.asarray(codes, np.uint8))["fc"].tolist()


def test_scales_offset_and_sign_become_integers():
    step = layer_of(linear_network([[3, -2], [5, 1]], [0.125, 0.5], [1.0, -0.5], [1.0, -2.0]))
    assert step.codes.tolist() == [[3, -2], [-5, -1]]
    assert step.bias.tolist() == [16, -16]  # 1 / (0.125 · 0.5), −2 / (0.25 · 0.5)
    expected = [quantize_multiplier(0.25), quantize_multiplier(0.5)]
    assert list(zip(step.multiplier.tolist(), step.shift.tolist(), strict=True)) == expected
    assert step.scale.tolist() == [0.125, 0.25]


@pytest.mark.parametrize(
    ("clamp", "output", "low", "high"),
    [
        (None, Y, 0, 255),
        ("relu", Y, 10, 255),
        ("relu6", Y, 10, 34),
        ("relu6", ActivationGrid(0.01, 3, 4), 3, 15),
        (None, ActivationGrid(1.0, 1, 2), 0, 3),
    ],
)
def test_clamps(clamp, output, low, high):
    step = layer_of(linear_network([[1]], [1.0], [1.0], [0.0], clamp=clamp, output=output))
    assert (step.low, step.high) == (low, high)


def test_multipliers_above_one_are_legal():
    network = linear_network([[1]], [3.0], [1.0], [0.0])
    assert int(layer_of(network).shift[0]) == 3  # 3 · 0.5 / 0.25 = 6
    for arithmetic in ("tflite", "single"):
        assert outputs(network, [[4], [5], [0], [200]], arithmetic) == [[10], [16], [0], [255]]


@pytest.mark.parametrize(
    ("codes", "gain", "offset", "expected"),
    [
        ([[7, 7]], 0.0, 1.1, 14),  # γ = 0: 1.1 / 0.25 = 4.4
        ([[7, 7]], 0.0, 1.125, 15),  # 4.5 away from zero
        ([[7, 7]], 0.0, -1.125, 5),
        ([[0, 0]], 1.0, 100.0, 255),
        ([[0, 0]], -1.0, -100.0, 0),
        ([[1, 1]], 1e-20, -0.3, 9),  # below every representable multiplier
    ],
)
def test_channels_that_do_not_see_their_input_are_exact_constants(codes, gain, offset, expected):
    for arithmetic in ("tflite", "single"):
        assert (
            outputs(linear_network(codes, [0.1], [gain], [offset]), [[0, 0], [255, 255]], arithmetic)
            == [[expected]] * 2
        )


def test_a_bias_that_overflows_beside_a_negligible_accumulator_is_a_constant():
    network = linear_network([[1, 0], [1, 0]], [1e-9, 1.0], [1.0, 1.0], [3.0, 0.0])
    assert outputs(network, [[0, 0], [255, 9]])[0][0] == outputs(network, [[0, 0], [255, 9]])[1][0] == 22


def test_a_bias_that_overflows_is_refused_with_layer_channel_and_remedy():
    network = linear_network([[1], [127]], [1.0, 1e-4], [1.0, 1.0], [0.0, 2e5])
    with pytest.raises(ExportError, match=r"layer 'fc', channel 1: a bias of 200000 .* raise the weight bits"):
        lower(network, "single")


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_statistics_that_are_not_finite_are_refused(broken):
    with pytest.raises(ExportError, match="channel 0: scale or offset is not finite"):
        lower(linear_network([[1]], [1.0], [1.0], [broken]), "single")


def test_scales_too_far_apart_are_refused():
    with pytest.raises(ExportError, match=r"fc, channel 0.*too far apart"):
        lower(linear_network([[1]], [1e10], [1.0], [0.0], output=ActivationGrid(1e-9, 0, 8)), "single")


def test_tied_tensors_must_share_a_grid():
    network = linear_network([[1]], [1.0], [1.0], [0.0])
    grids = {**network.grids, "output": replace(Y, zero_point=11)}
    with pytest.raises(ExportError, match="output 'output' needs one grid"):
        lower(replace(network, grids=grids), "single")


def test_unknown_arithmetic_missing_grid_and_missing_layer_are_refused():
    network = linear_network([[1]], [1.0], [1.0], [0.0])
    with pytest.raises(ExportError, match="unknown arithmetic 'float'"):
        lower(network, "float")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="'input' has no activation grid"):
        lower(replace(network, grids={}), "single")
    with pytest.raises(ExportError, match="layer 'fc' has no weight codes"):
        lower(replace(network, layers={}), "single")


def test_tflite_rounds_convolutions_twice_and_linear_layers_once():
    assert layer_of(linear_network([[1]], [1.0], [1.0], [0.0]), "tflite").rounding == "single"
    assert layer_of(linear_network([[1]], [1.0], [1.0], [0.0], kind="conv2d"), "tflite").rounding == "double"
    assert layer_of(linear_network([[1]], [1.0], [1.0], [0.0], kind="conv2d"), "single").rounding == "single"


def test_add_and_mul_stay_within_one_code_of_the_real_result():
    for name, kind in (("Residual", Add), ("SqueezeExcite", Multiply)):
        for arithmetic in ("tflite", "single"):
            network, _ = random_network(name, 5)
            program = lower(network, arithmetic)
            found = executor.run(program, quantize_input(sample_images(8).numpy(), program.input.grid))
            step = next(step for step in program.steps if isinstance(step, kind))
            grid = program.tensors[step.name].grid
            first, second = (dequantize(found[n], program.tensors[n].grid).astype(np.float64) for n in step.inputs)
            real = (first + second if kind is Add else first * second) / grid.scale + grid.zero_point
            expected = np.clip(real, step.low, step.high)
            assert np.abs(found[step.name] - expected).max() < 0.51


def test_tables():
    source, output = ActivationGrid(0.5, 8, 4), ActivationGrid(1 / 16, 0, 4)
    table = activation_table("hardsigmoid", source, output)
    assert table[:16].tolist() == [0, 0, 0, 1, 3, 4, 5, 7, 8, 9, 11, 12, 13, 15, 15, 15]
    assert set(table[15:].tolist()) == {15}
    wide = ActivationGrid(8.0, 128, 8)
    for function in ("sigmoid", "silu", "gelu", "tanh", "hardswish", "relu", "relu6"):
        assert activation_table(function, wide, Y).shape == (256,)
    assert [round_half_away(v) for v in (0.5, -0.5, 1.4999999999999998, -7.0)] == [1, -1, 1, -7]


def test_hard_swish_of_tflite_is_at_most_one_code_from_the_function_and_falls_back_where_it_has_no_kernel():
    source, output = ActivationGrid(0.05, 120, 8), ActivationGrid(0.03, 15, 8)
    fixed, real = (activation_table("hardswish", source, output, a).astype(int) for a in ("tflite", "single"))
    assert 0 < np.abs(fixed - real).max() <= 1
    assert fixed[120] == 15  # zero stays zero
    narrow = activation_table("hardswish", ActivationGrid(0.5, 6, 4), ActivationGrid(0.5, 1, 4), "tflite")
    assert narrow[:16].tolist() == [1, 1, 0, 0, 0, 1, 1, 2, 2, 3, 4, 6, 7, 8, 9, 10]
    fine = ActivationGrid(source.scale / 200, 0, 8)
    np.testing.assert_array_equal(
        activation_table("hardswish", source, fine, "tflite"), activation_table("hardswish", source, fine)
    )


def test_accumulator_bounds_hold_on_real_codes_and_check_enforces_int32():
    network, _ = random_network("Residual", 0)
    program = lower(network, "single")
    step = next(step for step in program.steps if step.name == "conv1")
    assert (accumulator_bound(step, program.input.grid) <= 2**31 - 1).all()
    step.bias[2] = 2**31 - 1
    with pytest.raises(ExportError, match="'conv1': channel 2 may overflow"):
        check(program)


def test_inputs_quantize_to_codes_and_back():
    grid = ActivationGrid(0.1, 3, 4)
    codes = np.arange(16, dtype=np.uint8)[None]
    np.testing.assert_array_equal(quantize_input(dequantize(codes, grid), grid), codes)
    assert quantize_input(np.array([[-1e9, 1e9]]), grid).tolist() == [[0, 15]]


def test_the_mean_of_tflite_divides_the_integer_multiplier():
    network, _ = random_network("Residual", 0)
    for arithmetic in ("tflite", "single"):
        program = lower(network, arithmetic)
        step = next(step for step in program.steps if isinstance(step, Mean))
        ratio = program.tensors["add"].grid.scale / program.tensors["mean"].grid.scale
        multiplier, shift = quantize_multiplier(ratio)
        divided = (multiplier * 16 // 25, shift - 4)  # of 25 positions, as LiteRT's reference kernel
        expected = {"tflite": divided, "single": quantize_multiplier(ratio / 25)}[arithmetic]
        assert (step.factor.multiplier, step.factor.shift) == expected
