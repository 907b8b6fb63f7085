"""Writes a small, realistic run directory: what a search of a five-layer residual network leaves behind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import networkx as nx

from ddq_search.graph import Operation, to_json

LAYERS = ("stem", "block.conv1", "block.conv2", "block.short", "head")
SCHEDULE = ("input", "stem", "block.conv1", "block.conv2", "block.short", "block.add", "pool", "head", "output")
GROUPS = ("input", "stem", "block.conv1", "block.conv2", "block.short", "block.add", "pool", "head")
MACS = {"stem": 27_648, "block.conv1": 147_456, "block.conv2": 147_456, "block.short": 16_384, "head": 640}
WEIGHTS = {"stem": 144, "block.conv1": 2_304, "block.conv2": 2_304, "block.short": 256, "head": 160}
ELEMENTS = {"input": 192, "pool": 16, "head": 10, "output": 10}

POLICIES: tuple[tuple[str, str, Sequence[int], Sequence[int], float, float], ...] = (
    ("p00", "search", (8, 2, 2, 2, 8), (8, 4, 2, 4, 4, 4, 8, 8), 0.520, 86.0),
    ("p01", "search", (8, 2, 2, 4, 8), (8, 4, 4, 4, 4, 4, 8, 8), 0.430, 88.5),
    ("p02", "search", (8, 2, 4, 4, 8), (8, 8, 4, 4, 4, 4, 8, 8), 0.350, 91.0),
    ("p03", "search", (8, 4, 4, 4, 8), (8, 8, 4, 8, 8, 8, 8, 8), 0.260, 94.25),
    ("p04", "search", (8, 4, 2, 8, 8), (8, 8, 8, 8, 8, 8, 8, 8), 0.300, 93.0),
    ("p05", "relaxed", (8, 8, 4, 8, 8), (8, 8, 8, 8, 8, 8, 8, 8), 0.240, 95.0),
    ("u2", "uniform", (2,) * 5, (8, 2, 2, 2, 2, 2, 2, 8), 0.900, 70.0),
    ("u4", "uniform", (4,) * 5, (8, 4, 4, 4, 4, 4, 4, 8), 0.360, 90.5),
    ("u8", "uniform", (8,) * 5, (8,) * 8, 0.250, 94.5),
)
"""name, origin, weight bits per layer, activation bits per group, validation loss, validation score."""


def latency_s(layer: str, weight_bits: int) -> float:
    """Returns the fixture's latency: 1 ns per MAC at 8 bit, half of it per halving, plus 10 µs."""
    return 1e-5 + MACS[layer] * 1e-9 * weight_bits / 8


def flash_bytes(layer: str, weight_bits: int) -> int:
    """Returns the fixture's flash: packed weights plus 64 bytes."""
    return WEIGHTS[layer] * weight_bits // 8 + 64


def write_run(
    path: Path,
    model: str = "tinyres",
    device: str = "cortex-a53-test",
    rename: Mapping[str, str] | None = None,
    policies: Sequence[tuple[str, str, Sequence[int], Sequence[int], float, float]] = POLICIES,
    calibration: str = "uncalibrated: static cycles counted from the kernels",
    slowdown: float = 1.0,
) -> Path:
    """Writes a run directory and returns its path; ``rename`` maps layer and policy names to hostile ones."""
    called = dict(rename or {})
    path.mkdir(parents=True)
    points: list[dict[str, Any]] = [_point(policy, called, slowdown) for policy in policies]
    for point in points:
        point["on_front"] = point["origin"] != "uniform" and point["name"] != called.get("p04", "p04")
        point["within_budgets"] = point["latency_s"] <= 3e-4 * slowdown
    fits = [point for point in points if point["within_budgets"]]
    front = {
        "format": "ddq-search front", "version": 1, "model": model, "data": "digits", "seed": 7, "method": "ddq",
        "task": {"metric": "top-1", "direction": "max", "unit": "%", "loss": "cross-entropy"},
        "device": {"name": device, "core": "Cortex-A53", "runtime": "low-bit NEON", "clock_hz": 1.2e9,
                   "arithmetic": "single", "calibration": calibration},
        "budgets": {"latency_s": 3e-4 * slowdown, "flash_bytes": 4096},
        "float": {"val_loss": 0.23, "val_score": 95.5, "test_loss": 0.25, "test_score": 95.0, "epochs": 12},
        "best": max(fits, key=lambda point: (point["val_score"], -point["latency_s"]))["name"] if fits else None,
        "points": points,
    }  # fmt: skip
    _write(path / "front.json", json.dumps(front, indent=1))
    _write(path / "graph.json", to_json(nx.relabel_nodes(_graph(called), called)))
    variables = [
        {"name": f"weights/{called.get(name, name)}", "role": "weights", "candidates": [2, 4, 8],
         "members": [called.get(name, name)]}
        for name in LAYERS
    ]  # fmt: skip
    _write(path / "space.json", json.dumps({"variables": variables, "unused_rules": ["pin 'nothing.*' = 8"]}))
    _write(path / "history.jsonl", "".join(json.dumps(row) + "\n" for row in _history(variables, slowdown, called)))
    _write(path / "config.toml", "[search]\nepochs = 4\nseed = 7\n[budget]\nlatency_ms = 0.3\nflash_kib = 4.0\n")
    environment = {"python": "3.12.1", "torch": "2.9.0", "ddq_search": "0.1.0", "platform": "Linux", "threads": 2,
                   "date": "2026-01-02", "git": "abc1234"}  # fmt: skip
    _write(path / "environment.json", json.dumps(environment))
    check = {"bit_exact": True, "samples": 256, "tensors": 9, "onnx": {"opset": 21, "worst_codes_apart": 1}}
    (path / "export" / "best").mkdir(parents=True)
    _write(path / "export" / "best" / "verification.json", json.dumps(check))
    return path


