"""Training: losses of every phase, expected cost against its target, and gate probabilities over time."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from reports.bits import short
from reports.palette import ACCENT, COSTS, Cost, bit_color, calm, plot_text
from reports.record import RunRecord

PHASES = {"float": "#8C8C8C", "joint": ACCENT, "finetune": "#C2549D", "baseline": "#0F6CB0"}
"""Phase → colour; a phase of another name is drawn in grey."""

PHASE_WORDS = {"float": "float model", "joint": "joint search", "finetune": "fine-tune", "baseline": "uniform baseline"}


def facts(record: RunRecord) -> pd.DataFrame:
    """Returns the history in the order it was written, one row per epoch.

    Added columns: ``epochs_done`` (1, 2, 3 … over the whole run; the same epoch of several sets counts once) and
    ``segment`` (a number that changes whenever phase, point or set does).
    """
    history = record.history.copy()
    keys = history[["phase", "point", "set", "epoch"]].astype(object).fillna("")
    epoch_key = pd.Series(list(zip(keys["phase"], keys["point"], keys["epoch"], strict=True)), dtype=object)
    kind_key = pd.Series(list(zip(keys["phase"], keys["point"], keys["set"], strict=True)), dtype=object)
    changed = [place == 0 or key != epoch_key[place - 1] for place, key in enumerate(epoch_key)]
    history["epochs_done"] = np.cumsum(changed, dtype=int)
    history["segment"] = pd.factorize(kind_key)[0]
    return history


def gate_facts(record: RunRecord) -> pd.DataFrame:
    """Returns ``set, step, epoch, variable, bits, probability``: step counts the rows with gates, per set from 1."""
    gates = record.gates.copy()
    gates["set"] = gates["set"].astype(float).fillna(0).astype(int)
    gates["step"] = gates.groupby("set")["row"].rank(method="dense").astype(int)
    return gates[["set", "step", "epoch", "variable", "bits", "probability"]]


def has_losses(facts: pd.DataFrame) -> bool:
    """Returns whether there is a loss to draw."""
    return bool(len(facts)) and bool(facts[["train_loss", "val_loss"]].notna().any(axis=None))


def figure(facts: pd.DataFrame) -> go.Figure:
    """Draws training loss (thin) and validation loss (dots) over the epochs of the whole run, coloured by phase."""
    drawing = go.Figure()
    seen: set[str] = set()
    for _, rows in facts.groupby("segment", sort=False):
        phase, point = str(rows["phase"].iloc[0]), rows["point"].iloc[0]
        words, color = PHASE_WORDS.get(phase, plot_text(phase)), PHASES.get(phase, "#8C8C8C")
        which = words if pd.isna(point) else f"{words} {plot_text(point)}"
        hovers = [f"{which}<br>epoch {epoch:.0f}" for epoch in rows["epoch"]]
        for column, mode, dash in (("train_loss", "lines", "dot"), ("val_loss", "lines+markers", "solid")):
            if rows[column].notna().any():
                kind = "training" if column == "train_loss" else "validation"
                drawing.add_scatter(
                    x=rows["epochs_done"].tolist(), y=_plain(rows[column]), mode=mode, legendgroup=phase + kind,
                    name=f"{words}, {kind}", showlegend=phase + kind not in seen,
                    line={"color": color, "dash": dash, "width": 1.5}, marker={"size": 5}, hovertext=hovers,
                    hovertemplate=f"%{{hovertext}}<br>{kind} loss %{{y:.4~g}}<extra></extra>",
                )  # fmt: skip
                seen.add(phase + kind)
    drawing.update_xaxes(title="epochs of the whole run")
    drawing.update_yaxes(title="loss")
    return calm(drawing, height=380)


def expected_costs(facts: pd.DataFrame) -> list[Cost]:
    """Returns the costs whose expectation the search recorded."""
    return [
        cost
        for cost in COSTS.values()
        if f"expected_{cost.name}" in facts and facts[f"expected_{cost.name}"].notna().any()
    ]


def expected_figure(facts: pd.DataFrame, calibrated: bool = False) -> go.Figure:
    """Draws expected cost during the joint search against its target, one panel per cost, one line per set."""
    costs = expected_costs(facts)
    drawing = make_subplots(
        rows=max(1, len(costs)), cols=1, shared_xaxes=True, vertical_spacing=0.12,
        subplot_titles=[f"expected {cost.axis(calibrated)}" for cost in costs],
    )  # fmt: skip
    for row, cost in enumerate(costs, start=1):
        rows = facts[facts[f"expected_{cost.name}"].notna()]
        target = f"target_{cost.name}"
        for index, (name, part) in enumerate(rows.groupby(rows["set"].fillna(0), sort=False)):
            which = "" if rows["set"].nunique() < 2 else f" {name:.0f}"
            for column, dash, words in ((f"expected_{cost.name}", "solid", "expected"), (target, "dash", "target")):
                if column in part and part[column].notna().any():
                    drawing.add_scatter(
                        x=part["epoch"].tolist(), y=_plain(part[column] / cost.per_unit),
                        mode="lines" + ("+markers" if dash == "solid" else ""), name=words, legendgroup=words,
                        showlegend=row == 1 and index == 0, marker={"size": 4},
                        line={"dash": dash, "width": 1.5, "color": ACCENT if dash == "solid" else "#D0407A"},
                        hovertemplate=f"{words}{which}, epoch %{{x}}: %{{y:.4~g}} {cost.unit}<extra></extra>",
                        row=row, col=1,
                    )  # fmt: skip
    drawing.update_xaxes(title="epoch of the joint search", row=max(1, len(costs)), col=1)
    return calm(drawing, height=110 + 230 * max(1, len(costs)))


def gate_figure(facts: pd.DataFrame) -> go.Figure:
    """Draws every gate's probabilities over time: one panel per candidate bitwidth, one row per variable.

    Args:
        facts: rows of one set from `gate_facts`.
    """
    candidates = sorted(int(bits) for bits in facts["bits"].unique())
    variables = list(dict.fromkeys(facts["variable"]))
    steps = sorted(facts["step"].unique())
    drawing = make_subplots(rows=1, cols=max(1, len(candidates)), shared_yaxes=True, horizontal_spacing=0.03,
                            subplot_titles=[f"{bits} bit" for bits in candidates])  # fmt: skip
    for column, bits in enumerate(candidates, start=1):
        rows = facts[facts["bits"] == bits]
        table = rows.pivot(index="variable", columns="step", values="probability").reindex(variables, columns=steps)
        drawing.add_heatmap(
            z=np.round(table.to_numpy(dtype=np.float32), 3), x=[int(step) for step in steps],
            y=[plot_text(name) for name in variables],
            zmin=0, zmax=1, showscale=False, hoverongaps=False,
            colorscale=[[0, "rgba(128,128,128,0.08)"], [1, bit_color(bits)]],
            hovertemplate=f"%{{y}}<br>{bits} bit, step %{{x}}: %{{z:.3f}}<extra></extra>", row=1, col=column,
        )  # fmt: skip
    drawing.update_yaxes(type="category", autorange="reversed", tickfont={"size": 11})
    every = math.ceil(len(variables) / 50)
    drawing.update_yaxes(
        tickvals=[plot_text(name) for name in variables[::every]],
        ticktext=[plot_text(short(name, 26)) for name in variables[::every]],
    )
    drawing.update_xaxes(title="epoch", nticks=4)
    drawing = calm(drawing, height=110 + max(120, min(900, 18 * len(variables))))
    return drawing.update_xaxes(showgrid=False).update_yaxes(showgrid=False)


def _plain(values: pd.Series) -> list[float | None]:
    return [None if pd.isna(value) else float(value) for value in values]
