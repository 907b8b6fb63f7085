"""Whole networks on emulated Cortex-M and AArch64, with the kernels written for them: evaluation mode = executor = C.

Every network runs 256 real-valued inputs on the host, 64 on AArch64 and 16 on the boards, in eight policies.
"""

from __future__ import annotations

import pytest

from ddq_search.export.c.targets import TARGETS, missing
from ddq_search.integer.lowering import lower
from ddq_search.integer.serialize import save_program
from ddq_search.verify import verify_program
from tests.c_projects import written
from tests.networks import MODELS, random_network, sample_images
from tests.nonuniform import with_codebooks, with_points

FAMILIES = {
    "portable": {"aarch64": 64, "cortex-m4": 16, "cortex-m7": 16, "cortex-m55-clang": 16},
    "dsp": {"cortex-m4": 16, "cortex-m7": 16},
    "helium": {"cortex-m55-clang": 16},
    "neon": {"aarch64": 64},
    "neon_dot": {"aarch64-dot": 64},
}
"""Family of kernels → the targets that run it, and on how many samples."""

POLICIES = {
    "w8a8": lambda name: random_network(name, 1)[0],
    "w4a8": lambda name: random_network(name, 2, lambda v: 4 if v.startswith("weights/") else 8)[0],
    "w2a8": lambda name: random_network(name, 3, lambda v: 2 if v.startswith("weights/") else 8)[0],
    "w4a4": lambda name: random_network(name, 4, lambda v: 4)[0],
    "w2a2": lambda name: random_network(name, 5, lambda v: 2)[0],
    "mixed": lambda name: random_network(name, 6, lambda v: (2, 4, 8)[len(v) % 3])[0],
    "codebooks": lambda name: with_codebooks(random_network(name, 7)[0], lambda v: 2 + len(v) % 3),
    "points": lambda name: with_points(random_network(name, 8)[0]),
}


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """Kernels are compiled once for all networks."""
    return tmp_path_factory.mktemp("objects")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model", MODELS)
def test_networks_are_bit_exact_wherever_they_run(tmp_path, objects, model, family):
    gaps = [gap for name in ("host", *FAMILIES[family]) if (gap := missing(TARGETS[name]))]
    if gaps:
        pytest.skip("; ".join(gaps))
    for index, (policy, network_of) in enumerate(POLICIES.items()):
        network = network_of(model)
        program = lower(network, ("tflite", "single")[index % 2])
        folder = tmp_path / policy
        save_program(program, folder)
        project = written(network, program, folder / "c", family)
        images = sample_images(256, seed=index).numpy()
        report = verify_program(network, folder, images, emulated=FAMILIES[family], objects=objects)
        assert report.problems() == []
        assert report.passed
        assert report.c.samples == 256
        ran = {name: (result.samples, result.note) for name, result in report.c.targets.items()}
        assert ran == {name: (samples, "") for name, samples in FAMILIES[family].items()}
        assert report.c.constants_bytes == project.constants_bytes == report.file_bytes["program.bin"]
