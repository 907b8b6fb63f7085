"""One self-contained HTML page per run: opens from disk, loads nothing from the network.

Everything from the run reaches the page in one of three escaped ways: autoescaped markup, JSON without ``<``, ``>``
and ``&`` inside one script element, and plotly text (see `reports.palette.plot_text`). A content security policy in
the page forbids every request, so a mistake there cannot leak anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ddq_search.errors import RunError
from ddq_search.whole_files import write_whole
from reports import baselines, bits, costs, front, run_facts, training, verdict
from reports.palette import BIT_COLORS, COSTS, NO_BITS, bit_color, label, number
from reports.record import POINT_COLUMNS, RunRecord, load_run

TEMPLATES = Path(__file__).parent / "templates"
LAYER_DIGITS = 6
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def build_report(run: Path | str) -> Path:
    """Writes ``report.html`` into the run directory and returns its path.

    Raises:
        RunError: the run cannot be read, or the page cannot be written.
    """
    record = load_run(run)
    return write_page(record.path / "report.html", render(record))


def render(record: RunRecord) -> str:
    """Returns the page's HTML."""
    points = front.facts(record)
    tables = run_facts.facts(record)
    return render_page(
        "report.html",
        ["shared.js", "report.js"],
        page_data(record, points),
        title=f"{record.front['model']} on {record.device['name']}",
        subtitle=record.title,
        verdict=[*verdict.sentences(record), *baselines.sentences([record])],
        proof=run_facts.proof(record),
        calibration=None if record.calibrated else str(record.device.get("calibration") or "uncalibrated"),
        costs=[(cost.name, cost.title, cost.axis(record.calibrated)) for cost in COSTS.values()],
        qualities=[(quality, front.quality_title(record, quality)) for quality in front.QUALITIES],
        columns=table_columns(record),
        rows=table_rows(record, points),
        best=record.best or points["name"].iloc[0],
        policies=points["name"].tolist(),
        bits_used=sorted(int(b) for b in record.bits["bits"].unique()),
        bit_colors={b: bit_color(b) for b in record.bits["bits"].unique()},
        sets=sorted(int(s) for s in training.gate_facts(record)["set"].unique()),
        sections=[
            (name, rows[["key", "value"]].values.tolist()) for name, rows in tables.groupby("section", sort=False)
        ],
    )


def render_page(template: str, scripts: list[str], data: Mapping[str, Any], **words: Any) -> str:
    """Fills a template with words (escaped), the page's data (as JSON that cannot close its element) and plotly.js."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(
        data=Markup(embedded_json(data)),
        css=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        scripts=Markup("\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in scripts)),
        plotlyjs=Markup(get_plotlyjs()),
        **words,
    )


def write_page(path: Path, html: str) -> Path:
    """Writes a page in one step: readers see the old page or the new one, never half of it."""
    try:
        write_whole(path, html.encode("utf-8", "xmlcharrefreplace"))
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror}; choose a writable place with free space"
        ) from error
    return path


def embedded_json(data: Any) -> str:
    r"""Returns JSON that is safe inside a script element: no markup characters, no NaN.

    >>> embedded_json({"name": "</script>", "loss": float("nan")})
    '{"name":"\\u003c/script\\u003e","loss":null}'
    """
    text = json.dumps(_finite(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def page_data(record: RunRecord, points: pd.DataFrame) -> dict[str, Any]:
    """Returns what the page's script needs: points, policies, costs per layer, figures."""
    layers = costs.facts(record)
    best = record.best or points["name"].iloc[0]
    baseline = points.loc[points["uniform"] == f"w{front.BASELINE_BITS}a{front.BASELINE_BITS}", "name"]
    shown = layers[layers["point"] == best]
    reference = layers[layers["point"] == baseline.iloc[0]] if len(baseline) else None
    by_cost = points.sort_values(["latency_s", "name"])["name"].tolist()
    history, gates = training.facts(record), training.gate_facts(record)
    figures = {
        "bits": plain(bits.figure(shown)),
        "costs": plain(costs.figure(shown, reference, record.calibrated)),
        "heatmap": plain(bits.heatmap_figure(bits.facts(record), by_cost)),
    }
    if training.has_losses(history):
        figures["losses"] = plain(training.figure(history))
    if training.expected_costs(history):
        figures["expected"] = plain(training.expected_figure(history, record.calibrated))
    for which, rows in gates.groupby("set"):
        figures[f"gates-{which}"] = plain(training.gate_figure(rows))
    keep = [*POINT_COLUMNS, "weight_bits", "act_bits", "uniform", *(f"{cost}_ratio" for cost in COSTS)]
    return {
        "points": points[keep].to_dict(orient="records"),
        "order": by_cost,
        "best": best,
        "policies": _policies(record),
        "layers": _layers(layers, by_cost),
        "figures": figures,
        "front": _views(record, points),
        "task": dict(record.task),
        "note": label("latency_s", record.calibrated),
        "alphabet": ALPHABET,
        "colors": BIT_COLORS,
        "noBits": NO_BITS,
    }


