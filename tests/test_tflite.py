"""The TFLite file: readable by the schema, exact in LiteRT's reference kernels, as large as priced."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tflite as schema
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ddq_search.arithmetic import quantize_multiplier
from ddq_search.errors import ExportError, VerificationError
from ddq_search.export.tflite import METADATA, export_tflite, flat_model, tflite_bytes
from ddq_search.export.tflite_flatbuffer import FlatModel, FlatOperator, FlatTensor, Quantization, serialize
from ddq_search.export.tflite_functions import builtin_function
from ddq_search.export.tflite_geometry import image_padding, pool_tiles, same_or_valid
from ddq_search.export.tflite_size import flat_bytes, layer_bytes
from ddq_search.export.tflite_weights import weight_container, weight_containers
from ddq_search.integer import executor
from ddq_search.integer.lowering import activation_table, lower, quantize_input
from ddq_search.integer.program import (
    Add,
    AveragePool,
    FixedPoint,
    Input,
    IntegerProgram,
    Lookup,
    MaxPool,
    Move,
    Multiply,
    Tensor,
    Weighted,
)  # fmt: skip
from ddq_search.integer.serialize import save_program
from ddq_search.precision import ActivationGrid
from ddq_search.verify import verify_program
from search_spaces.models import build_model
from tests.networks import MODELS, discrete, random_network, sample_images


def mixed(variable):
    return (2, 4, 8)[len(variable) % 3]


def narrow_weights(variable):
    return 2 if variable.startswith("weights/") else 8


def narrow_activations(variable):
    return 8 if variable.startswith("weights/") else 2 + 2 * (len(variable) % 2)


POLICIES = {
    "8": lambda _: 8,
    "4": lambda _: 4,
    "2": lambda _: 2,
    "mixed": mixed,
    "narrow weights": narrow_weights,
    "narrow activations": narrow_activations,
}


def program_of(name, policy="mixed", seed=0):
    return lower(random_network(name, seed, POLICIES[policy])[0], "tflite")


def litert():
    return pytest.importorskip("ai_edge_litert.interpreter", reason="LiteRT is not installed: ddq-search[litert]")


def run_litert(data, *inputs):
    """The first output for int8 inputs."""
    runtime = litert()
    interpreter = runtime.Interpreter(
        model_content=data, experimental_op_resolver_type=runtime.OpResolverType.BUILTIN_REF, num_threads=1
    )
    details = interpreter.get_input_details()
    for entry, given_codes in zip(details, inputs, strict=True):
        interpreter.resize_tensor_input(entry["index"], given_codes.shape)
    interpreter.allocate_tensors()
    for entry, given_codes in zip(details, inputs, strict=True):
        interpreter.set_tensor(entry["index"], given_codes)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def signed(codes):
    """Unsigned codes, channels first, as the file has them."""
    ordered = codes.transpose(0, 2, 3, 1) if codes.ndim == 4 else codes
    return (ordered.astype(np.int16) - 128).astype(np.int8)


def operator_names(model):
    return [operator.code for operator in model.operators]


# -- exact in LiteRT ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_operator_and_tensor_is_exact_in_the_reference_kernels(tmp_path, name, policy):
    litert()
    from ddq_search.export.litert_runtime import LiteRtComparison

    program = program_of(name, policy, seed=len(policy))
    export_tflite(program, tmp_path / "model.tflite")
    codes = quantize_input(sample_images(12, seed=3).numpy(), program.input.grid)
    comparison = LiteRtComparison(tmp_path / "model.tflite", program, program)
    for part in (codes[:8], codes[8:]):
        comparison.compare(part, executor.run(program, part))
    report = comparison.report()
    assert report.passed, report.problems("model.tflite")
    assert set(report.tensors) == set(program.tensors)
    assert set(report.operators) == {s.name for s in program.steps} - {program.input.name, program.output.name}
    for step_name, counted in report.operators.items():
        assert counted.codes == 12 * np.prod(program.tensors[step_name].shape)
        assert counted.differing == 0
    assert report.end_to_end.codes == 12 * np.prod(program.output.shape)
    assert report.top1_agreement == report.program_top1_agreement == 1.0


def test_a_program_of_another_arithmetic_is_compared_with_both(tmp_path):
    litert()
    from ddq_search.export.litert_runtime import LiteRtComparison

    network, _ = random_network("Residual", 1, mixed)
    program, lowered = lower(network, "single"), lower(network, "tflite")
    export_tflite(lowered, tmp_path / "model.tflite")
    codes = quantize_input(sample_images(32, seed=3).numpy(), program.input.grid)
    comparison = LiteRtComparison(tmp_path / "model.tflite", program, lowered)
    executed = executor.run(program, codes)
    comparison.compare(codes, executed)
    report = comparison.report()
    assert report.passed
    assert report.end_to_end.differing == 0
    expected = executor.run(lowered, codes)[program.output.name]
    assert report.program_end_to_end.differing == np.count_nonzero(expected != executed[program.output.name])


@pytest.mark.parametrize("seed", range(12))
def test_pools_of_any_geometry(seed):
    rng = np.random.default_rng(seed)
    size, kernel, stride = rng.integers(4, 12, 2), rng.integers(1, 4, 2), rng.integers(1, 4, 2)
    pad = [int(rng.integers(0, k // 2 + 1)) for k in kernel]
    ceil = seed % 2 == 0
    image = torch.zeros(1, 1, *map(int, size))
    pooled = nn.AvgPool2d(tuple(map(int, kernel)), tuple(map(int, stride)), pad, ceil_mode=ceil)(image).shape[2:]
    geometry = (
        tuple(map(int, kernel)), tuple(map(int, stride)), (pad[0], pad[0], pad[1], pad[1]),
    )  # fmt: skip
    grid = ActivationGrid(0.1, int(rng.integers(0, 256)), 8)
    source, made = (3, *map(int, size)), (3, *pooled)
    steps = [
        MaxPool("y", ("x",), *geometry),
        AveragePool("y", ("x",), *geometry, True, "half_away"),
        AveragePool("y", ("x",), *geometry, False, "half_away"),
    ]
    codes = rng.integers(0, 256, (4, *source)).astype(np.uint8)
    for step in steps:
        tensors = {name: Tensor(name, shape, grid) for name, shape in (("x", source), ("y", made), ("o", made))}
        program = IntegerProgram("tflite", tensors, (Input("x", ()), step, Move("o", ("y",), "output")), {})
        found = run_litert(tflite_bytes(program), signed(codes))
        np.testing.assert_array_equal(found, signed(executor.run(program, codes)["y"]))


# -- activation functions -------------------------------------------------------------------------------------------

SOURCE = ActivationGrid(float(np.float32(0.0611)), 121, 8)
FUNCTION_CASES = [
    ("hardswish", ActivationGrid(float(np.float32(0.031)), 12, 8), "HARD_SWISH"),
    ("hardswish", ActivationGrid(float(np.float32(0.4)), 1, 4), "HARD_SWISH"),
    ("relu", ActivationGrid(float(np.float32(0.0611)), 0, 8), "RELU"),
    ("relu", ActivationGrid(float(np.float32(0.0611)), 5, 4), "RELU"),
    ("relu6", ActivationGrid(float(np.float32(0.0251)), 3, 8), "RELU6"),
    ("relu", ActivationGrid(float(np.float32(0.19)), 0, 4), "GATHER"),  # doubly rounded, off by one somewhere
    ("sigmoid", ActivationGrid(1 / 256, 0, 8), "LOGISTIC"),
    ("sigmoid", ActivationGrid(1 / 255, 0, 8), "GATHER"),
    ("tanh", ActivationGrid(1 / 128, 128, 8), "TANH"),
    ("tanh", ActivationGrid(1 / 127, 127, 8), "GATHER"),
    ("gelu", ActivationGrid(float(np.float32(0.0313)), 7, 8), "GELU"),
    ("silu", ActivationGrid(float(np.float32(0.03)), 10, 8), "GATHER"),
    ("hardsigmoid", ActivationGrid(1 / 15, 0, 4), "GATHER"),
]


@pytest.mark.parametrize(("function", "output", "operator"), FUNCTION_CASES)
def test_functions_are_exact_by_the_runtimes_operator_or_by_table(function, output, operator):
    table = activation_table(function, SOURCE, output, "tflite")
    shape = (256,)
    step = Lookup("y", ("x",), function, table)
    tensors = {"x": Tensor("x", shape, SOURCE), "y": Tensor("y", shape, output), "o": Tensor("o", shape, output)}
    program = IntegerProgram("tflite", tensors, (Input("x", ()), step, Move("o", ("y",), "output")), {})
    assert operator in operator_names(flat_model(program)[0])
    codes = np.arange(256, dtype=np.uint8)[None]
    np.testing.assert_array_equal(run_litert(tflite_bytes(program), signed(codes)), signed(table[codes]))


@pytest.mark.parametrize("seed", range(6))
def test_own_operators_of_random_grids_are_what_builtin_function_says(seed):
    """Where `builtin_function` names an operator, that operator alone computes the table in the runtime."""
    litert()
    rng = np.random.default_rng(seed)
    source = ActivationGrid(float(np.float32(2.0 ** rng.uniform(-7, -2))), int(rng.integers(0, 256)), 8)
    scale = float(np.float32(source.scale * 2.0 ** rng.uniform(-2, 1)))
    named = 0
    for function in ("hardswish", "relu", "relu6", "gelu"):
        output = ActivationGrid(scale, int(rng.integers(0, 128)), 8)
        table = activation_table(function, source, output, "tflite")
        operator = builtin_function(Lookup("y", ("x",), function, table), source, output)
        if operator is not None:
            named += 1
            options = {"HARD_SWISH": "HardSwishOptions", "GELU": "GeluOptions"}.get(operator, "")
            grids = [Quantization((g.scale,), (g.zero_point - 128,)) for g in (source, output)]
            tensors = [FlatTensor(n, (1, 256), schema.TensorType.INT8, g) for n, g in zip("xy", grids, strict=True)]
            version = {"HARD_SWISH": 1}.get(operator, 2)
            model = FlatModel(tensors, [FlatOperator(operator, version, (0,), (1,), options)], [0], [1])
            found = run_litert(serialize(model), np.arange(-128, 128, dtype=np.int8)[None])
            np.testing.assert_array_equal(found, signed(table[None]))
    assert named >= 1


# -- what the file holds --------------------------------------------------------------------------------------------


def read(data):
    """Tensors by name: (type, shape, scales, quantized dimension, bytes), read with the schema's own classes."""
    assert data[4:8] == b"TFL3"
    model = schema.Model.GetRootAs(data)
    graph = model.Subgraphs(0)
    found = {}
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        grid = tensor.Quantization()
        buffer = model.Buffers(tensor.Buffer())
        found[tensor.Name().decode()] = (
            tensor.Type(), tuple(tensor.ShapeAsNumpy()), None if grid is None else grid.ScaleAsNumpy(),
            0 if grid is None else grid.QuantizedDimension(),
            b"" if buffer.DataLength() == 0 else buffer.DataAsNumpy().tobytes(),
        )  # fmt: skip
    return model, found


