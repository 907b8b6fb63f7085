"""The front: score or validation loss of every policy against what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from reports.palette import ACCENT, COSTS, Cost, bit_color, calm, cost_text, number, plot_text, score_text
from reports.record import RunRecord

QUALITIES = ("val_score", "val_loss")
BASELINE_BITS = 8


def facts(record: RunRecord) -> pd.DataFrame:
    """Returns the record's points with what a reader compares them by.

    Added columns: ``weight_bits`` and ``act_bits`` (mean over layers and tensor groups), ``uniform`` (``w8a8`` for a
    uniform baseline, else empty), ``mixed`` (a searched policy that is none of the uniform ones), ``best``, and for
    each cost ``<cost>_ratio`` to uniform 8 bit (a baseline of the front, else the run's reference, else NaN).
    """
    points = record.points.copy()
    by_role = record.bits.pivot_table(index="point", columns="role", values="bits", aggfunc="mean")
    by_role = by_role.reindex(columns=["weights", "activations"])
    points["weight_bits"] = points["name"].map(by_role["weights"])
    points["act_bits"] = points["name"].map(by_role["activations"])
    is_uniform = points["origin"] == "uniform"
    policies = {point["name"]: _policy_key(point) for point in record.front["points"]}
    uniform_keys = {policies.get(name) for name in points.loc[is_uniform, "name"]}
    points["uniform"] = [
        _uniform_label(record, name) if uniform else ""
        for name, uniform in zip(points["name"], is_uniform, strict=True)
    ]
    points["mixed"] = [
        not uniform and policies.get(name) not in uniform_keys
        for name, uniform in zip(points["name"], is_uniform, strict=True)
    ]
    points["best"] = points["name"] == record.best
    baseline = points[points["uniform"] == f"w{BASELINE_BITS}a{BASELINE_BITS}"]
    for cost in COSTS:
        recorded = (record.front.get("reference") or {}).get(cost)
        reference = float(baseline[cost].iloc[0]) if len(baseline) else float(recorded or "nan")
        points[f"{cost}_ratio"] = points[cost] / reference
    return points


def _policy_key(point: Mapping[str, Any]) -> frozenset[tuple[str, str, int]]:
    roles = ("weights", "activations")
    return frozenset((role, name, bits) for role in roles for name, bits in point[role].items())


def _uniform_label(record: RunRecord, point: str) -> str:
    """``w<bits>a<bits>`` by the commonest bitwidths: pinned layers and the interface may differ."""
    rows = record.bits[record.bits["point"] == point]
    commonest = rows.groupby("role")["bits"].agg(lambda bits: int(bits.mode().iloc[0]))
    return f"w{commonest.get('weights', '–')}a{commonest.get('activations', '–')}"


def staircase(costs: np.ndarray, qualities: np.ndarray, larger_is_better: bool) -> pd.DataFrame:
    """Returns the non-dominated pairs in order of cost: each dearer one is strictly better.

    Args:
        costs: ``[N]``, smaller is better.
        qualities: ``[N]``.
        larger_is_better: direction of the qualities.

    >>> staircase(np.array([3.0, 1.0, 2.0]), np.array([0.9, 0.5, 0.4]), larger_is_better=True).to_numpy().tolist()
    [[1.0, 0.5], [3.0, 0.9]]
    """
    order = np.lexsort((-qualities if larger_is_better else qualities, costs))
    signed = (qualities if larger_is_better else -qualities)[order]
    keep = [place for place, value in enumerate(signed) if place == 0 or value > signed[:place].max()]
    return pd.DataFrame({"cost": costs[order][keep], "quality": qualities[order][keep]})


def quality_title(record: RunRecord, quality: str) -> str:
    """Returns the axis title of a quality: the task's metric and unit, or its loss."""
    if quality == "val_loss":
        return f"validation loss ({record.task.get('loss') or 'loss'})"
    unit = record.task.get("unit")
    return f"validation {record.task['metric']}" + (f", {unit}" if unit else "")


def larger_is_better(record: RunRecord, quality: str) -> bool:
    """Returns the direction of a quality; losses are always minimised."""
    return quality == "val_score" and record.task.get("direction", "max") == "max"


def hover(record: RunRecord, point: pd.Series) -> str:
    """Returns everything about a point as plotly text; names are escaped."""
    kind = {"uniform": f"uniform {point['uniform']}", "relaxed": "found at a relaxed budget"}.get(
        point["origin"], "searched"
    )
    lines = [
        f"<b>{plot_text(point['name'])}</b> · {kind}" + (" · best" if point["best"] else ""),
        (
            f"validation {plot_text(record.task['metric'])} {plot_text(score_text(record, point['val_score']))}, "
            f"loss {number(point['val_loss'])}"
        ),
    ]
    if pd.notna(point["test_score"]):
        lines.append(
            f"test {plot_text(record.task['metric'])} {plot_text(score_text(record, point['test_score']))}, "
            f"loss {number(point['test_loss'])}"
        )
    for cost in COSTS.values():
        ratio = point[f"{cost.name}_ratio"]
        share = f", {ratio:.0%} of uniform {BASELINE_BITS} bit" if pd.notna(ratio) else ""
        lines.append(f"{cost.title} {cost_text(cost, point[cost.name], record.calibrated)}{share}")
    lines.append(f"mean bits: weights {number(point['weight_bits'], 3)}, activations {number(point['act_bits'], 3)}")
    if record.budgets:
        lines.append("within every budget" if point["within_budgets"] else "over budget")
    return "<br>".join(lines)


def figure(
    facts: pd.DataFrame,
    record: RunRecord,
    cost: str = "latency_s",
    quality: str = "val_score",
    chosen: str | None = None,
) -> go.Figure:
    """Draws the front for one cost and one quality; the traces keep their order whatever the axes.

    Args:
        facts: result of `facts`.
        record: gives budgets, the float level and the words.
        cost: a key of `COSTS`.
        quality: one of `QUALITIES`.
        chosen: the policy to ring, the best one by default.
    """
    axis = COSTS[cost]
    shown = facts.assign(x=facts[cost] / axis.per_unit, y=facts[quality])
    hovers = {row["name"]: hover(record, row) for _, row in shown.iterrows()}
    searched = shown[shown["origin"] != "uniform"]
    steps = staircase(searched["x"].to_numpy(), searched["y"].to_numpy(), larger_is_better(record, quality))
    drawing = go.Figure()
    drawing.add_scatter(
        x=steps["cost"], y=steps["quality"], mode="lines", name="searched front", hoverinfo="skip",
        line={"color": ACCENT, "width": 1.5, "shape": "hv"}, opacity=0.6,
    )  # fmt: skip
    ring = shown[shown["name"] == (chosen or record.best or shown["name"].iloc[0])]
    drawing.add_scatter(
        x=ring["x"], y=ring["y"], mode="markers", name="shown below", hoverinfo="skip",
        marker={"size": 22, "symbol": "circle-open", "line": {"width": 2.5}, "color": "#D0407A"},
    )  # fmt: skip
    groups = [
        ("searched, on the front", searched[(searched["origin"] == "search") & searched["on_front"]], "circle", ACCENT),
        (
            "searched, dominated",
            searched[(searched["origin"] == "search") & ~searched["on_front"]],
            "circle-open",
            ACCENT,
        ),
        ("searched at a relaxed budget", searched[searched["origin"] == "relaxed"], "diamond-open", ACCENT),
    ]
    for title, rows, symbol, color in groups:
        _scatter(drawing, rows, hovers, name=title, mode="markers", marker={
            "size": 11, "symbol": symbol, "color": color, "line": {"width": 2, "color": color}})  # fmt: skip
    uniform = shown[shown["uniform"] != ""]
    _scatter(drawing, uniform, hovers, name="uniform baseline", mode="markers+text", text=uniform["uniform"].tolist(),
             textposition="bottom center", marker={
                 "size": 12, "symbol": "square", "color": [_uniform_color(name) for name in uniform["uniform"]],
                 "line": {"width": 1, "color": "#70757D"}})  # fmt: skip
    _levels(drawing, shown, record, axis, quality)
    drawing.update_xaxes(title=axis.axis(record.calibrated), rangemode="tozero" if len(shown) < 2 else "normal")
    drawing.update_yaxes(title=plot_text(quality_title(record, quality)))
    drawing.update_layout(hovermode="closest", clickmode="event")
    return calm(drawing, height=460)


def _scatter(drawing: go.Figure, rows: pd.DataFrame, hovers: dict[str, str], **style: object) -> None:
    names = rows["name"].tolist()
    drawing.add_scatter(
        x=rows["x"].tolist(), y=rows["y"].tolist(), customdata=names, hoverinfo="text",
        hovertext=[hovers[name] for name in names], **style,
    )  # fmt: skip


def _uniform_color(uniform: str) -> str:
    bits = uniform[1:].split("a")[0]
    return bit_color(int(bits) if bits.isdigit() else None)


def _levels(drawing: go.Figure, shown: pd.DataFrame, record: RunRecord, axis: Cost, quality: str) -> None:
    """Adds the float model's level as a dotted line and the budget of this cost as a dashed one."""
    if (level := record.front["float"].get(quality)) is not None:
        drawing.add_hline(y=level, line={"dash": "dot", "width": 1.5, "color": "#8C8C8C"})
        drawing.add_annotation(
            x=0, xref="paper", y=level, text=f"float {number(level)}", showarrow=False, xanchor="left",
            yanchor="bottom", font={"size": 12},
        )  # fmt: skip
    if (budget := record.budgets.get(axis.name)) is not None:
        drawing.add_vline(x=axis.shown(budget), line={"dash": "dash", "width": 1.5, "color": "#D0407A"})
        right = axis.shown(budget) > (shown["x"].min() + shown["x"].max()) / 2
        drawing.add_annotation(
            x=axis.shown(budget), y=0, yref="paper", yanchor="bottom", showarrow=False, font={"size": 12},
            text=f"budget {number(axis.shown(budget))} {axis.unit}", xanchor="right" if right else "left",
        )  # fmt: skip