def plain(figure: go.Figure) -> dict[str, Any]:
    """Returns a figure as plain JSON data."""
    parsed: dict[str, Any] = json.loads(figure.to_json() or "{}")
    parsed.get("layout", {}).pop("template", None)
    return parsed


def _policies(record: RunRecord) -> dict[str, Any]:
    """Policies as compact rows of bitwidths under shared names: ``{role: {"names": […], "bits": {policy: row}}}``."""
    shipped: dict[str, Any] = {}
    for role, rows in record.bits.groupby("role", sort=False):
        table = rows.pivot(index="point", columns="name", values="bits")
        table = table.reindex(columns=list(dict.fromkeys(rows["name"])))
        listed = [compact([-1 if pd.isna(b) else int(b) for b in row]) for row in table.to_numpy()]
        shipped[str(role)] = {"names": list(table.columns), "bits": dict(zip(table.index, listed, strict=True))}
    return shipped


def compact(codes: list[int]) -> str | list[int]:
    """Returns small integers as one character each (``-`` for -1), so 500 policies of 300 layers fit the page.

    >>> compact([8, -1, 10]), compact([100])
    ('8-A', [100])
    """
    if max(codes, default=0) >= len(ALPHABET):
        return codes
    return "".join("-" if code < 0 else ALPHABET[code] for code in codes)


def _layers(layers: pd.DataFrame, order: list[str]) -> dict[str, Any]:
    """Costs per layer as indices into each operation's few distinct values, so 500 policies stay small."""
    names = list(dict.fromkeys(layers["operation"]))
    shipped: dict[str, Any] = {"names": names, "columns": {}}
    scales = {column: cost.per_unit for column, cost, _ in costs.PANELS} | {"weight_bits": 1.0, "act_bits": 1.0}
    for column, scale in scales.items():
        table = layers.pivot(index="operation", columns="point", values=column).reindex(names, columns=order) / scale
        codes, values = [], []
        for row in table.to_numpy(dtype=float):
            found, distinct = pd.factorize(row)
            rounded = [float(f"{value:.{LAYER_DIGITS}g}") for value in distinct]
            codes.append(compact(found.tolist()))
            values.append(rounded)
        shipped["columns"][column] = {"codes": codes, "values": values}
    return shipped


def _views(record: RunRecord, points: pd.DataFrame) -> dict[str, Any]:
    """The front drawn once, and for every pair of axes what differs: positions and layout."""
    views = {}
    drawn: dict[str, Any] = {}
    for cost in COSTS:
        for quality in front.QUALITIES:
            drawn = plain(front.figure(points, record, cost, quality))
            xy = [{"x": trace.get("x"), "y": trace.get("y")} for trace in drawn["data"]]
            views[f"{cost}|{quality}"] = {"traces": xy, "layout": drawn["layout"]}
    return {"data": drawn["data"], "views": views}


def table_columns(record: RunRecord) -> list[tuple[str, str]]:
    """Returns (key, heading) of the table of policies; latency says when it is uncalibrated."""
    metric, unit = record.task["metric"], record.task.get("unit")
    suffix = f", {unit}" if unit else ""
    return [
        ("name", "policy"), ("origin", "origin"), ("val_score", f"val {metric}{suffix}"), ("val_loss", "val loss"),
        ("test_score", f"test {metric}{suffix}"),
        *((cost.name, cost.axis(record.calibrated)) for cost in COSTS.values()),
        ("arena_bytes", "arena, KiB"), ("weight_bits", "mean weight bits"), ("act_bits", "mean act. bits"),
        ("within_budgets", "in budget"), ("on_front", "on front"),
    ]  # fmt: skip


def table_rows(record: RunRecord, points: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns one row per policy: its name and cells of (key, text, value to sort by)."""
    scale = {cost.name: cost.per_unit for cost in COSTS.values()} | {"arena_bytes": 1024.0}
    rows = []
    for _, point in points.iterrows():
        cells: list[tuple[str, str, str | float]] = []
        for key, _ in table_columns(record):
            value = point[key]
            if key in ("within_budgets", "on_front"):
                cells.append((key, "yes" if value else "no", int(bool(value))))
            elif isinstance(value, str):
                cells.append((key, value, value))
            else:
                cells.append((key, number(value / scale.get(key, 1.0)), "" if pd.isna(value) else float(value)))
        rows.append({"name": point["name"], "best": bool(point["best"]), "cells": cells})
    return rows
