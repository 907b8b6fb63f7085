"""A whole search on patches of photographs: the front is told in dB, the export computes it to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ddq_search.cli import deployment, runs
from ddq_search.cli.app import app
from ddq_search.cli.assembly import open_policy, open_run
from ddq_search.problem import evaluate_policy
from ddq_search.quantizers.strategies import StrategyQuantizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SETTINGS = {
    "training.float_epochs": 30, "training.joint_epochs": 4, "training.finetune_epochs": 1, "training.norm_batches": 2,
    "training.calibration_batches": 2, "training.threads": 1, "search.points": 4, "search.relaxed_points": 1,
    "search.front_points": 2, "search.uniform": "[[8, 8], [4, 4]]",
}  # fmt: skip
BICUBIC_DB = 33.04
"""What bicubic interpolation, in floating point, reaches on the test patches."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("super") / "run"
    flags = ["--model", "espcn", "--data", "sample-images", "--device", "cortex-a53-rpi3-lowbit-neon"]
    chosen = [text for key, value in SETTINGS.items() for text in ("--set", f"{key}={value}")]
    done = CliRunner().invoke(app, ["search", *flags, "--latency", "90%", *chosen, "--out", str(path)])
    assert done.exit_code == 0, done.output
    return path, done.output


def test_the_front_is_told_in_decibels(finished: tuple[Path, str]) -> None:
    path, said = finished
    front = json.loads((path / "front.json").read_text())
    assert (front["task"]["metric"], front["task"]["unit"], front["task"]["direction"]) == ("PSNR", "dB", "max")
    assert "PSNR" in said
    assert " dB" in said
    assert not [word for word in ("accuracy", "top-1", "classes") if word in said]
    scores = {point["name"]: point["val_score"] for point in front["points"]}
    exact = [p for p in front["points"] if {*p["weights"].values(), *p["activations"].values()} == {8}]
    assert [p["val_score"] for p in exact] == [pytest.approx(front["float"]["val_score"], abs=0.6)], "nearly float"
    assert front["float"]["test_score"] > BICUBIC_DB + 0.4
    best = next(point for point in front["points"] if point["name"] == front["best"])
    assert best["test_score"] > BICUBIC_DB + 0.05
    allowed = [point["val_score"] for point in front["points"] if point["within_budgets"]]
    assert scores[front["best"]] == max(allowed)
    problem, record = open_run(path)
    policy, net, _ = open_policy(problem, record, "best")
    assert evaluate_policy(problem, net, policy, "validation").score == pytest.approx(scores[front["best"]], abs=1e-9)


def test_dearer_points_are_not_worse(finished: tuple[Path, str]) -> None:
    """Up to a tenth of a decibel, which fine-tuning may lose."""
    front = json.loads((finished[0] / "front.json").read_text())
    searched = sorted((p["latency_s"], p["val_score"]) for p in front["points"] if p["on_front"])
    scores = [score for _, score in searched]
    assert len(scores) >= 3
    assert all(score > max(scores[:i]) - 0.1 for i, score in enumerate(scores[1:], 1))
    assert scores[-1] - scores[0] > 0.5, "bits matter"
    assert scores[0] > 38.2, "repeating pixels gives 37.78"


def test_the_report_speaks_of_psnr(finished: tuple[Path, str]) -> None:
    runs.report(finished[0])
    page = (finished[0] / "report.html").read_text(encoding="utf-8")
    assert "validation PSNR" in page
    body = page[page.index("<body") :]
    words = [line for line in body.splitlines() if len(line) < 2000]  # the rest is the plotting library
    assert not [line for line in words if "accuracy" in line.lower() or "top-1" in line]


def test_exports_are_bit_exact(finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = finished
    formats = "onnx,tflite,c" if shutil.which("cc") else "onnx,tflite"
    deployment.export(path, "best", formats)
    deployment.verify(path, "best", 16)
    said = capsys.readouterr().out
    assert "verify: bit-exact" in said
    assert "top-1" not in said
    folder = path / "export" / json.loads((path / "front.json").read_text())["best"]
    result = json.loads((folder / "verification.json").read_text())
    assert result["passed"]
    assert result["onnx"]["passed"]
    assert result["tflite"]["passed"]
    if "c" in formats.split(","):
        assert result["c"]["passed"]
        assert "the image enlarged" in (folder / "c" / "model.h").read_text()


def test_strategies_after_training_keep_the_picture(tmp_path: Path) -> None:
    """DQSS without labels, 4-bit weights: near the float model, and every tensor chose one of the strategies."""
    names = ["min-max", "mse", "kl"]
    settings = {
        "training.float_epochs": 30, "training.threads": 1, "search.points": 1, "search.relaxed_points": 0,
        "search.extra_points": 0, "search.uniform": "[]", "space.weight_bits": "[4]", "space.activation_bits": "[8]",
        "search.weight_quantizers": names, "search.activation_quantizers": names,
    }  # fmt: skip
    flags = ["--model", "espcn", "--data", "sample-images", "--device", "exact-widths"]
    chosen = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    command = ["search", "--method", "dqss", "--mode", "ptq", *flags, *chosen, "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    front = json.loads((tmp_path / "run" / "front.json").read_text())
    best = next(point for point in front["points"] if point["name"] == front["best"])
    assert front["float"]["test_score"] - 2.5 < best["test_score"] <= front["float"]["test_score"] + 0.2
    problem, record = open_run(tmp_path / "run")
    _, net, _ = open_policy(problem, record, "best")
    strategies = [each for each in net.tensor_quantizers() if isinstance(each, StrategyQuantizer)]
    assert strategies
    assert {each.names[int(branch)] for each in strategies for branch in each.chosen} <= set(names)
