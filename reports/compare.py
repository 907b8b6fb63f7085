"""Fronts of several runs side by side: one figure, hypervolumes, the best at a limit, and a diff of two policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ddq_search.errors import RunError
from reports import baselines, front
from reports.bits import short
from reports.hypervolume import Reference, hypervolume
from reports.page import plain, render_page, write_page
from reports.palette import BIT_COLORS, COSTS, NO_BITS, RUN_COLORS, RUN_SYMBOLS, calm, label, number, plot_text
from reports.record import RunRecord, load_run


def run_labels(runs: Sequence[RunRecord]) -> list[str]:
    """Returns one name per run: its directory's, with a count where names repeat."""
    names = [record.path.name for record in runs]
    return [f"{name} ({names[: place + 1].count(name)})" if names.count(name) > 1 else name
            for place, name in enumerate(names)]  # fmt: skip


def compare_facts(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Returns the points of every run under each other.

    Columns before those of `reports.front.facts`: ``run, model, data, device, method, seed, loss`` (the task's loss),
    ``direction`` (of the score), ``calibrated``.
    """
    frames = []
    for name, record in zip(run_labels(runs), runs, strict=True):
        said = {
            "run": name, "model": record.front["model"], "data": record.front["data"], "device": record.device["name"],
            "method": record.front.get("method"), "seed": record.front.get("seed"), "loss": record.task.get("loss"),
            "direction": record.task.get("direction", "max"), "calibrated": record.calibrated,
        }  # fmt: skip
        points = front.facts(record)
        for place, (key, value) in enumerate(said.items()):
            points.insert(place, key, [value] * len(points))
        frames.append(points)
    return pd.concat(frames, ignore_index=True)


def hypervolume_facts(
    facts: pd.DataFrame, references: Mapping[tuple[str, str, str], Reference] | None = None
) -> pd.DataFrame:
    """Returns ``run, cost, points, hypervolume, uniform_hypervolume, best_loss, worst_loss, worst_cost``.

    Runs share a reference when they have the same data and loss; it is spanned by all their points, uniform ones
    too, unless given.

    Args:
        facts: result of `compare_facts`.
        references: ``(data, loss, cost name)`` → reference, to compare with runs that are not here.
    """
    rows = []
    for (data, loss), pool in facts.groupby(["data", "loss"], sort=False, dropna=False):
        for cost in COSTS:
            reference = (references or {}).get((data, loss, cost)) or Reference.around(pool["val_loss"], pool[cost])
            for run, points in pool.groupby("run", sort=False):
                searched, uniform = points[points["uniform"] == ""], points[points["uniform"] != ""]
                rows.append({
                    "run": run, "cost": cost, "points": len(searched),
                    "hypervolume": hypervolume(searched["val_loss"], searched[cost], reference),
                    "uniform_hypervolume": hypervolume(uniform["val_loss"], uniform[cost], reference),
                    "best_loss": reference.best_loss, "worst_loss": reference.worst_loss,
                    "worst_cost": reference.worst_cost,
                })  # fmt: skip
    return pd.DataFrame(rows)


def best_at(facts: pd.DataFrame, cost: str, limit: float) -> pd.DataFrame:
    """Returns each run's policy of the lowest validation loss that costs at most ``limit`` (ties by cost)."""
    fits = facts[facts[cost] <= limit].sort_values(["val_loss", cost], kind="stable")
    return fits.groupby("run", sort=False).head(1).sort_index().reset_index(drop=True)


def policy_diff(a: Mapping[str, Any], b: Mapping[str, Any]) -> pd.DataFrame:
    """Returns ``role, name, bits_a, bits_b, change`` for every layer and tensor group where two policies differ.

    A name that only one policy has is listed with NaN on the other side.

    Args:
        a: a policy, ``{"weights": {layer: bits}, "activations": {group: bits}}``.
        b: the policy to compare with.

    >>> policy_diff({"weights": {"x": 8, "y": 4}}, {"weights": {"x": 2, "y": 4}}).to_numpy().tolist()
    [['weights', 'x', 8.0, 2.0, -6.0]]
    """
    rows = []
    for role in ("weights", "activations"):
        left, right = a.get(role) or {}, b.get(role) or {}
        for name in dict.fromkeys([*left, *right]):
            if left.get(name) != right.get(name):
                rows.append((role, name, left.get(name), right.get(name)))
    frame = pd.DataFrame(rows, columns=["role", "name", "bits_a", "bits_b"])
    frame = frame.astype({"bits_a": float, "bits_b": float})
    return frame.assign(change=frame["bits_b"] - frame["bits_a"])


def figure(facts: pd.DataFrame, cost: str = "latency_s", quality: str = "val_loss") -> go.Figure:
    """Draws the fronts of all runs: one colour and symbol per run, filled for searched, open for uniform policies."""
    drawing = go.Figure()
    axis = COSTS[cost]
    for place, (run, points) in enumerate(facts.groupby("run", sort=False)):
        color, symbol = RUN_COLORS[place % len(RUN_COLORS)], RUN_SYMBOLS[place % len(RUN_SYMBOLS)]
        first = points.iloc[0]
        name = ", ".join(plot_text(short(str(text), 32)) for text in (run, first["model"], first["device"]))
        note = label(cost, bool(first["calibrated"]))
        searched, uniform = points[points["uniform"] == ""], points[points["uniform"] != ""]
        larger = quality == "val_score" and first["direction"] == "max"
        steps = front.staircase(searched[cost].to_numpy() / axis.per_unit, searched[quality].to_numpy(), larger)
        drawing.add_scatter(
            x=steps["cost"].tolist(), y=steps["quality"].tolist(), mode="lines", hoverinfo="skip", showlegend=False,
            legendgroup=run, line={"color": color, "width": 1.5, "shape": "hv"}, opacity=0.6,
        )  # fmt: skip
        for rows, suffix, open_ in ((searched, "", ""), (uniform, ", uniform", "-open")):
            hovers = [
                f"<b>{plot_text(row['name'])}</b> {row['uniform']}<br>{name}<br>"
                f"validation loss {number(row['val_loss'])}, score {number(row['val_score'])}<br>"
                f"{axis.title} {number(axis.shown(row[cost]))} {axis.unit}{note}"
                for _, row in rows.iterrows()
            ]
            drawing.add_scatter(
                x=(rows[cost] / axis.per_unit).tolist(), y=rows[quality].tolist(), mode="markers", name=name + suffix,
                legendgroup=run, hoverinfo="text", hovertext=hovers, customdata=rows[["run", "name"]].values.tolist(),
                marker={"size": 10, "symbol": symbol + open_, "color": color, "line": {"width": 2, "color": color}},
            )  # fmt: skip
    drawing.update_xaxes(title=axis.axis(bool(facts["calibrated"].all())))
    drawing.update_yaxes(title="validation loss" if quality == "val_loss" else "validation score")
    return calm(drawing.update_layout(hovermode="closest"), height=500)


def build_comparison(runs: Sequence[Path | str], out: Path | str) -> Path:
    """Writes one offline HTML page that compares runs, and returns its path.

    Raises:
        RunError: fewer than two runs, a run cannot be read, or the page cannot be written.
    """
    if len(runs) < 2:
        raise RunError(f"a comparison needs at least two runs, got {len(runs)}; `ddq-search report` shows one")
    records = [load_run(run) for run in runs]
    facts = compare_facts(records)
    volumes = hypervolume_facts(facts)
    views = {f"{cost}|{quality}": plain(figure(facts, cost, quality)) for cost in COSTS for quality in front.QUALITIES}
    policies: dict[str, dict[str, Any]] = {}
    for name, record in zip(run_labels(records), records, strict=True):
        policies[name] = {point["name"]: {"weights": point["weights"], "activations": point["activations"]}
                          for point in record.front["points"]}  # fmt: skip
    keep = ["run", "name", "best", "origin", "uniform", "val_loss", "val_score", *COSTS]
    calibrated = bool(facts["calibrated"].all())
    html = render_page(
        "compare.html",
        ["shared.js", "compare.js"],
        {
            "points": facts[keep].to_dict(orient="records"), "policies": policies, "views": views,
            "colors": BIT_COLORS, "noBits": NO_BITS,
            "scales": {
                cost.name: [cost.title + label(cost.name, calibrated), cost.unit, cost.per_unit]
                for cost in COSTS.values()
            },
        },
        title="Fronts compared",
        subtitle=" · ".join(run_labels(records)),
        runs=[[name, record.front["model"], record.front["data"], record.device["name"],
               str(record.device.get("calibration") or "uncalibrated"), record.front.get("method"),
               record.front.get("seed")]
              for name, record in zip(run_labels(records), records, strict=True)],
        costs=[(cost.name, cost.axis(calibrated)) for cost in COSTS.values()],
        qualities=[("val_loss", "validation loss"), ("val_score", "validation score")],
        volumes=_volume_rows(volumes, calibrated),
        verdict=baselines.sentences(records),
    )  # fmt: skip
    return write_page(Path(out), html)


def _volume_rows(volumes: pd.DataFrame, calibrated: bool) -> list[list[str]]:
    return [
        [
            row["run"], COSTS[row["cost"]].title + label(row["cost"], calibrated), f"{row['hypervolume']:.4f}",
            f"{row['uniform_hypervolume']:.4f}",
            _reference_text(row),
        ]
        for _, row in volumes.iterrows()
    ]  # fmt: skip


def _reference_text(row: pd.Series) -> str:
    cost = COSTS[row["cost"]]
    losses = f"loss {number(row['best_loss'])} … {number(row['worst_loss'])}"
    return f"{losses}, cost up to {number(cost.shown(row['worst_cost']))} {cost.unit}"
