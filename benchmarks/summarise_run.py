"""What a finished run found, as a small file to keep: points, choices, span of the front, seconds by phase.

python benchmarks/summarise_run.py runs/cifar10-a53 --out benchmarks/results/cifar10-a53.json
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from ddq_search.cli.assembly import open_run

KEPT = ("name", "origin", "within_budgets", "on_front", "val_loss", "val_score", "test_score")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    document = summary(arguments.run)
    text = json.dumps(document, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


def summary(run: Path) -> dict[str, Any]:
    problem, record = open_run(run)
    front = record.read_json("front.json")
    reference = front["reference"]
    points = []
    for point in front["points"]:
        shares = {cost: round(point[cost] / reference[cost], 4) for cost in reference}
        bits = {role: "".join(str(b) for b in point[role].values()) for role in ("weights", "activations")}
        points.append({key: point[key] for key in KEPT} | {"of_uniform_8_bit": shares} | bits)
    spans = {}
    for cost in front["budgets"]:
        cheapest = problem.pricing.cheapest(cost, {})
        assert cheapest is not None
        low = problem.pricing.price(cheapest)[cost]
        on = [p[cost] for p in front["points"] if p["on_front"]]
        spans[cost] = round((max(on) - min(on)) / abs(reference[cost] - low), 3) if reference[cost] != low else None
    seconds: dict[str, float] = defaultdict(float)
    for row in record.history():
        seconds[row["phase"]] += row["seconds"]
    return {
        "model": front["model"], "device": front["device"], "seed": front["seed"],
        "training": problem.config.training.model_dump(), "search": problem.config.search.model_dump(),
        "environment": record.read_json("environment.json"),
        "seconds_by_phase": {phase: round(value) for phase, value in seconds.items()},
        "budgets_of_uniform_8_bit": {cost: round(v / reference[cost], 4) for cost, v in front["budgets"].items()},
        "float": front["float"], "best": front["best"],
        "front_within_budgets": sum(p["on_front"] and p["within_budgets"] for p in front["points"]),
        "front_span_of_cheapest_to_uniform_8_bit": spans,
        "layers": list(front["points"][0]["weights"]), "tensors": list(front["points"][0]["activations"]),
        "points": points,
    }  # fmt: skip


if __name__ == "__main__":
    main()
