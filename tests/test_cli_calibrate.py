"""``ddq-search calibrate`` and ``devices``: from a file of measurements to a profile, trust said wherever ms appear."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ddq_search.cli import main
from ddq_search.cli.tables import front_table, price_text
from ddq_search.cost import FLASH, LATENCY, PEAK_RAM
from hardware_models.profile import load_profile

M4 = "cortex-m4-stm32l4r5-cmsis-nn"
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ddq-search", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return run


def networks(tmp_path: Path) -> Path:
    path = tmp_path / "board.csv"
    path.write_text("model,input,weight_bits,act_bits,latency_ms\nresnet8,3x32x32,8,8,400\nds_cnn,1x49x10,8,8,95\n")
    return path


def test_networks_measured_become_a_profile(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "my-board.toml"
    code, said, _ = call("calibrate", M4, networks(tmp_path), "-o", out)
    assert code == 0
    assert "resnet8 w8a8" in said
    assert "freedom: scale" in said
    assert f"{out}: calibrated: 2 measurements of the user (board.csv; 2 distinct)" in said
    profile = load_profile(out)
    assert (profile.name, profile.calibration.status) == ("my-board", "calibrated")
    assert profile.engine.cycles_per_unit.kind == "measured"
    code, said, _ = call("inspect", "resnet20", "--input", "3x64x64", "--device", out)
    assert code == 0
    assert "latency is calibrated: 2 measurements of the user" in said
    assert "latency extrapolates beyond the shapes fitted: conv positions 64..1024, asked 4096" in said


def test_an_operator_profile_needs_its_network(call: Call, tmp_path: Path) -> None:
    nodes = ["FULLY_CONNECTED", "FULLY_CONNECTED", "FULLY_CONNECTED", "SOFTMAX"]
    lines = "".join(f"\t {kind}\t 0.1\t 0.2\t 1.0%\t 2.0%\t 0.0\t 1\t[x]:{i}\n" for i, kind in enumerate(nodes))
    path = tmp_path / "profile.txt"
    path.write_text(f"==== Run Order ====\n\t[node type]\t[first]\t[avg ms]\n{lines}\n")
    code, _, err = call("calibrate", M4, path)
    assert code == 1
    assert "give the network with --model" in err
    out = tmp_path / "mine.toml"
    code, said, _ = call("calibrate", M4, path, "--model", "mlp", "--input", "1x8x8", "-o", out)
    assert code == 0
    assert "not used: SOFTMAX" in said
    assert load_profile(out).calibration.fitted.keys() == {"linear"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cortex-m4", "board.csv"], "unknown device 'cortex-m4'; did you mean"),
        ([M4, "absent.csv"], "cannot read the measurements"),
        ([M4, "board.csv", "-o", "mine.json"], "a device profile ends in .toml"),
        ([M4, "board.csv", "-o", "absent/mine.toml"], "cannot write the device profile"),
        ([M4, "names.csv"], "names.csv, row 1: unknown model 'resnet9'"),
        ([M4, "sizes.csv"], "input '3x32' of 'resnet8': expected CxHxW"),
    ],
)
def test_mistakes(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str) -> None:
    networks(tmp_path)
    head = "model,input,weight_bits,act_bits,latency_ms\n"
    (tmp_path / "names.csv").write_text(head + "resnet9,,8,8,1\n")
    (tmp_path / "sizes.csv").write_text(head + "resnet8,3x32,8,8,1\n")
    monkeypatch.chdir(tmp_path)
    code, _, err = call("calibrate", *arguments)
    assert code == 1
    assert err.startswith("error: ")
    assert said in err


def test_devices_with_their_errors(call: Call) -> None:
    _, listed, _ = call("devices")
    for text in (M4, "Cortex-M33", "6.0 %", "uncalibrated", "CMSIS-NN"):
        assert text in listed
    code, validated, _ = call("devices", M4, "--validate")
    assert code == 0
    assert "published networks" in validated
    assert "cortex-m7" not in validated
    _, counted, _ = call("devices", "cortex-m55-an547-cmsis-nn", "--validate")
    assert counted.count("leave one distinct layer out") == 8
    assert "published" not in counted.split("\n", 1)[1]
    _, nothing, _ = call("devices", "cortex-a53-rpi3-lowbit-neon", "--validate")
    assert "no published or counted figures" in nothing


def front(calibration: str) -> Mapping[str, Any]:
    point = {
        "name": "p", "on_front": True, "val_loss": 0.1, "val_score": 90.0, "test_score": 89.0, LATENCY: 0.005,
        FLASH: 1024.0, PEAK_RAM: 2048.0, "within_budgets": True,
    }  # fmt: skip
    return {
        "model": "m", "data": "d", "device": {"name": "x", "calibration": calibration}, "best": "p",
        "task": {"metric": "top-1", "unit": "%"}, "float": {"val_loss": 0.1, "val_score": 91.0}, "points": [point],
        "reference": {LATENCY: 0.010, FLASH: 2048.0, PEAK_RAM: 2048.0},
    }  # fmt: skip


def test_ratios_come_first_where_milliseconds_are_uncalibrated() -> None:
    def printed(calibration: str) -> str:
        console = Console(width=100)
        with console.capture() as capture:
            console.print(front_table(front(calibration)))
        return capture.get()

    trusted, doubted = printed("calibrated: yes"), printed("uncalibrated: no")
    assert "calibrated" not in trusted
    row = doubted.split("p*")[1]
    assert row.index("50.0") < row.index(" 5 ")
    assert "un-" in doubted
    row = trusted.split("p*")[1]
    assert row.index(" 5 ") < row.index("50.0")
    reference = {LATENCY: 0.010, FLASH: 2048.0}
    assert price_text(LATENCY, 0.005, reference, "uncalibrated: x") == "50.0 % of uniform 8 bit (5 ms, uncalibrated)"
    assert price_text(LATENCY, 0.005, reference, "calibrated: x") == "5 ms (50.0 % of uniform 8 bit)"
    assert price_text(FLASH, 1024.0, reference, "uncalibrated: x") == "1 KiB (50.0 % of uniform 8 bit)"