def _point(policy: tuple[Any, ...], called: Mapping[str, str], slowdown: float) -> dict[str, Any]:
    name, origin, weight_bits, act_bits, loss, score = policy
    weights = dict(zip(LAYERS, weight_bits, strict=True))
    activations = dict(zip(GROUPS, act_bits, strict=True))
    rows: list[dict[str, Any]] = [
        {"name": called.get(op, op),
         "latency_s": slowdown * (latency_s(op, weights[op]) if op in weights else 5e-6),
         "flash_bytes": flash_bytes(op, weights[op]) if op in weights else 0}
        for op in SCHEDULE[1:-1]
    ]  # fmt: skip
    live: list[dict[str, Any]] = [
        {"step": step, "operation": called.get(op, op), "bytes": _live(op, step, activations)}
        for step, op in enumerate(SCHEDULE[1:-1])
    ]
    peak = max(row["bytes"] for row in live)
    return {
        "name": called.get(name, name), "origin": origin, "within_budgets": True, "on_front": True,
        "val_loss": loss, "val_score": score,
        "test_loss": loss + 0.02 if name == "p03" else None, "test_score": score - 0.5 if name == "p03" else None,
        "latency_s": sum(row["latency_s"] for row in rows), "flash_bytes": sum(row["flash_bytes"] for row in rows),
        "peak_ram_bytes": peak, "arena_bytes": peak + 64,
        "weights": {called.get(key, key): bits for key, bits in weights.items()},
        "activations": {called.get(key, key): bits for key, bits in activations.items()},
        "operations": rows, "live_bytes": live,
    }  # fmt: skip


def _live(op: str, step: int, activations: Mapping[str, int]) -> int:
    source = SCHEDULE[step]
    held = ELEMENTS.get(source, 1024) * activations.get(source, 8) + ELEMENTS.get(op, 1024) * activations.get(op, 8)
    return held // 8 + (512 if op in ("block.conv2", "block.short") else 0)


def _graph(called: Mapping[str, str]) -> nx.MultiDiGraph:
    graph = nx.MultiDiGraph()
    shape = (16, 8, 8)
    kinds = {"input": "input", "block.add": "add", "pool": "mean", "head": "linear", "output": "output"}
    for name in SCHEDULE:
        kind = kinds.get(name, "conv2d")
        output = {"input": (3, 8, 8), "pool": (16,), "head": (10,), "output": (10,)}.get(name, shape)
        graph.add_node(name, operation=Operation(
            name=called.get(name, name), kind=kind, input_shapes=(shape,), output_shape=output,
            macs=MACS.get(name, 0), weights=WEIGHTS.get(name, 0)))  # fmt: skip
    for source, target, key in (
        ("input", "stem", 0), ("stem", "block.conv1", 0), ("block.conv1", "block.conv2", 0), ("stem", "block.short", 0),
        ("block.conv2", "block.add", 0), ("block.short", "block.add", 1), ("block.add", "pool", 0), ("pool", "head", 0),
        ("head", "output", 0),
    ):  # fmt: skip
        graph.add_edge(source, target, key=key)
    return graph


def _history(
    variables: Sequence[Mapping[str, Any]], slowdown: float, called: Mapping[str, str]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for epoch in range(4):
        rows.append({"phase": "float", "point": None, "epoch": epoch, "train_loss": 1.8 * 0.6**epoch,
                     "val_loss": 1.7 * 0.62**epoch, "val_score": 60 + 8 * epoch, "seconds": 1.5})  # fmt: skip
    for epoch in range(6):
        for which in range(2):
            sharp = 0.1 * epoch
            gates = {v["name"]: [0.3 - 0.5 * sharp * which, 0.3, 0.4 + 0.5 * sharp * which] for v in variables}
            rows.append({"phase": "joint", "point": None, "epoch": epoch, "train_loss": 0.9 * 0.8**epoch + 0.05 * which,
                         "val_loss": None, "val_score": None, "seconds": 2.5, "set": which, "gates": gates,
                         "expected": {"latency_s": slowdown * (4e-4 - 2e-5 * epoch),
                                      "flash_bytes": 5000.0 - 200 * epoch},
                         "target": {"latency_s": 3e-4 * slowdown, "flash_bytes": 4096.0}})  # fmt: skip
    for phase, points in (("finetune", ("p00", "p03")), ("baseline", ("u4", "u8"))):
        for point in points:
            for epoch in range(3):
                rows.append({"phase": phase, "point": called.get(point, point), "epoch": epoch,
                             "train_loss": 0.5 * 0.8**epoch, "val_loss": 0.45 * 0.85**epoch})  # fmt: skip
    return rows


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
