"""The ONNX file: valid, named like the model, its operators within the bar of the reference."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch
from torch import nn

from ddq_search.errors import ExportError
from ddq_search.export.onnx import export_onnx
from ddq_search.integer.lowering import lower
from tests.networks import MODELS, discrete, random_network, sample_images

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def mixed(variable):
    return (2, 4, 8)[len(variable) % 3]


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", sorted(MODELS))
def test_names_types_and_metadata(tmp_path, name):
    network, _ = random_network(name, 0, mixed)
    program = lower(network, "single")
    export_onnx(program, tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {step.name for step in program.steps} - {node.name for node in model.graph.node} <= {"input"} | {
        step.name for step in program.steps if getattr(step, "function", None)
    }
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["policy_sha256"] == program.policy_sha256
    assert facts["arithmetic"] == "single"
    weights = {c.name.removesuffix("/weights"): c.data_type for c in model.graph.initializer if "/weights" in c.name}
    for layer, numbers in network.layers.items():
        assert weights[layer] == (onnx.TensorProto.INT4 if numbers.bits <= 4 else onnx.TensorProto.INT8)


def test_the_file_does_not_depend_on_the_arithmetic(tmp_path):
    network, _ = random_network("Fire", 2, mixed)
    for arithmetic in ("tflite", "single"):
        export_onnx(lower(network, arithmetic), tmp_path / f"{arithmetic}.onnx")
    first, second = (onnx.load(tmp_path / f"{a}.onnx") for a in ("tflite", "single"))
    assert first.graph == second.graph


def test_the_batch_is_dynamic(tmp_path):
    network, _ = random_network("Shuffle", 0)
    export_onnx(lower(network, "single"), tmp_path / "model.onnx")
    run = session(tmp_path / "model.onnx")
    for count in (1, 5):
        assert run.run(None, {"input": sample_images(count).numpy()})[0].shape == (count, 8, 9, 9)


def test_strange_layer_names_survive(tmp_path):
    strange = 'größe "7" \\ \n名'
    model = nn.Sequential()
    model.add_module("a", nn.Conv2d(3, 2, 1))
    model.add_module("b", nn.Conv2d(2, 2, 1))
    network = discrete(model.eval(), sample_images(4), lambda _: 8)
    rename = {"a": strange}
    graph = type(network.graph)()
    for name, data in network.graph.nodes(data=True):
        op = data["operation"]
        graph.add_node(rename.get(name, name), operation=type(op)(**{**vars(op), "name": rename.get(name, name)}))
    graph.add_edges_from((rename.get(a, a), rename.get(b, b), key) for a, b, key in network.graph.edges(keys=True))
    moved = type(network)(
        graph,
        network.policy,
        {rename.get(k, k): v for k, v in network.layers.items()},
        {rename.get(k, k): v for k, v in network.grids.items()},
    )
    export_onnx(lower(moved, "single"), tmp_path / "model.onnx")
    assert strange in {node.name for node in onnx.load(tmp_path / "model.onnx").graph.node}
    expected = session(tmp_path / "model.onnx").run(None, {"input": sample_images(2).numpy()})[0]
    export_onnx(lower(network, "single"), tmp_path / "plain.onnx")
    np.testing.assert_array_equal(
        session(tmp_path / "plain.onnx").run(None, {"input": sample_images(2).numpy()})[0], expected
    )


def test_the_output_is_close_to_the_float_model(tmp_path):
    network, model = random_network("Residual", 6)
    export_onnx(lower(network, "single"), tmp_path / "model.onnx")
    images = sample_images(8, seed=6)
    with torch.no_grad():
        expected = model(images).numpy()
    found = session(tmp_path / "model.onnx").run(None, {"input": images.numpy()})[0]
    assert np.abs(found - expected).max() < 0.05 * np.ptp(expected)


def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch):
    network, _ = random_network("Residual", 0)
    program = lower(network, "single")
    for module in [m for m in __import__("sys").modules if m.split(".")[0] == "onnx"]:
        monkeypatch.delitem(__import__("sys").modules, module)
    real = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name.split(".")[0] == "onnx":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    monkeypatch.setattr("importlib.import_module", lambda name: blocked(name))
    with pytest.raises(ExportError, match="pip install onnx"):
        export_onnx(program, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