def test_tensors_scales_and_metadata_are_what_the_schema_reads():
    program = program_of("Residual", "8")
    model, tensors = read(tflite_bytes(program))
    step = next(s for s in program.steps if s.name == "conv2")
    kind, shape, scale, axis, data = tensors["conv2/weights"]
    assert (kind, shape, axis) == (schema.TensorType.INT8, (8, 3, 3, 6), 0)
    np.testing.assert_array_equal(scale, step.scale)
    np.testing.assert_array_equal(np.frombuffer(data, np.int8).reshape(shape), step.codes.transpose(0, 2, 3, 1))
    kind, shape, scale, _, data = tensors["conv2/bias"]
    assert kind == schema.TensorType.INT32
    np.testing.assert_array_equal(np.frombuffer(data, np.int32), step.bias)
    source = program.tensors["conv1"].grid.scale
    np.testing.assert_array_equal(scale, (step.scale * np.float64(source)).astype(np.float32))
    assert tensors["conv1"][:2] == (schema.TensorType.INT8, (1, 9, 9, 6))
    assert set(program.tensors) - set(tensors) == {"output"}
    entry = model.Metadata(0)
    stated = json.loads(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes())
    assert entry.Name().decode() == METADATA
    assert stated == {"tool": "ddq-search", "arithmetic": "tflite", "policy_sha256": program.policy_sha256}


