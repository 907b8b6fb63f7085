"""Draws predicted against published or counted figures, one SVG per shipped profile that has any.

    python benchmarks/plot_devices.py [--out docs/devices]

A panel per unit; every point was predicted without having been fitted to, as its legend says. Dotted lines: 25 % off.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from hardware_models.profile import list_profiles
from hardware_models.published.check import Check
from hardware_models.validation import checks_of

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c564b")
"""Told apart with any colour vision (Okabe and Ito), one more."""
SIDE, LEFT, TOP, GAP, LINE, LETTER = 360, 70, 44, 90, 16, 5.6


@dataclass(frozen=True)
class Series:
    """Points of one colour: (measured, predicted) pairs in a unit."""

    label: str
    unit: str
    points: tuple[tuple[float, float], ...]


def series(check: Check) -> Series:
    points = tuple((point.measured, point.predicted) for point in check.points)
    return Series(f"{check.what}, {check.split}: {check.error_pct:.1f} %", check.unit, points)


def compared(profile: str) -> list[Series]:
    """Every figure of a profile, published or counted, none predicted from itself."""
    return [series(check) for check in checks_of(profile)]


def draw(title: str, series: Sequence[Series]) -> str:
    units = list(dict.fromkeys(entry.unit for entry in series))
    longest = max(len(entry.label) for entry in series)
    width = max(len(units) * (LEFT + SIDE + GAP), LEFT + 30 + round(LETTER * longest))
    height = TOP + SIDE + 56 + len(series) * LINE
    body = [f'<text x="{LEFT}" y="18" font-size="14" font-weight="bold">{escape(title)}</text>']
    for number, unit in enumerate(units):
        x = LEFT + number * (LEFT + SIDE + GAP)
        body += panel(x, TOP, unit, [pair for pair in zip(COLOURS * 3, series, strict=False) if pair[1].unit == unit])
    for index, entry in enumerate(series):
        row = TOP + SIDE + 56 + index * LINE
        body.append(f'<circle cx="{LEFT + 4}" cy="{row - 4}" r="4" fill="{COLOURS[index % len(COLOURS)]}"/>')
        body.append(f'<text x="{LEFT + 14}" y="{row}">{escape(entry.label)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(body)}</svg>\n"
    )


def panel(x: float, y: float, unit: str, series: Sequence[tuple[str, Series]]) -> Iterable[str]:
    """One square with logarithmic axes of equal range."""
    figures = [value for _, entry in series for pair in entry.points for value in pair]
    low, high = math.log10(min(figures)) - 0.1, math.log10(max(figures)) + 0.1

    def at(value: float) -> float:
        return (math.log10(value) - low) / (high - low) * SIDE

    yield f'<rect x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#888"/>'
    for factor, style in ((1.0, ""), (0.75, ' stroke-dasharray="2 4"'), (1.25, ' stroke-dasharray="2 4"')):
        start, end = max(10**low, 10**low / factor), min(10**high, 10**high / factor)
        yield (
            f'<line x1="{x + at(start):.1f}" y1="{y + SIDE - at(start * factor):.1f}" x2="{x + at(end):.1f}" '
            f'y2="{y + SIDE - at(end * factor):.1f}" stroke="#888"{style}/>'
        )
    for value in ticks(low, high):
        text = f"{value:g}".replace("e+0", "e")
        yield f'<text x="{x + at(value):.1f}" y="{y + SIDE + 14}" text-anchor="middle">{text}</text>'
        yield f'<text x="{x - 4}" y="{y + SIDE - at(value) + 4:.1f}" text-anchor="end">{text}</text>'
    yield f'<text x="{x + SIDE / 2}" y="{y + SIDE + 30}" text-anchor="middle">measured, {escape(unit)}</text>'
    yield f'<text x="{x}" y="{y - 8}">predicted, {escape(unit)}</text>'
    for colour, entry in series:
        for measured, predicted in entry.points:
            yield (
                f'<circle cx="{x + at(measured):.1f}" cy="{y + SIDE - at(predicted):.1f}" r="3" fill="{colour}" '
                'fill-opacity="0.7"/>'
            )


def ticks(low: float, high: float) -> list[float]:
    """Powers of ten, or 1-2-5 steps where there are fewer than three."""
    steps = (1, 2, 5) if high - low < 2 else (1,)
    values = [s * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for s in steps]
    return [value for value in values if low <= math.log10(value) <= high]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "devices")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name in list_profiles():
        drawn = compared(name)
        if drawn:
            (out / f"{name}.svg").write_text(draw(name, drawn))
            print(f"{name}: {sum(len(entry.points) for entry in drawn)} figures")
        else:
            print(f"{name}: no figures, no plot")


if __name__ == "__main__":
    main()
