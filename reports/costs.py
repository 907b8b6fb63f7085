"""Cost per layer of one policy: latency, flash and live RAM over the schedule, side by side."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from reports import bits
from reports.palette import FLASH, LATENCY, PEAK_RAM, Cost, bit_color, plot_text
from reports.record import RunRecord

PANELS: tuple[tuple[str, Cost, str], ...] = (
    ("latency_s", LATENCY, "weight_bits"),
    ("flash_bytes", FLASH, "weight_bits"),
    ("live_bytes", PEAK_RAM, "act_bits"),
)
"""Column of the facts, its unit, and the bits that colour it."""

PEAK_EDGE = "#D0407A"


def facts(record: RunRecord) -> pd.DataFrame:
    """Returns every operation of every policy in schedule order.

    Columns: ``point, operation, weight_bits, act_bits, latency_s, flash_bytes, live_bytes, peak`` (whether this step
    holds the largest live sum). An operation without a row in the run's files costs NaN, never zero.
    """
    frame = bits.schedule_facts(record)
    prices = record.operations.groupby(["point", "operation"], sort=False)[["latency_s", "flash_bytes"]].sum()
    live = record.live.groupby(["point", "operation"], sort=False)["bytes"].max().rename("live_bytes")
    frame = frame.join(prices, on=["point", "operation"]).join(live, on=["point", "operation"])
    costs = ["latency_s", "flash_bytes", "live_bytes"]
    frame[costs] = frame[costs].astype(float)
    frame = frame[frame[costs].notna().any(axis=1)]
    frame["peak"] = frame["live_bytes"] == frame.groupby("point")["live_bytes"].transform("max")
    return frame.reset_index(drop=True)


def figure(facts: pd.DataFrame, reference: pd.DataFrame | None = None, calibrated: bool = False) -> go.Figure:
    """Draws one policy's costs; bars are coloured by the layer's bits, ticks mark a reference policy.

    Args:
        facts: rows of one point from `facts`.
        reference: rows of the policy to compare with (uniform 8 bit), or None.
        calibrated: whether the device's latency was fitted to measurements.
    """
    titles = [f"{'live RAM' if cost is PEAK_RAM else cost.title}, {cost.unit}" for _, cost, _ in PANELS]
    if not calibrated:
        titles[0] += "<br>(uncalibrated)"
    drawing = make_subplots(rows=1, cols=3, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.05)
    names = [plot_text(name) for name in facts["operation"]]
    other = None if reference is None else reference.set_index("operation").reindex(facts["operation"])
    for place, (column, cost, role) in enumerate(PANELS, start=1):
        note = " (uncalibrated)" if cost is LATENCY and not calibrated else ""
        drawing.add_bar(
            x=shown(facts[column], cost), y=names, orientation="h", showlegend=False,
            marker={"color": [bit_color(b) for b in facts[role]],
                        "line": {"color": PEAK_EDGE, "width": [2 if peak and column == "live_bytes" else 0
                                                          for peak in facts["peak"]]}},
            hovertemplate=f"%{{y}}: %{{x:.4~g}} {cost.unit}{note}<extra></extra>", row=1, col=place,
        )  # fmt: skip
        if other is not None:
            drawing.add_scatter(
                x=shown(other[column], cost), y=names, mode="markers", name="uniform 8 bit", showlegend=False,
                marker={"symbol": "line-ns-open", "size": 11, "color": "#5B6068", "line": {"width": 2}},
                hovertemplate=f"uniform 8 bit %{{y}}: %{{x:.4~g}} {cost.unit}{note}<extra></extra>", row=1, col=place,
            )  # fmt: skip
    drawing.update_xaxes(rangemode="tozero", nticks=4)
    return bits.rows(drawing, facts["operation"].tolist())


def shown(values: pd.Series, cost: Cost) -> list[float | None]:
    """Returns values in the unit that people read, None where there is none."""
    return [None if pd.isna(value) else cost.shown(value) for value in values]