def test_weights_are_packed_low_nibble_first_without_row_padding():
    network, _ = random_network("Residual", 0, lambda v: 4 if v == "weights/conv1" else 2)
    program = lower(network, "tflite")
    conv1, fc = (next(s for s in program.steps if s.name == name) for name in ("conv1", "fc"))
    conv1.codes[0, :, 0, 0] = (7, -7, 1)
    fc.codes[0, :4] = (1, -1, 0, 1)
    _, tensors = read(tflite_bytes(program))
    kind, _, _, _, data = tensors["conv1/weights"]
    assert kind == schema.TensorType.INT4
    assert len(data) == 81  # 6 rows of 27
    assert data[0] == 0x97  # 7, then −7 = 9
    kind, _, _, _, data = tensors["fc/weights"]
    assert kind == 19
    assert len(data) == 10  # 5 rows of 8 codes, four a byte
    assert data[0] == 0b01_00_11_01


def test_containers_and_their_reasons():
    program = program_of("Mobile", "narrow weights")
    carried = weight_containers(program)
    assert {name: (c.operator, c.bits) for name, c in carried.items()} == {
        "expand": ("CONV_2D", 4),
        "depthwise": ("DEPTHWISE_CONV_2D", 8),
        "project": ("CONV_2D", 4),
        "same": ("CONV_2D", 4),
        "fc": ("FULLY_CONNECTED", 2),
    }
    assert carried["fc"].reason == ""
    assert carried["depthwise"].reason == "the runtime's DEPTHWISE_CONV_2D has no int2 weights"
    layer = next(s for s in program.steps if s.name == "expand")
    levels = np.array([-90, -7, 0, 90], np.int8)
    coded = replace(layer, codes=np.abs(layer.codes).astype(np.uint8) + 2, codebook=levels)
    assert weight_container(coded).bits == 8
    assert "reach ±90" in weight_container(coded).reason


