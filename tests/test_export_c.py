"""The C export: bit-exact networks, the arena and the flash as planned and priced, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest

from ddq_search.cost import FLASH, CostTables
from ddq_search.errors import ExportError, VerificationError
from ddq_search.export.c.constants import build_constants, folded_bias
from ddq_search.export.c.contract import Contract
from ddq_search.export.c.layers import COLUMNS
from ddq_search.export.c.ordering import order_tensors
from ddq_search.export.c.portable import KERNELS
from ddq_search.export.c.project import read_project, write_c_project
from ddq_search.export.c.proof import CComparison
from ddq_search.export.c.registry import all_kernels, choose_kernels, executes
from ddq_search.integer import executor
from ddq_search.integer.lowering import lower, quantize_input
from ddq_search.integer.program import Weighted
from ddq_search.integer.serialize import encode, save_program
from ddq_search.packing import layer_bytes, weight_bytes
from ddq_search.precision import ActivationGrid
from ddq_search.space import build_space
from ddq_search.verify import verify_program
from hardware_models import cost_model, load_profile
from hardware_models.measurement_files import read_measurements
from tests.c_projects import CompiledRuntime, planned, random_codes, runtime_sources, written
from tests.networks import MODELS, random_network, sample_images
from tests.nonuniform import with_codebooks, with_points, with_wide_activations
from tests.test_integer_lowering import Y, linear_network

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler 'cc'")


def mixed(variable):
    return (2, 4, 8)[len(variable) % 3]


def mixed_activations(variable):
    return 8 if variable.startswith("weights/") else mixed(variable)


NETWORKS = {
    "w8a8": lambda name: random_network(name, 1)[0],
    "mixed": lambda name: random_network(name, 2, mixed)[0],
    "w2a2": lambda name: random_network(name, 3, lambda _: 2)[0],
    "codebooks": lambda name: with_codebooks(random_network(name, 4, mixed_activations)[0], lambda v: 2 + len(v) % 3),
    "points": lambda name: with_points(random_network(name, 5, mixed_activations)[0]),
}


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    return CompiledRuntime(tmp_path_factory.mktemp("runtime"), runtime_sources(portable_only=True))


@needs_compiler
@pytest.mark.parametrize("style", NETWORKS)
@pytest.mark.parametrize("model", MODELS)
def test_every_code_of_every_tensor_is_the_executors(runtime, tmp_path, model, style):
    program = lower(NETWORKS[style](model), ("tflite", "single")[len(model) % 2])
    project = written(NETWORKS[style](model), program, tmp_path)
    inputs = quantize_input(sample_images(6, seed=3).numpy(), program.input.grid)
    found, expected = runtime.codes(project, program, inputs), executor.run(program, inputs)
    for name, codes in expected.items():
        np.testing.assert_array_equal(found[name], codes, err_msg=name)


@needs_compiler
@pytest.mark.parametrize("arithmetic", ["tflite", "single"])
def test_results_beyond_int32_saturate_at_the_clamp(runtime, tmp_path, arithmetic):
    network = linear_network([[127], [-127]], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0], output=ActivationGrid(1e-6, 9, 8))
    program = lower(network, arithmetic)
    inputs = np.arange(256, dtype=np.uint8).reshape(-1, 1)
    found = runtime.codes(written(network, program, tmp_path), program, inputs)
    np.testing.assert_array_equal(found["fc"], executor.run(program, inputs)["fc"])
    assert set(found["fc"].ravel()) == {0, 9, 255}


# -- flash and arena -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", NETWORKS)
@pytest.mark.parametrize("model", MODELS)
def test_constants_take_the_bytes_of_the_serialized_program(tmp_path, model, style):
    network = NETWORKS[style](model)
    program = lower(network, "single")
    assert written(network, program, tmp_path).constants_bytes == len(encode(program)[1])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("model", MODELS)
def test_constants_take_the_bytes_of_the_price(tmp_path, model, bits):
    network, _ = random_network(model, 0, lambda _: bits)
    device = cost_model("cortex-a53-rpi3-lowbit-neon")
    space = build_space(network.graph, device)
    policy = {v.name: bits if bits in v.candidates else v.candidates[0] for v in space.variables}
    price = CostTables(space, device.factors(network.graph, space)).price(policy)
    assert written(network, lower(network, "single"), tmp_path).constants_bytes == price[FLASH]


def test_narrow_weights_take_a_half_and_a_quarter_up_to_the_bytes_that_end_rows():
    sections = {}
    for bits in (8, 4, 2):
        program = lower(random_network("Residual", 0, lambda _, bits=bits: bits)[0], "single")
        constants = build_constants(program, choose_kernels(program), order_tensors(program))
        layers = [step for step in program.steps if isinstance(step, Weighted)]
        sections[bits] = [constants.arrays[constants.layers[step.name].weights].nbytes for step in layers]
        assert sections[bits] == [weight_bytes(step.rows, step.row_length, bits) for step in layers]
        whole = sum(layer_bytes(step.rows, step.row_length, bits) for step in layers)
        assert constants.byte_count == whole
    for layer, step in enumerate(layers):
        assert 0 <= sections[4][layer] - sections[8][layer] / 2 <= step.rows / 2
        assert 0 <= sections[2][layer] - sections[8][layer] / 4 <= step.rows * 3 / 4


def test_a_module_used_twice_stores_its_weights_once(tmp_path):
    network, _ = random_network("Shuffle", 0)
    program = lower(network, "single")
    constants = build_constants(program, choose_kernels(program), order_tensors(program))
    first, second = (constants.layers[name] for name in ("branch", "branch#1"))
    assert first.weights == second.weights
    assert first.bias != second.bias


@needs_compiler
def test_the_compiled_program_has_the_planned_arena_and_the_priced_constants(tmp_path):
    network, _ = random_network("Mobile", 0, mixed)
    program = lower(network, "tflite")
    project = written(network, program, tmp_path)
    inputs = random_codes(program, 40, 0)
    with CComparison(tmp_path, program, {}) as comparison:
        comparison.compare(inputs, executor.run(program, inputs))
        report = comparison.report()
    assert report.passed
    assert (report.samples, report.sanitized_samples) == (40, 32)
    assert report.arena_bytes == project.arena_bytes == planned(network, program).total
    assert report.constants_bytes == project.constants_bytes == len(encode(program)[1])


# -- the proof finds out -------------------------------------------------------------------------------------------


@needs_compiler
def test_one_wrong_code_is_found(tmp_path):
    network, _ = random_network("Residual", 0, mixed)
    program = lower(network, "tflite")
    written(network, program, tmp_path)
    inputs = random_codes(program, 2, 0)
    reference = executor.run(program, inputs)
    reference["conv2"] = reference["conv2"].copy()
    reference["conv2"][1, 3, 2, 1] ^= 1
    with CComparison(tmp_path, program, {"host": 2}) as comparison:
        comparison.compare(inputs, reference)
        report = comparison.report()
    assert not report.passed
    assert {name for name, c in report.tensors.items() if c.differing} == {"conv2"}
    assert report.targets["host"].differing == ("conv2",)
    assert report.problems() == [
        f"C on the host, tensor 'conv2': 2 of {report.tensors['conv2'].codes} codes differ, by up to 1",
        "C on host, tensor 'conv2': its digest differs",
    ]


@needs_compiler
def test_the_whole_proof_names_the_c_project_and_refuses_an_edited_one(tmp_path):
    network, _ = random_network("Fire", 0, mixed)
    program = lower(network, "tflite")
    save_program(program, tmp_path)
    written(network, program, tmp_path / "c")
    images = sample_images(4).numpy()
    report = verify_program(network, tmp_path, images, emulated={})
    assert report.passed
    proof = json.loads((tmp_path / "verification.json").read_text())["c"]
    assert proof["passed"]
    assert proof["samples"] == 4
    assert proof["constants_bytes"] == (tmp_path / "program.bin").stat().st_size
    assert set(proof["tensors"]) == set(program.tensors)
    assert set(proof["kernels"].values()) == {"ddq_portable"}
    source = tmp_path / "c" / "model_constants.c"
    text = source.read_text()
    source.write_text(text.replace("1", "2", 1))
    with pytest.raises(VerificationError, match=r"model_constants\.c is missing or was edited after export"):
        verify_program(network, tmp_path, images, emulated={})
    source.write_text(text[: len(text) // 2])
    with pytest.raises(VerificationError, match="export the policy again"):
        verify_program(network, tmp_path, images, emulated={})


@needs_compiler
def test_a_project_of_another_policy_is_refused(tmp_path):
    network, _ = random_network("Fire", 0, mixed)
    written(network, lower(network, "tflite"), tmp_path)
    other, _ = random_network("Fire", 0)
    with pytest.raises(VerificationError, match="another policy or arithmetic"):
        CComparison(tmp_path, lower(other, "tflite"), {})


@pytest.mark.parametrize("text", ["", "[]", '{"format": "x"}', '{"format": "ddq-search C project", "version": 1}'])
def test_a_damaged_description_is_refused(tmp_path, text):
    (tmp_path / "project.json").write_text(text)
    with pytest.raises(VerificationError, match="export the policy again"):
        read_project(tmp_path)


# -- which kernel, which arena -------------------------------------------------------------------------------------


def test_kernels_are_refused_where_they_do_not_execute_the_layer(tmp_path):
    network, _ = random_network("Residual", 0, mixed)
    program = lower(network, "single")
    with pytest.raises(ExportError, match=r"layer 'conv1': no kernel 'fast'; there are ddq_portable"):
        choose_kernels(program, given={"conv1": "fast"})
    with pytest.raises(ExportError, match="no weighted layer 'conv9'"):
        choose_kernels(program, given={"conv9": "ddq_portable"})
    with pytest.raises(ExportError, match=r"'conv1': kernel ddq_portable_codebook does not execute it \(conv, weights"):
        choose_kernels(program, given={"conv1": "ddq_portable_codebook"})


def test_wide_activations_are_refused_by_name():
    network = with_wide_activations(random_network("Residual", 0)[0])
    with pytest.raises(ExportError, match=r"'input' has 16-bit activations; the C export stores them in 2, 4 or 8"):
        choose_kernels(lower(network, "tflite"))


def test_a_kernel_that_subtracts_a_constant_gets_the_rest_in_the_bias():
    network = linear_network([[3, -2], [5, 4]], [0.125, 0.5], [1.0, 1.0], [1.0, -2.0])  # zero point 4
    program = lower(network, "single")
    step = program.steps[1]
    assert step.bias.tolist() == [16, -8]
    assert folded_bias(program, step, KERNELS[0]).tolist() == [16, -8]
    assert folded_bias(program, step, replace(KERNELS[0], offset=0)).tolist() == [16 - 4 * 1, -8 - 4 * 9]
    assert folded_bias(program, step, replace(KERNELS[0], offset=128)).tolist() == [16 + 124 * 1, -8 + 124 * 9]


def test_a_kernel_that_keeps_results_in_int32_is_not_given_those_that_leave_it():
    direct = replace(KERNELS[0], offset=128)
    near = lower(linear_network([[127]], [1.0], [1.0], [0.0], output=Y), "single")
    assert executes(direct, near, near.steps[1])
    far = lower(linear_network([[127]], [1.0], [1.0], [0.0], output=ActivationGrid(1e-6, 9, 8)), "single")
    assert not executes(direct, far, far.steps[1])
    assert executes(KERNELS[0], far, far.steps[1])
    # |bias| + 254 * 251 (codes minus 4) fits int32, |bias| + 254 * 255 (codes as they are) does not
    offset = 2_147_419_647
    brim = linear_network([[127, -127]], [2.0**-9], [1.0], [offset / 2.0**10], output=ActivationGrid(2.0**14, 9, 8))
    full = lower(brim, "single")
    assert full.steps[1].bias.tolist() == [offset]
    assert not executes(replace(KERNELS[0], offset=0), full, full.steps[1])
    assert executes(KERNELS[0], full, full.steps[1])


def test_every_kernel_says_its_bound_and_lies_in_a_file_of_the_runtime():
    for name, kernel in all_kernels().items():
        assert kernel.bound
        assert kernel.source in runtime_sources(), name


def test_an_arena_for_something_else_is_refused(tmp_path):
    network, _ = random_network("Residual", 0, mixed)
    program = lower(network, "single")
    plan = planned(network, program)
    for broken, said in (
        ({"steps": plan.steps[::-1]}, "another schedule"),
        ({"aliases": {}}, "disagree whether it is an alias"),
        ({"sizes": {**plan.sizes, "conv2": 16}}, r"'conv2': its buffer has 16 bytes instead of 200"),
        ({"sizes": {**plan.sizes, "scratch/conv2": 96}}, r"'conv2': its kernel needs 108 bytes of scratch.* has 96"),
    ):
        with pytest.raises(ExportError, match=said):
            write_c_project(program, tmp_path, plan=replace(plan, **broken))
    assert not list(tmp_path.iterdir())


# -- the files -----------------------------------------------------------------------------------------------------


def test_only_what_the_network_needs_is_written_and_older_files_go(tmp_path):
    network, _ = random_network("Mobile", 0)
    project = written(network, lower(network, "single"), tmp_path)
    assert project.sources == (
        "model.c", "model_constants.c", "ddq_add.c", "ddq_mean.c", "ddq_portable.c", "ddq_weighted.c",
    )  # fmt: skip
    network, _ = random_network("Fire", 0)
    written(network, lower(network, "single"), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert "ddq_add.c" not in names
    assert names >= {"ddq_pool.c", "ddq_move.c", "main.c", "Makefile", "CMakeLists.txt", "model.h"}
    assert names == {*read_project(tmp_path)["files"], "project.json"}


@needs_compiler
def test_names_of_any_kind_are_kept(runtime, tmp_path):
    network, _ = random_network("Residual", 0)
    odd = dict(
        zip(
            network.graph,
            ("@INPUT@", 'a"b\\', "new\nline", "*/ /* ??/", "层", "%s", "", "@SCHEDULE@", "é"),
            strict=False,
        )
    )
    odd = {name: odd.get(name, name) for name in network.graph}
    graph = nx.relabel_nodes(network.graph, odd)
    for name in graph:
        graph.nodes[name]["operation"] = replace(graph.nodes[name]["operation"], name=name)
    renamed = replace(
        network,
        graph=graph,
        layers={odd[name]: layer for name, layer in network.layers.items()},
        grids={odd[name]: grid for name, grid in network.grids.items()},
    )
    program = lower(renamed, "single")
    project = written(renamed, program, tmp_path)
    inputs = random_codes(program, 2, 0)
    found, expected = runtime.codes(project, program, inputs), executor.run(program, inputs)
    for name, codes in expected.items():
        np.testing.assert_array_equal(found[name], codes, err_msg=name)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    network, _ = random_network("Fire", 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot write the C project to"):
        written(network, lower(network, "single"), tmp_path / "file" / "c")


def test_the_header_is_the_deployment_contract(tmp_path):
    network, _ = random_network("Residual", 0, mixed)
    program = lower(network, "tflite")
    contract = Contract(classes=('a "cat"', "dög", "new\nline", "no", "per%cent"))
    project = write_c_project(program, tmp_path, plan=planned(network, program), contract=contract)
    facts = dict(
        line.split(maxsplit=2)[1:]
        for line in (tmp_path / "model.h").read_text().splitlines()
        if line.startswith("#define MODEL_") and line.count(" ") >= 2
    )
    assert float(facts["MODEL_INPUT_SCALE"].rstrip("f")) == pytest.approx(program.input.grid.scale, rel=1e-8)
    assert int(facts["MODEL_INPUT_ZERO_POINT"]) == program.input.grid.zero_point
    assert [int(facts[f"MODEL_INPUT_{axis}"]) for axis in ("CHANNELS", "HEIGHT", "WIDTH", "BYTES")] == [3, 9, 9, 243]
    assert [int(facts[f"MODEL_OUTPUT_{axis}"]) for axis in ("FEATURES", "CODES", "BYTES")] == [5, 5, 5]
    assert int(facts["MODEL_ARENA_BYTES"]) == project.arena_bytes
    assert int(facts["MODEL_CONSTANTS_BYTES"]) == project.constants_bytes
    assert facts["MODEL_ARITHMETIC"] == '"tflite"'
    assert facts["MODEL_POLICY_SHA256"] == f'"{program.policy_sha256}"'
    assert r'"a \"cat\""' in (tmp_path / "model.c").read_text()
    assert r'"d\303\266g"' in (tmp_path / "model.c").read_text()


def no_models(model, size):
    raise AssertionError("a file of layers names no model")


@needs_compiler
@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_the_benchmark_prints_what_calibration_reads(tmp_path):
    network, _ = random_network("Mobile", 0, mixed)
    program = lower(network, "single")
    written(network, program, tmp_path)
    subprocess.run(["make", "-s", "bench", "CFLAGS=-O1", "RUNS=3"], cwd=tmp_path, check=True, capture_output=True)
    rows = list(csv.DictReader((tmp_path / "bench.csv").read_text().splitlines()))
    assert tuple(rows[0]) == COLUMNS
    assert [row["layer"] for row in rows] == ["expand", "depthwise", "project", "same", "fc"]
    assert [row["layer_class"] for row in rows] == ["pointwise", "depthwise", "grouped", "conv", "linear"]
    assert {row["unit"] for row in rows} == {"nanoseconds"}
    measured = read_measurements(tmp_path / "bench.csv", load_profile("cortex-a53-rpi3-lowbit-neon"), no_models)
    assert all(0 < measurement.seconds < 1 for measurement in measured)
