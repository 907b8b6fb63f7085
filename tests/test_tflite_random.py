"""Random graphs and policies: LiteRT's reference kernels compute every code of every tensor of the TFLite file."""

from __future__ import annotations

import pytest

from ddq_search.export.tflite import export_tflite
from ddq_search.integer import executor
from ddq_search.integer.lowering import lower
from tests.c_projects import random_codes
from tests.nonuniform import with_codebooks, with_points
from tests.random_networks import random_graph_network

pytest.importorskip("ai_edge_litert.interpreter", reason="LiteRT is not installed: ddq-search[litert]")

CASES = 600


def agrees(path, seed):
    from ddq_search.export.litert_runtime import LiteRtComparison

    network, style = random_graph_network(seed), seed % 7
    if network.layers and style == 0:
        network = with_codebooks(network, lambda variable: (2, 4)[len(variable) % 2])
    elif network.layers and style == 1:
        network = with_points(network)
    program = lower(network, "tflite")
    export_tflite(program, path)
    comparison = LiteRtComparison(path, program, program)
    inputs = random_codes(program, 3, seed)
    comparison.compare(inputs, executor.run(program, inputs))
    report = comparison.report()
    assert report.passed, (seed, report.problems(path.name))
    assert report.tensors.keys() == program.tensors.keys()


@pytest.mark.parametrize("seed", range(12))
def test_a_few_random_graphs_are_bit_exact(tmp_path, seed):
    agrees(tmp_path / "model.tflite", seed)


@pytest.mark.slow
def test_many_random_graphs_are_bit_exact(tmp_path):
    for seed in range(12, CASES):
        agrees(tmp_path / "model.tflite", seed)
