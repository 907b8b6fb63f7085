"""The proof: it passes on what was exported, and says what is wrong with anything else."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from ddq_search.errors import VerificationError
from ddq_search.export.onnx import export_onnx
from ddq_search.integer.lowering import lower, quantize_input
from ddq_search.integer.serialize import save_program
from ddq_search.verify import verify_program
from tests.networks import MODELS, random_network, sample_images


def mixed(variable):
    return (2, 4, 8)[len(variable) % 3]


def exported(folder, name, seed, arithmetic, bits=mixed):
    network, _ = random_network(name, seed, bits)
    program = lower(network, arithmetic)
    save_program(program, folder)
    export_onnx(program, folder / "model.onnx")
    return network, program


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("arithmetic", ["tflite", "single"])
def test_every_network_is_bit_exact_and_its_onnx_within_the_bar(tmp_path, name, seed, arithmetic):
    pytest.importorskip("onnxruntime")
    network, program = exported(tmp_path, name, seed, arithmetic)
    report = verify_program(network, tmp_path, sample_images(48, seed=7).numpy(), strict=True)
    assert report.bit_exact
    assert report.samples == 48
    assert set(report.tensors) == set(report.onnx.operators) == set(program.tensors)
    assert report.onnx.top1_agreement == 1.0
    written = json.loads((tmp_path / "verification.json").read_text())
    assert written["passed"] is written["bit_exact"] is written["onnx"]["passed"] is True
    assert written["file_bytes"]["program.bin"] == (tmp_path / "program.bin").stat().st_size


def test_codes_are_taken_as_they_are_and_onnx_is_optional(tmp_path):
    network, program = exported(tmp_path, "Mobile", 0, "single")
    (tmp_path / "model.onnx").unlink()
    codes = quantize_input(sample_images(3).numpy(), program.input.grid)
    report = verify_program(network, tmp_path, codes)
    assert report.passed
    assert report.onnx is None
    assert report.onnx_note == "no model.onnx in the folder"


def test_another_networks_weights_are_found_out(tmp_path):
    exported(tmp_path, "Residual", 0, "single")
    (tmp_path / "model.onnx").unlink()
    other, _ = random_network("Residual", 1, mixed)
    report = verify_program(other, tmp_path, sample_images(2).numpy())
    assert not report.bit_exact
    assert not report.passed
    assert any(comparison.differing for comparison in report.tensors.values())
    with pytest.raises(VerificationError, match="does not compute what was searched"):
        verify_program(other, tmp_path, sample_images(2).numpy(), strict=True)
    different, _ = random_network("Mobile", 1, mixed)
    with pytest.raises(VerificationError, match="another network"):
        verify_program(different, tmp_path, sample_images(2).numpy())


def test_a_price_that_does_not_match_fails(tmp_path):
    network, _ = exported(tmp_path, "Residual", 0, "single")
    size = (tmp_path / "program.bin").stat().st_size
    images = sample_images(2).numpy()
    assert verify_program(network, tmp_path, images, priced_flash_bytes=size).passed
    report = verify_program(network, tmp_path, images, priced_flash_bytes=size + 1)
    assert not report.passed
    assert f"priced {size + 1}" in report.problems()[0]


def test_a_wrong_onnx_file_is_found_out(tmp_path):
    onnx = pytest.importorskip("onnx")
    network, _ = exported(tmp_path, "Residual", 0, "single")
    path = tmp_path / "model.onnx"
    images = sample_images(16).numpy()
    model = onnx.load(path)
    scale = next(c for c in model.graph.initializer if c.name == "conv2/weight_scale")
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(1.2), scale.name))
    onnx.save(model, path)
    report = verify_program(network, tmp_path, images)
    assert report.bit_exact
    assert not report.passed
    assert [line.split(":")[0] for line in report.problems()] == ["model.onnx, 'conv2'"]
    path.write_bytes(b"not a model")
    with pytest.raises(VerificationError, match="does not load"):
        verify_program(network, tmp_path, images)
    exported(tmp_path / "other", "Residual", 0, "single", bits=lambda _: 8)
    shutil.copy(tmp_path / "other" / "model.onnx", path)
    with pytest.raises(VerificationError, match="another policy"):
        verify_program(network, tmp_path, images)


def test_no_images_are_refused(tmp_path):
    network, _ = exported(tmp_path, "Residual", 0, "single")
    with pytest.raises(VerificationError, match="at least one image"):
        verify_program(network, tmp_path, sample_images(0).numpy())
