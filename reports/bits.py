"""Bits per layer: a heat map of policies against layers, and one policy's bars in schedule order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ddq_search.graph import tensor_groups
from reports.palette import BIT_COLORS, bit_color, calm, plot_text
from reports.record import RunRecord

ROLES = ("weights", "activations")
LABELLED_LAYERS = 40
"""A heat map with more layers than this leaves numbers to the hover and names only some of them."""

WIDEST = max(BIT_COLORS)
TICK_CHARACTERS = 19
TICK_HEIGHT = 130
"""Room in pixels under a heat map for its slanted names."""


def facts(record: RunRecord) -> pd.DataFrame:
    """Returns one row per point, role and name: ``point, role, name, bits``, in the order of the run's files."""
    return record.bits.copy()


def schedule_facts(record: RunRecord) -> pd.DataFrame:
    """Returns ``point, operation, weight_bits, act_bits`` for every operation in schedule order.

    A tensor that shares another's quantizer shows the bits of its group; NaN means the operation has no weights, or
    the policy does not name its tensor.
    """
    order = schedule(record)
    owner = _tensor_owners(record)
    rows = []
    for point in record.front["points"]:
        weights, activations = point["weights"], point["activations"]
        for name in order:
            own = activations.get(name, activations.get(owner.get(name, name)))
            rows.append((point["name"], name, weights.get(name), own))
    frame = pd.DataFrame(rows, columns=["point", "operation", "weight_bits", "act_bits"])
    return frame.astype({"weight_bits": float, "act_bits": float})


def schedule(record: RunRecord) -> list[str]:
    """Returns every operation once, in execution order: those of the graph, then any that only the costs name."""
    return list(dict.fromkeys([*record.graph.nodes, *record.operations["operation"], *record.live["operation"]]))


def _tensor_owners(record: RunRecord) -> dict[str, str]:
    """Tensor → the name under which policies list its group, from the graph's ties and the search space's."""
    named = set(record.bits.loc[record.bits["role"] == "activations", "name"])
    owner: dict[str, str] = {}
    groups = tensor_groups(record.graph)
    for first in dict.fromkeys(groups.values()):
        members = [tensor for tensor, group in groups.items() if group == first]
        owner |= dict.fromkeys(members, next((tensor for tensor in members if tensor in named), first))
    for _, variable in record.variables[record.variables["role"] == "activations"].iterrows():
        listed = [tensor for tensor in (*variable["members"], variable["name"].partition("/")[2]) if tensor in named]
        if listed:
            owner |= dict.fromkeys(variable["members"], listed[0])
    return owner


def heatmap_figure(facts: pd.DataFrame, order: Sequence[str] | None = None) -> go.Figure:
    """Draws policies against layers, weights above activations, one colour per bitwidth.

    Args:
        facts: result of `facts`.
        order: policies from bottom to top; the order of the facts by default.
    """
    policies = list(order if order is not None else dict.fromkeys(facts["point"]))
    scale = [[0, "rgba(0,0,0,0)"]] + [
        [max(0.0, min(1.0, (bits + edge) / WIDEST)), color]
        for bits, color in sorted(BIT_COLORS.items())
        for edge in (-0.5, 0.5)
    ]
    rows_height = max(80, min(600, 20 * len(policies)))
    gap = TICK_HEIGHT / (2 * rows_height + TICK_HEIGHT)
    drawing = make_subplots(rows=2, cols=1, subplot_titles=list(ROLES), vertical_spacing=gap)
    for row, role in enumerate(ROLES, start=1):
        table = facts[facts["role"] == role].pivot(index="point", columns="name", values="bits")
        table = table.reindex(index=policies, columns=list(dict.fromkeys(facts.loc[facts["role"] == role, "name"])))
        few = table.shape[1] <= LABELLED_LAYERS
        # bytes instead of floats where no bits are missing: 500 policies of 300 layers must stay small
        z = table.to_numpy(dtype=np.float32) if table.isna().any(axis=None) else table.to_numpy(dtype=np.uint8)
        drawing.add_heatmap(
            z=z, x=[plot_text(name) for name in table.columns], name=role,
            y=[plot_text(name) for name in policies], zmin=0, zmax=WIDEST,
            colorscale=scale, showscale=False, xgap=int(few), ygap=int(few), hoverongaps=False,
            texttemplate="%{z}" if few else None,
            hovertemplate="%{y}<br>%{x}: %{z} bit<extra></extra>", row=row, col=1,
        )  # fmt: skip
        every = math.ceil(table.shape[1] / LABELLED_LAYERS)
        drawing.update_xaxes(
            tickvals=[plot_text(name) for name in table.columns[::every]],
            ticktext=[plot_text(short(name)) for name in table.columns[::every]], row=row, col=1,
        )  # fmt: skip
    drawing.update_xaxes(type="category", tickangle=-50, tickfont={"size": 11})
    drawing.update_yaxes(type="category", tickfont={"size": 11})
    drawing = calm(drawing, height=28 + 2 * (rows_height + TICK_HEIGHT)).update_layout(margin_b=TICK_HEIGHT)
    return drawing.update_xaxes(showgrid=False, automargin=False).update_yaxes(showgrid=False)


def short(name: str, characters: int = TICK_CHARACTERS) -> str:
    """Returns a name that fits beside an axis: its end, which tells layers apart.

    >>> short("backbone.features.12.block.conv2"), short("stem")
    ('…res.12.block.conv2', 'stem')
    """
    return name if len(name) <= characters else "…" + name[1 - characters :]


def figure(facts: pd.DataFrame) -> go.Figure:
    """Draws one policy: weight bits and activation bits of every operation, first operation on top.

    Args:
        facts: rows of one point from `schedule_facts`.
    """
    drawing = make_subplots(rows=1, cols=2, shared_yaxes=True, subplot_titles=["weights, bit", "activations, bit"],
                            horizontal_spacing=0.06)  # fmt: skip
    names = [plot_text(name) for name in facts["operation"]]
    for column, key in enumerate(("weight_bits", "act_bits"), start=1):
        bits = facts[key]
        drawing.add_bar(
            x=[None if pd.isna(b) else b for b in bits], y=names, orientation="h", showlegend=False,
            marker={"color": [bit_color(b) for b in bits]}, hovertemplate="%{y}: %{x} bit<extra></extra>",
            texttemplate="%{x}", textposition="inside", insidetextanchor="end", textangle=0, row=1, col=column,
        )  # fmt: skip
        drawing.update_xaxes(range=[0, 8.4], tickvals=[2, 4, 8], row=1, col=column)
    return rows(drawing, facts["operation"].tolist())


def rows(drawing: go.Figure, names: Sequence[str]) -> go.Figure:
    """Gives a figure with one row per operation its height and margins, so that such figures line up side by side."""
    drawing.update_yaxes(type="category", autorange="reversed", tickfont={"size": 11})
    drawing.update_yaxes(
        tickvals=[plot_text(name) for name in names], ticktext=[plot_text(short(name, 26)) for name in names]
    )
    drawing.update_layout(bargap=0.25)
    drawing = calm(drawing, height=84 + 22 * len(names)).update_xaxes(automargin=False)
    drawing.update_annotations(font_size=12.5)
    return drawing.update_layout(showlegend=False, margin={"l": 8, "r": 12, "t": 48, "b": 36})