def test_a_codebook_runs_in_litert():
    program = program_of("Residual", "2")
    layer = next(s for s in program.steps if s.name == "conv2")
    coded = replace(layer, codes=(layer.codes + 1).astype(np.uint8), codebook=np.array([-9, 2, 11, 0], np.int8))
    steps = tuple(coded if step.name == "conv2" else step for step in program.steps)
    program = replace(program, steps=steps)
    codes = quantize_input(sample_images(8).numpy(), program.input.grid)
    expected = executor.run(program, codes)[program.output.name]
    np.testing.assert_array_equal(run_litert(tflite_bytes(program), signed(codes)), signed(expected))


def test_clamps_are_fused_where_exact_and_explicit_elsewhere():
    def conv_of(program):
        model = flat_model(program)[0]
        conv = next(op for op in model.operators if op.code == "CONV_2D")
        return conv.options["FusedActivationFunction"], operator_names(model)

    activation = schema.ActivationFunctionType
    network = discrete(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval(), sample_images(4), lambda _: 8)
    fused, names = conv_of(lower(network, "tflite"))
    assert fused == activation.NONE  # zero point 0: the container clamps
    assert names == ["CONV_2D"]
    conv = next(name for name, op in network.graph.nodes(data="operation") if op.kind == "conv2d")
    raised = replace(network, grids=dict(network.grids) | {n: ActivationGrid(0.1, 9, 8) for n in (conv, "output")})
    fused, names = conv_of(lower(raised, "tflite"))
    assert fused == activation.RELU
    assert names == ["CONV_2D"]
    narrow = replace(network, grids=dict(network.grids) | {n: ActivationGrid(0.1, 3, 4) for n in (conv, "output")})
    fused, names = conv_of(lower(narrow, "tflite"))
    assert fused == activation.RELU
    assert names == ["CONV_2D", "MINIMUM"]
    program = lower(narrow, "tflite")
    steps = tuple(replace(s, low=5) if isinstance(s, Weighted) else s for s in program.steps)
    fused, names = conv_of(replace(program, steps=steps))
    assert names == ["CONV_2D", "MAXIMUM", "MINIMUM"]


