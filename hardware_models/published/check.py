"""A comparison of predictions with figures, and the table of every point of it."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True)
class Point:
    """One predicted figure beside the published or counted one.

    Attributes:
        board: where it was measured.
        case: network, layer or operation.
        measured: the figure.
        predicted: without having seen it, where the check's split says so.
    """

    board: str
    case: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative error."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class Check:
    """One comparison with figures.

    Attributes:
        subject: profile or runtime.
        what: what is compared with what.
        split: how the predictions were held out.
        unit: of the points' figures.
        points: all of them.
        bar_pct: the error that is asked for, if any.
        profiles: names of the shipped profiles that rest on it.
    """

    subject: str
    what: str
    split: str
    unit: str
    points: tuple[Point, ...]
    bar_pct: float | None = None
    profiles: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """Number of figures."""
        return len(self.points)

    @property
    def error_pct(self) -> float:
        """Mean absolute percentage error."""
        return sum(100 * abs(point.error) for point in self.points) / len(self.points)

    @property
    def worst_pct(self) -> float:
        """Largest absolute percentage error."""
        return max(100 * abs(point.error) for point in self.points)

    @property
    def line(self) -> str:
        """One line for people."""
        bar = "" if self.bar_pct is None else f", asked for {self.bar_pct:.0f} %"
        return (
            f"{self.subject}: {self.what}: {self.error_pct:.1f} % (worst {self.worst_pct:.1f} %, "
            f"{self.samples} figures, {self.split}{bar})"
        )


def write_points(checks: Iterable[Check], file: TextIO) -> None:
    """Writes every point of some checks as CSV."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["subject", "what", "split", "unit", "board", "case", "measured", "predicted"])
    for check in checks:
        for point in check.points:
            figures = f"{point.measured:.6g}", f"{point.predicted:.6g}"
            writer.writerow([check.subject, check.what, check.split, check.unit, point.board, point.case, *figures])
