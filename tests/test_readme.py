"""The README's Python runs as printed, only with fewer epochs and points."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from search_spaces.data import load_data
from search_spaces.models import build_model

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
QUICK = (
    '"budgets.latency": "90%", "training.float_epochs": 1, "training.joint_epochs": 1, "training.finetune_epochs": 1, '
    '"search.points": 2, "search.relaxed_points": 0, "search.uniform": [[8, 8]]'
)


def test_the_whole_search_in_ten_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = BLOCKS[0].replace('"budgets.latency": "90%"', QUICK)
    assert code != BLOCKS[0]
    exec(compile(code, "README.md", "exec"), {})
    assert '"weights"' in capsys.readouterr().out
    front = json.loads((tmp_path / "runs/python/front.json").read_text())
    assert front["device"]["core"] == "Cortex-A53"
    assert front["device"]["clock_hz"] == 1.2e9


def test_three_calls_in_a_users_own_loop(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    data = load_data("digits", 0)
    model = build_model("resnet8", 1, 10, 8)
    names = {
        "model": model, "images": data.example(32), "loader": list(data.train_batches(64, seed=0, epoch=0))[:3],
        "criterion": F.cross_entropy, "optimizer": torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1),
    }  # fmt: skip
    code = "import ddq_search\nfrom hardware_models.model import cost_model\n" + BLOCKS[1]
    exec(compile(code, "README.md", "exec"), names)
    assert '"weights"' in capsys.readouterr().out