def test_uses_of_one_module_store_equal_weights_once():
    program = program_of("Shuffle", "8")
    first, second = (s for s in program.steps if isinstance(s, Weighted) and s.module == "branch")
    np.testing.assert_array_equal(first.codes, second.codes)
    constants = flat_model(program)[0].constants()
    stored = first.codes.transpose(0, 2, 3, 1).tobytes()
    assert constants.count(stored) == 1


STRANGE = 'größe "7" \\ \n名/weights\t<b>'


def test_strange_layer_names_survive(tmp_path):
    model = nn.Sequential()
    model.add_module("a", nn.Conv2d(3, 2, 1))
    model.add_module("a'", nn.Conv2d(2, 2, 1))
    network = discrete(model.eval(), sample_images(4), lambda _: 8)
    program = lower(network, "tflite")
    layer = next(step.name for step in program.steps if isinstance(step, Weighted))
    names = {layer: STRANGE}
    renamed = IntegerProgram(
        program.arithmetic,
        {names.get(k, k): replace(t, name=names.get(k, k)) for k, t in program.tensors.items()},
        tuple(
            replace(s, name=names.get(s.name, s.name), inputs=tuple(names.get(n, n) for n in s.inputs))
            for s in program.steps
        ),
        program.policy,
    )
    export_tflite(renamed, tmp_path / "model.tflite")
    data = (tmp_path / "model.tflite").read_bytes()
    assert {STRANGE, f"{STRANGE}/weights"} <= set(read(data)[1])
    codes = quantize_input(sample_images(2).numpy(), program.input.grid)
    np.testing.assert_array_equal(run_litert(data, signed(codes)), run_litert(tflite_bytes(program), signed(codes)))


# -- refusals -------------------------------------------------------------------------------------------------------


def test_only_the_runtimes_arithmetic_is_written(tmp_path):
    network, _ = random_network("Residual", 0)
    with pytest.raises(ExportError, match="lowered for 'single'"):
        export_tflite(lower(network, "single"), tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []


def test_a_multiplier_that_the_runtime_would_not_derive_is_refused():
    for kind, change in (
        (Weighted, lambda s: s.multiplier.__setitem__(1, s.multiplier[1] ^ 1)),
        (Add, lambda s: object.__setattr__(s, "rounding", "single")),
    ):
        program = program_of("Residual", "8")
        step = next(s for s in program.steps if isinstance(s, kind))
        change(step)
        with pytest.raises(ExportError, match=repr(step.name)):
            tflite_bytes(program)


def test_damaged_and_foreign_files_are_refused_with_the_reason(tmp_path):
    litert()
    from ddq_search.export.litert_runtime import LiteRtComparison

    program, path = program_of("Residual"), tmp_path / "model.tflite"
    export_tflite(program, path)
    whole = path.read_bytes()
    place = whole.index(next(s for s in program.steps if s.name == "conv1").bias.tobytes())
    edited = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    for data, reason in (
        (whole[:-100], "truncated"),
        (whole[:100], "another policy, or is damaged"),
        (b"", "another policy, or is damaged"),
        (edited, f"from byte {place} on"),
        (tflite_bytes(program_of("Residual", "8")), "another policy"),
    ):
        path.write_bytes(data)
        with pytest.raises(VerificationError, match=reason):
            LiteRtComparison(path, program, program)
    path.unlink()
    with pytest.raises(VerificationError, match="cannot read"):
        LiteRtComparison(path, program, program)


def test_a_missing_runtime_is_named_with_its_remedy(monkeypatch):
    from ddq_search.export.litert_runtime import load_litert

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ExportError, match=r"pip install 'ddq-search\[litert\]'"):
        load_litert()


