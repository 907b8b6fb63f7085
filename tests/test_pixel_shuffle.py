"""Pixel shuffles from the tracer to every executor: codes change place as in torch, none is lost, none is free."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ddq_search.cost import LATENCY, CostTables
from ddq_search.errors import ExportError, GraphError
from ddq_search.evaluation import IntegerEvaluator
from ddq_search.export.c.registry import FAMILIES
from ddq_search.export.tflite import flat_model
from ddq_search.feasibility import operation_costs
from ddq_search.graph import operation, tensor_groups
from ddq_search.integer import executor
from ddq_search.integer.lowering import lower
from ddq_search.integer.program import Input, IntegerProgram, Move, Tensor, check
from ddq_search.policy import uniform
from ddq_search.precision import ActivationGrid
from ddq_search.space import build_space
from ddq_search.trace import trace
from hardware_models.devices import find_device
from hardware_models.profile import list_profiles
from tests.c_projects import CompiledRuntime, random_codes, runtime_sources, written
from tests.networks import Upscale, discrete, sample_images


def shuffling(shape: tuple[int, int, int], factor: int, bits: int = 8) -> IntegerProgram:
    """Returns the program of one pixel shuffle; ``shape`` is that of its result."""
    channels, height, width = shape
    grid = ActivationGrid(0.5, 2**15 if bits == 16 else 1, bits)
    shapes = {"input": (channels * factor**2, height // factor, width // factor), "shuffle": shape, "output": shape}
    tensors = {name: Tensor(name, size, grid) for name, size in shapes.items()}
    steps = (Input("input", ()), Move("shuffle", ("input",), "pixel_shuffle"), Move("output", ("shuffle",), "output"))
    return IntegerProgram("tflite", tensors, steps, {})


SIZES = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))


@given(sizes=SIZES, bits=st.sampled_from([2, 4, 8, 16]))
@settings(deadline=None)
def test_both_executors_move_codes_as_torch_does(sizes: tuple[int, int, int, int], bits: int) -> None:
    channels, height, width, factor = sizes
    program = shuffling((channels, height * factor, width * factor), factor, bits)
    check(program)
    rng = np.random.default_rng(channels)
    codes = rng.integers(0, 2**bits, (3, *program.input.shape)).astype(np.uint8 if bits <= 8 else np.uint16)
    expected = nn.PixelShuffle(factor)(torch.from_numpy(codes.astype(np.int32))).numpy()
    np.testing.assert_array_equal(executor.run(program, codes)["output"], expected)
    np.testing.assert_array_equal(IntegerEvaluator(program).run(codes)["output"].numpy(), expected)


def test_by_hand() -> None:
    codes = np.array([[[[1, 2]], [[3, 4]], [[5, 6]], [[7, 8]]]], np.uint8)  # four channels of one row of two pixels
    found = executor.run(shuffling((1, 2, 4), 2), codes)["output"]
    np.testing.assert_array_equal(found, [[[[1, 3, 2, 4], [5, 7, 6, 8]]]])


@pytest.mark.parametrize("shape", [(4, 1, 3), (1, 4, 2), (4, 2, 1), (2, 2, 2)])
def test_shapes_that_do_not_shuffle_are_refused(shape: tuple[int, int, int]) -> None:
    program = shuffling((1, 2, 4), 2)
    check(program)
    tensors = {**program.tensors, "input": Tensor("input", shape, program.input.grid)}
    with pytest.raises(ExportError, match=r"'shuffle': .* does not shuffle into"):
        check(IntegerProgram("tflite", tensors, program.steps, {}))


def test_traced_as_module_and_as_function_and_tied_to_its_input() -> None:
    graph = trace(Upscale().eval(), sample_images(1))
    module, function = operation(graph, "shuffle"), operation(graph, "pixel_shuffle")
    assert (module.input_shapes, module.output_shape) == (((8, 5, 5),), (2, 10, 10))
    assert (function.input_shapes, function.output_shape) == (((9, 10, 10),), (1, 30, 30))
    assert module.nonnegative, "its input went through ReLU"
    assert not function.nonnegative
    groups = tensor_groups(graph)
    assert groups["shuffle"] == groups["stem"]
    assert groups["output"] == groups["pixel_shuffle"] == groups["last"]


def test_only_images_are_shuffled() -> None:
    class Volumes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.pixel_shuffle(x, 2)

    with pytest.raises(GraphError, match="images"):
        trace(Volumes(), torch.zeros(1, 2, 4, 3, 3))


@pytest.mark.parametrize("profile", list_profiles())
def test_it_costs_what_a_transposition_of_its_size_costs(profile: str) -> None:
    class Transposed(Upscale):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(F.relu(self.stem(x)).reshape(-1, 2, 10, 10).transpose(2, 3)).reshape(-1, 1, 30, 30)

    device = find_device(profile, 1)
    prices = {}
    for model, name in ((Upscale(), "shuffle"), (Transposed(), "transpose")):
        graph = trace(model.eval(), sample_images(1))
        space = build_space(graph, device)
        tables = CostTables(space, device.factors(graph, space))
        prices[name] = operation_costs(tables, LATENCY, uniform(space, 8, 8))[name]
    assert prices["shuffle"] > 0
    assert prices["shuffle"] == pytest.approx(prices["transpose"], rel=1e-12)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler 'cc'")
def test_c_is_bit_exact_at_every_width(tmp_path_factory: pytest.TempPathFactory) -> None:
    runtime = CompiledRuntime(tmp_path_factory.mktemp("runtime"), runtime_sources(portable_only=True))
    for seed, bits in enumerate((2, 4, 8)):
        network = discrete(Upscale().eval(), sample_images(4), lambda _, bits=bits: bits)
        program = lower(network, "tflite")
        project = written(network, program, tmp_path_factory.mktemp("project"), FAMILIES[0])
        codes = random_codes(program, 2, seed)
        expected = executor.run(program, codes)
        for name, found in runtime.codes(project, program, codes).items():
            np.testing.assert_array_equal(found, expected[name], err_msg=f"{name} at {bits} bits")


def test_tflite_has_its_own_operator_where_the_order_of_channels_is_the_same() -> None:
    one, three = (flat_model(shuffling((channels, 4, 6), 2))[0].operators for channels in (1, 3))
    assert [op.code for op in one] == ["DEPTH_TO_SPACE"]
    assert [op.code for op in three] == ["RESHAPE", "TRANSPOSE", "RESHAPE"]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_litert_moves_the_same_codes(channels: int, bits: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("ai_edge_litert.interpreter", reason="LiteRT is not installed: ddq-search[litert]")
    from ddq_search.export.litert_runtime import LiteRtComparison
    from ddq_search.export.tflite import export_tflite

    program, path = shuffling((channels, 6, 9), 3, bits), tmp_path_factory.mktemp("tflite") / "model.tflite"
    export_tflite(program, path)
    comparison = LiteRtComparison(path, program, program)
    codes = np.random.default_rng(0).integers(0, 2**bits, (5, *program.input.shape))
    codes = codes.astype(np.uint8 if bits == 8 else np.uint16)
    comparison.compare(codes, executor.run(program, codes))
    assert not comparison.report().problems(path.name)
