"""The visual language: one colour per bitwidth, used everywhere, and the words and units of costs.

Few bits are warm and many are cool; neighbours differ in lightness too, so the scale survives colour blindness
and black-and-white print.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

if TYPE_CHECKING:
    from reports.record import RunRecord

BIT_COLORS = {
    1: "#8A3A00",
    2: "#D55E00",
    3: "#E58A2E",
    4: "#F2C14E",
    5: "#BFD3C1",
    6: "#7DB9CF",
    7: "#4A93C4",
    8: "#0F6CB0",
    16: "#34517A",
    32: "#8C8C8C",
}
"""Bitwidth → colour; 32 is float."""

NO_BITS = "#B9BCC2"
"""Colour of an operation or tensor that has no bitwidth of its own."""

ACCENT = "#0B8A6B"
"""Searched policies; everything else about a front is grey."""

RUN_COLORS = ("#0B8A6B", "#C2549D", "#0F6CB0", "#D55E00", "#7A5CC0", "#A68A00", "#5AA6D6", "#7A7A7A")
RUN_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star", "hexagon")


@dataclass(frozen=True)
class Cost:
    """One cost of a policy: its name in the run's files, its words and the unit that people read."""

    name: str
    title: str
    unit: str
    per_unit: float

    def shown(self, value: float) -> float:
        """Returns a value of the files (seconds, bytes) in the unit that people read."""
        return value / self.per_unit

    def axis(self, calibrated: bool) -> str:
        """Returns the axis title; latency that was not fitted to measurements says so.

        >>> LATENCY.axis(calibrated=False), FLASH.axis(calibrated=False)
        ('latency, ms (uncalibrated)', 'flash, KiB')
        """
        return f"{self.title}, {self.unit}{label(self.name, calibrated)}"


LATENCY = Cost("latency_s", "latency", "ms", 1e-3)
FLASH = Cost("flash_bytes", "flash", "KiB", 1024.0)
PEAK_RAM = Cost("peak_ram_bytes", "peak RAM", "KiB", 1024.0)
COSTS = {cost.name: cost for cost in (LATENCY, FLASH, PEAK_RAM)}


def label(cost: str, calibrated: bool) -> str:
    """Returns `` (uncalibrated)`` for a latency that was not fitted to measurements, otherwise nothing."""
    return " (uncalibrated)" if cost == LATENCY.name and not calibrated else ""


def number(value: float | None, digits: int = 4) -> str:
    """Returns a number as people read it, an en dash where there is none.

    >>> number(0.0123456), number(1234567.0), number(None), number(float("nan"))
    ('0.01235', '1,234,567', '–', '–')
    """
    if value is None or pd.isna(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:,.{digits}g}"


def cost_text(cost: Cost, value: float | None, calibrated: bool) -> str:
    """Returns a cost in its shown unit, labelled when uncalibrated.

    >>> cost_text(LATENCY, 0.0012, calibrated=False)
    '1.2 ms (uncalibrated)'
    """
    shown = None if value is None or pd.isna(value) else cost.shown(value)
    return f"{number(shown)} {cost.unit}{label(cost.name, calibrated)}"


def score_text(record: RunRecord, value: float | None) -> str:
    """Returns a score with the task's unit."""
    return f"{number(value)} {record.task.get('unit') or ''}".strip()


def plot_text(name: object) -> str:
    """Returns a name as plotly draws it literally: plotly reads ``<b>`` and friends as markup, entities as text.

    >>> plot_text("<b>a&b</b>")
    '&lt;b&gt;a&amp;b&lt;/b&gt;'
    """
    return escape(str(name), quote=False)


def bit_color(bits: float | None) -> str:
    """Returns the colour of a bitwidth, or the neutral grey."""
    return NO_BITS if bits is None or pd.isna(bits) else BIT_COLORS.get(int(bits), NO_BITS)


def calm(figure: go.Figure, height: int | None = None) -> go.Figure:
    """Gives a figure the common look: transparent, thin grid, no title; the page recolours it for dark mode."""
    axis = {"gridcolor": "#E3E5E8", "zerolinecolor": "#C9CCD1", "linecolor": "#C9CCD1", "automargin": True}
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 12, "t": 28, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={
            "family": "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif",
            "size": 13,
            "color": "#23262B",
        },
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
    )
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure
