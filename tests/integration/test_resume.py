"""Killed at any moment and resumed, a search ends as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SETTINGS = {
    "training.float_epochs": 3, "training.joint_epochs": 3, "training.finetune_epochs": 2, "search.points": 3,
    "search.relaxed_points": 1, "search.uniform": "[[8, 8]]", "training.norm_batches": 4, "training.threads": 1,
    "data.limit": 400,
}  # fmt: skip


def _command(out: Path) -> list[str]:
    budgets = ["--data", "digits", "--latency", "90%", "--flash-kib", "40"]
    settings = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    return [sys.executable, "-m", "ddq_search", "search", *budgets, *settings, "--out", str(out), "--resume"]


def _digest(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()


def _outcome(run: Path) -> dict[str, Any]:
    """Everything a run leaves for people, without times."""
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return {
        "front": json.loads((run / "front.json").read_text()),
        "policies": {p.name: p.read_text() for kind in ("policies", "references") for p in (run / kind).iterdir()},
        "history": [{key: value for key, value in row.items() if key != "seconds"} for row in rows],
        "checkpoints": {p.name: _digest(load_file(p)) for p in (run / "checkpoints").iterdir()},
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """The outcome of an uninterrupted run, and how long it took."""
    out = tmp_path_factory.mktemp("whole") / "run"
    began = time.monotonic()
    subprocess.run(_command(out), check=True, capture_output=True)
    return _outcome(out), time.monotonic() - began


@pytest.mark.parametrize(("kind", "times"), [(signal.SIGKILL, 12), (signal.SIGINT, 4)])
def test_interrupted_at_random_moments(
    whole: tuple[dict[str, Any], float], tmp_path: Path, kind: signal.Signals, times: int
) -> None:
    expected, seconds = whole
    moments = random.Random(0)
    kills = number = 0
    while kills < times:
        number += 1
        out = tmp_path / f"run{number}"
        while kills < times and not (out / "front.json").exists():
            process = subprocess.Popen(_command(out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            try:
                _, said = process.communicate(timeout=moments.uniform(0.2, 0.9) * seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(kind)
                _, said = process.communicate(timeout=60)
                kills += 1
            assert "Traceback" not in said or "KeyboardInterrupt" in said, said
        subprocess.run(_command(out), check=True, capture_output=True)
        found = _outcome(out)
        for part, value in expected.items():
            assert found[part] == value, part
        assert not list(out.rglob("*.tmp"))
