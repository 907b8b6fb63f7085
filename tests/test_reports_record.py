"""Reading a run directory: what is read, and what a missing or broken file says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ddq_search.errors import RunError
from reports.record import load_run
from tests.recorded_run import SCHEDULE, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "first")


def test_every_file_is_read(run: Path) -> None:
    record = load_run(run)
    assert record.best == "p03"
    assert record.points["name"].tolist() == ["p00", "p01", "p02", "p03", "p04", "p05", "u2", "u4", "u8"]
    assert record.bits.shape == (9 * (5 + 8), 4)
    assert record.operations.shape == (9 * 7, 5)
    assert record.live.shape == (9 * 7, 4)
    assert record.history["phase"].value_counts().to_dict() == {"joint": 12, "finetune": 6, "baseline": 6, "float": 4}
    assert record.gates.shape == (12 * 5 * 3, 6)
    assert tuple(record.graph.nodes) == SCHEDULE
    assert record.unused_rules == ["pin 'nothing.*' = 8"]
    assert record.budgets == {"latency_s": 3e-4, "flash_bytes": 4096}
    assert record.verifications["best"]["bit_exact"] is True
    assert not record.calibrated


@pytest.mark.parametrize("label", ["uncalibrated: static cycles", "", "unknown", "</script>"])
def test_latency_is_calibrated_only_when_the_label_says_so(tmp_path: Path, label: str) -> None:
    assert not load_run(write_run(tmp_path / "a", calibration=label)).calibrated
    assert load_run(write_run(tmp_path / "b", calibration="measured: 4 % median error")).calibrated


@pytest.mark.parametrize(
    "name", ["front.json", "graph.json", "space.json", "history.jsonl", "config.toml", "environment.json"]
)
def test_a_missing_or_broken_file_is_named(run: Path, name: str) -> None:
    (run / name).write_text('{"half": ', encoding="utf-8")
    with pytest.raises(RunError, match=name):
        load_run(run)
    (run / name).write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match=name):
        load_run(run)
    (run / name).unlink()
    with pytest.raises(RunError, match=f"{name} is missing.*--resume"):
        load_run(run)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run directory"):
        load_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "expected"),
        ({"version": 2}, "version 2"),
        ({"points": []}, "no points"),
        ({"best": "p99"}, "p99"),
        ({"points": [{"name": "p00"}]}, "'p00' has no origin"),
    ],
)
def test_a_front_that_does_not_fit_is_refused(run: Path, change: dict[str, object], message: str) -> None:
    front = json.loads((run / "front.json").read_text())
    (run / "front.json").write_text(json.dumps(front | change))
    with pytest.raises(RunError, match=message):
        load_run(run)


def test_gates_of_an_unknown_variable_are_refused(run: Path) -> None:
    with (run / "history.jsonl").open("a") as file:
        file.write(json.dumps({"phase": "joint", "epoch": 9, "gates": {"weights/other": [1.0]}}) + "\n")
    with pytest.raises(RunError, match="do not fit together"):
        load_run(run)


def test_reports_imports_no_torch() -> None:
    code = "import sys, reports.page, reports.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
