"""The comparison with MCT, without MCT: bytes of weights, layer names, the table, and what a missing MCT says."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    return repository / "benchmarks" / "mct"


@pytest.fixture(scope="module")
def policy_bytes(folder: Path) -> ModuleType:
    return _module(folder, "policy_bytes")


@pytest.fixture(scope="module")
def mct_side(folder: Path) -> ModuleType:
    return _module(folder, "quantize_with_mct")


def _module(folder: Path, name: str) -> ModuleType:
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def test_bytes_of_weights_are_values_times_bits_over_eight(policy_bytes: ModuleType) -> None:
    sizes = {"conv1": 9 * 16, "fc": 640}
    assert policy_bytes.weight_bytes(sizes, {"conv1": 8, "fc": 8}) == 784
    assert policy_bytes.weight_bytes(sizes, {"conv1": 2, "fc": 4}) == 36 + 320
    assert policy_bytes.weight_bytes({"odd": 3}, {"odd": 2}) == 0.75


def test_policies_of_other_layers_are_refused(policy_bytes: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"'fc'.*one side only"):
        policy_bytes.weight_bytes({"conv1": 9, "fc": 1}, {"conv1": 8})


def test_both_tools_names_of_a_layer_meet(policy_bytes: ModuleType) -> None:
    from search_spaces.resnet import resnet8

    for name, module in resnet8(1, 10).named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert policy_bytes.layer_key(name) == name
            assert policy_bytes.layer_key(name.replace(".", "_")) == name
            assert policy_bytes.layer_key(name.replace(".", "_") + "_bn") == name


def test_the_table_says_bytes_scores_and_differences(policy_bytes: ModuleType) -> None:
    result = {
        "budget": "50%", "policy": "ours", "tool": "MCT", "bits": {"conv1": 8, "fc": 2}, "validation": 71.5,
        "test": 70.25, "cpu_seconds": 11.6,
    }  # fmt: skip
    document = {"sizes": {"conv1": 100, "fc": 300}, "float": {"validation": 72.2, "test": 70.0}, "results": [result]}
    header, rule, row = policy_bytes.table(document).splitlines()
    cells = [cell.strip() for cell in row.strip("| ").split("|")]
    assert cells == ["50%", "ours", "MCT", "43.8 %", "71.50", "-0.70", "70.25", "+0.25", "12", "8 2"]
    assert header.count("|") == rule.count("|") == row.count("|")


def test_scores_are_right_answers_in_percent(mct_side: ModuleType) -> None:
    class First(nn.Module):
        """Scores are the first values of the image."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    images = torch.eye(4).repeat(100, 1)
    labels = torch.arange(4).repeat(100)
    labels[:100] = 3 - labels[:100]
    assert mct_side.top1(First(), images, labels) == 75.0


@pytest.mark.parametrize("found", [False, True])
def test_a_missing_mct_is_one_clear_line(folder: Path, tmp_path: Path, found: bool) -> None:
    python = tmp_path / "python"
    if found:
        python.write_text("#!/bin/sh\necho 'ModuleNotFoundError: no MCT' >&2\nexit 1\n")
        python.chmod(0o755)
    command = [sys.executable, str(folder / "compare.py"), "--mct-python", str(python)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {python} cannot import model_compression_toolkit")
    assert "benchmarks/mct/README.md" in line
    assert "--mct-python" in line
