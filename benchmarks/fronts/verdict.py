"""Hypervolumes of searches against random, greedy, ILP and uniform policies, over seeds, with every point.

python benchmarks/fronts/verdict.py RUN... --out benchmarks/results/fronts.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from reports.baselines import facts, sentences
from reports.record import RunRecord, load_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    records = [load_run(run) for run in arguments.runs]
    for sentence in sentences(records):
        print(sentence)
    document = {
        "command": " ".join(["benchmarks/fronts/verdict.py", *(run.name for run in arguments.runs)]),
        "verdict": [_without_folder(row) for row in json.loads(facts(records).to_json(orient="records"))],
        "runs": [_run(record) for record in records],
    }
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(document, indent=1) + "\n")


def _without_folder(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"group": " · ".join(part.rpartition("/")[2] for part in row["group"].split(" · "))}


def _run(record: RunRecord) -> dict[str, Any]:
    costs = ["latency_s", "flash_bytes", "peak_ram_bytes"]
    reference = record.front["reference"]
    points = [
        {
            "name": p["name"],
            "kind": p.get("kind", p.get("origin")),
            "epochs": p.get("epochs"),
            "val_loss": round(p["val_loss"], 4),
            "val_score": round(p["val_score"], 2),
            **{f"{cost}_relative": round(p[cost] / reference[cost], 4) for cost in costs},
        }
        for p in [*record.front["points"], *record.baselines.to_dict(orient="records")]
    ]
    return {
        "device": record.device["name"],
        "seed": record.front["seed"],
        "budgets": dict(record.budgets),
        "float": record.front["float"],
        "points": points,
    }


if __name__ == "__main__":
    main()
