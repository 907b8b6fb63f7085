"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from ddq_search.budget import show
from ddq_search.cost import FLASH, LATENCY, PEAK_RAM
from ddq_search.feasibility import operation_costs
from ddq_search.graph import Operation, operations
from ddq_search.policy import uniform
from ddq_search.problem import Problem


def front_table(document: Mapping[str, Any]) -> Table:
    """Returns the points of a front.json as a table of 80 columns, with shares of uniform 8 bit."""
    task, reference = document["task"], document["reference"]
    table = Table(
        title=f"{document['model']} on {document['data']}, {document['device']['name']}", title_justify="left",
        caption="* on the front; % of uniform 8 bit", caption_justify="left", box=box.SIMPLE_HEAD, padding=0,
        show_edge=False,
    )  # fmt: skip
    table.add_column("policy", overflow="fold")
    calibrated = document["device"]["calibration"].startswith("calibrated")
    latency = ("latency\nms", "\n%") if calibrated else ("latency\n%", "ms, un-\ncalibrated")
    for name in (
        "val\nloss", f"val {task['metric']}\n{task['unit']}", f"test\n{task['unit']}", *latency, "flash\nKiB", "\n%",
        "RAM\nKiB", "all\nbudgets",
    ):  # fmt: skip
        table.add_column(name, justify="right", overflow="fold")
    table.add_row("float32", *_figures(document["float"]), *[""] * 6)
    for point in document["points"]:
        both = (f"{point[LATENCY] * 1e3:.4g}", f"{100 * point[LATENCY] / reference[LATENCY]:.1f}")
        table.add_row(
            point["name"] + ("*" if point["on_front"] else "") + (" best" if point["name"] == document["best"] else ""),
            *_figures(point),
            *(both if calibrated else reversed(both)),
            f"{point[FLASH] / 1024:.1f}",
            f"{100 * point[FLASH] / reference[FLASH]:.1f}",
            f"{point[PEAK_RAM] / 1024:.1f}",
            "within" if point["within_budgets"] else "over",
        )
    return table


def _figures(entry: Mapping[str, Any]) -> list[str]:
    test = entry.get("test_score")
    return [f"{entry['val_loss']:.4f}", f"{entry['val_score']:.2f}", "" if test is None else f"{test:.2f}"]


def trial_table(trials: Sequence[Any], metrics: Sequence[str], calibration: str) -> Table:
    """Returns the best trials of a study, of one objective or several, with their settings."""
    shown = {
        "validation score": ("score", lambda value: f"{value:.2f}"),
        "validation loss": ("validation loss", lambda value: f"{value:.4f}"),
        LATENCY: (_latency_label("ms", calibration), lambda value: f"{value * 1e3:.4g}"),
        FLASH: ("flash KiB", lambda value: f"{value / 1024:.1f}"),
    }
    table = Table(title="Pareto-optimal trials" if len(metrics) > 1 else "best trial", title_justify="left")
    for name in ("trial", *(shown[metric][0] for metric in metrics)):
        table.add_column(name, justify="right")
    table.add_column("settings")
    for trial in trials:
        values = [shown[metric][1](value) for metric, value in zip(metrics, trial.values, strict=True)]
        settings = ", ".join(
            f"{key.rpartition('.')[2]} {value:.3g}" if isinstance(value, float) else f"{key.rpartition('.')[2]} {value}"
            for key, value in sorted(trial.params.items())
        )
        table.add_row(str(trial.number), *values, settings)
    return table


def _latency_label(unit: str, calibration: str, comma: str = ", ") -> str:
    return f"latency {unit}" + ("" if calibration.startswith("calibrated") else f"{comma}uncalibrated")


def price_text(cost: str, value: float, reference: Mapping[str, float], calibration: str) -> str:
    """Returns a cost with its share of uniform 8 bit; the share comes first where milliseconds are uncalibrated."""
    if cost != LATENCY or calibration.startswith("calibrated"):
        return show(cost, value, reference)
    return f"{100 * value / reference[cost]:.1f} % of uniform 8 bit ({show(cost, value)}, uncalibrated)"


def layer_table(problem: Problem) -> Table:
    """Returns one row per operation: what it is, what may be chosen, what each choice costs."""
    space, tables = problem.space, problem.pricing.tables
    widths = sorted({b for v in space.variables for b in v.candidates}, reverse=True)
    table = Table(
        title=f"{problem.config.model.name} on {problem.device.name}", title_justify="left",
        box=box.SIMPLE_HEAD, padding=0, show_edge=False,
    )  # fmt: skip
    table.add_column("operation", overflow="fold")
    for name in ("kind", "output"):
        table.add_column(name, overflow="fold")
    for name in ("MACs", "weights"):
        table.add_column(name, justify="right", overflow="fold")
    for name in ("weight\nbits", "out\nbits"):
        table.add_column(name, overflow="fold")
    at = "/".join(map(str, widths)) + " bit"
    for name in (_latency_label("us", problem.device.calibration, ",\n"), "flash bytes", "live RAM bytes"):
        table.add_column(f"{name}\n{at}", justify="right", overflow="fold")
    policies = [uniform(space, b, b) for b in widths]
    prices = [{cost: operation_costs(tables, cost, p) for cost in (LATENCY, FLASH)} for p in policies]
    live = [tables.step_sums(tables.one_hot(p)).tolist() for p in policies]
    for step, op in enumerate(operations(problem.graph)):
        weight = space[space.weights_of[op.name]].candidates if op.name in space.weights_of else ()
        table.add_row(
            op.name,
            _kind(op),
            "x".join(map(str, op.output_shape)),
            f"{op.macs:,}" if op.macs else "",
            f"{op.weights:,}" if op.weights else "",
            ",".join(map(str, weight)),
            ",".join(map(str, space[space.activations_of[op.name]].candidates)),
            _each([1e6 * price[LATENCY].get(op.name, 0.0) for price in prices]),
            _each([price[FLASH].get(op.name, 0.0) for price in prices]),
            _each([sums[step] for sums in live]) if step < len(live[0]) else "",
        )
    return table


def _kind(op: Operation) -> str:
    kernel = op.attributes.get("kernel_size")
    return f"{op.kind} {'x'.join(map(str, kernel))}" if op.kind == "conv2d" and kernel else op.kind


def _each(values: Sequence[float]) -> str:
    """Three significant digits or whole numbers; said once where all are equal."""
    texts = [f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else "/".join(texts)
