"""Random graphs and policies: the C project computes every code of every tensor that the reference executor does."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from ddq_search.export.c.registry import FAMILIES
from ddq_search.integer import executor
from ddq_search.integer.lowering import lower
from tests.c_projects import CompiledRuntime, random_codes, runtime_sources, written
from tests.nonuniform import with_codebooks, with_points
from tests.random_networks import random_graph_network

CASES = 600

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler 'cc'")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return CompiledRuntime(tmp_path_factory.mktemp("runtime"), runtime_sources(portable_only=True))


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    return CompiledRuntime(tmp_path_factory.mktemp("runtime"), runtime_sources())


def agrees(runtime, folder, seed, family):
    style = seed % 7  # most weights uniform, some as codebooks, some of several points
    network = random_graph_network(seed, weight_bits=8 if style in (0, 1) else None)
    if network.layers and style == 0:
        network = with_codebooks(network, lambda variable: (2, 4)[len(variable) % 2])
    elif network.layers and style == 1:
        network = with_points(network)
    program = lower(network, ("tflite", "single")[seed // 7 % 2])
    project = written(network, program, folder, family)
    inputs = random_codes(program, 3, seed)
    found, expected = runtime.codes(project, program, inputs), executor.run(program, inputs)
    assert found.keys() == expected.keys()
    different = [name for name in expected if not np.array_equal(found[name], expected[name])]
    assert not different, (seed, family, different)


@pytest.mark.parametrize("seed", range(12))
def test_a_few_random_graphs_are_bit_exact(quick, tmp_path, seed):
    agrees(quick, tmp_path, seed, "portable")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", FAMILIES)
def test_many_random_graphs_are_bit_exact_with_every_family_of_kernels(complete, tmp_path, family):
    first = 1000 * FAMILIES.index(family)
    for seed in range(first, first + CASES // len(FAMILIES)):
        agrees(complete, tmp_path, seed, family)
