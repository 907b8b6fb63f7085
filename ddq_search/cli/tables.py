"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from ddq_search.cost import FLASH, LATENCY, PEAK_RAM
from ddq_search.feasibility import operation_costs
from ddq_search.graph import operations
from ddq_search.policy import uniform
from ddq_search.problem import Problem


def front_table(document: Mapping[str, Any]) -> Table:
    """Returns the points of a front.json as a table, with shares of uniform 8 bit."""
    task, reference = document["task"], document["reference"]
    uncalibrated = "" if document["device"]["calibration"].startswith("calibrated") else " uncalibrated"
    table = Table(title=f"{document['model']} on {document['data']}, {document['device']['name']}", title_justify="left")
    for name in ("policy", "front", "val loss", f"val {task['metric']} {task['unit']}", f"test {task['unit']}"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for name in (f"latency ms{uncalibrated}", "%", "flash KiB", "%", "RAM KiB", "budgets"):
        table.add_column(name, justify="right")
    table.add_row("float32", "", *_figures(document["float"]), *[""] * 6)
    for point in document["points"]:
        table.add_row(
            point["name"] + (" (best)" if point["name"] == document["best"] else ""),
            "*" if point["on_front"] else "",
            *_figures(point),
            f"{point[LATENCY] * 1e3:.4g}",
            f"{100 * point[LATENCY] / reference[LATENCY]:.1f}",
            f"{point[FLASH] / 1024:.1f}",
            f"{100 * point[FLASH] / reference[FLASH]:.1f}",
            f"{point[PEAK_RAM] / 1024:.1f}",
            "within" if point["within_budgets"] else "over",
        )
    return table


def _figures(entry: Mapping[str, Any]) -> list[str]:
    test = entry.get("test_score")
    return [f"{entry['val_loss']:.4f}", f"{entry['val_score']:.2f}", "" if test is None else f"{test:.2f}"]


def layer_table(problem: Problem) -> Table:
    """Returns one row per operation: what it is, what may be chosen, what each choice costs."""
    space, tables = problem.space, problem.pricing.tables
    widths = sorted({b for v in space.variables for b in v.candidates}, reverse=True)
    calibrated = problem.device.calibration.startswith("calibrated")
    unit = "us" if calibrated else "us, uncalibrated"
    table = Table(title=f"{problem.config.model.name} on {problem.device.name}", title_justify="left")
    for name in ("operation", "kind", "output", "MACs", "weights", "w bits", "out bits"):
        table.add_column(name)
    table.add_column(f"latency {unit}\n" + " / ".join(f"{b} bit" for b in widths), justify="right")
    table.add_column("flash B\n" + " / ".join(f"{b} bit" for b in widths), justify="right")
    table.add_column("live RAM B\n" + " / ".join(f"{b} bit" for b in widths), justify="right")
    policies = [uniform(space, b, b) for b in widths]
    prices = [{cost: operation_costs(tables, cost, p) for cost in (LATENCY, FLASH)} for p in policies]
    live = [tables.step_sums(tables.one_hot(p)).tolist() for p in policies]
    for step, op in enumerate(operations(problem.graph)):
        weight = space[space.weights_of[op.name]].candidates if op.name in space.weights_of else ()
        table.add_row(
            op.name,
            op.kind + (f" {op.attributes.get('kernel_size', '')}" if op.kind == "conv2d" else ""),
            "x".join(map(str, op.output_shape)),
            f"{op.macs:,}" if op.macs else "",
            f"{op.weights:,}" if op.weights else "",
            ",".join(map(str, weight)),
            ",".join(map(str, space[space.activations_of[op.name]].candidates)),
            " / ".join(f"{price[LATENCY].get(op.name, 0.0) * 1e6:.4g}" for price in prices),
            " / ".join(f"{price[FLASH].get(op.name, 0.0):.0f}" for price in prices),
            " / ".join(f"{sums[step]:.0f}" for sums in live) if step < len(live[0]) else "",
        )
    return table