# -- size -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["8", "4", "mixed"])
@pytest.mark.parametrize("name", [*sorted(MODELS), "resnet8"])
def test_the_file_is_within_two_percent_of_its_price(name, policy):
    if name in MODELS:
        program = program_of(name, policy)
    else:
        torch.manual_seed(0)
        program = lower(discrete(build_model(name, 3, 10, 32).eval(), sample_images(2, 32), POLICIES[policy]), "tflite")
    model, _ = flat_model(program)
    size = len(serialize(model))
    assert abs(flat_bytes(model) - size) <= 0.01 * size


def test_what_a_layers_precision_decides():
    assert layer_bytes(3, 5, 8) == 15 + 3 * 12
    assert layer_bytes(3, 5, 4) == 8 + 3 * 12  # 15 codes in 8 bytes: no row padding
    assert layer_bytes(3, 5, 2) == 4 + 3 * 12
    eight, four = (
        len(
            tflite_bytes(
                lower(random_network("Residual", 0, lambda v, b=b: b if v == "weights/conv2" else 8)[0], "tflite")
            )
        )
        for b in (8, 4)
    )
    assert abs((eight - four) - (layer_bytes(8, 54, 8) - layer_bytes(8, 54, 4))) <= 32  # alignment, one more version


# -- geometry -------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2), st.integers(0, 3))
def test_schemes_put_every_window_where_the_layer_does(size, kernel, stride, before, after):
    if size + before + after < kernel:
        return
    out = (size + before + after - kernel) // stride + 1
    padding = (before, after, 0, 0)
    scheme = same_or_valid((size, 1), (out, 1), (kernel, 1), (stride, 1), padding)
    starts = [index * stride - before for index in range(out)]
    if scheme == "VALID":
        assert out == (size - kernel) // stride + 1
        assert starts[0] == 0
    elif scheme == "SAME":
        assert out == -(-size // stride)
        assert before == max((out - 1) * stride + kernel - size, 0) // 2
    else:
        top, bottom, _, _ = image_padding((size, 1), (out, 1), (kernel, 1), (stride, 1), padding)
        assert top == before
        assert (top + size + bottom - kernel) // stride + 1 >= out
        assert starts[-1] + kernel <= size + bottom
    tiles = pool_tiles(size, out, kernel, stride, before) if all(-kernel < s < size for s in starts) else []
    covered = [(t.start + i * t.stride, t.kernel) for t in tiles for i in range(t.count)]
    if tiles:
        assert covered == [(max(s, 0), min(s + kernel, size) - max(s, 0)) for s in starts]


# -- the proof ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arithmetic", ["tflite", "single"])
def test_verify_runs_the_file_and_says_so(tmp_path, arithmetic):
    litert()
    network, _ = random_network("SqueezeExcite", 2, mixed)
    save_program(lower(network, arithmetic), tmp_path)
    lowered = lower(network, "tflite")
    export_tflite(lowered, tmp_path / "model.tflite")
    report = verify_program(network, tmp_path, sample_images(16, seed=7).numpy(), strict=True)
    assert report.onnx is None
    written = json.loads((tmp_path / "verification.json").read_text())
    part = written["tflite"]
    assert written["passed"] is part["passed"] is part["size_as_priced"] is True
    assert part["arithmetic"] == "tflite"
    assert part["file_bytes"] == written["file_bytes"]["model.tflite"] == (tmp_path / "model.tflite").stat().st_size
    assert set(part["operators"]) == set(lowered.tensors) - {"input", "output"}
    assert part["executed_by"]["act"] == ["HARD_SWISH", "MINIMUM"]
    assert part["weights"]["stem"]["operator"] == "CONV_2D"
    assert "reference kernels" in part["runtime"]


def test_verify_without_the_runtime_checks_the_bytes_and_says_what_it_did_not_run(tmp_path, monkeypatch):
    def missing():
        raise ExportError("TFLite files run in ai-edge-litert: pip install 'ddq-search[litert]'")

    monkeypatch.setattr("ddq_search.verify.load_litert", missing)
    network, _ = random_network("Residual", 2, mixed)
    program = lower(network, "tflite")
    save_program(program, tmp_path)
    export_tflite(program, tmp_path / "model.tflite")
    report = verify_program(network, tmp_path, sample_images(2).numpy())
    assert report.passed
    assert report.tflite is None
    assert "was not run" in report.tflite_note
    assert "pip install" in report.tflite_note
    data = bytearray((tmp_path / "model.tflite").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.tflite").write_bytes(bytes(data))
    with pytest.raises(VerificationError, match="not what this network exports to"):
        verify_program(network, tmp_path, sample_images(2).numpy())


# -- 16-bit activations ---------------------------------------------------------------------------------------------


def wide_program(name, seed=0):
    """Every tensor at 16 bits, weights at 8."""
    network, _ = random_network(name, seed)
    grids = {
        key: ActivationGrid(1.05 * max(g.zero_point, 255 - g.zero_point) * g.scale / 32767, 32768, 16)
        for key, g in network.grids.items()
    }
    return lower(replace(network, grids=grids), "tflite")


@pytest.mark.parametrize("name", ["Residual", "Mobile", "Fire"])
def test_16_bit_activations_are_exact(tmp_path, name):
    litert()
    from ddq_search.export.litert_runtime import LiteRtComparison

    program = wide_program(name)
    export_tflite(program, tmp_path / "model.tflite")
    _, tensors = read((tmp_path / "model.tflite").read_bytes())
    assert tensors["fc/bias"][0] == schema.TensorType.INT64
    assert tensors["fc"][0] == schema.TensorType.INT16
    codes = quantize_input(sample_images(12, seed=3).numpy(), program.input.grid)
    assert codes.dtype == np.uint16
    comparison = LiteRtComparison(tmp_path / "model.tflite", program, program)
    comparison.compare(codes, executor.run(program, codes))
    report = comparison.report()
    assert report.passed, report.problems("model.tflite")
    assert report.end_to_end.codes == 12 * np.prod(program.output.shape)


def test_16_bit_products_and_moves_are_exact():
    x, y = ActivationGrid(float(np.float32(0.0003)), 32768, 16), ActivationGrid(float(np.float32(0.0011)), 32768, 16)
    ratio = float(np.float32(x.scale) * np.float32(x.scale) / np.float32(y.scale))
    shapes = {"x": (4, 3, 5), "gate": (4, 1, 1), "product": (4, 3, 5), "cut": (2, 3, 5), "turned": (3, 5, 2)}
    shapes |= {"flat": (30,), "o": (30,)}
    grids = dict.fromkeys(shapes, y) | {"x": x, "gate": x}
    steps = (
        Input("x", ()),
        Input("gate", ()),
        Multiply("product", ("x", "gate"), FixedPoint(*quantize_multiplier(ratio)), "double", 20000, 65000),
        Move("cut", ("product",), "slice", dim=0, start=1, stop=3),
        Move("turned", ("cut",), "transpose", dims=(1, 2, 0)),
        Move("flat", ("turned",), "reshape"),
        Move("o", ("flat",), "output"),
    )
    program = IntegerProgram("tflite", {n: Tensor(n, s, grids[n]) for n, s in shapes.items()}, steps, {})
    rng = np.random.default_rng(0)
    fed = {name: rng.integers(0, 65536, (6, *shapes[name])) for name in ("x", "gate")}
    product = executor.requantize((fed["x"] - 32768) * (fed["gate"] - 32768), *quantize_multiplier(ratio), "double")
    expected = np.clip(product + 32768, 20000, 65000)[:, 1:3].transpose(0, 2, 3, 1).reshape(6, 30)
    given_codes = [(codes.transpose(0, 2, 3, 1) - 32768).astype(np.int16) for codes in fed.values()]
    np.testing.assert_array_equal(run_litert(tflite_bytes(program), *given_codes), expected - 32768)
    assert {"MAXIMUM", "MINIMUM"} <= set(operator_names(flat_model(program)[0]))


def test_weights_beside_16_bit_activations_are_int8():
    program = wide_program("Residual")
    layer = next(s for s in program.steps if isinstance(s, Weighted))
    narrow = replace(layer, codes=np.clip(layer.codes, -7, 7), bits=4)
    carried = weight_container(narrow, 16)
    assert (carried.bits, carried.reason) == (8, "the runtime's CONV_2D has no int4 weights beside int16")
