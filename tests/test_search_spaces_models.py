"""Families, torchvision's models, the user's own code, and weights from files."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from ddq_search.errors import ConfigError
from ddq_search.graph import operations
from ddq_search.trace import trace
from search_spaces.models import FAMILIES, build_model
from search_spaces.weights import load_weights


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_every_family_maps_images_to_scores_and_traces(family: str, channels: int, size: int) -> None:
    model = build_model(family, channels, 7, size).eval()
    with torch.no_grad():
        assert model(torch.randn(2, channels, size, size)).shape == (2, 7)
    graph = trace(model, torch.randn(1, channels, size, size))
    macs = sum(op.macs for op in operations(graph))
    assert macs > 0
    unfused = [op.name for op in operations(graph) if op.kind == "activation"]
    assert not unfused, "every activation of our families fuses into the operation before it"


@pytest.mark.parametrize(
    ("family", "macs", "parameters"),
    [
        # Sums over the layers by hand, e.g. resnet8: 442,368 (stem) + 2·2,359,296 + (1,179,648 + 2,359,296 + 131,072)
        # · 2 stages + 640.
        ("resnet8", 442_368 + 2 * 2_359_296 + 2 * (1_179_648 + 2_359_296 + 131_072) + 640, 78_042),
        ("resnet20", 40_813_184, 272_474),
        ("resnet56", 125_747_840, 855_770),
        ("mobilenetv2_cifar", 87_976_448, 2_236_682),
    ],
)
def test_size_of_known_networks(family: str, macs: int, parameters: int) -> None:
    model = build_model(family, 3, 10, 32)
    graph = trace(model, torch.randn(1, 3, 32, 32))
    assert sum(op.macs for op in operations(graph)) == macs
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_resnet8_on_digits_shrinks_to_two_by_two() -> None:
    graph = trace(build_model("resnet8", 1, 10, 8), torch.randn(1, 1, 8, 8))
    sizes = [op.output_shape[1] for op in operations(graph) if op.kind == "conv2d" and op.name.endswith("conv2")]
    assert sizes == [8, 4, 2]


def test_torchvision_model_of_one_channel() -> None:
    model = build_model("torchvision:squeezenet1_1", 1, 5, (64, 48)).eval()
    assert model(torch.randn(1, 1, 64, 48)).shape == (1, 5)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("resnet88", "did you mean 'resnet8'"),
        ("torchvision:resnet19", "did you mean 'resnet1"),
        ("no_such_package:net", "importing 'no_such_package' failed"),
        ("torch.nn:Linea", "did you mean 'Linear'"),
        ("torch.nn:Linear", "calling it failed"),
        ("math:pi", "is a float"),
        ("builtins:dict", "returned a dict"),
        ("torch.nn:Identity", "expected scores"),
        ("torchvision:alexnet", "does not accept images of shape (3, 32, 32)"),
    ],
)
def test_wrong_names_are_explained(spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=_literally(said)):
        build_model(spec, 3, 10, 32)


def test_user_code_gets_the_arguments_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_for_test.py").write_text(
        "from torch import nn\n"
        "def make(num_classes, image_size, width=4):\n"
        "    h, w = image_size\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(h * w, width), nn.Linear(width, num_classes))\n"
        "ready = make(10, (8, 8))\n"
        "def broken():\n"
        "    raise RuntimeError('no luck')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = build_model("mine_for_test:make", 1, 10, 8)
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert isinstance(build_model("mine_for_test:ready", 1, 10, 8), nn.Sequential)
    with pytest.raises(ConfigError, match=r"RuntimeError: no luck \(.*mine_for_test.py:7\)"):
        build_model("mine_for_test:broken", 1, 10, 8)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_back(tmp_path: Path, suffix: str) -> None:
    first, second = (build_model("resnet8", 1, 10, 8) for _ in range(2))
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in first.state_dict().items()}}, path)
    else:
        safetensors.torch.save_file(first.state_dict(), path)
    load_weights(second, path)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, rtol=0, atol=0)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("/nonexistent"),))


def test_broken_and_foreign_weights_are_refused_and_change_nothing(tmp_path: Path) -> None:
    model = build_model("resnet8", 1, 10, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = build_model("resnet8", 1, 12, 8).state_dict()
    less = dict(before)
    del less["fc.bias"]
    files = {
        "missing.pth": None,
        "classes.pth": other,
        "less.pth": less,
        "more.pth": {**before, "extra": torch.zeros(1)},
        "nan.pth": {**before, "fc.bias": torch.full((10,), torch.nan)},
        "list.pth": [1, 2],
    }
    for name, content in files.items():
        if content is not None:
            torch.save(content, tmp_path / name)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"fc.bias": _Evil()}))
    torch.save({"fc.bias": _Evil()}, tmp_path / "evil2.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "short.pth").write_bytes((tmp_path / "less.pth").read_bytes()[:5000])
    (tmp_path / "text.safetensors").write_text("not a checkpoint")
    (tmp_path / "weights.bin").write_bytes(b"")
    said = {
        "missing.pth": "no weights file",
        "classes.pth": "'fc.weight' has shape (12, 64), the model needs (10, 64)",
        "less.pth": "lacks 'fc.bias'",
        "more.pth": "adds 'extra'",
        "nan.pth": "'fc.bias' contains NaN",
        "list.pth": "not a mapping",
        "evil.pth": "not loaded because that executes code",
        "evil2.pth": "not loaded because that executes code",
        "text.pth": "not",
        "empty.pth": "not a readable",
        "short.pth": "not a readable",
        "text.safetensors": "not a readable",
        "weights.bin": "must end in",
    }
    for name, words in said.items():
        with pytest.raises(ConfigError, match=_literally(words)) as caught:
            load_weights(model, tmp_path / name)
        assert name in str(caught.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def _literally(text: str) -> str:
    import re

    return re.escape(text)
