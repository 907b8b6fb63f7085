"""What the run was: seed, versions, settings, device profile with its stated error, verification, what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from reports.palette import COSTS, cost_text, number, score_text
from reports.record import RunRecord


def facts(record: RunRecord) -> pd.DataFrame:
    """Returns ``section, key, value`` (all text), in the order a reader asks: run, task, device, proof, settings."""
    front, floats = record.front, record.front["float"]
    run = {
        "model": front["model"], "data": front["data"], "method": front.get("method"), "seed": front.get("seed"),
        "run directory": record.path.name, "policies": len(record.points), "operations": len(record.graph.nodes),
        "searched variables": len(record.variables),
    }  # fmt: skip
    float_model = {
        f"validation {record.task['metric']}": score_text(record, floats.get("val_score")),
        "validation loss": number(floats.get("val_loss")),
        f"test {record.task['metric']}": score_text(record, floats.get("test_score")),
        "test loss": number(floats.get("test_loss")),
        "epochs": floats.get("epochs"),
    }
    budgets = {
        COSTS[name].title if name in COSTS else name: cost_text(COSTS[name], value, record.calibrated)
        if name in COSTS else value
        for name, value in record.budgets.items()
    }  # fmt: skip
    device = {"calibration": "uncalibrated: the profile states no error"} | dict(record.device)
    device["calibration"] = device.pop("calibration")
    sections: list[tuple[str, Mapping[str, Any]]] = [
        ("Run", run),
        ("Task", record.task),
        ("Float model (same total epochs)", float_model),
        ("Budgets", budgets or {"budgets": "none"}),
        ("Device profile", device),
        *((f"Export check of {name}", check) for name, check in record.verifications.items()),
        ("Environment", record.environment),
        ("Settings", record.config),
    ]
    if record.unused_rules:
        sections.append(
            ("Rules that matched nothing", {str(i + 1): rule for i, rule in enumerate(record.unused_rules)})
        )
    rows = [(title, key, text) for title, table in sections for key, text in flatten(table)]
    return pd.DataFrame(rows, columns=["section", "key", "value"])


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted key, text) of a nested dictionary; long lists are cut with their length stated.

    >>> list(flatten({"a": {"b": True, "c": [1, 2]}, "d": None}))
    [('a.b', 'yes'), ('a.c', '1, 2'), ('d', '–')]
    """
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{name}.")
        else:
            yield name, _text(value)


def _text(value: Any) -> str:
    if value is None or value == {} or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value, 6)
    if isinstance(value, list):
        listed = ", ".join(_text(item) for item in value[:20])
        return listed + (f", … ({len(value)} in all)" if len(value) > 20 else "")
    return str(value)


def proof(record: RunRecord) -> str:
    """Returns in one sentence what is known about the exported integers."""
    if not record.verifications:
        return "No policy has been exported and verified yet."
    equal = [name for name, check in record.verifications.items() if check.get("bit_exact") is True]
    other = [name for name in record.verifications if name not in equal]
    said = [f"{', '.join(equal)}: exported integers are bit-exact"] if equal else []
    said += [f"{', '.join(other)}: NOT bit-exact"] if other else []
    said += [
        f"{name}: {', '.join(found)}" for name in record.verifications if (found := _ran(record.verifications[name]))
    ]
    return "; ".join(said) + "."


def _ran(check: Mapping[str, Any]) -> list[str]:
    """What executed an export, and whether it passed; nothing for what was not exported."""
    found = []
    for key, title in (("c", "C"), ("tflite", "TFLite"), ("onnx", "ONNX")):
        part = check.get(key)
        if isinstance(part, Mapping) and "passed" in part:
            where = ["host", *(name for name, run in part.get("targets", {}).items() if not run.get("note"))]
            on = f" on {', '.join(where)}" if key == "c" else ""
            found.append(f"{title} {'passed' if part.get('passed') else 'FAILED'}{on}")
    return found
